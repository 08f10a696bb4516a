"""Where objects lie: read, map, create exclusively, list, delete.

The only room that imports fsspec and that calls the operating system for files. It
knows names and bytes, not what they mean. A name is created once and never changed;
whether a creation is exclusive and durable is what commits stand on.
"""

from __future__ import annotations

import abc
import enum
import errno
import os
import stat
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import unquote

import fsspec

from zarrbuf.errors import InvalidInputError, NotFoundError, StorageError
from zarrbuf.format import TMP_DIR, new_uuid
from zarrbuf.mapping import map_file


class Outcome(enum.Enum):
    """What became of an exclusive creation."""

    CREATED = "created"
    EXISTS = "exists"
    UNKNOWN = "unknown"


class Storage(abc.ABC):
    """Immutable objects by name below one root.

    Names are relative, with `/` between parts. Every method may raise
    `StorageError`, and `NotFoundError` where it reads what is not there.

    Attributes:
        url: the root, as messages show it.
        commit_method: how exclusive creation is done, as `zarrbuf.json` records it.
    """

    url: str
    commit_method: str

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """Return all bytes of an object."""

    @abc.abstractmethod
    def open_source(self, name: str) -> memoryview:
        """Return an object's bytes for random reading, mapped where possible."""

    @abc.abstractmethod
    def create(self, name: str, data: bytes) -> Outcome:
        """Create an object unless the name is taken.

        Returns:
            CREATED once the object is durable; EXISTS if the name was taken; UNKNOWN
            if it may or may not have been created.

        Raises:
            StorageError: if it surely was not created; nothing is left behind.
        """

    @abc.abstractmethod
    def link_from(self, other: Storage, name: str) -> bool:
        """Take over an object of another storage under the same name, free of copies.

        Returns:
            False where the storages cannot share bytes; the object is then absent.
        """

    @abc.abstractmethod
    def list_names(self, directory: str) -> list[str]:
        """Return the sorted names in a directory; none if it is not there."""

    @abc.abstractmethod
    def delete(self, name: str) -> None:
        """Delete an object; one that is absent is no error."""

    def put(self, name: str, data: bytes) -> None:
        """Make an object whose name nobody else uses durable; again is no error.

        Raises:
            StorageError: if it was not created, or it is unknown whether it was.
        """
        outcome = self.create(name, data)
        if outcome is Outcome.UNKNOWN:
            raise StorageError(f"{self.describe(name)} may or may not be there; retry")
        if outcome is Outcome.EXISTS and self.read(name) != data:
            raise StorageError(f"{self.describe(name)} is there with other content")

    def delete_empty_directories(self) -> None:  # noqa: B027
        """Delete directories that hold no object, the root included."""

    def read_existing(self, names: Sequence[str]) -> list[bytes | None]:
        """Return the bytes of each object, None for those that are not there."""
        found: list[bytes | None] = []
        for name in names:
            try:
                found.append(self.read(name))
            except NotFoundError:
                found.append(None)
        return found

    def exists(self, name: str) -> bool:
        """Whether the object is there."""
        directory, _, last = name.rpartition("/")
        return last in self.list_names(directory)

    def describe(self, name: str) -> str:
        """Return the full name of an object, for messages."""
        return f"{self.url.rstrip('/')}/{name}" if name else self.url


def _checked(name: str) -> str:
    """Return a name that stays below the root; names come from our own grammar."""
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise InvalidInputError(
            f"object name {name!r:.80} is not allowed: parts between '/' are neither "
            "empty nor '.' nor '..'"
        )
    return name


