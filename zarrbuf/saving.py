"""Checkpoints of a run: the window of a buffer as a buffer, or folder, of its own.

What is saved already is not written again: archives are linked where the file system
can, copied elsewhere, and one commit makes them visible. Knows no thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zarrbuf.errors import InvalidInputError
from zarrbuf.format import Schema, trajectory_name
from zarrbuf.log_format import Action
from zarrbuf.manifest import Snapshot, schema_id
from zarrbuf.metadata import CodecName
from zarrbuf.opening import (
    Location,
    open_or_create_folder,
    open_or_create_log_store,
)
from zarrbuf.reader import BatchReader
from zarrbuf.rlinf import RlinfStore
from zarrbuf.rlinf_files import encode_trajectory_file, replace_file
from zarrbuf.rlinf_index import FileFormat
from zarrbuf.rows import Row, Rows
from zarrbuf.shards import crc32c
from zarrbuf.storage import Storage, open_storage
from zarrbuf.stores import LogStore, listing_actions
from zarrbuf.trajectory import decode_trajectory
from zarrbuf.views import View


def save_view(
    view: View,
    path: Location,
    *,
    trajectory_format: str,
    reader: BatchReader,
    seed: int | None,
    codec: CodecName,
    state: Mapping[str, Any],
) -> None:
    """Save the window at `path` in one of the formats.

    Args:
        view: what is saved.
        path: where; a checkpoint of the same format may be there.
        trajectory_format: "zarr", "pt" or "pkl".
        reader: opens archives.
        seed: kept in a new checkpoint.
        codec: kept in a new checkpoint.
        state: "generator", the state of the draws as text, and "trajectory_counter".

    Raises:
        InvalidInputError: if something of another format is there.
        StorageError: if saving failed; an earlier checkpoint there stays whole.
    """
    if trajectory_format == "zarr":
        save_buffer(view, path, reader=reader, seed=seed, codec=codec, state=state)
        return
    file_format: FileFormat = "pt" if trajectory_format == "pt" else "pkl"
    save_folder(
        view, path, reader=reader, seed=seed, file_format=file_format, state=state
    )


def save_buffer(
    view: View,
    path: Location,
    *,
    reader: BatchReader,
    seed: int | None,
    codec: CodecName,
    state: Mapping[str, Any],
) -> None:
    """Make the buffer at `path` hold exactly the window, ids kept, and a state.

    The buffer that the rows of the window are listed in keeps its other rows too.

    Args:
        view: what is saved.
        path: a zarrbuf buffer, or where one shall be.
        reader: opens archives.
        seed: kept in a new buffer's config.
        codec: kept in a new buffer's config.
        state: random generator and counters.

    Raises:
        InvalidInputError: if a folder of RLinf's is there, or the buffer that only a
            part of the window is listed in.
        StorageError: if the storage failed; what the buffer held before it still holds.
    """
    storage = open_storage(path)
    target = open_or_create_log_store(storage, seed=seed, codec=codec)
    is_home = [_is_at(store, target) for store in view.stores]
    if any(is_home[n] for n in view.store_of.tolist()):
        if not all(is_home[n] for n in view.store_of.tolist()):
            raise InvalidInputError(
                f"{path} is where this buffer saves to, and the window holds "
                "trajectories loaded from elsewhere; save the checkpoint elsewhere"
            )
        target.log.commit(lambda now: [_state_action(state)], op="checkpoint")
        return
    wanted, schemas = _bring_archives(view, target, reader=reader)

    def build(now: Snapshot) -> Sequence[Action]:
        return [
            *_replace_rows(now, wanted, schemas, storage),
            _state_action(state),
        ]

    target.log.commit(build, op="checkpoint")


def _is_at(store: Any, target: LogStore) -> bool:
    return isinstance(store, LogStore) and store.log.uuid == target.log.uuid


def _state_action(state: Mapping[str, Any]) -> Action:
    return {"action": "state", "state": dict(state)}


def _bring_archives(
    view: View, target: LogStore, *, reader: BatchReader
) -> tuple[Rows, dict[str, Schema]]:
    """Make every archive of the window durable in `target`, not yet listed there."""
    listed = set(target.rows.fixed["uuid"].tolist())
    rows: list[Row] = []
    schemas: dict[str, Schema] = {}
    for position in range(len(view.rows)):
        row, store = view.rows.row(position), view.store(position)
        known = target.log.snapshot.schemas.get(row.schema)
        if known is None or bytes.fromhex(row.uuid) not in listed:
            linked = isinstance(store, LogStore) and target.storage.link_from(
                store.storage, row.path
            )
            if linked:
                known = store.schema(row)
            else:
                row, known = _copy_archive(view, position, target.storage, reader)
        rows.append(row)
        schemas[row.schema] = known
    return Rows.of(rows), schemas


def _copy_archive(
    view: View, position: int, storage: Storage, reader: BatchReader
) -> tuple[Row, Schema]:
    archive = view.archive(position, reader)
    row = view.rows.row(position)
    data = archive.source[:]
    storage.put(row.path, data)
    schema = archive.header.schema
    row = dataclasses.replace(
        row, size=len(data), crc=crc32c(data), schema=schema_id(schema)
    )
    return row, schema


def _replace_rows(
    now: Snapshot, wanted: Rows, schemas: Mapping[str, Schema], storage: Storage
) -> list[Action]:
    """Return the actions after which exactly the wanted rows are listed, in order."""
    keys = [(row["uuid"].item(), int(row["trajectory_id"])) for row in wanted.fixed]
    have = [(row["uuid"].item(), int(row["trajectory_id"])) for row in now.rows.fixed]
    wanted_keys = set(keys)
    kept = [key for key in have if key in wanted_keys]
    if kept != keys[: len(kept)]:
        kept = []
    keep = set(kept)
    actions: list[Action] = []
    if not set(schemas) <= set(now.schemas):
        actions.append(now.meta_action(schemas={**now.schemas, **schemas}))
    gone = [
        trajectory_id
        for uuid, trajectory_id in have
        if (uuid, trajectory_id) not in keep
    ]
    if gone:
        actions.append({"action": "remove", "ids": gone, "reason": "checkpoint"})
    added = wanted.take(np.arange(len(kept), len(wanted)))
    return [*actions, *listing_actions(added, storage)]


def save_folder(
    view: View,
    path: Location,
    *,
    reader: BatchReader,
    seed: int | None,
    file_format: FileFormat,
    state: Mapping[str, Any],
) -> None:
    """Make the folder at `path` one of RLinf's that holds exactly the window.

    Files are copied, not linked: RLinf overwrites files in place. Files of
    trajectories that left the window stay, but are no longer in the index.

    Raises:
        InvalidInputError: if a zarrbuf buffer, or the other file format, is there.
        StorageError: if the storage failed; the old index is as it was.
    """
    target = open_or_create_folder(path, seed=seed, file_format=file_format)
    folder = target.folder
    have = {row.trajectory_id: row for row in target.index.rows}
    rows, names = [], {}
    for position in range(len(view.rows)):
        row = view.rows.row(position)
        number = row.trajectory_id
        name = trajectory_name(number, row.model_weights_id, file_format)
        old = have.get(number)
        is_there = old is not None and (
            old.model_weights_id,
            old.shape,
        ) == (row.model_weights_id, row.shape)
        if not is_there or not (folder / name).exists():
            replace_file(
                folder / name, _file_bytes(view, position, reader, file_format)
            )
        rows.append(row)
        names[number] = name
    target.index.rows, target.index.names = rows, names
    target.index.counter = state["trajectory_counter"]
    target.index.generator = state["generator"]
    target.write_index()


def _file_bytes(
    view: View, position: int, reader: BatchReader, file_format: FileFormat
) -> bytes:
    store, row = view.store(position), view.rows.row(position)
    if isinstance(store, RlinfStore) and store.path_of(row).suffix == f".{file_format}":
        return store.path_of(row).read_bytes()
    trajectory = decode_trajectory(view.archive(position, reader))
    return encode_trajectory_file(trajectory, file_format)
