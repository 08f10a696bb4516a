"""What commits add up to: a snapshot.

Pure; knows no storage. A snapshot is what all commits up to one version say, and
never changes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from zarrbuf.archive.spec import FieldSpec, parse_schema
from zarrbuf.archive.zarr_json import encode_json
from zarrbuf.errors import FormatError
from zarrbuf.manifest.actions import Action, Commit, SegmentRef, sha256_hex
from zarrbuf.manifest.layout import trajectory_path
from zarrbuf.manifest.row_table import RowTable
from zarrbuf.manifest.rows import IntArray, Rows, parse_add

ReadSegment = Callable[[SegmentRef], Rows]
_MAX_AT_ONCE: Final = 64


@dataclass(frozen=True)
class Snapshot:
    """What the commits 1 to `version` say; never changed.

    Attributes:
        version: the last commit in it, 0 for none.
        tip: sha256 of that commit (of `zarrbuf.json` for version 0).
        root: sha256 of `zarrbuf.json`.
        ts: its time, ms since 1970.
        table: all rows since the segments began, those removed included.
        segments: what the first rows of the table were read from.
        schemas: schema id -> fields.
        bases: other roots that rows may name.
        config: seed, codec, ...
        state: what the last `state` action carried.
        pins: pin uuid -> version and who asked for it.
        intents: vacuum -> what it has said it deletes, and may be deleting still.
        next_trajectory_id: one more than the highest id ever given.
    """

    version: int
    tip: str
    root: str = ""
    ts: int = 0
    table: RowTable = field(default_factory=RowTable.empty)
    segments: tuple[SegmentRef, ...] = ()
    schemas: Mapping[str, Mapping[str, FieldSpec]] = field(default_factory=dict)
    bases: tuple[Mapping[str, Any], ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] | None = None
    pins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    intents: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    next_trajectory_id: int = 0

    @property
    def rows(self) -> Rows:
        """The rows that are listed, in order; a copy if others were removed."""
        return self.table.listed.rows

    @functools.cached_property
    def doomed(self) -> frozenset[str]:
        """Paths that a vacuum may delete at any moment: nobody lists one of them."""
        return frozenset(path for paths in self.intents.values() for path in paths)

    def meta_action(self, **changes: Any) -> dict[str, Any]:
        """Return the `meta` action that replaces schemas, bases or config."""
        schemas = changes.get("schemas", self.schemas)
        return {
            "action": "meta",
            "schemas": {key: schema_json(value) for key, value in schemas.items()},
            "bases": list(changes.get("bases", self.bases)),
            "config": dict(changes.get("config", self.config)),
        }


def schema_json(schema: Mapping[str, FieldSpec]) -> dict[str, Any]:
    """Return the JSON form of a schema."""
    return {name: spec.to_json() for name, spec in schema.items()}


def schema_id(schema: Mapping[str, FieldSpec]) -> str:
    """Return the id of a schema: the first 16 hex digits of its sha256."""
    return sha256_hex(encode_json(schema_json(schema)))[:16]


def parse_schemas(value: Any, *, where: str) -> dict[str, dict[str, FieldSpec]]:
    """Check the schemas of a `meta` action.

    Raises:
        FormatError: if one is malformed or has another id than its content.
    """
    schemas = {}
    for key, fields in value.items():
        schemas[key] = parse_schema(fields, where=where)
        if schema_id(schemas[key]) != key:
            raise FormatError(f"{where}: schema {key!r:.40} is not the one of that id")
    return schemas


def apply_commits(
    snapshot: Snapshot, commits: Sequence[Commit], *, read_segment: ReadSegment
) -> Snapshot:
    """Return the snapshot after some more commits.

    Args:
        snapshot: what stood before them.
        commits: the next versions, in order.
        read_segment: gives the rows of a segment that a commit adds.

    Raises:
        FormatError: if an action contradicts what stands.
    """
    # A few at a time, since a removal searches all that is not in the table yet.
    for start in range(0, len(commits), _MAX_AT_ONCE):
        some = commits[start : start + _MAX_AT_ONCE]
        snapshot = Change(snapshot, some, read_segment=read_segment).apply()
    return snapshot


class Change:
    """What some commits change, checked but not made yet.

    The table of a snapshot is extended in place, once: so nothing is written before
    it is sure that the commits stand.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        commits: Sequence[Commit],
        *,
        read_segment: ReadSegment,
    ) -> None:
        """Check commits against what stands before them; see `apply_commits`."""
        self._base = snapshot
        self._read_segment = read_segment
        self._gone = np.zeros(0, np.int64)  # positions in the table
        self._new = [Rows.of([])]
        self._new_gone = np.zeros(0, np.int64)  # positions in what is new
        self._must_check_ids = False
        self._changes: dict[str, Any] = {
            "ts": snapshot.ts,
            "schemas": snapshot.schemas,
            "bases": snapshot.bases,
            "pins": dict(snapshot.pins),
            "intents": dict(snapshot.intents),
            "next_trajectory_id": snapshot.next_trajectory_id,
        }
        for commit in commits:
            self._add(commit)
        if self._must_check_ids:
            self._check_unique(where=f"commit {commits[-1].version}")

    def apply(self) -> Snapshot:
        """Return the snapshot after the commits."""
        table = self._base.table
        num_before = len(table)
        table = table.removed(self._gone)
        if not num_before:
            table = RowTable.empty(room=2 * sum(map(len, self._new)))
        while self._new:  # each is let go of once its copy is in the table
            table = table.appended(self._new.pop(0))
        table = table.removed(num_before + self._new_gone)
        return dataclasses.replace(self._base, table=table, **self._changes)

    def _add(self, commit: Commit) -> None:
        where = f"commit {commit.version}"
        if commit.ts <= self._changes["ts"]:
            raise FormatError(f"{where}: its ts is not later than the one before it")
        added = []
        for number, action in enumerate(commit.actions, 2):
            line = f"{where}, line {number}"
            kind = action["action"]
            if kind == "add":
                added.append(parse_add(dict(action), where=line))
                continue
            self._append(Rows.of(added), commit, where)
            added = []
            getattr(self, f"_apply_{kind}")(action, commit, line)
        self._append(Rows.of(added), commit, where)
        self._changes |= {
            "version": commit.version,
            "tip": commit.digest,
            "ts": commit.ts,
        }

    def _append(self, rows: Rows, commit: Commit, where: str) -> None:
        if not len(rows):
            return
        schemas = {int(key, 16) for key in self._changes["schemas"]}
        if not set(np.unique(rows.fixed["schema"]).tolist()) <= schemas:
            raise FormatError(f"{where}: a row names a schema that is not declared")
        if rows.column("base").max() > len(self._changes["bases"]):
            raise FormatError(f"{where}: a row names a base that is not declared")
        # Ids that go on rising, as all appends do, need no look at the others.
        known = self._changes["next_trajectory_id"]
        ids = rows.trajectory_ids
        if ids[0] < known or (np.diff(ids) <= 0).any():
            self._must_check_ids = True
        self._changes["next_trajectory_id"] = max(known, int(ids.max()) + 1)
        self._new.append(rows.stamped(version=commit.version, ts=commit.ts))

    def _all_new(self) -> Rows:
        self._new = [Rows.concat(self._new)]
        return self._new[0]

    def _apply_add_segment(self, action: Action, commit: Commit, line: str) -> None:
        fields = {name: action[name] for name in action if name != "action"}
        ref = SegmentRef.parse({**fields, "level": 0, "removed": []}, where=line)
        self._append(self._read_segment(ref), commit, line)

    def _apply_remove(self, action: Action, commit: Commit, line: str) -> None:
        ids = np.array(sorted(set(action["ids"])), np.int64)
        table, new = self._base.table, self._all_new()
        gone = _less(table.find(ids), self._gone)
        new_gone = np.flatnonzero(np.isin(new.trajectory_ids, ids))
        new_gone = _less(new_gone, self._new_gone)
        if len(gone) + len(new_gone) != len(ids):
            found = [table.rows.trajectory_ids[gone], new.trajectory_ids[new_gone]]
            absent = np.setdiff1d(ids, np.concatenate(found))[:3].tolist()
            raise FormatError(f"{line}: removes ids that are not listed: {absent}")
        self._gone = np.union1d(self._gone, gone)
        self._new_gone = np.union1d(self._new_gone, new_gone)

    def _check_unique(self, *, where: str) -> None:
        """Check that no new row has the id of another one that stays listed."""
        new = np.delete(self._all_new().trajectory_ids, self._new_gone)
        ids = np.sort(new)
        table = self._base.table
        same = _less(table.find(ids), self._gone)
        twice = [*ids[1:][ids[1:] == ids[:-1]], *table.rows.trajectory_ids[same]]
        if twice:
            raise FormatError(f"{where}: trajectory id {int(twice[0])} is listed twice")

    def _apply_meta(self, action: Action, commit: Commit, line: str) -> None:
        before = self._changes["bases"]
        if tuple(action["bases"][: len(before)]) != before:
            raise FormatError(f"{line}: bases are only added, since rows number them")
        self._changes |= {
            "schemas": parse_schemas(action["schemas"], where=line),
            "bases": tuple(action["bases"]),
            "config": action["config"],
        }

    def _apply_state(self, action: Action, commit: Commit, line: str) -> None:
        self._changes["state"] = action["state"]

    def _apply_pin(self, action: Action, commit: Commit, line: str) -> None:
        if action["version"] > commit.version:
            raise FormatError(f"{line}: pins version {action['version']}, to come yet")
        self._changes["pins"][action["pin"]] = {
            "version": action["version"],
            "by": action["by"],
        }

    def _apply_unpin(self, action: Action, commit: Commit, line: str) -> None:
        self._changes["pins"].pop(action["pin"], None)

    def _apply_vacuum(self, action: Action, commit: Commit, line: str) -> None:
        self._changes["intents"][action["intent"]] = tuple(action["paths"])

    def _apply_vacuum_done(self, action: Action, commit: Commit, line: str) -> None:
        self._changes["intents"].pop(action["intent"], None)

    def uuids_among(self, paths: Collection[str]) -> frozenset[str]:
        """Return the uuids of new rows whose archives here have one of some paths."""
        if not paths:
            return frozenset()
        new = self._all_new()
        own = new.take(np.flatnonzero(new.column("base") == 0))
        uuids = (uuid.hex() for uuid in own.fixed["uuid"].tolist())
        return frozenset(one for one in uuids if trajectory_path(one) in paths)


def _less(positions: IntArray, others: IntArray) -> IntArray:
    """Return `positions` that are not in `others`."""
    return np.setdiff1d(positions, others) if len(others) else positions


def removed_ranges(live: npt.NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """Return the half-open ranges of positions that are not live."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], live, [True]])))
    pairs: IntArray = edges.reshape(-1, 2)
    return tuple((int(start), int(stop)) for start, stop in pairs)
