"""The commits of a buffer, for people: when, by whom, what changed.

Reads the log and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from zarrbuf.common.times import to_datetime
from zarrbuf.manifest.actions import Commit
from zarrbuf.manifest.commit_log import open_log
from zarrbuf.storage.resolve import StorageOptions, open_storage
from zarrbuf.stores.opening import location_of


def read_history(
    path: Any, *, storage_options: StorageOptions | None = None
) -> list[dict[str, Any]]:
    """Return what each commit of a buffer did, the first one first.

    Args:
        path: a zarrbuf buffer: path, URL or open buffer.
        storage_options: for object stores, see `TrajectoryReplayBuffer`.

    Returns:
        JSON values: `version`, `time` (UTC, ISO 8601), `op`, `writer`, `num_added`,
        `num_removed`, `num_vacuumed`, `pins` (who asked for them), `unpins`.

    Raises:
        NotFoundError: if there is no buffer.
        FormatError: if a commit is damaged, naming it.
    """
    log = open_log(open_storage(location_of(path), storage_options), version=0)
    return [_describe(commit) for commit in log.read_commits()]


def _describe(commit: Commit) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for action in commit.actions:
        counts[action["action"]] += _size(action)
    return {
        "version": commit.version,
        "time": to_datetime(commit.ts).isoformat(timespec="milliseconds"),
        "op": commit.op,
        "writer": commit.writer,
        "num_added": counts["add"] + counts["add_segment"],
        "num_removed": counts["remove"],
        "num_vacuumed": counts["vacuum"],
        "pins": list(_by(commit, "pin")),
        "unpins": list(_by(commit, "unpin")),
    }


def _size(action: Any) -> int:
    """Return how many trajectories an action is about."""
    match action["action"]:
        case "add_segment":
            return int(action["rows"])
        case "remove":
            return len(action["ids"])
        case "vacuum":
            return len(action["paths"])
    return 1


def _by(commit: Commit, kind: str) -> Iterator[str]:
    for action in commit.actions:
        if action["action"] == kind:
            yield action["by"]
