"""Blosc without its wrapper: one C call per chunk, made without the interpreter lock.

numcodecs brings c-blosc and exports its functions. Through numcodecs' Python function a
50 KB frame takes 4 us more than the 16 us it takes through ctypes (`python -m
benchmarks.profile`). Where the C function is not found, numcodecs is used.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import numpy as np
from numcodecs import blosc

from zarrbuf.format import AnyArray

Decompress = Callable[[bytes, int, int, int], int]
"""(compressed, address, bytes there, threads) -> bytes written, or 0 or less.

Trusts the header of `compressed`, which must have been checked: its compressed size is
within `compressed`, its decompressed size that at the address.
"""


@functools.cache
def native_decompress() -> Decompress | None:
    """Return the C function, or None where numcodecs does not export it."""
    try:
        function = ctypes.CDLL(blosc.__file__).blosc_decompress_ctx
    except (OSError, AttributeError, TypeError):
        return None
    function.restype = ctypes.c_int
    function.argtypes = [
        ctypes.c_char_p,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
    ]

    found: Decompress = function
    return found


def compress(raw: AnyArray, *, name: str, level: int) -> bytes:
    """Compress a contiguous array; bytes are shuffled by the size of its items."""
    # Blosc's own threads cost more than a 50 KB chunk takes; numcodecs leaves them out
    # off the main thread anyway.
    blosc.use_threads = False
    shuffle = blosc.NOSHUFFLE if raw.itemsize == 1 else blosc.SHUFFLE
    compressed: bytes = blosc.compress(raw, name.encode(), level, shuffle, 0)
    return compressed


def decompress_into(compressed: bytes, out: AnyArray) -> None:
    """Decompress into a contiguous array of exactly the decompressed size.

    Raises:
        RuntimeError: if the data is damaged.
        ValueError: if it is of another size.
    """
    blosc.use_threads = False
    blosc.decompress(compressed, out)


def address_of(array: AnyArray) -> int:
    """Return the address of a writable C-contiguous array's first byte."""
    assert array.flags.c_contiguous
    assert array.flags.writeable
    return int(np.asarray(array).__array_interface__["data"][0])


def memory_at(address: int, num_bytes: int) -> AnyArray:
    """Return the bytes at an address as a writable array; it does not keep them."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address))
