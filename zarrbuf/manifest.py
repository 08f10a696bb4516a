"""Commits and what they add up to: bytes <-> commits, commits -> a snapshot.

Pure; knows no storage. A commit is NDJSON sealed by the sha256 of its own bytes, and
names the sha256 of the commit before it. A snapshot is what all commits up to one
version say, and never changes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from zarrbuf.errors import FormatError
from zarrbuf.format import (
    SEGMENT_PATH,
    TRAJECTORY_PATH,
    FieldSpec,
    parse_schema,
)
from zarrbuf.metadata import check_spec, encode_json, parse_json
from zarrbuf.rows import MAX_SEGMENT_ROWS, IntArray, Rows, parse_add

Action = Mapping[str, Any]
MAX_COMMIT_BYTES: Final = 16 << 20
MAX_ADDS: Final = 1000
_HEX64: Final = re.compile(r"[0-9a-f]{64}")
_HEX32: Final = re.compile(r"[0-9a-f]{32}")

# Fields of each action besides `action`; `add` is checked with the rows.
_ACTION_FIELDS: Final[Mapping[str, Mapping[str, type]]] = {
    "add_segment": {
        "path": str,
        "sha256": str,
        "size": int,
        "rows": int,
        "samples": int,
    },
    "remove": {"ids": list, "reason": str},
    "meta": {"schemas": dict, "bases": list, "config": dict},
    "state": {"state": dict},
    "pin": {"pin": str, "version": int, "by": str},
    "unpin": {"pin": str, "version": int, "by": str},
    "vacuum": {"intent": str, "paths": list},
    "vacuum_done": {"intent": str, "paths": list},
}
_HEADER_FIELDS: Final[Mapping[str, type]] = {
    "zarrbuf": int,
    "version": int,
    "txn": str,
    "prev": str,
    "ts": int,
    "writer": str,
    "op": str,
}


def sha256_hex(data: bytes) -> str:
    """Return the sha256 of `data`, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Commit:
    """One commit.

    Attributes:
        version: its number, from 1.
        txn: 32 hex digits, the same for every try to make it.
        prev: sha256 of the commit before it.
        ts: ms since 1970, later than every commit before it.
        writer: who made it, for people.
        op: what was done, for people.
        actions: what changes, in order.
        digest: sha256 of its bytes.
    """

    version: int
    txn: str
    prev: str
    ts: int
    writer: str
    op: str
    actions: tuple[Action, ...]
    digest: str = ""


def seal(documents: Sequence[Mapping[str, Any]], *, actions: int) -> bytes:
    """Encode documents as NDJSON that ends in its own sha256."""
    body = b"".join(encode_json(document) + b"\n" for document in documents)
    return body + encode_json({"actions": actions, "end": sha256_hex(body)}) + b"\n"


def unseal(data: bytes, *, where: str) -> list[dict[str, Any]]:
    """Check the end line and return the documents before it.

    Raises:
        FormatError: if the end line is missing or says something else; a file that is
            cut short is corrupt, never "in progress".
    """
    if len(data) > MAX_COMMIT_BYTES:
        raise FormatError(
            f"{where}: {len(data)} bytes; at most {MAX_COMMIT_BYTES} are allowed"
        )
    body, newline, last = data[:-1].rpartition(b"\n")
    if not data.endswith(b"\n") or not newline:
        raise FormatError(f"{where}: cut short, its end line is missing")
    end = parse_json(last, where=f"{where}, end line")
    lines = body.split(b"\n")
    expected = {"actions": len(lines) - 1, "end": sha256_hex(body + b"\n")}
    if encode_json(end) != encode_json(expected):  # True is not 1
        raise FormatError(
            f"{where}: the end line does not match the {len(lines)} lines before it; "
            "the file is damaged"
        )
    return [
        parse_json(line, where=f"{where}, line {number}")
        for number, line in enumerate(lines, 1)
    ]


