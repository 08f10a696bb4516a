"""The page cache: what of a file is in it, how to get it out, what was read instead.

Linux only. Each file is dropped by itself: that needs no rights and leaves other
processes alone, unlike `/proc/sys/vm/drop_caches`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

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
PAGE_BYTES: Final = mmap.PAGESIZE
_FAILED: Final = ctypes.c_void_p(-1).value


def files_below(folder: Path) -> list[Path]:
    """Return the files below a folder that hold anything."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)


def drop(folder: Path) -> None:
    """Get the files below a folder out of the page cache.

    Pages that are mapped stay whatever is asked for, so this process lets go of them
    first: the mappings stay, and the next touch reads the file again.
    """
    for start, stop in _mappings_below(folder):
        _LIBC.madvise(start, stop - start, mmap.MADV_DONTNEED)
    os.sync()  # pages that are not written yet stay as well
    for path in files_below(folder):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def _mappings_below(folder: Path) -> Iterator[tuple[int, int]]:
    """Yield start and stop of this process's mappings of files below a folder."""
    prefix = f"{folder.resolve()}/"
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = line.split(maxsplit=5)
        if name.startswith(prefix):
            start, stop = span.split("-")
            yield int(start, 16), int(stop, 16)


def resident_share(folder: Path) -> float:
    """Return the share of the pages below a folder that are in the page cache."""
    counts = [_resident_pages(path) for path in files_below(folder)]
    return sum(here for here, _ in counts) / max(1, sum(total for _, total in counts))


def _resident_pages(path: Path) -> tuple[int, int]:
    """Return how many pages of a file are in the page cache, and how many it has."""
    num_bytes = path.stat().st_size
    pages = -(-num_bytes // mmap.PAGESIZE)
    fd = os.open(path, os.O_RDONLY)
    try:
        start = _LIBC.mmap(None, num_bytes, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    finally:
        os.close(fd)
    if start == _FAILED:
        raise OSError(ctypes.get_errno(), f"cannot map {path}")
    here = (ctypes.c_ubyte * pages)()
    try:
        if _LIBC.mincore(start, num_bytes, here):
            raise OSError(ctypes.get_errno(), f"mincore of {path}")
    finally:
        _LIBC.munmap(start, num_bytes)
    return sum(flags & 1 for flags in here), pages


def device_bytes() -> int:
    """Return the bytes that this process has made the disks read so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    counters = dict(line.split(": ") for line in lines)
    return int(counters["read_bytes"])
