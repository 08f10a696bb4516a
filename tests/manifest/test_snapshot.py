"""Commits are sealed and chained, and add up to what a plain model says."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import support.trajectories
from hypothesis import given, settings
from hypothesis import strategies as st

from zarrbuf.archive.spec import STORED_DTYPE, FieldSpec
from zarrbuf.archive.zarr_json import encode_json
from zarrbuf.errors import FormatError, UnsupportedVersionError
from zarrbuf.manifest.actions import (
    MAX_COMMIT_BYTES,
    Action,
    Commit,
    SegmentRef,
    encode_commit,
    parse_commit,
    seal,
    unseal,
)
from zarrbuf.manifest.rows import Row, Rows
from zarrbuf.manifest.snapshot import (
    Change,
    Snapshot,
    apply_commits,
    parse_schemas,
    removed_ranges,
    schema_id,
    schema_json,
)

FIELDS = {"rewards": FieldSpec("float32", (1,), "step")}
SCHEMA_ID = schema_id(FIELDS)
PREV = "cd" * 32
EMPTY = Snapshot(version=0, tip=PREV)
JSON_OBJECTS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text("ab\n"), inner),
        max_leaves=5,
    ),
)


def make_row(trajectory_id: int, **changes: Any) -> Row:
    return support.trajectories.make_row(
        trajectory_id, **{"schema": SCHEMA_ID, **changes}
    )


def make_commit(actions: Sequence[Action], version: int = 1, **changes: Any) -> Commit:
    commit = Commit(
        version=version,
        txn="ab" * 16,
        prev=PREV,
        ts=1000 + version,
        writer="host:1",
        op="test",
        actions=tuple(actions),
    )
    return dataclasses.replace(commit, **changes)


def no_segment(ref: SegmentRef) -> Rows:
    raise AssertionError(f"no commit adds {ref}")


def apply(snapshot: Snapshot, *lists: Sequence[Action]) -> Snapshot:
    commits = [
        make_commit(actions, snapshot.version + number)
        for number, actions in enumerate(lists, 1)
    ]
    return apply_commits(snapshot, commits, read_segment=no_segment)


def meta(snapshot: Snapshot = EMPTY, **changes: Any) -> Action:
    return snapshot.meta_action(**{"schemas": {SCHEMA_ID: FIELDS}, **changes})


def remove(*ids: int) -> Action:
    return {"action": "remove", "ids": list(ids), "reason": "test"}


def ids_of(snapshot: Snapshot) -> list[int]:
    ids: list[int] = snapshot.rows.trajectory_ids.tolist()
    return ids


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def seal_raw(*lines: bytes, actions: Any = None, end: str | None = None) -> bytes:
    """Seal lines that are not canonical, or no JSON at all."""
    body = b"".join(line + b"\n" for line in lines)
    count = len(lines) - 1 if actions is None else actions
    last = {"end": end or sha(body), "actions": count}
    return body + json.dumps(last).encode() + b"\n"


def read(data: bytes, version: int = 1, prev: str = PREV) -> Commit:
    return parse_commit(data, version=version, prev=prev, where="m/1.json")


# ----------------------------------------------------------------------------- sealing


@settings(deadline=None, max_examples=40)
@given(st.lists(JSON_OBJECTS, min_size=1, max_size=4))
def test_what_is_sealed_is_unsealed(documents: list[dict[str, Any]]) -> None:
    data = seal(documents, actions=len(documents) - 1)
    assert unseal(data, where="x") == documents
    lines = data.split(b"\n")
    assert len(lines) == len(documents) + 2
    assert lines[-1] == b""
    body = b"".join(line + b"\n" for line in lines[:-2])
    assert json.loads(lines[-2]) == {"end": sha(body), "actions": len(documents) - 1}


def test_a_commit_comes_back() -> None:
    commit = make_commit([meta(), make_row(0).to_action(), remove(0)])
    data = encode_commit(commit)
    assert read(data) == dataclasses.replace(commit, digest=sha(data))


def test_every_truncation_is_refused_by_name() -> None:
    data = encode_commit(make_commit([meta(), make_row(0).to_action()]))
    for length in range(len(data)):
        with pytest.raises(FormatError, match=r"m/1\.json"):
            read(data[:length])


def test_every_flipped_bit_is_refused_by_name() -> None:
    data = encode_commit(make_commit([make_row(0).to_action()]))
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with pytest.raises(FormatError, match=r"m/1\.json"):
                read(bytes(damaged))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"\n",
        lambda data: data + b" ",
        lambda data: data + b"\0",
        lambda data: data + data,
        lambda data: b"\n" + data,
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data[:-1] + b" \n\n",
        lambda data: b"".join(sorted(data.splitlines(keepends=True))),
        lambda data: data[data.index(b"\n") + 1 :],
        lambda data: b"\0" * len(data),
    ],
)
def test_bytes_around_or_moved_are_refused(change: Callable[[bytes], bytes]) -> None:
    data = encode_commit(make_commit([meta(), make_row(0).to_action()]))
    assert change(data) != data
    with pytest.raises(FormatError, match=r"m/1\.json"):
        read(change(data))


HEADER = encode_json(
    {
        "zarrbuf": 1,
        "version": 1,
        "txn": "ab" * 16,
        "prev": PREV,
        "ts": 1,
        "writer": "w",
        "op": "o",
    }
)


def test_sealing_by_hand_is_accepted_where_the_lines_are_good() -> None:
    commit = read(seal_raw(HEADER, b'{ "action": "state", "state": {"a": 1.5e3} }'))
    assert commit.actions == ({"action": "state", "state": {"a": 1500.0}},)


STATE = b'{"action":"state","state":%s}'


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[]",
        b'"action"',
        b"{",
        b"{}{}",
        b"{} x",
        b"\xff\xfe",
        b'{"action":"state","action":"state","state":{}}',
        STATE % b'{"a":1,"a":2}',
        STATE % b'{"a":{"b":1,"b":1}}',
        STATE % b'{"a":NaN}',
        STATE % b'{"a":Infinity}',
        STATE % b'{"a":-Infinity}',
        STATE % b'{"a":1e999}',
        STATE % b'{"a":-1e999}',
        STATE % b'{"a":123456789012345678901}',
        STATE % b'{"a":"\\ud800"}',
        STATE % b'{"\\uDC00":1}',
        STATE % b'{"a":"\xed\xa0\x80"}',
        STATE % b'{"a":"\x01"}',
        STATE % b"{'a':1}",
        STATE % b'{"a":01}',
        STATE % (b'{"a":' + b"[" * 70 + b"]" * 70 + b"}"),
        STATE % (b'{"a":' * 70 + b"1" + b"}" * 70),
        STATE % (b'{"a":' + b"[" * 100_000),
        b'{"action":"rename","id":1}',
        b'{"action":null}',
        b'{"action":["add"]}',
        b'{"action":"_append"}',
        b'{"state":{}}',
    ],
)
def test_a_line_that_breaks_a_rule_is_refused_by_name(line: bytes) -> None:
    """Sealed with the right digest: whoever wrote it meant it."""
    with pytest.raises(FormatError, match=r"m/1\.json, line 2"):
        read(seal_raw(HEADER, line))


def test_a_pair_of_surrogates_is_one_character() -> None:
    commit = read(seal_raw(HEADER, STATE % b'{"a":"\\ud83d\\ude00"}'))
    assert commit.actions[0]["state"] == {"a": "\N{GRINNING FACE}"}


@pytest.mark.parametrize(
    ("actions", "end"),
    [(0, None), (2, None), (True, None), (1.0, None), ("1", None), (None, "00" * 32)],
)
def test_an_end_line_that_says_something_else_is_refused(
    actions: Any, end: str | None
) -> None:
    good = seal_raw(HEADER, STATE % b"{}")
    read(good)
    bad = seal_raw(HEADER, STATE % b"{}", actions=actions, end=end)
    with pytest.raises(FormatError, match="end line"):
        read(bad)


def test_a_key_twice_in_the_end_line_is_refused() -> None:
    data = encode_commit(make_commit([]))
    twice = data.replace(b'{"actions":0', b'{"actions":0,"actions":0')
    with pytest.raises(FormatError, match="twice"):
        read(twice)


def test_a_file_that_is_too_large_is_refused_before_it_is_parsed() -> None:
    data = seal([{"pad": "x" * MAX_COMMIT_BYTES}], actions=0)
    with pytest.raises(FormatError, match=rf"at most {MAX_COMMIT_BYTES} are allowed"):
        unseal(data, where="x")


def test_a_commit_at_another_place_is_refused() -> None:
    data = encode_commit(make_commit([], version=5))
    assert read(data, version=5).version == 5
    with pytest.raises(FormatError, match="version 5, its name says 6"):
        read(data, version=6)
    with pytest.raises(FormatError, match="broken chain"):
        read(data, version=5, prev="00" * 32)


def test_a_newer_commit_asks_for_an_update() -> None:
    line = HEADER.replace(b'"zarrbuf":1', b'"zarrbuf":2,"new":"field"')
    with pytest.raises(UnsupportedVersionError, match="update zarrbuf"):
        read(seal_raw(line))


# ------------------------------------------------------------ what commits add up to


def test_a_schema_id_is_the_digest_of_canonical_json() -> None:
    fields = {
        "dones": FieldSpec("bfloat16", (2, 3), "start"),
        "curr_obs/%C3%A9": FieldSpec("int8", (), "whole"),
    }
    text = (
        '{"curr_obs/%C3%A9":{"dtype":"int8","rows":"whole","shape":[]},'
        '"dones":{"dtype":"bfloat16","rows":"start","shape":[2,3]}}'
    )
    assert schema_id(fields) == sha(text.encode())[:16]
    assert schema_id(dict(reversed(fields.items()))) == schema_id(fields)
    parsed = parse_schemas({schema_id(fields): json.loads(text)}, where="x")
    assert parsed == {schema_id(fields): fields}


@pytest.mark.parametrize("dtype", STORED_DTYPE)
def test_every_dtype_has_a_schema(dtype: str) -> None:
    fields = {"obs/a": FieldSpec(dtype, (3,), "step")}
    assert parse_schemas({schema_id(fields): schema_json(fields)}, where="x") == {
        schema_id(fields): fields
    }


def test_a_schema_of_another_id_is_refused() -> None:
    with pytest.raises(FormatError, match="not the one of that id"):
        parse_schemas({"00" * 8: schema_json(FIELDS)}, where="x")


def test_rows_carry_the_commit_that_added_them() -> None:
    rows = [make_row(n) for n in range(3)]
    after = apply(
        EMPTY, [meta(), rows[0].to_action()], [r.to_action() for r in rows[1:]]
    )
    assert [after.rows.row(n) for n in range(3)] == [
        dataclasses.replace(rows[0], version=1, ts=1001),
        dataclasses.replace(rows[1], version=2, ts=1002),
        dataclasses.replace(rows[2], version=2, ts=1002),
    ]
    assert (after.version, after.ts, after.next_trajectory_id) == (2, 1002, 3)
    assert EMPTY.version == len(EMPTY.table) == 0, "a snapshot never changes"


def test_row_order_is_that_of_the_actions() -> None:
    first = [meta(), *(make_row(n).to_action() for n in (7, 2))]
    after = apply(EMPTY, first, [make_row(5).to_action()], [make_row(0).to_action()])
    assert ids_of(after) == [7, 2, 5, 0]
    assert after.next_trajectory_id == 8


@pytest.mark.parametrize(
    "lists",
    [
        [[make_row(0), make_row(0)]],
        [[make_row(0)], [make_row(0)]],
        [[make_row(5)], [make_row(1)], [make_row(5)]],
        [[make_row(1), make_row(0), make_row(1)]],
        [[make_row(n) for n in range(5)], [make_row(9), make_row(3)]],
    ],
)
def test_an_id_that_is_listed_twice_is_refused(lists: list[list[Row]]) -> None:
    commits = [[row.to_action() for row in rows] for rows in lists]
    with pytest.raises(FormatError, match=r"trajectory id \d is listed twice"):
        apply(EMPTY, [meta()], *commits)


def test_an_id_that_was_removed_may_come_back() -> None:
    added = [meta(), make_row(0).to_action(), make_row(1).to_action()]
    after = apply(EMPTY, added, [remove(0)], [make_row(0).to_action()])
    assert ids_of(after) == [1, 0]
    assert after.next_trajectory_id == 2, "the highest id ever given counts"
    assert ids_of(apply(after, [remove(0, 1)])) == []


@pytest.mark.parametrize("ids", [(9,), (0, 9), (1, 1, 9), (2,)])
def test_removing_what_is_not_listed_is_refused(ids: tuple[int, ...]) -> None:
    before = apply(EMPTY, [meta(), *(make_row(n).to_action() for n in range(3))])
    before = apply(before, [remove(2)])
    with pytest.raises(FormatError, match=r"commit 3, line 2.*not listed: \[[29]\]"):
        apply(before, [remove(*ids)])
    assert ids_of(before) == [0, 1]


def test_a_schema_must_be_declared_before_its_rows() -> None:
    row = make_row(0).to_action()
    with pytest.raises(FormatError, match="not declared"):
        apply(EMPTY, [row])
    with pytest.raises(FormatError, match="not declared"):
        apply(EMPTY, [row, meta()])
    assert ids_of(apply(EMPTY, [meta(), row])) == [0]


@pytest.mark.parametrize("ts", [0, 1000, 1001])
def test_time_only_goes_forward(ts: int) -> None:
    first = make_commit([], 1, ts=1001)
    second = make_commit([], 2, ts=ts)
    with pytest.raises(FormatError, match="ts is not later"):
        apply_commits(EMPTY, [first, second], read_segment=no_segment)
    after = apply_commits(EMPTY, [first], read_segment=no_segment)
    with pytest.raises(FormatError, match="ts is not later"):
        apply_commits(after, [second], read_segment=no_segment)


def test_a_segment_adds_its_rows_in_order() -> None:
    rows = Rows.of([make_row(4), make_row(2)])
    ref = SegmentRef(f"segment/{'ab' * 16}.zarr.zip", "cd" * 32, 100, 2, 16)
    asked: list[SegmentRef] = []

    def read_segment(wanted: SegmentRef) -> Rows:
        asked.append(wanted)
        return rows

    actions = [meta(), make_row(0).to_action(), ref.to_action(), remove(2)]
    last = make_row(9).to_action()
    after = apply_commits(
        EMPTY, [make_commit([*actions, last])], read_segment=read_segment
    )
    assert asked == [ref]
    assert ids_of(after) == [0, 4, 9]
    assert after.rows.column("version").tolist() == [1, 1, 1]
    assert after.next_trajectory_id == 10
    twice = make_commit([ref.to_action()], 2)
    with pytest.raises(FormatError, match="listed twice"):
        apply_commits(after, [twice], read_segment=read_segment)


def test_pins_come_and_go() -> None:
    pin = {"action": "pin", "pin": "ab" * 16, "version": 1, "by": "eval"}
    after = apply(EMPTY, [meta(), pin])
    assert after.pins == {"ab" * 16: {"version": 1, "by": "eval"}}
    gone = apply(after, [{**pin, "action": "unpin"}], [{**pin, "action": "unpin"}])
    assert gone.pins == {}
    assert after.pins != {}, "the snapshot before it keeps its pin"


def test_a_vacuum_may_delete_only_objects_of_the_buffer() -> None:
    path = f"trajectories/ab/{'ab' * 16}.zarr.zip"
    vacuum = {"action": "vacuum", "intent": "ab" * 16, "paths": [path]}
    assert apply(EMPTY, [vacuum]).version == 1
    read(encode_commit(make_commit([vacuum])))
    for bad in (
        f"trajectories/cd/{'ab' * 16}.zarr.zip",
        "trajectories/ab/../../zarrbuf.json",
        f"manifest/{1:020d}.json",
        "zarrbuf.json",
        "/etc/passwd",
        path + "\n",
    ):
        with pytest.raises(FormatError, match="only objects of a buffer"):
            read(encode_commit(make_commit([{**vacuum, "paths": [path, bad]}])))


# ------------------------------------------------------------------------------- model


@dataclasses.dataclass
class Model:
    """The same thing as plain Python: a list of rows and a few dicts."""

    rows: list[Row] = dataclasses.field(default_factory=list)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    state: dict[str, Any] | None = None
    pins: dict[str, Any] = dataclasses.field(default_factory=dict)
    next_id: int = 0

    def free_ids(self) -> list[int]:
        listed = {row.trajectory_id for row in self.rows}
        return [n for n in range(self.next_id + 4) if n not in listed]


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[list[Action]], list[Model]]:
    """Draw commits, and what the model says after each."""
    model = Model()
    commits: list[list[Action]] = []
    models: list[Model] = []
    for version in range(1, draw(st.integers(1, 8)) + 1):
        actions: list[Action] = [meta(config=model.config)] if version == 1 else []
        for _ in range(draw(st.integers(0, 4))):
            kind = draw(
                st.sampled_from(["add", "add", "remove", "meta", "state", "pin"])
            )
            if kind == "add":
                number = draw(st.sampled_from([model.next_id, *model.free_ids()]))
                row = make_row(number, num_steps=draw(st.integers(1, 5)))
                stamped = dataclasses.replace(row, version=version, ts=1000 + version)
                model.rows.append(stamped)
                model.next_id = max(model.next_id, number + 1)
                actions.append(row.to_action())
            elif kind == "remove" and model.rows:
                listed = [row.trajectory_id for row in model.rows]
                ids = draw(st.lists(st.sampled_from(listed), max_size=4))
                model.rows = [r for r in model.rows if r.trajectory_id not in ids]
                actions.append(remove(*ids))
            elif kind == "meta":
                model.config = {"seed": draw(st.integers(0, 99))}
                actions.append(meta(config=model.config))
            elif kind == "state":
                model.state = {"n": draw(st.integers(0, 99))}
                actions.append({"action": "state", "state": model.state})
            elif kind == "pin":
                uuid = draw(st.sampled_from(["aa" * 16, "bb" * 16]))
                value = {"version": version, "by": "x"}
                is_unpin = uuid in model.pins
                model.pins = {k: v for k, v in model.pins.items() if k != uuid}
                if not is_unpin:
                    model.pins[uuid] = value
                name = "unpin" if is_unpin else "pin"
                actions.append({"action": name, "pin": uuid, **value})
        commits.append(actions)
        models.append(dataclasses.replace(model, rows=list(model.rows)))
    return commits, models


def assert_is(snapshot: Snapshot, model: Model) -> None:
    rows = snapshot.rows
    assert [rows.row(n) for n in range(len(rows))] == model.rows
    assert rows.total_samples == sum(row.num_samples for row in model.rows)
    assert dict(snapshot.config) == model.config
    assert snapshot.state == model.state
    assert snapshot.pins == model.pins
    assert snapshot.next_trajectory_id == model.next_id
    assert snapshot.schemas == {SCHEMA_ID: FIELDS}


@settings(deadline=None, max_examples=150)
@given(histories(), st.data())
def test_commits_add_up_to_the_model(
    history: tuple[list[list[Action]], list[Model]], data: st.DataObject
) -> None:
    lists, models = history
    one_by_one = EMPTY
    for actions, model in zip(lists, models, strict=True):
        one_by_one = apply(one_by_one, actions)
        assert_is(one_by_one, model)
    assert_is(apply(EMPTY, *lists), models[-1])
    cut = data.draw(st.integers(0, len(lists)))
    assert_is(apply(apply(EMPTY, *lists[:cut]), *lists[cut:]), models[-1])


@settings(deadline=None)
@given(st.lists(st.booleans()))
def test_removed_ranges_say_which_rows_live(live: list[bool]) -> None:
    ranges = removed_ranges(np.array(live, np.bool_))
    ref = SegmentRef(
        f"segment/{'ab' * 16}.zarr.zip", "cd" * 32, 1, len(live), 0, removed=ranges
    )
    assert ref.live.tolist() == live
    parsed = SegmentRef.parse(json.loads(encode_json(ref.to_json())), where="x")
    assert parsed == ref
    assert all(start < stop for start, stop in ranges)
    assert all(a[1] < b[0] for a, b in itertools.pairwise(ranges))


@pytest.mark.parametrize(
    "removed",
    [[[2, 1]], [[0, 2], [1, 3]], [[2, 3], [0, 1]], [[0, 4]], [[0], [1, 2, 3]], [[]]],
)
def test_ranges_that_cross_are_refused(removed: list[list[int]]) -> None:
    value = {
        "path": f"segment/{'ab' * 16}.zarr.zip",
        "sha256": "cd" * 32,
        "size": 1,
        "rows": 3,
        "samples": 0,
        "level": 0,
    }
    SegmentRef.parse({**value, "removed": [[0, 1], [2, 3]]}, where="x")
    with pytest.raises(FormatError, match="is malformed"):
        SegmentRef.parse({**value, "removed": removed}, where="x")


# ---------------------------------------------------------------------- shared memory


def test_a_change_that_never_lands_changes_nothing() -> None:
    """A commit is checked before it is made, and another may be first."""
    before = apply(EMPTY, [meta(), *(make_row(n).to_action() for n in range(100))])
    lost = make_commit([make_row(100).to_action(), remove(3)], version=2)
    made = make_commit([make_row(100).to_action(), remove(5)], version=2)
    mine = Change(before, [lost], read_segment=no_segment)
    after = apply_commits(before, [made], read_segment=no_segment)
    assert np.shares_memory(before.table.rows.fixed, after.table.rows.fixed)
    others = mine.apply()  # had it landed after all, on another branch
    assert ids_of(before) == list(range(100))
    assert ids_of(after) == [n for n in range(101) if n != 5]
    assert ids_of(others) == [n for n in range(101) if n != 3]
    last = after.rows.row(99), others.rows.row(99)
    assert last[0].uuid == made.actions[0]["uuid"]
    assert last[1].uuid == lost.actions[0]["uuid"]


@settings(deadline=None)
@given(histories(), st.data())
def test_snapshots_that_branch_stay_what_they_were(
    history: tuple[list[list[Action]], list[Model]], data: st.DataObject
) -> None:
    lists, models = history
    chain = [EMPTY]
    for actions in lists:
        chain.append(apply(chain[-1], actions))
    # The same commits again from some snapshot on, over memory that others use.
    cut = data.draw(st.integers(0, len(lists)))
    again = chain[cut]
    for actions, model in zip(lists[cut:], models[cut:], strict=True):
        again = apply(again, actions)
        assert_is(again, model)
    for snapshot, model in zip(chain[1:], models, strict=True):
        assert_is(snapshot, model)
