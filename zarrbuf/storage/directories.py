"""Directories of a local root, by descriptor: no link leads out, what is made lasts.

Owns which directories are known to survive a crash, whoever made them. Knows no files.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class LinkedError(OSError):
    """A link lies where a directory or a file of a buffer should."""

    def __init__(self, name: str) -> None:
        """Keep the name, which is relative to the root."""
        super().__init__(
            errno.ELOOP,
            f"{name} is a link; below the root of a buffer none is followed, only the "
            "root itself may be one",
        )


class Directories:
    """Directories below one root, which may itself be a link."""

    def __init__(self, root: Path) -> None:
        """Use a root, which need not exist yet."""
        self._root = root
        self._lasting: set[tuple[int, int]] = set()  # device and inode

    @contextmanager
    def opened(self, parts: Sequence[str], *, make: bool = False) -> Iterator[int]:
        """Give the descriptor of a directory, closed afterwards.

        Args:
            parts: names of the directories from the root on.
            make: make those that are missing, and have all of them survive a crash.

        Raises:
            LinkedError: if one is a link.
            OSError: as the system says.
        """
        fd = self._open_root(make=make)
        try:
            for number in range(len(parts)):
                inner = self._open_inner(fd, parts[: number + 1], make=make)
                try:
                    if make:
                        self._make_last(inner, fd)
                except BaseException:
                    os.close(inner)
                    raise
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)

    def _open_root(self, *, make: bool) -> int:
        if make:
            _make_root(self._root)
        fd = os.open(self._root, _OPEN)
        if make and _identity(fd) not in self._lasting:
            try:
                _sync_path(self._root.parent)
                self._lasting.add(_identity(fd))
            except BaseException:
                os.close(fd)
                raise
        return fd

    def _open_inner(self, fd: int, parts: Sequence[str], *, make: bool) -> int:
        name = parts[-1]
        flags = _OPEN | os.O_NOFOLLOW
        try:
            return os.open(name, flags, dir_fd=fd)
        except FileNotFoundError:
            if not make:
                raise
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.ENOTDIR) and is_link(name, fd):
                raise LinkedError("/".join(parts)) from exc
            raise
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=fd)
        return os.open(name, flags, dir_fd=fd)

    def _make_last(self, fd: int, parent: int) -> None:
        """Have a directory survive a crash: whoever made it may have died before."""
        if _identity(fd) in self._lasting:
            return
        device = os.fstat(parent).st_dev
        with os.scandir(parent) as entries:
            there = {(device, one.inode()) for one in entries}
        os.fsync(parent)
        self._lasting |= {_identity(fd), *there}


def is_link(name: str, fd: int) -> bool:
    """Whether a name in a directory is that of a link."""
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _make_root(path: Path) -> None:
    """Make a directory and its parents so that they survive a crash."""
    if path.is_dir():
        return
    _make_root(path.parent)
    with suppress(FileExistsError):
        os.mkdir(path)
    _sync_path(path.parent)


def _sync_path(path: Path) -> None:
    try:
        fd = os.open(path, _OPEN)
    except PermissionError:
        return  # another user's, who made what lies in it
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
