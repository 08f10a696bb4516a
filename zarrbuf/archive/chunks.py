"""One chunk, and chunks one after the other: compress, check, decompress.

A chunk ends in the crc32c of the bytes before it, which is checked before the
decompressor sees them. This is the slow, obvious way; `decode` does the same for
many chunks at once. Pure; knows no shard, no file and no field name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import google_crc32c
import numpy as np
import numpy.typing as npt

from zarrbuf.archive.blosc import (
    COMPRESSORS,
    HEADER,
    MAX_OVERHEAD,
    VERSION,
    compress,
    decompress_into,
)
from zarrbuf.archive.spec import AnyArray
from zarrbuf.archive.zarr_json import CodecName
from zarrbuf.errors import FormatError

RAW: Final = -1
"""Stands for "not compressed" where the number of a compressor is meant."""
Source = bytes | memoryview
"""What chunks are read from: bytes in memory or a mapped file."""
IntArray = npt.NDArray[np.int64]

CRC_BYTES: Final = 4

crc32c: Final[Callable[[bytes], int]] = google_crc32c.value
"""The crc32c (Castagnoli) of some bytes."""


def with_crc(data: bytes) -> bytes:
    """Return data followed by its crc32c."""
    return data + crc32c(data).to_bytes(CRC_BYTES, "little")


def encode_chunk(raw: AnyArray, codec: CodecName, level: int) -> bytes:
    """Compress one contiguous block of values and append its crc32c."""
    if codec == "none":
        return with_crc(raw.tobytes())
    return with_crc(compress(raw, name=codec, level=level))


def in_stored_order(parts: Sequence[AnyArray]) -> list[AnyArray]:
    """Return the rows of a big field as a shard keeps them: environment, step, stage.

    Args:
        parts: arrays [T, B, n], one a stage.
    """
    num_steps, num_envs = parts[0].shape[:2]
    return [
        part[t, b] for b in range(num_envs) for t in range(num_steps) for part in parts
    ]


def encode_rows_plainly(
    parts: Sequence[AnyArray], codec: CodecName, level: int
) -> list[bytes]:
    """Compress the rows of a big field.

    A row equal to the one before it is not compressed again: the current frame of a
    step is the next frame of the step before it, its neighbour in the shard.

    Args:
        parts: C-contiguous arrays [T, B, n], one a stage.
        codec: how rows are compressed.
        level: how much is tried to make them smaller.

    Returns:
        A chunk a row, in stored order; equal neighbours are one object.
    """
    rows = in_stored_order(parts)
    raw = in_stored_order([part.view(np.uint8) for part in parts])
    chunks: list[bytes] = []
    for number, row in enumerate(rows):
        if number and np.array_equal(raw[number], raw[number - 1]):
            chunks.append(chunks[-1])
        else:
            chunks.append(encode_chunk(row, codec, level))
    return chunks


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
        source: what holds the chunk.
        start: first byte of the chunk in `source`.
        stop: end of the chunk, after its checksum.
        out: contiguous array of exactly the decoded size.
        codec: how the chunk was compressed.
        where: file and field, for the message.

    Raises:
        FormatError: if the checksum, the sizes in the header or the data are wrong;
            the sizes are checked before any byte is decoded.
    """
    most = out.nbytes + MAX_OVERHEAD + CRC_BYTES
    if stop - start > most:
        raise FormatError(
            f"{where}: a chunk takes {stop - start} bytes; {out.nbytes} raw ones take "
            f"at most {most}"
        )
    body = bytes(source[start : stop - CRC_BYTES])
    stored = source[stop - CRC_BYTES : stop]
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


def _check_blosc_header(
    body: bytes, num_bytes: int, *, codec: CodecName, where: str
) -> None:
    """Check what c-blosc would trust: lengths, version and compressor."""
    if len(body) < HEADER.size:
        raise FormatError(f"{where}: a chunk of {len(body)} bytes has no blosc header")
    version, _, flags, _, nbytes, _, cbytes = HEADER.unpack_from(body)
    if (
        version != VERSION
        or nbytes != num_bytes
        or cbytes != len(body)
        or flags >> 5 != COMPRESSORS[codec]
    ):
        raise FormatError(
            f"{where}: a chunk's blosc header claims version {version}, compressor "
            f"{flags >> 5}, {nbytes} bytes from {cbytes}; expected are "
            f"{VERSION}, {COMPRESSORS[codec]}, {num_bytes} from {len(body)}"
        )


