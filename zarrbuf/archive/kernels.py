"""The loops that `decode` calls, for numba: imported only when they are needed.

A loop checks all that it can see, and owns no policy: what is not as it should be it
leaves undone, and tells. Addresses were checked by the caller.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

import google_crc32c
import numba
import numpy as np
from llvmlite import binding

from zarrbuf.archive.blosc import HEADER, MAX_OVERHEAD, VERSION, function_address
from zarrbuf.archive.chunks import CRC_BYTES, RAW

CRC_RESIDUE: Final = 0x48674BC7
"""The crc32c of any bytes followed by their own crc32c, little-endian."""
MIN_CHUNK_BYTES: Final = HEADER.size + CRC_BYTES

_compiled: Any = numba.njit(nogil=True)


def _external(name: str, result: str, *arguments: str) -> Any:
    """Declare a C function that `bind` gives the address of."""
    kinds = [getattr(numba.types, kind) for kind in (result, *arguments)]
    return numba.types.ExternalFunction(f"zarrbuf_{name}", kinds[0](*kinds[1:]))


_crc32c = _external("crc32c", "uint32", "uintp", "uintp")
_memcpy = _external("memcpy", "uintp", "uintp", "uintp", "uintp")
_memcmp = _external("memcmp", "int32", "uintp", "uintp", "uintp")
_decompress = _external("decompress", "int32", "uintp", "uintp", "uintp", "int32")
_compress = _external(
    "compress",
    "int32",
    *("int32", "int32", "uintp", "uintp", "uintp"),
    *("uintp", "uintp", "uintp", "uintp", "int32"),
)


def bind() -> bool:
    """Give the C functions their addresses; whether all were found.

    Must be called before the first loop.
    """
    if numba.config.DISABLE_JIT:
        return False
    addresses = {
        "decompress": function_address("blosc_decompress_ctx"),
        "compress": function_address("blosc_compress_ctx"),
        "crc32c": _crc32c_address(),
        "memcpy": _libc_address("memcpy"),
        "memcmp": _libc_address("memcmp"),
    }
    if None in addresses.values():
        return False
    for name, address in addresses.items():
        binding.add_symbol(f"zarrbuf_{name}", address)
    return True


def _libc_address(name: str) -> int | None:
    return ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value


def _crc32c_address() -> int | None:
    """Return the address of `crc32c_value(data, count)`, of the library beneath."""
    try:
        function = ctypes.CDLL(google_crc32c._crc32c.__file__).crc32c_value
    except (OSError, AttributeError, TypeError):
        return None
    function.restype = ctypes.c_uint32
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    # RFC 3720, appendix B.4: another function of this name would not give that.
    is_right = function(b"123456789", 9) == 0xE3069283
    return ctypes.cast(function, ctypes.c_void_p).value if is_right else None


@_compiled
def _is_sound(chunk: Any, size: int, num_bytes: int, compressor: int) -> bool:
    """Whether the header of a chunk of `size` bytes says what is expected of it."""
    raw, stored = np.int64(0), np.int64(0)
    for i in range(4):
        raw |= np.int64(chunk[4 + i]) << (8 * i)
        stored |= np.int64(chunk[12 + i]) << (8 * i)
    is_sound: bool = (
        chunk[0] == VERSION
        and chunk[2] >> 5 == compressor
        and raw == num_bytes
        and stored == size - CRC_BYTES
    )
    return is_sound


@_compiled
def decode_loop(
    entries: Any,
    sources: Any,
    source_bytes: Any,
    targets: Any,
    num_bytes: Any,
    compressors: Any,
    scratch: Any,
    sizes: Any,
) -> None:
    """Check and decode chunks.

    Args:
        entries: uint64 [n], addresses of two int64: start and stop of each chunk.
        sources: uint64 [n], addresses of what they are counted from.
        source_bytes: int64 [n], bytes that can be read there.
        targets: uint64 [n], where each is decoded to.
        num_bytes: int64 [n], writable bytes there, which it must decode to.
        compressors: int64 [n], as Blosc numbers them, or `RAW`.
        scratch: uint8 [m], used in between; larger chunks are left out.
        sizes: int64 [n], gets the stored bytes of each chunk that was right, and -1
            for the others, whose targets are left alone but for data that fails while
            it decompresses.
    """
    here = np.uint64(scratch.ctypes.data)
    entry = np.empty(2, np.int64)
    for i in range(len(entries)):
        sizes[i] = -1
        _memcpy(np.uint64(entry.ctypes.data), entries[i], np.uint64(16))
        size = entry[1] - entry[0]
        if entry[0] < 0 or entry[1] > source_bytes[i]:
            continue
        if size < MIN_CHUNK_BYTES or size > len(scratch):
            continue
        # A copy is checked and decoded: the file may change in between.
        _memcpy(here, sources[i] + np.uint64(entry[0]), np.uint64(size))
        if _crc32c(here, np.uint64(size)) != np.uint32(CRC_RESIDUE):
            continue
        raw = np.uint64(num_bytes[i])
        if compressors[i] == RAW:
            if size - CRC_BYTES == num_bytes[i]:
                _memcpy(targets[i], here, raw)
                sizes[i] = size
        elif (
            _is_sound(scratch, size, num_bytes[i], compressors[i])
            and _decompress(here, targets[i], raw, np.int32(1)) == num_bytes[i]
        ):
            sizes[i] = size


@_compiled
def encode_loop(
    blocks: Any,
    num_bytes: int,
    item_bytes: int,
    shuffle: int,
    level: int,
    name: Any,
    out: Any,
    stops: Any,
) -> int:
    """Compress blocks one behind the other, the crc32c of each after it.

    A block that is equal to the one before it takes no bytes: its chunk is that one's.

    Args:
        blocks: uint64 [n], addresses.
        num_bytes: bytes of each.
        item_bytes: bytes of an item, for `shuffle`.
        shuffle: how the bytes of items are ordered.
        level: how much is tried to make them smaller.
        name: uint8, the compressor's name and a zero.
        out: uint8 [n * (num_bytes + MAX_OVERHEAD + CRC_BYTES)].
        stops: int64 [n], gets where each chunk ends in `out`.

    Returns:
        How many blocks were done, n unless one did not compress.
    """
    start = np.uint64(out.ctypes.data)
    raw = np.uint64(num_bytes)
    stop = 0
    for i in range(len(blocks)):
        # The block before is still in the processor's cache.
        if i > 0 and _memcmp(blocks[i], blocks[i - 1], raw) == 0:
            stops[i] = stop
            continue
        size = _compress(
            np.int32(level),
            np.int32(shuffle),
            np.uint64(item_bytes),
            raw,
            blocks[i],
            start + np.uint64(stop),
            raw + np.uint64(MAX_OVERHEAD),
            np.uint64(name.ctypes.data),
            np.uint64(0),
            np.int32(1),
        )
        if size <= 0:
            return i
        crc = np.int64(_crc32c(start + np.uint64(stop), np.uint64(size)))
        stop += size
        for shift in range(CRC_BYTES):
            out[stop + shift] = (crc >> (8 * shift)) & 0xFF
        stop += CRC_BYTES
        stops[i] = stop
    return len(blocks)


@_compiled
def scatter_loop(
    sources: Any,
    num_bytes: int,
    rows: Any,
    offsets: Any,
    sizes: Any,
    targets: Any,
    scratch: Any,
) -> None:
    """Copy the fields of packed rows to arrays of their own.

    Args:
        sources: uint64 [n], addresses of packed rows.
        num_bytes: bytes of a packed row.
        rows: int64 [n], the row of every array that each goes to.
        offsets: int64 [m], bytes before each field in a packed row.
        sizes: int64 [m], bytes of each field.
        targets: uint64 [m], addresses of the arrays.
        scratch: uint8 [k * num_bytes], used in between. It comes from the
            caller: numba frees an array of the loop's own after its last use, and an
            address is none.
    """
    # Whole rows are collected first: the processor waits for several of them at once.
    here = np.uint64(scratch.ctypes.data)
    rows_at_once = len(scratch) // max(1, num_bytes)
    for start in range(0, len(sources), rows_at_once):
        stop = min(start + rows_at_once, len(sources))
        for i in range(start, stop):
            there = here + np.uint64((i - start) * num_bytes)
            _memcpy(there, sources[i], np.uint64(num_bytes))
        for field in range(len(offsets)):
            for i in range(start, stop):
                _memcpy(
                    targets[field] + np.uint64(rows[i] * sizes[field]),
                    here + np.uint64((i - start) * num_bytes + offsets[field]),
                    np.uint64(sizes[field]),
                )