def encode_commit(commit: Commit) -> bytes:
    """Return the bytes of a commit."""
    header = {
        "zarrbuf": 1,
        "version": commit.version,
        "txn": commit.txn,
        "prev": commit.prev,
        "ts": commit.ts,
        "writer": commit.writer,
        "op": commit.op,
    }
    return seal([header, *commit.actions], actions=len(commit.actions))


def parse_commit(data: bytes, *, version: int, prev: str, where: str) -> Commit:
    """Check and read a commit.

    Args:
        data: its bytes.
        version: the number its name says.
        prev: sha256 of the commit before it.
        where: name of the file, for messages.

    Raises:
        FormatError: if it is damaged, of another place in the chain, or not allowed.
        UnsupportedVersionError: if it is of a newer spec.
    """
    header, *actions = unseal(data, where=where)
    check_spec(header.get("zarrbuf"), where=where)
    _check_types(header, _HEADER_FIELDS, where=f"{where}, line 1")
    if header["version"] != version:
        raise FormatError(
            f"{where}: the commit says it is version {header['version']}, its name "
            f"says {version}"
        )
    if header["prev"] != prev:
        raise FormatError(
            f"{where}: broken chain, its 'prev' {header['prev']!r:.70} is not the "
            f"sha256 of the commit before it, {prev}"
        )
    if not _HEX32.fullmatch(header["txn"]) or not 0 < header["ts"] < 2**63:
        raise FormatError(f"{where}: txn or ts of the header is malformed")
    for number, action in enumerate(actions, 2):
        _check_action(action, where=f"{where}, line {number}")
    names = (name for name in _HEADER_FIELDS if name != "zarrbuf")
    return Commit(
        **{name: header[name] for name in names},
        actions=tuple(actions),
        digest=sha256_hex(data),
    )


def _check_types(
    value: Mapping[str, Any], fields: Mapping[str, type], *, where: str
) -> None:
    if set(value) != set(fields):
        odd = sorted(set(value) ^ set(fields))
        raise FormatError(f"{where}: fields {odd!r:.200} are missing or not known")
    for name, kind in fields.items():
        if type(value[name]) is not kind:
            raise FormatError(
                f"{where}: {name} is {value[name]!r:.80}, not of type {kind.__name__}"
            )


def _check_action(action: Mapping[str, Any], *, where: str) -> None:
    kind = action.get("action")
    if kind == "add":
        return  # checked by `parse_add`, when it becomes a row
    if not isinstance(kind, str) or kind not in _ACTION_FIELDS:
        raise FormatError(
            f"{where}: action {kind!r:.40} is not known; allowed are add, "
            f"{', '.join(_ACTION_FIELDS)}"
        )
    fields = {name: action[name] for name in action if name != "action"}
    _check_types(fields, _ACTION_FIELDS[kind], where=where)
    if kind == "add_segment":
        SegmentRef.parse({**fields, "level": 0, "removed": []}, where=where)
    elif kind == "remove":
        if not all(type(n) is int and 0 <= n < 2**63 for n in fields["ids"]):
            raise FormatError(f"{where}: ids are not all trajectory ids")
    elif kind == "meta":
        check_objects(fields["bases"], where=where)
    elif kind in ("vacuum", "vacuum_done"):
        _check_vacuum(fields, where=where)
    elif kind in ("pin", "unpin"):
        value = {name: fields[name] for name in ("version", "by")}
        check_pins({fields["pin"]: value}, where=where)


def check_objects(values: Sequence[Any], *, where: str) -> None:
    """Check that values are JSON objects.

    Raises:
        FormatError: if one is not.
    """
    if not all(isinstance(value, dict) for value in values):
        raise FormatError(f"{where}: {values!r:.80} must be objects")


def check_pins(pins: Mapping[str, Any], *, where: str) -> None:
    """Check pins: uuid -> version and who asked for it.

    Raises:
        FormatError: if one is malformed.
    """
    for pin, value in pins.items():
        if not isinstance(value, dict):
            raise FormatError(f"{where}: pin {pin!r:.40} must be an object")
        _check_types(value, {"version": int, "by": str}, where=where)
        if not _HEX32.fullmatch(pin) or value["version"] < 0:
            raise FormatError(f"{where}: pin {pin!r:.40} is malformed")


