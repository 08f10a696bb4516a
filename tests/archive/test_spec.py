"""Names, chunk grids and rows: every rule against a slow, obvious way."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.trajectories import ODD_KEYS

from zarrbuf.archive.spec import (
    BIG_ROW_BYTES,
    MAX_NAME_BYTES,
    SMALL_CHUNK_BYTES,
    STORED_DTYPE,
    BatchField,
    FieldSpec,
    Rows,
    array_shape,
    batch_fields,
    chunk_grid,
    decode_key,
    encode_key,
    parse_schema,
    step_rows,
)
from zarrbuf.common.uuids import new_uuid
from zarrbuf.errors import FormatError, InvalidInputError
from zarrbuf.manifest import layout
from zarrbuf.rlinf.index import trajectory_name

SHAPES = st.lists(st.integers(0, 40), min_size=1, max_size=5).map(tuple)
BIG_SHAPES = st.tuples(
    st.integers(1, 3000), st.integers(1, 9), st.integers(1, BIG_ROW_BYTES)
)


@settings(deadline=None)
@given(st.text(min_size=1, max_size=80) | st.sampled_from(ODD_KEYS))
def test_a_key_becomes_a_legal_node_name_and_comes_back(key: str) -> None:
    name = encode_key(key)
    assert decode_key(name) == key
    # https://zarr-specs.readthedocs.io/en/latest/v3/core/#node-names
    assert re.fullmatch(r"[A-Za-z0-9._%-]+", name)
    assert name.strip(".")
    assert not name.startswith("__")
    assert name != "zarr.json"


@settings(deadline=None)
@given(st.lists(st.text("ac.%_~/ü2F", min_size=1, max_size=4), unique=True))
def test_keys_never_share_a_name(keys: list[str]) -> None:
    assert len({encode_key(key) for key in keys}) == len(keys)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("main_images", "main_images"),
        ("_x", "_x"),
        ("__x", "%5F_x"),
        (".", "%2E"),
        ("...", "%2E.."),
        ("..a", "..a"),
        ("zarr.json", "%7Aarr.json"),
        ("a/b", "a%2Fb"),
        ("a b~", "a%20b%7E"),
        ("%41", "%2541"),
        ("ü", "%C3%BC"),
        ("c", "c"),
    ],
)
def test_names_are_those_of_the_format(key: str, name: str) -> None:
    assert encode_key(key) == name


@pytest.mark.parametrize(
    "key", ["", None, 1, b"a", ("a",), "\ud800", "a" * (MAX_NAME_BYTES + 1), "ü" * 171]
)
def test_what_is_no_key_is_refused(key: Any) -> None:
    with pytest.raises(InvalidInputError, match="key"):
        encode_key(key)


def test_the_longest_key_is_allowed() -> None:
    key = "a" * MAX_NAME_BYTES
    assert decode_key(encode_key(key)) == key


@settings(deadline=None, max_examples=300)
@given(SHAPES | BIG_SHAPES, st.sampled_from((1, 2, 4, 8, 16)), st.booleans())
def test_a_grid_covers_the_array_with_equal_chunks(
    shape: tuple[int, ...], itemsize: int, staged: bool
) -> None:
    if staged:
        shape = (2, *shape)
    grid = chunk_grid(shape, itemsize, staged=staged)
    assert len(grid.outer) == len(grid.inner) == len(shape)
    for size, outer, inner in zip(shape, grid.outer, grid.inner, strict=True):
        assert inner >= 1
        assert outer % inner == 0
        assert max(size, 1) <= outer < max(size, 1) + inner
    corners = itertools.product(
        *(range(0, o, i) for o, i in zip(grid.outer, grid.inner, strict=True))
    )
    assert grid.num_chunks == sum(1 for _ in corners)
    assert grid.num_chunks == math.prod(grid.counts)


@settings(deadline=None, max_examples=300)
@given(BIG_SHAPES, st.sampled_from((1, 2, 4, 8)), st.booleans())
def test_a_big_row_is_a_chunk_and_small_ones_share_one(
    shape: tuple[int, ...], itemsize: int, staged: bool
) -> None:
    if staged:
        shape = (2, *shape)
    lead = 3 if staged else 2
    grid = chunk_grid(shape, itemsize, staged=staged)
    if shape[-1] * itemsize >= BIG_ROW_BYTES:
        assert grid.inner == (*[1] * lead, shape[-1])
        assert grid.outer == shape
        return
    time = lead - 2
    assert [n for i, n in enumerate(grid.counts) if i != time] == [1] * lead
    chunk_bytes = math.prod(grid.inner) * itemsize
    step_bytes = chunk_bytes // grid.inner[time]
    if math.prod(shape) * itemsize <= SMALL_CHUNK_BYTES:
        assert grid.num_chunks == 1
    else:
        assert grid.num_chunks > 1
        assert chunk_bytes <= SMALL_CHUNK_BYTES + step_bytes


@pytest.mark.parametrize(
    ("shape", "itemsize", "staged", "outer", "inner"),
    [
        ((9, 2, 64, 64, 3), 1, False, (9, 2, 64, 64, 3), (1, 1, 64, 64, 3)),
        ((2, 9, 4, 1024), 4, True, (2, 9, 4, 1024), (1, 1, 1, 1024)),
        ((9, 2, 4095), 1, False, (9, 2, 4095), (9, 2, 4095)),
        ((9, 2, 4096), 1, False, (9, 2, 4096), (1, 1, 4096)),
        ((2, 9, 2, 0), 4, True, (2, 9, 2, 1), (2, 9, 2, 1)),
        ((5,), 8, False, (5,), (5,)),
        ((7,), 1 << 20, False, (7,), (1,)),
        ((1000, 2, 300), 4, False, (1002, 2, 300), (334, 2, 300)),
        ((2, 1000, 1, 300), 4, True, (2, 1002, 1, 300), (2, 334, 1, 300)),
    ],
)
def test_grids_worked_out_by_hand(
    shape: tuple[int, ...],
    itemsize: int,
    staged: bool,
    outer: tuple[int, ...],
    inner: tuple[int, ...],
) -> None:
    grid = chunk_grid(shape, itemsize, staged=staged)
    assert (grid.outer, grid.inner) == (outer, inner)


def test_a_grid_is_exact_for_numbers_that_no_float_holds() -> None:
    grid = chunk_grid((2**39,) * 32, 1, staged=False)
    assert grid.inner == (1, 1, *[2**39] * 30)
    assert chunk_grid((2**60 + 1, 1), 1, staged=False).num_chunks == 2**40 + 1


def _step_rows_slowly(rows: Rows, num_epochs: int, length: int) -> list[int]:
    kept, row = [], 0
    for _ in range(num_epochs):
        for position in range(length + 1):
            if position != (0 if rows == "start" else length):
                kept.append(row)
            row += 1
    return kept


@settings(deadline=None)
@given(st.sampled_from(("start", "end")), st.integers(1, 9), st.integers(1, 9))
def test_extra_rows_are_left_out(rows: Rows, num_epochs: int, length: int) -> None:
    num_steps = num_epochs * length
    found = step_rows(rows, num_steps + num_epochs, num_steps)
    assert found.tolist() == _step_rows_slowly(rows, num_epochs, length)
    assert found.dtype == np.int64


@pytest.mark.parametrize("rows", ["step", "start", "end"])
def test_without_extra_rows_all_rows_are_steps(rows: Rows) -> None:
    assert step_rows(rows, 5, 5).tolist() == [0, 1, 2, 3, 4]


SPECS = st.builds(
    FieldSpec,
    st.sampled_from(sorted(STORED_DTYPE)),
    st.lists(st.integers(0, 9), max_size=4).map(tuple),
    st.sampled_from(("step", "start", "end", "whole")),
)
PATHS = st.sampled_from(("actions", "dones")) | st.builds(
    lambda group, key: f"{group}/{encode_key(key)}",
    st.sampled_from(("obs", "curr_obs", "next_obs", "forward_inputs")),
    st.text(min_size=1, max_size=3),
)


@settings(deadline=None)
@given(st.dictionaries(PATHS, SPECS, max_size=4))
def test_a_schema_comes_back_from_json(schema: dict[str, FieldSpec]) -> None:
    fields = {name: spec.to_json() for name, spec in schema.items()}
    if any(spec.rows == "whole" and spec.shape for spec in schema.values()):
        with pytest.raises(FormatError, match="has shape"):
            parse_schema(fields, where="x")
    else:
        assert parse_schema(fields, where="x") == schema


GOOD = {"dtype": "float32", "rows": "step", "shape": [3]}


@pytest.mark.parametrize(
    "value",
    [
        [],
        {"dtype": "float32", "rows": "step"},
        {**GOOD, "more": 1},
        {**GOOD, "dtype": "float31"},
        {**GOOD, "dtype": "object"},
        {**GOOD, "dtype": ["float32"]},
        {**GOOD, "rows": "sometimes"},
        {**GOOD, "rows": None},
        {**GOOD, "rows": ["step"]},
        {**GOOD, "shape": 3},
        {**GOOD, "shape": [-1]},
        {**GOOD, "shape": [True]},
        {**GOOD, "shape": [1.0]},
        {**GOOD, "shape": [2**40]},
        {**GOOD, "shape": [1] * 31},
    ],
)
def test_a_field_that_breaks_a_rule_is_refused(value: Any) -> None:
    with pytest.raises(FormatError, match=r"^there: .*'actions'"):
        parse_schema({"actions": value}, where="there")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "obs",
        "obs/",
        "/actions",
        "_unknown",
        "a.b",
        "2nd",
        "a" * 101,
        "%5F_class__",
        "forward_inputs",
        "unknown/x",
        "actions/x",
        "obs//x",
        "obs/..",
        "../x",
        "obs/__x",
        "obs/a b",
        "obs/%41",
        "obs/%c3%bc",
        "obs/%ff",
        "obs/%",
        "obs/zarr.json",
        "obs/ü",
    ],
)
def test_a_path_that_no_writer_gives_is_refused(path: str) -> None:
    with pytest.raises(FormatError, match=r"^there: .*no name of a field"):
        parse_schema({path: GOOD}, where="there")


@pytest.mark.parametrize("fields", [None, [], "x", 1])
def test_a_schema_must_be_an_object(fields: Any) -> None:
    with pytest.raises(FormatError, match="there: a schema"):
        parse_schema(fields, where="there")


@settings(deadline=None)
@given(SPECS)
def test_a_spec_knows_its_bytes(spec: FieldSpec) -> None:
    sample = np.zeros(spec.shape, STORED_DTYPE[spec.dtype])
    assert spec.stored == sample.dtype
    assert spec.row_bytes == sample.nbytes
    assert spec.is_big == (spec.rows != "whole" and sample.nbytes >= 4096)


@settings(deadline=None)
@given(SPECS, st.integers(1, 6), st.integers(1, 3), st.booleans())
def test_specs_and_grids_agree_on_what_is_big(
    spec: FieldSpec, num_rows: int, num_envs: int, staged: bool
) -> None:
    assume(spec.rows != "whole")
    spec = FieldSpec(spec.dtype, (*spec.shape, 997), spec.rows)
    shape = array_shape(spec, num_rows=num_rows, num_envs=num_envs, staged=staged)
    assert shape == (*[2] * staged, num_rows, num_envs, *spec.shape)
    grid = chunk_grid(shape, spec.stored.itemsize, staged=staged)
    rows = num_rows * num_envs * (2 if staged else 1)
    if spec.is_big:
        assert grid.num_chunks == rows
    elif staged:
        assert grid.inner[0] == 2


def test_a_batch_serves_both_stages_and_leaves_out_whole_arrays() -> None:
    staged = FieldSpec("uint8", (4,), "step")
    plain = FieldSpec("bool", (), "start")
    whole = FieldSpec("int64", (3,), "whole")
    schema = {"obs/a%2Fb": staged, "dones": plain, "versions": whole}
    assert list(batch_fields(schema)) == [
        BatchField("curr_obs/a%2Fb", "obs/a%2Fb", 0, staged),
        BatchField("next_obs/a%2Fb", "obs/a%2Fb", 1, staged),
        BatchField("dones", "dones", None, plain),
    ]


def test_names_of_objects_match_their_grammar() -> None:
    uuid = new_uuid()
    assert re.fullmatch("[0-9a-f]{32}", uuid)
    assert uuid != new_uuid()
    path = layout.trajectory_path(uuid)
    assert path == f"trajectories/{uuid[:2]}/{uuid}.zarr.zip"
    match = layout.TRAJECTORY_PATH.fullmatch(path)
    assert match is not None
    assert match[2] == uuid
    assert layout.SEGMENT_PATH.fullmatch(layout.segment_path())
    assert layout.commit_path(12) == "manifest/00000000000000000012.json"
    assert layout.COMMIT_NAME.fullmatch(layout.commit_path(12).partition("/")[2])
    checkpoint = layout.checkpoint_path(7)
    assert checkpoint.startswith("checkpoint/00000000000000000007.")
    assert layout.CHECKPOINT_NAME.fullmatch(checkpoint.partition("/")[2])
    assert trajectory_name(3, "w_1", "zarr") == "trajectory_3_w_1.zarr"


@pytest.mark.parametrize(
    "path",
    [
        "trajectories/ab/cd" + "0" * 30 + ".zarr.zip",
        "trajectories/../" + "0" * 32 + ".zarr.zip",
        "/trajectories/00/" + "0" * 32 + ".zarr.zip",
        "trajectories/00/" + "0" * 32 + ".zarr.zip\n",
        "trajectories/0A/0A" + "0" * 30 + ".zarr.zip",
        "trajectories/00/" + "0" * 33 + ".zarr.zip",
        "trajectories/00/" + "0" * 32 + "xzarr.zip",
    ],
)
def test_other_paths_are_no_trajectory(path: str) -> None:
    assert layout.TRAJECTORY_PATH.fullmatch(path) is None
