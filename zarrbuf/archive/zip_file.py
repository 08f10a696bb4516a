"""A stored zip, written canonically and read strictly.

Pure: bytes in, byte ranges out. Every byte of the directory follows from the names,
sizes and checksums of the members, so reading is: take those facts, write the
directory anew, compare. Nothing else hides in it: no comment, no extra field, no
gap, no overlap, no second archive. Layout: PKWARE APPNOTE 6.3.10, sections 4.3.7
(local header), 4.3.12 (directory), 4.3.14 to 4.3.16 (end records).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from zarrbuf.errors import FormatError

Buffer = bytes | memoryview

_LOCAL: Final = struct.Struct("<4s5H3I2H")
_CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
_END: Final = struct.Struct("<4s4H2IH")
_END64: Final = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64: Final = struct.Struct("<4sIQI")
_DATE_1980: Final = 0x21  # 1980-01-01 in MS-DOS form
_MODE: Final = 0o100644 << 16
_MAX32: Final = 0xFFFFFFFF
_MAX16: Final = 0xFFFF
MAX_MEMBERS: Final = 100_000
END_BYTES: Final = _END.size + _LOCATOR64.size + _END64.size
"""What the records at the end of a file may take."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member: its name and the range [start, stop) of its data in the file."""

    name: str
    start: int
    stop: int
    crc: int

    @property
    def size(self) -> int:
        """Bytes of data."""
        return self.stop - self.start


def _version(*, zip64: bool) -> int:
    return 45 if zip64 else 20


def _local_header(name: bytes, size: int, crc: int) -> bytes:
    extra = b""
    stored = size
    if size >= _MAX32:
        extra = struct.pack("<2H2Q", 1, 16, size, size)
        stored = _MAX32
    return (
        _LOCAL.pack(
            b"PK\x03\x04",
            _version(zip64=bool(extra)),
            0,
            0,
            0,
            _DATE_1980,
            crc,
            stored,
            stored,
            len(name),
            len(extra),
        )
        + name
        + extra
    )


def _header_bytes(name: bytes, size: int) -> int:
    return _LOCAL.size + len(name) + (20 if size >= _MAX32 else 0)


def _directory_entry(name: bytes, size: int, crc: int, offset: int) -> bytes:
    large = [n for n in (size, size) if n >= _MAX32]
    large += [offset] if offset >= _MAX32 else []
    extra = struct.pack(f"<2H{len(large)}Q", 1, 8 * len(large), *large) * bool(large)
    version = _version(zip64=bool(extra))
    stored = min(size, _MAX32)
    return (
        _CENTRAL.pack(
            b"PK\x01\x02",
            3 << 8 | version,
            version,
            0,
            0,
            0,
            _DATE_1980,
            crc,
            stored,
            stored,
            len(name),
            len(extra),
            0,
            0,
            0,
            _MODE,
            min(offset, _MAX32),
        )
        + name
        + extra
    )


def encode_directory(members: Sequence[Member]) -> bytes:
    """Return all bytes that follow the last member: directory and end records.

    Args:
        members: in file order, contiguous from the start of the file.
    """
    entries = []
    for member in members:
        name = member.name.encode("ascii")
        offset = member.start - _header_bytes(name, member.size)
        entries.append(_directory_entry(name, member.size, member.crc, offset))
    directory = b"".join(entries)
    start = members[-1].stop if members else 0
    count, size = len(members), len(directory)
    records = b""
    if count >= _MAX16 or size >= _MAX32 or start >= _MAX32:
        records = _END64.pack(
            b"PK\x06\x06", 44, 3 << 8 | 45, 45, 0, 0, count, count, size, start
        ) + _LOCATOR64.pack(b"PK\x06\x07", 0, start + size, 1)
    few = min(count, _MAX16)
    end = _END.pack(
        b"PK\x05\x06", 0, 0, few, few, min(size, _MAX32), min(start, _MAX32), 0
    )
    return directory + records + end


def encode_zip(contents: Iterable[tuple[str, Sequence[Buffer]]]) -> bytes:
    """Return a zip file of stored members.

    Args:
        contents: name (ASCII) and data in pieces, in file order.
    """
    pieces: list[Buffer] = []
    members: list[Member] = []
    position = 0
    for name, data in contents:
        crc = 0
        for piece in data:
            crc = zlib.crc32(piece, crc)
        size = sum(len(piece) for piece in data)
        header = _local_header(name.encode("ascii"), size, crc)
        start = position + len(header)
        pieces += [header, *data]
        members.append(Member(name, start, start + size, crc))
        position = start + size
    pieces.append(encode_directory(members))
    return b"".join(pieces)