def _check_vacuum(fields: Mapping[str, Any], *, where: str) -> None:
    if not _HEX32.fullmatch(fields["intent"]) or not all(
        isinstance(path, str)
        and (TRAJECTORY_PATH.fullmatch(path) or SEGMENT_PATH.fullmatch(path))
        for path in fields["paths"]
    ):
        raise FormatError(f"{where}: a vacuum names only objects of a buffer")


@dataclass(frozen=True)
class SegmentRef:
    """A segment as the log names it.

    Attributes:
        path: its path below the root.
        sha256: digest of its bytes.
        size: bytes.
        rows: rows in it.
        samples: samples of these rows.
        level: how often its rows were merged, 0 to 2.
        removed: half-open ranges of positions whose rows are no longer listed.
    """

    path: str
    sha256: str
    size: int
    rows: int
    samples: int
    level: int = 0
    removed: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, value: Any, *, where: str) -> SegmentRef:
        """Check the JSON form of a reference.

        Raises:
            FormatError: if it is none.
        """
        fields = {**_ACTION_FIELDS["add_segment"], "level": int, "removed": list}
        if not isinstance(value, dict):
            raise FormatError(f"{where}: a segment must be an object")
        _check_types(value, fields, where=where)
        ranges = value["removed"]
        pairs = [pair for pair in ranges if isinstance(pair, list) and len(pair) == 2]
        bounds = [n for pair in pairs for n in pair]
        if (
            not SEGMENT_PATH.fullmatch(value["path"])
            or not _HEX64.fullmatch(value["sha256"])
            or not 0 <= value["rows"] <= MAX_SEGMENT_ROWS
            or not 0 <= value["level"] <= 2
            or value["size"] < 0
            or value["samples"] < 0
            or len(pairs) != len(ranges)
            or not all(type(n) is int and 0 <= n <= value["rows"] for n in bounds)
            or bounds != sorted(bounds)
        ):
            raise FormatError(f"{where}: segment {value['path']!r:.80} is malformed")
        removed = tuple((start, stop) for start, stop in ranges)
        return cls(**{**value, "removed": removed})

    def to_json(self) -> dict[str, Any]:
        """Return the form that a checkpoint carries."""
        return dataclasses.asdict(self)

    def to_action(self) -> dict[str, Any]:
        """Return the `add_segment` action of a commit."""
        names = _ACTION_FIELDS["add_segment"]
        return {"action": "add_segment", **{n: getattr(self, n) for n in names}}

    @property
    def live(self) -> npt.NDArray[np.bool_]:
        """Which of its rows are still listed."""
        live = np.ones(self.rows, np.bool_)
        for start, stop in self.removed:
            live[start:stop] = False
        return live


ReadSegment = Callable[[SegmentRef], Rows]


@dataclass(frozen=True)
class Snapshot:
    """What the commits 1 to `version` say; never changed.

    Attributes:
        version: the last commit in it, 0 for none.
        tip: sha256 of that commit (of `zarrbuf.json` for version 0).
        ts: its time, ms since 1970.
        table: all rows since the segments began, those removed included.
        live: bool [len(table)], which of them are listed.
        segments: what the first rows of the table were read from.
        schemas: schema id -> fields.
        bases: other roots that rows may name.
        config: seed, codec, ...
        state: what the last `state` action carried.
        pins: pin uuid -> version and who asked for it.
        next_trajectory_id: one more than the highest id ever given.
    """

    version: int
    tip: str
    ts: int = 0
    table: Rows = field(default_factory=lambda: Rows.of([]))
    live: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    segments: tuple[SegmentRef, ...] = ()
    schemas: Mapping[str, Mapping[str, FieldSpec]] = field(default_factory=dict)
    bases: tuple[Mapping[str, Any], ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] | None = None
    pins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    next_trajectory_id: int = 0

    @property
    def rows(self) -> Rows:
        """The rows that are listed, in order."""
        if self.live.all():
            return self.table
        return self.table.take(np.flatnonzero(self.live))

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
    builder = _Builder(snapshot, read_segment)
    for commit in commits:
        builder.apply(commit)
    return builder.build()


