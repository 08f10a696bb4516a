"""The rows of a manifest as they grow: a table, and stretches of it.

Pure. A table never changes for who holds it. Appending makes another one that shares
its memory, so that it costs what is new. Knows no commit and no storage.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from zarrbuf.archive.spec import AnyArray
from zarrbuf.manifest.columns import GrowingArray, GrowingText
from zarrbuf.manifest.rows import FIXED_DTYPE, TEXT_COLUMNS, IntArray, Rows

_DTYPES: Final[Mapping[str, npt.DTypeLike]] = {
    "fixed": FIXED_DTYPE,
    "live": np.bool_,
    "ends": np.int64,
}


@dataclass(frozen=True, eq=False)
class RowTable:
    """Rows in order, those that were taken off the list included.

    Attributes:
        rows: all of them.
        live: bool [n], which of them are listed.
        ends: int64 [n], samples of the listed rows up to and including each.
        num_live: listed rows.
        schemas: schema as a number -> position of the last listed row that has it.
        ids_rise: whether each id is higher than all before it.
    """

    rows: Rows
    live: npt.NDArray[np.bool_]
    ends: IntArray
    num_live: int
    schemas: Mapping[int, int]
    ids_rise: bool
    _columns: Mapping[str, GrowingArray]
    _texts: Mapping[str, GrowingText]

    @classmethod
    def empty(cls, *, room: int = 0) -> RowTable:
        """Make a table of no rows, with memory for `room` of them."""
        return cls._of(
            {n: GrowingArray.empty(dtype, room=room) for n, dtype in _DTYPES.items()},
            {n: GrowingText.empty(room=room) for n in TEXT_COLUMNS},
            num_live=0,
            schemas={},
            ids_rise=True,
        )

    @classmethod
    def of(cls, rows: Rows) -> RowTable:
        """Make a table of listed rows."""
        return cls.empty(room=2 * len(rows)).appended(rows)

    @classmethod
    def _of(
        cls,
        columns: Mapping[str, GrowingArray],
        texts: Mapping[str, GrowingText],
        **facts: Any,
    ) -> RowTable:
        rows = Rows(
            columns["fixed"].values, {name: t.column for name, t in texts.items()}
        )
        return cls(
            rows=rows,
            live=columns["live"].values,
            ends=columns["ends"].values,
            _columns=columns,
            _texts=texts,
            **facts,
        )

    def __len__(self) -> int:
        """Return the number of rows, removed ones included."""
        return len(self.rows)

    @property
    def total_samples(self) -> int:
        """Samples of the listed rows."""
        return self.samples_before(len(self))

    def samples_before(self, position: int) -> int:
        """Return the samples of the listed rows before one."""
        return int(self.ends[position - 1]) if position else 0

    @functools.cached_property
    def listed(self) -> Stretch:
        """The listed rows."""
        return Stretch(self, 0, len(self))

    def appended(self, rows: Rows) -> RowTable:
        """Return the table with listed rows at its end; the work is that of `rows`."""
        if not len(rows):
            return self
        ids, last = rows.trajectory_ids, self.rows.trajectory_ids[-1:]
        more = {
            "fixed": rows.fixed,
            "live": np.ones(len(rows), np.bool_),
            "ends": self.total_samples + np.cumsum(rows.column("num_samples")),
        }
        return self._of(
            {n: array.extended(more[n]) for n, array in self._columns.items()},
            {n: text.extended(rows.texts[n]) for n, text in self._texts.items()},
            num_live=self.num_live + len(rows),
            schemas={**self.schemas, **_last_of_each(rows.fixed["schema"], len(self))},
            ids_rise=self.ids_rise and bool((np.diff(ids, prepend=last) > 0).all()),
        )

    def find(self, ids: IntArray) -> IntArray:
        """Return the positions of the listed rows that have one of some ids.

        Args:
            ids: int64, rising.
        """
        column = self.rows.trajectory_ids
        if not self.ids_rise:
            return np.flatnonzero(np.isin(column, ids) & self.live)
        positions = np.searchsorted(column, ids)
        is_inside = positions < len(self)
        positions, ids = positions[is_inside], ids[is_inside]
        is_hit = (column[positions] == ids) & self.live[positions]
        hits: IntArray = positions[is_hit]
        return hits

    def removed(self, positions: IntArray) -> RowTable:
        """Return the table with some listed rows off the list, as fast as a copy.

        Args:
            positions: int64, rising, of listed rows.
        """
        if not len(positions):
            return self
        live = self.live.copy()
        live[positions] = False
        gone = np.cumsum(self.rows.column("num_samples")[positions])
        lengths = np.diff(np.concatenate([[0], positions, [len(self)]]))
        ends = self.ends - np.repeat(np.concatenate([[0], gone]), lengths)
        columns = {
            "fixed": self._columns["fixed"],
            "live": GrowingArray.empty(np.bool_).extended(live),
            "ends": GrowingArray.empty(np.int64).extended(ends),
        }
        return self._of(
            columns,
            self._texts,
            num_live=self.num_live - len(positions),
            schemas=self._schemas_without(live),
            ids_rise=self.ids_rise,
        )

    def _schemas_without(self, live: npt.NDArray[np.bool_]) -> Mapping[int, int]:
        lost = [schema for schema, last in self.schemas.items() if not live[last]]
        if not lost:
            return self.schemas
        found = {schema: last for schema, last in self.schemas.items() if live[last]}
        column = self.rows.fixed["schema"]
        positions = np.flatnonzero(live & np.isin(column, np.array(lost, np.uint64)))
        here = _last_of_each(column[positions], 0)
        return {**found, **{s: int(positions[n]) for s, n in here.items()}}

    def without_removed(self, start: int) -> RowTable:
        """Return the table less the rows from `start` on that are not listed."""
        if self.live[start:].all():
            return self
        kept = np.concatenate(
            [np.arange(start), start + np.flatnonzero(self.live[start:])]
        )
        return RowTable.of(self.rows.take(kept)).removed(
            np.flatnonzero(~self.live[:start])
        )


def _last_of_each(column: AnyArray, offset: int) -> dict[int, int]:
    """Return value -> where it stands last in a column, plus `offset`."""
    if len(column) and (column == column[0]).all():
        return {int(column[0]): offset + len(column) - 1}
    values, from_end = np.unique(column[::-1], return_index=True)
    last = offset + len(column) - 1 - from_end
    return dict(zip(values.tolist(), last.tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class Stretch:
    """The listed rows in a part of a table.

    Attributes:
        table: the table.
        start: position of the first row that may be listed.
        stop: position after the last one.
    """

    table: RowTable
    start: int
    stop: int

    def __len__(self) -> int:
        """Return the number of listed rows."""
        return self._num_live

    @functools.cached_property
    def _num_live(self) -> int:
        if self.table.num_live == len(self.table):
            return self.stop - self.start
        if self.stop - self.start == len(self.table):
            return self.table.num_live
        return int(np.count_nonzero(self.table.live[self.start : self.stop]))

    @property
    def total_samples(self) -> int:
        """Samples of the listed rows."""
        return self.table.samples_before(self.stop) - self.table.samples_before(
            self.start
        )

    @property
    def positions(self) -> IntArray:
        """Positions of the listed rows in the table."""
        live = self.table.live[self.start : self.stop]
        return self.start + np.flatnonzero(live)

    @functools.cached_property
    def rows(self) -> Rows:
        """The listed rows; a copy if one of the others was removed."""
        if len(self) == self.stop - self.start:
            return self.table.rows.slice(self.start, self.stop)
        return self.table.rows.take(self.positions)

    @property
    def trajectory_ids(self) -> IntArray:
        """The ids of the listed rows, in order."""
        ids = self.table.rows.trajectory_ids
        if len(self) == self.stop - self.start:
            return ids[self.start : self.stop]
        found: IntArray = ids[self.positions]
        return found

    @functools.cached_property
    def schemas(self) -> Mapping[int, int]:
        """Schema as a number -> position in the table of a listed row that has it."""
        if self.stop == len(self.table):
            found = self.table.schemas.items()
            return {schema: last for schema, last in found if last >= self.start}
        positions = self.positions
        here = _last_of_each(self.table.rows.fixed["schema"][positions], 0)
        return {schema: int(positions[n]) for schema, n in here.items()}

    def since(self, version: int) -> Stretch:
        """Return those of the rows that came with commits after a version."""
        versions = self.table.rows.column("version")
        start = int(np.searchsorted(versions, version, side="right"))
        return Stretch(self.table, min(max(self.start, start), self.stop), self.stop)

    def uuids(self) -> list[str]:
        """Return the uuids of the listed rows, in order."""
        uuids = self.table.rows.fixed["uuid"][self.positions].tolist()
        return [uuid.hex() for uuid in uuids]

    def find(self, trajectory_id: Any) -> int | None:
        """Return the position in the table of the last listed row of an id, if any."""
        ids = np.asarray(trajectory_id)
        if ids.shape or ids.dtype.kind not in "iu":
            return None
        found = self.table.find(ids.reshape(1).astype(np.int64))
        found = found[(self.start <= found) & (found < self.stop)]
        return int(found[-1]) if len(found) else None

    def part(self, first: int, last: int) -> Stretch:
        """Return the listed rows from number `first` to before number `last`."""
        start, stop = self._position(first), self._position(last)
        return Stretch(self.table, start, stop)

    def _position(self, number: int) -> int:
        """Return where the listed row of a number is; the end for one too many."""
        if len(self) == self.stop - self.start:
            return self.start + number
        if number >= len(self):
            return self.stop
        return int(self.positions[number])

    def newest(self, count: int) -> Stretch:
        """Return the last `count` listed rows, or all; looks no further than these."""
        if count >= len(self):
            return self
        if len(self) == self.stop - self.start:
            return Stretch(self.table, self.stop - count, self.stop)
        size = 2 * count
        while True:
            start = max(self.start, self.stop - size)
            found = np.flatnonzero(self.table.live[start : self.stop])
            if len(found) >= count:
                first = int(found[len(found) - count]) if count else self.stop - start
                return Stretch(self.table, start + first, self.stop)
            size *= 2
