"""Objects of which only some bytes are there: in memory of their full size.

Addresses stay what they are in the object, so that whatever reads a mapped file reads
these too. Memory is taken only by pages that were filled. What is there is remembered
in blocks. Pure; knows no storage.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Final

import numpy as np
import numpy.typing as npt

from zarrbuf.errors import FormatError
from zarrbuf.storage.ranges import BLOCK_BYTES, merge_ranges

IntArray = npt.NDArray[np.int64]

MAX_FETCH_BYTES: Final = 8 << 20
"""More than that is fetched in pieces, at once."""


class SparseObject:
    """An object of known size, filled as it is fetched. Safe between threads.

    Attributes:
        view: all of its bytes, read-only; those not fetched yet are 0.
        num_bytes: their number.
    """

    def __init__(self, num_bytes: int, *, name: str) -> None:
        """Start with nothing there.

        Raises:
            FormatError: if no memory has room for so many bytes; `name` says whose.
        """
        self.num_bytes = num_bytes
        try:
            self._blocks = np.zeros(-(-num_bytes // BLOCK_BYTES), np.bool_)
            memory = mmap.mmap(
                -1, max(1, num_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            )
        except (OSError, MemoryError, OverflowError, ValueError) as exc:
            raise FormatError(
                f"{name}: {num_bytes} bytes are claimed; no memory has room for them"
            ) from exc
        # With huge pages, 4 KB fetched would take 2 MB; a kernel may know none.
        with suppress(OSError):
            memory.madvise(mmap.MADV_NOHUGEPAGE)
        self._bytes = memoryview(memory)[:num_bytes]
        self.view = self._bytes.toreadonly()

    def missing(self, ranges: IntArray, *, max_gap_bytes: int) -> IntArray:
        """Return what has to be fetched for some ranges to be there.

        Args:
            ranges: int64 [n, 2], start and stop, inside the object.
            max_gap_bytes: near ranges are fetched together, see `merge_ranges`.

        Returns:
            int64 [m, 2], ascending, whole blocks but for the end of the object.
        """
        blocks = np.stack(
            [ranges[:, 0] // BLOCK_BYTES, -(-ranges[:, 1] // BLOCK_BYTES)], axis=1
        )
        wanted = [np.zeros(0, np.int64)]
        for first, stop in blocks.tolist():
            wanted.append(np.flatnonzero(~self._blocks[first:stop]) + first)
        starts = np.concatenate(wanted) * BLOCK_BYTES
        return np.minimum(
            merge_ranges(
                np.stack([starts, starts + BLOCK_BYTES], axis=1),
                max_gap_bytes=max_gap_bytes,
                max_bytes=MAX_FETCH_BYTES,
            ),
            self.num_bytes,
        )

    def fill(self, start: int, data: bytes) -> None:
        """Put fetched bytes where they belong.

        Args:
            start: first byte, at the start of a block.
            data: whole blocks, but for the end of the object.
        """
        stop = start + len(data)
        if start % BLOCK_BYTES or (stop % BLOCK_BYTES and stop != self.num_bytes):
            raise ValueError(f"bytes {start} to {stop} are not whole blocks")
        self._bytes[start:stop] = data
        # Last, since it tells other threads that the bytes are there.
        self._blocks[start // BLOCK_BYTES : -(-stop // BLOCK_BYTES)] = True

    @property
    def resident_bytes(self) -> int:
        """Memory that its pages take which were filled."""
        firsts = np.arange(0, len(self._blocks), mmap.PAGESIZE // BLOCK_BYTES)
        if not len(firsts):
            return 0
        pages = np.logical_or.reduceat(self._blocks, firsts)
        return int(np.count_nonzero(pages)) * mmap.PAGESIZE
