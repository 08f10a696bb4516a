"""Commits and references to segments: bytes <-> values, every field checked.

Pure; knows no storage. A commit is NDJSON sealed by the sha256 of its own bytes, and
names the sha256 of the commit before it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from zarrbuf.archive.zarr_json import check_spec, encode_json, parse_json
from zarrbuf.errors import FormatError
from zarrbuf.manifest.layout import SEGMENT_PATH, TRAJECTORY_PATH
from zarrbuf.manifest.rows import MAX_SEGMENT_ROWS

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


def parse_lone_commit(data: bytes, *, version: int, where: str) -> Commit:
    """Read a commit whose place in the chain cannot be told; raises what others do."""
    header = unseal(data, where=where)[0]
    prev = header.get("prev")
    return parse_commit(data, version=version, prev=str(prev), where=where)


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
        check_bases(fields["bases"], where=where)
    elif kind in ("vacuum", "vacuum_done"):
        _check_vacuum(fields, where=where)
    elif kind in ("pin", "unpin"):
        value = {name: fields[name] for name in ("version", "by")}
        check_pins({fields["pin"]: value}, where=where)


def check_bases(values: Sequence[Any], *, where: str) -> None:
    """Check bases: where another buffer lies, and its uuid.

    Raises:
        FormatError: if one is malformed.
    """
    for value in values:
        if not isinstance(value, dict):
            raise FormatError(f"{where}: base {value!r:.80} must be an object")
        _check_types(value, {"url": str, "uuid": str}, where=where)
        if not value["url"] or not _HEX32.fullmatch(value["uuid"]):
            raise FormatError(f"{where}: base {value!r:.80} is malformed")


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


def check_intents(intents: Mapping[str, Any], *, where: str) -> None:
    """Check what vacuums have said they delete: uuid -> paths.

    Raises:
        FormatError: if one is malformed.
    """
    for intent, paths in intents.items():
        if not isinstance(paths, list):
            raise FormatError(f"{where}: intent {intent!r:.40} must be a list of paths")
        _check_vacuum({"intent": intent, "paths": paths}, where=where)


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
