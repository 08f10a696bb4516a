"""The published JSON Schemas say what the code writes and what it refuses."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest
import support.trajectories
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import ROOT

from zarrbuf.archive.group import Archive, FieldArray, encode_archive
from zarrbuf.archive.spec import STORED_DTYPE, FieldSpec
from zarrbuf.archive.zarr_json import encode_json
from zarrbuf.errors import FormatError, UnsupportedVersionError
from zarrbuf.manifest import commit_log as commits
from zarrbuf.manifest.actions import SegmentRef, parse_commit, seal, sha256_hex, unseal
from zarrbuf.manifest.commit_log import open_or_create_log
from zarrbuf.manifest.identity import encode_root, parse_root
from zarrbuf.manifest.log_checkpoints import parse_checkpoint, write_segments
from zarrbuf.manifest.row_table import RowTable
from zarrbuf.manifest.rows import Row, Rows
from zarrbuf.manifest.segments import encode_segment, parse_segment
from zarrbuf.manifest.snapshot import Snapshot, apply_commits, schema_id, schema_json
from zarrbuf.storage.contract import Storage
from zarrbuf.storage.resolve import open_storage
from zarrbuf.trajectory.archived import TrajectoryArchive, TrajectoryHeader

SCHEMAS = ROOT / "schemas"
FIELDS = {
    "obs/main_images": FieldSpec("uint8", (4, 4, 3), "step"),
    "rewards": FieldSpec("bfloat16", (1,), "step"),
    "dones": FieldSpec("bool", (1,), "start"),
    "prev_values": FieldSpec("float32", (), "end"),
    "forward_inputs/note": FieldSpec("int64", (), "whole"),
}
SCHEMA_ID = schema_id(FIELDS)
HEX32, HEX64 = "ab" * 16, "cd" * 32
BAD_HEX32 = ["", "ab" * 15, "ab" * 17, "AB" * 16, "gg" * 16, "ab" * 16 + "\n"]
BAD_HEX64 = ["", "cd" * 31, "CD" * 32, "cd" * 33, "cd" * 32 + "\n"]
BAD_PATHS = [
    "",
    "../x",
    "/etc/passwd",
    f"trajectories/cd/{HEX32}.zarr.zip",
    f"segment/../{HEX32}.zarr.zip",
    f"segment/{HEX32}.zarr.zip\n",
    f"s3://bucket/segment/{HEX32}.zarr.zip",
]

Document = dict[str, Any]
Mutant = tuple[str, Document]
Ranges = dict[tuple[Any, ...], list[Any]]


def validator(name: str, definition: str = "") -> jsonschema.Draft202012Validator:
    schema = json.loads((SCHEMAS / name).read_text())
    if definition:
        schema = {"$ref": f"#/$defs/{definition}", "$defs": schema["$defs"]}
    return jsonschema.Draft202012Validator(schema)


def make_row(trajectory_id: int, **changes: Any) -> Row:
    large = {"model_weights_id": "0f3c_7", "size": 1234, "crc": 2**32 - 1}
    return support.trajectories.make_row(
        trajectory_id, schema=SCHEMA_ID, **{**large, **changes}
    )


# --------------------------------------------------------------------- mutations

WRONG_TYPES: dict[type, list[Any]] = {
    int: ["1", 1.5, True, None, [], {}],
    str: [1, True, None, [], {}],
    list: ["", 1, True, None, {}],
    dict: ["", 1, True, None, []],
    type(None): ["", 1, True, []],
}
NULLABLE = ("max_episode_length",)
"""May be null instead of a number."""
OPEN = ("config", "state", "non_tensor", "tags")
"""Objects whose keys the format leaves to the user, so nothing in them is wrong."""


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value that the format prescribes."""
    yield path
    if path and path[-1] in OPEN:
        return
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, item in items:
        yield from nodes(item, (*path, key))


