"""One chunk: damaged or lying bytes are found before they are decoded."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc

import numpy as np
import pytest
from numcodecs import blosc

from zarrbuf.archive.chunks import crc32c, decode_chunk_into, encode_chunk
from zarrbuf.archive.spec import AnyArray
from zarrbuf.archive.zarr_json import CODECS, CodecName
from zarrbuf.errors import FormatError

WHERE = "some.zarr.zip: field 'obs/image'"
CODEC_NAMES = sorted(CODECS)


def with_crc(data: bytes) -> bytes:
    return data + struct.pack("<I", crc32c(data))


def canary(num_bytes: int) -> tuple[AnyArray, AnyArray]:
    """Return memory and the middle of it, to see what is written around that."""
    memory = np.full(num_bytes + 8192, 0xA5, np.uint8)
    return memory, memory[4096:-4096]


def decode(chunk: bytes, num_bytes: int, codec: CodecName = "lz4") -> bytes:
    memory, out = canary(num_bytes)
    try:
        decode_chunk_into(chunk, 0, len(chunk), out, codec=codec, where=WHERE)
    finally:
        assert (memory[:4096] == 0xA5).all()
        assert (memory[-4096:] == 0xA5).all()
    return out.tobytes()


def refuse_untouched(chunk: bytes, num_bytes: int, codec: CodecName, rule: str) -> None:
    """Assert that a chunk is refused before anything of it is decoded."""
    _, out = canary(num_bytes)
    with pytest.raises(FormatError, match=rule) as caught:
        decode_chunk_into(chunk, 0, len(chunk), out, codec=codec, where=WHERE)
    assert str(caught.value).startswith(f"{WHERE}: ")
    assert (out == 0xA5).all()


VALUES = np.arange(500, dtype=np.uint32) // 3


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_every_byte_of_a_chunk_counts(codec: CodecName) -> None:
    chunk = encode_chunk(VALUES, codec, CODECS[codec])
    assert decode(chunk, VALUES.nbytes, codec) == VALUES.tobytes()
    for position in range(len(chunk)):
        for mask in (1, 0x80, 0xFF):
            damaged = bytearray(chunk)
            damaged[position] ^= mask
            refuse_untouched(bytes(damaged), VALUES.nbytes, codec, "crc32c")
    for length in range(len(chunk)):
        refuse_untouched(chunk[:length], VALUES.nbytes, codec, r"crc32c|header|bytes")


def forged(body: bytes, offset: int, form: str, value: int) -> bytes:
    """Return a chunk with a value of its header changed and its checksum right."""
    changed = bytearray(body)
    struct.pack_into(form, changed, offset, value)
    return with_crc(bytes(changed))


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_a_header_that_lies_is_refused_before_decoding(codec: CodecName) -> None:
    body = encode_chunk(VALUES, codec, CODECS[codec])[:-4]
    assert decode(with_crc(body), 2000, codec) == VALUES.tobytes()
    lies = [("<I", 4, n) for n in (0, 1, 1999, 2001, 4000, 2**31 - 17, 2**32 - 1)]
    lies += [("<I", 12, n) for n in (0, 15, len(body) - 1, len(body) + 1, 2**32 - 1)]
    lies += [("<B", 0, n) for n in (0, 1, 3, 255)]
    lies += [("<B", 2, body[2] ^ bit) for bit in (0x20, 0x40, 0x80)]
    for form, offset, value in lies:
        chunk = forged(body, offset, form, value)
        refuse_untouched(chunk, 2000, codec, "blosc header claims")
    for length in range(16):
        refuse_untouched(with_crc(body[:length]), 2000, codec, "no blosc header")
    for length in range(16, len(body)):
        refuse_untouched(with_crc(body[:length]), 2000, codec, "header claims")
    refuse_untouched(with_crc(body + b"\0"), 2000, codec, "header claims")


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_a_chunk_of_another_compressor_is_refused(codec: CodecName) -> None:
    for name in ("lz4", "zstd", "blosclz", "zlib"):
        body = blosc.compress(VALUES, name.encode(), 5, blosc.SHUFFLE, 0)
        if name != codec:
            refuse_untouched(with_crc(body), 2000, codec, "header claims")


def test_a_plain_chunk_has_exactly_its_bytes() -> None:
    for size in (0, 1, 1999, 2001):
        refuse_untouched(with_crc(bytes(size)), 2000, "none", "2000 are expected")


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_forged_bodies_never_write_outside(codec: CodecName) -> None:
    body = encode_chunk(VALUES, codec, CODECS[codec])[:-4]
    rng = np.random.default_rng(1)
    num_refused = 0
    for position in range(len(body)):
        for value in (0, 0x7F, 0xFF, int(rng.integers(256))):
            try:
                decode(forged(body, position, "<B", value), 2000, codec)
            except FormatError:
                num_refused += 1
    assert num_refused > 100


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_a_decompression_bomb_is_refused(codec: CodecName) -> None:
    bomb = blosc.compress(np.zeros(1 << 26, np.uint8), codec.encode(), 5, 0, 0)
    num_bytes = 1 << 19
    assert len(bomb) < num_bytes
    refuse_untouched(with_crc(bomb), num_bytes, codec, "67108864 bytes from")
    refuse_untouched(with_crc(bomb), len(bomb) // 2, codec, "raw ones take at most")
    # The same, lying about what it holds: nothing may be written outside `out`.
    with contextlib.suppress(FormatError):
        decode(forged(bomb, 4, "<I", num_bytes), num_bytes, codec)


def test_a_number_without_dimensions_is_a_plain_chunk() -> None:
    chunk = encode_chunk(np.array(3.5), "none", 0)
    assert chunk == with_crc(struct.pack("<d", 3.5))
    out = np.empty(())
    decode_chunk_into(chunk, 0, len(chunk), out, codec="none", where=WHERE)
    assert out == 3.5


def test_the_checksum_is_castagnoli() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, appendix B.4


def test_threads_of_blosc_are_off() -> None:
    assert blosc.use_threads is False


@pytest.mark.parametrize("codec", CODEC_NAMES)
def test_a_chunk_that_claims_more_than_it_can_take_is_not_even_copied(
    codec: CodecName,
) -> None:
    huge = np.zeros(1 << 20, np.uint8)
    source = memoryview(huge)
    _, out = canary(8)
    tracemalloc.start()
    with pytest.raises(FormatError, match="takes 1048576 bytes; 8 raw ones take at"):
        decode_chunk_into(source, 0, len(source), out, codec=codec, where=WHERE)
    assert tracemalloc.get_traced_memory()[1] < 1 << 17
    tracemalloc.stop()
