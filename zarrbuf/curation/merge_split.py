"""Merge and split: whole buffers in, new buffers out.

Owns what the callers may name: paths, URLs and open buffers, of zarrbuf or of RLinf.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zarrbuf.common.arguments import check_whole_number
from zarrbuf.common.jobs import Progress
from zarrbuf.curation.backend import Backend, Curation, check_mode
from zarrbuf.curation.of_buffers import Buffers
from zarrbuf.curation.of_folders import FolderPart, Folders
from zarrbuf.errors import InvalidInputError
from zarrbuf.manifest.predicates import select_where
from zarrbuf.manifest.rows import IntArray
from zarrbuf.manifest.selection import (
    parse_ids,
    select_first,
    select_fractions,
    select_ids,
)
from zarrbuf.storage.contract import Storage
from zarrbuf.storage.resolve import Location, StorageOptions, open_storage
from zarrbuf.stores.contract import TrajectoryStore
from zarrbuf.stores.logged import ChosenRows, LogStore
from zarrbuf.stores.opening import LastingStore, is_buffer, open_source


def merge(
    sources: Sequence[Any],
    destination: Location,
    *,
    mode: str | None = None,
    pin: bool = True,
    storage_options: StorageOptions | None = None,
    allow_bases: Sequence[Location] = (),
    progress: Progress | None = None,
) -> Curation:
    """Make one buffer of several: by id, then by source, ids given anew from 0.

    Args:
        sources: paths, URLs or open buffers, in order.
        destination: where nothing is yet.
        mode: "reference" names the archives where they are and copies none;
            "hardlink" (one local file system) and "copy" make the result independent
            of the sources; "move" also takes the trajectories off the sources' lists.
            None for "reference", and for "copy" where the sources are folders of
            RLinf's, which can only be copied or moved.
        pin: by reference, have the sources keep what is named, whatever is removed
            there; a source that cannot be written needs False.
        storage_options: for object stores, see `TrajectoryReplayBuffer`.
        allow_bases: places besides those beside the destination that it may name;
            who opens it has to allow them too.
        progress: called with (archives brought, archives in all).

    Raises:
        InvalidInputError: if a source is named twice, fields differ between sources, or
            the destination is not empty.
        NotFoundError: if there is no buffer at a source.
        UntrustedBaseError: if a source does not lie beside the destination.
        StorageError: if a storage failed; nothing is listed at the destination then.
    """
    if not isinstance(sources, Sequence) or isinstance(sources, str) or not sources:
        raise InvalidInputError(f"sources are {sources!r:.80}; a list is needed")
    asked_mode = check_mode(mode)
    target = open_storage(destination, storage_options, allow_bases=allow_bases)
    stores = [open_source(one, storage_options, allow_bases) for one in sources]
    _check_distinct(stores)
    backend = _choose(
        stores, [None] * len(stores), is_open=[is_buffer(one) for one in sources]
    )
    known_mode = backend.resolve_mode(asked_mode)
    backend.check_destination(target)
    return backend.make(target, mode=known_mode, op="merge", pin=pin, progress=progress)


def split(
    source: Any,
    destinations: Location | Sequence[Location],
    *,
    count: int | None = None,
    fractions: Sequence[float] | None = None,
    ids: str | Sequence[int] | None = None,
    where: str | None = None,
    seed: int | None = None,
    mode: str | None = None,
    pin: bool = True,
    storage_options: StorageOptions | None = None,
    allow_bases: Sequence[Location] = (),
    progress: Progress | None = None,
) -> list[Curation]:
    """Make buffers of parts of one; exactly one of the selections is given.

    Args:
        source: path, URL or open buffer.
        destinations: where nothing is yet; one path, or a list of one a fraction.
        count: the first so many trajectories, in the order of the list.
        fractions: parts of the list, one after the other, for a destination each.
        ids: trajectories by id, numbers or a text such as "3,7-20".
        where: those for which a condition holds, see `zarrbuf.manifest.predicates`.
        seed: draw the parts of `fractions` at random, the same for the same seed.
        mode: see `merge`.
        pin: see `merge`.
        storage_options: for object stores, see `TrajectoryReplayBuffer`.
        allow_bases: see `merge`.
        progress: called with (archives brought, archives in all), for each part.

    Raises:
        InvalidInputError: if a selection is not allowed or not exactly one is given.
        TrajectoryNotFoundError: if an id is not listed.
        Exception: what `merge` raises.
    """
    if isinstance(destinations, str | os.PathLike):
        destinations = [destinations]
    asked_mode = check_mode(mode)
    targets = [
        open_storage(one, storage_options, allow_bases=allow_bases)
        for one in destinations
    ]
    store = open_source(source, storage_options, allow_bases)
    given = {"count": count, "fractions": fractions, "ids": ids, "where": where}
    selected = _select(store, given, seed=seed)
    if len(targets) != len(selected):
        raise InvalidInputError(
            f"{len(targets)} destinations are named for {len(selected)} parts"
        )
    _check_targets(targets)
    backends = [
        _choose([store], [positions], is_open=[is_buffer(source)])
        for positions in selected
    ]
    known_mode = backends[0].resolve_mode(asked_mode)
    for backend, target in zip(backends, targets, strict=True):
        backend.check_destination(target)
    return [
        backend.make(target, mode=known_mode, op="split", pin=pin, progress=progress)
        for backend, target in zip(backends, targets, strict=True)
    ]


def _select(
    store: TrajectoryStore, given: Mapping[str, Any], *, seed: int | None
) -> list[IntArray]:
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise InvalidInputError(
            f"given are {', '.join(names) or 'no selection'}; exactly one of "
            f"{', '.join(given)} is needed"
        )
    (name,), rows = names, store.rows
    value = given[name]
    _check_kind(name, value)
    if seed is not None:
        check_whole_number("seed", seed)
    if name == "fractions":
        return select_fractions(rows, value, seed=seed)
    if seed is not None:
        raise InvalidInputError("seed is for fractions only")
    if name == "count":
        return [select_first(rows, value)]
    if name == "ids":
        return [select_ids(rows, parse_ids(value))]
    positions = select_where(rows, value)
    if not len(positions):
        raise InvalidInputError(f"condition {value!r:.200} holds for no trajectory")
    return [positions]


def _choose(
    stores: Sequence[LastingStore],
    chosen: Sequence[IntArray | None],
    *,
    is_open: Sequence[bool],
) -> Backend:
    """Freeze what was chosen, all of one kind, before anything changes a list.

    Args:
        stores: the sources.
        chosen: positions in their lists; None for all.
        is_open: whether a buffer that is in use has the store open.

    Raises:
        InvalidInputError: if the stores are of several formats.
    """
    formats = sorted({one.suffix for one in stores})
    if len(formats) > 1:
        raise InvalidInputError(
            f"the sources are of several formats ({', '.join(formats)}); convert them "
            "to one first (zarrbuf convert)"
        )
    buffers: list[ChosenRows] = []
    folders: list[FolderPart] = []
    for store, positions, used in zip(stores, chosen, is_open, strict=True):
        if isinstance(store, LogStore):
            buffers.append(ChosenRows.of(store, positions))
        else:
            folders.append(FolderPart.of(store, positions, is_open=used))
    return Buffers(buffers) if buffers else Folders(folders)


def _check_kind(name: str, value: Any) -> None:
    """Refuse a selection that is not of its kind."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    numbers = (int, float, np.integer, np.floating)
    is_right = {
        "count": type(value) is int,
        "fractions": is_list and all(isinstance(one, numbers) for one in value),
        "ids": is_list or isinstance(value, str),
        "where": isinstance(value, str),
    }
    if not is_right[name]:
        raise InvalidInputError(f"{name} is {value!r:.80}, which is not allowed")


def _check_distinct(stores: Sequence[TrajectoryStore]) -> None:
    for number, store in enumerate(stores):
        if any(store.is_same(other) for other in stores[:number]):
            raise InvalidInputError(
                f"source {number + 1} is the same buffer as one before it; name each "
                "source once"
            )


def _check_targets(targets: Sequence[Storage]) -> None:
    urls = [target.url for target in targets]
    if len(set(urls)) < len(urls):
        raise InvalidInputError(f"destinations {urls} are not all different")
