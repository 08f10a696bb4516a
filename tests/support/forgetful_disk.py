"""A disk that forgets at a crash what no `fsync` has asked it to keep.

Directories and files lie on the real disk. What would be left after a crash is kept
beside: of a file its bytes at its last `fsync`, of a directory its names at its own.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

Entries = dict[str, int]
"""Name -> inode."""


class ForgetfulDisk:
    """What is left of a directory after a crash.

    Attributes:
        sites: where in the code `fsync` was called: file name and line.
        ignored: of those, which are without effect.
        failing: directories whose next syncs fail: path -> how many.
    """

    def __init__(self, base: Path, patch: pytest.MonkeyPatch) -> None:
        """Watch a directory; what is there now survives."""
        self.base = base
        self.sites: set[tuple[str, int]] = set()
        self.ignored: Collection[tuple[str, int]] = ()
        self.failing: dict[Path, int] = {}
        self._names: dict[int, Entries] = {}
        self._bytes: dict[int, bytes] = {}
        for directory, _, files in os.walk(base):
            self._names[os.stat(directory).st_ino] = _listing(directory)
            for name in files:
                path = Path(directory, name)
                self._bytes[path.stat().st_ino] = path.read_bytes()
        patch.setattr(os, "fsync", self._fsync)

    def _fsync(self, fd: int) -> None:
        caller = sys._getframe(1)
        site = (Path(caller.f_code.co_filename).name, caller.f_lineno)
        self.sites.add(site)
        found, path = os.fstat(fd), Path(os.readlink(f"/proc/self/fd/{fd}"))
        if self.failing.get(path, 0):
            self.failing[path] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if site in self.ignored:
            return
        if stat.S_ISDIR(found.st_mode):
            self._names[found.st_ino] = _listing(path)
        else:
            self._bytes[found.st_ino] = Path(f"/proc/self/fd/{fd}").read_bytes()

    def crash(self, target: Path, seed: int | None = None) -> None:
        """Make a copy of what is left.

        Args:
            target: where; made.
            seed: what was not synced may have come through or not, drawn from this;
                None if nothing has.
        """
        self._copy(self.base, target, None if seed is None else random.Random(seed))

    def _copy(self, source: Path, target: Path, rng: random.Random | None) -> None:
        target.mkdir(parents=True)
        now = _listing(source)
        kept = self._names.get(os.stat(source).st_ino, {})
        for name in sorted({*now, *kept}):
            inode = kept.get(name)
            if now.get(name) != inode and rng is not None and rng.random() < 0.5:
                inode = now.get(name)
            if inode is None:
                continue
            here = source / name
            if now.get(name) == inode and here.is_dir():
                self._copy(here, target / name, rng)
            elif inode in self._bytes or not here.is_dir():
                data = self._bytes.get(inode, b"")
                (target / name).write_bytes(data)


def _listing(directory: str | Path) -> Entries:
    with os.scandir(directory) as entries:
        return {one.name: one.inode() for one in entries}
