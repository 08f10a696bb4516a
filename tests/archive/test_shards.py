"""Shards: equal chunks once, every damaged or lying byte found before it is used."""

from __future__ import annotations

import functools
import itertools
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zarrbuf.archive import chunks
from zarrbuf.archive import decode as decode_module
from zarrbuf.archive.chunks import (
    Shard,
    Source,
    crc32c,
    decode_chunk_into,
    encode_chunk,
)
from zarrbuf.archive.shards import (
    EncodeRows,
    check_coverage,
    decode_chunks,
    encode_shard,
    parse_index,
)
from zarrbuf.archive.spec import AnyArray
from zarrbuf.archive.zarr_json import CODECS, ArrayInfo, CodecName
from zarrbuf.common.thread_pool import Workers
from zarrbuf.errors import FormatError

WHERE = "some.zarr.zip: field 'obs/image'"
CODEC_NAMES = sorted(CODECS)
MISSING = 2**64 - 1
WAYS: tuple[EncodeRows, ...] = (
    chunks.encode_rows_plainly,
    functools.partial(decode_module.encode_rows, workers=Workers(2)),
)
"""The plain way to compress rows, and the one that is used."""


def info_of(
    parts: tuple[AnyArray, ...], field: str = "obs/image", codec: CodecName = "lz4"
) -> ArrayInfo:
    shape = parts[0].shape
    if field.startswith("obs/"):
        shape = (2, *shape)
    return ArrayInfo(field, shape, parts[0].dtype.name, codec, CODECS[codec])


def frames(num_steps: int, num_envs: int, seed: int = 0) -> AnyArray:
    """Return T + 1 rows of B different frames of 4 KiB."""
    rng = np.random.default_rng(seed)
    shape = (num_steps + 1, num_envs, 64, 64)
    images: AnyArray = rng.integers(0, 4, shape, dtype=np.uint8)
    return images


def stages(images: AnyArray) -> tuple[AnyArray, AnyArray]:
    return images[:-1].copy(), images[1:].copy()


def encode(
    parts: tuple[AnyArray, ...],
    info: ArrayInfo,
    encode_rows: EncodeRows = chunks.encode_rows_plainly,
) -> bytes:
    return b"".join(encode_shard(parts, info, encode_rows=encode_rows))


def index_of(shard: bytes, info: ArrayInfo) -> AnyArray:
    return parse_index(shard, 0, len(shard), info.grid.num_chunks, where=WHERE)


def opened(source: Source, ranges: AnyArray, info: ArrayInfo) -> Shard:
    return Shard(source, ranges, info.chunk_bytes, info.codec, WHERE)


def read(shard: bytes, info: ArrayInfo) -> AnyArray:
    return decode_chunks(opened(shard, index_of(shard, info), info), info)


def with_crc(data: bytes) -> bytes:
    return data + struct.pack("<I", crc32c(data))


def assert_refused(shard: bytes, num_chunks: int, rule: str) -> None:
    with pytest.raises(FormatError, match=rule) as caught:
        parse_index(shard, 0, len(shard), num_chunks, where=WHERE)
    assert str(caught.value).startswith(f"{WHERE}: ")


@pytest.mark.parametrize("encode_rows", WAYS)
@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_the_next_frame_is_the_current_frame_of_the_next_step(
    codec: CodecName, encode_rows: EncodeRows
) -> None:
    parts = stages(frames(8, 2))
    info = info_of(parts, codec=codec)
    shard = encode(parts, info, encode_rows)
    ranges = index_of(shard, info).reshape(2, 8, 2, 2)
    assert len(np.unique(ranges.reshape(-1, 2), axis=0)) == 2 * (8 + 1)
    assert (ranges[1, :-1] == ranges[0, 1:]).all()
    check_coverage(index_of(shard, info), 0, len(shard), where=WHERE)
    assert (read(shard, info) == np.stack(parts)).all()


def test_a_reset_keeps_its_own_frame() -> None:
    images = frames(8, 2)
    current, following = stages(images)
    following[3, 1] = 9
    info = info_of((current, following))
    shard = encode((current, following), info)
    ranges = index_of(shard, info).reshape(2, 8, 2, 2)
    assert len(np.unique(ranges.reshape(-1, 2), axis=0)) == 2 * (8 + 1) + 1
    assert (ranges[1, 3, 0] == ranges[0, 4, 0]).all()
    assert (ranges[1, 3, 1] != ranges[0, 4, 1]).any()
    assert (read(shard, info) == np.stack([current, following])).all()


