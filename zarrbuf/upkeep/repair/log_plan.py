"""A log set right, by a plan that is written down before it begins.

Owns that a repair that was stopped goes on: what it will commit lies beside the commits
that it takes away before the first of them goes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from zarrbuf.archive.spec import Schema
from zarrbuf.archive.zarr_json import encode_json
from zarrbuf.common.uuids import new_uuid
from zarrbuf.errors import FormatError
from zarrbuf.manifest.actions import (
    MAX_COMMIT_BYTES,
    Action,
    SegmentRef,
    sha256_hex,
)
from zarrbuf.manifest.changes import listing_actions
from zarrbuf.manifest.commit_log import CommitLog
from zarrbuf.manifest.layout import (
    CHECKPOINT_DIR,
    CHECKPOINT_NAME,
    COMMIT_NAME,
    MANIFEST_DIR,
)
from zarrbuf.manifest.log_checkpoints import read_segment, write_segments
from zarrbuf.manifest.rows import Rows
from zarrbuf.manifest.snapshot import Snapshot, schema_json
from zarrbuf.storage.contract import Storage
from zarrbuf.upkeep.repair.log_remains import Remains, without

ASIDE_DIR: Final = "damaged"
"""Where commits and checkpoints are put that are in the way."""
PLAN_NAME: Final = "plan.json"
DONE_NAME: Final = "done"
_PLACE: Final = re.compile(r"[0-9a-f]{32}")
_ASIDE: Final = re.compile(
    rf"{MANIFEST_DIR}/{COMMIT_NAME.pattern}|{CHECKPOINT_DIR}/{CHECKPOINT_NAME.pattern}"
)


@dataclass
class Plan:
    """What a repair does to a log; written down before it begins.

    Attributes:
        place: name of the directory below `ASIDE_DIR` for what is put aside.
        names: what is put aside, commits in rising order before checkpoints.
        start: version after which the log goes on.
        meta: the `meta` action.
        state: the `state` that stands; None for none.
        pins: pin uuid -> who asked, and the version, 0 for the one that is made.
        unpinned: pins that were let go.
        rows: rows to list.
        ghosts: uuids of those that leave the list again at once, kept by pins.
        removed: uuids of rows that leave the list.
        num_left_out: rows that cannot be listed: the commit that told their fields or
            where they lie is damaged, and their archives cannot be asked.
    """

    place: str
    names: list[str]
    start: int
    meta: dict[str, Any]
    state: Mapping[str, Any] | None
    pins: dict[str, dict[str, Any]]
    unpinned: dict[str, Mapping[str, Any]]
    rows: Rows
    ghosts: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    num_left_out: int = 0


_FIELDS: Final[Mapping[str, type | tuple[type, ...]]] = {
    "place": str,
    "names": list,
    "start": int,
    "meta": dict,
    "state": (dict, type(None)),
    "pins": dict,
    "unpinned": dict,
    "rows": list,
    "ghosts": list,
    "removed": list,
    "num_left_out": int,
}


def make_plan(remains: Remains, *, lost: Rows, schemas: Mapping[str, Schema]) -> Plan:
    """Plan what makes a log say what remains.

    Args:
        remains: see `read_remains`.
        lost: rows whose archives cannot be read any more: they leave the list.
        schemas: of the archives that could be read; a damaged commit may have been
            the only one that told.
    """
    start = remains.start
    known = {**remains.schemas, **schemas}
    listed = without(remains.listed, lost)
    pins: dict[str, dict[str, Any]] = {}
    for pin, one in remains.pins.items():
        if pin not in start.pins:
            pins[pin] = {"by": one["by"], "version": 0}
            if start.version:  # what it kept of that list
                pins[new_uuid()] = {"by": one["by"], "version": start.version}
    ghosts = Rows.of([])
    if pins:
        ghosts = without(without(remains.ghosts, listed), lost)
    rows = Rows.concat([without(listed, start.rows), ghosts])
    is_known = np.isin(rows.fixed["schema"], [int(key, 16) for key in known])
    is_known &= rows.column("base") <= len(remains.bases)
    rows = rows.take(np.flatnonzero(is_known))
    changes = {"schemas": known, "bases": remains.bases, "config": remains.config}
    return Plan(
        place=new_uuid(),
        names=[],
        start=start.version,
        meta=start.meta_action(**changes),
        state=remains.state,
        pins=pins,
        unpinned={p: one for p, one in start.pins.items() if p not in remains.pins},
        rows=rows,
        ghosts=_hex_uuids(ghosts),
        removed=_hex_uuids(without(start.rows, listed)),
        num_left_out=int(np.count_nonzero(~is_known)),
    )


def _hex_uuids(rows: Rows) -> set[str]:
    return {uuid.hex() for uuid in rows.fixed["uuid"].tolist()}


def late_checkpoints(storage: Storage, first: int) -> list[str]:
    """Return names of the checkpoints of a version and later ones."""
    found = [
        (CHECKPOINT_NAME.fullmatch(name), f"{CHECKPOINT_DIR}/{name}")
        for name in storage.list_names(CHECKPOINT_DIR)
    ]
    return sorted(name for match, name in found if match and int(match[1]) >= first)


def carry_out(log: CommitLog, plan: Plan) -> None:
    """Do what a plan says. Whoever is stopped goes on with `go_on`.

    Raises:
        StorageError: if the storage failed.
    """
    storage = log.storage
    for name in plan.names:
        data = storage.read(name, max_bytes=MAX_COMMIT_BYTES)
        storage.ensure(_aside(plan, name), data)
    if plan.names:
        storage.ensure(_aside(plan, PLAN_NAME), _encode_plan(storage, plan))
    _finish(log, plan)


def open_plans(storage: Storage) -> list[str]:
    """Return the names of plans that were not carried out to the end."""
    found = []
    for place in storage.list_names(ASIDE_DIR):
        if _PLACE.fullmatch(place):
            names = storage.list_names(f"{ASIDE_DIR}/{place}")
            if PLAN_NAME in names and DONE_NAME not in names:
                found.append(f"{ASIDE_DIR}/{place}/{PLAN_NAME}")
    return found


def go_on(log: CommitLog, name: str) -> None:
    """Carry out a plan that was stopped; raises what `carry_out` does."""
    plan = _decode_plan(log.storage, name)
    _finish(log, plan)


def _finish(log: CommitLog, plan: Plan) -> None:
    """Take away what is aside, the last commit first: so there is never a hole."""
    for name in reversed(plan.names):
        # One that somebody made anew meanwhile stays.
        found, copied = log.storage.read_existing([name, _aside(plan, name)])
        if found is not None and found == copied:
            log.storage.delete(name)
    log.commit(lambda now: _actions(log, plan, now), op="repair")
    log.commit(lambda now: _removal(now, plan.ghosts), op="repair")
    if plan.names:
        log.storage.ensure(_aside(plan, DONE_NAME), b"")


def _aside(plan: Plan, name: str) -> str:
    return f"{ASIDE_DIR}/{plan.place}/{name}"


def _actions(log: CommitLog, plan: Plan, now: Snapshot) -> list[Action]:
    """Return what is missing of a plan in what the log says now."""
    actions: list[Action] = []
    meta = _merged_meta(now, plan.meta)
    if meta != now.meta_action():
        actions.append(meta)
    actions += _removal(now, plan.removed)
    gone = {number for action in actions for number in action.get("ids", ())}
    rows = _numbered(without(plan.rows, now.rows), now, gone)
    actions += listing_actions(rows, log.storage)
    if plan.state is not None and plan.state != now.state:
        actions.append({"action": "state", "state": dict(plan.state)})
    for pin, one in plan.pins.items():
        if pin not in now.pins:
            version = one["version"] or now.version + 1
            actions.append(
                {"action": "pin", "pin": pin, "version": version, "by": one["by"]}
            )
    for pin, kept in plan.unpinned.items():
        if pin in now.pins:
            actions.append({"action": "unpin", "pin": pin, **kept})
    return actions


def _merged_meta(now: Snapshot, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `meta` action with what stands now and what a plan adds to it."""
    bases = meta["bases"] if len(meta["bases"]) > len(now.bases) else list(now.bases)
    schemas = {key: schema_json(value) for key, value in now.schemas.items()}
    return {**meta, "schemas": {**schemas, **meta["schemas"]}, "bases": bases}


