"""Run a read plan: opened archives, decoded small fields, one batch.

Owns the bounds of what is kept open and decoded. Fills a batch chunk by chunk and
reads nothing else of an archive. Knows no commit; archives come from a home.
"""

from __future__ import annotations

import functools
import resource
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol

import numpy as np

from zarrbuf.big_fields import plan_chunks
from zarrbuf.cache import LruCache
from zarrbuf.compiled import compile_reading
from zarrbuf.errors import FormatError
from zarrbuf.format import AnyArray, BatchField
from zarrbuf.mapping import are_in_memory
from zarrbuf.parallel import decode_reads
from zarrbuf.rows import Row, Rows
from zarrbuf.sampling import IntArray, ReadPlan, Window
from zarrbuf.small_fields import SmallTables, decode_small_fields
from zarrbuf.stats import ReadStats, StatsKeeper
from zarrbuf.trajectory_archive import TrajectoryArchive
from zarrbuf.workers import Workers

MAX_OPEN_ARCHIVES: Final = 16_384
"""Mapped files kept; Linux allows a process 65,530 mappings."""
MIN_TABLE_BYTES: Final = 16 << 20
"""Tables of small fields that one batch may hold at a time without any cache."""
TABLE_BYTES: Final = 400
"""What keeping a table of small fields takes besides its content."""
PROBES: Final = 16
"""Chunks of a batch whose pages are looked for in memory before it is read."""
MAX_GROUPS: Final = 4096
"""Trajectories that are open at once for one batch."""


class Trajectories(Protocol):
    """The trajectories of a window, by position.

    Attributes:
        window: the same object as long as positions mean the same trajectories.
    """

    @property
    def window(self) -> Window:
        """See above."""
        ...

    def uuids(self, positions: IntArray) -> list[str]:
        """Return the uuids of some, ascending positions."""
        ...

    def archive(self, position: int) -> TrajectoryArchive:
        """Open one, or return it if it is open."""
        ...


Run = tuple[ReadPlan, Sequence[TrajectoryArchive]]
"""Some groups of a plan and their archives, or none where nothing has to be opened."""


