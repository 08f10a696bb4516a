"""A place where a new buffer is made: empty before, whole after, or as it was.

Owns what may lie there from a program that was killed. Knows no format.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Final

from zarrbuf.common.uuids import new_uuid
from zarrbuf.errors import ConflictError, InvalidInputError, StorageError
from zarrbuf.manifest.actions import Action
from zarrbuf.manifest.commit_log import CommitLog
from zarrbuf.manifest.identity import (
    create_root,
    encode_root,
    find_root,
    parse_root,
    read_root,
)
from zarrbuf.manifest.layout import (
    MANIFEST_DIR,
    ROOT_NAME,
    SEGMENT_DIR,
    TRAJECTORY_DIR,
)
from zarrbuf.manifest.snapshot import Snapshot
from zarrbuf.rlinf.index import INDEX_NAME, METADATA_NAME
from zarrbuf.storage.contract import TMP_DIR, Storage
from zarrbuf.storage.local import LocalStorage

_LEFTOVERS: Final = {TRAJECTORY_DIR, SEGMENT_DIR, TMP_DIR}


class Created:
    """A place where a buffer or a folder of files is made, name by name.

    Nothing is taken away when that fails: what lies there may be another's by then. The
    same call goes on with it, or a vacuum frees it.
    """

    def __init__(self, storage: Storage) -> None:
        """Start with nothing written on `storage`."""
        self.storage = storage
        self.num_bytes = 0
        self._names: list[str] = []

    def claim(self, uuid: str) -> None:
        """Make the place that of the buffer `uuid`, before anything is written there.

        Raises:
            ConflictError: if somebody else did so first.
            StorageError: if the storage failed.
        """
        if find_root(self.storage) is None:
            self.storage.check_create()
            create_root(self.storage, encode_root(self.storage, uuid=uuid))

    def create(self, name: str, data: bytes) -> None:
        """Have an object. Safe between threads.

        Raises:
            ConflictError: if it is there with other bytes.
            StorageError: if it is not surely there then.
        """
        self.storage.ensure(name, data)
        self._names.append(name)

    def reuse(self, name: str) -> None:
        """Use an object that a program left that was stopped: it counts as new again.

        So that no vacuum takes it for forgotten.
        """
        self.storage.settle(name)
        self._names.append(name)

    def check_there(self) -> None:
        """Check that what was written or reused is there still, before it is listed.

        Raises:
            StorageError: if whoever else used it has taken it away.
        """
        below = {name: name.rpartition("/")[0] for name in self._names}
        directories = sorted({one for one in below.values() if one})
        there = set(self.storage.list_times(directories) if directories else ())
        if "" in below.values():
            there |= set(self.storage.list_names(""))
        gone = [name for name in self._names if name not in there]
        if gone:
            raise StorageError(
                f"{self.storage.describe(gone[0])} was taken away by another program; "
                "the same call goes on"
            )

    def commit(self, actions: Sequence[Action], *, op: str) -> None:
        """Make the first commit of the buffer that was claimed; `op` is for people.

        Raises:
            ConflictError: if somebody else made it meanwhile.
            StorageError: if the storage failed.
        """

        def build(now: Snapshot) -> Sequence[Action]:
            self.check_there()
            if now.version:
                raise ConflictError(
                    f"{self.storage.url}: somebody else made a buffer there meanwhile; "
                    "theirs stands, nothing of it was changed"
                )
            return actions

        CommitLog(self.storage, read_root(self.storage)).commit(build, op=op)


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
    leftovers = _LEFTOVERS
    if not files and not storage.list_names(MANIFEST_DIR):  # claimed, and no more
        leftovers = {*_LEFTOVERS, ROOT_NAME, MANIFEST_DIR}
    if files and METADATA_NAME not in names:
        leftovers = {*leftovers, INDEX_NAME}  # which comes before it
    found = [name for name in names if name not in leftovers and name not in files]
    if found:
        raise InvalidInputError(
            f"destination {storage.url} is not empty (it holds {found[0]!r}); name one "
            "that is"
        )
    root = find_root(storage)
    if root is None:
        return new_uuid()
    uuid: str = parse_root(root, where=storage.describe(ROOT_NAME))["uuid"]
    return uuid