class _Builder:
    """Gathers changes of several commits, so that columns are joined once."""

    def __init__(self, snapshot: Snapshot, read_segment: ReadSegment) -> None:
        self._base = snapshot
        self._read_segment = read_segment
        self._blocks = [snapshot.table]
        self._live = [snapshot.live]
        self._must_check_ids = False
        self._changes: dict[str, Any] = {
            "ts": snapshot.ts,
            "schemas": snapshot.schemas,
            "pins": dict(snapshot.pins),
            "next_trajectory_id": snapshot.next_trajectory_id,
        }

    def apply(self, commit: Commit) -> None:
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
        # Ids that go on rising, as all appends do, need no look at the others.
        known = self._changes["next_trajectory_id"]
        ids = rows.trajectory_ids
        if ids[0] < known or (np.diff(ids) <= 0).any():
            self._must_check_ids = True
        self._changes["next_trajectory_id"] = max(known, int(ids.max()) + 1)
        self._blocks.append(rows.stamped(version=commit.version, ts=commit.ts))
        self._live.append(np.ones(len(rows), np.bool_))

    def _apply_add_segment(self, action: Action, commit: Commit, line: str) -> None:
        fields = {name: action[name] for name in action if name != "action"}
        ref = SegmentRef.parse({**fields, "level": 0, "removed": []}, where=line)
        self._append(self._read_segment(ref), commit, line)

    def _apply_remove(self, action: Action, commit: Commit, line: str) -> None:
        table, live = Rows.concat(self._blocks), np.concatenate(self._live)
        ids = np.array(sorted(set(action["ids"])), np.int64)
        hit = np.isin(table.trajectory_ids, ids) & live
        if hit.sum() != len(ids):
            absent = np.setdiff1d(ids, table.trajectory_ids[hit])[:3].tolist()
            raise FormatError(f"{line}: removes ids that are not listed: {absent}")
        self._blocks, self._live = [table], [live & ~hit]

    def _apply_meta(self, action: Action, commit: Commit, line: str) -> None:
        self._changes |= {
            "schemas": parse_schemas(action["schemas"], where=line),
            "bases": tuple(action["bases"]),
            "config": action["config"],
        }

    def _apply_state(self, action: Action, commit: Commit, line: str) -> None:
        self._changes["state"] = action["state"]

    def _apply_pin(self, action: Action, commit: Commit, line: str) -> None:
        self._changes["pins"][action["pin"]] = {
            "version": action["version"],
            "by": action["by"],
        }

    def _apply_unpin(self, action: Action, commit: Commit, line: str) -> None:
        self._changes["pins"].pop(action["pin"], None)

    def _apply_vacuum(self, action: Action, commit: Commit, line: str) -> None:
        """Nothing to keep: objects that a vacuum deletes are in no live row."""

    _apply_vacuum_done = _apply_vacuum

    def build(self) -> Snapshot:
        table, live = Rows.concat(self._blocks), np.concatenate(self._live)
        if self._must_check_ids:
            _check_unique(table, live, where=f"commit {self._changes['version']}")
        return dataclasses.replace(self._base, table=table, live=live, **self._changes)


def _check_unique(table: Rows, live: npt.NDArray[np.bool_], *, where: str) -> None:
    ids = np.sort(table.trajectory_ids[live])
    twice = ids[1:][ids[1:] == ids[:-1]]
    if len(twice):
        raise FormatError(f"{where}: trajectory id {int(twice[0])} is listed twice")


def removed_ranges(live: npt.NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """Return the half-open ranges of positions that are not live."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], live, [True]])))
    pairs: IntArray = edges.reshape(-1, 2)
    return tuple((int(start), int(stop)) for start, stop in pairs)
