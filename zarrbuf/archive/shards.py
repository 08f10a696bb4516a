"""Rows of one array <-> one Zarr shard: encode, share equal chunks, index, check.

Pure: arrays in, bytes out, and back. The layout is Zarr's `sharding_indexed` codec
(https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/): chunks,
then an index of (offset, nbytes) per chunk in C order, then the crc32c of the index.
What is in a chunk is for `chunks`. Knows no file and no field name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from zarrbuf.archive.chunks import (
    CRC_BYTES,
    Shard,
    Source,
    crc32c,
    encode_chunk,
    with_crc,
)
from zarrbuf.archive.spec import AnyArray, ChunkGrid
from zarrbuf.archive.zarr_json import ArrayInfo, CodecName
from zarrbuf.errors import FormatError

EncodeRows = Callable[[Sequence[AnyArray], CodecName, int], list[bytes]]
"""`chunks.encode_rows_plainly`, or what does the same in less time."""

IntArray = npt.NDArray[np.int64]

_MISSING: Final = 2**64 - 1


def encode_shard(
    parts: Sequence[AnyArray], info: ArrayInfo, *, encode_rows: EncodeRows
) -> list[bytes]:
    """Encode an array as one shard.

    Chunks of big fields stand in the order environment, step, stage, so that the
    current and the next frame of a sample are neighbours. A chunk equal to one
    already stored is not stored again: both index entries name the same bytes.

    Args:
        parts: C-contiguous arrays of the stored dtype; two (current, next) for a
            staged field, else one.
        info: shape, grid and codec; the array has at least one element.
        encode_rows: compresses the rows of a big field.

    Returns:
        The shard in pieces: unique chunks, then the index with its crc32c.
    """
    if is_row_grid(info):
        lead = info.shape[1:3] if info.staged else info.shape[:2]
        rows = [part.reshape(*lead, -1) for part in parts]
        encoded = encode_rows(rows, info.codec, info.level)
        order = _stored_order(len(parts), *lead)
    else:
        blocks = _small_blocks(parts, info)
        encoded = [encode_chunk(block, info.codec, info.level) for block in blocks]
        order = np.arange(len(blocks))
    pieces, entries = _place(encoded)
    index = np.empty((info.grid.num_chunks, 2), "<u8")
    index[order] = entries
    return [*pieces, with_crc(index.tobytes())]


def is_row_grid(info: ArrayInfo) -> bool:
    """Whether each [t, b] row of an array is a chunk of its own."""
    lead = 3 if info.staged else 2
    return len(info.shape) >= lead and info.grid.inner[:lead] == (1,) * lead


def _stored_order(num_stages: int, num_rows: int, num_envs: int) -> IntArray:
    """Return the chunk number, in C order of the grid, of each row as it is stored."""
    grid = np.arange(num_stages * num_rows * num_envs)
    return grid.reshape(num_stages, num_rows, num_envs).transpose(2, 1, 0).reshape(-1)


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


def _place(encoded: Sequence[bytes]) -> tuple[list[bytes], npt.NDArray[np.uint64]]:
    """Store each distinct chunk once; return the pieces and an entry per chunk."""
    offsets: dict[bytes, int] = {}
    entries: list[tuple[int, int]] = []
    end = 0
    for chunk in encoded:
        offset = offsets.setdefault(chunk, end)
        if offset == end:
            end += len(chunk)
        entries.append((offset, len(chunk)))
    return list(offsets), np.array(entries, np.uint64)


def index_bytes(num_chunks: int) -> int:
    """Return what the index of a shard takes at its end."""
    return 16 * num_chunks + CRC_BYTES


def parse_index(
    source: Source, start: int, stop: int, num_chunks: int, *, where: str
) -> IntArray:
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
    data_bytes = stop - start - index_bytes(num_chunks)
    if data_bytes < 0:
        raise FormatError(
            f"{where}: a shard of {stop - start} bytes cannot hold an index of "
            f"{num_chunks} chunks"
        )
    body = bytes(source[start + data_bytes : stop - CRC_BYTES])
    stored = source[stop - CRC_BYTES : stop]
    if crc32c(body) != int.from_bytes(stored, "little"):
        raise FormatError(f"{where}: the shard index is damaged (crc32c)")
    index = np.frombuffer(body, "<u8").reshape(-1, 2)
    if (index == _MISSING).any():
        raise FormatError(f"{where}: a chunk is missing; every chunk must be present")
    starts, sizes = index[:, 0], index[:, 1]
    if (
        (starts > data_bytes).any()
        or (sizes > data_bytes - starts).any()
        or (sizes <= CRC_BYTES).any()
    ):
        raise FormatError(
            f"{where}: the shard index names bytes outside the {data_bytes} bytes of "
            "chunks"
        )
    ranges = index.astype(np.int64)
    ranges[:, 1] += ranges[:, 0]
    return ranges + start


def check_coverage(ranges: IntArray, start: int, stop: int, *, where: str) -> None:
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
    data_stop = stop - index_bytes(len(ranges))
    bounds = np.concatenate([[start], unique[:, 1]])
    if (unique[:, 0] != bounds[:-1]).any() or bounds[-1] != data_stop:
        raise FormatError(f"{where}: chunks of the shard overlap or leave a gap")


def decode_chunks(shard: Shard, info: ArrayInfo) -> AnyArray:
    """Decode all chunks of an array, every one checked.

    Args:
        shard: where its chunks lie, in C order of the grid.
        info: shape, grid and codec.

    Returns:
        The array, of `info.shape` and `info.stored`.

    Raises:
        FormatError: if a chunk is damaged.
    """
    try:
        out = np.empty(info.shape, info.stored)
    except MemoryError as exc:  # a small file can claim a huge array of equal chunks
        raise FormatError(
            f"{shard.where}: its shape {info.shape} exceeds memory"
        ) from exc
    block = np.empty(info.grid.inner, info.stored)
    for chunk, slices in enumerate(_slices(info.grid)):
        shard.decode_into(chunk, block)
        target = out[slices]
        target[...] = block[tuple(slice(0, n) for n in target.shape)]
    return out


def _slices(grid: ChunkGrid) -> Iterator[tuple[slice, ...]]:
    for position in np.ndindex(grid.counts):
        yield tuple(
            slice(p * n, (p + 1) * n) for p, n in zip(position, grid.inner, strict=True)
        )
