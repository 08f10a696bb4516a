"""Delete archives that nothing refers to any more: in two phases, and only old ones.

Owns what may be deleted: objects of our grammar below the buffer's own root, old, in no
list that somebody may still read. The log says what is about to go before it goes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from zarrbuf.common.jobs import Progress, run_jobs
from zarrbuf.common.uuids import new_uuid
from zarrbuf.errors import InvalidInputError
from zarrbuf.manifest.actions import Action
from zarrbuf.manifest.commit_log import open_log
from zarrbuf.manifest.layout import COMMIT_NAME, MANIFEST_DIR, uuid_of_path
from zarrbuf.manifest.rows import Rows
from zarrbuf.manifest.snapshot import Snapshot
from zarrbuf.storage.contract import Storage
from zarrbuf.storage.resolve import StorageOptions
from zarrbuf.stores.logged import LogStore, list_archives
from zarrbuf.stores.opening import open_log_store
from zarrbuf.upkeep.leftovers import free_segments, old_temporaries

GRACE_S: Final = 24 * 3600.0
"""Seconds that an archive is kept after the last list that had it was the newest."""
_MIN_GRACE_S: Final = 3600.0
"""Much longer than an archive waits for its commit."""
_MAX_PATHS: Final = 1000
"""Archives in one commit: few enough that progress is seen."""
_AT_ONCE: Final = 16


@dataclass(frozen=True)
class Vacuum:
    """What a vacuum found, and deleted.

    Attributes:
        path: the buffer.
        names: archives, and segments of the log, that nothing refers to, old enough to
            go, or gone.
        is_deleted: whether they are gone.
        num_temporary: files below `tmp/` that writers left who were killed, as old.
        num_young: archives that no list has and that are too young to go: of writers
            at work, or killed lately.
        next_ms: when the first of these may go, ms since 1970; None if there are none.
        num_kept: archives that are off the list, kept for readers of a version that
            was the newest within the grace, or for pins.
    """

    path: str
    names: tuple[str, ...]
    is_deleted: bool
    num_temporary: int
    num_young: int
    next_ms: int | None
    num_kept: int

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class _Found:
    """Archives below a root, by what keeps them."""

    free: tuple[str, ...]
    num_young: int
    oldest_young_ms: int | None
    num_kept: int


def vacuum(
    buffer: Any,
    *,
    delete: bool = False,
    grace_s: float = GRACE_S,
    storage_options: StorageOptions | None = None,
    progress: Progress | None = None,
) -> Vacuum:
    """Find archives that nothing refers to, and delete them if told to.

    Kept are archives that are listed; that were listed by a version that was the newest
    within the last `grace_s`, since somebody may read it still; that a pin keeps for
    another buffer; and all that were written within `grace_s`, since their commit may
    be on its way. So are segments that a commit or a checkpoint of the log names.
    Commits and checkpoints are never deleted. Files below `tmp/` go at that age, too.

    Args:
        buffer: path, URL or open buffer.
        delete: whether to delete; else only to say what would be.
        grace_s: seconds, at least 3,600.
        storage_options: for object stores, see `TrajectoryReplayBuffer`.
        progress: called with (archives deleted, archives to delete).

    Raises:
        InvalidInputError: if an argument is not allowed, or the buffer is a folder of
            RLinf's.
        NotFoundError: if there is no buffer.
        StorageError: if the storage failed; calling it again goes on.
    """
    is_number = isinstance(grace_s, int | float)
    if not is_number or not _MIN_GRACE_S <= grace_s < 1e9:
        raise InvalidInputError(
            f"grace_s is {grace_s!r}; at least {_MIN_GRACE_S:g} seconds are needed"
        )
    store = open_log_store(buffer, storage_options, what="vacuum")
    return vacuum_store(store, delete=delete, grace_s=grace_s, progress=progress)


def vacuum_store(
    store: LogStore,
    *,
    delete: bool,
    grace_s: float,
    archives_only: bool = False,
    progress: Progress | None = None,
) -> Vacuum:
    """Do what `vacuum` does to an open store; its archives alone, if told so.

    The rest is looked for in every checkpoint of the log, and takes little room.
    """
    storage, log = store.storage, store.log
    log.refresh()
    grace_ms = int(grace_s * 1000)
    cutoff_ms = storage.now_ms() - grace_ms
    archives = list_archives(storage)
    found = _find(log.snapshot, storage, archives, cutoff_ms)
    free, temporary = list(found.free), list[str]()
    if not archives_only:
        free += free_segments(storage, cutoff_ms)
        temporary = old_temporaries(storage, cutoff_ms)
    names = list(free)
    if delete:
        run_jobs(storage.delete, temporary, num_threads=_AT_ONCE)
        names = []
        for start in range(0, len(free), _MAX_PATHS):
            some = free[start : start + _MAX_PATHS]
            names += _delete(store, some, cutoff_ms)
            if progress is not None:
                progress(start + len(some), len(free))
    oldest_ms = found.oldest_young_ms
    return Vacuum(
        path=storage.url,
        names=tuple(names),
        is_deleted=delete,
        num_temporary=len(temporary),
        num_young=found.num_young,
        next_ms=None if oldest_ms is None else oldest_ms + grace_ms,
        num_kept=found.num_kept,
    )


def _delete(store: LogStore, wanted: Sequence[str], cutoff_ms: int) -> list[str]:
    """Say in the log what goes, delete it, and say that it is gone; what went."""
    storage, intent = store.storage, new_uuid()
    announced: list[str] = []

    def announce(now: Snapshot) -> list[Action]:
        # Somebody may have pinned or listed one meanwhile.
        kept = _kept_uuids(now, storage, cutoff_ms)
        announced[:] = [name for name in wanted if uuid_of_path(name) not in kept]
        return [_action("vacuum", intent, announced)] if announced else []

    store.log.commit(announce, op="vacuum")
    # One that was written or linked again meanwhile is somebody's.
    directories = sorted({name.rpartition("/")[0] for name in announced})
    written = storage.list_times(directories)
    gone = [name for name in announced if written.get(name, 0) < cutoff_ms]
    run_jobs(storage.delete, gone, num_threads=_AT_ONCE)
    done = [_action("vacuum_done", intent, gone)] if gone else []
    store.log.commit(lambda now: done, op="vacuum")
    return gone


def _action(kind: str, intent: str, paths: Sequence[str]) -> Action:
    return {"action": kind, "intent": intent, "paths": list(paths)}


def _find(
    snapshot: Snapshot, storage: Storage, archives: dict[str, int], cutoff_ms: int
) -> _Found:
    listed = _own_uuids(snapshot.rows)
    off_list = [name for name in archives if uuid_of_path(name) not in listed]
    young = {name for name in off_list if archives[name] >= cutoff_ms}
    old = [name for name in off_list if name not in young]
    kept = _kept_uuids(snapshot, storage, cutoff_ms) if old else set()
    free = tuple(sorted(name for name in old if uuid_of_path(name) not in kept))
    oldest = min((archives[name] for name in young), default=None)
    return _Found(free, len(young), oldest, len(old) - len(free))


def _kept_uuids(snapshot: Snapshot, storage: Storage, cutoff_ms: int) -> set[str]:
    """Return the uuids of archives here that somebody may read."""
    kept = _own_uuids(snapshot.rows)
    versions = {int(pin["version"]) for pin in snapshot.pins.values()}
    for version in sorted(versions):
        kept |= _own_uuids(open_log(storage, version=version).snapshot.rows)
    log = open_log(storage, version=_newest_before(storage, cutoff_ms))
    before = log.snapshot
    log.refresh(window=8)
    # All that was added since, whether or not it was removed again.
    table = log.snapshot.table
    added = table.rows.slice(len(before.table), len(table))
    return kept | _own_uuids(before.rows) | _own_uuids(added)


def _newest_before(storage: Storage, time_ms: int) -> int:
    """Return the last version that was written before a time, by the storage's clock.

    The `ts` of a commit is told by its writer, whose clock may be wrong.
    """
    times = storage.list_times([MANIFEST_DIR]).items()
    old = [name.rpartition("/")[2] for name, written in times if written < time_ms]
    matches = map(COMMIT_NAME.fullmatch, old)
    return max((int(match[1]) for match in matches if match), default=0)


def _own_uuids(rows: Rows) -> set[str]:
    """Return the uuids of the rows whose archives lie below the own root."""
    own = np.flatnonzero(rows.column("base") == 0)
    return {uuid.hex() for uuid in rows.fixed["uuid"][own].tolist()}