def test_frames_of_an_environment_are_neighbours_in_time_order() -> None:
    parts = stages(frames(8, 3))
    info = info_of(parts)
    ranges = index_of(encode(parts, info), info).reshape(2, 8, 3, 2)
    path = [ranges[0, 0, 0], *ranges[1, :, 0], ranges[0, 0, 1], *ranges[1, :, 1]]
    assert path[0][0] == 0
    for before, after in itertools.pairwise(path):
        assert before[1] == after[0]


def test_a_shared_frame_is_compressed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[AnyArray] = []

    def counted(raw: AnyArray, codec: CodecName, level: int) -> bytes:
        calls.append(raw)
        return encode_chunk(raw, codec, level)

    monkeypatch.setattr("zarrbuf.archive.chunks.encode_chunk", counted)
    parts = stages(frames(8, 2))
    encode(parts, info_of(parts))
    assert len(calls) == 2 * (8 + 1)


@pytest.mark.parametrize("encode_rows", WAYS)
@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_equal_frames_anywhere_are_stored_once(
    codec: CodecName, encode_rows: EncodeRows
) -> None:
    images = frames(6, 3)
    images[:, 2] = images[:, 0]
    images[5] = images[1]
    info = info_of((images,), "actions", codec)
    shard = encode((images,), info, encode_rows)
    ranges = index_of(shard, info)
    assert len(ranges) == 7 * 3
    assert len(np.unique(ranges, axis=0)) == 6 * 2
    assert (read(shard, info) == images).all()


@pytest.mark.parametrize("encode_rows", WAYS)
def test_zeros_of_two_signs_and_nans_are_not_confused(encode_rows: EncodeRows) -> None:
    current = np.zeros((3, 1, 1024), np.float32)
    following = np.zeros_like(current)
    following[0, 0, 5] = -0.0
    current[2] = np.nan
    following[1] = np.nan
    info = info_of((current, following))
    shard = encode((current, following), info, encode_rows)
    found = read(shard, info)
    assert found.tobytes() == np.stack([current, following]).tobytes()
    ranges = index_of(shard, info).reshape(2, 3, 2)
    assert (ranges[1, 0] != ranges[0, 1]).any()
    assert (ranges[1, 1] == ranges[0, 2]).all()


ARRAYS = st.builds(
    lambda seed, shape, dtype, values: (
        np.random.default_rng(seed).integers(0, values, shape).astype(dtype)
    ),
    st.integers(0, 2**32 - 1),
    st.tuples(
        st.integers(1, 5), st.integers(1, 3), st.sampled_from((1, 2, 511, 4096, 4099))
    )
    | st.tuples(st.integers(1, 300))
    | st.tuples(st.integers(300, 310), st.just(1), st.just(1022)),
    st.sampled_from(("uint8", "bool", "int16", "float32", "complex128")),
    st.integers(1, 3),
)


@settings(deadline=None)
@given(ARRAYS, st.sampled_from(CODEC_NAMES), st.booleans(), st.sampled_from(WAYS))
def test_arrays_come_back(
    array: AnyArray, codec: CodecName, staged: bool, encode_rows: EncodeRows
) -> None:
    parts = (array, array[::-1].copy()) if staged and array.ndim > 1 else (array,)
    info = info_of(parts, "obs/x" if len(parts) == 2 else "x", codec)
    shard = encode(parts, info, encode_rows)
    found = read(shard, info)
    expected = np.stack(parts) if len(parts) == 2 else array
    assert found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()
    ranges = index_of(shard, info)
    check_coverage(ranges, 0, len(shard), where=WHERE)
    distinct = {shard[start:stop] for start, stop in ranges.tolist()}
    assert len(distinct) == len(np.unique(ranges, axis=0))  # none is stored twice


