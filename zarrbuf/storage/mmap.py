"""Files as memory: mapped without a file descriptor, read ahead where it is cold.

Python's own `mmap` keeps a descriptor for each file (up to 3.12), so that a window of
a thousand archives would pass the usual limit of 1,024; these maps keep none. Owns the
calls to `mmap`, `munmap`, `madvise` and `mincore`, and nothing else.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

TAIL_BYTES: Final = 128 << 10
"""Asked for when a file is mapped: directory, metadata and indexes of an archive."""
_FAILED: Final = ctypes.c_void_p(-1).value
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_LIBC.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]


class _Mapped:
    """Pages of a file, unmapped when nothing refers to them any more."""

    def __init__(self, address: int, num_bytes: int) -> None:
        self.__array_interface__: dict[str, Any] = {
            "data": (address, True),
            "shape": (num_bytes,),
            "typestr": "|u1",
            "version": 3,
        }
        ending = weakref.finalize(self, _LIBC.munmap, address, num_bytes)
        ending.atexit = False  # threads may still read, and the system does it anyway


def map_file(fd: int) -> memoryview:
    """Map a whole file, read-only; the descriptor can be closed afterwards.

    Returns:
        Its bytes. The pages stay mapped as long as any view of them lives.

    Raises:
        OSError: if the file cannot be mapped.
    """
    num_bytes = os.fstat(fd).st_size
    if num_bytes == 0:
        return memoryview(b"")
    address = _LIBC.mmap(None, num_bytes, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    # Chunks are drawn at random: reading on behind one would fetch what nobody needs.
    _LIBC.madvise(address, num_bytes, mmap.MADV_RANDOM)
    tail = max(0, num_bytes - TAIL_BYTES) // mmap.PAGESIZE * mmap.PAGESIZE
    _LIBC.madvise(address + tail, num_bytes - tail, mmap.MADV_WILLNEED)
    pages: Any = np.asarray(_Mapped(address, num_bytes))
    return memoryview(pages)


def are_in_memory(addresses: Sequence[int]) -> bool:
    """Whether the pages of all addresses are in memory, in a microsecond each.

    Linux says so of every page of a file that this process may not write to.
    """
    found = ctypes.c_ubyte()
    for address in addresses:
        page = address // mmap.PAGESIZE * mmap.PAGESIZE
        failed = _LIBC.mincore(page, 1, ctypes.byref(found))
        if not failed and not found.value & 1:
            return False
    return True


def will_need(ranges: IntArray) -> int:
    """Ask the system to read pages that are not in memory yet, all at once.

    Without this a thread waits for each page it touches, one after the other.

    Args:
        ranges: int64 [n, 2], addresses of the first bytes and after the last ones, in
            any order.

    Returns:
        How many runs of pages were asked for.
    """
    if not len(ranges):
        return 0
    starts, stops = ranges.T
    order = np.argsort(starts)
    first = starts[order] // mmap.PAGESIZE * mmap.PAGESIZE
    last = np.maximum.accumulate(-(-stops[order] // mmap.PAGESIZE) * mmap.PAGESIZE)
    cuts = np.flatnonzero(first[1:] > last[:-1]) + 1
    begins = first[np.concatenate([[0], cuts])].tolist()
    ends = last[np.concatenate([cuts - 1, [len(last) - 1]])].tolist()
    for begin, end in zip(begins, ends, strict=True):
        _LIBC.madvise(begin, end - begin, mmap.MADV_WILLNEED)  # advice: may fail
    return len(begins)
