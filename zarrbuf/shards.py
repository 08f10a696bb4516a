"""Rows of one array <-> one Zarr shard: encode, share equal chunks, index, check.

Pure: arrays in, bytes out, and back. The layout is Zarr's `sharding_indexed` codec
(https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/): chunks,
then an index of (offset, nbytes) per chunk in C order, then the crc32c of the index.
A chunk ends in the crc32c of the bytes before it, which is checked before the
decompressor sees them. Knows no file and no field name.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import google_crc32c
import numpy as np
import numpy.typing as npt

from zarrbuf.blosc import (
    compress,
    decompress_into,
    memory_at,
    native_decompress,
)
from zarrbuf.errors import FormatError
from zarrbuf.format import AnyArray, ChunkGrid
from zarrbuf.metadata import ArrayInfo, CodecName

Source = bytes | mmap.mmap
"""What chunks are read from: a slice of either is `bytes`, made with one copy."""

_CRC_BYTES: Final = 4
_MISSING: Final = 2**64 - 1
_BLOSC_HEADER: Final = struct.Struct("<4B3I")
_BLOSC_VERSION: Final = 2
_COMPRESSORS: Final = {"lz4": 1, "zstd": 4}
_MIN_CHUNK_BYTES: Final = _BLOSC_HEADER.size + _CRC_BYTES
CRC_RESIDUE: Final = 0x48674BC7
"""The crc32c of any bytes followed by their own crc32c, little-endian."""
_MIN_PARALLEL_BYTES: Final = 1 << 20


crc32c: Final[Callable[[bytes], int]] = google_crc32c.value
"""The crc32c (Castagnoli) of some bytes."""


def _with_crc(data: bytes) -> bytes:
    return data + crc32c(data).to_bytes(_CRC_BYTES, "little")


def encode_chunk(raw: AnyArray, codec: CodecName, level: int) -> bytes:
    """Compress one contiguous block of values and append its crc32c."""
    if codec == "none":
        return _with_crc(raw.tobytes())
    return _with_crc(compress(raw, name=codec, level=level))


def decode_chunk_into(
    source: Source,
    start: int,
    stop: int,
    out: AnyArray,
    *,
    codec: CodecName,
    where: str,
) -> None:
    """Check one stored chunk and decode it into `out`.

    Args:
        source: what holds the chunk; a slice of it is `bytes`.
        start: first byte of the chunk in `source`.
        stop: end of the chunk, after its checksum.
        out: contiguous array of exactly the decoded size.
        codec: how the chunk was compressed.
        where: file and field, for the message.

    Raises:
        FormatError: if the checksum, the sizes in the header or the data are wrong;
            the sizes are checked before any byte is decoded.
    """
    body = source[start : stop - _CRC_BYTES]
    stored = source[stop - _CRC_BYTES : stop]
    if crc32c(body) != int.from_bytes(stored, "little"):
        raise FormatError(f"{where}: a chunk is damaged (its crc32c does not match)")
    if codec == "none":
        if len(body) != out.nbytes:
            raise FormatError(
                f"{where}: a chunk holds {len(body)} bytes; {out.nbytes} are expected"
            )
        out.reshape(-1).view(np.uint8)[:] = np.frombuffer(body, np.uint8)
        return
    _check_blosc_header(body, out.nbytes, codec=codec, where=where)
    try:
        decompress_into(body, out)
    except (RuntimeError, ValueError) as exc:
        raise FormatError(f"{where}: a chunk does not decompress: {exc}") from exc


def decode_chunks_at(
    source: Source,
    ranges: Sequence[Sequence[int]],
    addresses: Sequence[int],
    num_bytes: int,
    *,
    codec: CodecName,
    where: str,
) -> int:
    """Check and decode chunks to places in memory: the hot path of sampling.

    Does what `decode_chunk_into` does for each, with one C call a chunk; whatever is
    not as it should be is left to `decode_chunk_into`, which names it.

    Args:
        source: what holds the chunks.
        ranges: start and stop of each chunk in `source`.
        addresses: where each chunk is decoded to; the caller keeps the memory alive.
        num_bytes: decoded bytes of a chunk, and writable bytes at each address.
        codec: how the chunks were compressed.
        where: file and field, for the message.

    Returns:
        Stored bytes read.

    Raises:
        FormatError: as `decode_chunk_into`.
    """
    native = None if codec == "none" else native_decompress()
    checksum, unpack = crc32c, _BLOSC_HEADER.unpack_from
    compressor = _COMPRESSORS.get(codec)
    num_read = 0
    for (start, stop), address in zip(ranges, addresses, strict=True):
        chunk = source[start:stop]
        num_read += len(chunk)
        if (
            native is not None
            and checksum(chunk) == CRC_RESIDUE
            and len(chunk) >= _MIN_CHUNK_BYTES
        ):
            version, _, flags, _, nbytes, _, cbytes = unpack(chunk)
            if (
                version == _BLOSC_VERSION
                and flags >> 5 == compressor
                and nbytes == num_bytes
                and cbytes == len(chunk) - _CRC_BYTES
                and native(chunk, address, num_bytes, 1) == num_bytes
            ):
                continue
        out = memory_at(address, num_bytes)
        decode_chunk_into(source, start, stop, out, codec=codec, where=where)
    return num_read


def _check_blosc_header(
    body: bytes, num_bytes: int, *, codec: CodecName, where: str
) -> None:
    """Check what c-blosc would trust: lengths, version and compressor."""
    if len(body) < _BLOSC_HEADER.size:
        raise FormatError(f"{where}: a chunk of {len(body)} bytes has no blosc header")
    version, _, flags, _, nbytes, _, cbytes = _BLOSC_HEADER.unpack_from(body)
    if (
        version != _BLOSC_VERSION
        or nbytes != num_bytes
        or cbytes != len(body)
        or flags >> 5 != _COMPRESSORS[codec]
    ):
        raise FormatError(
            f"{where}: a chunk's blosc header claims version {version}, compressor "
            f"{flags >> 5}, {nbytes} bytes from {cbytes}; expected are "
            f"{_BLOSC_VERSION}, {_COMPRESSORS[codec]}, {num_bytes} from {len(body)}"
        )


def encode_shard(
    parts: Sequence[AnyArray], info: ArrayInfo, *, num_threads: int = 1
) -> list[bytes]:
    """Encode an array as one shard.

    Chunks of big fields stand in the order environment, step, stage, so that the
    current and the next frame of a sample are neighbours. A chunk equal to one
    already stored is not stored again: both index entries name the same bytes.

    Args:
        parts: C-contiguous arrays of the stored dtype; two (current, next) for a
            staged field, else one.
        info: shape, grid and codec; the array has at least one element.
        num_threads: threads that compress; more than 1 gained nothing so far.

    Returns:
        The shard in pieces: unique chunks, then the index with its crc32c.
    """
    grid = info.grid
    if is_row_grid(info):
        blocks, order, same = _big_blocks(parts, info)
    else:
        blocks, order = _small_blocks(parts, info), np.arange(grid.num_chunks)
        same = order.copy()
    unique = np.flatnonzero(same == np.arange(len(same)))
    encoded = _encode_all([blocks[i] for i in unique], info, num_threads=num_threads)
    pieces, entries = _place(encoded)
    index = np.empty((grid.num_chunks, 2), "<u8")
    position = np.empty(len(same), np.int64)
    position[unique] = np.arange(len(unique))
    index[order] = entries[position[same]]
    return [*pieces, _with_crc(index.tobytes())]


def is_row_grid(info: ArrayInfo) -> bool:
    """Whether each [t, b] row of an array is a chunk of its own."""
    lead = 3 if info.staged else 2
    return len(info.shape) >= lead and info.grid.inner[:lead] == (1,) * lead


def _big_blocks(
    parts: Sequence[AnyArray], info: ArrayInfo
) -> tuple[list[AnyArray], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Cut a big field into its rows, in stored order.

    Returns:
        Rows; the chunk number of each; for each the position of a row known to be
        equal (itself where none is known). Only the current frame at t + 1 is
        compared with the next frame at t; `_place` finds all other equal chunks.
    """
    num_stages = len(parts)
    lead = 3 if info.staged else 2
    num_rows, num_envs = info.shape[lead - 2 : lead]
    rows = [part.reshape(num_rows, num_envs, -1) for part in parts]
    word = np.uint64 if rows[0].shape[-1] * rows[0].itemsize % 8 == 0 else np.uint8
    words = [row.view(word) for row in rows]
    blocks = [
        row[t, b] for b in range(num_envs) for t in range(num_rows) for row in rows
    ]
    stage, step, env = np.arange(num_stages), np.arange(num_rows), np.arange(num_envs)
    order = (
        stage * (num_rows * num_envs) + (step * num_envs)[:, None] + env[:, None, None]
    ).reshape(-1)
    same = np.arange(len(blocks))
    if num_stages == 2:
        for b in range(num_envs):
            for t in range(num_rows - 1):
                if np.array_equal(words[1][t, b], words[0][t + 1, b]):
                    here = 2 * (b * num_rows + t)
                    same[here + 2] = here + 1
    return blocks, order, same


