"""The zip: others read what we write, and nothing but what we write is read."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zarrbuf.archive.zip_file import (
    Member,
    encode_zip,
    parse_zip,
    read_member,
)
from zarrbuf.errors import FormatError

NAME = "folder/some.zarr.zip"
CONTENTS = [("b/c/0", b"first member"), ("empty", b""), ("zarr.json", b'{"x":1}' * 9)]

NAMES = st.text(
    st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20
)
MEMBERS = st.dictionaries(NAMES, st.binary(max_size=50), max_size=6)


def encode(contents: list[tuple[str, bytes]]) -> bytes:
    return encode_zip([(name, [data]) for name, data in contents])


def parse(data: bytes) -> dict[str, Member]:
    return parse_zip(memoryview(data), name=NAME)


def assert_refused(data: bytes, rule: str | None = None) -> None:
    """Assert a `FormatError` that names the file and says `rule`."""
    with pytest.raises(FormatError, match=rule) as caught:
        parse(data)
    assert str(caught.value).startswith(f"{NAME}: ")


def raw_zip(
    contents: list[tuple[str, bytes]],
    *,
    local: dict[str, Any] | None = None,
    central: dict[str, Any] | None = None,
    end: dict[str, Any] | None = None,
    before: bytes = b"",
    gap: bytes = b"",
    descriptor: bool = False,
) -> bytes:
    """Write a zip by the book (APPNOTE 4.3), with what is asked for changed.

    Args:
        contents: name and data.
        local: changed values of every local header, by the name in APPNOTE.
        central: changed values of every directory entry.
        end: changed values of the end record.
        before: bytes before the first member.
        gap: bytes between the members and the directory.
        descriptor: whether a data descriptor follows each member.
    """
    body, directory = before, b""
    for name, data in contents:
        crc, raw = zlib.crc32(data), name.encode()
        common: dict[str, Any] = {
            "version": 20,
            "flags": 0,
            "method": 0,
            "time": 0,
            "date": 0x21,
        }
        common |= {"crc": crc, "size": len(data), "csize": len(data), "extra": b""}
        head = {**common, "signature": 0x04034B50, **(local or {})}
        entry = {
            **common,
            "signature": 0x02014B50,
            "made_by": 3 << 8 | 20,
            "comment": b"",
            "disk": 0,
            "internal": 0,
            "mode": 0o100644 << 16,
            "offset": len(body),
            **(central or {}),
        }
        body += struct.pack(
            "<I5H3I2H",
            *(head[k] for k in ("signature", "version", "flags", "method", "time")),
            *(head[k] for k in ("date", "crc", "csize", "size")),
            *(len(raw), len(head["extra"])),
        )
        body += raw + head["extra"] + data
        if descriptor:
            body += struct.pack("<4sIII", b"PK\x07\x08", crc, len(data), len(data))
        directory += struct.pack(
            "<I6H3I5H2I",
            *(entry[k] for k in ("signature", "made_by", "version", "flags")),
            *(entry[k] for k in ("method", "time", "date", "crc", "csize", "size")),
            *(len(raw), len(entry["extra"]), len(entry["comment"])),
            *(entry[k] for k in ("disk", "internal", "mode", "offset")),
        )
        directory += raw + entry["extra"] + entry["comment"]
    body += gap
    last: dict[str, Any] = {
        "disk": 0,
        "count": len(contents),
        "all": len(contents),
        "comment": b"",
    }
    last |= {"size": len(directory), "start": len(body), **(end or {})}
    counts = [last[key] for key in ("disk", "disk", "count", "all", "size", "start")]
    tail = struct.pack("<4s4H2I", b"PK\x05\x06", *counts)
    comment: bytes = last["comment"]
    return body + directory + tail + struct.pack("<H", len(comment)) + comment


def test_the_bytes_are_those_of_the_book() -> None:
    assert encode(CONTENTS) == raw_zip(CONTENTS)


@settings(deadline=None)
@given(MEMBERS)
def test_python_reads_what_is_written_and_so_do_we(members: dict[str, bytes]) -> None:
    data = encode(list(members.items()))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.namelist() == list(members)
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in members} == members
        assert all(i.compress_type == 0 and not i.extra for i in archive.infolist())
        assert all(i.date_time[:3] == (1980, 1, 1) for i in archive.infolist())
    found = parse(data)
    assert list(found) == list(members)
    view = memoryview(data)
    for name, member in found.items():
        assert read_member(view, member, name=NAME) == members[name]
        assert member.size == len(members[name])


def test_data_in_pieces_is_the_same_file() -> None:
    pieces: list[tuple[str, list[bytes | memoryview]]] = [
        ("a", [b"12", memoryview(b"345"), b"", b"6"]),
        ("b", []),
    ]
    assert encode_zip(pieces) == encode([("a", b"123456"), ("b", b"")])


def test_a_file_without_members_is_a_zip() -> None:
    assert parse(encode_zip([])) == {}


def test_every_bit_of_directory_and_headers_counts() -> None:
    data = encode(CONTENTS)
    members = parse(data).values()
    payload = {i for m in members for i in range(m.start, m.stop)}
    flips = [
        (position, bit)
        for position in range(len(data))
        if position not in payload
        for bit in range(8)
    ]
    assert len(flips) > 2000
    for position, bit in flips:
        damaged = bytearray(data)
        damaged[position] ^= 1 << bit
        assert_refused(bytes(damaged))


def test_every_bit_of_a_member_counts() -> None:
    data = encode(CONTENTS)
    for member in parse(data).values():
        for position in range(8 * member.start, 8 * member.stop):
            damaged = bytearray(data)
            damaged[position // 8] ^= 1 << position % 8
            view = memoryview(damaged)
            found = parse_zip(view, name=NAME)[member.name]
            with pytest.raises(FormatError, match=f"{NAME}: member '{member.name}'"):
                read_member(view, found, name=NAME)


def test_a_file_cut_short_anywhere_is_refused() -> None:
    data = encode(CONTENTS)
    for length in range(len(data)):
        assert_refused(data[:length])
        assert_refused(data[length + 1 :])


def test_a_byte_more_or_less_anywhere_is_refused_or_is_data() -> None:
    data = encode(CONTENTS)
    for position in range(len(data) + 1):
        assert_refused(data[:position] + b"\0" + data[position:])
        if position < len(data):
            assert_refused(data[:position] + data[position + 1 :])


NOT_CANONICAL = "damaged or not canonical"
FAULTS = {
    "junk before": (raw_zip(CONTENTS, before=b"junk"), NOT_CANONICAL),
    "gap before the directory": (raw_zip(CONTENTS, gap=b"\0" * 5), NOT_CANONICAL),
    "junk behind": (raw_zip(CONTENTS) + b"junk", "no zip end record at the end"),
    "zeros behind": (raw_zip(CONTENTS) + bytes(22), "no zip end record at the end"),
    "archive comment": (
        raw_zip(CONTENTS, end={"comment": b"hello"}),
        "no zip end record at the end",
    ),
    "comment that is an end record": (
        raw_zip(CONTENTS, end={"comment": encode_zip([])}),
        "it must end at",
    ),
    "comment claimed": (raw_zip(CONTENTS)[:-2] + b"\1\0", NOT_CANONICAL),
    "second archive appended": (raw_zip(CONTENTS) * 2, "it must end at"),
    "empty archive appended": (raw_zip(CONTENTS) + raw_zip([]), "it must end at"),
    "member comment": (raw_zip(CONTENTS, central={"comment": b"x"}), NOT_CANONICAL),
    "extra field": (
        raw_zip(CONTENTS, central={"extra": b"\xff\xff\0\0"}),
        NOT_CANONICAL,
    ),
    "extra field in the local header": (
        raw_zip(CONTENTS, local={"extra": b"\xff\xff\0\0"}),
        NOT_CANONICAL,
    ),
    "zip64 field that is not needed": (
        raw_zip(CONTENTS[:1], central={"extra": struct.pack("<2HQ", 1, 8, 12)}),
        NOT_CANONICAL,
    ),
    "data descriptor": (
        raw_zip(CONTENTS, descriptor=True, local={"flags": 8}, central={"flags": 8}),
        NOT_CANONICAL,
    ),
    "compressed member": (
        raw_zip(CONTENTS, local={"method": 8}, central={"method": 8}),
        "no stored member",
    ),
    "compressed by the local header": (
        raw_zip(CONTENTS, local={"method": 8}),
        "header of member 'b/c/0'",
    ),
    "encrypted member": (
        raw_zip(CONTENTS, local={"flags": 1}, central={"flags": 1}),
        NOT_CANONICAL,
    ),
    "UTF-8 flag": (
        raw_zip(CONTENTS, local={"flags": 0x800}, central={"flags": 0x800}),
        NOT_CANONICAL,
    ),
    "other time": (
        raw_zip(CONTENTS, local={"time": 1}, central={"time": 1}),
        NOT_CANONICAL,
    ),
    "other mode": (raw_zip(CONTENTS, central={"mode": 0o120777 << 16}), NOT_CANONICAL),
    "other version": (raw_zip(CONTENTS, central={"version": 10}), NOT_CANONICAL),
    "other signature": (
        raw_zip(CONTENTS, central={"signature": 0x04034B50}),
        "no stored member",
    ),
    "sizes that differ": (raw_zip(CONTENTS, central={"csize": 1}), NOT_CANONICAL),
    "local crc differs": (raw_zip(CONTENTS, local={"crc": 0}), "header of member"),
    "overlap": (raw_zip(CONTENTS, central={"offset": 0}), NOT_CANONICAL),
    "duplicate member": (raw_zip([CONTENTS[0]] * 2), "'b/c/0' occurs twice"),
    "name not ASCII": (raw_zip([("ü", b"x")]), "is not ASCII"),
    "count too small": (raw_zip(CONTENTS, end={"count": 2, "all": 2}), NOT_CANONICAL),
    "count too large": (
        raw_zip(CONTENTS, end={"count": 4, "all": 4}),
        "ends before its entry 3 of 4",
    ),
    "counts that differ": (raw_zip(CONTENTS, end={"count": 2}), NOT_CANONICAL),
    "several disks": (raw_zip(CONTENTS, end={"disk": 1}), NOT_CANONICAL),
    "zip64 without its record": (
        raw_zip(CONTENTS, end={"count": 0xFFFF, "all": 0xFFFF}),
        "zip64 end record is missing",
    ),
    "directory outside": (raw_zip(CONTENTS, end={"start": 10**6}), "it must end at"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_malformed_file_is_refused(fault: str) -> None:
    assert_refused(*FAULTS[fault])


def test_members_in_another_order_than_the_directory_are_refused() -> None:
    data = encode(CONTENTS)
    start = data.index(b"PK\x01\x02")
    entries = [b"PK\x01\x02" + e for e in data[start:-22].split(b"PK\x01\x02")[1:]]
    turned = data[:start] + b"".join(entries[::-1]) + data[-22:]
    with zipfile.ZipFile(io.BytesIO(turned)) as archive:
        assert archive.testzip() is None
    assert_refused(turned, NOT_CANONICAL)


def test_files_of_python_are_refused_unless_they_are_ours(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = tmp_path / "x.zip"
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in CONTENTS:
                archive.writestr(name, data)
        assert_refused(path.read_bytes())


@settings(deadline=None, max_examples=300)
@given(st.randoms(use_true_random=False))
def test_damage_of_any_kind_gives_an_error_or_changes_data_only(
    rng: random.Random,
) -> None:
    data = bytearray(encode(CONTENTS))
    for _ in range(rng.randint(1, 6)):
        position = rng.randrange(len(data))
        value = rng.choice([0, 0xFF, rng.randrange(256)])
        data[position : position + rng.choice([1, 2, 4, 8])] = bytes([value]) * 4
    try:
        found = parse(bytes(data))
    except FormatError:
        return
    assert list(found.values()) == list(parse(encode(CONTENTS)).values())
