"""A directory of a local file system as a storage.

Owns the system calls that make a creation exclusive and durable, and the care that
nothing below the root leads out of it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from zarrbuf.common.uuids import new_uuid
from zarrbuf.errors import NotFoundError, StorageError
from zarrbuf.storage.contract import (
    TMP_DIR,
    Outcome,
    Range,
    Storage,
    checked_name,
    short_object,
)
from zarrbuf.storage.mmap import map_file

_TRIES: Final = 5


class LocalStorage(Storage):
    """A directory of a local file system that has hard links."""

    commit_method = "link"

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Use the directory `root`, which need not exist yet."""
        self.root = Path(os.path.abspath(os.fspath(root)))
        self.url = str(self.root)

    def sibling(self, url: str) -> LocalStorage:  # noqa: D102
        return LocalStorage(url)

    def _open_below(self, name: str) -> int:
        """Open a regular file below the root, following no link out of it."""
        *parents, last = checked_name(name).split("/")
        directory = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parents:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                inner = os.open(part, flags, dir_fd=directory)
                os.close(directory)
                directory = inner
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(last, flags, dir_fd=directory)
        finally:
            os.close(directory)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise StorageError(f"{self.describe(name)} is not a regular file")
        return fd

    def read(self, name: str) -> bytes:  # noqa: D102
        try:
            with os.fdopen(self._open_below(name), "rb") as file:
                return file.read()
        except OSError as exc:
            self._raise(exc, "read", name)

    def open_source(self, name: str) -> memoryview:  # noqa: D102
        try:
            fd = self._open_below(name)
            try:
                return map_file(fd)
            finally:
                os.close(fd)
        except OSError as exc:
            self._raise(exc, "map", name)

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:  # noqa: D102
        found = []
        for name, start, stop in ranges:
            source = self.open_source(name)
            if stop > len(source):
                raise short_object(self.describe(name), len(source), stop)
            found.append(bytes(source[start:stop]))
        return found

    def create(self, name: str, data: bytes) -> Outcome:  # noqa: D102
        target = self.root / checked_name(name)
        temporary = self.root / TMP_DIR / new_uuid()
        tries = 0
        while True:
            tries += 1
            try:
                return _create(temporary, target, data)
            except FileNotFoundError as exc:
                # Another program took a directory away that was empty for a moment.
                if tries == _TRIES:
                    self._raise(exc, "create", name)
            except OSError as exc:
                self._raise(exc, "create", name)

    def link_from(self, other: Storage, name: str) -> bool:  # noqa: D102
        if not isinstance(other, LocalStorage):
            return False
        target = self.root / checked_name(name)
        try:
            _make_directory(target.parent)
            os.link(other.root / name, target, follow_symlinks=False)
            _sync_directory(target.parent)
        except FileExistsError:
            self.touch(name)
            return True
        except FileNotFoundError as exc:
            self._raise(exc, "link", name)
        except OSError as exc:
            if exc.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                return False
            self._raise(exc, "link", name)
        return True

    def list_names(self, directory: str) -> list[str]:  # noqa: D102
        path = self.root / checked_name(directory) if directory else self.root
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []
        except OSError as exc:
            self._raise(exc, "list", directory)

    def list_times(self, directories: Sequence[str]) -> dict[str, int]:  # noqa: D102
        found: dict[str, int] = {}
        for directory in directories:
            try:
                with os.scandir(self.root / checked_name(directory)) as entries:
                    for one in entries:
                        if one.is_file(follow_symlinks=False):
                            times = one.stat(follow_symlinks=False)
                            name = f"{directory}/{one.name}"
                            # A link to an old file counts as written now.
                            newest = max(times.st_mtime_ns, times.st_ctime_ns)
                            found[name] = newest // 1_000_000
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as exc:
                self._raise(exc, "list", directory)
        return found

    def touch(self, name: str) -> None:  # noqa: D102
        try:
            os.utime(self.root / checked_name(name), follow_symlinks=False)
        except OSError as exc:
            self._raise(exc, "touch", name)

    def delete(self, name: str) -> None:  # noqa: D102
        try:
            (self.root / checked_name(name)).unlink(missing_ok=True)
        except OSError as exc:
            self._raise(exc, "delete", name)

    def delete_empty_directories(  # noqa: D102
        self, directories: Sequence[str], *, keep_root: bool
    ) -> None:
        for top in directories:
            for directory, _, _ in os.walk(self.root / top, topdown=False):
                with suppress(OSError):  # not empty: that is what rmdir is for here
                    os.rmdir(directory)
        if not keep_root:
            with suppress(OSError):
                os.rmdir(self.root)

    def _raise(self, exc: OSError, verb: str, name: str) -> NoReturn:
        if isinstance(exc, StorageError | NotFoundError):
            raise exc
        where = self.describe(name)
        if isinstance(exc, NotADirectoryError) and self.root.is_file():
            error = StorageError if verb == "create" else NotFoundError
            raise error(f"{self.url} is a file, not a directory") from exc
        if isinstance(exc, FileNotFoundError | NotADirectoryError) and verb != "create":
            raise NotFoundError(f"{where} does not exist") from exc
        if exc.errno in (errno.ELOOP, errno.ENXIO):
            raise StorageError(f"{where} is a link or no regular file") from exc
        hint = ""
        if verb == "create" and exc.errno in (errno.EPERM, errno.ENOTSUP):
            hint = "; a buffer needs a file system with hard links"
        raise StorageError(f"cannot {verb} {where}: {exc.strerror}{hint}") from exc


def _create(temporary: Path, target: Path, data: bytes) -> Outcome:
    """Write a file under a temporary name, then link it to its own."""
    _make_directory(temporary.parent)
    _make_directory(target.parent)
    try:
        _write_durably(temporary, data)
        return _link_durably(temporary, target)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _make_directory(path: Path) -> None:
    """Create a directory and its parents so that they survive a power loss."""
    if path.is_dir():
        return
    _make_directory(path.parent)
    with suppress(FileExistsError):
        path.mkdir()
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_durably(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def _link_durably(temporary: Path, target: Path) -> Outcome:
    """Give a finished file its name, unless the name is taken.

    A link that fails with EEXIST may still be ours (a network file system repeats a
    request whose answer was lost): then the file has two names.
    """
    try:
        os.link(temporary, target)
    except FileExistsError:
        if os.stat(temporary).st_nlink != 2:
            return Outcome.EXISTS
    try:
        _sync_directory(target.parent)
    except OSError:
        return Outcome.UNKNOWN  # the name is there, and may be gone after a crash
    return Outcome.CREATED
