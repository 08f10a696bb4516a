"""How a merge or a split makes one buffer of rows of others: the contract of backends.

A backend is what was chosen, of sources of one kind, and the way a new buffer of that
kind is made of it: `of_buffers` for zarrbuf's own, `of_folders` for RLinf's.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from zarrbuf.common.jobs import Progress
from zarrbuf.errors import InvalidInputError
from zarrbuf.storage.contract import Storage
from zarrbuf.stores.staging import check_empty, check_outside

Mode = Literal["reference", "hardlink", "copy", "move"]
MODES: Final[tuple[Mode, ...]] = ("reference", "hardlink", "copy", "move")


@dataclass(frozen=True)
class Curation:
    """What a merge or a split made.

    Attributes:
        destination: where the new buffer lies.
        sources: what it was made from.
        mode: how it has the trajectories.
        num_trajectories: trajectories in it.
        total_samples: samples in them.
        num_bytes: bytes of their archives.
        bytes_copied: bytes of archives that were copied.
    """

    destination: str
    sources: tuple[str, ...]
    mode: str
    num_trajectories: int
    total_samples: int
    num_bytes: int
    bytes_copied: int

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return dataclasses.asdict(self)


def check_mode(mode: str | None) -> Mode | None:
    """Return `mode` if there is such a one, or None for a backend's own.

    Raises:
        InvalidInputError: otherwise.
    """
    if mode is None:
        return None
    for known in MODES:
        if mode == known:
            return known
    raise InvalidInputError(f"mode is {mode!r}; allowed are {', '.join(MODES)}")


class Backend(abc.ABC):
    """Rows chosen of sources of one kind, frozen before anything changes a list."""

    @property
    @abc.abstractmethod
    def roots(self) -> Sequence[Storage]:
        """Where the sources lie."""

    @property
    def new_files(self) -> Collection[str]:
        """Files in the root of a destination that a call that was stopped may leave."""
        return ()

    @abc.abstractmethod
    def resolve_mode(self, mode: Mode | None) -> Mode:
        """Return how trajectories are brought, if these sources allow it.

        Raises:
            InvalidInputError: if they do not.
        """

    def check_destination(self, destination: Storage) -> None:
        """Refuse a destination that is not empty, or lies in a source.

        Raises:
            InvalidInputError: if so.
        """
        for root in self.roots:
            check_outside(destination, root)
        check_empty(destination, files=self.new_files)

    @abc.abstractmethod
    def make(
        self,
        destination: Storage,
        *,
        mode: Mode,
        op: str,
        pin: bool,
        progress: Progress | None,
    ) -> Curation:
        """Make a buffer of what was chosen, ids given anew from 0.

        Args:
            destination: where nothing is yet.
            mode: what `resolve_mode` returned.
            op: what is done, for people who read a log.
            pin: have the sources keep what is referenced.
            progress: told of (archives brought, archives in all).

        Raises:
            InvalidInputError: if the destination is not allowed, or fields differ.
            NotFoundError: if an archive or a file is missing.
            FormatError: if one is damaged.
            ConflictError: if a row was taken off the list of its source meanwhile.
            StorageError: if a storage failed; nothing is listed at the destination
                then.
        """
