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
from zarrbuf.manifest.rows import IntArray, Row, Rows
from zarrbuf.manifest.selection import partition
from zarrbuf.manifest.snapshot import schema_id
from zarrbuf.rlinf.index import trajectory_name
from zarrbuf.storage.fetching import FetchCost
from zarrbuf.trajectory.archived import TrajectoryArchive
from zarrbuf.trajectory.encoding import EncodedTrajectory
from zarrbuf.trajectory.packing import PackedRows
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


@dataclass(frozen=True)
class Portion:
    """What a buffer loads of a store.

    Attributes:
        listed: the rows, those that are there.
        num_trajectories: all that were ever in it, those evicted since too.
        total_samples: of these.
        next_trajectory_id: the id of the next one.
    """

    listed: Stretch
    num_trajectories: int
    total_samples: int
    next_trajectory_id: int


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

    def forget_fetched(self, row: Row) -> None:  # noqa: B027
        """Drop what is kept on disk of an archive that was fetched; it is damaged."""

    def read_trajectory(self, row: Row) -> Trajectory:
        """Read one whole trajectory; raises what `open_archive` does."""
        return decode_trajectory(self.open_archive(row))

    def packed_rows(self, numbers: IntArray) -> PackedRows | None:
        """Return where trajectories lie in blocks in memory; None if none does.

        Args:
            numbers: int64 [n], rows of the table of `listed`.
        """
        return None

    def makes_archives(self, uuid: str) -> bool:
        """Whether there is no archive of a trajectory but those made when asked for."""
        return False

    def encoded(self, row: Row) -> EncodedTrajectory | None:
        """Return a trajectory as it would lie on disk, None if it lies there."""
        return None

    @abc.abstractmethod
    def append(self, items: Sequence[NewTrajectory]) -> list[str]:
        """Add trajectories; they are durable and listed when it returns.

        May be called again with items that failed before; none is added twice.

        Returns:
            The uuids that they are listed by.

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

    def portion(self, rank: int, world_size: int, *, window_size: int) -> Portion:
        """Return the part of `rank`: contiguous, the first ones get one more.

        Args:
            rank: in [0, world_size).
            world_size: number of parts.
            window_size: trajectories that will be drawn from, the newest; 0 for all.

        Raises:
            InvalidInputError: if the rank is not allowed.
            NotFoundError: if a trajectory that will be drawn from is not there.
        """
        whole = self.listed
        listed = whole.part(*partition(len(whole), rank, world_size))
        ids, samples = listed.trajectory_ids, listed.rows.column("num_samples")
        next_id = int(ids.max(initial=-1)) + 1
        count, total = len(listed), int(samples.sum())
        if world_size == 1:
            next_id = max(next_id, self.next_trajectory_id)
            state = self.state or {}
            counter = state.get("trajectory_counter")
            if type(counter) is int:
                next_id = max(next_id, counter)
                # What a run had evicted when it saved is listed nowhere.
                later = ids >= counter
                count = max(count, _number(state, "size") + int(later.sum()))
                more = int(samples[later].sum())
                total = max(total, _number(state, "total_samples") + more)
        return Portion(listed, count, total, next_id)

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


def _number(state: Mapping[str, Any], name: str) -> int:
    """Return a count that a run kept, 0 if it kept none."""
    value = state.get(name)
    return value if type(value) is int else 0