def _small_blocks(parts: Sequence[AnyArray], info: ArrayInfo) -> list[AnyArray]:
    """Cut a small field into blocks of steps; the last one is filled up with 0."""
    whole = parts[0] if len(parts) == 1 and not info.staged else np.stack(parts)
    axis = 1 if info.staged else 0
    steps = info.grid.inner[axis]
    missing = info.grid.outer[axis] - whole.shape[axis]
    if missing:
        widths = [(0, missing if i == axis else 0) for i in range(whole.ndim)]
        whole = np.pad(whole, widths)
    blocks = np.split(whole, info.grid.counts[axis], axis=axis)
    assert all(block.shape[axis] == steps for block in blocks)
    return [np.ascontiguousarray(block) for block in blocks]


def _encode_all(
    blocks: list[AnyArray], info: ArrayInfo, *, num_threads: int
) -> list[bytes]:
    def encode(some: list[AnyArray]) -> list[bytes]:
        return [encode_chunk(block, info.codec, info.level) for block in some]

    if num_threads == 1 or len(blocks) * info.chunk_bytes < _MIN_PARALLEL_BYTES:
        return encode(blocks)
    size = -(-len(blocks) // num_threads)
    slices = [blocks[i : i + size] for i in range(0, len(blocks), size)]
    with ThreadPoolExecutor(num_threads) as pool:
        return [chunk for part in pool.map(encode, slices) for chunk in part]


def _place(encoded: Sequence[bytes]) -> tuple[list[bytes], npt.NDArray[np.uint64]]:
    """Store each distinct chunk once; return the pieces and an entry per chunk."""
    pieces: list[bytes] = []
    entries = np.empty((len(encoded), 2), "<u8")
    offsets: dict[bytes, int] = {}
    end = 0
    for number, chunk in enumerate(encoded):
        offset = offsets.setdefault(chunk, end)
        if offset == end:
            pieces.append(chunk)
            end += len(chunk)
        entries[number] = offset, len(chunk)
    return pieces, entries


def parse_index(
    source: Source, start: int, stop: int, num_chunks: int, *, where: str
) -> npt.NDArray[np.int64]:
    """Read the index at the end of a shard.

    Args:
        source: what holds the shard.
        start: first byte of the shard in `source`.
        stop: end of the shard.
        num_chunks: chunks the grid has.
        where: file and field, for the message.

    Returns:
        int64 [num_chunks, 2]: start and stop of each chunk, in `source`.

    Raises:
        FormatError: if the index is cut short, damaged, lacks a chunk or names bytes
            outside the shard.
    """
    data_bytes = stop - start - 16 * num_chunks - _CRC_BYTES
    if data_bytes < 0:
        raise FormatError(
            f"{where}: a shard of {stop - start} bytes cannot hold an index of "
            f"{num_chunks} chunks"
        )
    body = source[start + data_bytes : stop - _CRC_BYTES]
    stored = source[stop - _CRC_BYTES : stop]
    if crc32c(body) != int.from_bytes(stored, "little"):
        raise FormatError(f"{where}: the shard index is damaged (crc32c)")
    index = np.frombuffer(body, "<u8").reshape(-1, 2)
    if (index == _MISSING).any():
        raise FormatError(f"{where}: a chunk is missing; every chunk must be present")
    starts, sizes = index[:, 0], index[:, 1]
    if (
        (starts > data_bytes).any()
        or (sizes > data_bytes - starts).any()
        or (sizes <= _CRC_BYTES).any()
    ):
        raise FormatError(
            f"{where}: the shard index names bytes outside the {data_bytes} bytes of "
            "chunks"
        )
    ranges = index.astype(np.int64)
    ranges[:, 1] += ranges[:, 0]
    return ranges + start


def check_coverage(
    ranges: npt.NDArray[np.int64], start: int, stop: int, *, where: str
) -> None:
    """Check that the chunks of a shard neither overlap nor leave a gap.

    Args:
        ranges: int64 [n, 2] as `parse_index` returns them.
        start: first byte of the shard.
        stop: end of the shard, after its index.
        where: file and field, for the message.

    Raises:
        FormatError: if bytes of the shard belong to no chunk, or to two that differ.
    """
    unique = np.unique(ranges, axis=0)
    data_stop = stop - 16 * len(ranges) - _CRC_BYTES
    bounds = np.concatenate([[start], unique[:, 1]])
    if (unique[:, 0] != bounds[:-1]).any() or bounds[-1] != data_stop:
        raise FormatError(f"{where}: chunks of the shard overlap or leave a gap")


def decode_chunks(
    source: Source, ranges: npt.NDArray[np.int64], info: ArrayInfo, *, where: str
) -> AnyArray:
    """Decode all chunks of an array, every one checked.

    Args:
        source: what holds the chunks.
        ranges: int64 [n, 2], start and stop of each chunk, in C order of the grid.
        info: shape, grid and codec.
        where: file and field, for the message.

    Returns:
        The array, of `info.shape` and `info.stored`.

    Raises:
        FormatError: if a chunk is damaged.
    """
    try:
        out = np.empty(info.shape, info.stored)
    except MemoryError as exc:  # a small file can claim a huge array of equal chunks
        raise FormatError(f"{where}: its shape {info.shape} exceeds memory") from exc
    block = np.empty(info.grid.inner, info.stored)
    for (start, stop), slices in zip(ranges.tolist(), _slices(info.grid), strict=True):
        decode_chunk_into(source, start, stop, block, codec=info.codec, where=where)
        target = out[slices]
        target[...] = block[tuple(slice(0, n) for n in target.shape)]
    return out


def _slices(grid: ChunkGrid) -> Iterator[tuple[slice, ...]]:
    for position in np.ndindex(grid.counts):
        yield tuple(
            slice(p * n, (p + 1) * n) for p, n in zip(position, grid.inner, strict=True)
        )
