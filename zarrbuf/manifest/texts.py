"""Columns of strings, those that repeat kept once.

Pure. Rows of a manifest mostly say what the row before them says: a million of them
take four bytes each. Knows no row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from zarrbuf.errors import FormatError

IntArray = npt.NDArray[np.int64]
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
