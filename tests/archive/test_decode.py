"""Many chunks at once: the same values, bytes and errors as one after the other."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import re
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numcodecs import blosc
from support.batches import leaves
from support.trajectories import assert_same_value, make_trajectory

from zarrbuf import TrajectoryReplayBuffer
from zarrbuf.archive import chunks
from zarrbuf.archive import decode as decoding
from zarrbuf.archive.chunks import ChunkReads, IntArray, Shard, crc32c, encode_chunk
from zarrbuf.archive.decode import have_loops
from zarrbuf.archive.spec import AnyArray
from zarrbuf.archive.zarr_json import CODECS, CodecName
from zarrbuf.common.thread_pool import Workers
from zarrbuf.errors import FormatError

CODEC_NAMES = sorted(CODECS)
COMPRESSED: list[CodecName] = ["lz4", "zstd"]
WORKERS = {number: Workers(number) for number in range(1, 5)}
HAVE_NUMBA = importlib.util.find_spec("numba") is not None
CANARY_BYTES = 4096
CANARY = 0xA5

needs_loops = pytest.mark.skipif(not HAVE_NUMBA, reason="numba is not installed")


@contextmanager
def constants(**values: int) -> Iterator[None]:
    """Set constants of `decode`, so that little data makes many pieces."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(decoding, name, value)
        yield


# Whether loops are used at all.


def test_loops_are_used_where_numba_is_installed() -> None:
    assert have_loops() is HAVE_NUMBA


