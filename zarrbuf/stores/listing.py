"""What a buffer or folder holds, from its lists alone: no archive is opened.

Torch-free: listing is quick also where torch takes seconds to load.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zarrbuf.manifest.commit_log import open_log
from zarrbuf.manifest.rows import Row, Rows
from zarrbuf.manifest.snapshot import schema_json
from zarrbuf.rlinf.index import (
    check_no_version,
    is_rlinf_folder,
    read_index,
    trajectory_name,
)
from zarrbuf.storage.local import LocalStorage
from zarrbuf.storage.resolve import Location, StorageOptions, open_storage


@dataclass(frozen=True)
class Listing:
    """What a buffer or folder says of itself.

    Attributes:
        path: where it lies.
        kind: "zarr", "pt" or "pkl".
        rows: its trajectories, in order.
        details: what else is known, JSON values.
    """

    path: str
    kind: str
    rows: Rows
    details: dict[str, Any]

    def name(self, row: Row) -> str:
        """Return the name a person knows a trajectory by."""
        return trajectory_name(row.trajectory_id, row.model_weights_id, self.kind)

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return {
            "path": self.path,
            "format": self.kind,
            "num_trajectories": len(self.rows),
            "total_samples": self.rows.total_samples,
            **self.details,
        }


def row_json(row: Row, *, name: str) -> dict[str, Any]:
    """Return one row as JSON values."""
    return {
        "trajectory_id": row.trajectory_id,
        "name": name,
        "T": row.num_steps,
        "B": row.num_envs,
        "num_samples": row.num_samples,
        "max_episode_length": row.max_episode_length,
        "bytes": row.size,
        "version": row.version,
        "tags": row.tags,
    }


def list_buffer(
    path: str | os.PathLike[str],
    *,
    version: int | None = None,
    storage_options: StorageOptions | None = None,
    allow_bases: Sequence[Location] = (),
) -> Listing:
    """List a zarrbuf buffer or a folder of RLinf's.

    Args:
        path: where it lies.
        version: list the buffer as it was after that commit; zarrbuf buffers only.
        storage_options: for object stores, see `TrajectoryReplayBuffer`.
        allow_bases: see `TrajectoryReplayBuffer`.

    Raises:
        NotFoundError: if neither is there.
        FormatError: if its lists are damaged.
    """
    storage = open_storage(path, storage_options, allow_bases=allow_bases)
    if isinstance(storage, LocalStorage) and is_rlinf_folder(storage.root):
        check_no_version(storage.root, version)
        index = read_index(storage.root)
        size = sum(row.size for row in index.rows)
        details = {
            "bytes": size,
            "seed": index.seed,
            "next_trajectory_id": index.counter,
            "num_evicted": len(index.evicted),
        }
        return Listing(storage.url, index.file_format, Rows.of(index.rows), details)
    log = open_log(storage, version=version)
    snapshot = log.snapshot
    return Listing(
        storage.url,
        "zarr",
        snapshot.rows,
        {
            "bytes": int(snapshot.rows.column("size").sum()),
            "seed": snapshot.config.get("seed"),
            "next_trajectory_id": snapshot.next_trajectory_id,
            "uuid": log.uuid,
            "version": snapshot.version,
            "has_saved_state": snapshot.state is not None,
            "schemas": {k: schema_json(v) for k, v in snapshot.schemas.items()},
        },
    )
