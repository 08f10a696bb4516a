"""What a storage does: objects by name, read, created exclusively, listed, deleted.

The contract that `local` and `object_store` keep. Names and bytes, not what
they mean. A name is created once and never changed; whether a creation is exclusive and
durable is what commits stand on.
"""

from __future__ import annotations

import abc
import enum
import random
import time
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, NamedTuple

from zarrbuf.common.uuids import new_uuid
from zarrbuf.errors import (
    ConflictError,
    FormatError,
    InvalidInputError,
    NotFoundError,
    StorageError,
)
from zarrbuf.storage.block_cache import DiskCache

TMP_DIR: Final = "tmp"
"""Where storages keep what is not finished, and what is only tried."""


class Range(NamedTuple):
    """Bytes [start, stop) of an object."""

    name: str
    start: int
    stop: int


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
        deadline_s: seconds after which a request that gets no answer is given up.
        range_cache: where ranges of objects are kept that were fetched, if anywhere.
        allow_bases: roots that a manifest here may name besides those beside it.
        is_remote: whether every read is a request, so that one asks for ranges, and
            for many at once.
    """

    url: str
    commit_method: str
    deadline_s: float = 60.0
    range_cache: DiskCache | None = None
    allow_bases: tuple[str, ...] = ()
    is_remote: ClassVar[bool] = False

    @abc.abstractmethod
    def sibling(self, url: str) -> Storage:
        """Return another root of the same kind, reached the same way.

        Args:
            url: of a place that was checked, see `manifest.trust`.
        """

    @abc.abstractmethod
    def read(self, name: str, *, max_bytes: int | None = None) -> bytes:
        """Return all bytes of an object.

        Args:
            name: of the object.
            max_bytes: refuse a larger one before memory is asked for it.

        Raises:
            FormatError: if it is larger.
        """

    @abc.abstractmethod
    def open_source(self, name: str) -> memoryview:
        """Return an object's bytes for random reading, mapped where possible."""

    @abc.abstractmethod
    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """Return bytes of objects, all asked for at once where that is faster.

        Raises:
            FormatError: if an object ends before a range does.
        """

    @abc.abstractmethod
    def create(self, name: str, data: bytes) -> Outcome:
        """Create an object unless the name is taken.

        Returns:
            CREATED once the object is durable; EXISTS if the name was taken; UNKNOWN
            if it may or may not have been created. Of what that means, `ensure` knows
            for objects that are written once, the log for its commits.

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
    def list_times(self, directories: Sequence[str]) -> dict[str, int]:
        """Return names in some directories, and when each was written.

        Args:
            directories: as of `list_names`; those that are not there have no names.

        Returns:
            Full name -> ms since 1970; what has no known time counts as written now.
        """

    @property
    def place(self) -> tuple[object, ...]:
        """What tells this root from any other, by whatever path it was reached."""
        return (self.url,)

    def settle(self, name: str) -> None:  # noqa: B027
        """Have an object that is there survive a crash; on a disk it is new again.

        On stores it survives already, and keeps the time at which it was written.

        Raises:
            StorageError: if it may be gone after a crash.
        """

    @abc.abstractmethod
    def delete(self, name: str) -> None:
        """Delete an object; one that is absent is no error."""

    def ensure(self, name: str, data: bytes) -> None:
        """Have an object that is written once, whoever creates it; see `ensure_all`."""
        self.ensure_all({name: data})

    def ensure_all(self, objects: Mapping[str, bytes]) -> None:
        """Have objects that are written once, at once where that is faster.

        It is tried until the deadline. When this returns all of them are durable, with
        these bytes, by this call or another. What it leaves when it fails may be used
        by somebody else: nobody deletes it but a vacuum.

        Raises:
            ConflictError: if a name is taken by other bytes.
            StorageError: if one is surely not there, or it stayed unknown.
        """
        waiting = dict(objects)
        deadline = time.monotonic() + self.deadline_s
        while True:
            outcomes = self.create_all(waiting)
            waiting = {
                name: data
                for (name, data), outcome in zip(waiting.items(), outcomes, strict=True)
                if outcome is not Outcome.CREATED and not self._is_there(name, data)
            }
            if not waiting:
                return
            if time.monotonic() > deadline:
                raise StorageError(
                    f"{self.describe(next(iter(waiting)))} may or may not be there; "
                    f"{self.deadline_s:g} s of trying did not tell"
                )
            time.sleep(random.uniform(0.01, 0.1))

    def _is_there(self, name: str, data: bytes) -> bool:
        """Whether an object has these bytes and survives a crash."""
        found = self.read_existing([name])[0]
        if found is None:
            return False
        if found != data:
            raise taken(self.describe(name))
        try:
            self.settle(name)
        except StorageError:
            return False
        return True

    def create_all(self, objects: Mapping[str, bytes]) -> list[Outcome]:
        """Do what `create` does for several objects, at once where that is faster."""
        return [self.create(name, data) for name, data in objects.items()]

    def now_ms(self) -> int:
        """Return what time it is to the storage, ms since 1970.

        Ages of objects are told by its clock, and no other.
        """
        probe = f"{TMP_DIR}/{new_uuid()}"
        self.ensure(probe, b"")
        written = self.list_times([TMP_DIR]).get(probe)
        self.delete(probe)
        if written is None:
            raise StorageError(f"{self.describe(probe)} was taken away at once")
        return written

    def check_create(self) -> None:  # noqa: B027
        """Make sure that creations are exclusive here, before a buffer relies on it.

        Raises:
            StorageError: if the storage takes a name twice.
        """

    def delete_empty_directories(  # noqa: B027
        self, directories: Sequence[str], *, keep_root: bool
    ) -> None:
        """Delete some directories where no object lies below, perhaps the root too."""

    def read_existing(
        self, names: Sequence[str], *, max_bytes: int | None = None
    ) -> list[bytes | None]:
        """Return the bytes of each object, None for those that are not there.

        Args:
            names: of the objects.
            max_bytes: see `read`.
        """
        found: list[bytes | None] = []
        for name in names:
            try:
                found.append(self.read(name, max_bytes=max_bytes))
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


def checked_name(name: str) -> str:
    """Return a name that stays below the root; names come from our own grammar."""
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise InvalidInputError(
            f"object name {name!r:.80} is not allowed: parts between '/' are neither "
            "empty nor '.' nor '..'"
        )
    return name


def taken(name: str) -> ConflictError:
    """Return the error for a name that has other bytes than it shall get."""
    return ConflictError(
        f"{name} is there with other bytes: of another program, or of a call that was "
        "stopped; nothing was overwritten"
    )


def large_object(name: str, max_bytes: int) -> FormatError:
    """Return the error for an object that is larger than one of its kind can be."""
    return FormatError(f"{name} has more than the {max_bytes} bytes that are allowed")


def short_object(name: str, num_bytes: int, stop: int) -> FormatError:
    """Return the error for an object that ends before a range of it does."""
    return FormatError(f"{name} has {num_bytes} bytes; {stop} are expected at least")