@dataclass(frozen=True, eq=False)
class Shard:
    """The shard of one array, opened: where its chunks lie.

    Attributes:
        source: what holds the chunks.
        ranges: int64 [num_chunks, 2], start and stop of each in `source`.
        num_bytes: what each decodes to.
        codec: how they were compressed.
        where: file and field, for messages.
    """

    source: Source
    ranges: IntArray
    num_bytes: int
    codec: CodecName
    where: str

    @functools.cached_property
    def numbers(self) -> tuple[int, ...]:
        """What a loop over chunks of many shards has to know of this one.

        Returns:
            Addresses of `source` and `ranges`, bytes of `source`, rows of `ranges`,
            bytes of the largest chunk as it is stored, number of the compressor.
        """
        sizes = self.ranges[:, 1] - self.ranges[:, 0]
        return (
            address_of(np.frombuffer(self.source, np.uint8)),
            address_of(self.ranges),
            len(self.source),
            len(self.ranges),
            int(np.clip(sizes, 0, len(self.source)).max(initial=0)),
            COMPRESSORS.get(self.codec, RAW),
        )

    def decode_into(self, chunk: int, out: AnyArray) -> None:
        """Check one chunk and decode it into a contiguous array of its size.

        Raises:
            FormatError: if it is damaged or of another size.
        """
        start, stop = self.ranges[chunk].tolist()
        decode_chunk_into(
            self.source, start, stop, out, codec=self.codec, where=self.where
        )


@dataclass(frozen=True, eq=False)
class ChunkReads:
    """Chunks of one field, from the shards of some trajectories, for rows of a batch.

    Attributes:
        shards: one a trajectory.
        counts: int64 [len(shards)], chunks read from each.
        chunks: int64 [n], numbers of chunks, those of the first shard first.
        out: C-contiguous array [m, ...] of rows; those named are written.
        rows: int64 [n], the row of `out` that each chunk is decoded to.
        row_bytes: bytes of a row of `out`, which is what a chunk has to hold.
    """

    shards: Sequence[Shard]
    counts: IntArray
    chunks: IntArray
    out: AnyArray
    rows: IntArray
    row_bytes: int

    def by_shard(self) -> Iterator[tuple[Shard, range]]:
        """Yield each shard with the positions in `chunks` that are read from it."""
        start = 0
        for shard, count in zip(self.shards, self.counts.tolist(), strict=True):
            yield shard, range(start, start + count)
            start += count

    def decode(self, number: int) -> None:
        """Check one of the chunks and decode it; raises what `decode_into` does."""
        (shard,) = (shard for shard, numbers in self.by_shard() if number in numbers)
        self.decode_from(shard, number)

    def decode_from(self, shard: Shard, number: int) -> None:
        """Do that with a chunk of `shard`."""
        row = int(self.rows[number])
        shard.decode_into(int(self.chunks[number]), self.out[row : row + 1])

    def some_addresses(self, count: int) -> list[int]:
        """Return where some of the stored chunks start, evenly picked, at most `count`.

        Returns:
            Addresses in memory.
        """
        step = -(-len(self.chunks) // count) or 1
        numbers = np.arange(0, len(self.chunks), step)
        which = np.searchsorted(np.cumsum(self.counts), numbers, side="right")
        pairs = zip(which.tolist(), self.chunks[numbers].tolist(), strict=True)
        return [
            self.shards[shard].numbers[0] + int(self.shards[shard].ranges[chunk, 0])
            for shard, chunk in pairs
        ]

    def stored_ranges(self) -> IntArray:
        """Return the addresses where the stored chunks start and stop, int64 [n, 2]."""
        found = [np.zeros((0, 2), np.int64)]
        for shard, numbers in self.by_shard():
            chunks = self.chunks[numbers.start : numbers.stop]
            found.append(shard.ranges[chunks] + shard.numbers[0])
        return np.concatenate(found)


def require(condition: object) -> None:
    """Make sure that no address lies outside its memory, whatever a caller believes.

    No `assert`, which `python -O` leaves out.

    Raises:
        AssertionError: if one would.
    """
    if not condition:
        raise AssertionError("an address would lie outside its memory")


def address_of(array: AnyArray) -> int:
    """Return the address of a C-contiguous array's first byte."""
    require(array.flags.c_contiguous)
    return int(array.ctypes.data)


def decode_reads_plainly(reads: Sequence[ChunkReads]) -> int:
    """Check and decode chunks, one after the other.

    Returns:
        Stored bytes of the chunks.

    Raises:
        FormatError: if one is damaged or holds another size than a row.
    """
    num_stored = 0
    for one in reads:
        for shard, numbers in one.by_shard():
            for number in numbers:
                one.decode_from(shard, number)
        num_stored += int(np.diff(one.stored_ranges()).sum())
    return num_stored
