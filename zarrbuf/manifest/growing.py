"""Arrays and columns of strings that grow at their end, in memory they share.

Pure. A version never changes; one that goes on from the longest costs what is new.
Knows no row.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from zarrbuf.archive.spec import AnyArray
from zarrbuf.manifest.texts import TextColumn

_MIN_ROOM: Final = 64
_MAX_FIRST_BYTES: Final = 1 << 28
"""Bytes of strings that memory is asked for because of what the first ones take."""
_MAX_KNOWN: Final = 1024
"""So many distinct strings of a column are looked up when others are appended."""


class _Memory:
    """Memory that versions of one array share, each the first part of it."""

    def __init__(self, array: AnyArray, used: int) -> None:
        self.array = array
        # Where the longest version ends. Taken out by who extends it: of two threads
        # at once, one finds nothing and copies.
        self._ends = [used]

    def claim(self, end: int, stop: int) -> bool:
        """Whether the part from `end` to `stop` is there and now the caller's."""
        try:
            used = self._ends.pop()
        except IndexError:
            return False
        is_free = used == end and stop <= len(self.array)
        self._ends.append(stop if is_free else used)
        return is_free


@dataclass(frozen=True, eq=False)
class GrowingArray:
    """One version of an array that grows at its end.

    Whoever extends the longest version writes behind its end, in place; whoever
    extends another one copies. No version ever sees what others append.

    Attributes:
        values: [n, ...], not to be written to.
    """

    values: AnyArray
    _memory: _Memory

    @classmethod
    def empty(cls, dtype: npt.DTypeLike, *, room: int = 0) -> GrowingArray:
        """Make one of no items, with memory for `room` of them."""
        array = _allocate(room, np.dtype(dtype))
        return cls(_read_only(array[:0]), _Memory(array, 0))

    def extended(self, more: AnyArray) -> GrowingArray:
        """Return a version with `more` at its end; the work is that of `more`."""
        start, stop = len(self.values), len(self.values) + len(more)
        memory = self._memory
        if not memory.claim(start, stop):
            array = _allocate(2 * stop, self.values.dtype)
            _plain(array)[:start] = _plain(self.values)
            memory = _Memory(array, stop)
        more = more.astype(memory.array.dtype, copy=False)
        _plain(memory.array)[start:stop] = _plain(more)
        return GrowingArray(_read_only(memory.array[:stop]), memory)


def _allocate(room: int, dtype: np.dtype[Any]) -> AnyArray:
    """Return memory of any content; what is never written to is never resident."""
    # As bytes, since NumPy clears structs, page by page.
    size = max(room, _MIN_ROOM) * dtype.itemsize
    return np.empty(size, np.uint8).view(dtype)


def _plain(array: AnyArray) -> AnyArray:
    """Return structs as plain bytes, since NumPy copies them field by field."""
    return array.view(f"V{array.itemsize}") if array.dtype.names else array


def _read_only(array: AnyArray) -> AnyArray:
    array.flags.writeable = False
    return array


@dataclass(frozen=True, eq=False)
class GrowingText:
    """One version of a column of strings that grows at its end.

    Attributes:
        column: the strings.
    """

    column: TextColumn
    _arrays: tuple[GrowingArray, GrowingArray, GrowingArray]
    _known: dict[bytes, int]
    _room: int = 0

    @classmethod
    def empty(cls, *, room: int = 0) -> GrowingText:
        """Make a column of no strings, with memory for `room` of them.

        How long they are is taken from the first that come.
        """
        numbers = GrowingArray.empty(np.int32, room=room)
        offsets = GrowingArray.empty(np.int64).extended(np.zeros(1, np.int64))
        made = cls._of((numbers, offsets, GrowingArray.empty(np.uint8)), {})
        return dataclasses.replace(made, _room=room)

    @classmethod
    def _of(
        cls,
        arrays: tuple[GrowingArray, GrowingArray, GrowingArray],
        known: dict[bytes, int],
    ) -> GrowingText:
        return cls(TextColumn(*(array.values for array in arrays)), arrays, known)

    def extended(self, more: TextColumn) -> GrowingText:
        """Return a version with `more` at its end; strings it has are kept once."""
        if more.num_distinct > len(more.numbers):
            more = more.trimmed()
        numbers, offsets, data = self._arrays
        mapping, new = self._numbers_of(more)
        if len(new.numbers):
            starts, blobs = new.pack()
            if not len(self.column.data):
                expected = len(blobs) * self._room // len(more.numbers)
                room = min(expected, _MAX_FIRST_BYTES)
                data = GrowingArray.empty(np.uint8, room=room)
            offsets = offsets.extended(starts[1:] + len(self.column.data))
            data = data.extended(blobs)
        numbers = numbers.extended(mapping[more.numbers])
        return self._of((numbers, offsets, data), self._known)

    def _numbers_of(self, more: TextColumn) -> tuple[npt.NDArray[np.int32], TextColumn]:
        """Return numbers for the distinct strings of `more`, and those that are new."""
        count, first = more.num_distinct, self.column.num_distinct
        every = np.arange(count, dtype=np.int32)
        if count > _MAX_KNOWN:
            return every + np.int32(first), TextColumn(every, more.offsets, more.data)
        mapping = np.empty(count, np.int32)
        new: list[int] = []
        for number in range(count):
            blob = more.blob(number)
            known = self._known.get(blob, first)
            # Versions that went another way share what is known: so look.
            if known < first and self.column.blob(known) == blob:
                mapping[number] = known
                continue
            mapping[number] = first + len(new)
            self._learn(blob, first + len(new))
            new.append(number)
        return mapping, TextColumn(np.array(new, np.int32), more.offsets, more.data)

    def _learn(self, blob: bytes, number: int) -> None:
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[blob] = number
