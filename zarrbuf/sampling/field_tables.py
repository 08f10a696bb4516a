"""Small fields of a batch: whole trajectories decoded into tables, rows gathered.

The small fields of one sample are one row of a table, so that a sample costs one copy
however many fields there are. Tables are kept decoded within bounds, and decoded where
they miss.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from zarrbuf.archive.chunks import address_of
from zarrbuf.archive.decode import compile_reading
from zarrbuf.archive.spec import AnyArray, BatchField, sorted_fields, step_rows
from zarrbuf.common.lru import LruCache
from zarrbuf.errors import FormatError
from zarrbuf.sampling.index_map import IndexMap, IntArray, ReadPlan
from zarrbuf.sampling.stats import ReadStats
from zarrbuf.sampling.window import Window
from zarrbuf.storage.fetching import FetchCost, RemoteObject, fetch
from zarrbuf.trajectory.archived import TrajectoryArchive
from zarrbuf.trajectory.packing import Block, PackedRows, packed_dtype

MIN_TABLE_BYTES: Final = 16 << 20
"""Tables of small fields that one batch may hold at a time without any cache."""
_ROWS_AT_ONCE: Final = 4096
TABLE_BYTES: Final = 400
"""What keeping a table of small fields takes besides its content."""


@dataclass(frozen=True)
class TableRead:
    """The small fields of some samples of a batch that is read.

    Attributes:
        plan: which samples.
        archives: those of its groups, where they are open for big fields, or none.
        window: the trajectories.
        fields: which fields, small ones.
        arrays: field name -> array [n, ...] of the batch.
        stats: what it costs.
        cost: what fetching costs.
    """

    plan: ReadPlan
    archives: Sequence[TrajectoryArchive]
    window: Window
    fields: Sequence[BatchField]
    arrays: Mapping[str, AnyArray]
    stats: ReadStats
    cost: FetchCost


class SmallTables:
    """Decoded small fields of the trajectories of one window, by position.

    Attributes:
        index: whose positions these are.
        fields: the columns of every table.
        num_dropped: what the cache that the tables come from had forgotten by then.
        num_bytes: of the tables, less those that lie in blocks.
    """

    def __init__(
        self,
        index: IndexMap,
        fields: Sequence[BatchField],
        *,
        num_dropped: int,
    ) -> None:
        """Start without any."""
        self.index = index
        self.fields = list(fields)
        self.num_dropped = num_dropped
        self._dtype = packed_dtype(fields)
        self.num_bytes = 0
        self._tables: dict[int, AnyArray] = {}
        # Memory that the system hands out as zeros costs nothing until it is used.
        self._addresses = np.zeros(index.num_trajectories, np.int64)
        self._sizes = np.zeros(index.num_trajectories, np.int64)
        self._in_block = np.zeros(index.num_trajectories, np.int64)  # 0: in none
        self._starts = np.zeros(index.num_trajectories, np.int64)
        self._blocks: dict[int, Block] = {}
        self._numbers: dict[Block, int] = {}
        self._next_number = itertools.count(1)

    def unknown(self, positions: IntArray) -> IntArray:
        """Return which of some trajectories have no table yet.

        Args:
            positions: int64 [n], repeats allowed.

        Returns:
            int64 [m], indices in `positions`, by position, none twice.
        """
        is_known = (self._addresses[positions] != 0) | (self._in_block[positions] != 0)
        unknown = np.flatnonzero(~is_known)
        if not len(unknown):
            return unknown
        return unknown[np.unique(positions[unknown], return_index=True)[1]]

    def table_bytes(self, positions: IntArray) -> IntArray:
        """Return what the tables of some trajectories take, int64 [n]."""
        return self.index.num_samples_of(positions) * self._dtype.itemsize

    def put(self, position: int, table: AnyArray, *, name: str) -> None:
        """Keep the table of a trajectory; it may have more columns.

        Raises:
            FormatError: if it has other than T * B rows, `name` says whose.
        """
        (expected,) = self.index.num_samples_of(np.array([position]))
        if len(table) != expected:
            raise FormatError(
                f"{name}: holds {len(table)} samples; the list says {expected}"
            )
        if table.dtype is not self._dtype:
            wanted = np.empty(len(table), self._dtype)
            for field in self.fields:
                wanted[field.name] = table[field.name]
            table = wanted
        # Of two threads that bring one, the first wins: the address must be that of
        # the table that is kept.
        table = self._tables.setdefault(position, table)
        self.num_bytes += table.nbytes
        self._sizes[position] = len(table)
        self._addresses[position] = address_of(table)  # last: it tells that it is there

    def adopt(self, positions: IntArray, packed: PackedRows) -> None:
        """Take the rows of trajectories in blocks for their tables, without a copy.

        Args:
            positions: int64 [n], ascending, none twice.
            packed: where these lie; others than those in a block are left out.
        """
        is_packed = packed.which >= 0
        positions = positions[is_packed]
        numbers = np.array([self._number(one) for one in packed.blocks], np.int64)
        self._sizes[positions] = self.index.num_samples_of(positions)
        self._starts[positions] = packed.starts[is_packed]
        self._in_block[positions] = numbers[packed.which[is_packed]]  # last

    def _number(self, block: Block) -> int:
        """Return the number of a block, from 1 on; it is kept from being freed."""
        found = self._numbers.get(block)
        if found is None:
            found = next(self._next_number)  # which no other thread gets
            self._blocks[found] = block
            self._numbers[block] = found
        return found

    def alone(self, plan: ReadPlan) -> slice | IntArray:
        """Return which samples of a plan lie in tables that are no part of a block."""
        in_block = self._in_block[plan.positions][plan.group_of]
        return np.flatnonzero(in_block == 0) if in_block.any() else slice(None)

    def copies(
        self, plan: ReadPlan, some: slice | IntArray, batch: Mapping[str, AnyArray]
    ) -> tuple[npt.NDArray[np.uint64], int, list[int], list[AnyArray], IntArray]:
        """Return which rows of tables go to which rows of the batch.

        Args:
            plan: samples of trajectories that all have a table.
            some: those of them that lie in no block.
            batch: field name -> array [n, ...], of `fields` at least.

        Returns:
            The arguments of `decode.scatter_rows`. The memory is that of the tables.
        """
        self._check_inside(plan)
        columns = self._dtype.fields
        assert columns is not None
        offsets = [columns[field.name][1] for field in self.fields]
        outs = [batch[field.name] for field in self.fields]
        num_bytes = self._dtype.itemsize
        first = self._addresses[plan.positions][plan.group_of][some]
        sources = (first + plan.flat[some] * num_bytes).astype(np.uint64)
        return sources, num_bytes, offsets, outs, plan.rows[some]

    def _check_inside(self, plan: ReadPlan) -> None:
        sizes = self._sizes[plan.positions][plan.group_of]
        if not ((plan.flat >= 0) & (plan.flat < sizes)).all():  # as `chunks.require`
            raise AssertionError("an address would lie outside its memory")

    def gather_packed(self, plan: ReadPlan, batch: Mapping[str, AnyArray]) -> None:
        """Copy rows that lie in blocks to their rows of the batch.

        Args:
            plan: samples of trajectories that all have a table.
            batch: field name -> array [n, ...], of `fields` at least.
        """
        in_block = self._in_block[plan.positions][plan.group_of]
        packed = np.flatnonzero(in_block)
        if not len(packed):
            return
        self._check_inside(plan)
        starts = self._starts[plan.positions][plan.group_of]
        for first in range(0, len(packed), _ROWS_AT_ONCE):
            some = packed[first : first + _ROWS_AT_ONCE]
            rows = starts[some] + plan.flat[some]
            self._gather_some(in_block[some], rows, plan.rows[some], batch)

    def gather_plainly(self, plan: ReadPlan, batch: Mapping[str, AnyArray]) -> None:
        """Copy rows of tables that are no part of a block, field by field."""
        for group in plan.groups:
            table = self._tables.get(group.position)
            if table is not None:
                for field in self.fields:
                    batch[field.name][group.out] = table[field.name][group.flat]

    def _gather_some(
        self,
        in_block: IntArray,
        rows: IntArray,
        outs: IntArray,
        batch: Mapping[str, AnyArray],
    ) -> None:
        """Copy rows of blocks: as they are first, then field by field.

        Args:
            in_block: int64 [k], the block of each row.
            rows: int64 [k], where there.
            outs: int64 [k], rows of the batch.
            batch: see `gather_packed`.
        """
        order = np.argsort(in_block, kind="stable")
        cuts = np.flatnonzero(np.diff(in_block[order])) + 1
        by_dtype: dict[np.dtype[Any], list[tuple[AnyArray, IntArray]]] = {}
        for here in np.split(order, cuts):
            table = self._blocks[int(in_block[here[0]])].table
            by_dtype.setdefault(table.dtype, []).append((table, here))
        for dtype, parts in by_dtype.items():
            packed = np.empty(sum(len(here) for _, here in parts), dtype)
            plain, start = _as_bytes(packed), 0
            for table, here in parts:
                stop = start + len(here)
                plain[start:stop] = _as_bytes(table)[rows[here]]
                start = stop
            targets = outs[np.concatenate([here for _, here in parts])]
            for field in self.fields:
                batch[field.name][targets] = packed[field.name]


def _as_bytes(table: AnyArray) -> AnyArray:
    """Return rows as plain bytes, since NumPy copies structs field by field."""
    return table.view(f"V{table.itemsize}") if table.itemsize else table


def decode_small_fields(archive: TrajectoryArchive) -> npt.NDArray[np.void]:
    """Decode all small fields of a trajectory into one table.

    Returns:
        Structured array [T * B], one column a batch field, extra rows trimmed.

    Raises:
        FormatError: if a chunk is damaged.
    """
    header = archive.header
    fields = [f for f in sorted_fields(header.schema) if not f.spec.is_big]
    table = np.empty(header.num_steps * header.num_envs, packed_dtype(fields))
    arrays = {name: archive.read_array(name) for name in {f.field for f in fields}}
    for field in fields:
        array = arrays[field.field]
        if field.stage is not None:
            array = array[field.stage]
        kept = step_rows(field.spec.rows, len(array), header.num_steps)
        table[field.name] = array[kept].reshape(table.shape + field.spec.shape)
    return table


class TableReader:
    """Reads the small fields of batches. Safe between threads."""

    def __init__(
        self,
        *,
        cache_bytes: int,
        weigh: Callable[[Sequence[TrajectoryArchive]], None],
    ) -> None:
        """Keep at most `cache_bytes` of tables decoded.

        Args:
            cache_bytes: see above.
            weigh: told of archives of which something was fetched.
        """
        self._weigh = weigh
        self._kept: LruCache[str, AnyArray] = LruCache(
            max_cost=cache_bytes, max_items=1 << 20
        )
        self._tables: SmallTables | None = None
        self._table_bytes = max(cache_bytes, MIN_TABLE_BYTES)

    @property
    def num_cached(self) -> int:
        """Trajectories whose small fields are kept decoded."""
        return len(self._kept)

    @property
    def cached_bytes(self) -> int:
        """Bytes of decoded small fields."""
        return self._kept.cost

    def make_lock(self) -> None:
        """Start with a lock that nobody holds."""
        self._kept.make_lock()

    def clear(self) -> None:
        """Forget everything that is kept."""
        self._kept.clear()
        self._tables = None

    def ranges(self, wanted: TableRead) -> Iterator[tuple[RemoteObject, IntArray]]:
        """Yield what has to be fetched before `read`: objects, and ranges of them."""
        if not wanted.fields or all(one.remote is None for one in wanted.archives):
            return
        tables = self._tables_of(wanted)
        unknown = tables.unknown(wanted.plan.positions)
        uuids = wanted.window.uuids(wanted.plan.positions[unknown])
        pairs = zip(unknown.tolist(), self._kept.get_all(uuids), strict=True)
        for number, table in pairs:
            archive = wanted.archives[number]
            if table is None and archive.remote is not None:
                yield archive.remote, archive.small_ranges

    def fetch(self, wanted: TableRead) -> None:
        """Fetch what `read` needs, where no archives are open for big fields."""
        unknown = self._tables_of(wanted).unknown(wanted.plan.positions)
        uuids = wanted.window.uuids(wanted.plan.positions[unknown])
        kept = self._kept.get_all(uuids)
        missing = [n for n, table in enumerate(kept) if table is None]
        for _ in self._opened(wanted, unknown[missing]):
            pass

    def read(
        self, wanted: TableRead, use: Callable[[ReadPlan, SmallTables], None]
    ) -> None:
        """Have samples used with the tables that hold them, of bounded size at a time.

        Args:
            wanted: what is read.
            use: called with samples and tables that have all of them; tables are let go
                of before the next ones are decoded.

        Raises:
            FormatError: if a chunk is damaged.
        """
        plan, tables = wanted.plan, self._tables_of(wanted)
        unknown = _adopt(tables, wanted)
        if not len(unknown) or self._have_room(tables, plan.positions[unknown]):
            self._decode(wanted, tables, unknown)
            use(plan, tables)
            return
        self._tables = None
        if not wanted.archives:
            plan = plan.by_position()
        used = np.cumsum(tables.table_bytes(plan.positions))
        start = 0
        while start < len(plan.positions):
            before = int(used[start - 1]) if start else 0
            stop = int(np.searchsorted(used, before + self._table_bytes, side="right"))
            stop = max(start + 1, stop)
            part = plan.part(start, stop)
            archives = wanted.archives[start:stop]
            some = dataclasses.replace(wanted, plan=part, archives=archives)
            tables = _new_tables(wanted)  # and the ones before are gone
            self._decode(some, tables, _adopt(tables, some))
            use(part, tables)
            start = stop

    def _have_room(self, tables: SmallTables, positions: IntArray) -> bool:
        """Whether tables may be kept at once with those of some trajectories more."""
        needed = int(tables.table_bytes(positions).sum())
        return tables.num_bytes + needed <= self._table_bytes

    def _tables_of(self, wanted: TableRead) -> SmallTables:
        """Return the tables of a window, those of the last batch if they still hold.

        They keep what the cache has forgotten from being freed, up to the next batch.
        """
        kept, num_dropped = self._tables, self._kept.num_dropped
        if (
            kept is None
            or kept.index is not wanted.window.index
            or kept.num_dropped != num_dropped
            or kept.fields != list(wanted.fields)
        ):
            kept = _new_tables(wanted, num_dropped=num_dropped)
            self._tables = kept
        return kept

    def _decode(
        self, wanted: TableRead, tables: SmallTables, unknown: IntArray
    ) -> None:
        """Have a table of each trajectory of a plan, opened if need be.

        Args:
            wanted: what is read.
            tables: get those that they lack.
            unknown: which groups these are of.
        """
        plan, stats = wanted.plan, wanted.stats
        stats.samples_cached += len(plan.rows)
        if not len(unknown):
            return
        positions = plan.positions[unknown]
        uuids = wanted.window.uuids(positions)
        found = self._kept.get_all(uuids)
        missing = [n for n, table in enumerate(found) if table is None]
        for position, uuid, table in zip(positions.tolist(), uuids, found, strict=True):
            if table is not None:
                tables.put(position, table, name=uuid)
        if missing:
            stats.compile_seconds += compile_reading()
        archives = self._opened(wanted, unknown[missing])
        for number in missing:
            position, uuid = int(positions[number]), uuids[number]
            started = perf_counter()
            archive = next(archives)
            opened = perf_counter()
            decoded = decode_small_fields(archive)
            stats.read_seconds += opened - started
            stats.decode_seconds += perf_counter() - opened
            self._kept.put(uuid, decoded, cost=decoded.nbytes + TABLE_BYTES)
            tables.put(position, decoded, name=archive.name)
            stats.small_fields_decoded += 1
            here = plan.positions == position
            stats.samples_cached -= int(plan.counts[here].sum())

    def _opened(
        self, wanted: TableRead, numbers: IntArray
    ) -> Iterator[TrajectoryArchive]:
        """Yield the archives of some groups, with their small fields.

        These were fetched with the chunks, unless a table was thought to be kept that
        was forgotten meanwhile.
        """
        opened: Iterable[TrajectoryArchive]
        if wanted.archives:
            opened = [wanted.archives[number] for number in numbers.tolist()]
        else:
            positions = wanted.plan.positions[numbers]
            opened = wanted.window.archives(positions, wanted.cost)
        return self._with_small_fields(opened, wanted.cost)

    def _with_small_fields(
        self, archives: Iterable[TrajectoryArchive], cost: FetchCost
    ) -> Iterator[TrajectoryArchive]:
        """Yield archives; of those on object stores, small fields are fetched at once.

        Others come one at a time: they may be in memory whole.
        """
        for is_remote, some in itertools.groupby(
            archives, key=lambda archive: archive.remote is not None
        ):
            if not is_remote:
                yield from some
                continue
            together = list(some)
            fetch([(a.remote, a.small_ranges) for a in together if a.remote], cost)
            self._weigh(together)
            yield from together


def _new_tables(wanted: TableRead, *, num_dropped: int = 0) -> SmallTables:
    """Return tables for the small fields of a batch, none of them there yet."""
    return SmallTables(wanted.window.index, wanted.fields, num_dropped=num_dropped)


def _adopt(tables: SmallTables, wanted: TableRead) -> IntArray:
    """Take what is packed in memory for tables; return the groups without any."""
    positions = wanted.plan.positions
    unknown = tables.unknown(positions)
    if len(unknown):
        for some, packed in wanted.window.packed(positions[unknown]):
            tables.adopt(some, packed)
        unknown = tables.unknown(positions)
    return unknown