def look_up(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def replaced(document: Document, path: tuple[Any, ...], value: Any) -> Document:
    result = copy.deepcopy(document)
    look_up(result, path[:-1])[path[-1]] = value
    return result


def structural(document: Document, optional: tuple[str, ...] = ()) -> Iterator[Mutant]:
    """Drop each key, add a key to each closed object, give each value another type."""
    for path in nodes(document):
        value = look_up(document, path)
        if path:
            for wrong in WRONG_TYPES[type(value)]:
                if wrong is None and path[-1] in NULLABLE:
                    continue
                yield f"{path} = {wrong!r}", replaced(document, path, wrong)
        if not isinstance(value, dict) or (path and path[-1] in OPEN):
            continue
        open_maps = ("fields", "schemas", "pins", "intents", SCHEMA_ID)
        if not path or path[-1] not in open_maps:
            for key in value:
                if key not in optional:
                    dropped = copy.deepcopy(document)
                    del look_up(dropped, path)[key]
                    yield f"{path} without {key}", dropped
        added = copy.deepcopy(document)
        look_up(added, path)["extra"] = 1
        yield f"{path} with extra", added


def out_of_range(document: Document, table: Ranges) -> Iterator[Mutant]:
    for path, values in table.items():
        for value in values:
            yield f"{path} = {value!r}", replaced(document, path, value)


# ------------------------------------------------- one case: schema, parser, mutants

HEADER = {
    "zarrbuf": 1,
    "version": 7,
    "txn": HEX32,
    "prev": HEX64,
    "ts": 1000,
    "writer": "host:1",
    "op": "add",
}
SEGMENT_ROWS = Rows.of([make_row(10), make_row(11)])


def read_commit(lines: list[Document]) -> None:
    data = seal(lines, actions=len(lines) - 1)
    commit = parse_commit(data, version=7, prev=HEX64, where="7.json")
    before = Snapshot(
        version=6,
        tip=HEX64,
        ts=999,
        table=RowTable.of(Rows.of([make_row(n) for n in range(4)])),
        schemas={SCHEMA_ID: FIELDS},
        next_trajectory_id=4,
    )
    apply_commits(before, [commit], read_segment=lambda ref: SEGMENT_ROWS)


def read_header(header: Document) -> None:
    read_commit([header])


def read_action(action: Document) -> None:
    read_commit([HEADER, action])


def read_end(end: Document) -> None:
    unseal(encode_json(HEADER) + b"\n" + encode_json(end) + b"\n", where="7.json")


def read_checkpoint_root(root: Document) -> None:
    parse_checkpoint(seal([root], actions=0), version=7, where="7.json")


def read_root(root: Document) -> None:
    parse_root(encode_json(root), where="zarrbuf.json")


def is_refused(read: Callable[[Document], None], document: Document) -> bool:
    try:
        read(document)
    except FormatError:
        return True
    return False


def trajectory_arrays() -> dict[str, FieldArray]:
    """Arrays of T = 4, B = 2 that fit `FIELDS`, with E = 2 and E = 1 extra rows."""
    image = np.arange(4 * 2 * 48, dtype=np.uint8).reshape(4, 2, 4, 4, 3)
    return {
        "obs/main_images": FieldArray((image, image[::-1].copy()), "uint8"),
        "rewards": FieldArray((np.zeros((4, 2, 1), np.uint16),), "bfloat16"),
        "dones": FieldArray(
            (np.zeros((6, 2, 1), np.bool_),), "bool", "time_and_starts"
        ),
        "prev_values": FieldArray(
            (np.zeros((5, 2), np.float32),), "float32", "time_and_ends"
        ),
        "forward_inputs/note": FieldArray((np.array(7, np.int64),), "int64"),
    }


def trajectory_header(**changes: Any) -> TrajectoryHeader:
    values: dict[str, Any] = {
        "uuid": HEX32,
        "num_steps": 4,
        "num_envs": 2,
        "max_episode_length": 50,
        "model_weights_id": "0f3c_7",
        "schema": FIELDS,
        "non_tensor": {"curr_obs": {"task_descriptions": ["pick", "plaçe"]}},
    }
    return TrajectoryHeader(**{**values, **changes})


def read_trajectory(attributes: Document) -> None:
    data = encode_archive(trajectory_arrays(), attributes, codec="none")
    TrajectoryArchive(data, name="t.zarr.zip")


def read_segment_attributes(attributes: Document) -> None:
    good = Archive(encode_segment(SEGMENT_ROWS), name="s.zarr.zip")
    arrays = {
        field: FieldArray((good.read_array(field),), info.dtype)
        for field, info in good.arrays.items()
    }
    data = encode_archive(arrays, attributes, codec="zstd")
    parse_segment(data, num_rows=2, name="s.zarr.zip")


ROW = make_row(5, tags={"task": "pick", "score": 0.5, "ok": True, "n": 3, "x": None})
SEGMENT_FIELDS = {
    "path": f"segment/{HEX32}.zarr.zip",
    "sha256": HEX64,
    "size": 100,
    "rows": 2,
    "samples": 16,
}
META = {
    "action": "meta",
    "schemas": {SCHEMA_ID: schema_json(FIELDS)},
    "bases": [{"url": "../other", "uuid": HEX32}],
    "config": {"seed": 3, "any": {"thing": [1]}},
}
VACUUM_PATHS = [f"trajectories/ab/{HEX32}.zarr.zip", f"segment/{HEX32}.zarr.zip"]
CHECKPOINT = {
    "zarrbuf_checkpoint": 1,
    "version": 7,
    "tip": HEX64,
    "root": HEX64,
    "ts": 1000,
    "rows": 1,
    "samples": 8,
    "segments": [{**SEGMENT_FIELDS, "level": 1, "removed": [[0, 1]]}],
    "schemas": {SCHEMA_ID: schema_json(FIELDS)},
    "bases": [],
    "config": {"seed": 3},
    "state": None,
    "pins": {HEX32: {"version": 3, "by": "eval"}},
    "intents": {HEX32: VACUUM_PATHS},
    "next_trajectory_id": 12,
}
INTS = [-1, -(2**63), 2**63]
SEGMENT_RANGES: Ranges = {
    ("path",): BAD_PATHS,
    ("sha256",): BAD_HEX64,
    ("size",): [-1],
    ("rows",): [-1, 65_537],
    ("samples",): [-1],
}
FIELD = ("schemas", SCHEMA_ID, "rewards")
FIELD_RANGES: Ranges = {
    (*FIELD, "dtype"): ["", "float", "Float32", "object", "<f4"],
    (*FIELD, "rows"): ["", "Step", "starts"],
    (*FIELD, "shape"): [[-1], [2**40], [1.5], ["1"], [True], [None], [1] * 31],
    ("schemas",): [{"": {}}, {"ab" * 7: {}}, {SCHEMA_ID + "\n": {}}],
}
BAD_FIELDS = [
    "",
    "_reward",
    "rewards/x",
    "obs",
    "obs/",
    "obs//x",
    "obs/a b",
    "obs/%2f",
    "obs/../x",
    "obs/x\n",
    "/obs/x",
]
PIN_RANGES: Ranges = {("pin",): BAD_HEX32, ("version",): [-1]}
VACUUM_RANGES: Ranges = {
    ("intent",): BAD_HEX32,
    ("paths", 0): BAD_PATHS,
    ("paths", 1): [*BAD_PATHS, "zarrbuf.json", "manifest/00000000000000000001.json"],
}
Case = tuple[
    str,  # schema file
    str,  # definition in it, "" for the document
    Callable[[Document], None],
    Document,
    Ranges,
    tuple[str, ...],  # optional keys
]
CASES: dict[str, Case] = {
    "root": (
        "zarrbuf.schema.json",
        "",
        read_root,
        json.loads(encode_root(open_storage("memory://schemas-root"))),
        {
            ("format",): ["", "zarr", "ZARRBUF"],
            ("spec",): [0, -1, 2, 99],
            ("uuid",): BAD_HEX32,
            ("created_ms",): [-1],
            ("commit",): ["", "rename", "LINK"],
            ("features",): [["x"], [1], [None]],
        },
        (),
    ),
    "header": (
        "commit.schema.json",
        "header",
        read_header,
        HEADER,
        {
            ("zarrbuf",): [0, -1, 2, 99],
            ("version",): [0, -1],
            ("txn",): BAD_HEX32,
            ("prev",): BAD_HEX64,
            ("ts",): [0, *INTS],
        },
        (),
    ),
    "end": (
        "commit.schema.json",
        "end",
        read_end,
        {"actions": 0, "end": sha256_hex(encode_json(HEADER) + b"\n")},
        {("actions",): [-1], ("end",): BAD_HEX64},
        (),
    ),
    "add": (
        "commit.schema.json",
        "add",
        read_action,
        ROW.to_action(),
        {
            ("uuid",): BAD_HEX32,
            ("trajectory_id",): INTS,
            ("T",): [0, -1, 2**31],
            ("B",): [0, -1, 2**31],
            ("num_samples",): [0, -8],
            ("shape",): [[-1], [2**40], [1.5], ["1"], [True], [1] * 33],
            ("max_episode_length",): [2**63, -(2**63), "1", 1.5],
            ("base",): [-1, 2**31],
            ("path",): BAD_PATHS,
            ("size",): INTS,
            ("crc",): [-1, 2**32],
            ("schema",): ["", "ab" * 7, "AB" * 8, "ab" * 9, "ab" * 8 + "\n"],
            ("tags",): [{"a": []}, {"a": {}}, {"a": [1]}],
        },
        ("tags",),
    ),
    "add_segment": (
        "commit.schema.json",
        "add_segment",
        read_action,
        {"action": "add_segment", **SEGMENT_FIELDS},
        SEGMENT_RANGES,
        (),
    ),
    "remove": (
        "commit.schema.json",
        "remove",
        read_action,
        {"action": "remove", "ids": [1, 3], "reason": "old"},
        {("ids", 0): INTS},
        (),
    ),
    "meta": ("commit.schema.json", "meta", read_action, META, FIELD_RANGES, ()),
    "state": (
        "commit.schema.json",
        "state",
        read_action,
        {"action": "state", "state": {"generator": [1, 2], "n": None}},
        {},
        (),
    ),
    "pin": (
        "commit.schema.json",
        "pin",
        read_action,
        {"action": "pin", "pin": HEX32, "version": 3, "by": "eval"},
        PIN_RANGES,
        (),
    ),
    "unpin": (
        "commit.schema.json",
        "unpin",
        read_action,
        {"action": "unpin", "pin": HEX32, "version": 3, "by": "eval"},
        PIN_RANGES,
        (),
    ),
    "vacuum": (
        "commit.schema.json",
        "vacuum",
        read_action,
        {"action": "vacuum", "intent": HEX32, "paths": VACUUM_PATHS},
        VACUUM_RANGES,
        (),
    ),
    "vacuum_done": (
        "commit.schema.json",
        "vacuum_done",
        read_action,
        {"action": "vacuum_done", "intent": HEX32, "paths": VACUUM_PATHS},
        VACUUM_RANGES,
        (),
    ),
    "checkpoint": (
        "checkpoint.schema.json",
        "",
        read_checkpoint_root,
        CHECKPOINT,
        {
            ("zarrbuf_checkpoint",): [0, -1, 2],
            ("version",): [-1],
            ("tip",): BAD_HEX64,
            ("root",): BAD_HEX64,
            ("ts",): INTS,
            ("rows",): [-1],
            ("samples",): [-1],
            ("next_trajectory_id",): [-1, 2**63 + 1],
            ("bases",): [[1], [None], [[]]],
            ("pins",): [{"x": {"version": 1, "by": ""}}, {HEX32 + "\n": {}}],
            ("pins", HEX32, "version"): [-1],
            ("intents",): [{"x": []}, {HEX32 + "\n": []}, {HEX32: {}}, {HEX32: [1]}],
            ("intents", HEX32, 0): BAD_PATHS,
            ("intents", HEX32, 1): BAD_PATHS,
            **{("segments", 0, *k): v for k, v in SEGMENT_RANGES.items()},
            ("segments", 0, "level"): [-1, 3],
            ("segments", 0, "removed"): [[[0]], [[0, 1, 2]], [[]], [[0], [0, 1, 2]]],
            ("segments", 0, "removed", 0): [[-1, 1], [0, 65_537], [0.5, 1]],
            **FIELD_RANGES,
        },
        (),
    ),
    "trajectory": (
        "trajectory.schema.json",
        "",
        read_trajectory,
        trajectory_header().to_attributes(),
        {
            ("zarrbuf", "spec"): [0, -1, 2],
            ("zarrbuf", "uuid"): BAD_HEX32,
            ("non_tensor",): [{"obs": {}}, {"curr_obs": 1}, {"next_obs": ["x"]}],
            ("zarrbuf", "T"): [0, -1],
            ("zarrbuf", "B"): [0, -1],
            ("zarrbuf", "fields", "rewards", "dtype"): ["", "float", "<f4"],
            ("zarrbuf", "fields", "rewards", "rows"): ["", "Step"],
            ("zarrbuf", "fields", "rewards", "shape"): [[-1], [2**40], [1] * 31],
        },
        ("non_tensor",),
    ),
    "segment": (
        "segment.schema.json",
        "",
        read_segment_attributes,
        {"zarrbuf_segment": {"spec": 1, "rows": 2}},
        {
            ("zarrbuf_segment", "spec"): [0, -1, 2],
            ("zarrbuf_segment", "rows"): [-1, 65_537],
        },
        (),
    ),
}


def test_schemas_are_valid_closed_and_named_by_their_file() -> None:
    files = sorted(SCHEMAS.glob("*.json"))
    assert [file.name for file in files] == sorted({case[0] for case in CASES.values()})
    for file in files:
        schema = json.loads(file.read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert schema["$id"] == file.name
        assert schema["title"]
        assert schema["description"]
        for path in nodes(schema):
            node = look_up(schema, path)
            if {"if", "then"} & set(path):  # these narrow what is closed already
                continue
            if isinstance(node, dict) and "properties" in node:
                assert node["additionalProperties"] is False, path


@pytest.mark.parametrize("field", BAD_FIELDS)
@pytest.mark.parametrize("name", ["meta", "checkpoint"])
def test_what_no_writer_would_name_a_field_is_refused(name: str, field: str) -> None:
    file, definition, read, document, _, _ = CASES[name]
    bad = {field: FieldSpec("float32", (1,), "step")}
    mutant = {**document, "schemas": {schema_id(bad): schema_json(bad)}}
    assert is_refused(read, mutant)
    if field != "obs/../x":  # the code alone knows names of dots
        assert not validator(file, definition).is_valid(mutant)


def test_schema_names_exactly_the_dtypes_of_the_code() -> None:
    for name in ("commit", "checkpoint", "trajectory"):
        schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
        names = schema["$defs"]["field"]["properties"]["dtype"]["enum"]
        assert sorted(names) == sorted(STORED_DTYPE)


@pytest.mark.parametrize("name", CASES)
def test_unchanged_document_is_accepted_by_schema_and_parser(name: str) -> None:
    file, definition, read, document, _, _ = CASES[name]
    validator(file, definition).validate(document)
    read(document)


@pytest.mark.parametrize("name", CASES)
def test_mutations_are_refused_by_schema_and_parser(name: str) -> None:
    file, definition, read, document, ranges, optional = CASES[name]
    check = validator(file, definition)
    mutants = [*structural(document, optional), *out_of_range(document, ranges)]
    assert len(mutants) >= 2 * len(document)
    for label, mutant in mutants:
        assert not check.is_valid(mutant), f"the schema accepts {label}"
        assert is_refused(read, mutant), f"the parser accepts {label}"


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "x", HEX32, HEX64, SCHEMA_ID, *VACUUM_PATHS, *BAD_PATHS])
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abcdef", max_size=4), inner, max_size=3)
    ),
    max_leaves=4,
)


