"""Columns of numbers and strings that grow at their end, in memory they share.

Pure. A version never changes; one that goes on from the longest costs what is new. Rows
of a manifest mostly say what the row before them says, so that strings that repeat are
kept once: a million of them take four bytes each. Knows no row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from zarrbuf.archive.spec import AnyArray
from zarrbuf.errors import FormatError

IntArray = npt.NDArray[np.int64]
_MIN_ROOM: Final = 64
_MAX_FIRST_BYTES: Final = 1 << 28
"""Bytes of strings that memory is asked for because of what the first ones take."""
_MAX_KNOWN: Final = 1024
"""So many distinct strings of a column are looked up when others are appended."""
_MAX_WORDS: Final = 8
_LONG: Final = 24
"""Bytes of a string, on average, from which on it is copied as a whole: 0.3 us a string
then, else 12 ns a byte."""
_FACTORS: Final = np.array(
    [pow(0x9E3779B97F4A7C15, n + 1, 2**64) for n in range(_MAX_WORDS)], np.uint64
)


@dataclass(frozen=True)
class TextColumn:
    """Strings in order, as numbers of distinct ones.

    Attributes:
        numbers: int32 [n], which of the distinct strings stands in each row.
        offsets: int64 [k + 1], where each distinct string starts in `data`.
        data: uint8, the distinct strings one after the other, UTF-8.
    """

    numbers: npt.NDArray[np.int32]
    offsets: IntArray
    data: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, texts: Sequence[str]) -> TextColumn:
        """Make a column of `texts`."""
        found: dict[str, int] = {}
        numbers = [found.setdefault(text, len(found)) for text in texts]
        blobs = [text.encode() for text in found]
        offsets = np.zeros(len(blobs) + 1, np.int64)
        np.cumsum([len(blob) for blob in blobs], out=offsets[1:])
        data = np.frombuffer(b"".join(blobs), np.uint8)
        return cls(np.array(numbers, np.int32), offsets, data)

    @classmethod
    def unpack(cls, offsets: IntArray, data: npt.NDArray[np.uint8]) -> TextColumn:
        """Make a column of strings that lie one after the other, as in a segment.

        Args:
            offsets: int64 [n + 1], where each string starts, from 0; never falling.
            data: uint8 [offsets[-1]], all strings.
        """
        every = np.arange(len(offsets) - 1, dtype=np.int32)
        words = _as_words(offsets, data)
        if words is None:
            return cls(every, offsets, data)
        numbers, some = _number_distinct(words)
        if len(some) == len(every):
            return cls(every, offsets, data)
        return cls(numbers, *cls(every, offsets, data).take(some).pack())

    @classmethod
    def concat(cls, columns: Sequence[TextColumn]) -> TextColumn:
        """Return one column after the other."""
        ends = np.cumsum([0, *(len(column.data) for column in columns)])
        firsts = np.cumsum([0, *(column.num_distinct for column in columns)])
        shifted = [c.offsets[:-1] + end for c, end in zip(columns, ends, strict=False)]
        numbers = [
            column.numbers + np.int32(first)
            for column, first in zip(columns, firsts, strict=False)
        ]
        return cls(
            np.concatenate(numbers),
            np.concatenate([*shifted, ends[-1:]]),
            np.concatenate([column.data for column in columns]),
        )

    @property
    def num_distinct(self) -> int:
        """Distinct strings that are kept, whether or not a row has them."""
        return len(self.offsets) - 1

    def pack(self) -> tuple[IntArray, npt.NDArray[np.uint8]]:
        """Return all strings one after the other, as a segment has them.

        Returns:
            int64 [n + 1], where each string starts, and uint8, all strings.
        """
        if self._is_in_order():
            return self.offsets, self.data[: self.offsets[-1]]
        starts = self.offsets[:-1][self.numbers]
        sizes = np.diff(self.offsets)[self.numbers]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        if offsets[-1] > _LONG * len(sizes):
            view, stops = self.data.data, starts + sizes
            pairs = zip(starts.tolist(), stops.tolist(), strict=True)
            joined = b"".join([view[start:stop] for start, stop in pairs])
            return offsets, np.frombuffer(joined, np.uint8)
        shift = np.repeat(starts - offsets[:-1], sizes)
        return offsets, self.data[np.arange(offsets[-1]) + shift]

    def _is_in_order(self) -> bool:
        """Whether each row has the distinct string of its own number, from 0."""
        numbers = self.numbers
        if len(numbers) != self.num_distinct or self.offsets[0]:
            return False
        return bool((numbers == np.arange(len(numbers), dtype=np.int32)).all())

    def trimmed(self) -> TextColumn:
        """Return the same strings, less the distinct ones that no row has."""
        used, numbers = np.unique(self.numbers, return_inverse=True)
        every = TextColumn(used, self.offsets, self.data)
        return TextColumn(numbers.astype(np.int32), *every.pack())

    def take(self, positions: IntArray) -> TextColumn:
        """Return the strings at `positions`; the distinct ones are shared."""
        return TextColumn(self.numbers[positions], self.offsets, self.data)

    def slice(self, start: int, stop: int) -> TextColumn:
        """Return the strings from `start` to before `stop`, in the same memory."""
        return TextColumn(self.numbers[start:stop], self.offsets, self.data)

    def blob(self, number: int) -> bytes:
        """Return one of the distinct strings as UTF-8."""
        start, stop = self.offsets[number : number + 2]
        return self.data[start:stop].tobytes()

    def blobs(self, numbers: npt.NDArray[np.int32]) -> list[bytes]:
        """Return some of the distinct strings as UTF-8, faster than one by one."""
        data = self.data.tobytes()
        starts = self.offsets[:-1][numbers].tolist()
        stops = self.offsets[1:][numbers].tolist()
        return [data[a:b] for a, b in zip(starts, stops, strict=True)]

    def get(self, position: int) -> str:
        """Return one string."""
        try:
            return self.blob(int(self.numbers[position])).decode()
        except UnicodeDecodeError as exc:
            raise FormatError(f"a string of a manifest row is no UTF-8: {exc}") from exc


def _as_words(
    offsets: IntArray, data: npt.NDArray[np.uint8]
) -> npt.NDArray[np.uint64] | None:
    """Return strings as columns of numbers that are equal where the strings are.

    Returns:
        uint64 [m, n], or None if one is too long for that.
    """
    sizes = np.diff(offsets)
    width = int(sizes.max(initial=0))
    num_words = width // 8 + 1
    if num_words > _MAX_WORDS:
        return None
    padded = np.zeros((len(sizes), 8 * num_words), np.uint8)
    if len(data) == width * len(sizes):
        padded[:, :width] = data.reshape(len(sizes), width)
    else:
        padded[:, :width][np.arange(width) < sizes[:, None]] = data
    padded[:, -1] = sizes  # so that a NUL at the end is not taken for none
    return np.ascontiguousarray(padded.view(np.uint64).T)


def _number_distinct(
    words: npt.NDArray[np.uint64],
) -> tuple[npt.NDArray[np.int32], IntArray]:
    """Number the distinct strings given by `_as_words`.

    Returns:
        int32 [n], the number of each string, and int64 [k], where a string of each
        number is. Strings of one number are equal; equal ones may have several
        numbers where few repeat.
    """
    is_new = np.zeros(words.shape[1], np.bool_)
    is_new[:1] = True
    for word in words:
        is_new[1:] |= word[1:] != word[:-1]
    numbers = np.cumsum(is_new, dtype=np.int32) - np.int32(1)
    runs = np.flatnonzero(is_new)
    heads = [word[runs] for word in words]
    hashes = np.zeros(len(runs), np.uint64)
    for word, factor in zip(heads, _FACTORS, strict=False):
        hashes += word * factor
    distinct = np.unique(hashes)
    if 2 * len(distinct) > len(runs):  # too few repeat
        return numbers, runs
    of_run = np.searchsorted(distinct, hashes).astype(np.int32)
    some = np.empty(len(distinct), np.int64)
    some[of_run] = np.arange(len(runs))
    if any((word[some][of_run] != word).any() for word in heads):
        return numbers, runs
    return of_run[numbers], runs[some]


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
