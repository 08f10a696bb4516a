"""Folders of RLinf's out of others: files under new ids, an index that RLinf loads.

Files are copied or moved, never shared: RLinf overwrites them in place. The index comes
last, so that a folder is there whole or not at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zarrbuf.archive.spec import Schema
from zarrbuf.common.jobs import Progress
from zarrbuf.common.uuids import new_uuid
from zarrbuf.errors import InvalidInputError
from zarrbuf.manifest.layout import DIRECTORIES
from zarrbuf.manifest.rows import IntArray, Row, Rows
from zarrbuf.manifest.selection import interleave
from zarrbuf.rlinf.index import (
    INDEX_NAME,
    METADATA_NAME,
    RlinfIndex,
    encode_index,
    trajectory_name,
)
from zarrbuf.sampling.window import check_same_fields
from zarrbuf.storage.contract import Storage
from zarrbuf.storage.local import LocalStorage
from zarrbuf.stores.rlinf_folder import RlinfStore
from zarrbuf.stores.staging import Created, check_empty
from zarrbuf.trajectory.encoding import encode_trajectory


@dataclass(frozen=True)
class FolderPart:
    """Trajectories of a folder that shall stand in another one.

    Attributes:
        store: the folder.
        rows: theirs.
    """

    store: RlinfStore
    rows: Rows

    @classmethod
    def of(cls, store: RlinfStore, positions: IntArray | None = None) -> FolderPart:
        """Choose trajectories by their positions in the list; None for all."""
        rows = store.rows
        return cls(store, rows if positions is None else rows.take(positions))


def make_folder(
    parts: Sequence[FolderPart],
    destination: Storage,
    *,
    is_move: bool,
    progress: Progress | None,
) -> tuple[Rows, int]:
    """Make a folder of trajectories of others, ids given anew from 0.

    Args:
        parts: the trajectories; they are interleaved by id, then by part.
        destination: a local directory where nothing is yet.
        is_move: take them from their folders, once the destination is whole.
        progress: told of files brought.

    Returns:
        The rows of the destination, and the bytes copied.

    Raises:
        InvalidInputError: if the destination is not local or not empty, or fields
            differ; the first file of each folder is read for that.
        NotFoundError: if a file is missing; nothing is left at the destination.
        FormatError: if the first file of a folder is damaged.
        StorageError: if the storage failed; nothing is left at the destination.
    """
    if not isinstance(destination, LocalStorage):
        raise InvalidInputError(
            f"destination {destination.url!r} is not allowed for pt and pkl files; "
            "they need a local path"
        )
    check_empty(destination, files=set(new_names(parts)))
    _check_fields(parts)
    created = Created(destination)
    try:
        index = _write_files(parts, created, progress)
        metadata, entries = encode_index(index)
        created.check_reused()
        created.create(INDEX_NAME, entries)
        created.create(METADATA_NAME, metadata)
        destination.delete_empty_directories(DIRECTORIES, keep_root=True)
    except BaseException:
        created.take_away()
        raise
    if is_move:
        for part in parts:
            part.store.remove(part.rows.trajectory_ids.tolist())
    return Rows.of(index.rows), created.num_bytes


def new_names(parts: Sequence[FolderPart]) -> list[str]:
    """Return the names that the files will have, in the order of their ids."""
    rows = Rows.concat([part.rows for part in parts])
    order = interleave([part.rows for part in parts]).tolist()
    suffix = parts[0].store.suffix
    weights_ids = [rows.row(position).model_weights_id for position in order]
    return [trajectory_name(n, one, suffix) for n, one in enumerate(weights_ids)]


def _write_files(
    parts: Sequence[FolderPart], created: Created, progress: Progress | None
) -> RlinfIndex:
    """Write the files under their new names, in the order of their new ids."""
    first = parts[0].store.index
    index = RlinfIndex(first.file_format, seed=first.seed)
    sources = np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts])
    rows = Rows.concat([part.rows for part in parts])
    order = interleave([part.rows for part in parts]).tolist()
    for number, position in enumerate(order):
        row: Row = rows.row(position)
        store = parts[sources[position]].store
        # Regular files below the folder only: no link, no FIFO.
        data = LocalStorage(store.folder).read(store.path_of(row).name)
        name = trajectory_name(number, row.model_weights_id, index.file_format)
        created.create(name, data)
        created.num_bytes += len(data)
        index.rows.append(dataclasses.replace(row, trajectory_id=number))
        index.names[number] = name
        if progress is not None:
            progress(number + 1, len(order))
    index.counter = len(order)
    return index


def _check_fields(parts: Sequence[FolderPart]) -> None:
    """Check that a field is the same in the first files of all folders."""
    found: list[tuple[str, Schema]] = []
    for part in parts:
        if len(part.rows):
            trajectory = part.store.read_trajectory(part.rows.row(0))
            encoded = encode_trajectory(trajectory, uuid=new_uuid(), codec="none")
            found.append((str(part.store.folder), encoded.header.schema))
    check_same_fields(found)