@pytest.mark.parametrize("name", CASES)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_what_the_parser_accepts_the_schema_accepts(
    name: str, data: st.DataObject
) -> None:
    file, definition, read, document, _, _ = CASES[name]
    path = data.draw(st.sampled_from([p for p in nodes(document) if p]))
    mutant = replaced(document, path, data.draw(JSON_VALUES))
    try:
        read(mutant)
    except FormatError:
        return
    # 1.0 is an integer to JSON Schema, not to the parser; the reverse never occurs.
    validator(file, definition).validate(mutant)


@pytest.mark.parametrize(
    ("name", "key"),
    [("root", "spec"), ("header", "zarrbuf"), ("checkpoint", "zarrbuf_checkpoint")],
)
def test_a_newer_spec_says_that_an_update_is_needed(name: str, key: str) -> None:
    _, _, read, document, _, _ = CASES[name]
    with pytest.raises(UnsupportedVersionError, match="update zarrbuf"):
        read({**document, key: 2, "something": "new"})


# ------------------------------------------------------------ what the code writes


def lines_of(data: bytes) -> list[Document]:
    return [json.loads(line) for line in data.splitlines()]


def write_everything(storage: Storage) -> None:
    """Make a log that holds every action, checkpoints and segments."""
    log = open_or_create_log(storage, config={"seed": 1})
    refs: list[SegmentRef] = write_segments(
        storage, Rows.of([make_row(n, tags={"a": 1}) for n in range(3)])
    )
    declared = log.snapshot.meta_action(schemas={SCHEMA_ID: FIELDS})
    state = {"action": "state", "state": {"generator": "00ff"}}
    pin = {"action": "pin", "pin": HEX32, "version": 1, "by": "eval"}
    vacuum = {"action": "vacuum", "intent": HEX32, "paths": VACUUM_PATHS}
    for actions in (
        [declared, refs[0].to_action()],
        [make_row(3).to_action(), ROW.to_action()],
        [{"action": "remove", "ids": [1, 5], "reason": "old"}, state],
        [pin],
        [{**pin, "action": "unpin"}],
        [vacuum],
        [{**vacuum, "action": "vacuum_done"}],
    ):
        log.commit(lambda now, actions=actions: actions, op="test")  # type: ignore[misc]


