"""The zip64 forms: large members, far offsets, many members."""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
import zlib
from pathlib import Path

import pytest

from zarrbuf.archive.zip_file import (
    MAX_MEMBERS,
    Member,
    encode_directory,
    encode_zip,
    parse_zip,
)
from zarrbuf.errors import FormatError

NAME = "folder/some.zarr.zip"


def assert_refused(data: bytes, rule: str) -> None:
    with pytest.raises(FormatError, match=f"{NAME}: .*{rule}"):
        parse_zip(memoryview(data), name=NAME)


GIB4 = 1 << 32
LARGE = {
    "offset just below": [("a", GIB4 - 100)],
    "size just below": [("a", 0xFFFFFFFE), ("b", 3)],
    "size at the mark": [("a", 0xFFFFFFFF), ("b", 3)],
    "size above": [("a", 10), ("b", GIB4 + 7), ("c", 3), ("d", GIB4 + 1)],
    "offset at the mark": [("a", 0xFFFFFFFF - 31), ("b", 3), ("c", 0)],
}


def _write_large(path: Path, sizes: list[tuple[str, int]]) -> list[Member]:
    """Write a file of members of zeros without writing the zeros."""
    members: list[Member] = []
    position = 0
    with path.open("wb") as file:
        for name, size in sizes:
            large = size >= 0xFFFFFFFF
            extra = struct.pack("<2H2Q", 1, 16, size, size) if large else b""
            stored = 0xFFFFFFFF if large else size
            crc = zlib.crc32(bytes(size)) if size < 100 else 0
            header = struct.pack(
                "<4s5H3I2H",
                b"PK\x03\x04",
                *(45 if large else 20, 0, 0, 0, 0x21, crc, stored, stored),
                *(len(name), len(extra)),
            )
            file.seek(position)
            file.write(header + name.encode() + extra)
            start = file.tell()
            position = start + size
            members.append(Member(name, start, position, crc))
        file.seek(position)
        file.write(encode_directory(members))
    return members


@pytest.mark.parametrize("case", LARGE)
def test_large_members_and_offsets(case: str, tmp_path: Path) -> None:
    path = tmp_path / "large.zip"
    members = _write_large(path, LARGE[case])
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        assert [(i.filename, i.file_size) for i in infos] == LARGE[case]
        for info, member in zip(infos, members, strict=True):
            assert info.header_offset < member.start
            if member.size < 100:
                with archive.open(info) as file:  # checks the local header
                    assert file.read(1) == b"\0" * min(member.size, 1)
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
    ):
        assert list(parse_zip(view, name=NAME).values()) == members


def test_a_number_that_is_the_mark_itself_needs_the_extra_field() -> None:
    mark = 0xFFFFFFFF
    member = Member("a", mark + 31, mark + 34, 0)
    assert struct.pack("<2HQ", 1, 8, mark) in encode_directory([member])
    before = Member("a", mark + 30, mark + 33, 0)
    assert struct.pack("<2HQ", 1, 8, mark - 1) not in encode_directory([before])


def test_every_bit_of_zip64_records_counts(tmp_path: Path) -> None:
    path = tmp_path / "large.zip"
    members = _write_large(path, LARGE["size above"])
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        tail = range(members[-1].stop, len(mapped))
        heads = range(members[2].stop, members[3].start)
        assert len(tail) > 300
        for position in (*tail, *heads):
            for bit in range(8):
                mapped[position] ^= 1 << bit
                with memoryview(mapped) as view, pytest.raises(FormatError):
                    parse_zip(view, name=NAME)
                mapped[position] ^= 1 << bit
        with memoryview(mapped) as view:
            assert list(parse_zip(view, name=NAME).values()) == members


def test_sizes_that_no_file_has_are_refused() -> None:
    entry = Member("a", 51, 51 + 5, 0)
    directory = bytearray(encode_directory([entry]))
    for size in (2**64 - 1, 2**63, GIB4):
        large = struct.pack("<2H3Q", 1, 24, size, size, 0)
        forged = directory[:20] + b"\xff" * 8 + directory[28:30] + b"\x1c\0"
        forged += directory[32:47] + large
        end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, len(forged), 0, 0)
        assert_refused(bytes(forged) + end, "would end at byte")
        twice = bytes(forged + forged.replace(b"a", b"b"))
        end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 2, 2, len(twice), 0, 0)
        assert_refused(twice + end, "would end at byte")


def test_more_than_65535_members() -> None:
    for count in (65_534, 65_535):
        data = encode_zip([(str(i), [b""]) for i in range(count)])
        assert (b"PK\x06\x06" in data) == (count >= 65_535)
        assert len(parse_zip(memoryview(data), name=NAME)) == count
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert len(archive.namelist()) == count


def test_a_directory_of_too_many_members_is_refused_before_it_is_read() -> None:
    end64 = struct.pack(
        "<4sQ2H2I4Q", b"PK\x06\x06", 44, 3 << 8 | 45, 45, 0, 0, 2**62, 2**62, 0, 0
    )
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, 0, 1)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0, 0, 0)
    assert_refused(end64 + locator + end, f"at most {MAX_MEMBERS}")
