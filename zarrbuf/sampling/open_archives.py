"""Archives that are open: kept within bounds, and opened many at once where that pays.

Owns the bounds, and the check that an archive is as long as its row says. Archives come
from a store; what is fetched of them, others say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from zarrbuf.common.lru import LruCache
from zarrbuf.errors import FormatError
from zarrbuf.manifest.rows import Rows
from zarrbuf.sampling.index_map import IntArray
from zarrbuf.storage.fetching import FetchCost, fetch_whole
from zarrbuf.stores.contract import TrajectoryStore
from zarrbuf.trajectory.archived import TrajectoryArchive
from zarrbuf.trajectory.trajectory import Trajectory, decode_trajectory

MAX_OPEN_ARCHIVES: Final = 16_384
"""Mapped files kept; Linux allows a process 65,530 mappings."""
MAX_GROUPS: Final = 4096
"""Trajectories that are open at once for one batch."""


class OpenArchives:
    """Archives by uuid, those used longest ago forgotten. Safe between threads.

    Attributes:
        max_bytes: what those may take that are in memory, together.
        num_opened: archives opened so far.
        num_mapped: those of them that are mapped files.
    """

    def __init__(self, *, max_bytes: int) -> None:
        """Start with none open."""
        self.max_bytes = max_bytes
        self.num_opened = 0
        self.num_mapped = 0
        self._kept: LruCache[str, TrajectoryArchive] = LruCache(
            max_cost=max_bytes, max_items=MAX_OPEN_ARCHIVES
        )

    def __len__(self) -> int:
        """Return the number of archives kept open."""
        return len(self._kept)

    @property
    def num_bytes(self) -> int:
        """What those take that are kept."""
        return self._kept.cost

    def make_lock(self) -> None:
        """Start with a lock that nobody holds."""
        self._kept.make_lock()

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()

    def discard(self, uuid: str) -> None:
        """Forget one, because it has moved (from memory to disk)."""
        self._kept.discard(uuid)

    def whole(
        self, rows: Rows, position: int, store: TrajectoryStore
    ) -> TrajectoryArchive:
        """Return the archive of one row with all of its bytes.

        Raises:
            NotFoundError: if it is not there.
            FormatError: if it is damaged, or another one than the row says.
            StorageError: if the storage failed.
        """
        cost = FetchCost()
        (archive,) = self.several(rows, np.array([position]), store, cost)
        fetch_whole([archive.remote], cost)
        self.weigh([archive])
        return archive

    def trajectory(
        self, rows: Rows, position: int, store: TrajectoryStore
    ) -> Trajectory:
        """Return the trajectory of one row, every tensor as it was given.

        Raises:
            Exception: as `whole`.
        """
        row = rows.row(position)
        if store.makes_archives(row.uuid):
            return store.read_trajectory(row)
        try:
            return decode_trajectory(self.whole(rows, position, store))
        except FormatError:
            if not store.is_remote:
                raise
            # Flipped on its way, perhaps.
            self.discard(row.uuid)
            store.forget_fetched(row)
            return decode_trajectory(self.whole(rows, position, store))

    def several(
        self, rows: Rows, positions: IntArray, store: TrajectoryStore, cost: FetchCost
    ) -> Iterator[TrajectoryArchive]:
        """Yield the archives of some rows, opened or kept from before.

        Those of a remote store are opened at once, others as they are asked for: they
        may be in memory whole.

        Args:
            rows: the rows.
            positions: int64 [n], which of them.
            store: where their archives are.
            cost: what opening costs is added.

        Raises:
            NotFoundError: if one is not there.
            FormatError: if one is damaged, or another one than its row says.
            StorageError: if the storage failed.
        """
        step = MAX_GROUPS if store.is_remote else 1
        for start in range(0, len(positions), step):
            some = positions[start : start + step].tolist()
            archives = self._have(rows, some, store, cost)
            for position, archive in zip(some, archives, strict=True):
                _check_shape(rows, position, archive)
                yield archive

    def _have(
        self,
        rows: Rows,
        positions: Sequence[int],
        store: TrajectoryStore,
        cost: FetchCost,
    ) -> list[TrajectoryArchive]:
        uuids = [one.hex() for one in rows.fixed["uuid"][positions].tolist()]
        kept = zip(uuids, self._kept.get_all(uuids), strict=True)
        found = {uuid: archive for uuid, archive in kept if archive is not None}
        pairs = zip(uuids, positions, strict=True)
        wanted = {uuid: number for uuid, number in pairs if uuid not in found}
        if wanted:
            opened = store.open_archives([rows.row(n) for n in wanted.values()], cost)
            for uuid, archive in zip(wanted, opened, strict=True):
                if not store.makes_archives(uuid):
                    self._keep(uuid, archive, store)
                found[uuid] = archive
        return [found[uuid] for uuid in uuids]

    def _keep(
        self, uuid: str, archive: TrajectoryArchive, store: TrajectoryStore
    ) -> None:
        is_kept = archive.memory_bytes > 0 and store.keeps(uuid)
        cost = archive.open_bytes + archive.fetched_bytes
        cost += 0 if is_kept else archive.memory_bytes
        self._kept.put(uuid, archive, cost=cost)
        if is_kept and not store.keeps(uuid):
            # Forgotten meanwhile: nothing else would drop it from here.
            self._kept.discard(uuid)
        self.num_opened += 1
        self.num_mapped += archive.remote is None

    def weigh(self, archives: Sequence[TrajectoryArchive]) -> None:
        """Count what was fetched of archives; those used longest ago go."""
        for archive in archives:
            if archive.remote is None:
                continue
            kept, cost = archive, archive.open_bytes + archive.fetched_bytes
            if cost > self.max_bytes:  # it alone: begin anew, but stay open
                kept, cost = archive.emptied(), archive.open_bytes
            self._kept.put(archive.header.uuid, kept, cost=cost)


def _check_shape(rows: Rows, position: int, archive: TrajectoryArchive) -> None:
    header, fixed = archive.header, rows.fixed
    shape = int(fixed["T"][position]), int(fixed["B"][position])
    if (header.num_steps, header.num_envs) != shape:
        raise FormatError(
            f"{archive.name}: holds T={header.num_steps}, B={header.num_envs}; the "
            f"list says T={shape[0]}, B={shape[1]}"
        )
