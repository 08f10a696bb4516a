"""Names of RLinf's buffer that its own code uses, though they begin with `_`.

Each stands for something that has a public name here. Owns nothing.
"""

from __future__ import annotations

from typing import Any

from zarrbuf.replay.live_set import LiveSet
from zarrbuf.rlinf.index import index_entry
from zarrbuf.trajectory.encoding import flatten_encoded
from zarrbuf.trajectory.trajectory import Trajectory, nest


class RlinfNames:
    """What RLinf's code calls on a buffer, from what the buffer holds."""

    _live: LiveSet

    def load_trajectory(self, trajectory_id: int) -> Trajectory:
        """Read one whole trajectory that the buffer lists, window or not.

        Raises:
            TrajectoryNotFoundError: if the buffer lists no such id.
            FormatError: if it is damaged.
        """
        return self._live.trajectory(trajectory_id)

    def _load_trajectory(
        self, trajectory_id: int, model_weights_id: str | None = None
    ) -> Trajectory:
        return self.load_trajectory(trajectory_id)

    @staticmethod
    def flatten_trajectory(trajectory: Any) -> dict[str, Any]:
        """Return the transitions of a trajectory as a batch.

        Returns:
            Nested dict of tensors `[T * B, ...]`; row `t * B + b` is environment b at
            step t, extra rows trimmed.
        """
        return nest(flatten_encoded(trajectory))

    _flatten_trajectory = flatten_trajectory

    @property
    def _trajectory_id_list(self) -> list[int]:
        return self._live.trajectory_ids

    @property
    def _trajectory_counter(self) -> int:
        return self._live.next_trajectory_id

    @property
    def _trajectory_index(self) -> dict[int, dict[str, Any]]:
        return {row.trajectory_id: index_entry(row) for row in self._live.rows()}