def test_everything_the_log_writes_validates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "CHECKPOINT_INTERVAL", 2)
    storage = open_storage("memory://schemas-written")
    write_everything(storage)
    root = json.loads(storage.read("zarrbuf.json"))
    validator("zarrbuf.schema.json").validate(root)
    actions = set()
    for name in storage.list_names("manifest"):
        lines = lines_of(storage.read(f"manifest/{name}"))
        validator("commit.schema.json").validate(lines)
        validator("commit.schema.json", "header").validate(lines[0])
        validator("commit.schema.json", "end").validate(lines[-1])
        for line in lines[1:-1]:
            validator("commit.schema.json", line["action"]).validate(line)
            actions.add(line["action"])
    definitions = json.loads((SCHEMAS / "commit.schema.json").read_text())["$defs"]
    known = {ref["$ref"].rpartition("/")[2] for ref in definitions["action"]["oneOf"]}
    assert actions == known
    names = storage.list_names("checkpoint")
    assert len(names) == 4
    for name in names:
        first, end = lines_of(storage.read(f"checkpoint/{name}"))
        validator("checkpoint.schema.json").validate(first)
        validator("commit.schema.json", "end").validate(end)
    segments = storage.list_names("segment")
    assert len(segments) >= 2
    for name in segments:
        archive = Archive(storage.read(f"segment/{name}"), name=name)
        validator("segment.schema.json").validate(archive.attributes)


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[1:],
        lambda lines: lines[:-1],
        lambda lines: [*lines, lines[-1]],
        lambda lines: [lines[0], *lines],
        lambda lines: [],
        lambda lines: lines[0],
    ],
    ids=["no header", "no end", "two ends", "two headers", "empty", "an object"],
)
def test_a_whole_commit_has_one_header_and_one_end(
    change: Callable[[list[Document]], Any],
) -> None:
    lines = lines_of(seal([HEADER, ROW.to_action()], actions=1))
    check = validator("commit.schema.json")
    check.validate(lines)
    check.validate([lines[0], lines[-1]])
    assert not check.is_valid(change(lines))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"non_tensor": {}},
        {"max_episode_length": 0, "model_weights_id": ""},
        {"non_tensor": {"next_obs": {"a": {}, "b": [None, 1, 2.5, True, "é"]}}},
    ],
)
def test_trajectory_attributes_validate(changes: Document) -> None:
    header = trajectory_header(**changes)
    data = encode_archive(trajectory_arrays(), header.to_attributes(), codec="lz4")
    archive = TrajectoryArchive(data, name="t.zarr.zip")
    assert archive.header == header
    validator("trajectory.schema.json").validate(archive.attributes)
    validator("trajectory.schema.json").validate(archive.header.to_attributes())


