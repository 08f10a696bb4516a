"""Run a read plan: opened archives, chunks fetched and decoded, one batch.

Each sample of a big field is a chunk of its own, and goes to its row of the batch by
itself; nothing else of an archive is read. Small fields are rows of tables, see
`field_tables`. Knows no commit.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from zarrbuf.archive.chunks import ChunkReads
from zarrbuf.archive.decode import (
    compile_reading,
    decode_reads,
    have_loops,
    scatter_rows,
)
from zarrbuf.archive.spec import AnyArray, BatchField, step_rows
from zarrbuf.common.thread_pool import Workers
from zarrbuf.errors import FormatError
from zarrbuf.sampling.field_tables import SmallTables, TableRead, TableReader
from zarrbuf.sampling.index_map import IntArray, ReadPlan
from zarrbuf.sampling.open_archives import MAX_GROUPS, OpenArchives
from zarrbuf.sampling.stats import ReadStats, StatsKeeper
from zarrbuf.sampling.window import Window
from zarrbuf.storage.fetching import FetchCost, RemoteObject, fetch
from zarrbuf.trajectory.archived import ChunkTable, TrajectoryArchive


@dataclass(frozen=True)
class _Reading:
    """One batch while it is read.

    Attributes:
        arrays: field name -> C-contiguous array [n, ...] of the stored dtype.
        big: fields of which each sample is a chunk.
        small: the others.
        window: the trajectories.
        stats: what it costs.
        cost: what fetching costs, a part of that.
    """

    arrays: Mapping[str, AnyArray]
    big: Sequence[BatchField]
    small: Sequence[BatchField]
    window: Window
    stats: ReadStats
    cost: FetchCost = field(default_factory=FetchCost)

    @classmethod
    def of(
        cls,
        arrays: Mapping[str, AnyArray],
        fields: Sequence[BatchField],
        window: Window,
        stats: ReadStats,
    ) -> _Reading:
        big = [one for one in fields if one.spec.is_big]
        small = [one for one in fields if not one.spec.is_big]
        return cls(arrays, big, small, window, stats)


@dataclass(frozen=True)
class _Part:
    """Some of the samples of a batch.

    Attributes:
        plan: which.
        archives: those of its groups, or none where no big field is read.
    """

    plan: ReadPlan
    archives: Sequence[TrajectoryArchive]

    def tables(self, reading: _Reading) -> TableRead:
        """Return what of it the small fields are read by."""
        return TableRead(
            plan=self.plan,
            archives=self.archives,
            window=reading.window,
            fields=reading.small,
            arrays=reading.arrays,
            stats=reading.stats,
            cost=reading.cost,
        )


class BatchReader:
    """Reads batches from archives. Safe between threads.

    Attributes:
        archives: those that are open.
        small: reads small fields.
        stats: what batches have cost so far.
    """

    def __init__(
        self, *, cache_bytes: int, archive_bytes: int, workers: Workers
    ) -> None:
        """Keep at most so much in memory.

        Args:
            cache_bytes: decoded small fields.
            archive_bytes: what opened archives take: their chunk indexes, chunks
                fetched from object stores, and those made from `pt` and `pkl` files
                whole.
            workers: threads that decode.
        """
        self.archives = OpenArchives(max_bytes=archive_bytes)
        self.small = TableReader(cache_bytes=cache_bytes, weigh=self.archives.weigh)
        self.stats = StatsKeeper()
        self._workers = workers
        self._num_mapped = -1
        self._is_cold = True

    def clear(self) -> None:
        """Forget everything that is kept."""
        self.archives.clear()
        self.small.clear()

    def reset_after_fork(self) -> None:
        """Make new locks and threads: those of the parent may be held for ever."""
        self.archives.make_lock()
        self.small.make_lock()
        self.stats.make_lock()
        self._workers.reset()

    def read_batch(
        self,
        plan: ReadPlan,
        arrays: Mapping[str, AnyArray],
        fields: Sequence[BatchField],
        window: Window,
        stats: ReadStats,
    ) -> None:
        """Read the samples of a plan.

        Args:
            plan: which samples.
            arrays: field name -> C-contiguous array [n, ...] of the stored dtype.
            fields: which fields, some of the window's.
            window: the trajectories.
            stats: what it costs is added.

        Raises:
            FormatError: if a chunk that is drawn is damaged; rows of the batch may
                have been written.
            NotFoundError: if an archive is not there.
            StorageError: if the storage failed.
        """
        reading = _Reading.of(arrays, fields, window, stats)
        num_opened = self.archives.num_opened

        def read() -> None:
            for part in self._parts(plan, reading):
                self._read_part(part, reading)

        _twice(read, plan, window)
        cost = reading.cost
        stats.requests, stats.bytes_fetched = cost.requests, cost.num_bytes
        stats.archives_opened = self.archives.num_opened - num_opened

    def fetch_batch(
        self,
        plan: ReadPlan,
        fields: Sequence[BatchField],
        window: Window,
    ) -> None:
        """Fetch what `read_batch` will read of object stores; raises what it does."""
        nothing = {
            field.name: np.empty((0, *field.spec.shape), field.spec.stored)
            for field in fields
        }
        reading = _Reading.of(nothing, fields, window, ReadStats())

        def read() -> None:
            for part in self._parts(plan, reading):
                if not reading.big:
                    self.small.fetch(part.tables(reading))
                    continue
                self._fetch(part, self._plan(part, reading), reading)
                self.archives.weigh(part.archives)

        _twice(read, plan, window)

    @staticmethod
    def _plan(part: _Part, reading: _Reading) -> list[ChunkReads]:
        return [
            _plan_chunks(part.archives, field, part.plan, reading.arrays[field.name])
            for field in reading.big
        ]

    def _fetch(
        self, part: _Part, reads: Sequence[ChunkReads], reading: _Reading
    ) -> None:
        """Have what is on object stores of a part here; nothing else is fetched."""
        if reading.window.is_remote:
            wanted = part.tables(reading)
            fetch(
                [*_chunk_ranges(part, reads), *self.small.ranges(wanted)], reading.cost
            )

    def _read_part(self, part: _Part, reading: _Reading) -> None:
        stats = reading.stats
        started = perf_counter()
        reads = self._plan(part, reading)
        planned = perf_counter()
        self._fetch(part, reads, reading)
        stats.plan_seconds += planned - started
        stats.fetch_seconds += perf_counter() - planned
        if reads:
            self._decode(reads, stats)
        if reading.small:
            self._gather(part.tables(reading))
        if reading.window.is_remote:
            self.archives.weigh(part.archives)

    def _parts(self, plan: ReadPlan, reading: _Reading) -> Iterator[_Part]:
        """Yield the groups of a plan in parts whose archives fit into memory.

        Archives made from `pt` and `pkl` files are in memory whole: a batch may need
        more of them than there is room for.
        """
        for first in range(0, len(plan.positions), MAX_GROUPS):
            last = min(first + MAX_GROUPS, len(plan.positions))
            some = _part_of(plan, first, last)
            if not reading.big:
                yield _Part(some, ())
                continue
            archives: list[TrajectoryArchive] = []
            num_bytes = start = 0
            for stop, archive in enumerate(self._opened(some.positions, reading), 1):
                archives.append(archive)
                num_bytes += archive.memory_bytes
                is_last = stop == len(some.positions)
                if is_last or num_bytes > self.archives.max_bytes:
                    yield _Part(_part_of(some, start, stop), archives)
                    archives, num_bytes, start = [], 0, stop

    @staticmethod
    def _opened(positions: IntArray, reading: _Reading) -> Iterator[TrajectoryArchive]:
        archives = reading.window.archives(positions, reading.cost)
        while True:
            started = perf_counter()
            archive = next(archives, None)
            reading.stats.read_seconds += perf_counter() - started
            if archive is None:
                return
            yield archive

    def _decode(self, reads: Sequence[ChunkReads], stats: ReadStats) -> None:
        """Decode chunks of big fields to their rows."""
        stats.compile_seconds += compile_reading()
        started = perf_counter()
        # Files that were mapped just now are hardly in memory.
        is_cold = self._is_cold or self._num_mapped != self.archives.num_mapped
        self._num_mapped = self.archives.num_mapped
        blocks_before = _blocks_read()
        stats.bytes_read += decode_reads(reads, self._workers, is_cold=is_cold)
        # What was not in memory this time will hardly be the next time either.
        self._is_cold = _blocks_read() > blocks_before
        stats.chunks_read += sum(len(one.chunks) for one in reads)
        stats.bytes_decoded += sum(len(one.chunks) * one.row_bytes for one in reads)
        stats.decode_seconds += perf_counter() - started

    def _gather(self, wanted: TableRead) -> None:
        """Copy small fields to their rows."""

        def use(plan: ReadPlan, tables: SmallTables) -> None:
            started = perf_counter()
            gather_rows(plan, tables, wanted.arrays)
            wanted.stats.gather_seconds += perf_counter() - started

        self.small.read(wanted, use)


def _twice(read: Callable[[], None], plan: ReadPlan, window: Window) -> None:
    """Read; once more if something is damaged that may have been flipped on its way.

    Raises:
        FormatError: if it is damaged again, or lies on a local disk.
    """
    try:
        read()
    except FormatError:
        if not window.is_remote:
            raise
        window.forget_fetched(plan.positions)
        read()


def gather_rows(
    plan: ReadPlan, tables: SmallTables, arrays: Mapping[str, AnyArray]
) -> None:
    """Copy the rows of tables to their rows of a batch.

    Args:
        plan: samples of trajectories that all have a table.
        tables: the tables.
        arrays: field name -> array [n, ...] of the batch.
    """
    tables.gather_packed(plan, arrays)
    alone = tables.alone(plan)
    if not isinstance(alone, slice) and not len(alone):
        return  # and no loop is needed, which would have to be compiled
    if have_loops():
        scatter_rows(*tables.copies(plan, alone, arrays))
    else:
        tables.gather_plainly(plan, arrays)


def _part_of(plan: ReadPlan, start: int, stop: int) -> ReadPlan:
    """Return some groups of a plan: mostly all."""
    is_whole = start == 0 and stop == len(plan.positions)
    return plan if is_whole else plan.part(start, stop)


def _chunk_ranges(
    part: _Part, reads: Sequence[ChunkReads]
) -> Iterator[tuple[RemoteObject, IntArray]]:
    """Yield where the chunks are that are not mapped: objects, and ranges of them."""
    if all(archive.remote is None for archive in part.archives):
        return
    by_field = [list(one.by_shard()) for one in reads]
    for number, archive in enumerate(part.archives):
        if archive.remote is None:
            continue
        for one, shards in zip(reads, by_field, strict=True):
            shard, numbers = shards[number]
            chunks = one.chunks[numbers.start : numbers.stop]
            yield archive.remote, shard.ranges[chunks]


def _blocks_read() -> int:
    """Return the blocks that this process has read from a device so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_inblock


