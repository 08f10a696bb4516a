"""c-blosc as numcodecs brings it: Python calls, and the addresses of its C functions.

The addresses are for `kernels`, which calls them in loops of its own. Owns everything
that is to be known of Blosc's header. Knows no checksum and no shard.
"""

from __future__ import annotations

import ctypes

# numcodecs imports it at its first call. A child forked while another thread is in the
# middle of that import would wait for it for ever; so it is done here.
import multiprocessing.synchronize  # noqa: F401
import struct
from typing import Final

from numcodecs import blosc

from zarrbuf.archive.spec import AnyArray

HEADER: Final = struct.Struct("<4B3I")
"""Version, version of the codec, flags, item bytes; bytes raw, of a block, stored."""
VERSION: Final = 2
COMPRESSORS: Final = {"lz4": 1, "zstd": 4}
"""Codec -> what the upper three bits of the flags say of it."""
MAX_OVERHEAD: Final = 16
"""Bytes that a block may grow by when it does not compress."""


def compress(raw: AnyArray, *, name: str, level: int) -> bytes:
    """Compress a contiguous array; bytes are shuffled by the size of its items."""
    # Blosc's own threads cost more than a 50 KB chunk takes; numcodecs leaves them out
    # off the main thread anyway.
    blosc.use_threads = False
    compressed: bytes = blosc.compress(raw, name.encode(), level, shuffle_of(raw), 0)
    return compressed


def shuffle_of(raw: AnyArray) -> int:
    """Return how the bytes of items are ordered before they are compressed."""
    shuffle: int = blosc.NOSHUFFLE if raw.itemsize == 1 else blosc.SHUFFLE
    return shuffle


def decompress_into(compressed: bytes, out: AnyArray) -> None:
    """Decompress into a contiguous array of exactly the decompressed size.

    Raises:
        RuntimeError: if the data is damaged.
        ValueError: if it is of another size.
    """
    blosc.use_threads = False
    blosc.decompress(compressed, out)


def function_address(name: str) -> int | None:
    """Return the address of one of c-blosc's functions, None if it is not found."""
    try:
        function = getattr(ctypes.CDLL(blosc.__file__), name)
    except (OSError, AttributeError, TypeError):
        return None
    return ctypes.cast(function, ctypes.c_void_p).value
