"""What writers that were killed leave beside archives: temporary files and segments.

Owns which segments the log needs: those that a commit or a checkpoint of it names, as
far as both can be read.
"""

from __future__ import annotations

import re
from typing import Final

from zarrbuf.errors import FormatError, NotFoundError
from zarrbuf.manifest.actions import MAX_COMMIT_BYTES, parse_lone_commit
from zarrbuf.manifest.commit_log import list_versions
from zarrbuf.manifest.layout import (
    CHECKPOINT_DIR,
    CHECKPOINT_NAME,
    SEGMENT_DIR,
    SEGMENT_PATH,
    commit_path,
)
from zarrbuf.manifest.log_checkpoints import parse_checkpoint
from zarrbuf.storage.contract import TMP_DIR, Storage
from zarrbuf.upkeep.repair.log_plan import open_plans

_TEMPORARY: Final = re.compile(rf"{TMP_DIR}/[0-9a-f]{{32}}")
_AT_ONCE: Final = 256


def old_temporaries(storage: Storage, cutoff_ms: int) -> list[str]:
    """Return files below `tmp/` of our own names that were written before a time."""
    times = storage.list_times([TMP_DIR])
    return sorted(
        name
        for name, written in times.items()
        if written < cutoff_ms and _TEMPORARY.fullmatch(name)
    )


def free_segments(storage: Storage, cutoff_ms: int) -> list[str]:
    """Return segments written before a time that nothing names.

    Nothing while a repair is under way, or something that may name one is damaged.
    """
    times = storage.list_times([SEGMENT_DIR])
    old = {
        name
        for name, written in times.items()
        if written < cutoff_ms and SEGMENT_PATH.fullmatch(name)
    }
    if not old or open_plans(storage):
        return []
    try:
        old -= _named_by_checkpoints(storage)
        return sorted(old - _named_by_commits(storage) if old else old)
    except (FormatError, NotFoundError):
        return []


def _named_by_checkpoints(storage: Storage) -> set[str]:
    named: set[str] = set()
    for name in storage.list_names(CHECKPOINT_DIR):
        match = CHECKPOINT_NAME.fullmatch(name)
        if match:
            path = f"{CHECKPOINT_DIR}/{name}"
            root = parse_checkpoint(
                storage.read(path, max_bytes=MAX_COMMIT_BYTES),
                version=int(match[1]),
                where=storage.describe(path),
            )
            named.update(ref.path for ref in root["segments"])
    return named


def _named_by_commits(storage: Storage) -> set[str]:
    named: set[str] = set()
    versions = list_versions(storage)
    for start in range(0, len(versions), _AT_ONCE):
        numbers = versions[start : start + _AT_ONCE]
        names = [commit_path(number) for number in numbers]
        found = storage.read_existing(names, max_bytes=MAX_COMMIT_BYTES)
        for number, data in zip(numbers, found, strict=True):
            where = storage.describe(commit_path(number))
            if data is None:
                raise NotFoundError(f"{where} is not there any more")
            commit = parse_lone_commit(data, version=number, where=where)
            named.update(
                str(action["path"])
                for action in commit.actions
                if action["action"] == "add_segment"
            )
    return named