def _removal(now: Snapshot, uuids: set[str]) -> list[Action]:
    """Return the action that takes some trajectories off the list, if on it."""
    if not uuids:
        return []
    rows = now.rows
    listed = [uuid.hex() in uuids for uuid in rows.fixed["uuid"].tolist()]
    ids = rows.trajectory_ids[np.flatnonzero(listed)].tolist()
    return [{"action": "remove", "ids": ids, "reason": "repair"}] if ids else []


def _numbered(rows: Rows, now: Snapshot, gone: set[int]) -> Rows:
    """Give rows new ids where theirs are taken."""
    taken = set(now.rows.trajectory_ids.tolist()) - gone
    ids = rows.trajectory_ids.copy()
    next_id = max([now.next_trajectory_id, *(number + 1 for number in ids.tolist())])
    for position, number in enumerate(ids.tolist()):
        if number in taken:
            ids[position], next_id = next_id, next_id + 1
        taken.add(int(ids[position]))
    fixed = rows.fixed.copy()
    fixed["trajectory_id"] = ids
    return Rows(fixed, rows.texts)


def _encode_plan(storage: Storage, plan: Plan) -> bytes:
    """Return a plan as JSON with its digest; its rows are written as segments."""
    value = dict(vars(plan))
    value["rows"] = [ref.to_json() for ref in write_segments(storage, plan.rows)]
    value["ghosts"], value["removed"] = sorted(plan.ghosts), sorted(plan.removed)
    sealed = {"plan": value, "sha256": sha256_hex(encode_json(value))}
    return json.dumps(sealed, indent=1).encode()


def _decode_plan(storage: Storage, name: str) -> Plan:
    """Read a plan.

    Raises:
        FormatError: if it is not as it was written.
    """
    where = storage.describe(name)
    try:
        sealed = json.loads(storage.read(name))
        value = sealed["plan"]
        if sealed["sha256"] != sha256_hex(encode_json(value)):
            raise ValueError("its sha256 is another one")
        wrong = [n for n, kind in _FIELDS.items() if not isinstance(value[n], kind)]
        if wrong or set(value) != set(_FIELDS):
            raise ValueError(f"fields {wrong or sorted(value)!r:.200}")
        if not all(
            isinstance(one, str) and _ASIDE.fullmatch(one) for one in value["names"]
        ):
            raise ValueError("it names what is neither a commit nor a checkpoint")
        refs = [SegmentRef.parse(one, where=where) for one in value["rows"]]
        rows = Rows.concat([read_segment(storage, ref) for ref in refs])
        sets = {key: set(value[key]) for key in ("ghosts", "removed")}
        return Plan(**{**value, **sets, "rows": rows})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise FormatError(
            f"{where}: the plan of a repair is damaged ({exc}); put it aside, and "
            "repair again"
        ) from exc
