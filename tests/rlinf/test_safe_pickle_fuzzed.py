"""The stack machine under random and damaged bytes: data or FormatError."""

from __future__ import annotations

import pickle
import random
from typing import Any

import pytest
import torch
from attacks import pickle_parts as parts
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zarrbuf.errors import FormatError
from zarrbuf.rlinf.safe_pickle.allowlist import parse_pickle

PROTOCOLS = (2, 3, 4, 5)


def parse(data: bytes) -> dict[str, Any]:
    return parse_pickle(data, name="t.pkl")


def assert_only_data(value: Any, depth: int = 0) -> None:
    assert depth <= 32
    if type(value) is dict:
        assert all(type(key) in (str, int) for key in value)
        value = list(value.values())
    if type(value) in (list, tuple):
        for one in value:
            assert_only_data(one, depth + 1)
    else:
        allowed = (int, str, type(None), bool, float, torch.Tensor)
        assert type(value) in allowed


def fragments() -> list[bytes]:
    """Opcodes and valid pieces, to be strung together at random."""
    opcodes = [bytes([code]) for code in range(256)]
    safe = [b"N", b"}", b"]", b")", b"(", b"t", b"u", b"s", b"e", b"a", b"R", b"\x85"]
    numbers = [parts.number(n) for n in (0, 1, 2, 4, -1, 1 << 40)]
    pieces = [parts.stored(), parts.HOOKS, parts.tensor(), parts.text("a")]
    names = [parts.REBUILD, parts.LOAD, parts.ENCODE, parts.ORDERED]
    memo = [b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"\x94"]
    return opcodes + (safe + numbers + pieces + names + memo) * 8


SEEDS = [pickle.dumps(parts.small(), protocol) for protocol in PROTOCOLS]
FRAGMENTS = fragments()


def check_fuzzed(data: bytes) -> bool:
    """Parse; the only ways out are data or FormatError."""
    try:
        result = parse(data)
    except FormatError:
        return False
    assert type(result) is dict
    assert_only_data(result)
    return True


class TestCut:
    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_cut_short_at_every_length(self, protocol: int) -> None:
        data = pickle.dumps(parts.small(), protocol)
        for length in range(len(data)):
            with pytest.raises(FormatError):
                parse(data[:length])

    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_a_byte_more(self, protocol: int) -> None:
        with pytest.raises(FormatError, match="follow the end"):
            parse(pickle.dumps(parts.small(), protocol) + b"\x00")


class TestFuzz:
    @settings(max_examples=500, deadline=None)
    @given(
        seed=st.sampled_from(SEEDS),
        edits=st.lists(
            st.tuples(
                st.floats(0, 1, exclude_max=True),
                st.integers(0, 3),
                st.binary(max_size=8),
            ),
            min_size=1,
            max_size=4,
        ),
    )
    @example(seed=SEEDS[0], edits=[(0.0, 0, b"")])
    def test_edited(self, seed: bytes, edits: list[tuple[float, int, bytes]]) -> None:
        data = seed
        for where, removed, added in edits:
            start = int(where * len(data))
            data = data[:start] + added + data[start + removed :]
        check_fuzzed(data)

    @settings(max_examples=500, deadline=None)
    @given(body=st.lists(st.sampled_from(FRAGMENTS), max_size=25))
    def test_strung_together(self, body: list[bytes]) -> None:
        check_fuzzed(parts.value(b"".join(body)))
        check_fuzzed(parts.proto(b"".join(body)))

    @pytest.mark.parametrize("seed", range(len(SEEDS)))
    def test_every_byte_replaced(self, seed: int) -> None:
        """Each byte by four others: 14,000 files, most refused, none a surprise."""
        generator = random.Random(seed)
        data = bytearray(SEEDS[seed])
        accepted = 0
        for position, old in enumerate(bytes(data)):
            for new in (old ^ 1, old ^ 0x80, 0xFF, generator.randrange(256)):
                data[position] = new
                accepted += check_fuzzed(bytes(data))
            data[position] = old
        assert accepted < 3 * len(data)
