"""A place where a new buffer is made: empty before, whole after, or as it was.

Owns what may lie there from a program that was killed. Knows no format.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Final

from zarrbuf.common.uuids import new_uuid
from zarrbuf.errors import InvalidInputError, StorageError
from zarrbuf.manifest.actions import Action
from zarrbuf.manifest.commit_log import CommitLog
from zarrbuf.manifest.identity import create_root, encode_root, parse_root
from zarrbuf.manifest.layout import (
    DIRECTORIES,
    MANIFEST_DIR,
    ROOT_NAME,
    SEGMENT_DIR,
    TRAJECTORY_DIR,
    commit_path,
)
from zarrbuf.manifest.snapshot import Snapshot
from zarrbuf.rlinf.index import INDEX_NAME, METADATA_NAME
from zarrbuf.storage.contract import TMP_DIR, Outcome, Storage
from zarrbuf.storage.local import LocalStorage

_LEFTOVERS: Final = {TRAJECTORY_DIR, SEGMENT_DIR, TMP_DIR}


class Created:
    """What was written so far of a new buffer, so that it can be taken away again."""

    def __init__(self, storage: Storage) -> None:
        """Start with nothing written on `storage`."""
        self.storage = storage
        local = isinstance(storage, LocalStorage)
        self._had_root = local and os.path.isdir(storage.url)
        self.num_bytes = 0
        self._names: list[str] = []
        self._reused: list[str] = []

    def create(self, name: str, data: bytes) -> None:
        """Create an object that nobody else creates. Safe between threads.

        Raises:
            InvalidInputError: if it is there with other bytes.
            StorageError: if it is not surely there then.
        """
        self._names.append(name)
        outcome = self.storage.create(name, data)
        if outcome is Outcome.EXISTS:
            self._names.remove(name)
            if self.storage.read(name) == data:
                self.reuse(name)
                return
            raise InvalidInputError(
                f"{self.storage.describe(name)} is there with other bytes: of another "
                "call that was stopped, or another program writes there; take it away "
                "or name another destination"
            )
        if outcome is Outcome.UNKNOWN:
            raise StorageError(f"{self.storage.describe(name)} may or may not be there")

    def reuse(self, name: str) -> None:
        """Use an object that a program left that was stopped: it counts as new again.

        So that no vacuum takes it for forgotten.
        """
        self._reused.append(name)
        self.storage.touch(name)

    def check_reused(self) -> None:
        """Check that what was reused is there still, before it is listed.

        Raises:
            StorageError: if whoever else used it has taken it away.
        """
        below = {name: name.rpartition("/")[0] for name in self._reused}
        directories = sorted({one for one in below.values() if one})
        there = set(self.storage.list_times(directories) if directories else ())
        if "" in below.values():
            there |= set(self.storage.list_names(""))
        gone = [name for name in self._reused if name not in there]
        if gone:
            raise StorageError(
                f"{self.storage.describe(gone[0])} was taken away by another program; "
                "the same call goes on"
            )

    def commit(self, actions: Sequence[Action], *, op: str, uuid: str) -> None:
        """Make the buffer `uuid`, its first commit the actions; `op` is for people.

        Raises:
            InvalidInputError: if somebody else made one meanwhile.
            ConflictError: if somebody else makes one at the same time.
            StorageError: if the storage failed.
        """
        segments = [a["path"] for a in actions if a["action"] == "add_segment"]
        self._names += [*segments, commit_path(1)]

        def build(now: Snapshot) -> Sequence[Action]:
            self.check_reused()
            if now.version:
                raise InvalidInputError(
                    f"{self.storage.url}: somebody else made a buffer there meanwhile"
                )
            return actions

        root = self.storage.read_existing([ROOT_NAME])[0]
        if root is None:
            self.storage.check_create()
            root = encode_root(self.storage, uuid=uuid)
            create_root(self.storage, root)
            # From here on it is ours, so that it may be taken away again.
            self._names.append(ROOT_NAME)
        CommitLog(self.storage, root).commit(build, op=op)

    def take_away(self) -> None:
        """Delete what was written, unless the commit that names it landed."""
        with suppress(StorageError):
            if commit_path(1) in self._names and self.storage.exists(commit_path(1)):
                return
            for name in self._names:
                self.storage.delete(name)
            self.storage.delete_empty_directories(DIRECTORIES, keep_root=self._had_root)


def check_outside(storage: Storage, source: Storage) -> None:
    """Refuse a destination that is a source or lies inside of one.

    Raises:
        InvalidInputError: if so.
    """
    inner, outer = (
        os.path.realpath(one.url) if isinstance(one, LocalStorage) else one.url
        for one in (storage, source)
    )
    if inner == outer or inner.startswith(f"{outer.rstrip('/')}/"):
        raise InvalidInputError(
            f"destination {storage.url} lies in the source {source.url}; name a place "
            "outside of it"
        )


def check_empty(storage: Storage, *, files: Collection[str] = ()) -> str:
    """Refuse a destination that holds anything but what a killed program leaves.

    Args:
        storage: the destination.
        files: names of trajectory files that will be written there, for a folder.

    Returns:
        The uuid that a buffer there will have: that of its `zarrbuf.json`, if a killed
        program came so far, or a fresh one.

    Raises:
        InvalidInputError: if it is not empty.
    """
    names = storage.list_names("")
    has_commits = bool(storage.list_names(MANIFEST_DIR))
    leftovers = _LEFTOVERS if has_commits else {*_LEFTOVERS, ROOT_NAME, MANIFEST_DIR}
    if files and METADATA_NAME not in names:
        leftovers = {*leftovers, INDEX_NAME}  # which comes before it
    found = [name for name in names if name not in leftovers and name not in files]
    if found:
        raise InvalidInputError(
            f"destination {storage.url} is not empty (it holds {found[0]!r}); name one "
            "that is"
        )
    root = storage.read_existing([ROOT_NAME])[0]
    if root is None:
        return new_uuid()
    uuid: str = parse_root(root, where=storage.describe(ROOT_NAME))["uuid"]
    return uuid
