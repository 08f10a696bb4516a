"""Make a damaged buffer or folder usable again: nothing silently, nothing thrown away.

Owns what is given up: commits from the first damaged one on, trajectories that cannot
be read. Files that are in the way are put aside, never deleted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from zarrbuf.commits import CommitLog
from zarrbuf.errors import FormatError, NotFoundError, StorageError, ZarrbufError
from zarrbuf.folder_rescue import needs_writing, rescue_folder, write_rescued
from zarrbuf.format import (
    CHECKPOINT_DIR,
    CHECKPOINT_NAME,
    COMMIT_NAME,
    MANIFEST_DIR,
    ROOT_NAME,
    Schema,
    commit_path,
    new_uuid,
)
from zarrbuf.jobs import Progress
from zarrbuf.local_storage import LocalStorage
from zarrbuf.locations import Location, StorageOptions, open_storage
from zarrbuf.log_format import Action, unseal
from zarrbuf.log_store import LogStore, listing_actions
from zarrbuf.manifest import Snapshot, parse_schemas
from zarrbuf.rlinf_index import is_rlinf_folder, list_files
from zarrbuf.rows import Row, Rows, parse_add
from zarrbuf.storage import Outcome, Storage
from zarrbuf.stores import known_name
from zarrbuf.verification import Verification, list_archives, verify_rows

ASIDE_DIR: Final = "damaged"
"""Where commits are put that are in the way."""
_WINDOW: Final = 64


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
    path: Location,
    *,
    apply: bool = False,
    storage_options: StorageOptions | None = None,
    allow_bases: Sequence[Location] = (),
    progress: Progress | None = None,
) -> Repair:
    """Say what it takes to make a buffer or folder usable again, and do it if told to.

    Of a buffer: commits from the first one on that is damaged or missing are put aside,
    and what whole ones among them added is listed again; trajectories that cannot be
    read leave the list by a commit that says so. Of a folder of RLinf's: an index of
    all files that can be read. Nobody else may write meanwhile.

    Args:
        path: a zarrbuf buffer, path or URL, or a folder of RLinf's.
        apply: whether to do it.
        storage_options: for object stores, see `TrajectoryReplayBuffer`.
        allow_bases: see `TrajectoryReplayBuffer`.
        progress: called with (trajectories read, trajectories in all).

    Raises:
        NotFoundError: if neither is there.
        FormatError: if `zarrbuf.json` is damaged: then there is no buffer to repair.
        StorageError: if the storage failed; calling it again goes on.
    """
    storage = open_storage(path, storage_options, allow_bases=allow_bases)
    if isinstance(storage, LocalStorage) and not storage.exists(ROOT_NAME):
        if is_rlinf_folder(storage.root) or list_files(storage.root):
            return _repair_folder(storage, apply, progress)
        raise NotFoundError(f"{storage.url} holds no replay buffer")
    log = CommitLog(storage, storage.read(ROOT_NAME))
    result = Repair(storage.url, "zarr", apply)
    versions = _versions(storage)
    fault = _read_whole_commits(log, versions)
    lost: list[Row] = []
    aside = [number for number in versions if number > log.snapshot.version]
    if fault is not None:
        result.problems.append(fault)
        lost = list(_added_after(storage, log, aside))
        result.steps.append(
            f"commits {aside[0]} to {aside[-1]} are put aside below "
            f"{storage.describe(ASIDE_DIR)}; the last whole one is "
            f"{log.snapshot.version}"
        )
        if apply:
            _put_aside(storage, aside)
    _repair_list(log, lost, result, progress)
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


def _versions(storage: Storage) -> list[int]:
    """Return the numbers of all commits there are, ascending, holes or not."""
    matches = [COMMIT_NAME.fullmatch(name) for name in storage.list_names(MANIFEST_DIR)]
    return sorted(int(match[1]) for match in matches if match)


def _read_whole_commits(log: CommitLog, versions: Sequence[int]) -> str | None:
    """Take in commits up to the first that is damaged; what is wrong with that one."""
    last = versions[-1] if versions else 0
    while log.snapshot.version < last:
        until = min(last, log.snapshot.version + _WINDOW)
        try:
            log.refresh(until=until, window=_WINDOW)
        except (FormatError, NotFoundError):
            break
    while log.snapshot.version < last:
        before = log.snapshot.version
        try:
            log.refresh(until=before + 1)
        except (FormatError, NotFoundError) as exc:
            return str(exc)
        if log.snapshot.version == before:
            return f"{log.storage.describe(commit_path(before + 1))} is missing"
    return None


def _added_after(
    storage: Storage, log: CommitLog, aside: Sequence[int]
) -> Iterator[Row]:
    """Yield the rows that whole commits among some added and did not remove again."""
    rows: dict[int, Row] = {}
    known = set(log.snapshot.schemas)
    for number in aside:
        name = commit_path(number)
        where = storage.describe(name)
        try:
            _, *actions = unseal(storage.read(name), where=where)
            for action in actions:
                if action.get("action") == "meta":
                    known |= set(parse_schemas(action["schemas"], where=where))
                elif action.get("action") == "add":
                    row = parse_add(action, where=where)
                    rows[row.trajectory_id] = row
                elif action.get("action") == "remove":
                    for gone in action["ids"]:
                        rows.pop(gone, None)
        except (FormatError, NotFoundError, KeyError, TypeError):
            continue  # the damaged one
    listed = set(log.snapshot.table.listed.uuids())
    yield from (row for row in rows.values() if row.uuid not in listed)


def _put_aside(storage: Storage, numbers: Sequence[int]) -> None:
    """Copy commits elsewhere, then take them away, the last one first.

    So there is never a hole, and whoever is stopped goes on. Checkpoints of them go
    first: whoever opened one would go on where commits are no more.
    """
    found = [
        (CHECKPOINT_NAME.fullmatch(name), f"{CHECKPOINT_DIR}/{name}")
        for name in storage.list_names(CHECKPOINT_DIR)
    ]
    late = [name for match, name in found if match and int(match[1]) >= numbers[0]]
    names = [*map(commit_path, numbers), *late]
    place = f"{ASIDE_DIR}/{new_uuid()[:8]}"
    for name in names:
        data = storage.read(name)
        if storage.create(f"{place}/{name}", data) is not Outcome.CREATED:
            raise StorageError(f"{storage.describe(name)} could not be put aside")
    for name in reversed(names):
        storage.delete(name)


def _repair_list(
    log: CommitLog, lost: Sequence[Row], result: Repair, progress: Progress | None
) -> None:
    """List again what was lost, take off what cannot be read, name the orphans."""
    store = LogStore(log)
    checked = Verification(result.path, "zarr")
    verify_rows(store, checked, progress=progress)
    result.problems += checked.problems
    again: list[Row] = []
    schemas: dict[str, Schema] = {}
    for row in lost:
        try:
            if row.base > len(log.snapshot.bases):
                raise FormatError(f"{known_name(row)}: what its base was is lost")
            archive = store.open_archive(row)
            archive.check()
        except ZarrbufError as exc:
            result.problems.append(str(exc))
        else:
            again.append(row)
            schemas[row.schema] = archive.header.schema
    gone = checked.damaged_ids
    if again:
        result.steps.append(f"{len(again)} trajectories of these are listed again")
    if gone:
        shown = ", ".join(map(str, gone[:20])) + (" ..." if len(gone) > 20 else "")
        result.steps.append(f"trajectories {shown} leave the list")

    def build(now: Snapshot) -> list[Action]:
        known = {**now.schemas, **schemas}
        actions: list[Action] = []
        if len(known) > len(now.schemas):
            actions.append(now.meta_action(schemas=known))
        next_id, rows = now.next_trajectory_id, []
        for row in again:
            number = max(next_id, row.trajectory_id)
            rows.append(dataclasses.replace(row, trajectory_id=number))
            next_id = number + 1
        actions += listing_actions(Rows.of(rows), log.storage)
        if gone:
            reason = "repair: cannot be read"
            actions.append({"action": "remove", "ids": gone, "reason": reason})
        return actions

    if result.is_applied and (again or gone):
        log.commit(build, op="repair")
    listed = set(store.listed.uuids()) | {row.uuid for row in again}
    result.num_trajectories = len(store.listed)
    if not result.is_applied:
        result.num_trajectories += len(again) - len(gone)
    result.orphans = [
        name
        for name in list_archives(log.storage)
        if name.rpartition("/")[2].partition(".")[0] not in listed
    ]
