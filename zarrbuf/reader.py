"""Run a read plan: opened archives, decoded small fields, one batch.

Owns the bounds of what is kept open and decoded. Fills a batch chunk by chunk and
reads nothing else of an archive. Knows no commit; archives come from a home.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol

import numpy as np

from zarrbuf.big_fields import Places, plan_chunks
from zarrbuf.cache import LruCache
from zarrbuf.format import AnyArray, BatchField
from zarrbuf.mapping import are_in_memory, will_need
from zarrbuf.parallel import decode_reads
from zarrbuf.rows import Row, Rows
from zarrbuf.sampling import Group, ReadPlan
from zarrbuf.small_fields import (
    decode_small_fields,
    gather_small_fields,
    packed_dtype,
)
from zarrbuf.stats import ReadStats, StatsKeeper
from zarrbuf.trajectory_archive import TrajectoryArchive
from zarrbuf.workers import Workers

MAX_OPEN_ARCHIVES: Final = 16_384
"""Mapped files kept; Linux allows a process 65,530 mappings."""
PROBES: Final = 16
"""Chunks of a batch whose pages are looked for in memory before it is read."""
MAX_GROUPS: Final = 4096
"""Trajectories that are open at once for one batch."""


class Trajectories(Protocol):
    """The trajectories of a window, by position."""

    def uuids(self, positions: Sequence[int]) -> list[str]:
        """Return their uuids."""
        ...

    def archive(self, position: int) -> TrajectoryArchive:
        """Open one, or return it if it is open."""
        ...


Run = tuple[Sequence[Group], Sequence[TrajectoryArchive]]
"""Groups of a plan and their archives, or none where nothing has to be opened."""


class Home(Protocol):
    """Where the archives of some trajectories are.

    Attributes:
        keeps_archives: whether their bytes are in memory as long as they are listed.
    """

    @property
    def keeps_archives(self) -> bool:
        """See above."""
        ...

    def open_archive(self, row: Row) -> TrajectoryArchive:
        """Open one archive; raises NotFoundError, FormatError or StorageError."""
        ...


class BatchReader:
    """Reads batches from archives. Safe between threads.

    Attributes:
        stats: what batches have cost so far.
    """

    def __init__(
        self, *, cache_bytes: int, archive_bytes: int, workers: Workers
    ) -> None:
        """Keep at most so much in memory.

        Args:
            cache_bytes: decoded small fields.
            archive_bytes: what opened archives take: their chunk indexes, and those
                made from `pt` and `pkl` files whole.
            workers: threads that decode.
        """
        self._archives: LruCache[str, TrajectoryArchive] = LruCache(
            max_cost=archive_bytes, max_items=MAX_OPEN_ARCHIVES
        )
        self._small: LruCache[str, AnyArray] = LruCache(
            max_cost=cache_bytes, max_items=1 << 20
        )
        self.stats = StatsKeeper()
        self._workers = workers
        self._archive_bytes = archive_bytes
        self._is_cold = True
        self._num_opened = 0

    @property
    def num_cached(self) -> int:
        """Trajectories whose small fields are kept decoded."""
        return len(self._small)

    @property
    def cached_bytes(self) -> int:
        """Bytes of decoded small fields."""
        return self._small.cost

    def clear(self) -> None:
        """Forget everything that is kept."""
        self._archives.clear()
        self._small.clear()

    def reset_after_fork(self) -> None:
        """Make new locks and threads: those of the parent may be held for ever."""
        self._archives.make_lock()
        self._small.make_lock()
        self.stats.make_lock()
        self._workers.reset()

    def forget_archive(self, uuid: str) -> None:
        """Drop an opened archive, because it has moved (from memory to disk)."""
        self._archives.discard(uuid)

    def archive(self, rows: Rows, position: int, home: Home) -> TrajectoryArchive:
        """Return the archive of one row, opened or kept from before.

        Raises:
            NotFoundError: if it is not there.
            FormatError: if it is damaged.
        """
        uuid = rows.uuid(position)
        archive = self._archives.get(uuid)
        if archive is None:
            archive = home.open_archive(rows.row(position))
            is_held = archive.is_in_memory and not home.keeps_archives
            cost = archive.open_bytes + (len(archive.source) if is_held else 0)
            self._archives.put(uuid, archive, cost=cost)
            self._is_cold = True
            self._num_opened += 1
        return archive

    def read_batch(
        self,
        plan: ReadPlan,
        batch: Mapping[str, AnyArray],
        fields: Sequence[BatchField],
        trajectories: Trajectories,
    ) -> ReadStats:
        """Read the samples of a plan.

        Args:
            plan: which samples.
            batch: field name -> C-contiguous array [n, ...] of the stored dtype.
            fields: which fields, served by every trajectory of the plan.
            trajectories: those of the window.

        Returns:
            What it has cost.

        Raises:
            FormatError: if a chunk that is drawn is damaged; rows of the batch may
                have been written.
        """
        stats = ReadStats(batches=1, samples=plan.num_samples)
        big = [field for field in fields if field.spec.is_big]
        small = [field for field in fields if not field.spec.is_big]
        num_opened = self._num_opened
        packed = np.empty(plan.num_samples, packed_dtype(small))
        runs = self._opened(plan, trajectories, stats) if big else _unopened(plan)
        for groups, archives in runs:
            if big:
                self._read_big(Places.of(groups), archives, big, batch, stats)
            tables = self._small_tables(groups, archives, trajectories, stats)
            with stats.timing("gather"):
                gather_small_fields(groups, tables, small, packed)
        with stats.timing("gather"):
            for field in small:
                batch[field.name][...] = packed[field.name]
        stats.archives_opened = self._num_opened - num_opened
        return stats

    def _opened(
        self, plan: ReadPlan, trajectories: Trajectories, stats: ReadStats
    ) -> Iterator[Run]:
        """Yield the groups of a plan in parts whose archives fit into memory.

        Archives made from `pt` and `pkl` files are in memory whole: a batch may need
        more of them than there is room for.
        """
        groups: list[Group] = []
        archives: list[TrajectoryArchive] = []
        num_bytes = 0
        for group in plan.groups:
            with stats.timing("read"):
                archive = trajectories.archive(group.position)
            groups.append(group)
            archives.append(archive)
            num_bytes += len(archive.source) if archive.is_in_memory else 0
            if num_bytes > self._archive_bytes or len(groups) == MAX_GROUPS:
                yield groups, archives
                groups, archives, num_bytes = [], [], 0
        if groups:
            yield groups, archives

    def _read_big(
        self,
        places: Places,
        archives: Sequence[TrajectoryArchive],
        fields: Sequence[BatchField],
        batch: Mapping[str, AnyArray],
        stats: ReadStats,
    ) -> None:
        """Decode the big fields of some trajectories to their rows."""
        with stats.timing("plan"):
            reads = [
                plan_chunks(archives, field, places, batch[field.name])
                for field in fields
            ]
        blocks_before = _blocks_read()
        with stats.timing("read"):
            if self._is_cold or not are_in_memory(reads[0].some_addresses(PROBES)):
                ranges = np.concatenate([one.stored_ranges() for one in reads])
                will_need(ranges[:, 0], ranges[:, 1])
        with stats.timing("decode"):
            stats.bytes_read += decode_reads(reads, self._workers)
        # What was not in memory this time will hardly be the next time either.
        self._is_cold = _blocks_read() > blocks_before
        stats.chunks_read += sum(len(one.chunks) for one in reads)
        stats.bytes_decoded += sum(len(one.chunks) * one.row_bytes for one in reads)

    def _small_tables(
        self,
        groups: Sequence[Group],
        archives: Sequence[TrajectoryArchive],
        trajectories: Trajectories,
        stats: ReadStats,
    ) -> list[AnyArray]:
        """Return the decoded small fields of trajectories, opened if need be."""
        uuids = trajectories.uuids([group.position for group in groups])
        decoded_before = stats.small_fields_decoded
        tables: list[AnyArray] = []
        for number, table in enumerate(self._small.get_all(uuids)):
            if table is not None:
                tables.append(table)
                continue
            with stats.timing("read"):
                archive = (
                    archives[number]
                    if archives
                    else trajectories.archive(groups[number].position)
                )
            with stats.timing("decode"):
                decoded = decode_small_fields(archive)
            self._small.put(uuids[number], decoded, cost=decoded.nbytes)
            stats.small_fields_decoded += 1
            tables.append(decoded)
        decoded_here = stats.small_fields_decoded - decoded_before
        stats.small_fields_cached += len(groups) - decoded_here
        return tables


def _unopened(plan: ReadPlan) -> Iterator[Run]:
    """Yield the groups of a plan in parts, no archive opened."""
    for start in range(0, len(plan.groups), MAX_GROUPS):
        yield plan.groups[start : start + MAX_GROUPS], ()


def _blocks_read() -> int:
    """Return the blocks that this process has read from a device so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_inblock
