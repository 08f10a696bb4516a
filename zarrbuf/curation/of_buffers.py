"""Buffers of zarrbuf's, merged and split: a list of names, and bytes only if asked.

Owns the order of the steps: everything is checked, then the sources are pinned, then
one commit makes the destination.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final

import numpy as np

from zarrbuf.archive.chunks import crc32c
from zarrbuf.archive.spec import Schema
from zarrbuf.common.jobs import Progress, run_jobs
from zarrbuf.curation.backend import Backend, Curation, Mode
from zarrbuf.errors import (
    FormatError,
    NotFoundError,
    StorageError,
    ZarrbufError,
)
from zarrbuf.manifest.changes import listing_actions, remove_rows
from zarrbuf.manifest.layout import TRAJECTORY_DIR, commit_path
from zarrbuf.manifest.other_buffers import Base, make_base
from zarrbuf.manifest.rows import IntArray, Row, Rows
from zarrbuf.manifest.selection import interleave
from zarrbuf.manifest.snapshot import Snapshot
from zarrbuf.storage.contract import Storage
from zarrbuf.stores.contract import known_name
from zarrbuf.stores.logged import ChosenRows, LogStore
from zarrbuf.stores.pins import pinned
from zarrbuf.stores.staging import Created, check_empty
from zarrbuf.trajectory.same_fields import check_same_fields

_AT_ONCE: Final = 8
"""Archives that are copied at once."""


def check_schemas(parts: Sequence[ChosenRows]) -> dict[str, Schema]:
    """Check that a field is the same in all sources, and return their schemas.

    Raises:
        InvalidInputError: naming every field that differs, and where.
    """
    schemas: dict[str, Schema] = {}
    found: list[tuple[str, Schema]] = []
    for part in parts:
        for number in np.unique(part.rows.fixed["schema"]).tolist():
            key = f"{number:016x}"
            schemas[key] = part.snapshot.schemas[key]
            found.append((part.store.storage.url, schemas[key]))
    check_same_fields(found)
    return schemas


class Buffers(Backend):
    """Rows of buffers of zarrbuf's: named where they are, linked or copied."""

    def __init__(self, parts: Sequence[ChosenRows]) -> None:
        """Bring `parts`, interleaved by id, then by part."""
        self._parts = parts

    @property
    def roots(self) -> Sequence[Storage]:  # noqa: D102
        return [part.store.storage for part in self._parts]

    def resolve_mode(self, mode: Mode | None) -> Mode:  # noqa: D102
        return mode or "reference"

    def make(  # noqa: D102
        self,
        destination: Storage,
        *,
        mode: Mode,
        op: str,
        pin: bool,
        progress: Progress | None,
    ) -> Curation:
        parts = self._parts
        uuid = check_empty(destination)
        schemas = check_schemas(parts)
        rows = Rows.concat([part.rows for part in parts])
        bytes_copied = 0
        created = Created(destination)
        with ExitStack() as undo:
            if mode == "reference":
                bases, numbers = reference_bases(parts, destination)
                created.claim(uuid)
                if pin:
                    by = f"{uuid} {destination.url}"
                    absent = functools.partial(_is_absent, destination)
                    undo.enter_context(pinned(parts, by=by, is_absent=absent))
            else:
                bases, numbers = [], np.zeros(len(rows), np.int64)
                created.claim(uuid)
                bytes_copied = bring_archives(
                    parts, destination, mode=mode, progress=progress
                )
            order = interleave([part.rows for part in parts])
            rows = with_columns(
                rows.take(order),
                base=numbers[order],
                trajectory_id=np.arange(len(order)),
            )
            meta = Snapshot(0, "").meta_action(
                schemas=schemas, bases=bases, config=parts[0].snapshot.config
            )
            created.commit([meta, *listing_actions(rows, destination)], op=op)
        if mode == "move":
            for part in parts:
                _take_off(part, destination)
        return Curation(
            destination=destination.url,
            sources=tuple(dict.fromkeys(part.store.storage.url for part in parts)),
            mode=mode,
            num_trajectories=len(rows),
            total_samples=rows.total_samples,
            num_bytes=int(rows.column("size").sum()),
            bytes_copied=bytes_copied,
        )


def _is_absent(destination: Storage) -> bool:
    """Whether a destination surely has no commit."""
    try:
        return not destination.exists(commit_path(1))
    except ZarrbufError:
        return False


def _take_off(part: ChosenRows, destination: Storage) -> None:
    try:
        remove_rows(part.store.log, part.rows, reason="move")
    except ZarrbufError as exc:
        raise type(exc)(
            f"{destination.url} is whole, but {part.store.url} still lists what was "
            f"moved: {exc}; take it off by zarrbuf remove"
        ) from exc


