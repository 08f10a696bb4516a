"""Memory of batches: used again once nobody refers to it, or given by the caller.

Fresh memory costs as much as decoding into it: the system hands out zeroed pages one by
one. What a dropped batch leaves behind has been touched already. Knows no field.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections import deque
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from zarrbuf.archive.spec import AnyArray

Bytes = npt.NDArray[np.uint8]

KEPT_BATCHES: Final = 3
"""A consumer holds one batch and drops one; more are seldom dropped at once."""
MIN_KEPT_BYTES: Final = 64 << 10
"""Smaller arrays are left to the allocator, which keeps their pages anyway."""


class _Kept:
    """Arrays of one size for one field, until it is closed."""

    def __init__(self, max_arrays: int) -> None:
        self.arrays: deque[Bytes] = deque(maxlen=max_arrays)
        self._is_open = True

    def take_back(self, array: Bytes) -> None:
        if self._is_open:
            self.arrays.append(array)

    def close(self) -> None:
        self._is_open = False
        self.arrays.clear()


class BatchMemory:
    """Gives out arrays, and again what became of them when nothing refers to them.

    An array comes back only after the last tensor, array or view of it is gone,
    whoever holds it, so nobody sees his batch change. Safe between threads.
    """

    def __init__(
        self, *, max_batches: int = KEPT_BATCHES, pin_memory: bool = False
    ) -> None:
        """Keep what `max_batches` batches leave behind.

        Args:
            max_batches: arrays of one size that are kept per field of a batch.
            pin_memory: give out page-locked memory instead, which torch keeps and
                gives out again when the copies from it are done.
        """
        self._max_batches = max_batches
        self._pin_memory = pin_memory
        self._kept: dict[tuple[str, int], _Kept] = {}

    def clear(self) -> None:
        """Let go of what is kept."""
        for kept in list(self._kept.values()):
            kept.close()
        self._kept.clear()

    def empty(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> AnyArray:
        """Return an array, not initialised.

        Args:
            name: of the field; what comes back serves the field of that name.
            shape: of the array.
            dtype: of the array.
        """
        num_bytes = math.prod(shape) * dtype.itemsize
        if self._pin_memory and num_bytes:
            pinned = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
            return pinned.numpy().view(dtype).reshape(shape)
        if num_bytes < MIN_KEPT_BYTES:
            return np.empty(shape, dtype)
        return self._lend(name, num_bytes).view(dtype).reshape(shape)

    def _lend(self, name: str, num_bytes: int) -> Bytes:
        kept = self._kept.get((name, num_bytes))
        if kept is None:
            # Batches of another size: what the old ones left behind is of no use.
            for other in list(self._kept):
                if other[0] == name:
                    self._kept.pop(other, _Kept(0)).close()
            kept = self._kept[name, num_bytes] = _Kept(self._max_batches)
        try:
            memory: Any = kept.arrays.pop()
        except IndexError:
            memory = np.empty(num_bytes, np.uint8)
        # NumPy makes the owner the base of every view, so the loan has to be an
        # object of another kind for it to live as long as the last of them.
        loan: Any = (ctypes.c_uint8 * num_bytes).from_buffer(memory)
        ending = weakref.finalize(loan, kept.take_back, memory)
        ending.atexit = False
        lent: Bytes = np.frombuffer(loan, np.uint8)
        return lent


def can_pin() -> bool:
    """Whether page-locked memory would help a device that is there."""
    return torch.cuda.is_available()