# ------------------------------------------------------- examples of docs/format.md


def example(name: str) -> bytes:
    """Return a block of the published format that is marked with `name`."""
    text = (SCHEMAS.parent / "docs" / "format.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"^```json {name}\n(.*?)\n```$", text, re.M | re.S)
    return str(block).encode()


def test_the_published_commits_are_a_chain_that_the_code_reads() -> None:
    root = example("root")
    validator("zarrbuf.schema.json").validate(json.loads(root))
    snapshot = Snapshot(version=0, tip=sha256_hex(root))
    for version in (1, 2):
        data = example(f"commit-{version}") + b"\n"
        validator("commit.schema.json").validate(lines_of(data))
        commit = parse_commit(data, version=version, prev=snapshot.tip, where="doc")
        snapshot = apply_commits(
            snapshot, [commit], read_segment=lambda ref: Rows.of([])
        )
    assert snapshot.rows.trajectory_ids.tolist() == [0, 1]
    assert parse_root(root, where="doc")["commit"] == "link"
    data = example("checkpoint") + b"\n"
    checkpoint = parse_checkpoint(data, version=3, where="doc")
    validator("checkpoint.schema.json").validate(lines_of(data)[0])
    assert checkpoint["schemas"] == snapshot.schemas


def test_the_published_metadata_is_what_the_code_writes() -> None:
    attributes = json.loads(example("group"))["attributes"]
    validator("trajectory.schema.json").validate(attributes)
    data = encode_archive(trajectory_arrays(), attributes, codec="lz4")
    archive = TrajectoryArchive(data, name="t.zarr.zip")
    assert archive.header.schema == FIELDS
    array = json.loads(example("array"))
    assert array == archive.arrays["obs/main_images"].to_json()
    text = (SCHEMAS.parent / "docs" / "format.md").read_text(encoding="utf-8")
    assert "\n".join(["```", *archive.members, "```"]) in text
