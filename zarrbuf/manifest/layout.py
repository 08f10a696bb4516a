"""Names of the objects of a buffer below its root (docs/format.md, section 1). Pure."""

from __future__ import annotations

import re
from typing import Final

from zarrbuf.common.uuids import new_uuid
from zarrbuf.storage.contract import TMP_DIR

ROOT_NAME: Final = "zarrbuf.json"
MANIFEST_DIR: Final = "manifest"
CHECKPOINT_DIR: Final = "checkpoint"
SEGMENT_DIR: Final = "segment"
TRAJECTORY_DIR: Final = "trajectories"
DIRECTORIES: Final = (
    MANIFEST_DIR,
    CHECKPOINT_DIR,
    SEGMENT_DIR,
    TRAJECTORY_DIR,
    TMP_DIR,
)
"""What a buffer has below its root."""
COMMIT_NAME: Final = re.compile(r"(\d{20})\.json")
CHECKPOINT_NAME: Final = re.compile(r"(\d{20})\.[0-9a-f]{8}\.json")
TRAJECTORY_PATH: Final = re.compile(
    r"trajectories/([0-9a-f]{2})/(\1[0-9a-f]{30})\.zarr\.zip"
)
SEGMENT_PATH: Final = re.compile(r"segment/[0-9a-f]{32}\.zarr\.zip")


def commit_path(version: int) -> str:
    """Return the path of commit `version` below the root."""
    return f"{MANIFEST_DIR}/{version:020d}.json"


def checkpoint_path(version: int) -> str:
    """Return a fresh path for a checkpoint of the log at `version`."""
    return f"{CHECKPOINT_DIR}/{version:020d}.{new_uuid()[:8]}.json"


def segment_path() -> str:
    """Return a fresh path for a segment of manifest rows."""
    return f"{SEGMENT_DIR}/{new_uuid()}.zarr.zip"


def trajectory_path(uuid: str) -> str:
    """Return the path of the trajectory `uuid` (32 hex digits) below the root."""
    return f"{TRAJECTORY_DIR}/{uuid[:2]}/{uuid}.zarr.zip"


def uuid_of_path(path: str) -> str:
    """Return the uuid of the trajectory at a path, see `trajectory_path`."""
    return path.rpartition("/")[2].partition(".")[0]
