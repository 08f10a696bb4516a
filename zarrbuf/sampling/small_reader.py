"""Small fields of a batch: tables kept decoded within bounds, decoded where they miss.

Owns the bounds. What a table is and how its rows are gathered is for `small_fields`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import numpy as np

from zarrbuf.archive.spec import AnyArray
from zarrbuf.common.lru import LruCache
from zarrbuf.sampling.index_map import IntArray
from zarrbuf.sampling.reading import Part, Reading
from zarrbuf.sampling.small_fields import SmallTables, decode_small_fields
from zarrbuf.storage.fetching import FetchCost, RemoteObject, fetch
from zarrbuf.trajectory.archived import TrajectoryArchive

MIN_TABLE_BYTES: Final = 16 << 20
"""Tables of small fields that one batch may hold at a time without any cache."""
TABLE_BYTES: Final = 400
"""What keeping a table of small fields takes besides its content."""


class SmallReader:
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

    def ranges(
        self, part: Part, reading: Reading
    ) -> Iterator[tuple[RemoteObject, IntArray]]:
        """Yield what has to be fetched before `read`: objects, and ranges of them."""
        if not reading.small or all(one.remote is None for one in part.archives):
            return
        tables = self._tables_of(reading)
        unknown = tables.unknown(part.plan.positions)
        uuids = reading.trajectories.uuids(part.plan.positions[unknown])
        pairs = zip(unknown.tolist(), self._kept.get_all(uuids), strict=True)
        for number, table in pairs:
            archive = part.archives[number]
            if table is None and archive.remote is not None:
                yield archive.remote, archive.small_ranges

    def fetch(self, part: Part, reading: Reading) -> None:
        """Fetch what `read` needs, where no archives are open for big fields."""
        unknown = self._tables_of(reading).unknown(part.plan.positions)
        uuids = reading.trajectories.uuids(part.plan.positions[unknown])
        kept = self._kept.get_all(uuids)
        missing = [n for n, table in enumerate(kept) if table is None]
        for _ in self._opened(part, unknown[missing], reading):
            pass

    def read(self, part: Part, reading: Reading) -> None:
        """Copy small fields to their rows, with tables of bounded size at a time.

        Raises:
            FormatError: if a chunk is damaged.
        """
        plan, tables = part.plan, self._tables_of(reading)
        unknown = tables.unknown(plan.positions)
        needed = tables.table_bytes(plan.positions[unknown])
        if tables.num_bytes + int(needed.sum()) <= self._table_bytes:
            self._gather(part, tables, reading)
            return
        self._tables = None
        if not part.archives:
            plan = plan.by_position()
        new = functools.partial(new_tables, reading)
        used = np.cumsum(tables.table_bytes(plan.positions))
        start = 0
        while start < len(plan.positions):
            before = int(used[start - 1]) if start else 0
            stop = int(np.searchsorted(used, before + self._table_bytes, side="right"))
            stop = max(start + 1, stop)
            some = Part(plan.part(start, stop), part.archives[start:stop])
            self._gather(some, new(), reading)
            start = stop

    def _tables_of(self, reading: Reading) -> SmallTables:
        """Return the tables of a window, those of the last batch if they still hold.

        They keep what the cache has forgotten from being freed, up to the next batch.
        """
        kept, num_dropped = self._tables, self._kept.num_dropped
        if (
            kept is None
            or kept.window is not reading.trajectories.window
            or kept.num_dropped != num_dropped
            or kept.fields != reading.small
        ):
            kept = new_tables(reading, num_dropped=num_dropped)
            self._tables = kept
        return kept

    def _gather(self, part: Part, tables: SmallTables, reading: Reading) -> None:
        self._decode(part, tables, reading)
        with reading.stats.timing("gather"):
            tables.gather(part.plan, reading.arrays)

    def _decode(self, part: Part, tables: SmallTables, reading: Reading) -> None:
        """Have a table of each trajectory of a plan, opened if need be."""
        plan, stats = part.plan, reading.stats
        stats.samples_cached += plan.num_samples
        unknown = tables.unknown(plan.positions)
        if not len(unknown):
            return
        positions = plan.positions[unknown]
        uuids = reading.trajectories.uuids(positions)
        found = self._kept.get_all(uuids)
        missing = [n for n, table in enumerate(found) if table is None]
        for position, uuid, table in zip(positions.tolist(), uuids, found, strict=True):
            if table is not None:
                tables.put(position, table, name=uuid)
        archives = self._opened(part, unknown[missing], reading)
        for number in missing:
            position, uuid = int(positions[number]), uuids[number]
            with stats.timing("read"):
                archive = next(archives)
            with stats.timing("decode"):
                decoded = decode_small_fields(archive)
            self._kept.put(uuid, decoded, cost=decoded.nbytes + TABLE_BYTES)
            tables.put(position, decoded, name=archive.name)
            stats.small_fields_decoded += 1
            here = plan.positions == position
            stats.samples_cached -= int(plan.counts[here].sum())

    def _opened(
        self, part: Part, numbers: IntArray, reading: Reading
    ) -> Iterator[TrajectoryArchive]:
        """Yield the archives of some groups, with their small fields.

        These were fetched with the chunks, unless a table was thought to be kept that
        was forgotten meanwhile.
        """
        opened: Iterable[TrajectoryArchive]
        if part.archives:
            opened = [part.archives[number] for number in numbers.tolist()]
        else:
            positions = part.plan.positions[numbers]
            opened = reading.trajectories.archives(positions, reading.cost)
        return self._with_small_fields(opened, reading.cost)

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


def new_tables(reading: Reading, *, num_dropped: int = 0) -> SmallTables:
    """Return tables for the small fields of a batch, none of them there yet."""
    window = reading.trajectories.window
    return SmallTables(window, reading.small, num_dropped=num_dropped)