def test_a_small_field_above_a_mebibyte_is_split_and_filled_up() -> None:
    array = np.arange(1000 * 2 * 300, dtype=np.float32).reshape(1000, 2, 300)
    info = info_of((array,), "actions")
    shard = encode((array,), info)
    ranges = index_of(shard, info)
    assert len(ranges) == 3
    assert (read(shard, info) == array).all()
    last = np.empty((334, 2, 300), np.float32)
    start, stop = ranges[2].tolist()
    decode_chunk_into(shard, start, stop, last, codec="lz4", where=WHERE)
    assert (last[:332] == array[668:]).all()
    assert not last[332:].any()


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_the_number_of_threads_changes_nothing(codec: CodecName) -> None:
    parts = stages(frames(200, 2, seed=3))
    info = info_of(parts, codec=codec)
    plain = encode(parts, info)
    for num_threads in (1, 2, 3, 7):
        workers = Workers(num_threads)
        encode_rows = functools.partial(decode_module.encode_rows, workers=workers)
        assert encode(parts, info, encode_rows) == plain
        workers.close()


# The index.


def small_shard() -> tuple[bytes, ArrayInfo]:
    parts = stages(frames(3, 1))
    info = info_of(parts)
    return encode(parts, info), info


def test_a_shard_within_a_larger_file() -> None:
    shard, info = small_shard()
    source = b"before" + shard + b"behind"
    ranges = parse_index(source, 6, 6 + len(shard), 6, where=WHERE)
    assert (ranges == index_of(shard, info) + 6).all()
    for within in (source, memoryview(source), memoryview(bytearray(source))):
        plain = decode_chunks(opened(within, ranges, info), info)
        assert (plain == read(shard, info)).all()
    check_coverage(ranges, 6, 6 + len(shard), where=WHERE)


def test_every_byte_of_the_index_counts() -> None:
    shard, info = small_shard()
    size = 16 * info.grid.num_chunks + 4
    for position in range(len(shard) - size, len(shard)):
        for mask in (1, 0x80, 0xFF):
            damaged = bytearray(shard)
            damaged[position] ^= mask
            assert_refused(bytes(damaged), 6, "index is damaged")


def test_a_shard_cut_short_is_refused() -> None:
    shard, info = small_shard()
    for length in (0, 3, 4, 50, 99, 100, len(shard) - 1):
        with pytest.raises(FormatError, match=r"cannot hold an index|damaged"):
            index_of(shard[:length], info)
    assert_refused(shard, 2**38, "cannot hold an index")
    assert_refused(shard, 7, "damaged")


def rebuilt(shard: bytes, entries: list[tuple[int, int]]) -> bytes:
    """Return the shard with another index, whose checksum is right."""
    index = b"".join(struct.pack("<2Q", *entry) for entry in entries)
    return shard[: -16 * len(entries) - 4] + with_crc(index)


def test_an_index_that_lies_is_refused() -> None:
    shard, info = small_shard()
    sizes = index_of(shard, info)
    good = [(int(start), int(stop - start)) for start, stop in sizes]
    num_bytes = len(shard) - 16 * 6 - 4
    assert rebuilt(shard, good) == shard
    outside = "names bytes outside"
    for entry, rule in (
        ((MISSING, MISSING), "missing"),
        ((MISSING, good[0][1]), "missing"),
        ((0, MISSING), "missing"),
        ((MISSING - 1, 5), outside),
        ((2**63, 2**63), outside),
        ((num_bytes + 1, 5), outside),
        ((num_bytes, 5), outside),
        ((num_bytes - 5, 6), outside),
        ((0, num_bytes + 1), outside),
        ((1, MISSING - 1), outside),
        ((0, 4), outside),
        ((0, 0), outside),
    ):
        for position in range(6):
            entries = [*good[:position], entry, *good[position + 1 :]]
            assert_refused(rebuilt(shard, entries), 6, rule)


def test_gaps_and_overlaps_are_found() -> None:
    shard, info = small_shard()
    good = [(int(a), int(b - a)) for a, b in index_of(shard, info)]
    for position, entry in (
        (0, (good[0][0] + 1, good[0][1] - 1)),
        (5, (good[5][0], good[5][1] - 1)),
        (5, good[0]),
        (2, (good[2][0] - 1, good[2][1] + 1)),
        (0, (0, len(shard) - 100)),
    ):
        entries = [*good[:position], entry, *good[position + 1 :]]
        ranges = index_of(rebuilt(shard, entries), info)
        with pytest.raises(FormatError, match="overlap or leave a gap"):
            check_coverage(ranges, 0, len(shard), where=WHERE)
