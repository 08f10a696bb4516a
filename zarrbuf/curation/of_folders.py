"""Folders of RLinf's, merged and split: files under new ids, an index RLinf loads.

Files are copied or moved, never shared: RLinf overwrites them in place. The index comes
last, so that a folder is there whole or not at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from zarrbuf.archive.spec import Schema
from zarrbuf.common.jobs import Progress
from zarrbuf.common.uuids import new_uuid
from zarrbuf.curation.backend import Backend, Curation, Mode
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
from zarrbuf.storage.contract import Storage
from zarrbuf.storage.local import LocalStorage
from zarrbuf.stores.rlinf_folder import RlinfStore
from zarrbuf.stores.staging import Created, check_empty
from zarrbuf.trajectory.encoding import encode_trajectory
from zarrbuf.trajectory.same_fields import check_same_fields


@dataclass(frozen=True)
class FolderPart:
    """Trajectories of a folder that shall stand in another one.

    Attributes:
        store: the folder.
        rows: theirs.
        is_open: whether a buffer has it open, and writes its index.
    """

    store: RlinfStore
    rows: Rows
    is_open: bool

    @classmethod
    def of(
        cls, store: RlinfStore, positions: IntArray | None, *, is_open: bool
    ) -> FolderPart:
        """Choose trajectories by their positions in the list; None for all."""
        rows = store.rows
        chosen = rows if positions is None else rows.take(positions)
        return cls(store, chosen, is_open)


class Folders(Backend):
    """Trajectories of folders of RLinf's: files, copied or moved."""

    def __init__(self, parts: Sequence[FolderPart]) -> None:
        """Bring `parts`, interleaved by id, then by part."""
        self._parts = parts

    @property
    def roots(self) -> Sequence[Storage]:  # noqa: D102
        return [LocalStorage(part.store.folder) for part in self._parts]

    @property
    def new_files(self) -> Collection[str]:  # noqa: D102
        return set(new_names(self._parts))

    def resolve_mode(self, mode: Mode | None) -> Mode:  # noqa: D102
        if mode not in (None, "copy", "move"):
            raise InvalidInputError(
                f"mode {mode} is not for {self._parts[0].store.suffix} files, which "
                "are overwritten in place; allowed are copy and move"
            )
        opened = [part.store.url for part in self._parts if part.is_open]
        if mode == "move" and opened:
            raise InvalidInputError(
                f"{opened[0]} is open in a buffer, which writes its index and would "
                "list files still that are gone; close it first"
            )
        return mode or "copy"

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
        if not isinstance(destination, LocalStorage):
            raise InvalidInputError(
                f"destination {destination.url!r} is not allowed for pt and pkl files; "
                "they need a local path"
            )
        check_empty(destination, files=self.new_files)
        _check_fields(parts)
        created = Created(destination)
        index = _write_files(parts, created, progress)
        metadata, entries = encode_index(index)
        created.check_there()
        created.create(INDEX_NAME, entries)
        created.create(METADATA_NAME, metadata)
        destination.delete_empty_directories(DIRECTORIES, keep_root=True)
        if mode == "move":
            for part in parts:
                part.store.remove(part.rows.trajectory_ids.tolist())
        rows = Rows.of(index.rows)
        return Curation(
            destination=destination.url,
            sources=tuple(dict.fromkeys(str(part.store.folder) for part in parts)),
            mode=mode,
            num_trajectories=len(rows),
            total_samples=rows.total_samples,
            num_bytes=int(rows.column("size").sum()),
            bytes_copied=created.num_bytes,
        )


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
        index.append(dataclasses.replace(row, trajectory_id=number), name)
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
