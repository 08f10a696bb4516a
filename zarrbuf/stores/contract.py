"""Where a buffer keeps its trajectories: what every kind of store can do.

A store lists rows, opens archives and appends: `logged`, `in_memory` and `rlinf_folder`
keep this contract. Knows no window, no batch and no thread.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zarrbuf.archive.spec import Schema
from zarrbuf.manifest.row_table import Stretch
from zarrbuf.manifest.rows import Row, Rows
from zarrbuf.manifest.snapshot import schema_id
from zarrbuf.rlinf.index import trajectory_name
from zarrbuf.storage.fetching import FetchCost
from zarrbuf.trajectory.archived import TrajectoryArchive
from zarrbuf.trajectory.encoding import EncodedTrajectory
from zarrbuf.trajectory.trajectory import Trajectory, decode_trajectory


@dataclass(frozen=True)
class NewTrajectory:
    """A trajectory on its way into a store.

    Attributes:
        row: its row; a store may give it another `trajectory_id` if others append too.
        encoded: its archive.
    """

    row: Row
    encoded: EncodedTrajectory

    @classmethod
    def of(cls, encoded: EncodedTrajectory, *, trajectory_id: int) -> NewTrajectory:
        """Make the row of an encoded trajectory."""
        header = encoded.header
        row = Row(
            uuid=header.uuid,
            trajectory_id=trajectory_id,
            model_weights_id=header.model_weights_id,
            num_steps=header.num_steps,
            num_envs=header.num_envs,
            shape=encoded.shape,
            max_episode_length=header.max_episode_length,
            size=len(encoded.data),
            crc=encoded.crc,
            schema=schema_id(header.schema),
            tags=encoded.tags,
        )
        return cls(row, encoded)


def known_name(row: Row, suffix: str = "zarr") -> str:
    """Return the name a person knows a trajectory by."""
    return trajectory_name(row.trajectory_id, row.model_weights_id, suffix)


class TrajectoryStore(abc.ABC):
    """A list of trajectories that can be opened, and appended to.

    Attributes:
        suffix: "zarr", "pt" or "pkl".
        is_remote: whether archives are fetched in parts, so that many are opened at
            once.
    """

    suffix: str = "zarr"
    is_remote: bool = False

    @property
    @abc.abstractmethod
    def listed(self) -> Stretch:
        """The rows listed now, in order."""

    @property
    def url(self) -> str | None:
        """Where it lies; None for memory."""
        return None

    @property
    def rows(self) -> Rows:
        """The rows listed now, for those who go through all of them."""
        return self.listed.rows

    @property
    @abc.abstractmethod
    def next_trajectory_id(self) -> int:
        """One more than the highest id ever given."""

    @abc.abstractmethod
    def schema(self, row: Row) -> Schema:
        """Return the fields of one trajectory."""

    def known_schema(self, row: Row) -> Schema | None:
        """Return the fields of one trajectory, or None if it has to be opened first."""
        return self.schema(row)

    def keeps(self, uuid: str) -> bool:
        """Whether the bytes of an archive are in memory anyway, for the time being."""
        return False

    @abc.abstractmethod
    def open_archive(self, row: Row) -> TrajectoryArchive:
        """Open the archive of a row.

        Raises:
            NotFoundError: if it is not there.
            FormatError: if it is damaged or not the one that the row names.
        """

    def open_archives(
        self, rows: Sequence[Row], cost: FetchCost
    ) -> list[TrajectoryArchive]:
        """Open several archives, at once where that is faster.

        Of an archive on a remote storage only what tells where its chunks are is there;
        the rest is for `fetch`.

        Args:
            rows: theirs.
            cost: what it costs is added.

        Raises:
            NotFoundError: if one is not there.
            FormatError: if one is damaged or not the one that its row names.
        """
        return [self.open_archive(row) for row in rows]

    def read_trajectory(self, row: Row) -> Trajectory:
        """Read one whole trajectory; raises what `open_archive` does."""
        return decode_trajectory(self.open_archive(row))

    @abc.abstractmethod
    def append(self, items: Sequence[NewTrajectory]) -> None:
        """Add trajectories; they are durable and listed when it returns.

        May be called again with items that failed before; none is added twice.

        Raises:
            StorageError: if the storage failed, naming the trajectory.
        """

    @abc.abstractmethod
    def remove_all(self, *, reason: str) -> None:
        """Take every row off the list."""

    @property
    def mark(self) -> int:
        """Where the list ends now, for `after`."""
        return self.listed.stop

    def after(self, listed: Stretch, mark: int) -> Stretch:
        """Return those of the rows `listed` here that came after `mark` was taken."""
        start = min(max(listed.start, mark), listed.stop)
        return Stretch(listed.table, start, listed.stop)

    def frozen(self) -> TrajectoryStore:
        """Return what goes on opening the rows listed now, whatever happens here."""
        return self

    def is_same(self, other: TrajectoryStore) -> bool:
        """Whether two stores list the same buffer."""
        return self is other

    def refresh(self) -> None:  # noqa: B027
        """Take in what others appended."""

    @property
    def state(self) -> Mapping[str, Any] | None:
        """What a run kept here with its checkpoint."""
        return None

    @property
    def seed(self) -> int | None:
        """The seed that draws from these trajectories started with."""
        return None
