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
    large_object,
    short_object,
    taken,
)
from zarrbuf.storage.directories import Directories, LinkedError
from zarrbuf.storage.mmap import map_file

_TRIES: Final = 5


class LocalStorage(Storage):
    """A directory of a local file system that has hard links."""

    commit_method = "link"

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Use the directory `root`, which need not exist yet."""
        self.root = Path(os.path.abspath(os.fspath(root)))
        self.url = str(self.root)
        self._directories = Directories(self.root)

    def sibling(self, url: str) -> LocalStorage:  # noqa: D102
        return LocalStorage(url)

    @property
    def place(self) -> tuple[object, ...]:  # noqa: D102
        try:
            found = os.stat(self.root)
        except OSError:
            return (self.url,)
        return (found.st_dev, found.st_ino)

    def _open_below(self, name: str) -> int:
        """Open a regular file below the root, following no link."""
        *parents, last = checked_name(name).split("/")
        with self._directories.opened(parents) as directory:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(last, flags, dir_fd=directory)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise StorageError(f"{self.describe(name)} is not a regular file")
        return fd

    def read(self, name: str, *, max_bytes: int | None = None) -> bytes:  # noqa: D102
        try:
            with os.fdopen(self._open_below(name), "rb") as file:
                if max_bytes is None:
                    return file.read()
                # Its size first, which costs nothing; it may grow meanwhile.
                size = os.fstat(file.fileno()).st_size
                data = file.read(size + 1) if size <= max_bytes else b""
                if size > max_bytes or len(data) > max_bytes:
                    raise large_object(self.describe(name), max_bytes)
                return data
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
        *parents, last = checked_name(name).split("/")
        tries = 0
        while True:
            tries += 1
            try:
                with (
                    self._directories.opened([TMP_DIR], make=True) as temporary,
                    self._directories.opened(parents, make=True) as target,
                ):
                    return _create(temporary, target, last, data)
            except FileNotFoundError as exc:
                # Another program took a directory away that was empty for a moment.
                if tries == _TRIES:
                    self._raise(exc, "create", name)
            except OSError as exc:
                self._raise(exc, "create", name)

    def settle(self, name: str) -> None:  # noqa: D102
        *parents, last = checked_name(name).split("/")
        try:
            fd = self._open_below(name)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            with self._directories.opened(parents, make=True) as directory:
                os.utime(last, dir_fd=directory, follow_symlinks=False)
                os.fsync(directory)
        except OSError as exc:
            self._raise(exc, "sync", name)

    def link_from(self, other: Storage, name: str) -> bool:  # noqa: D102
        if not isinstance(other, LocalStorage):
            return False
        *parents, last = checked_name(name).split("/")
        try:
            source = other._open_below(name)
        except OSError as exc:
            other._raise(exc, "read", name)
        try:
            with (
                other._directories.opened(parents) as there,
                self._directories.opened(parents, make=True) as here,
            ):
                try:
                    os.link(
                        *(last, last),
                        src_dir_fd=there,
                        dst_dir_fd=here,
                        follow_symlinks=False,
                    )
                except FileExistsError:
                    self._check_same(name, source)
            self.settle(name)
        except OSError as exc:
            if exc.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                return False
            self._raise(exc, "link", name)
        finally:
            os.close(source)
        return True

    def _check_same(self, name: str, source: int) -> None:
        """Refuse a name that is taken by another file with other bytes."""
        fd = self._open_below(name)
        with os.fdopen(fd, "rb") as mine, os.fdopen(os.dup(source), "rb") as theirs:
            if os.path.sameopenfile(fd, source):
                return
            theirs.seek(0)
            if mine.read() != theirs.read():
                raise taken(self.describe(name))

    def list_names(self, directory: str) -> list[str]:  # noqa: D102
        parts = checked_name(directory).split("/") if directory else []
        try:
            with self._directories.opened(parts) as fd:
                return sorted(os.listdir(fd))
        except FileNotFoundError:
            return []
        except OSError as exc:
            self._raise(exc, "list", directory)

    def list_times(self, directories: Sequence[str]) -> dict[str, int]:  # noqa: D102
        found: dict[str, int] = {}
        for directory in directories:
            try:
                with (
                    self._directories.opened(checked_name(directory).split("/")) as fd,
                    os.scandir(fd) as entries,
                ):
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

    def exists(self, name: str) -> bool:  # noqa: D102
        *parents, last = checked_name(name).split("/")
        try:
            with self._directories.opened(parents) as directory:
                os.stat(last, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as exc:
            if isinstance(exc, NotADirectoryError) and not self.root.is_file():
                return False
            self._raise(exc, "look for", name)
        return True

    def now_ms(self) -> int:  # noqa: D102
        name = new_uuid()
        try:
            with self._directories.opened([TMP_DIR], make=True) as directory:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                fd = os.open(name, flags, 0o666, dir_fd=directory)
                try:
                    written = os.fstat(fd).st_mtime_ns
                finally:
                    os.close(fd)
                    os.unlink(name, dir_fd=directory)
        except OSError as exc:
            self._raise(exc, "create", f"{TMP_DIR}/{name}")
        return written // 1_000_000

    def delete(self, name: str) -> None:  # noqa: D102
        *parents, last = checked_name(name).split("/")
        try:
            with self._directories.opened(parents) as directory:
                os.unlink(last, dir_fd=directory)
        except FileNotFoundError:
            return
        except OSError as exc:
            self._raise(exc, "delete", name)

    def delete_empty_directories(  # noqa: D102
        self, directories: Sequence[str], *, keep_root: bool
    ) -> None:
        with suppress(OSError), self._directories.opened([]) as root:
            for top in directories:
                for _, inner, _, fd in os.fwalk(top, topdown=False, dir_fd=root):
                    for name in inner:
                        with suppress(OSError):  # not empty: what rmdir is for here
                            os.rmdir(name, dir_fd=fd)
                with suppress(OSError):
                    os.rmdir(top, dir_fd=root)
        if not keep_root:
            with suppress(OSError):
                os.rmdir(self.root)

    def _raise(self, exc: OSError, verb: str, name: str) -> NoReturn:
        if isinstance(exc, StorageError | NotFoundError):
            raise exc
        where = self.describe(name)
        if isinstance(exc, LinkedError):
            raise StorageError(f"cannot {verb} {where}: {exc.strerror}") from exc
        is_written = verb in ("create", "sync", "link")
        if isinstance(exc, NotADirectoryError) and self.root.is_file():
            error = StorageError if is_written else NotFoundError
            raise error(f"{self.url} is a file, not a directory") from exc
        if isinstance(exc, FileNotFoundError | NotADirectoryError) and not is_written:
            raise NotFoundError(f"{where} does not exist") from exc
        if exc.errno in (errno.ELOOP, errno.ENXIO):
            raise StorageError(f"{where} is a link or no regular file") from exc
        hint = ""
        if verb == "create" and exc.errno in (errno.EPERM, errno.ENOTSUP):
            hint = "; a buffer needs a file system with hard links"
        raise StorageError(f"cannot {verb} {where}: {exc.strerror}{hint}") from exc


def _create(temporary: int, target: int, name: str, data: bytes) -> Outcome:
    """Write a file under a temporary name, then link it to its own.

    Args:
        temporary: descriptor of the directory for temporary names.
        target: that of the directory where it belongs.
        name: its name there.
        data: its bytes.
    """
    working = new_uuid()
    try:
        _write_durably(temporary, working, data)
        return _link_durably(temporary, working, target, name)
    finally:
        with suppress(OSError):
            os.unlink(working, dir_fd=temporary)


def _write_durably(directory: int, name: str, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(name, flags, 0o666, dir_fd=directory)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def _link_durably(temporary: int, working: str, target: int, name: str) -> Outcome:
    """Give a finished file its name, unless the name is taken.

    A link that fails with EEXIST may still be ours (a network file system repeats a
    request whose answer was lost): then the file has two names.
    """
    try:
        os.link(working, name, src_dir_fd=temporary, dst_dir_fd=target)
    except FileExistsError:
        if os.stat(working, dir_fd=temporary).st_nlink != 2:
            return Outcome.EXISTS
    try:
        os.fsync(target)
    except OSError:
        return Outcome.UNKNOWN  # the name is there, and may be gone after a crash
    return Outcome.CREATED