class LocalStorage(Storage):
    """A directory of a local file system that has hard links."""

    commit_method = "link"

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Use the directory `root`, which need not exist yet."""
        self.root = Path(os.path.abspath(os.fspath(root)))
        self.url = str(self.root)

    def _open_below(self, name: str) -> int:
        """Open a regular file below the root, following no link out of it."""
        *parents, last = _checked(name).split("/")
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

    def create(self, name: str, data: bytes) -> Outcome:  # noqa: D102
        target = self.root / _checked(name)
        temporary = self.root / TMP_DIR / new_uuid()
        try:
            _make_directory(temporary.parent)
            _make_directory(target.parent)
            try:
                _write_durably(temporary, data)
                return _link_durably(temporary, target)
            finally:
                with suppress(OSError):
                    temporary.unlink()
        except OSError as exc:
            self._raise(exc, "create", name)

    def link_from(self, other: Storage, name: str) -> bool:  # noqa: D102
        if not isinstance(other, LocalStorage):
            return False
        target = self.root / _checked(name)
        try:
            _make_directory(target.parent)
            os.link(other.root / name, target, follow_symlinks=False)
            _sync_directory(target.parent)
        except FileExistsError:
            return True
        except FileNotFoundError as exc:
            self._raise(exc, "link", name)
        except OSError as exc:
            if exc.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                return False
            self._raise(exc, "link", name)
        return True

    def list_names(self, directory: str) -> list[str]:  # noqa: D102
        path = self.root / _checked(directory) if directory else self.root
        try:
            return sorted(os.listdir(path))
        except FileNotFoundError:
            return []
        except OSError as exc:
            self._raise(exc, "list", directory)

    def delete(self, name: str) -> None:  # noqa: D102
        try:
            (self.root / _checked(name)).unlink(missing_ok=True)
        except OSError as exc:
            self._raise(exc, "delete", name)

    def delete_empty_directories(self) -> None:  # noqa: D102
        for directory, _, _ in os.walk(self.root, topdown=False):
            with suppress(OSError):  # not empty: that is what rmdir is for here
                os.rmdir(directory)

    def _raise(self, exc: OSError, verb: str, name: str) -> NoReturn:
        if isinstance(exc, StorageError | NotFoundError):
            raise exc
        where = self.describe(name)
        if isinstance(exc, FileNotFoundError | NotADirectoryError) and verb != "create":
            raise NotFoundError(f"{where} does not exist") from exc
        if exc.errno in (errno.ELOOP, errno.ENXIO):
            raise StorageError(f"{where} is a link or no regular file") from exc
        hint = ""
        if verb == "create" and exc.errno in (errno.EPERM, errno.ENOTSUP):
            hint = "; a buffer needs a file system with hard links"
        raise StorageError(f"cannot {verb} {where}: {exc.strerror}{hint}") from exc


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


_MEMORY_LOCK: Final = threading.Lock()


class MemoryStorage(Storage):
    """fsspec's in-process `memory://` file system; gone with the process."""

    commit_method = "lock"

    def __init__(self, url: str) -> None:
        """Use the directory that `url` names, which need not exist yet."""
        self.url = url.rstrip("/")
        self._fs: Any = fsspec.filesystem("memory")
        self._root = "/" + url[len("memory://") :].strip("/")

    def _path(self, name: str) -> str:
        return f"{self._root}/{_checked(name)}" if name else self._root

    def read(self, name: str) -> bytes:  # noqa: D102
        try:
            data: bytes = self._fs.cat_file(self._path(name))
        except (FileNotFoundError, IsADirectoryError) as exc:
            raise NotFoundError(f"{self.describe(name)} does not exist") from exc
        return data

    def open_source(self, name: str) -> memoryview:  # noqa: D102
        return memoryview(self.read(name))

    def create(self, name: str, data: bytes) -> Outcome:  # noqa: D102
        # fsspec's own exclusive mode looks first and writes then, without a lock.
        with _MEMORY_LOCK:
            if self._fs.exists(self._path(name)):
                return Outcome.EXISTS
            self._fs.pipe_file(self._path(name), data)
        return Outcome.CREATED

    def link_from(self, other: Storage, name: str) -> bool:  # noqa: D102
        return False

    def list_names(self, directory: str) -> list[str]:  # noqa: D102
        try:
            paths = self._fs.ls(self._path(directory), detail=False)
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)

    def delete(self, name: str) -> None:  # noqa: D102
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))


def open_storage(path: str | os.PathLike[str]) -> Storage:
    """Return the storage at a local path, a `file://` or a `memory://` URL.

    Raises:
        InvalidInputError: for an empty path, a chained URL or another scheme.
    """
    if not isinstance(path, str | os.PathLike):
        raise InvalidInputError(f"path {path!r} is not allowed: a string is needed")
    text = os.fspath(path)
    if not isinstance(text, str) or not text or "\0" in unquote(text):
        raise InvalidInputError(f"path {text!r} is not allowed: a name is needed")
    if "::" in text:
        raise InvalidInputError(f"path {text!r} is not allowed: URLs are not chained")
    scheme = text.partition("://")[0] if "://" in text else ""
    if scheme == "":
        return LocalStorage(text)
    if scheme == "file":
        local = text[len("file://") :].removeprefix("localhost")
        if not local.startswith("/"):
            raise InvalidInputError(
                f"path {text!r} is not allowed: file:///absolute/path is needed"
            )
        return LocalStorage(unquote(local))
    if scheme == "memory":
        return MemoryStorage(text)
    raise InvalidInputError(
        f"path {text!r} has scheme {scheme!r}; allowed are local paths, file:// and "
        "memory://"
    )
