"""What is left of a log in which commits are damaged or missing.

Owns what damaged commits cost: what the whole ones among them add up to, and where a
later checkpoint tells more. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from zarrbuf.archive.spec import Schema
from zarrbuf.errors import FormatError, NotFoundError, UnsupportedVersionError
from zarrbuf.manifest.actions import (
    MAX_COMMIT_BYTES,
    Commit,
    SegmentRef,
    parse_lone_commit,
)
from zarrbuf.manifest.commit_log import CommitLog
from zarrbuf.manifest.layout import COMMIT_NAME, MANIFEST_DIR, commit_path
from zarrbuf.manifest.log_checkpoints import newer_checkpoint, read_segment
from zarrbuf.manifest.rows import Row, Rows, parse_add
from zarrbuf.manifest.snapshot import Snapshot, parse_schemas
from zarrbuf.storage.contract import Storage

_WINDOW: Final = 64


@dataclass
class Remains:
    """What the commits that are whole add up to.

    Attributes:
        start: what they say up to the first that is not; the log goes on from there.
        fault: what is wrong with that one; None if all are whole.
        late: numbers of the commits from there on.
        checkpoint: version of a later checkpoint that is whole, 0 for none.
        listed: rows that should be listed, in order.
        ghosts: rows that were added after `start` and removed again.
        schemas: schema id -> fields.
        bases: other roots that rows may name.
        config: seed, codec, ...
        state: what the last `state` action carried.
        pins: pin uuid -> version and who asked for it.
    """

    start: Snapshot
    fault: str | None
    late: list[int]
    checkpoint: int
    listed: Rows
    ghosts: Rows
    schemas: dict[str, Schema]
    bases: tuple[Mapping[str, Any], ...]
    config: Mapping[str, Any]
    state: Mapping[str, Any] | None
    pins: dict[str, Mapping[str, Any]]


def read_remains(log: CommitLog) -> Remains:
    """Read all that is whole of a log, of which nothing was taken in yet.

    Afterwards the log is at the last commit before the first that is damaged.
    """
    versions = _versions(log.storage)
    empty = log.snapshot
    fault = _read_whole_commits(log, versions)
    start = log.snapshot
    late = [number for number in versions if number > start.version]
    base = newer_checkpoint(log.storage, empty, start.version) or start
    if fault is None and base is not start:
        where = log.storage.describe(commit_path(base.version))
        fault = f"{where} is missing, though a checkpoint of the log was made after it"
    rest = _Rest(base)
    for number in late:
        if number > base.version:
            rest.take_in(log.storage, number)
    return Remains(
        start,
        fault,
        late,
        base.version if base is not start else 0,
        rest.listed,
        Rows.of(list(rest.ghosts.values())),
        rest.schemas,
        rest.bases,
        rest.config,
        rest.state,
        rest.pins,
    )


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
        except UnsupportedVersionError:
            raise  # not damaged: a newer program wrote it
        except (FormatError, NotFoundError) as exc:
            return str(exc)
        if log.snapshot.version == before:
            return f"{log.storage.describe(commit_path(before + 1))} is missing"
    return None


class _Rest:
    """What later commits make of a snapshot, as far as they are whole.

    Others among them may be missing, so what they say need not fit together: the ids
    that one removes may never have been listed.
    """

    def __init__(self, base: Snapshot) -> None:
        self._base = base.rows
        self._gone: set[int] = set()  # ids of the base's rows
        self._new: dict[str, Row] = {}
        self._uuids: dict[int, str] = {}  # of the new rows that are listed
        self.ghosts: dict[str, Row] = {}
        self.schemas: dict[str, Schema] = dict(base.schemas)
        self.bases = base.bases
        self.config = base.config
        self.state = base.state
        self.pins = dict(base.pins)

    def take_in(self, storage: Storage, number: int) -> None:
        """Take in a commit if it is whole."""
        where = storage.describe(commit_path(number))
        try:
            commit = parse_lone_commit(
                storage.read(commit_path(number), max_bytes=MAX_COMMIT_BYTES),
                version=number,
                where=where,
            )
            rows = list(_rows_of(storage, commit, where))
        except UnsupportedVersionError:
            raise
        except (FormatError, NotFoundError):
            return
        added = iter(rows)
        for action in commit.actions:
            kind = action["action"]
            if kind in ("add", "add_segment"):
                self._add(next(added))
            elif kind == "remove":
                self._remove(action["ids"])
            elif kind == "meta":
                self.schemas |= parse_schemas(action["schemas"], where=where)
                self.config = action["config"]
                if len(action["bases"]) > len(self.bases):
                    self.bases = tuple(action["bases"])
            elif kind == "state":
                self.state = action["state"]
            elif kind == "pin":
                one = {name: action[name] for name in ("version", "by")}
                self.pins[action["pin"]] = one
            elif kind == "unpin":
                self.pins.pop(action["pin"], None)

    def _add(self, rows: Rows) -> None:
        for number in range(len(rows)):
            row = rows.row(number)
            self._new[row.uuid] = row
            self._uuids[row.trajectory_id] = row.uuid

    def _remove(self, ids: Sequence[int]) -> None:
        for number in ids:
            uuid = self._uuids.pop(number, None)
            if uuid is None:
                self._gone.add(number)
            else:
                self.ghosts[uuid] = self._new.pop(uuid)

    @property
    def listed(self) -> Rows:
        """The rows that are listed in the end."""
        gone = np.array(sorted(self._gone), np.int64)
        kept = np.flatnonzero(~np.isin(self._base.trajectory_ids, gone))
        old = self._base.take(kept)
        return Rows.concat([old, without(Rows.of(list(self._new.values())), old)])


def _rows_of(storage: Storage, commit: Commit, where: str) -> Iterator[Rows]:
    """Yield what each action that adds rows adds."""
    for action in commit.actions:
        if action["action"] == "add":
            yield Rows.of([parse_add(dict(action), where=where)])
        elif action["action"] == "add_segment":
            fields = {name: action[name] for name in action if name != "action"}
            ref = SegmentRef.parse({**fields, "level": 0, "removed": []}, where=where)
            yield read_segment(storage, ref)


def without(rows: Rows, others: Rows) -> Rows:
    """Return the rows whose uuid is not among those of others."""
    others_too = np.isin(rows.fixed["uuid"], others.fixed["uuid"])
    return rows.take(np.flatnonzero(~others_too))
