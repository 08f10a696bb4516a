"""Checkpoints of a run: the window of a buffer as a buffer, or folder, of its own.

What is saved already is not written again: archives are linked where the file system
can, copied elsewhere, and one commit makes them visible. Knows no thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zarrbuf.archive.chunks import crc32c
from zarrbuf.archive.spec import Schema
from zarrbuf.archive.zarr_json import CodecName
from zarrbuf.common.uuids import new_uuid
from zarrbuf.errors import (
    ConflictError,
    InvalidInputError,
    StorageError,
    VacuumedError,
)
from zarrbuf.manifest.actions import Action
from zarrbuf.manifest.changes import listing_actions
from zarrbuf.manifest.rows import Row, Rows
from zarrbuf.manifest.snapshot import Snapshot, schema_id
from zarrbuf.rlinf.files import (
    discard_files,
    encode_trajectory_file,
    publish_files,
    stage_file,
)
from zarrbuf.rlinf.index import FileFormat, trajectory_name
from zarrbuf.sampling.open_archives import OpenArchives
from zarrbuf.sampling.window import LiveRows
from zarrbuf.storage.contract import Storage
from zarrbuf.stores.contract import NewTrajectory, TrajectoryStore
from zarrbuf.stores.logged import LogStore
from zarrbuf.stores.opening import (
    open_or_create_folder,
    open_or_create_log_store,
)
from zarrbuf.stores.rlinf_folder import RlinfStore
from zarrbuf.trajectory.archived import TrajectoryArchive
from zarrbuf.trajectory.encoding import encode_trajectory


def save_rows(
    saved: LiveRows,
    storage: Storage,
    *,
    own: TrajectoryStore,
    trajectory_format: str,
    opened: OpenArchives,
    seed: int | None,
    codec: CodecName,
    state: Mapping[str, Any],
) -> None:
    """Save the window on a storage in one of the formats.

    Args:
        saved: the rows of the window.
        own: where the buffer itself saves to.
        storage: where; a checkpoint of the same format may be there.
        trajectory_format: "zarr", "pt" or "pkl".
        opened: archives that are open.
        seed: kept in a new checkpoint.
        codec: kept in a new checkpoint.
        state: "generator" and "more_generator", the state of the draws as text,
            "trajectory_counter", "size" and "total_samples".

    Raises:
        InvalidInputError: if something of another format is there.
        StorageError: if saving failed; an earlier checkpoint there stays whole.
    """
    if trajectory_format == "zarr":
        save_buffer(
            saved, storage, own=own, opened=opened, seed=seed, codec=codec, state=state
        )
        return
    file_format: FileFormat = "pt" if trajectory_format == "pt" else "pkl"
    save_folder(
        saved,
        storage,
        own=own,
        opened=opened,
        seed=seed,
        file_format=file_format,
        state=state,
    )


def save_buffer(
    saved: LiveRows,
    storage: Storage,
    *,
    own: TrajectoryStore,
    opened: OpenArchives,
    seed: int | None,
    codec: CodecName,
    state: Mapping[str, Any],
) -> None:
    """Make the buffer on a storage hold exactly the window, ids kept, and a state.

    The buffer that `own` is keeps all its rows, and gets the state only.

    Args:
        saved: the rows of the window.
        own: where the buffer itself saves to.
        storage: a zarrbuf buffer, or where one shall be.
        opened: archives that are open.
        seed: kept in a new buffer's config.
        codec: kept in a new buffer's config.
        state: random generator and counters.

    Raises:
        InvalidInputError: if a folder of RLinf's is there, or the buffer that only a
            part of the window is listed in.
        StorageError: if the storage failed; what the buffer held before it still holds.
    """
    target = open_or_create_log_store(storage, seed=seed, codec=codec)
    if isinstance(own, LogStore) and own.is_same(target):
        _check_all_own(saved, own, storage)
        target.log.commit(lambda now: [_state_action(state)], op="checkpoint")
        return
    names: dict[str, str] = {}  # of what a vacuum there may delete, other ones
    while True:
        wanted, schemas = _bring_archives(saved, target, opened=opened, names=names)

        def build(
            now: Snapshot, rows: Rows = wanted, schemas: Mapping[str, Schema] = schemas
        ) -> Sequence[Action]:
            replaced = _replace_rows(now, rows, schemas, storage)
            return [*replaced, _state_action(state)]

        try:
            target.log.commit(build, op="checkpoint")
            return
        except VacuumedError as exc:
            origins = {name: uuid for uuid, name in names.items()}
            names |= {origins.get(uuid, uuid): new_uuid() for uuid in exc.uuids}


def _check_all_own(saved: LiveRows, own: TrajectoryStore, storage: Storage) -> None:
    """Refuse to change the list that the buffer itself appends to."""
    if any(len(listed) and store is not own for store, listed in saved.parts):
        raise InvalidInputError(
            f"{storage.url} is where this buffer saves to, and the window holds "
            "trajectories loaded from elsewhere; save the checkpoint elsewhere"
        )


def _state_action(state: Mapping[str, Any]) -> Action:
    return {"action": "state", "state": dict(state)}


def _bring_archives(
    saved: LiveRows,
    target: LogStore,
    *,
    opened: OpenArchives,
    names: Mapping[str, str],
) -> tuple[Rows, dict[str, Schema]]:
    """Make every archive of the window durable in `target`, not yet listed there.

    Args:
        saved: the rows of the window.
        target: where.
        opened: archives that are open.
        names: uuid -> another one, of those that have to be written under it.
    """
    there_now = target.rows
    listed = {uuid: n for n, uuid in enumerate(there_now.fixed["uuid"].tolist())}
    rows: list[Row] = []
    schemas: dict[str, Schema] = {}
    next_id = 0
    for position in saved.positions.tolist():
        row, store = saved.row(position), saved.store(position)
        there = listed.get(bytes.fromhex(row.uuid))
        if there is not None:
            known = there_now.row(there)
            schema = target.schema(known)
        elif row.uuid in names:
            known, schema = _write_anew(
                saved, position, target, opened, uuid=names[row.uuid]
            )
        elif isinstance(store, LogStore) and target.storage.link_from(
            store.home(row), row.path
        ):
            known, schema = dataclasses.replace(row, base=0), store.schema(row)
        else:
            known, schema = _copy_archive(saved, position, target.storage, opened)
        # Trajectories of two runs may have one id; the later one gets another.
        number = max(next_id, row.trajectory_id)
        next_id = number + 1
        rows.append(dataclasses.replace(known, trajectory_id=number, version=0, ts=0))
        schemas[known.schema] = schema
    return Rows.of(rows), schemas


def _write_anew(
    saved: LiveRows, position: int, target: LogStore, opened: OpenArchives, *, uuid: str
) -> tuple[Row, Schema]:
    """Write a trajectory under another name than it has."""
    trajectory = saved.trajectory(position, opened)
    encoded = encode_trajectory(trajectory, uuid=uuid, codec=target.codec)
    row = NewTrajectory.of(encoded, trajectory_id=0).row
    target.storage.ensure(row.path, encoded.data)
    return row, encoded.header.schema


def _copy_archive(
    saved: LiveRows, position: int, storage: Storage, opened: OpenArchives
) -> tuple[Row, Schema]:
    """Write an archive, unless it is there from a checkpoint that failed."""
    row = saved.row(position)
    encoded = saved.store(position).encoded(row)
    if encoded is not None:
        data, schema, tags = encoded.data, encoded.header.schema, encoded.tags
    else:
        archive = saved.archive(position, opened)
        data, schema, tags = bytes(archive.source), archive.header.schema, row.tags
    try:
        storage.ensure(row.path, data)
    except ConflictError:  # of another codec, by a checkpoint that failed
        data = storage.read(row.path)
        TrajectoryArchive(data, name=storage.describe(row.path)).check()
        storage.settle(row.path)
    row = dataclasses.replace(
        row,
        size=len(data),
        crc=crc32c(data),
        schema=schema_id(schema),
        base=0,
        tags=tags,
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
    saved: LiveRows,
    storage: Storage,
    *,
    own: TrajectoryStore,
    opened: OpenArchives,
    seed: int | None,
    file_format: FileFormat,
    state: Mapping[str, Any],
) -> None:
    """Make the folder that a storage is one of RLinf's that holds exactly the window.

    Files are copied, not linked: RLinf overwrites files in place. All are written
    beside their places before the first takes its own, and the index comes last. Files
    of trajectories that left the window stay, but are no longer in the index. The
    folder that the buffer itself saves to keeps its index and gets the state only.

    Raises:
        InvalidInputError: if a zarrbuf buffer, or the other file format, is there.
        StorageError: if the storage failed; what was there stays.
    """
    target = open_or_create_folder(storage, seed=seed, file_format=file_format)
    if isinstance(own, RlinfStore) and own.folder == target.folder:
        _check_all_own(saved, own, storage)
        own.index.generator = state["generator"]
        own.index.more_generator = state["more_generator"]
        own.write_index()
        return
    rows, names, staged = [], {}, []
    try:
        for position in saved.positions.tolist():
            row = saved.row(position)
            number = row.trajectory_id
            name = trajectory_name(number, row.model_weights_id, file_format)
            data = _file_bytes(saved, position, opened, file_format)
            if not _holds(target.folder / name, data):
                temporary = stage_file(target.folder / name, data)
                staged.append((temporary, target.folder / name))
            rows.append(row)
            names[number] = name
    except BaseException:
        discard_files(staged)
        raise
    publish_files(staged)
    target.index.replace(rows, names)
    target.index.counter = max([state["trajectory_counter"], *(n + 1 for n in names)])
    target.index.seed = seed
    target.index.size = state["size"]
    target.index.total_samples = state["total_samples"]
    target.index.generator = state["generator"]
    target.index.more_generator = state["more_generator"]
    target.write_index()


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except OSError:
        return False


def _file_bytes(
    saved: LiveRows, position: int, opened: OpenArchives, file_format: FileFormat
) -> bytes:
    store, row = saved.store(position), saved.row(position)
    if isinstance(store, RlinfStore) and store.suffix == file_format:
        try:
            return store.path_of(row).read_bytes()
        except OSError as exc:
            raise StorageError(f"cannot read {store.path_of(row)}: {exc}") from exc
    trajectory = saved.trajectory(position, opened)
    return encode_trajectory_file(trajectory, file_format)