def _plan_chunks(
    archives: Sequence[TrajectoryArchive],
    field: BatchField,
    plan: ReadPlan,
    out: AnyArray,
) -> ChunkReads:
    """Tell which chunks of a big field go to which rows of the batch.

    Raises:
        FormatError: if samples of a trajectory are of another size than a row.
    """
    name, row_bytes = field.name, field.spec.row_bytes
    tables = [one.chunk_tables.get(name) or one.chunk_table(name) for one in archives]
    for archive, table in zip(archives, tables, strict=True):
        if table.shard.num_bytes != row_bytes:
            raise FormatError(
                f"{archive.name}: field {name!r} has {table.shard.num_bytes} bytes a "
                f"sample; {row_bytes} are expected"
            )
    first = np.array([table.first for table in tables], np.int64)
    chunks = _skip_extra_rows(archives, tables, plan) + first[plan.group_of]
    shards = [table.shard for table in tables]
    return ChunkReads(shards, plan.counts, chunks, out, plan.rows, row_bytes)


def _skip_extra_rows(
    archives: Sequence[TrajectoryArchive],
    tables: Sequence[ChunkTable],
    plan: ReadPlan,
) -> IntArray:
    """Return where samples are in arrays that may have extra rows on their time axis.

    Args:
        archives: one a group.
        tables: of the field, one a group.
        plan: the samples.

    Returns:
        int64 [n], `row * B + b`.
    """
    if all(
        table.num_rows == archive.header.num_steps
        for archive, table in zip(archives, tables, strict=True)
    ):
        return plan.flat
    parts = np.split(plan.flat, np.cumsum(plan.counts)[:-1])
    found = []
    for archive, table, flat in zip(archives, tables, parts, strict=True):
        header = archive.header
        step, env = np.divmod(flat, header.num_envs)
        kept = step_rows(table.rows, table.num_rows, header.num_steps)
        found.append(kept[step] * header.num_envs + env)
    return np.concatenate(found)
