"""Many chunks at once: pieces of work for several threads, compiled where that works.

Does what `chunks` does one after the other, and leaves to it what goes wrong, so that
errors are the same. Checks every address before a loop gets it. Knows no file.

A 50 KB frame decodes in 8 us; in a Python loop the interpreter takes half as much again
and a second thread waits for its lock more than it works. Compiled with numba (extra
`fast`), the loops in `kernels` call c-blosc and crc32c themselves, and two threads take
little more than half the time of one (`python -m benchmarks.profile`). Where numba or a
function is missing there are no loops, and `chunks` does the same in Python. numba
takes 60 MB and half a second, so that it is loaded when the first batch or trajectory
needs it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
import logging
import math
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from zarrbuf.archive.blosc import MAX_OVERHEAD, shuffle_of
from zarrbuf.archive.chunks import (
    CRC_BYTES,
    ChunkReads,
    IntArray,
    address_of,
    decode_reads_plainly,
    encode_rows_plainly,
    require,
)
from zarrbuf.archive.spec import AnyArray
from zarrbuf.archive.zarr_json import CodecName
from zarrbuf.common.thread_pool import Workers
from zarrbuf.storage.mmap import are_in_memory, will_need

UintArray = npt.NDArray[np.uint64]

MIN_PIECE_BYTES: Final = 1 << 20
"""Raw bytes worth handing to another thread: 0.1 ms of work."""
MAX_ENCODE_BYTES: Final = 8 << 20
"""Raw bytes compressed at once: so much memory each thread may need."""
PROBES: Final = 16
"""Chunks of a batch whose pages are looked for in memory before it is decoded."""
_PIECES_PER_THREAD: Final = 4
_ROWS_AT_ONCE: Final = 32
_LOG: Final = logging.getLogger("zarrbuf")
# Held while numba is loaded or compiles, and over every fork: a child that is forked in
# the middle would wait for ever for locks that a thread of its parent held.
_LOCK: Final = threading.RLock()
os.register_at_fork(
    before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release
)


@functools.cache
def _loops() -> Any:
    """Return the module `kernels`, or None where it cannot be used."""
    with _LOCK:
        try:
            loops = importlib.import_module("zarrbuf.archive.kernels")
        except (ImportError, OSError) as exc:  # not there, or not for this NumPy
            _LOG.info("chunks are decoded in Python, in one thread: %s", exc)
            return None
        return loops if loops.bind() else None


@functools.cache
def have_loops() -> bool:
    """Whether the loops below can be called."""
    return _loops() is not None


def compile_reading() -> float:
    """Compile the loops that batches need, once a process; return the seconds."""
    started = perf_counter()
    _compile_reading()
    return perf_counter() - started


@functools.cache
def _compile_reading() -> None:
    if not have_loops():
        return
    numbers, addresses = np.zeros(0, np.int64), np.zeros(0, np.uint64)
    scratch = np.zeros(1, np.uint8)
    with _LOCK:
        _loops().decode_loop(
            *(addresses, addresses, numbers, addresses),
            *(numbers, numbers, scratch, numbers),
        )
        _loops().scatter_loop(
            addresses, 1, numbers, numbers, numbers, addresses, scratch
        )


@functools.cache
def compile_writing() -> None:
    """Compile the loop that trajectories need, once a process."""
    name = np.frombuffer(b"lz4\0", np.uint8)
    numbers, addresses = np.zeros(0, np.int64), np.zeros(0, np.uint64)
    with _LOCK:
        _loops().encode_loop(
            addresses, 1, 1, 0, 1, name, np.zeros(0, np.uint8), numbers
        )


def decode_loop(*arguments: Any) -> None:
    """Check and decode chunks, see `kernels.decode_loop`."""
    compile_reading()
    _loops().decode_loop(*arguments)


def encode_loop(*arguments: Any) -> int:
    """Compress blocks of memory, see `kernels.encode_loop`."""
    compile_writing()
    done: int = _loops().encode_loop(*arguments)
    return done


def scatter_loop(*arguments: Any) -> None:
    """Copy fields of packed rows, see `kernels.scatter_loop`."""
    compile_reading()
    _loops().scatter_loop(*arguments)


def cut_evenly(sizes: IntArray, num_threads: int) -> list[slice]:
    """Cut items of given sizes, in order, into pieces of about equal size.

    Args:
        sizes: int64 [n], bytes of each item.
        num_threads: threads that share the pieces.

    Returns:
        Slices that cover all items; one alone if more would not pay.
    """
    total = int(sizes.sum())
    most = 1 if num_threads == 1 else num_threads * _PIECES_PER_THREAD
    count = max(1, min(most, total // MIN_PIECE_BYTES))
    marks = np.arange(1, count) * (total / count)
    cuts = np.searchsorted(np.cumsum(sizes), marks)
    bounds = np.unique([0, *cuts.tolist(), len(sizes)]).tolist()
    return [slice(*pair) for pair in itertools.pairwise(bounds)]


@dataclass(frozen=True)
class _Table:
    """Chunks of several fields in columns, as `decode_loop` wants them."""

    entries: UintArray
    sources: UintArray
    source_bytes: IntArray
    targets: UintArray
    num_bytes: IntArray
    compressors: IntArray
    max_size: int
    sizes: IntArray

    @classmethod
    def of(cls, reads: Sequence[ChunkReads]) -> _Table:
        numbers = [shard.numbers for one in reads for shard in one.shards]
        counts = np.concatenate([one.counts for one in reads])
        columns = np.repeat(np.array(numbers, np.int64), counts, axis=0)
        chunks = np.concatenate([one.chunks for one in reads])
        rows = np.concatenate([one.rows for one in reads])
        outs = np.array(
            [(address_of(one.out), one.row_bytes, len(one.out)) for one in reads]
        )
        outs = np.repeat(outs, [len(one.rows) for one in reads], axis=0)
        # No address may lie outside its memory, whatever the caller believes.
        require(all(one.row_bytes * len(one.out) == one.out.nbytes for one in reads))
        require(((chunks >= 0) & (chunks < columns[:, 3])).all())
        require(((rows >= 0) & (rows < outs[:, 2])).all())
        return cls(
            entries=(columns[:, 1] + 16 * chunks).astype(np.uint64),
            sources=columns[:, 0].astype(np.uint64),
            source_bytes=columns[:, 2].copy(),
            targets=(outs[:, 0] + rows * outs[:, 1]).astype(np.uint64),
            num_bytes=outs[:, 1].copy(),
            compressors=columns[:, 5].copy(),
            # A larger chunk is not what it should be: the plain way tells.
            max_size=min(
                int(columns[:, 4].max()),
                int(outs[:, 1].max()) + MAX_OVERHEAD + CRC_BYTES,
            ),
            sizes=np.full(len(rows), -1),
        )

    def take(self, order: IntArray) -> _Table:
        """Return the chunks in another order."""
        columns: dict[str, Any] = {
            name: value[order]
            for name, value in vars(self).items()
            if isinstance(value, np.ndarray)
        }
        return dataclasses.replace(self, **columns)

    def decode(self, piece: slice) -> None:
        """Decode some of the chunks; `sizes` tells which were right."""
        decode_loop(
            self.entries[piece],
            self.sources[piece],
            self.source_bytes[piece],
            self.targets[piece],
            self.num_bytes[piece],
            self.compressors[piece],
            np.empty(self.max_size, np.uint8),
            self.sizes[piece],
        )


def decode_reads(
    reads: Sequence[ChunkReads], workers: Workers, *, is_cold: bool = False
) -> int:
    """Check and decode chunks to their rows.

    Args:
        reads: chunks; no two are decoded to one row.
        workers: threads that share the work.
        is_cold: whether chunks have to be read from a device, so that the system is
            asked for some while others are decoded; if not, some are looked for.

    Returns:
        Stored bytes of the chunks.

    Raises:
        FormatError: if a chunk is damaged or holds another size than a row; the first
            in order. Rows may have been written.
    """
    reads = [one for one in reads if len(one.chunks)]
    if reads and not is_cold:
        is_cold = not are_in_memory(reads[0].some_addresses(PROBES))
    ranges = _stored_ranges(reads) if is_cold else None
    if not reads or not have_loops():
        if ranges is not None:
            will_need(ranges)
        return decode_reads_plainly(reads)
    table = _Table.of(reads)
    if ranges is not None:
        # As they lie on disk: the current and the next frame are neighbours.
        order = np.argsort(ranges[:, 0])
        table, ranges = table.take(order), ranges[order]
    _decode_table(table, ranges, workers, keep=reads)
    undone = np.flatnonzero(table.sizes < 0)
    if not len(undone):
        return int(table.sizes.sum())
    if ranges is not None:
        undone = np.sort(order[undone])
    starts = np.cumsum([0, *(len(one.chunks) for one in reads)])
    for number in undone.tolist():
        which = int(np.searchsorted(starts, number, side="right")) - 1
        reads[which].decode(number - int(starts[which]))
    return int(np.diff(_stored_ranges(reads)).sum())


def _stored_ranges(reads: Sequence[ChunkReads]) -> IntArray:
    nothing = np.zeros((0, 2), np.int64)
    return np.concatenate([nothing, *(one.stored_ranges() for one in reads)])


def _decode_table(
    table: _Table, ranges: IntArray | None, workers: Workers, *, keep: Any
) -> None:
    """Decode all chunks of a table, in pieces.

    Args:
        table: the chunks.
        ranges: addresses of the stored chunks where these have to be asked for; that
            is done for a piece while the ones before it are decoded.
        workers: threads that share the pieces.
        keep: what owns the memory, for a thread that is left behind.
    """
    num_threads = workers.num_threads
    pieces = cut_evenly(table.num_bytes, num_threads if ranges is None else 4)
    ahead = num_threads

    def decode(number: int, keep: Any = keep) -> None:
        if ranges is not None and number + ahead < len(pieces):
            will_need(ranges[pieces[number + ahead]])
        table.decode(pieces[number])

    if ranges is not None:
        will_need(ranges[: pieces[min(ahead, len(pieces)) - 1].stop])
    workers.run(decode, range(len(pieces)))


def encode_rows(
    parts: Sequence[AnyArray], codec: CodecName, level: int, *, workers: Workers
) -> list[bytes]:
    """Do what `encode_rows_plainly` does, with several threads; the bytes are equal."""
    row_bytes = parts[0].shape[2] * parts[0].itemsize
    if codec == "none" or not have_loops():
        return encode_rows_plainly(parts, codec, level)
    blocks = _stored_addresses(parts, row_bytes)
    encoded: dict[int, list[bytes] | None] = {}

    def encode(piece: slice, keep: Any = parts) -> None:
        encoded[piece.start] = _encode_piece(blocks[piece], keep[0], codec, level)

    workers.run(encode, _encode_pieces(len(blocks), row_bytes, workers.num_threads))
    found = [encoded[start] for start in sorted(encoded)]
    if any(piece is None for piece in found):  # the plain way tells what is wrong
        return encode_rows_plainly(parts, codec, level)
    return [chunk for piece in found for chunk in piece or ()]


def _stored_addresses(parts: Sequence[AnyArray], row_bytes: int) -> UintArray:
    """Return the address of each row in the order of `chunks.in_stored_order`."""
    num_steps, num_envs = parts[0].shape[:2]
    first = np.array([address_of(part) for part in parts])
    rows = np.arange(num_steps * num_envs).reshape(num_steps, num_envs).T
    addresses = rows[:, :, None] * row_bytes + first
    flat: UintArray = addresses.reshape(-1).astype(np.uint64)
    return flat


def _encode_pieces(count: int, row_bytes: int, num_threads: int) -> list[slice]:
    """Cut rows into pieces that need little memory and keep all threads at work."""
    total = count * row_bytes
    threads = num_threads if total >= MIN_PIECE_BYTES * num_threads else 1
    size = max(1, min(-(-count // threads), MAX_ENCODE_BYTES // row_bytes))
    return [slice(at, min(at + size, count)) for at in range(0, count, size)]


def _encode_piece(
    blocks: UintArray, like: AnyArray, codec: CodecName, level: int
) -> list[bytes] | None:
    """Encode rows; None if one did not compress."""
    row_bytes = like.shape[2] * like.itemsize
    out = np.empty(len(blocks) * (row_bytes + MAX_OVERHEAD + CRC_BYTES), np.uint8)
    stops = np.empty(len(blocks), np.int64)
    name = np.frombuffer(codec.encode() + b"\0", np.uint8)
    shuffle = shuffle_of(like)
    done = encode_loop(
        blocks, row_bytes, like.itemsize, shuffle, level, name, out, stops
    )
    if done < len(blocks):
        return None
    encoded: list[bytes] = []
    start = 0
    for stop in stops.tolist():
        encoded.append(out[start:stop].tobytes() if stop > start else encoded[-1])
        start = stop
    return encoded


def scatter_rows(
    sources: UintArray,
    num_bytes: int,
    offsets: Sequence[int],
    outs: Sequence[AnyArray],
    rows: IntArray,
) -> None:
    """Copy the fields of packed rows to arrays of their own.

    Args:
        sources: uint64 [n], addresses of packed rows.
        num_bytes: bytes of a packed row.
        offsets: bytes before each field in a packed row.
        outs: C-contiguous array [m, ...] for each field; a row of it is what a packed
            row has at its offset.
        rows: int64 [n], where each packed row goes.
    """
    require(not len(rows) or (rows.min() >= 0 and rows.max() < min(map(len, outs))))
    sizes = [out.itemsize * math.prod(out.shape[1:]) for out in outs]
    pairs = zip(offsets, sizes, strict=True)
    require(all(at >= 0 and at + size <= num_bytes for at, size in pairs))
    scatter_loop(
        sources,
        num_bytes,
        rows,
        np.array(offsets, np.int64),
        np.array(sizes, np.int64),
        np.array([address_of(out) for out in outs], np.uint64),
        np.empty(_ROWS_AT_ONCE * max(1, num_bytes), np.uint8),
    )