def with_columns(rows: Rows, **columns: Any) -> Rows:
    """Return rows with other values in some columns, not committed anywhere yet."""
    fixed = rows.fixed.copy()
    for name, values in {"version": 0, "ts": 0, **columns}.items():
        fixed[name] = values
    return Rows(fixed, rows.texts)


def reference_bases(
    parts: Sequence[ChosenRows], destination: Storage
) -> tuple[list[Base], IntArray]:
    """Return the bases of a buffer that names rows where they are, and the rows' base.

    A row names the buffer that owns its archive, never one that names it too.

    Raises:
        InvalidInputError: if they are in stores of different kinds.
        UntrustedBaseError: if one does not lie beside the destination.
    """
    numbers: list[IntArray] = []
    known: dict[tuple[str, str], int] = {}
    bases: list[Base] = []
    for part in parts:
        column = part.rows.column("base")
        table = np.zeros(len(part.snapshot.bases) + 1, np.int64)
        for number in np.unique(column).tolist():
            uuid = part.store.log.uuid
            if number:
                uuid = part.snapshot.bases[number - 1]["uuid"]
            owner = part.store.home_of(number)
            key = (uuid, owner.url)  # a copy of a buffer has its uuid, too
            if key not in known:
                bases.append(make_base(destination, owner, uuid=uuid))
                known[key] = len(bases)
            table[number] = known[key]
        numbers.append(table[column])
    return bases, np.concatenate(numbers)


def bring_archives(
    parts: Sequence[ChosenRows],
    destination: Storage,
    *,
    mode: Mode,
    progress: Progress | None,
) -> int:
    """Make archives durable at a destination that does not list them yet.

    What is there from a call that was stopped stays and is not read again.

    Returns:
        Bytes that were copied.

    Raises:
        NotFoundError: if an archive is missing.
        FormatError: if an archive is not the one that its row names.
        StorageError: if a storage failed, or cannot link and was told to.
    """
    is_fresh = not destination.list_names(TRAJECTORY_DIR)

    def bring(job: tuple[ChosenRows, int]) -> int:
        part, position = job
        row = part.rows.row(position)
        return _bring(row, part.store, destination, mode=mode, is_fresh=is_fresh)

    jobs = [(part, n) for part in parts for n in range(len(part.rows))]
    return sum(run_jobs(bring, jobs, num_threads=_AT_ONCE, progress=progress))


def _bring(
    row: Row, store: LogStore, destination: Storage, *, mode: Mode, is_fresh: bool
) -> int:
    home = store.home(row)
    if not is_fresh:
        there = destination.read_existing([row.path])[0]
        if there is not None and _is_archive(there, row):
            return 0
        if there is not None:
            raise FormatError(
                f"{destination.describe(row.path)} is there, and is not "
                f"{known_name(row)}; name another destination"
            )
    if mode != "copy":
        _check_whole(row, home)
        if destination.link_from(home, row.path):
            return 0
    if mode == "hardlink":
        raise StorageError(
            f"{destination.url} and {home.url} cannot share files: they are not on one "
            "local file system; use the mode copy"
        )
    data = read_archive(row, store)
    destination.ensure(row.path, data)
    return len(data)


def _check_whole(row: Row, home: Storage) -> None:
    """Check that what is linked is a file below its root, of the right size."""
    try:
        size = len(home.open_source(row.path)) if not home.is_remote else row.size
    except NotFoundError as exc:
        raise NotFoundError(f"{known_name(row)} of {home.url} is missing") from exc
    if size != row.size:
        raise FormatError(
            f"{known_name(row)} ({home.describe(row.path)}) is damaged: it has {size} "
            f"bytes, {row.size} in the manifest"
        )


def read_archive(row: Row, store: LogStore) -> bytes:
    """Read the archive of a row, from wherever it lies, and check its crc32c.

    Raises:
        NotFoundError: if it is missing.
        FormatError: if it is not the one that the row names.
        StorageError: if the storage failed.
    """
    home = store.home(row)
    try:
        data = home.read(row.path, max_bytes=row.size)
    except NotFoundError as exc:
        raise NotFoundError(f"{known_name(row)} of {home.url} is missing") from exc
    if not _is_archive(data, row):
        raise FormatError(
            f"{known_name(row)} ({home.describe(row.path)}) is damaged: its size or "
            "crc32c is not that of the manifest"
        )
    return data


def _is_archive(data: bytes, row: Row) -> bool:
    return len(data) == row.size and crc32c(data) == row.crc
