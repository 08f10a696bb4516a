"""Run a read plan: opened archives, chunks fetched and decoded, one batch.

Each sample of a big field is a chunk of its own, and goes to its row of the batch by
itself; nothing else of an archive is read. Small fields are rows of tables, see
`field_tables`. Knows no commit.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from zarrbuf.archive.chunks import ChunkReads
from zarrbuf.archive.decode import compile_reading, decode_reads
from zarrbuf.archive.spec import AnyArray, BatchField, step_rows
from zarrbuf.common.thread_pool import Workers
from zarrbuf.errors import FormatError
from zarrbuf.sampling.field_tables import TableRead, TableReader
from zarrbuf.sampling.index_map import IntArray, ReadPlan
from zarrbuf.sampling.open_archives import MAX_GROUPS, OpenArchives
from zarrbuf.sampling.stats import ReadStats, StatsKeeper
from zarrbuf.sampling.window import Window
from zarrbuf.storage.fetching import FetchCost, RemoteObject, fetch
from zarrbuf.storage.mmap import are_in_memory
from zarrbuf.trajectory.archived import TrajectoryArchive

PROBES: Final = 16
"""Chunks of a batch whose pages are looked for in memory before it is read."""


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
    ) -> ReadStats:
        """Read the samples of a plan.

        Args:
            plan: which samples.
            arrays: field name -> C-contiguous array [n, ...] of the stored dtype.
            fields: which fields, some of the window's.
            window: the trajectories.

        Returns:
            What it has cost.

        Raises:
            FormatError: if a chunk that is drawn is damaged; rows of the batch may
                have been written.
            NotFoundError: if an archive is not there.
            StorageError: if the storage failed.
        """
        stats = ReadStats(batches=1, samples=plan.num_samples)
        reading = _Reading.of(arrays, fields, window, stats)
        with stats.timing("compile"):
            compile_reading()
        num_opened = self.archives.num_opened
        for part in self._parts(plan, reading):
            self._read_part(part, reading)
        cost = reading.cost
        stats.requests, stats.bytes_fetched = cost.requests, cost.num_bytes
        stats.archives_opened = self.archives.num_opened - num_opened
        return stats

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
        for part in self._parts(plan, reading):
            if not reading.big:
                self.small.fetch(part.tables(reading))
                continue
            self._fetch(part, self._plan(part, reading), reading)
            self.archives.weigh(part.archives)

    @staticmethod
    def _plan(part: _Part, reading: _Reading) -> list[ChunkReads]:
        return [
            _plan_chunks(part.archives, field, part.plan, reading.arrays[field.name])
            for field in reading.big
        ]

    def _fetch(
        self, part: _Part, reads: Sequence[ChunkReads], reading: _Reading
    ) -> None:
        wanted = [*_chunk_ranges(part, reads), *self.small.ranges(part.tables(reading))]
        fetch(wanted, reading.cost)

    def _read_part(self, part: _Part, reading: _Reading) -> None:
        with reading.stats.timing("plan"):
            reads = self._plan(part, reading)
        with reading.stats.timing("fetch"):
            self._fetch(part, reads, reading)
        if reads:
            self._decode(reads, reading.stats)
        if reading.small:
            self.small.read(part.tables(reading))
        self.archives.weigh(part.archives)

    def _parts(self, plan: ReadPlan, reading: _Reading) -> Iterator[_Part]:
        """Yield the groups of a plan in parts whose archives fit into memory.

        Archives made from `pt` and `pkl` files are in memory whole: a batch may need
        more of them than there is room for.
        """
        for first in range(0, len(plan.positions), MAX_GROUPS):
            some = plan.part(first, min(first + MAX_GROUPS, len(plan.positions)))
            if not reading.big:
                yield _Part(some, ())
                continue
            archives: list[TrajectoryArchive] = []
            num_bytes = start = 0
            for stop, archive in enumerate(self._opened(some.positions, reading), 1):
                archives.append(archive)
                num_bytes += len(archive.source) if archive.is_in_memory else 0
                is_last = stop == len(some.positions)
                if is_last or num_bytes > self.archives.max_bytes:
                    yield _Part(some.part(start, stop), archives)
                    archives, num_bytes, start = [], 0, stop

    @staticmethod
    def _opened(positions: IntArray, reading: _Reading) -> Iterator[TrajectoryArchive]:
        archives = reading.window.archives(positions, reading.cost)
        for _ in range(len(positions)):
            with reading.stats.timing("read"):
                archive = next(archives)
            yield archive

    def _decode(self, reads: Sequence[ChunkReads], stats: ReadStats) -> None:
        """Decode chunks of big fields to their rows."""
        # Files that were mapped just now are hardly in memory.
        is_cold = self._is_cold or self._num_mapped != self.archives.num_mapped
        self._num_mapped = self.archives.num_mapped
        blocks_before = _blocks_read()
        with stats.timing("read"):
            is_cold = is_cold or not are_in_memory(reads[0].some_addresses(PROBES))
        with stats.timing("decode"):
            stats.bytes_read += decode_reads(reads, self._workers, is_cold=is_cold)
        # What was not in memory this time will hardly be the next time either.
        self._is_cold = _blocks_read() > blocks_before
        stats.chunks_read += sum(len(one.chunks) for one in reads)
        stats.bytes_decoded += sum(len(one.chunks) * one.row_bytes for one in reads)


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
    # The same field may be an array of its own here and a stage of one there.
    own = [archive.batch_field(field.name) for archive in archives]
    shards = [a.shard(one.field) for a, one in zip(archives, own, strict=True)]
    chunks = _chunk_numbers(archives, own, plan)
    reads = ChunkReads(shards, plan.counts, chunks, out, plan.rows)
    row_bytes = reads.row_bytes
    for archive, shard in zip(archives, shards, strict=True):
        if shard.num_bytes != row_bytes:
            raise FormatError(
                f"{archive.name}: field {field.name!r} has {shard.num_bytes} bytes a "
                f"sample; {row_bytes} are expected"
            )
    return reads


def _chunk_numbers(
    archives: Sequence[TrajectoryArchive],
    fields: Sequence[BatchField],
    plan: ReadPlan,
) -> IntArray:
    """Return the chunk of each sample of a big field.

    Args:
        archives: one a group.
        fields: the field as each of them keeps it.
        plan: the samples.
    """
    pairs = list(zip(archives, fields, strict=True))
    num_rows = [archive.num_rows(field.field) for archive, field in pairs]
    num_envs = [archive.header.num_envs for archive in archives]
    chunks = plan.flat
    if num_rows != [archive.header.num_steps for archive in archives]:
        parts = np.split(plan.flat, np.cumsum(plan.counts)[:-1])
        chunks = np.concatenate(
            [
                _skip_extra_rows(archive, field, part)
                for (archive, field), part in zip(pairs, parts, strict=True)
            ]
        )
    stages = np.array([field.stage or 0 for field in fields])
    first = stages * np.array(num_rows) * np.array(num_envs)
    numbers: IntArray = chunks + plan.for_samples(first)
    return numbers


def _skip_extra_rows(
    archive: TrajectoryArchive, field: BatchField, flat: IntArray
) -> IntArray:
    """Return where samples are in an array with extra rows on its time axis."""
    header = archive.header
    num_rows = archive.num_rows(field.field)
    step, env = np.divmod(flat, header.num_envs)
    kept = step_rows(field.spec.rows, num_rows, header.num_steps)
    found: IntArray = kept[step] * header.num_envs + env
    return found
