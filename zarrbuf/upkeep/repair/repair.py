"""Make a damaged buffer or folder usable again: nothing silently, nothing thrown away.

Owns what is given up: commits from the first damaged one on, trajectories that cannot
be read. Files that are in the way are put aside, never deleted.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zarrbuf.archive.spec import Schema
from zarrbuf.common.jobs import Progress
from zarrbuf.errors import NotFoundError
from zarrbuf.manifest.commit_log import CommitLog
from zarrbuf.manifest.identity import read_root
from zarrbuf.manifest.layout import ROOT_NAME, commit_path, uuid_of_path
from zarrbuf.manifest.log_checkpoints import damaged_checkpoints
from zarrbuf.manifest.rows import Rows
from zarrbuf.manifest.snapshot import Snapshot
from zarrbuf.rlinf.index import is_rlinf_folder, list_files
from zarrbuf.storage.contract import Storage
from zarrbuf.storage.local import LocalStorage
from zarrbuf.storage.resolve import Location, StorageOptions, open_storage
from zarrbuf.stores.logged import LogStore, list_archives
from zarrbuf.stores.opening import location_of
from zarrbuf.upkeep.repair.folder_index import (
    needs_writing,
    rescue_folder,
    write_rescued,
)
from zarrbuf.upkeep.repair.log_plan import (
    ASIDE_DIR,
    Plan,
    carry_out,
    go_on,
    late_checkpoints,
    make_plan,
    open_plans,
)
from zarrbuf.upkeep.repair.log_remains import Remains, read_remains
from zarrbuf.upkeep.verify import Verification, verify_rows


@dataclass
class Repair:
    """What was wrong, and what a repair does about it.

    Attributes:
        path: the buffer or folder.
        kind: "zarr", "pt" or "pkl".
        is_applied: whether it was done; else nothing was changed.
        problems: what is wrong, one sentence each.
        steps: what is done, one sentence each.
        orphans: archives or files that are there and in no list.
        num_trajectories: trajectories listed afterwards.
    """

    path: str
    kind: str
    is_applied: bool
    problems: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    num_trajectories: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return dataclasses.asdict(self)


def repair(
    path: Any,
    *,
    apply: bool = False,
    storage_options: StorageOptions | None = None,
    allow_bases: Sequence[Location] = (),
    progress: Progress | None = None,
) -> Repair:
    """Say what it takes to make a buffer or folder usable again, and do it if told to.

    Of a buffer: commits from the first one on that is damaged or missing are put aside,
    and one commit says again what those among them said that are whole: trajectories
    added and removed, pins, the state of a run. Trajectories whose archives are damaged
    or gone leave the list by a commit that says so; those that merely cannot be reached
    stay. Of a folder of RLinf's: an index of all files that can be read. Nobody else
    may write meanwhile.

    Args:
        path: a zarrbuf buffer or a folder of RLinf's: path, URL or open buffer.
        apply: whether to do it.
        storage_options: for object stores, see `TrajectoryReplayBuffer`.
        allow_bases: see `TrajectoryReplayBuffer`.
        progress: called with (trajectories read, trajectories in all).

    Raises:
        NotFoundError: if neither is there.
        FormatError: if `zarrbuf.json` is damaged: then there is no buffer to repair.
        UnsupportedVersionError: if a commit is of a newer spec; nothing was changed.
        StorageError: if the storage failed; calling it again goes on.
    """
    location = location_of(path)
    storage = open_storage(location, storage_options, allow_bases=allow_bases)
    if isinstance(storage, LocalStorage) and not storage.exists(ROOT_NAME):
        if is_rlinf_folder(storage.root) or list_files(storage.root):
            return _repair_folder(storage, apply, progress)
        raise NotFoundError(f"{storage.url} holds no replay buffer")
    root = read_root(storage)
    result = Repair(storage.url, "zarr", apply)
    for name in open_plans(storage):
        result.problems.append(f"{storage.describe(name)}: a repair was stopped")
        result.steps.append("the repair that was stopped goes on")
        if apply:
            log = CommitLog(storage, root)
            read_remains(log)  # up to where the plan begins
            go_on(log, name)
    log = CommitLog(storage, root)
    empty = log.snapshot
    remains = read_remains(log)
    if result.steps and not apply:  # what comes then, it has to end first to tell
        result.num_trajectories = len(remains.listed)
        return result
    _repair_log(log, empty, remains, result, progress)
    return result


def _repair_folder(
    storage: LocalStorage, apply: bool, progress: Progress | None
) -> Repair:
    rescue = rescue_folder(storage.root, progress)
    index = rescue.index
    result = Repair(storage.url, index.file_format, apply, rescue.problems)
    result.orphans = rescue.orphans
    result.num_trajectories = len(index.rows)
    if rescue.problems and needs_writing(storage.root, rescue):
        result.steps.append(
            f"an index of the {len(index.rows)} trajectories that can be read is "
            "written; the old JSON files are kept beside it"
        )
        if apply:
            write_rescued(storage.root, rescue)
    return result


def _repair_log(
    log: CommitLog,
    empty: Snapshot,
    remains: Remains,
    result: Repair,
    progress: Progress | None,
) -> None:
    """Look at all that should be listed, and make the log say what remains of it."""
    storage = log.storage
    if remains.fault is not None:
        result.problems.append(remains.fault)
    damaged = damaged_checkpoints(storage, empty)
    result.problems += (why for _, why in damaged)
    checked, schemas = _look_at(log, remains, result, progress)
    lost = np.isin(remains.listed.trajectory_ids, checked.damaged_ids)
    plan = make_plan(
        remains, lost=remains.listed.take(np.flatnonzero(lost)), schemas=schemas
    )
    if plan.num_left_out:
        result.problems.append(
            f"{plan.num_left_out} trajectories cannot be listed: the commit that told "
            "their fields or where they lie is damaged"
        )
    names = {name for name, _ in damaged}
    if remains.fault is not None:
        names |= set(late_checkpoints(storage, remains.start.version + 1))
    plan.names = [*map(commit_path, remains.late), *sorted(names)]
    result.steps += _steps(remains, plan, checked, storage, len(damaged))
    if result.is_applied and result.steps:
        carry_out(log, plan)
    num_added = len(plan.rows) - len(plan.ghosts)
    result.num_trajectories = len(remains.start.rows) - len(plan.removed) + num_added
    listed = _uuids(remains.start.rows) - plan.removed | _uuids(plan.rows) - plan.ghosts
    result.orphans = [
        name for name in list_archives(storage) if uuid_of_path(name) not in listed
    ]


def _uuids(rows: Rows) -> set[str]:
    return {uuid.hex() for uuid in rows.fixed["uuid"].tolist()}


def _look_at(
    log: CommitLog, remains: Remains, result: Repair, progress: Progress | None
) -> tuple[Verification, dict[str, Schema]]:
    """Read the archives of all that should be listed."""
    view = copy.copy(log)
    view.snapshot = dataclasses.replace(remains.start, bases=remains.bases)
    checked = Verification(result.path, "zarr")
    schemas = verify_rows(LogStore(view), remains.listed, checked, progress=progress)
    result.problems += checked.problems
    return checked, schemas


def _steps(
    remains: Remains,
    plan: Plan,
    checked: Verification,
    storage: Storage,
    num_damaged: int,
) -> list[str]:
    """Say what a plan does, in the order in which it happens."""
    steps = []
    if remains.late:
        steps.append(
            f"commits {remains.late[0]} to {remains.late[-1]} are put aside below "
            f"{storage.describe(ASIDE_DIR)}; the last whole one is {plan.start}"
        )
    if remains.checkpoint:
        steps.append(
            f"what commits up to {remains.checkpoint} said, a checkpoint still tells"
        )
    if num_damaged:
        steps.append(f"{num_damaged} damaged checkpoints are put aside")
    num_added = len(plan.rows) - len(plan.ghosts)
    if num_added:
        steps.append(f"{num_added} trajectories of these are listed again")
    num_removed = len(plan.removed) - len(
        np.intersect1d(remains.start.rows.trajectory_ids, checked.damaged_ids)
    )
    if num_removed:
        steps.append(f"{num_removed} trajectories that they removed leave the list")
    if plan.pins:
        by = sorted({str(one["by"]) for one in plan.pins.values()})
        steps.append(f"what they kept for others stays kept: {', '.join(by)}")
    gone = checked.damaged_ids
    if gone:
        shown = ", ".join(map(str, gone[:20])) + (" ..." if len(gone) > 20 else "")
        steps.append(f"trajectories {shown} leave the list")
    return steps