def parse_zip(
    view: memoryview, *, name: str, is_whole: bool = True
) -> dict[str, Member]:
    """Read the directory of a zip file.

    Args:
        view: the whole file, mapped or in memory.
        name: name of the file, for messages.
        is_whole: whether all of it is there; else only what `directory_start` says is,
            and the local headers are not looked at.

    Returns:
        Members by name, in file order.

    Raises:
        FormatError: for any byte of the directory, the end records or the local
            headers that `encode_zip` would not have written.
    """
    start, count = directory_start(view, name=name)
    members = _parse_entries(view[start:], count, directory_start=start, name=name)
    expected = encode_directory(members)
    if bytes(view[start:]) != expected:
        raise FormatError(
            f"{name}: the zip directory is damaged or not canonical (rule: stored "
            "members, contiguous, no comment, no extra field)"
        )
    if is_whole:
        _check_local_headers(view, members, name=name)
    return {member.name: member for member in members}


def directory_start(view: memoryview, *, name: str) -> tuple[int, int]:
    """Return where the directory starts and how many members it has.

    Of the file, the last `END_BYTES` have to be there.

    Raises:
        FormatError: if the end records are not those of a stored zip.
    """
    size = len(view)
    if size < _END.size or bytes(view[size - 22 : size - 18]) != b"PK\x05\x06":
        raise FormatError(
            f"{name}: no zip end record at the end of the file ({size} bytes); "
            "the file is cut short, has bytes appended, or is no archive"
        )
    fields = _END.unpack(view[size - 22 :])
    count, length, start = fields[4], fields[5], fields[6]
    stop = size - _END.size
    if count == _MAX16 or length == _MAX32 or start == _MAX32:
        stop -= _LOCATOR64.size + _END64.size
        if stop < 0 or bytes(view[stop : stop + 4]) != b"PK\x06\x06":
            raise FormatError(f"{name}: the zip64 end record is missing")
        fields = _END64.unpack(view[stop : stop + _END64.size])
        count, length, start = fields[7], fields[8], fields[9]
    if start + length != stop:
        raise FormatError(
            f"{name}: the zip directory claims bytes {start} to {start + length}; "
            f"it must end at {stop}, where the end record starts"
        )
    if count > MAX_MEMBERS:
        raise FormatError(f"{name}: {count} members; at most {MAX_MEMBERS} are allowed")
    return start, count


def _parse_entries(
    directory: memoryview, count: int, *, directory_start: int, name: str
) -> list[Member]:
    members: list[Member] = []
    seen: set[str] = set()
    position = 0
    stop = 0
    for number in range(count):
        try:
            entry = _CENTRAL.unpack_from(directory, position)
        except struct.error as exc:
            raise FormatError(
                f"{name}: the zip directory ends before its entry {number} of {count}"
            ) from exc
        if entry[0] != b"PK\x01\x02" or entry[4] != 0:
            raise FormatError(
                f"{name}: entry {number} of the zip directory is no stored member"
            )
        position += _CENTRAL.size
        raw = bytes(directory[position : position + entry[10]])
        extra = bytes(directory[position + entry[10] :][: entry[11]])
        position += entry[10] + entry[11] + entry[12]
        size = _large_size(entry[9], extra)
        try:
            member_name = raw.decode("ascii")
        except UnicodeDecodeError as exc:
            raise FormatError(f"{name}: member name {raw!r:.80} is not ASCII") from exc
        if member_name in seen:
            raise FormatError(f"{name}: member {member_name!r} occurs twice")
        seen.add(member_name)
        start = stop + _header_bytes(raw, size)
        stop = start + size
        if stop > directory_start:
            raise FormatError(
                f"{name}: member {member_name!r:.80} would end at byte {stop}, the "
                f"directory starts at {directory_start}; no overlap is allowed"
            )
        members.append(Member(member_name, start, stop, entry[7]))
    return members


def _large_size(size: int, extra: bytes) -> int:
    if size == _MAX32 and len(extra) >= 12:
        return int.from_bytes(extra[4:12], "little")
    return size


def _check_local_headers(
    view: memoryview, members: Sequence[Member], *, name: str
) -> None:
    for member in members:
        header = _local_header(member.name.encode(), member.size, member.crc)
        if view[member.start - len(header) : member.start] != header:
            raise FormatError(
                f"{name}: the header of member {member.name!r} is not the one that "
                "the directory describes"
            )


def read_member(view: memoryview, member: Member, *, name: str) -> bytes:
    """Return a member's bytes after checking their CRC-32.

    Raises:
        FormatError: if the checksum does not match.
    """
    data = bytes(view[member.start : member.stop])
    if zlib.crc32(data) != member.crc:
        raise FormatError(
            f"{name}: member {member.name!r} is damaged (CRC-32 of its "
            f"{member.size} bytes does not match)"
        )
    return data
