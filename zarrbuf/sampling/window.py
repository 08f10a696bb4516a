"""What is sampled from: rows of some stores, one after the other, and their fields.

`LiveRows` are the rows that a buffer lists, by position; a `Window` is the newest of
them with all that a draw needs to know, found out once, when it is made. Both never
change: adding, loading and clearing make new ones, which costs the same however many
rows there are. `FieldFinder` alone opens archives, where no list tells their fields.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from zarrbuf.archive.spec import BatchField, Schema, sorted_fields
from zarrbuf.manifest.row_table import Stretch
from zarrbuf.manifest.rows import UNKNOWN_SCHEMA, IntArray, Row, Rows
from zarrbuf.sampling.index_map import IndexMap, Span, window_start
from zarrbuf.sampling.open_archives import OpenArchives
from zarrbuf.storage.fetching import FetchCost
from zarrbuf.stores.contract import TrajectoryStore, known_name
from zarrbuf.trajectory.archived import TrajectoryArchive
from zarrbuf.trajectory.packing import PackedRows
from zarrbuf.trajectory.same_fields import check_fields
from zarrbuf.trajectory.trajectory import Trajectory

_LOG: Final = logging.getLogger("zarrbuf")
_UNKNOWN: Final = int(UNKNOWN_SCHEMA, 16)
_MAX_KNOWN: Final = 256
Part = tuple[TrajectoryStore, Stretch]


@dataclass(frozen=True, eq=False)
class LiveRows:
    """Listed rows of some stores, one after the other: all, or the newest of them.

    Positions count all rows of the parts, those too that were taken off the list.

    Attributes:
        parts: stores with those of their rows that are listed.
        index: the samples of these rows, numbered.
        is_remote: whether any row is on an object store.
    """

    parts: tuple[Part, ...]
    index: IndexMap
    is_remote: bool

    @classmethod
    def of(cls, parts: Sequence[Part]) -> LiveRows:
        """Put the listed rows of `parts` one after the other."""
        index = IndexMap.of_spans([_span(listed) for _, listed in parts])
        is_remote = any(store.is_remote and len(listed) for store, listed in parts)
        return cls(tuple(parts), index, is_remote)

    def newest(self, window_size: int) -> LiveRows:
        """Return the newest `window_size` rows, all for 0."""
        total = len(self)
        wanted = total - window_start(total, window_size)
        kept: list[Part] = []
        for store, listed in reversed(self.parts):
            newest = listed.newest(wanted)
            wanted -= len(newest)
            kept.append((store, newest))
        return LiveRows.of(kept[::-1])

    def __len__(self) -> int:
        """Return the number of rows."""
        return sum(len(listed) for _, listed in self.parts)

    @property
    def total_samples(self) -> int:
        """Samples of all rows."""
        return self.index.total_samples

    @property
    def positions(self) -> IntArray:
        """Positions of the rows that are listed, int64 [len(self)], ascending."""
        pairs = zip(self.index.firsts, self.parts, strict=False)
        found = [
            first + listed.positions - listed.start for first, (_, listed) in pairs
        ]
        return np.concatenate([np.zeros(0, np.int64), *found])

    def _locate(self, position: int) -> tuple[TrajectoryStore, Rows, int]:
        """Return the store of a trajectory, the rows it is in, and where."""
        number, offset = self.index.locate(position)
        store, listed = self.parts[number]
        return store, listed.table.rows, listed.start + offset

    def store(self, position: int) -> TrajectoryStore:
        """Return the store of one trajectory."""
        return self._locate(position)[0]

    def row(self, position: int) -> Row:
        """Return the row of one trajectory."""
        _, rows, number = self._locate(position)
        return rows.row(number)

    def uuids(self, positions: IntArray) -> list[str]:
        """Return the uuids of some trajectories, ascending positions."""
        found: list[str] = []
        for here, first, (_, listed) in self._by_part(positions):
            numbers = here - first + listed.start
            uuids = listed.table.rows.fixed["uuid"][numbers]
            found += [uuid.hex() for uuid in uuids.tolist()]
        return found

    def packed(self, positions: IntArray) -> Iterator[tuple[IntArray, PackedRows]]:
        """Yield where trajectories lie in blocks in memory, ascending positions.

        Those of a store that has some: their positions, and their places.
        """
        for here, first, (store, listed) in self._by_part(positions):
            found = store.packed_rows(here - first + listed.start)
            if found is not None:
                yield here, found

    def archives(
        self, positions: IntArray, opened: OpenArchives, cost: FetchCost
    ) -> Iterator[TrajectoryArchive]:
        """Yield the archives of some trajectories, ascending positions.

        What is on object stores is opened at once; its chunks are not there yet.
        """
        for here, first, (store, listed) in self._by_part(positions):
            if len(here):
                numbers = here - first + listed.start
                yield from opened.several(listed.table.rows, numbers, store, cost)

    def forget_fetched(self, positions: IntArray, opened: OpenArchives) -> None:
        """Drop what is kept of some trajectories that were fetched, and is damaged."""
        for position in positions.tolist():
            store, rows, number = self._locate(position)
            row = rows.row(number)
            opened.discard(row.uuid)
            store.forget_fetched(row)

    def _by_part(self, positions: IntArray) -> Iterator[tuple[IntArray, int, Part]]:
        """Yield the ascending positions in each part, and its first position."""
        firsts = self.index.firsts
        cuts = np.searchsorted(positions, firsts)
        for number, part in enumerate(self.parts):
            here = positions[cuts[number] : cuts[number + 1]]
            yield here, int(firsts[number]), part

    def archive(self, position: int, opened: OpenArchives) -> TrajectoryArchive:
        """Return the archive of one trajectory, with all of its bytes."""
        store, rows, number = self._locate(position)
        return opened.whole(rows, number, store)

    def trajectory(self, position: int, opened: OpenArchives) -> Trajectory:
        """Return one trajectory, every tensor as it was given."""
        store, rows, number = self._locate(position)
        return opened.trajectory(rows, number, store)

    def some_of_each_schema(self) -> list[int]:
        """Return one row per store and schema; every row whose schema is not known."""
        found: list[int] = []
        for first, (_, listed) in zip(self.index.firsts, self.parts, strict=False):
            positions = {*listed.schemas.values()}
            if _UNKNOWN in listed.schemas:
                every = listed.positions
                schemas = listed.table.rows.fixed["schema"][every]
                positions.update(every[schemas == _UNKNOWN].tolist())
            found += [int(first) + n - listed.start for n in sorted(positions)]
        return found


@dataclass(frozen=True, eq=False)
class Window:
    """The trajectories that are drawn from; the same object while they are the same.

    Attributes:
        rows: their rows.
        index: where their samples lie.
        is_remote: whether any is on an object store.
        fields: the fields that every one of them has, by name.
        opened: where their archives are kept open.
    """

    rows: LiveRows
    index: IndexMap
    is_remote: bool
    fields: tuple[BatchField, ...]
    opened: OpenArchives

    @classmethod
    def of(
        cls, rows: LiveRows, fields: tuple[BatchField, ...], opened: OpenArchives
    ) -> Window:
        """Make the window of some rows."""
        return cls(rows, rows.index, rows.is_remote, fields, opened)

    def newest(self, count: int) -> IntArray:
        """Return positions of the newest trajectories, ascending, at most `count`."""
        positions = self.rows.positions
        return positions[len(positions) - min(count, len(positions)) :]

    def uuids(self, positions: IntArray) -> list[str]:
        """Return the uuids of some trajectories, ascending positions."""
        return self.rows.uuids(positions)

    def packed(self, positions: IntArray) -> Iterator[tuple[IntArray, PackedRows]]:
        """Yield places in blocks of some trajectories, see `LiveRows.packed`."""
        return self.rows.packed(positions)

    def archives(
        self, positions: IntArray, cost: FetchCost
    ) -> Iterator[TrajectoryArchive]:
        """Yield the archives of some trajectories, see `LiveRows.archives`."""
        return self.rows.archives(positions, self.opened, cost)

    def forget_fetched(self, positions: IntArray) -> None:
        """See `LiveRows.forget_fetched`."""
        self.rows.forget_fetched(positions, self.opened)


class FieldFinder:
    """Finds the fields that all trajectories of a window have.

    Windows of one buffer mostly have the same schemas: what was found is remembered.
    Safe between threads: two may find out the same.
    """

    def __init__(self, opened: OpenArchives) -> None:
        """Open with `opened` what no list tells the fields of."""
        self._opened = opened
        self._known: dict[frozenset[int], tuple[BatchField, ...]] = {}

    def clear(self) -> None:
        """Forget what was found."""
        self._known.clear()

    def fields_of(self, rows: LiveRows) -> tuple[BatchField, ...]:
        """Return the fields that every one of some trajectories has, by name.

        Raises:
            InvalidInputError: if two trajectories have a field of one name, but of
                different dtype or shape.
            FormatError: if an archive that had to be opened is damaged.
            NotFoundError: if one is not there.
        """
        key = frozenset(s for _, listed in rows.parts for s in listed.schemas)
        if _UNKNOWN in key:  # says nothing about the fields
            return self._common_fields(rows)
        fields = self._known.get(key)
        if fields is None:
            fields = self._common_fields(rows)
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[key] = fields
        return fields

    def _common_fields(self, rows: LiveRows) -> tuple[BatchField, ...]:
        known: dict[str, BatchField] = {}
        common: set[str] | None = None
        for position in rows.some_of_each_schema():
            row = rows.row(position)
            schema = rows.store(position).known_schema(row)
            if schema is None:
                schema = rows.archive(position, self._opened).header.schema
            fields = sorted_fields(schema)
            check_fields(fields, known, name=known_name(row))
            known.update({field.name: field for field in fields})
            names = {field.name for field in fields}
            common = names if common is None else common & names
        _warn_left_out(frozenset(set(known) - (common or set())))
        return tuple(known[name] for name in sorted(common or ()))


def _span(listed: Stretch) -> Span:
    """Return the samples of listed rows, in the memory of their table."""
    part, table = slice(listed.start, listed.stop), listed.table
    return Span(
        table.ends[part],
        table.samples_before(listed.start),
        table.rows.column("T")[part],
        table.rows.column("B")[part],
    )


def known_fields(parts: Sequence[Part]) -> dict[str, BatchField]:
    """Return every batch field that the trajectories of some stores have.

    Of rows whose file was not opened yet, the newest stands for all.
    """
    known: dict[str, BatchField] = {}
    for store, listed in parts:
        for position in sorted(listed.schemas.values()):
            schema: Schema = store.schema(listed.table.rows.row(position))
            known.update({field.name: field for field in sorted_fields(schema)})
    return known


@functools.lru_cache(maxsize=256)
def _warn_left_out(names: frozenset[str]) -> None:
    """Say once which fields batches do not have because a trajectory lacks them."""
    if names:
        _LOG.warning(
            "batches leave out %s: not every trajectory of the window has it",
            ", ".join(sorted(names)),
        )
