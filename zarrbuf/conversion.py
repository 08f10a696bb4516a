"""Whole buffers from one format to another, every tensor as it was.

Nothing is visible at the destination until all of it is durable: archives or files
first, then the one commit or index that names them. What a failed conversion wrote
is taken away again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from zarrbuf.destinations import Created, Progress, check_empty
from zarrbuf.encoding import encode_trajectory
from zarrbuf.errors import InvalidInputError
from zarrbuf.format import (
    Schema,
    new_uuid,
    trajectory_name,
)
from zarrbuf.local_storage import LocalStorage
from zarrbuf.locations import Location, StorageOptions, open_storage
from zarrbuf.log_format import Action
from zarrbuf.log_store import listing_actions
from zarrbuf.manifest import Snapshot
from zarrbuf.metadata import CodecName, check_codec
from zarrbuf.opening import check_format, open_store
from zarrbuf.rlinf_files import encode_trajectory_file
from zarrbuf.rlinf_index import (
    INDEX_NAME,
    METADATA_NAME,
    FileFormat,
    RlinfIndex,
    encode_index,
)
from zarrbuf.rows import Row, Rows
from zarrbuf.stores import NewTrajectory, TrajectoryStore


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        source: what was read.
        destination: what was written.
        source_format: "zarr", "pt" or "pkl".
        destination_format: "zarr", "pt" or "pkl".
        num_trajectories: trajectories converted.
        total_samples: samples in them.
        source_bytes: bytes of the archives or files read.
        destination_bytes: bytes of the archives or files written.
    """

    source: str
    destination: str
    source_format: str
    destination_format: str
    num_trajectories: int
    total_samples: int
    source_bytes: int
    destination_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    to: str = "zarr",
    codec: str = "lz4",
    version: int | None = None,
    storage_options: StorageOptions | None = None,
    allow_bases: Sequence[Location] = (),
    progress: Progress | None = None,
) -> Conversion:
    """Convert a whole buffer: ids, weights ids, seed and order are kept.

    Args:
        source: a zarrbuf buffer or a folder of RLinf's, path or URL.
        destination: where nothing is yet; a local path for "pt" and "pkl".
        to: "zarr", "pt" or "pkl".
        codec: "lz4", "zstd" or "none", for "zarr".
        version: convert the source as it was after that commit; None for now.
        storage_options: for object stores, see `TrajectoryReplayBuffer`.
        allow_bases: see `TrajectoryReplayBuffer`.
        progress: called with (trajectories done, trajectories in all).

    Raises:
        InvalidInputError: if an argument is not allowed or something is at
            `destination`.
        NotFoundError: if there is no buffer at `source`.
        FormatError: if the source is damaged; nothing is left at `destination`.
        StorageError: if the storage failed; nothing is left at `destination`.
    """
    check_format("to", to)
    known_codec = check_codec(codec)
    source_storage = open_storage(source, storage_options, allow_bases=allow_bases)
    store = open_store(source_storage, version=version)
    storage = open_storage(destination, storage_options)
    if to != "zarr" and not isinstance(storage, LocalStorage):
        raise InvalidInputError(
            f"destination {storage.url!r} is not allowed for {to} files; they need a "
            "local path"
        )
    uuid = check_empty(storage)
    created = Created(storage)
    try:
        if to == "zarr":
            _write_archives(
                store, created, uuid=uuid, codec=known_codec, progress=progress
            )
        else:
            file_format: FileFormat = "pt" if to == "pt" else "pkl"
            _write_files(store, created, file_format=file_format, progress=progress)
    except BaseException:
        created.take_away()
        raise
    rows = store.rows
    return Conversion(
        source=os.fspath(source),
        destination=os.fspath(destination),
        source_format=store.suffix,
        destination_format=to,
        num_trajectories=len(rows),
        total_samples=rows.total_samples,
        source_bytes=int(rows.column("size").sum()),
        destination_bytes=created.num_bytes,
    )


def _write_archives(
    store: TrajectoryStore,
    created: Created,
    *,
    uuid: str,
    codec: CodecName,
    progress: Progress | None,
) -> None:
    rows: list[Row] = []
    schemas: dict[str, Schema] = {}
    total = len(store.rows)
    for number in range(total):
        row = store.rows.row(number)
        encoded = encode_trajectory(
            store.read_trajectory(row), uuid=new_uuid(), codec=codec
        )
        item = NewTrajectory.of(encoded, trajectory_id=row.trajectory_id)
        created.create(item.row.path, encoded.data)
        created.num_bytes += len(encoded.data)
        rows.append(item.row)
        schemas[item.row.schema] = encoded.header.schema
        if progress is not None:
            progress(number + 1, total)
    config = {"seed": store.seed, "codec": codec}
    created.commit(
        [
            Snapshot(0, "").meta_action(schemas=schemas, config=config),
            *listing_actions(Rows.of(rows), created.storage),
            *_state_actions(store.state),
        ],
        op="convert",
        uuid=uuid,
    )


def _state_actions(state: Mapping[str, Any] | None) -> list[Action]:
    return [] if state is None else [{"action": "state", "state": dict(state)}]


def _write_files(
    store: TrajectoryStore,
    created: Created,
    *,
    file_format: FileFormat,
    progress: Progress | None,
) -> None:
    index = RlinfIndex(file_format, counter=store.next_trajectory_id)
    if store.seed is not None:
        index.seed = store.seed
    index.generator = (store.state or {}).get("generator")
    total = len(store.rows)
    for number in range(total):
        row = store.rows.row(number)
        name = trajectory_name(row.trajectory_id, row.model_weights_id, file_format)
        data = encode_trajectory_file(store.read_trajectory(row), file_format)
        created.create(name, data)
        created.num_bytes += len(data)
        index.rows.append(row)
        if progress is not None:
            progress(number + 1, total)
    metadata, entries = encode_index(index)
    created.create(INDEX_NAME, entries)
    created.create(METADATA_NAME, metadata)
    created.storage.delete_empty_directories()
