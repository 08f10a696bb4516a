"""Other buffers whose trajectories a manifest names: opened, and known by their uuid.

Owns what is checked before anything of another buffer is read. Knows no row but the
number of its base; a base's own bases are not followed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from zarrbuf.errors import FormatError, NotFoundError, UntrustedBaseError
from zarrbuf.manifest.identity import parse_root, read_root
from zarrbuf.manifest.layout import ROOT_NAME
from zarrbuf.manifest.trust import base_url, check_trusted, place_of, resolve_base
from zarrbuf.storage.contract import Storage
from zarrbuf.storage.local import LocalStorage

Base = Mapping[str, Any]


class Bases:
    """The storages that rows of one buffer lie on, opened when first needed."""

    def __init__(self, storage: Storage) -> None:
        """Open nothing yet; `storage` is the buffer's own."""
        self._own = storage
        self._opened: dict[tuple[str, str], Storage] = {}

    def storage_of(self, number: int, bases: Sequence[Base]) -> Storage:
        """Return where the rows of a base lie.

        Args:
            number: `base` of a row; 0 for the buffer's own.
            bases: those of the manifest.

        Raises:
            UntrustedBaseError: if the base may not be used.
            NotFoundError: if no buffer is there.
            FormatError: if another buffer is there.
        """
        if number == 0:
            return self._own
        base = bases[number - 1]
        key = (base["url"], base["uuid"])
        found = self._opened.get(key)
        if found is None:
            found = self._opened.setdefault(key, open_base(self._own, base))
        return found


def open_base(own: Storage, base: Base) -> Storage:
    """Open the storage of a base; raises what `Bases.storage_of` does."""
    place = resolve_base(own.url, base["url"], where=own.url)
    check_trusted(own.url, place, own.allow_bases, where=own.url)
    storage = own.sibling(place.url)
    _check_links(own, storage)
    where = storage.describe(ROOT_NAME)
    try:
        root = read_root(storage)
    except NotFoundError as exc:
        raise NotFoundError(
            f"{own.url} names trajectories of {storage.url}, where no buffer is"
        ) from exc
    uuid = parse_root(root, where=where)["uuid"]
    if uuid != base["uuid"]:
        raise FormatError(
            f"{own.url} names trajectories of the buffer {base['uuid']} at "
            f"{storage.url}, but {where} is of the buffer {uuid}"
        )
    return storage


def _check_links(own: Storage, base: Storage) -> None:
    """Check that a directory that is a link leads where the base may lie itself."""
    if not isinstance(base, LocalStorage):
        return
    here, there = (os.path.realpath(storage.url) for storage in (own, base))
    allowed = [os.path.realpath(place_of(one).path) for one in own.allow_bases]
    check_trusted(here, place_of(there), [*own.allow_bases, *allowed], where=own.url)


def make_base(own: Storage, other: Storage, *, uuid: str) -> Base:
    """Return what the manifest of a buffer says of another one.

    Raises:
        InvalidInputError: if it cannot name it.
        UntrustedBaseError: if who opens the buffer would not be let to the other one.
    """
    base = {"url": base_url(own.url, other.url), "uuid": uuid}
    place = resolve_base(own.url, base["url"], where=own.url)
    try:
        check_trusted(own.url, place, own.allow_bases, where=own.url)
    except UntrustedBaseError as exc:
        raise UntrustedBaseError(
            f"{exc}, here and whenever it is opened; or bring the trajectories along "
            "(mode copy)"
        ) from exc
    return base
