"""What a commit shall change: the actions that add, list and take off rows.

Built from what stands at the time, so that a commit that another writer overtook is
built anew. Owns what new ids are, and that a try that landed is not made twice. Knows
no archive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence, Set
from typing import Final

from zarrbuf.archive.spec import Schema
from zarrbuf.manifest.actions import MAX_ADDS, Action
from zarrbuf.manifest.commit_log import CommitLog
from zarrbuf.manifest.log_checkpoints import write_segments
from zarrbuf.manifest.rows import Row, Rows
from zarrbuf.manifest.snapshot import Snapshot
from zarrbuf.storage.contract import Storage

_MAX_REMOVED: Final = 500_000
"""Ids in one commit, which may have 16 MiB."""


def build_adds(
    now: Snapshot, rows: Sequence[Row], schemas: Mapping[str, Schema], *, since: int
) -> list[Action]:
    """Return the actions that add rows to a snapshot.

    New ids go on from the highest so far; schemas that are not declared yet come
    first. What is listed already, because an earlier try landed, is left out.

    Args:
        now: what stands.
        rows: the rows; each keeps its id where that is higher than all before it.
        schemas: of these rows, by id.
        since: the version before they were tried first.
    """
    listed = set(now.table.listed.since(since).uuids())
    rows = [row for row in rows if row.uuid not in listed]
    if not rows:
        return []
    known = {**now.schemas, **{row.schema: schemas[row.schema] for row in rows}}
    actions: list[Action] = []
    if len(known) > len(now.schemas):
        actions.append(now.meta_action(schemas=known))
    next_id = now.next_trajectory_id
    for row in rows:
        next_id = max(next_id, row.trajectory_id)
        actions.append(dataclasses.replace(row, trajectory_id=next_id).to_action())
        next_id += 1
    return actions


def listing_actions(added: Rows, storage: Storage) -> list[Action]:
    """Return the actions that list rows as they are, ids included.

    More than 1,000 go into segments, which are written first.
    """
    if len(added) > MAX_ADDS:
        return [ref.to_action() for ref in write_segments(storage, added)]
    return [added.row(position).to_action() for position in range(len(added))]


def build_removal_of_all(now: Snapshot, reason: str) -> list[Action]:
    """Return the actions that take every row off the list."""
    ids = now.table.listed.trajectory_ids.tolist()
    return [{"action": "remove", "ids": ids, "reason": reason}] if ids else []


def remove_rows(log: CommitLog, rows: Rows, *, reason: str) -> int:
    """Take rows off the list of a buffer; their archives stay.

    Returns:
        How many were still listed.

    Raises:
        StorageError: if the storage failed; some may be off the list then.
    """
    removed = 0
    for start in range(0, len(rows), _MAX_REMOVED):
        some = rows.slice(start, start + _MAX_REMOVED).fixed
        wanted = {(one["uuid"].item(), one["trajectory_id"].item()) for one in some}
        found: list[int] = []

        def build(
            now: Snapshot,
            wanted: Set[tuple[bytes, int]] = wanted,
            found: list[int] = found,
        ) -> list[Action]:
            listed = now.rows.fixed
            found[:] = [
                number
                for uuid, number in zip(
                    listed["uuid"].tolist(),
                    listed["trajectory_id"].tolist(),
                    strict=True,
                )
                if (uuid, number) in wanted
            ]
            if not found:
                return []
            return [{"action": "remove", "ids": list(found), "reason": reason}]

        log.commit(build, op=reason)
        removed += len(found)
    return removed