class Home(Protocol):
    """Where the archives of some trajectories are."""

    def keeps(self, uuid: str) -> bool:
        """Whether the bytes of an archive are in memory anyway, for the time being."""
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
        self._tables: SmallTables | None = None
        self.stats = StatsKeeper()
        self._workers = workers
        self._archive_bytes = archive_bytes
        self._table_bytes = max(cache_bytes, MIN_TABLE_BYTES)
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
        self._tables = None

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
            FormatError: if it is damaged, or another one than the row says.
        """
        uuid = rows.uuid(position)
        archive = self._archives.get(uuid)
        if archive is None:
            archive = self._open(rows.row(position), home)
        header, fixed = archive.header, rows.fixed
        shape = int(fixed["T"][position]), int(fixed["B"][position])
        if (header.num_steps, header.num_envs) != shape:
            raise FormatError(
                f"{archive.name}: holds T={header.num_steps}, B={header.num_envs}; the "
                f"list says T={shape[0]}, B={shape[1]}"
            )
        return archive

    def _open(self, row: Row, home: Home) -> TrajectoryArchive:
        archive = home.open_archive(row)
        is_kept = archive.is_in_memory and home.keeps(row.uuid)
        is_held = archive.is_in_memory and not is_kept
        cost = archive.open_bytes + (len(archive.source) if is_held else 0)
        self._archives.put(row.uuid, archive, cost=cost)
        if is_kept and not home.keeps(row.uuid):
            # Forgotten meanwhile: nothing else would drop it from here.
            self._archives.discard(row.uuid)
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
        with stats.timing("compile"):
            compile_reading()
        big = [field for field in fields if field.spec.is_big]
        small = [field for field in fields if not field.spec.is_big]
        num_opened = self._num_opened
        runs = self._opened(plan, trajectories, stats) if big else _unopened(plan)
        for part, archives in runs:
            if big:
                self._read_big(part, archives, big, batch, stats)
            if small:
                self._read_small(part, archives, small, batch, trajectories, stats)
        stats.archives_opened = self._num_opened - num_opened
        return stats

    def _opened(
        self, plan: ReadPlan, trajectories: Trajectories, stats: ReadStats
    ) -> Iterator[Run]:
        """Yield the groups of a plan in parts whose archives fit into memory.

        Archives made from `pt` and `pkl` files are in memory whole: a batch may need
        more of them than there is room for.
        """
        archives: list[TrajectoryArchive] = []
        num_bytes = start = 0
        for stop, position in enumerate(plan.positions.tolist(), 1):
            with stats.timing("read"):
                archive = trajectories.archive(position)
            archives.append(archive)
            num_bytes += len(archive.source) if archive.is_in_memory else 0
            is_last = stop == len(plan.positions)
            if (
                is_last
                or num_bytes > self._archive_bytes
                or len(archives) == MAX_GROUPS
            ):
                yield plan.part(start, stop), archives
                archives, num_bytes, start = [], 0, stop

    def _read_big(
        self,
        plan: ReadPlan,
        archives: Sequence[TrajectoryArchive],
        fields: Sequence[BatchField],
        batch: Mapping[str, AnyArray],
        stats: ReadStats,
    ) -> None:
        """Decode the big fields of some trajectories to their rows."""
        with stats.timing("plan"):
            reads = [
                plan_chunks(archives, field, plan, batch[field.name])
                for field in fields
            ]
        blocks_before = _blocks_read()
        with stats.timing("read"):
            is_cold = self._is_cold or not are_in_memory(
                reads[0].some_addresses(PROBES)
            )
        with stats.timing("decode"):
            stats.bytes_read += decode_reads(reads, self._workers, is_cold=is_cold)
        # What was not in memory this time will hardly be the next time either.
        self._is_cold = _blocks_read() > blocks_before
        stats.chunks_read += sum(len(one.chunks) for one in reads)
        stats.bytes_decoded += sum(len(one.chunks) * one.row_bytes for one in reads)

    def _read_small(
        self,
        plan: ReadPlan,
        archives: Sequence[TrajectoryArchive],
        fields: Sequence[BatchField],
        batch: Mapping[str, AnyArray],
        trajectories: Trajectories,
        stats: ReadStats,
    ) -> None:
        """Copy small fields to their rows, with tables of bounded size at a time."""
        tables = self._tables_of(trajectories.window, fields)
        unknown = tables.unknown(plan.positions)
        needed = tables.table_bytes(plan.positions[unknown])
        if tables.num_bytes + int(needed.sum()) <= self._table_bytes:
            self._gather_small(plan, archives, tables, batch, trajectories, stats)
            return
        self._tables = None
        if not archives:
            plan = plan.by_position()
        new = functools.partial(SmallTables, trajectories.window, fields, num_dropped=0)
        used = np.cumsum(tables.table_bytes(plan.positions))
        start = 0
        while start < len(plan.positions):
            before = int(used[start - 1]) if start else 0
            stop = int(np.searchsorted(used, before + self._table_bytes, side="right"))
            stop = max(start + 1, stop)
            part, opened = plan.part(start, stop), archives[start:stop]
            self._gather_small(part, opened, new(), batch, trajectories, stats)
            start = stop

    def _gather_small(
        self,
        plan: ReadPlan,
        archives: Sequence[TrajectoryArchive],
        tables: SmallTables,
        batch: Mapping[str, AnyArray],
        trajectories: Trajectories,
        stats: ReadStats,
    ) -> None:
        self._decode_small(plan, archives, tables, trajectories, stats)
        with stats.timing("gather"):
            tables.gather(plan, batch)

    def _tables_of(self, window: Window, fields: Sequence[BatchField]) -> SmallTables:
        """Return the tables of a window, those of the last batch if they still hold.

        They keep what the cache has forgotten from being freed, up to the next batch.
        """
        kept, num_dropped = self._tables, self._small.num_dropped
        if (
            kept is None
            or kept.window is not window
            or kept.num_dropped != num_dropped
            or kept.fields != fields
        ):
            kept = SmallTables(window, fields, num_dropped=num_dropped)
            self._tables = kept
        return kept

    def _decode_small(
        self,
        plan: ReadPlan,
        archives: Sequence[TrajectoryArchive],
        tables: SmallTables,
        trajectories: Trajectories,
        stats: ReadStats,
    ) -> None:
        """Have a table of each trajectory of a plan, opened if need be."""
        unknown = tables.unknown(plan.positions)
        uuids = trajectories.uuids(plan.positions[unknown])
        found = self._small.get_all(uuids)
        stats.samples_cached += plan.num_samples
        for number, uuid, table in zip(unknown.tolist(), uuids, found, strict=True):
            position = int(plan.positions[number])
            if table is not None:
                tables.put(position, table, name=uuid)
                continue
            with stats.timing("read"):
                archive = (
                    archives[number] if archives else trajectories.archive(position)
                )
            with stats.timing("decode"):
                decoded = decode_small_fields(archive)
            self._small.put(uuid, decoded, cost=decoded.nbytes + TABLE_BYTES)
            tables.put(position, decoded, name=archive.name)
            stats.small_fields_decoded += 1
            here = plan.positions == position
            stats.samples_cached -= int(plan.counts[here].sum())


def _unopened(plan: ReadPlan) -> Iterator[Run]:
    """Yield the groups of a plan in parts, no archive opened."""
    for start in range(0, len(plan.positions), MAX_GROUPS):
        stop = min(start + MAX_GROUPS, len(plan.positions))
        yield plan.part(start, stop), ()


def _blocks_read() -> int:
    """Return the blocks that this process has read from a device so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_inblock
