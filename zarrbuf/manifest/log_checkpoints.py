"""Checkpoints of the log: a snapshot as columns, so that opening reads few files.

A checkpoint is a small root that lists segments; segments hold rows as Zarr columns.
Both are immutable and only save time: whatever is wrong with one, the commits say
the same. Knows no commit.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from zarrbuf.archive.zarr_json import check_spec
from zarrbuf.errors import FormatError, NotFoundError
from zarrbuf.manifest.actions import (
    MAX_COMMIT_BYTES,
    SegmentRef,
    check_bases,
    check_intents,
    check_pins,
    seal,
    sha256_hex,
    unseal,
)
from zarrbuf.manifest.layout import (
    CHECKPOINT_DIR,
    CHECKPOINT_NAME,
    ROOT_NAME,
    checkpoint_path,
    segment_path,
)
from zarrbuf.manifest.row_table import RowTable
from zarrbuf.manifest.rows import MAX_SEGMENT_ROWS, Rows
from zarrbuf.manifest.segments import (
    MAX_SEGMENT_BYTES,
    encode_segment,
    parse_segment,
)
from zarrbuf.manifest.snapshot import (
    Snapshot,
    parse_schemas,
    removed_ranges,
    schema_json,
)
from zarrbuf.storage.contract import Storage

SEGMENTS_PER_LEVEL: Final = 16
"""So many segments of one level are merged into one of the next."""
_MAX_LEVEL: Final = 2
_MAX_FIRST_ROOM: Final = 2**23
"""Rows that memory is asked for before the first is read: a list may say anything."""
_ROOT_FIELDS: Final[Mapping[str, tuple[type, ...]]] = {
    "zarrbuf_checkpoint": (int,),
    "version": (int,),
    "tip": (str,),
    "root": (str,),
    "ts": (int,),
    "rows": (int,),
    "samples": (int,),
    "segments": (list,),
    "schemas": (dict,),
    "bases": (list,),
    "config": (dict,),
    "state": (dict, type(None)),
    "pins": (dict,),
    "intents": (dict,),
    "next_trajectory_id": (int,),
}


def write_segments(storage: Storage, rows: Rows, *, level: int = 0) -> list[SegmentRef]:
    """Write rows as segments of at most 65,536 rows.

    Raises:
        StorageError: if the storage fails; what was written is referenced by nothing.
    """
    refs = []
    for start in range(0, len(rows), MAX_SEGMENT_ROWS):
        stop = min(start + MAX_SEGMENT_ROWS, len(rows))
        part = rows.slice(start, stop)
        data = encode_segment(part)
        path = segment_path()
        storage.ensure(path, data)
        full = _MAX_LEVEL if len(part) == MAX_SEGMENT_ROWS else level
        refs.append(
            SegmentRef(
                path, sha256_hex(data), len(data), len(part), part.total_samples, full
            )
        )
    return refs


def read_segment(storage: Storage, ref: SegmentRef) -> Rows:
    """Read the rows of a segment, those removed included.

    Raises:
        NotFoundError: if it is missing.
        FormatError: if its bytes are not those that were referenced.
    """
    name = storage.describe(ref.path)
    if ref.size > MAX_SEGMENT_BYTES:
        raise FormatError(f"{name}: {ref.size} bytes; {MAX_SEGMENT_BYTES} are allowed")
    data = storage.read(ref.path, max_bytes=ref.size)
    if len(data) != ref.size or sha256_hex(data) != ref.sha256:
        raise FormatError(f"{name}: damaged, its sha256 is not the one in the log")
    rows = parse_segment(data, num_rows=ref.rows, name=name)
    if rows.total_samples != ref.samples:
        raise FormatError(
            f"{name}: holds {rows.total_samples} samples, not {ref.samples}"
        )
    return rows


def write_checkpoint(storage: Storage, snapshot: Snapshot) -> Snapshot:
    """Write a checkpoint of `snapshot`.

    Rows that are in no segment yet become one; 16 segments of one level become one of
    the next, so that each row is written at most 3 times.

    Returns:
        The same snapshot, its rows now backed by segments.

    Raises:
        StorageError: if the storage fails; the log is as valid as before.
    """
    refs: list[SegmentRef] = []
    start = 0
    for ref in snapshot.segments:
        live = snapshot.table.live[start : start + ref.rows]
        refs.append(dataclasses.replace(ref, removed=removed_ranges(live)))
        start += ref.rows
    table, written = _rewrite(storage, snapshot.table, start, level=0)
    refs += written
    table = _merge_levels(storage, table, refs)
    sealed = dataclasses.replace(snapshot, table=table, segments=tuple(refs))
    storage.ensure(checkpoint_path(snapshot.version), encode_checkpoint(sealed))
    return sealed


def _rewrite(
    storage: Storage, table: RowTable, start: int, *, level: int
) -> tuple[RowTable, list[SegmentRef]]:
    """Write the rows from `start` on as segments, less those that were removed."""
    table = table.without_removed(start)
    rows = table.rows.slice(start, len(table))
    return table, write_segments(storage, rows, level=level)


def _merge_levels(
    storage: Storage, table: RowTable, refs: list[SegmentRef]
) -> RowTable:
    """Merge the last 16 segments wherever they are all of one level, in place."""
    for level in range(_MAX_LEVEL):
        last = refs[-SEGMENTS_PER_LEVEL:]
        if len(last) < SEGMENTS_PER_LEVEL or any(ref.level != level for ref in last):
            return table
        start = len(table) - sum(ref.rows for ref in last)
        table, merged = _rewrite(storage, table, start, level=level + 1)
        refs[-SEGMENTS_PER_LEVEL:] = merged
    return table


def encode_checkpoint(snapshot: Snapshot) -> bytes:
    """Return the root of a checkpoint; all rows are backed by segments."""
    root = {
        "zarrbuf_checkpoint": 1,
        "version": snapshot.version,
        "tip": snapshot.tip,
        "root": snapshot.root,
        "ts": snapshot.ts,
        "rows": snapshot.table.num_live,
        "samples": snapshot.table.total_samples,
        "segments": [ref.to_json() for ref in snapshot.segments],
        "schemas": {k: schema_json(v) for k, v in snapshot.schemas.items()},
        "bases": list(snapshot.bases),
        "config": dict(snapshot.config),
        "state": snapshot.state,
        "pins": dict(snapshot.pins),
        "intents": {one: list(paths) for one, paths in snapshot.intents.items()},
        "next_trajectory_id": snapshot.next_trajectory_id,
    }
    return seal([root], actions=0)


def parse_checkpoint(data: bytes, *, version: int, where: str) -> dict[str, Any]:
    """Check the root of a checkpoint and return it, segments and schemas parsed.

    Raises:
        FormatError: if it is damaged or malformed.
        UnsupportedVersionError: if it is of a newer spec.
    """
    (root, *others) = unseal(data, where=where)
    check_spec(root.get("zarrbuf_checkpoint"), where=where)
    for name, kind in _ROOT_FIELDS.items():
        if name not in root or type(root[name]) not in kind:
            raise FormatError(f"{where}: {name} is {root.get(name)!r:.80}")
    if others or set(root) != set(_ROOT_FIELDS) or root["version"] != version:
        raise FormatError(f"{where}: not the checkpoint of version {version}")
    if (
        not re.fullmatch(r"[0-9a-f]{64}", root["tip"])
        or not re.fullmatch(r"[0-9a-f]{64}", root["root"])
        or not 0 <= root["ts"] < 2**63
        or not 0 <= root["next_trajectory_id"] <= 2**63
        or root["samples"] < 0
    ):
        raise FormatError(f"{where}: tip, ts, samples or next id is malformed")
    check_bases(root["bases"], where=where)
    check_pins(root["pins"], where=where)
    check_intents(root["intents"], where=where)
    refs = [SegmentRef.parse(value, where=where) for value in root["segments"]]
    if sum(int(ref.live.sum()) for ref in refs) != root["rows"]:
        raise FormatError(f"{where}: its segments do not hold {root['rows']} rows")
    schemas = parse_schemas(root["schemas"], where=where)
    return {**root, "segments": tuple(refs), "schemas": schemas}


def read_checkpoint(
    storage: Storage, empty: Snapshot, *, version: int | None, at_ms: int | None
) -> Snapshot:
    """Return the newest valid checkpoint that is not later than asked for.

    Args:
        storage: where the buffer lies.
        empty: the snapshot of version 0, returned if there is none.
        version: highest version wanted.
        at_ms: latest time wanted, ms since 1970.
    """
    for number, name in _checkpoint_names(storage):
        if version is not None and number > version:
            continue
        try:
            snapshot = load_checkpoint_file(storage, empty, name, version=number)
        except (FormatError, NotFoundError):
            continue  # the commits say the same; `zarrbuf verify` reports it
        if at_ms is None or snapshot.ts <= at_ms:
            return snapshot
    return empty


def newer_checkpoint(
    storage: Storage, empty: Snapshot, version: int
) -> Snapshot | None:
    """Return the newest checkpoint after a version that is whole; None without any."""
    found = read_checkpoint(storage, empty, version=None, at_ms=None)
    return found if found.version > version else None


def _checkpoint_names(storage: Storage) -> Sequence[tuple[int, str]]:
    """Return versions and names of all checkpoints, newest first."""
    names = storage.list_names(CHECKPOINT_DIR)
    matches = [(CHECKPOINT_NAME.fullmatch(name), name) for name in names]
    found = [(int(m[1]), f"{CHECKPOINT_DIR}/{name}") for m, name in matches if m]
    return sorted(found, reverse=True)


def load_checkpoint_file(
    storage: Storage, empty: Snapshot, name: str, *, version: int
) -> Snapshot:
    """Read one checkpoint with its segments.

    Raises:
        NotFoundError: if a file of it is missing.
        FormatError: if a file of it is damaged.
    """
    where = storage.describe(name)
    data = storage.read(name, max_bytes=MAX_COMMIT_BYTES)
    root = parse_checkpoint(data, version=version, where=where)
    if root["root"] != empty.tip:
        raise FormatError(f"{where}: of another {ROOT_NAME} than lies there")
    refs: tuple[SegmentRef, ...] = root["segments"]
    table, highest = _read_table(storage, refs)
    snapshot = dataclasses.replace(
        empty,
        version=root["version"],
        tip=root["tip"],
        ts=root["ts"],
        table=table,
        segments=refs,
        schemas=root["schemas"],
        bases=tuple(root["bases"]),
        config=root["config"],
        state=root["state"],
        pins=root["pins"],
        intents={one: tuple(paths) for one, paths in root["intents"].items()},
        next_trajectory_id=root["next_trajectory_id"],
    )
    if highest >= snapshot.next_trajectory_id:
        raise FormatError(f"{where}: an id is not below its next_trajectory_id")
    if table.rows.column("base").max(initial=0) > len(snapshot.bases):
        raise FormatError(f"{where}: a row names a base that is not declared")
    if table.total_samples != root["samples"]:
        raise FormatError(
            f"{where}: its segments do not hold {root['samples']} samples"
        )
    return snapshot


def _read_table(storage: Storage, refs: Sequence[SegmentRef]) -> tuple[RowTable, int]:
    """Read segments into one table, whose memory is asked for once.

    Returns:
        The table, and the highest id in it, -1 for none.
    """
    room = min(2 * sum(ref.rows for ref in refs), _MAX_FIRST_ROOM)
    table, highest = RowTable.empty(room=room), -1
    removed = [np.zeros(0, np.int64)]
    for ref in refs:
        removed.append(len(table) + np.flatnonzero(~ref.live))
        rows = read_segment(storage, ref)
        highest = max(highest, int(rows.trajectory_ids.max(initial=-1)))
        table = table.appended(rows)
    return table.removed(np.concatenate(removed)), highest


def damaged_checkpoints(storage: Storage, empty: Snapshot) -> list[tuple[str, str]]:
    """Read all checkpoints with their segments; names of those damaged, and why."""
    found = []
    for version, name in _checkpoint_names(storage):
        try:
            load_checkpoint_file(storage, empty, name, version=version)
        except (FormatError, NotFoundError) as exc:
            found.append((name, str(exc)))
    return found
