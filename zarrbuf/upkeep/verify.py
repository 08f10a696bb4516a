"""Read a whole buffer and say everything that is wrong with it.

Owns the order of the checks: root, chain, checkpoints, then each trajectory with its
row. Goes on after a fault, so that one run names all of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from zarrbuf.archive.chunks import crc32c
from zarrbuf.archive.spec import Schema
from zarrbuf.common.jobs import Progress
from zarrbuf.errors import (
    FormatError,
    InvalidInputError,
    StorageError,
    UnsupportedVersionError,
    UntrustedBaseError,
    ZarrbufError,
)
from zarrbuf.manifest.commit_log import CommitLog, list_versions
from zarrbuf.manifest.identity import read_root
from zarrbuf.manifest.layout import (
    ROOT_NAME,
    commit_path,
    trajectory_path,
)
from zarrbuf.manifest.log_checkpoints import damaged_checkpoints, newer_checkpoint
from zarrbuf.manifest.rows import UNKNOWN_SCHEMA, Row, Rows
from zarrbuf.rlinf.index import check_no_version, is_rlinf_folder
from zarrbuf.storage.contract import Storage
from zarrbuf.storage.local import LocalStorage
from zarrbuf.storage.resolve import Location, StorageOptions, open_storage
from zarrbuf.stores.contract import TrajectoryStore, known_name
from zarrbuf.stores.logged import LogStore, list_archives
from zarrbuf.stores.opening import location_of, open_store
from zarrbuf.stores.rlinf_folder import RlinfStore
from zarrbuf.trajectory.archived import TrajectoryArchive
from zarrbuf.trajectory.encoding import describe_trajectory
from zarrbuf.trajectory.trajectory import decode_trajectory
from zarrbuf.upkeep.repair.log_plan import open_plans


@dataclass
class Verification:
    """What a verification found.

    Attributes:
        path: what was read.
        kind: "zarr", "pt" or "pkl".
        problems: what is wrong, one sentence each.
        damaged_ids: trajectories whose archives are damaged or gone.
        unreachable_ids: trajectories that could not be looked at: where they lie is
            not there, not allowed, or failed.
        num_commits: commits read.
        num_trajectories: trajectories read.
        num_chunks: chunks whose checksum was computed.
        num_bytes: bytes of the archives or files read.
        num_unreferenced: archives that no row names, left by writers that were killed
            or rows that were removed; no fault.
        unreferenced_ms: when the first and the last of these were written, ms since
            1970; None if there are none.
        num_evicted: trajectories that a folder of RLinf's lists and its run let go of;
            no fault.
    """

    path: str
    kind: str
    problems: list[str] = field(default_factory=list)
    damaged_ids: list[int] = field(default_factory=list)
    unreachable_ids: list[int] = field(default_factory=list)
    num_commits: int = 0
    num_trajectories: int = 0
    num_chunks: int = 0
    num_bytes: int = 0
    num_unreferenced: int = 0
    unreferenced_ms: tuple[int, int] | None = None
    num_evicted: int = 0

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**vars(self), "is_sound": self.is_sound}


def verify(
    path: Any,
    *,
    deep: bool = False,
    version: int | None = None,
    storage_options: StorageOptions | None = None,
    allow_bases: Sequence[Location] = (),
    progress: Progress | None = None,
) -> Verification:
    """Read everything a buffer consists of, and check it against each other.

    Every commit and its place in the chain, every checkpoint, of every archive each
    byte, and that row and archive say the same. Of RLinf's folders: every file.

    Args:
        path: a zarrbuf buffer or a folder of RLinf's: path, URL or open buffer.
        deep: decode every trajectory too, and compare it with what its row says of its
            content.
        version: read the trajectories that were listed after that commit; None for
            those listed now.
        storage_options: for object stores, see `TrajectoryReplayBuffer`.
        allow_bases: see `TrajectoryReplayBuffer`.
        progress: called with (trajectories done, trajectories in all).

    Raises:
        NotFoundError: if neither is there, or no such version.
        InvalidInputError: if a version of an RLinf folder is asked for.
    """
    path = location_of(path)
    storage = open_storage(path, storage_options, allow_bases=allow_bases)
    if ROOT_NAME not in storage.list_names(""):
        if isinstance(storage, LocalStorage) and is_rlinf_folder(storage.root):
            check_no_version(storage.root, version)
            return _verify_folder(os.fspath(path), storage, deep, progress)
        open_store(storage)  # says what is not there
    result = Verification(os.fspath(path), "zarr", stopped_repairs(storage))
    log = _verify_log(storage, result)
    if log is not None:
        store = _store_at(log, version)
        verify_rows(store, store.rows, result, deep=deep, progress=progress)
        present = list_archives(storage)
        listed = map(trajectory_path, store.listed.uuids())
        others = [present[name] for name in set(present).difference(listed)]
        result.num_unreferenced = len(others)
        if others:
            result.unreferenced_ms = min(others), max(others)
    return result


def _verify_folder(
    path: str, storage: LocalStorage, deep: bool, progress: Progress | None
) -> Verification:
    try:
        store = RlinfStore.open(storage.root)
    except ZarrbufError as exc:
        return Verification(path, "pt", problems=[str(exc)])
    result = Verification(path, store.suffix, num_evicted=len(store.index.evicted))
    verify_rows(store, store.rows, result, deep=deep, progress=progress)
    return result


def _verify_log(storage: Storage, result: Verification) -> CommitLog | None:
    """Replay all commits without checkpoints; then check the checkpoints."""
    try:
        log = CommitLog(storage, read_root(storage))
        result.num_commits = len(list_versions(storage))
    except ZarrbufError as exc:
        result.problems.append(str(exc))
        return None
    empty = log.snapshot
    try:
        log.refresh(until=result.num_commits, window=8)
    except ZarrbufError as exc:
        result.problems.append(str(exc))
        return None
    result.problems += (why for _, why in damaged_checkpoints(storage, empty))
    newer = newer_checkpoint(storage, empty, log.snapshot.version)
    if newer is not None:
        result.problems.append(
            f"{storage.describe(commit_path(newer.version))} is missing, though a "
            "checkpoint of the log was made after it; zarrbuf repair goes on from that"
        )
    return log


def _store_at(log: CommitLog, version: int | None) -> LogStore:
    """Return the store that the log stands for, now or after a commit."""
    if version is None:
        return LogStore(log)
    return LogStore.open(log.storage, version=version)


def stopped_repairs(storage: Storage) -> list[str]:
    """Say which repairs were stopped half-way; see `repair.log_plan`."""
    return [
        f"{storage.describe(name)}: a repair was stopped; `zarrbuf repair --apply` "
        "goes on with it"
        for name in open_plans(storage)
    ]


def verify_rows(
    store: TrajectoryStore,
    rows: Rows,
    result: Verification,
    *,
    deep: bool = False,
    progress: Progress | None = None,
) -> dict[str, Schema]:
    """Read every trajectory of some rows, and add to a result what is wrong.

    Returns:
        Schema id -> fields, of the archives that could be read.
    """
    total = len(rows)
    schemas: dict[str, Schema] = {}
    for number in range(total):
        row = rows.row(number)
        try:
            archive = store.open_archive(row)
            result.num_chunks += archive.check()  # first, since it names the field
            _check_crc(row, archive)
            if deep:
                _check_content(row, archive)
            result.num_bytes += row.size
            schemas.setdefault(row.schema, archive.header.schema)
        except ZarrbufError as exc:
            message = str(exc)
            name = known_name(row, store.suffix)
            result.problems.append(message if name in message else f"{name}: {message}")
            is_damaged = _is_damage(exc, row, store)
            ids = result.damaged_ids if is_damaged else result.unreachable_ids
            ids.append(row.trajectory_id)
        result.num_trajectories += 1
        if progress is not None:
            progress(number + 1, total)
    return schemas


def _is_damage(exc: ZarrbufError, row: Row, store: TrajectoryStore) -> bool:
    """Whether an archive is damaged or gone, not merely out of reach for now."""
    if isinstance(exc, UntrustedBaseError | UnsupportedVersionError | StorageError):
        return False
    if isinstance(store, LogStore):
        try:
            store.home(row)
        except ZarrbufError:
            return False
    return True


def _check_crc(row: Row, archive: TrajectoryArchive) -> None:
    if row.schema != UNKNOWN_SCHEMA and crc32c(bytes(archive.source)) != row.crc:
        raise FormatError(
            f"{archive.name}: the crc32c of its {row.size} bytes is not the one in the "
            "manifest"
        )


def _check_content(row: Row, archive: TrajectoryArchive) -> None:
    """Decode a trajectory, and compare it with the shape and the tags of its row."""
    try:
        shape, tags = describe_trajectory(decode_trajectory(archive))
    except InvalidInputError as exc:
        raise FormatError(f"{archive.name}: {exc}") from exc
    if row.schema != UNKNOWN_SCHEMA and shape != row.shape:
        raise FormatError(
            f"{archive.name}: its shape is {shape}, in the manifest {row.shape}"
        )
    for name, value in tags.items():
        if row.tags.get(name, value) != value:
            raise FormatError(
                f"{archive.name}: its {name} is {value}, in the manifest "
                f"{row.tags[name]}"
            )
