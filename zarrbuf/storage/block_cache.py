"""Parts of remote objects kept in a local directory, shared by processes.

A cache: whatever is missing, damaged or deleted here is fetched again, and nothing
here is the only copy of anything. For each object there is a sparse file of its bytes
and one of checksums, one for each block; a block whose checksum does not match is not
there. Owns the directory, its limit and the names below it. Knows no storage.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zarrbuf.errors import InvalidInputError, StorageError
from zarrbuf.storage.ranges import BLOCK_BYTES

_MARKER: Final = "zarrbuf-cache"
_TEXT: Final = b"A cache of zarrbuf's: it may be deleted at any time.\n"
_NAME: Final = re.compile(r"[0-9a-f]{64}\.(data|sums)")
_PAGE_BYTES: Final = 4096
_KEPT_SHARE: Final = 0.9
# Whoever put a link or a FIFO there must not lead elsewhere, or make us wait.
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_USED: Final = struct.Struct("<Q")


@dataclass(frozen=True)
class _Entry:
    """What is kept of one object: its two files, when they were used, their room."""

    stem: str
    used_ns: int
    num_bytes: int


class DiskCache:
    """Ranges of objects in a directory, bounded. Safe between threads and processes.

    Attributes:
        directory: where.
        max_bytes: room that its files take on disk at most.
    """

    def __init__(self, directory: str | os.PathLike[str], *, max_bytes: int) -> None:
        """Use a directory that is a cache, or empty, or not there yet.

        Raises:
            InvalidInputError: if anything else lies there.
            StorageError: if it cannot be made.
        """
        self.directory = Path(os.path.abspath(os.fspath(directory)))
        self.max_bytes = max_bytes
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            marker = self.directory / _MARKER
            others = [name for name in os.listdir(self.directory) if name != _MARKER]
            if others and not marker.is_file():
                raise InvalidInputError(
                    f"cache_dir {str(self.directory)!r} holds {sorted(others)[0]!r:.80}"
                    "; an empty directory is needed, or a cache of before"
                )
            marker.write_bytes(_TEXT)
        except OSError as exc:
            raise StorageError(
                f"cache_dir {str(self.directory)!r} cannot be used: {exc.strerror}"
            ) from exc

    def _path(self, key: str, suffix: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.directory / name[:2] / f"{name}.{suffix}"

    def read(self, key: str, start: int, stop: int) -> bytes | None:
        """Return a range of an object, None if not all of it is kept and sound.

        Args:
            key: which object; its bytes never change.
            start: first byte, at the start of a block.
            stop: end, at the end of a block or of the object.
        """
        try:
            sums = _read(self._path(key, "sums"), *_sum_range(start, stop))
            if len(sums) < 4 * (-(-(stop - start) // BLOCK_BYTES)):
                return None
            path = self._path(key, "data")
            data = _read(path, start, stop)
        except OSError:
            return None
        if len(data) != stop - start or _checksums(data) != sums:
            return None
        with suppress(OSError):
            os.utime(path)  # what was used longest ago goes first
        return data

    def drop(self, key: str) -> None:
        """Forget all that is kept of an object, which turned out to be damaged."""
        for suffix in ("sums", "data"):
            with suppress(OSError):
                self._path(key, suffix).unlink()

    def write(self, ranges: Iterable[tuple[str, int, bytes]]) -> None:
        """Keep ranges of objects, as far as there is room.

        Args:
            ranges: object, first byte and content of each, whole blocks but for the end
                of an object.
        """
        # Whatever fails, the object is elsewhere.
        with suppress(OSError), self._locked() as counter:
            raw = os.pread(counter, _USED.size, 0)
            used = _USED.unpack(raw)[0] if len(raw) == _USED.size else self.max_bytes
            for key, start, data in ranges:
                sums = _checksums(data)
                # Where files have holes, a range takes up to a page more on both sides.
                room = len(data) + len(sums) + 6 * _PAGE_BYTES
                if room > self.max_bytes * (1 - _KEPT_SHARE):
                    continue
                if used + room > self.max_bytes:
                    used = self._make_room()
                used += room
                os.pwrite(counter, _USED.pack(used), 0)
                _write(self._path(key, "data"), start, data)
                # Last, since they say that the data is there.
                _write(self._path(key, "sums"), _sum_range(start, start)[0], sums)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Hold the lock of the directory; gives the file of the bytes in use."""
        flags = os.O_RDWR | os.O_CREAT | _FLAGS
        fd = os.open(self.directory / "used", flags, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd
        finally:
            os.close(fd)

    def _make_room(self) -> int:
        """Delete what was used longest ago, down to a share; return the bytes left."""
        entries = sorted(self._entries(), key=lambda entry: entry.used_ns)
        used = sum(entry.num_bytes for entry in entries)
        for entry in entries:
            if used <= self.max_bytes * _KEPT_SHARE:
                break
            folder = self.directory / entry.stem[:2]
            # Checksums first: without them the data is not there.
            for suffix in ("sums", "data"):
                with suppress(FileNotFoundError):
                    os.unlink(folder / f"{entry.stem}.{suffix}")
            used -= entry.num_bytes
        return used

    def _entries(self) -> Iterator[_Entry]:
        """Yield what is kept of each object."""
        found: dict[str, list[os.stat_result]] = {}
        for folder in os.scandir(self.directory):
            if not re.fullmatch("[0-9a-f]{2}", folder.name) or not folder.is_dir(
                follow_symlinks=False
            ):
                continue
            for file in os.scandir(folder):
                if _NAME.fullmatch(file.name):
                    with suppress(FileNotFoundError):
                        status = file.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            found.setdefault(file.name[:64], []).append(status)
        for stem, both in found.items():
            newest = max(status.st_mtime_ns for status in both)
            yield _Entry(stem, newest, sum(512 * one.st_blocks for one in both))


def _sum_range(start: int, stop: int) -> tuple[int, int]:
    return 4 * (start // BLOCK_BYTES), 4 * (-(-stop // BLOCK_BYTES))


def _checksums(data: bytes) -> bytes:
    """Return the checksum of each block, none of them the 0 of a hole."""
    view = memoryview(data)
    return b"".join(
        (zlib.crc32(view[at : at + BLOCK_BYTES]) or 1).to_bytes(4, "little")
        for at in range(0, len(data), BLOCK_BYTES)
    )


def _read(path: Path, start: int, stop: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | _FLAGS)
    try:
        return os.pread(fd, stop - start, start)
    finally:
        os.close(fd)


def _write(path: Path, start: int, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | _FLAGS, 0o666)
    try:
        view = memoryview(data)
        while view:
            count = os.pwrite(fd, view, start)
            view, start = view[count:], start + count
    finally:
        os.close(fd)