@needs_loops
@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_chunks_that_are_sound_are_not_decoded_the_plain_way(
    codec: CodecName, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        pytest.fail("decoded the plain way")

    shard = shard_of(rows_of(3, 100, "random"), codec)
    target = Target.of(3, (100,), "uint8")
    reads = [reads_of([shard], [[0, 1, 2]], target, [2, 0, 1])]
    monkeypatch.setattr(ChunkReads, "decode", refuse)
    monkeypatch.setattr(decoding, "decode_reads_plainly", refuse)
    decoding.decode_reads(reads, WORKERS[1])
    assert (target.out[[2, 0, 1]] == rows_of(3, 100, "random")).all()


@needs_loops
@pytest.mark.parametrize("codec", COMPRESSED)
def test_rows_are_not_encoded_the_plain_way(
    codec: CodecName, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [rows_of(6, 500, "random").reshape(3, 2, 500)]
    expected = chunks.encode_rows_plainly(parts, codec, 5)
    monkeypatch.setattr(
        decoding, "encode_rows_plainly", lambda *_: pytest.fail("plain")
    )
    assert decoding.encode_rows(parts, codec, 5, workers=WORKERS[2]) == expected


# Decoding.


def rows_of(count: int, num_bytes: int, kind: str, seed: int = 0) -> AnyArray:
    """Return uint8 [count, num_bytes]: "random" bytes, "few" values, or "zero"."""
    rng = np.random.default_rng(seed)
    most = {"random": 256, "few": 3, "zero": 1}[kind]
    rows: AnyArray = rng.integers(0, most, (count, num_bytes), dtype=np.uint8)
    return rows


def shard_of(
    rows: AnyArray, codec: CodecName, *, lead: int = 0, mapped: bool = False
) -> Shard:
    """Return a shard of rows [n, ...], `lead` other bytes before it."""
    encoded = [encode_chunk(row, codec, CODECS[codec]) for row in rows]
    return opened(encoded, codec, rows[:1].nbytes, lead=lead, mapped=mapped)


def opened(
    encoded: Sequence[bytes],
    codec: CodecName,
    num_bytes: int,
    *,
    lead: int = 0,
    mapped: bool = False,
) -> Shard:
    """Return the shard of some chunks as they are stored."""
    stops = lead + np.cumsum([0, *map(len, encoded)])
    ranges = np.stack([stops[:-1], stops[1:]], axis=1).astype(np.int64)
    source = bytes(lead) + b"".join(encoded)
    return Shard(
        memoryview(bytearray(source)) if mapped else source,
        np.ascontiguousarray(ranges),
        num_bytes,
        codec,
        f"some.zarr.zip: field {codec!r}",
    )


@dataclass
class Target:
    """Rows to decode to, in the middle of memory that nobody may write to."""

    memory: AnyArray
    out: AnyArray

    @classmethod
    def of(cls, count: int, shape: tuple[int, ...], dtype: str) -> Target:
        size = count * int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = np.full(size + 2 * CANARY_BYTES, CANARY, np.uint8)
        inner = memory[CANARY_BYTES : CANARY_BYTES + size]
        return cls(memory, inner.view(dtype).reshape(count, *shape))

    def check(self, named: Sequence[int]) -> None:
        """Check that only the named rows were written to."""
        assert (self.memory[:CANARY_BYTES] == CANARY).all()
        assert (self.memory[-CANARY_BYTES:] == CANARY).all()
        others = np.setdiff1d(np.arange(len(self.out)), named)
        assert (self.bytes_of_rows()[others] == CANARY).all()

    def bytes_of_rows(self) -> AnyArray:
        rows: AnyArray = self.memory[CANARY_BYTES:-CANARY_BYTES]
        size = math.prod(self.out.shape[1:]) * self.out.itemsize
        return rows.reshape(len(self.out), size)


def reads_of(
    shards: Sequence[Shard],
    picks: Sequence[Sequence[int]],
    target: Target,
    rows: Sequence[int],
) -> ChunkReads:
    """Return the reads of some chunks of each shard to rows of a target."""
    numbers = [number for pick in picks for number in pick]
    return ChunkReads(
        shards,
        np.array([len(pick) for pick in picks], np.int64),
        np.array(numbers, np.int64),
        target.out,
        np.array(rows, np.int64),
        target.out.itemsize * math.prod(target.out.shape[1:]),
    )


@dataclass
class FieldCase:
    """Reads of one field, drawn; made anew for each way to decode them."""

    seed: int
    kind: str
    dtype: str
    shape: tuple[int, ...]
    codecs: list[CodecName]
    picks: list[list[int]]
    lead: int
    mapped: bool
    num_spare: int

    @property
    def total(self) -> int:
        return sum(map(len, self.picks))

    def rows(self) -> list[int]:
        order = np.random.default_rng(self.seed).permutation(
            self.total + self.num_spare
        )
        found: list[int] = order[: self.total].tolist()
        return found

    def values(self, number: int) -> AnyArray:
        """Return the rows of one shard, as bytes."""
        size = int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize
        return rows_of(4, size, self.kind, self.seed + number)

    def make(self) -> tuple[ChunkReads, Target]:
        target = Target.of(self.total + self.num_spare, self.shape, self.dtype)
        shards = [
            shard_of(
                self.values(number).view(self.dtype).reshape(4, *self.shape),
                codec,
                lead=self.lead,
                mapped=self.mapped,
            )
            for number, codec in enumerate(self.codecs)
        ]
        return reads_of(shards, self.picks, target, self.rows()), target

    def expected(self) -> AnyArray:
        """Return the rows that are named, as bytes."""
        return np.concatenate(
            [self.values(number)[pick] for number, pick in enumerate(self.picks)]
        )


@st.composite
def field_cases(draw: st.DrawFn) -> FieldCase:
    count = draw(st.integers(1, 3))
    shapes = ((33,), (4, 5, 3), (257,), (1, 40), (1030,))
    return FieldCase(
        seed=draw(st.integers(0, 2**32 - 1)),
        kind=draw(st.sampled_from(("random", "few", "zero"))),
        dtype=draw(st.sampled_from(("uint8", "int16", "float32", "complex128"))),
        shape=draw(st.sampled_from(shapes)),
        codecs=[draw(st.sampled_from(CODEC_NAMES)) for _ in range(count)],
        picks=[draw(st.lists(st.integers(0, 3), max_size=9)) for _ in range(count)],
        lead=draw(st.integers(0, 9)),
        mapped=draw(st.booleans()),
        num_spare=draw(st.integers(0, 3)),
    )


@settings(deadline=None, max_examples=150)
@given(
    st.lists(field_cases(), max_size=4),
    st.sampled_from(sorted(WORKERS)),
    st.sampled_from((1, 100, 1000, 1 << 20)),
    st.booleans(),
)
@example([], 2, 1, True)
def test_chunks_decode_as_they_do_one_after_the_other(
    cases: list[FieldCase], num_threads: int, piece_bytes: int, is_cold: bool
) -> None:
    plain = [case.make() for case in cases]
    at_once = [case.make() for case in cases]
    with constants(MIN_PIECE_BYTES=piece_bytes):
        num_stored = decoding.decode_reads(
            [reads for reads, _ in at_once], WORKERS[num_threads], is_cold=is_cold
        )
    assert num_stored == chunks.decode_reads_plainly([reads for reads, _ in plain])
    for case, (_, a), (_, b) in zip(cases, plain, at_once, strict=True):
        assert a.memory.tobytes() == b.memory.tobytes()
        b.check(case.rows())
        assert (b.bytes_of_rows()[case.rows()] == case.expected()).all()


@pytest.mark.parametrize("num_threads", [1, 2])
def test_cold_chunks_are_asked_for_once_before_they_are_decoded(
    num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = shard_of(rows_of(40, 300, "random"), "none")
    target = Target.of(40, (300,), "uint8")
    reads = reads_of([shard], [list(range(39, -1, -1))], target, list(range(40)))
    asked: list[tuple[int, int]] = []
    decoded = 0

    def note(ranges: IntArray) -> None:
        asked.extend(map(tuple, ranges.tolist()))

    def decode(entries: Any, *rest: Any) -> None:
        nonlocal decoded
        decoded += len(entries)
        assert decoded <= len(asked)
        decode_loop(entries, *rest)

    decode_loop = decoding.decode_loop
    monkeypatch.setattr(decoding, "will_need", note)
    if have_loops():
        monkeypatch.setattr(decoding, "decode_loop", decode)
    with constants(MIN_PIECE_BYTES=1000):
        decoding.decode_reads([reads], WORKERS[num_threads], is_cold=True)
        assert sorted(asked) == sorted(map(tuple, reads.stored_ranges().tolist()))
        assert not have_loops() or decoded == 40
        asked.clear()
        monkeypatch.setattr(decoding, "decode_loop", decode_loop)
        decoding.decode_reads([reads], Workers(1))
        assert not asked


def test_stored_bytes_are_those_of_the_chunks() -> None:
    shards = [shard_of(rows_of(4, 200, "few", seed), "lz4") for seed in range(2)]
    target = Target.of(4, (200,), "uint8")
    reads = reads_of(shards, [[3, 3], [0, 1]], target, range(4))
    sizes = [np.diff(shard.ranges)[:, 0] for shard in shards]
    expected = 2 * sizes[0][3] + sizes[1][0] + sizes[1][1]
    assert decoding.decode_reads([reads], WORKERS[2]) == expected
    assert chunks.decode_reads_plainly([reads]) == expected


def test_threads_share_the_chunks_of_all_fields() -> None:
    made = [
        FieldCase(
            n, "few", "uint8", (2000,), ["lz4", "zstd"], [[0, 1] * 20] * 2, 3, True, 1
        )
        for n in range(3)
    ]
    with constants(MIN_PIECE_BYTES=4000):
        for _ in range(5):
            built = [case.make() for case in made]
            decoding.decode_reads([reads for reads, _ in built], WORKERS[4])
            for case, (_, target) in zip(made, built, strict=True):
                target.check(case.rows())
                assert (target.bytes_of_rows()[case.rows()] == case.expected()).all()


@needs_loops
def test_what_the_loop_leaves_undone_is_done_the_plain_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shards = [shard_of(rows_of(4, 90, "few", seed), "zstd") for seed in range(2)]
    target = Target.of(7, (90,), "uint8")
    reads = reads_of(shards, [[3, 0], [1, 2, 2]], target, [6, 0, 2, 3, 4])

    def leave(*columns: Any) -> None:
        columns[-1][:] = -1

    monkeypatch.setattr(decoding, "decode_loop", leave)
    decoding.decode_reads([reads_of([], [], target, []), reads], WORKERS[2])
    target.check([6, 0, 2, 3, 4])
    for row, (seed, number) in zip(
        (6, 0, 2, 3, 4), ((0, 3), (0, 0), (1, 1), (1, 2), (1, 2)), strict=True
    ):
        assert (target.out[row] == rows_of(4, 90, "few", seed)[number]).all()


@needs_loops
@pytest.mark.parametrize(
    ("picks", "rows"),
    [([[4]], [0]), ([[-1]], [0]), ([[2**40]], [0]), ([[0]], [3]), ([[0]], [-1])],
)
def test_no_loop_gets_an_address_outside_its_memory(
    picks: list[list[int]], rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = shard_of(rows_of(4, 90, "few"), "lz4")
    target = Target.of(3, (90,), "uint8")
    monkeypatch.setattr(decoding, "decode_loop", lambda *_: pytest.fail("called"))
    with pytest.raises((AssertionError, IndexError)):
        decoding.decode_reads([reads_of([shard], picks, target, rows)], WORKERS[1])
    target.check([])


@needs_loops
def test_no_loop_gets_rows_of_another_size_than_their_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shard = shard_of(rows_of(4, 90, "few"), "lz4")
    target = Target.of(3, (45,), "uint8")
    reads = reads_of([shard], [[0]], target, [2])
    reads = dataclasses.replace(reads, row_bytes=shard.num_bytes)
    monkeypatch.setattr(decoding, "decode_loop", lambda *_: pytest.fail("called"))
    with pytest.raises(AssertionError, match="outside its memory"):
        decoding.decode_reads([reads], WORKERS[1])
    target.check([])


# Damage.

NUM_VALUES = 120
TOO_MUCH = "raw ones take at most"
VALUES: AnyArray = np.arange(NUM_VALUES, dtype=np.uint32) // 3
NUM_BYTES = VALUES.nbytes


def stored_chunk(codec: CodecName) -> bytes:
    return encode_chunk(VALUES, codec, CODECS[codec])


def with_crc(body: bytes) -> bytes:
    return body + struct.pack("<I", crc32c(body))


def outcome_of(
    decode: Callable[[Sequence[ChunkReads]], int],
    shard: Shard,
    *,
    chunk: int = 0,
) -> tuple[type[BaseException] | None, str, bytes]:
    """Decode one chunk of a shard to one of three rows; check the rows around it.

    Returns:
        Type and message of the error, None and "" without one; what is in the row.
    """
    target = Target.of(3, (NUM_VALUES,), "uint32")
    error: BaseException | None = None
    try:
        decode([reads_of([shard], [[chunk]], target, [1])])
    except Exception as exc:
        error = exc
    target.check([1])
    return (
        None if error is None else type(error),
        "" if error is None else str(error),
        target.out[1].tobytes(),
    )


def same_outcome(shard: Shard, *, chunk: int = 0) -> tuple[Any, str, bytes]:
    """Decode in both ways, assert that all is equal, and return what came out."""
    plain = outcome_of(chunks.decode_reads_plainly, shard, chunk=chunk)
    for is_cold in (False, True):
        found = outcome_of(
            functools.partial(
                decoding.decode_reads, workers=WORKERS[1], is_cold=is_cold
            ),
            shard,
            chunk=chunk,
        )
        assert found == plain
    return plain


UNTOUCHED = bytes([CANARY]) * NUM_BYTES


def refused_untouched(chunk: bytes, codec: CodecName, rule: str) -> None:
    error, message, row = same_outcome(opened([chunk], codec, NUM_BYTES))
    assert error is FormatError
    assert re.search(rule, message)
    assert message.startswith(f"some.zarr.zip: field {codec!r}: ")
    assert row == UNTOUCHED


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_every_byte_of_a_chunk_counts(codec: CodecName) -> None:
    chunk = stored_chunk(codec)
    assert same_outcome(opened([chunk], codec, NUM_BYTES))[2] == VALUES.tobytes()
    for position in range(len(chunk)):
        for mask in (1, 0x80, 0xFF):
            damaged = bytearray(chunk)
            damaged[position] ^= mask
            refused_untouched(bytes(damaged), codec, "crc32c")
    for length in range(len(chunk)):
        refused_untouched(chunk[:length], codec, "")


def forged(body: bytes, offset: int, form: str, value: int) -> bytes:
    """Return a chunk with a value of its header changed and its checksum right."""
    changed = bytearray(body)
    struct.pack_into(form, changed, offset, value)
    return with_crc(bytes(changed))


@pytest.mark.parametrize("codec", COMPRESSED)
def test_a_header_that_lies_is_refused_before_decoding(codec: CodecName) -> None:
    body = stored_chunk(codec)[:-4]
    sizes = (0, 1, NUM_BYTES - 1, NUM_BYTES + 1, 2 * NUM_BYTES, 2**31 - 17, 2**32 - 1)
    lies = [("<I", 4, size) for size in (*sizes, NUM_BYTES + 2**31, NUM_BYTES | 1)]
    stored = len(body)
    lies += [("<I", 12, n) for n in (0, 15, stored - 1, stored + 1, 2**31, 2**32 - 1)]
    lies += [("<B", 0, version) for version in (0, 1, 3, 255)]
    lies += [("<B", 2, body[2] ^ bit) for bit in (0x20, 0x40, 0x80)]
    # Each byte of both sizes, wherever it stands.
    lies += [("<B", at, body[at] ^ 0x10) for at in (4, 5, 6, 7, 12, 13, 14, 15)]
    for form, offset, value in lies:
        refused_untouched(forged(body, offset, form, value), codec, "header claims")
    for length in range(16):
        refused_untouched(with_crc(body[:length]), codec, "no blosc header")
    for length in range(16, len(body)):
        refused_untouched(with_crc(body[:length]), codec, "header claims")
    refused_untouched(with_crc(body + b"\0"), codec, "header claims")


@pytest.mark.parametrize("codec", COMPRESSED)
def test_a_sound_chunk_of_another_size_is_refused_before_decoding(
    codec: CodecName,
) -> None:
    for count in (1, NUM_VALUES - 1, NUM_VALUES + 1, 2 * NUM_VALUES, 100_000):
        values = np.arange(count, dtype=np.uint32) // 3
        chunk = encode_chunk(values, codec, CODECS[codec])
        refused_untouched(chunk, codec, f"{4 * count} bytes from|{TOO_MUCH}")


@pytest.mark.parametrize("codec", COMPRESSED)
def test_a_chunk_of_another_compressor_is_refused(codec: CodecName) -> None:
    for name in ("lz4", "zstd", "blosclz", "zlib"):
        body = blosc.compress(VALUES, name.encode(), 5, blosc.SHUFFLE, 0)
        if name != codec:
            refused_untouched(with_crc(body), codec, "header claims")


@pytest.mark.parametrize("codec", COMPRESSED)
def test_forged_bodies_never_write_outside(codec: CodecName) -> None:
    body = stored_chunk(codec)[:-4]
    rng = np.random.default_rng(1)
    num_refused = 0
    for position in range(len(body)):
        for value in (0, 0x7F, 0xFF, int(rng.integers(256))):
            chunk = forged(body, position, "<B", value)
            error, _, _ = same_outcome(opened([chunk], codec, NUM_BYTES))
            num_refused += error is FormatError
    assert num_refused > 50


@pytest.mark.parametrize("codec", COMPRESSED)
def test_a_decompression_bomb_is_refused(codec: CodecName) -> None:
    bomb = blosc.compress(np.zeros(1 << 24, np.uint8), codec.encode(), 5, 0, 0)
    refused_untouched(with_crc(bomb), codec, TOO_MUCH)
    same_outcome(opened([forged(bomb, 4, "<I", NUM_BYTES)], codec, NUM_BYTES))


def test_a_plain_chunk_has_exactly_its_bytes() -> None:
    for size in (0, 1, 15, 16, NUM_BYTES - 1, NUM_BYTES + 1, 4 * NUM_BYTES):
        rule = f"{NUM_BYTES} are expected|{TOO_MUCH}"
        refused_untouched(with_crc(bytes(size)), "none", rule)


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_chunks_below_the_least_size_are_decoded_or_refused_alike(
    codec: CodecName,
) -> None:
    for size in range(1, 24):
        row = np.arange(size, dtype=np.uint8)
        for chunk in (encode_chunk(row, codec, CODECS[codec]), with_crc(row.tobytes())):
            results = []
            for decode in (
                chunks.decode_reads_plainly,
                lambda reads: decoding.decode_reads(reads, WORKERS[1]),
            ):
                target = Target.of(3, (size,), "uint8")
                shard = opened([chunk], codec, size)
                reads = [reads_of([shard], [[0]], target, [1])]
                try:
                    found = f"{decode(reads)}"
                except FormatError as exc:
                    found = f"{exc}"
                target.check([1])
                results.append((found, target.memory.tobytes()))
            assert results[0] == results[1]


HUGE = 2**62
ENTRIES = (
    (-1, None),
    (None, -1),
    (-HUGE, HUGE),
    (-(2**63), 2**63 - 1),
    (2**63 - 1, -(2**63)),
    (0, HUGE),
    (HUGE, HUGE + 50),
    (2**63 - 60, 2**63 - 1),
    (0, 2**63 - 1),
)


@pytest.mark.parametrize("codec", CODEC_NAMES)
@pytest.mark.parametrize("mapped", [False, True])
def test_index_entries_outside_the_source_give_what_the_plain_way_gives(
    codec: CodecName, mapped: bool
) -> None:
    chunk = stored_chunk(codec)
    size = len(chunk)
    entries = [
        (start if start is not None else 0, stop if stop is not None else size)
        for start, stop in ENTRIES
    ]
    entries += [(size, 0), (5, 5), (0, 0), (size, size), (size, 2 * size)]
    entries += [(0, size + 1), (1, size + 1), (size - 4, size), (size - 20, size)]
    entries += [(-size, 0), (-2 * size, size), (0, 2 * size + 1), (0, 3), (0, 19)]
    for start, stop in entries:
        for number in range(2):
            shard = opened([chunk, chunk], codec, NUM_BYTES, mapped=mapped)
            shard.ranges[number] = start, stop
            same_outcome(shard, chunk=number)
            # The other entry is as sound as before, whatever this one says.
            assert same_outcome(shard, chunk=1 - number)[2] == VALUES.tobytes()


@pytest.mark.parametrize("num_threads", sorted(WORKERS))
def test_the_first_damaged_chunk_is_named(num_threads: int) -> None:
    """In the order of the reads, however the threads come along."""
    rng = np.random.default_rng(num_threads)
    for _ in range(10):
        shards = []
        for number in range(4):
            encoded = [stored_chunk("lz4")] * 5
            for chunk in rng.integers(0, 5, int(rng.integers(0, 3))):
                body = bytes(int(rng.integers(16, 60)))
                encoded[chunk] = with_crc(body) if rng.random() < 0.5 else body
            made = opened(encoded, "lz4", NUM_BYTES)
            shards.append(
                Shard(made.source, made.ranges, NUM_BYTES, "lz4", f"file {number}")
            )
        targets = [Target.of(20, (NUM_VALUES,), "uint32") for _ in range(2)]
        errors = []
        for decode in (
            chunks.decode_reads_plainly,
            lambda reads: decoding.decode_reads(reads, WORKERS[num_threads]),
        ):
            reads = [
                reads_of(shards[:2], [[0, 1, 2, 3, 4]] * 2, targets[0], range(10)),
                reads_of(shards[2:], [[4, 3, 2, 1, 0]] * 2, targets[1], range(10)),
            ]
            with constants(MIN_PIECE_BYTES=NUM_BYTES):
                try:
                    decode(reads)
                    errors.append("")
                except FormatError as exc:
                    errors.append(str(exc))
        assert errors[0] == errors[1]
        for target in targets:
            target.check(range(10))


# Encoding.


@st.composite
def row_parts(draw: st.DrawFn) -> list[AnyArray]:
    """Draw one or two stages [T, B, n], some rows of which are equal."""
    dtype = draw(st.sampled_from(("uint8", "int16", "float32", "uint64", "complex64")))
    size = draw(st.sampled_from((1, 7, 64, 513)))
    lead = draw(st.tuples(st.integers(1, 7), st.integers(1, 3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    most = draw(st.sampled_from((1, 3, 256)))
    num_bytes = size * np.dtype(dtype).itemsize
    pool = rng.integers(0, most, (draw(st.integers(1, 4)), num_bytes), dtype=np.uint8)
    kind = draw(st.sampled_from(("one", "next", "two", "same")))

    def stage(num_rows: int) -> AnyArray:
        rows = pool[rng.integers(0, len(pool), (num_rows, lead[1]))]
        return np.ascontiguousarray(rows).view(dtype)

    if kind == "one":
        return [stage(lead[0])]
    if kind == "next":  # the next frame is the current one of the step after it
        frames = stage(lead[0] + 1)
        return [frames[:-1].copy(), frames[1:].copy()]
    current = stage(lead[0])
    return [current, current.copy() if kind == "same" else stage(lead[0])]


@settings(deadline=None, max_examples=250)
@given(
    row_parts(),
    st.sampled_from(CODEC_NAMES),
    st.integers(0, 9),
    st.sampled_from(sorted(WORKERS)),
    st.sampled_from((1, 64, 5000, 1 << 20)),
    st.sampled_from((1, 200, 1 << 23)),
)
def test_rows_are_encoded_as_they_are_one_after_the_other(
    parts: list[AnyArray],
    codec: CodecName,
    level: int,
    num_threads: int,
    piece_bytes: int,
    encode_bytes: int,
) -> None:
    kept = [part.tobytes() for part in parts]
    with constants(MIN_PIECE_BYTES=piece_bytes, MAX_ENCODE_BYTES=encode_bytes):
        found = decoding.encode_rows(parts, codec, level, workers=WORKERS[num_threads])
    assert found == chunks.encode_rows_plainly(parts, codec, level)
    assert [part.tobytes() for part in parts] == kept


@pytest.mark.parametrize("codec", CODEC_NAMES)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_rows_of_several_pieces_are_read_back(
    codec: CodecName, num_threads: int
) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 5, (41, 2, 3000)).astype(np.int16)
    frames[11:] = rng.integers(-(2**15), 2**15, (30, 2, 3000))  # does not compress
    parts = [frames[:-1].copy(), frames[1:].copy()]
    with constants(MIN_PIECE_BYTES=10_000, MAX_ENCODE_BYTES=50_000):
        encoded = decoding.encode_rows(
            parts, codec, CODECS[codec], workers=WORKERS[num_threads]
        )
    assert encoded == chunks.encode_rows_plainly(parts, codec, CODECS[codec])
    shard = opened(encoded, codec, 6000)
    target = Target.of(len(encoded), (3000,), "int16")
    reads = reads_of([shard], [range(len(encoded))], target, range(len(encoded)))
    decoding.decode_reads([reads], WORKERS[num_threads])
    assert (target.out == np.stack(chunks.in_stored_order(parts))).all()


@needs_loops
def test_a_row_equal_to_its_neighbour_is_not_compressed_again() -> None:
    frames = rows_of(9, 5000, "few").reshape(9, 1, 5000)
    parts = [frames[:-1].copy(), frames[1:].copy()]
    encoded = decoding.encode_rows(parts, "lz4", 5, workers=WORKERS[1])
    assert len(encoded) == 16
    assert len({id(chunk) for chunk in encoded}) == 9


@needs_loops
@pytest.mark.parametrize("num_threads", [1, 3])
def test_no_piece_of_rows_takes_more_memory_than_the_bound(
    num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    encode_loop = decoding.encode_loop

    def measured(blocks: AnyArray, num_bytes: int, *rest: Any) -> int:
        sizes.append(len(blocks) * num_bytes)
        done: int = encode_loop(blocks, num_bytes, *rest)
        return done

    monkeypatch.setattr(decoding, "encode_loop", measured)
    parts = [rows_of(50, 1000, "few").reshape(25, 2, 1000)]
    with constants(MIN_PIECE_BYTES=1000, MAX_ENCODE_BYTES=7500):
        decoding.encode_rows(parts, "lz4", 5, workers=WORKERS[num_threads])
    assert sum(sizes) == 50_000
    assert max(sizes) <= 7500
    with constants(MIN_PIECE_BYTES=1000, MAX_ENCODE_BYTES=7500):  # a row is never cut
        large = [rows_of(4, 9000, "few").reshape(4, 1, 9000)]
        assert decoding.encode_rows(
            large, "lz4", 5, workers=WORKERS[num_threads]
        ) == chunks.encode_rows_plainly(large, "lz4", 5)


@needs_loops
def test_rows_that_the_loop_does_not_compress_are_left_to_the_plain_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = [rows_of(12, 1000, "few").reshape(6, 2, 1000)]
    calls = []

    def fail_once(blocks: AnyArray, *_: Any) -> int:
        calls.append(len(blocks))
        return len(blocks) - 1

    monkeypatch.setattr(decoding, "encode_loop", fail_once)
    found = decoding.encode_rows(parts, "zstd", 3, workers=WORKERS[2])
    assert calls
    assert found == chunks.encode_rows_plainly(parts, "zstd", 3)


# Without loops.


@pytest.fixture
def no_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where numba is not installed: no loop may be called."""
    for room in [name for name in sys.modules if name.startswith("zarrbuf.")]:
        if hasattr(sys.modules[room], "have_loops"):
            monkeypatch.setattr(f"{room}.have_loops", lambda: False)
    assert not decoding.have_loops()
    for name in ("decode_loop", "encode_loop", "scatter_loop"):
        monkeypatch.setattr(decoding, name, lambda *_: pytest.fail("a loop is called"))


def drawn(num_threads: int, codec: str) -> list[dict[tuple[str, ...], Any]]:
    """Return batches from trajectories, one of which lacks a field."""
    trajectories = [make_trajectory(8, 2, seed=seed) for seed in range(3)]
    trajectories.append(make_trajectory(4, 3, seed=9, versions=None))
    with TrajectoryReplayBuffer(seed=4, codec=codec, num_threads=num_threads) as buffer:
        found = []
        for number in range(3):
            buffer.add_trajectories(trajectories[number : number + 2])
            found.append(leaves(buffer.sample(40)))
        assert "versions" not in buffer.sample(1)
        return found


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_batches_are_the_same_without_loops(
    codec: str, request: pytest.FixtureRequest
) -> None:
    with_loops = drawn(3, codec)
    request.getfixturevalue("no_loops")
    for found, expected in zip(drawn(3, codec), with_loops, strict=True):
        assert_same_value(found, expected, "batch")


@pytest.mark.usefixtures("no_loops")
def test_without_loops_rows_and_errors_are_the_plain_ones() -> None:
    case = FieldCase(
        0, "few", "int16", (100,), ["lz4", "none"], [[0, 3, 3], [1]], 2, True, 2
    )
    reads, target = case.make()
    expected, plain = case.make()
    found = decoding.decode_reads([reads], WORKERS[2])
    assert found == chunks.decode_reads_plainly([expected])
    assert target.memory.tobytes() == plain.memory.tobytes()
    damaged = opened([stored_chunk("lz4")[:-1] + b"?"], "lz4", NUM_BYTES)
    assert same_outcome(damaged)[0] is FormatError
    parts = [rows_of(12, 1000, "few").reshape(6, 2, 1000)]
    encoded = decoding.encode_rows(parts, "lz4", 5, workers=WORKERS[2])
    assert encoded == chunks.encode_rows_plainly(parts, "lz4", 5)


# Pieces.


@given(
    st.lists(st.integers(0, 50) | st.sampled_from((0, 1000)), min_size=1, max_size=60),
    st.integers(1, 5),
    st.sampled_from((1, 10, 100, 10_000)),
)
def test_pieces_cover_all_in_order_and_are_about_equal(
    sizes: list[int], num_threads: int, piece_bytes: int
) -> None:
    items = np.array(sizes, np.int64)
    with constants(MIN_PIECE_BYTES=piece_bytes):
        pieces = decoding.cut_evenly(items, num_threads)
    numbers = np.arange(len(items))
    assert [n for piece in pieces for n in numbers[piece].tolist()] == list(numbers)
    assert all(len(numbers[piece]) for piece in pieces)
    total = sum(sizes)
    if total < 2 * piece_bytes or num_threads == 1:
        assert len(pieces) == 1
    enough = max(2 * piece_bytes, total / num_threads)
    for piece in pieces:
        assert items[piece].sum() <= enough + max(sizes)


def test_equal_items_are_cut_into_equal_pieces_enough_for_all_threads() -> None:
    sizes = np.full(240, 100, np.int64)
    with constants(MIN_PIECE_BYTES=1000):
        for num_threads in (2, 3, 4):
            pieces = decoding.cut_evenly(sizes, num_threads)
            lengths = [piece.stop - piece.start for piece in pieces]
            assert len(pieces) >= num_threads
            assert max(lengths) - min(lengths) <= 2
            assert min(lengths) * 100 >= 900
        assert decoding.cut_evenly(sizes, 1) == [slice(0, 240)]
        assert decoding.cut_evenly(sizes[:19], 4) == [slice(0, 19)]


# Scattering.

COLUMNS = ("<u1", "<f4", "<u2, 3i8, ?")


@needs_loops
@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 100),
    st.lists(
        st.tuples(st.sampled_from(COLUMNS), st.sampled_from(((), (3,), (2, 5), (0,)))),
        min_size=1,
        max_size=4,
    ),
)
def test_fields_of_packed_rows_go_where_they_belong(
    seed: int, count: int, columns: list[tuple[str, tuple[int, ...]]]
) -> None:
    rng = np.random.default_rng(seed)
    packed = np.dtype([(f"f{n}", *column) for n, column in enumerate(columns)])
    table = rng.integers(0, 256, (9, packed.itemsize), dtype=np.uint8)
    picks = rng.integers(0, 9, count)
    rows = rng.permutation(count + 2)[:count]
    offsets, outs, memories = [], [], []
    for name in packed.names or ():
        dtype, offset = (packed.fields or {})[name][:2]
        memory = np.full((count + 4, dtype.itemsize), CANARY, np.uint8)
        offsets.append(offset)
        memories.append(memory)
        inner = memory[1:-1].reshape(-1).view(dtype.base)
        outs.append(inner.reshape(count + 2, *dtype.shape))
    sources = np.uint64(table.ctypes.data) + (picks * packed.itemsize).astype(np.uint64)
    decoding.scatter_rows(sources, packed.itemsize, offsets, outs, rows)
    for offset, memory in zip(offsets, memories, strict=True):
        expected = np.full_like(memory, CANARY)
        expected[1 + rows] = table[picks, offset : offset + memory.shape[1]]
        assert memory.tobytes() == expected.tobytes()


@needs_loops
@pytest.mark.parametrize(
    ("row", "offset"), [(-1, 0), (3, 0), (2**40, 0), (0, -1), (0, 1), (0, 2**40)]
)
def test_nothing_is_scattered_from_or_to_memory_outside(
    row: int, offset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "scatter_loop", lambda *_: pytest.fail("called"))
    rows: IntArray = np.array([0, row])
    sources = np.zeros(2, np.uint64)
    with pytest.raises(AssertionError):
        decoding.scatter_rows(sources, 16, [offset], [np.zeros((3, 2))], rows)
