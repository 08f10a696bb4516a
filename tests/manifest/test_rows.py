"""Columns of rows equal a list of rows, in memory and as a segment on disk."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from zarrbuf.archive.group import Archive, FieldArray, encode_archive
from zarrbuf.archive.zarr_json import encode_json, parse_json
from zarrbuf.errors import FormatError, UnsupportedVersionError
from zarrbuf.manifest.columns import TextColumn
from zarrbuf.manifest.layout import trajectory_path
from zarrbuf.manifest.rows import MAX_SEGMENT_ROWS, Row, Rows, parse_add
from zarrbuf.manifest.segments import encode_segment, parse_segment

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
WEIGHTS_IDS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), max_size=12
)
TAGS = st.dictionaries(
    TEXTS,
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    max_size=3,
)


@st.composite
def rows_of_a_manifest(draw: st.DrawFn) -> Row:
    return Row(
        uuid=draw(st.uuids()).hex,
        trajectory_id=draw(st.integers(0, 2**63 - 1)),
        model_weights_id=draw(WEIGHTS_IDS),
        num_steps=draw(st.integers(1, 2**20)),
        num_envs=draw(st.integers(1, 2**19)),
        shape=tuple(draw(st.lists(st.integers(0, 2**40 - 1), max_size=4))),
        max_episode_length=draw(st.none() | st.integers(1 - 2**63, 2**63 - 1)),
        size=draw(st.integers(0, 2**63 - 1)),
        crc=draw(st.integers(0, 2**32 - 1)),
        schema=f"{draw(st.integers(0, 2**64 - 1)):016x}",
        base=draw(st.integers(0, 2**31 - 1)),
        tags=draw(TAGS),
        version=draw(st.integers(0, 2**62)),
        ts=draw(st.integers(0, 2**62)),
    )


LISTS = st.lists(rows_of_a_manifest(), max_size=8)


def make_row(**changes: Any) -> Row:
    values: dict[str, Any] = {
        "uuid": "ab" * 16,
        "trajectory_id": 3,
        "model_weights_id": "0f3c_7",
        "num_steps": 4,
        "num_envs": 2,
        "shape": (4, 2, 1),
        "max_episode_length": 50,
        "size": 1234,
        "crc": 77,
        "schema": "00" * 8,
    }
    return Row(**{**values, **changes})


def unfold(rows: Rows) -> list[Row]:
    return [rows.row(position) for position in range(len(rows))]


@settings(deadline=None)
@given(LISTS)
def test_columns_hold_what_the_rows_hold(model: list[Row]) -> None:
    rows = Rows.of(model)
    assert len(rows) == len(model)
    assert unfold(rows) == model
    assert rows.trajectory_ids.tolist() == [row.trajectory_id for row in model]
    assert rows.column("T").tolist() == [row.num_steps for row in model]
    assert rows.column("crc").tolist() == [row.crc for row in model]
    assert rows.total_samples == sum(row.num_steps * row.num_envs for row in model)
    assert [rows.uuid(n) for n in range(len(rows))] == [row.uuid for row in model]


@settings(deadline=None)
@given(st.lists(LISTS, max_size=4), st.data())
def test_concat_and_take_are_those_of_lists(
    blocks: list[list[Row]], data: st.DataObject
) -> None:
    rows = Rows.concat([Rows.of(block) for block in blocks])
    model = [row for block in blocks for row in block]
    assert unfold(rows) == model
    if model:
        positions = data.draw(st.lists(st.integers(0, len(model) - 1), max_size=10))
        taken = rows.take(np.array(positions, np.int64))
        assert unfold(taken) == [model[n] for n in positions]
        twice = Rows.concat([taken, rows])
        assert unfold(twice) == [*(model[n] for n in positions), *model]


@settings(deadline=None)
@given(LISTS, st.integers(0, 2**62), st.integers(0, 2**62))
def test_stamping_changes_a_copy(model: list[Row], version: int, ts: int) -> None:
    rows = Rows.of(model)
    stamped = rows.stamped(version=version, ts=ts)
    expected = [dataclasses.replace(row, version=version, ts=ts) for row in model]
    assert unfold(stamped) == expected
    assert unfold(rows) == model


@settings(deadline=None)
@given(st.lists(TEXTS), st.lists(TEXTS), st.data())
def test_a_text_column_is_a_list_of_strings(
    texts: list[str], more: list[str], data: st.DataObject
) -> None:
    column = TextColumn.concat([TextColumn.of(texts), TextColumn.of(more)])
    model = texts + more
    assert [column.get(n) for n in range(len(model))] == model
    if model:
        positions = data.draw(st.lists(st.integers(0, len(model) - 1)))
        taken = column.take(np.array(positions, np.int64))
        assert [taken.get(n) for n in range(len(positions))] == [
            model[n] for n in positions
        ]


@settings(deadline=None)
@given(rows_of_a_manifest())
def test_an_add_action_comes_back_from_json(row: Row) -> None:
    action = parse_json(encode_json(row.to_action()), where="test")
    assert action["path"] == trajectory_path(row.uuid)
    assert action["num_samples"] == row.num_steps * row.num_envs
    assert ("tags" in action) == bool(row.tags)
    expected = dataclasses.replace(row, version=0, ts=0)
    assert parse_add(action, where="test") == expected


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"num_samples": 9}, "num_samples"),
        ({"path": f"trajectories/cd/{'cd' * 16}.zarr.zip"}, "path"),
        ({"uuid": "cd" * 16}, "path"),
        ({"tags": {"a": "x" * 1017}}, "tags"),
        ({"tags": {"a": 1.0, "b": {"nested": 1}}}, "tags"),
        ({"segment": "x"}, "segment"),
        ({"model_weights_id": "../../x"}, "model_weights_id"),
        ({"model_weights_id": "x\0"}, "model_weights_id"),
        ({"model_weights_id": 201 * "x"}, "model_weights_id"),
    ],
)
def test_an_add_action_that_contradicts_itself_is_refused(
    changes: dict[str, Any], names: str
) -> None:
    action = make_row().to_action()
    parse_add(action, where="here")
    with pytest.raises(FormatError, match=f"here.*{names}"):
        parse_add({**action, **changes}, where="here")


def test_tags_may_fill_their_limit_exactly() -> None:
    tags = {"a": "x" * 1016}
    assert len(encode_json(tags)) == 1024
    assert parse_add(make_row(tags=tags).to_action(), where="here").tags == tags


# ------------------------------------------------------------------------- segments


@settings(deadline=None, max_examples=30)
@given(LISTS)
def test_a_segment_gives_back_its_rows(model: list[Row]) -> None:
    data = encode_segment(Rows.of(model))
    assert data == encode_segment(Rows.of(model)), "the same bytes for the same rows"
    assert unfold(parse_segment(data, num_rows=len(model), name="s")) == model


def test_a_segment_is_a_zarr_group_that_others_read(tmp_path: Path) -> None:
    model = [
        make_row(
            uuid=f"{n:032x}",
            trajectory_id=n,
            model_weights_id="é" * n,
            tags={"n": n} if n % 2 else {},
            version=n,
            ts=n * n,
        )
        for n in range(7)
    ]
    path = tmp_path / "segment.zarr.zip"
    path.write_bytes(encode_segment(Rows.of(model)))
    with zarr.storage.ZipStore(path, mode="r") as store:
        group = zarr.open_group(store, mode="r")
        assert group.attrs.asdict() == {"zarrbuf_segment": {"spec": 1, "rows": 7}}
        columns = {name: np.asarray(array[...]) for name, array in group.arrays()}
    assert columns["trajectory_id"].tolist() == list(range(7))
    assert columns["ts"].tolist() == [n * n for n in range(7)]
    assert columns["crc"].dtype == np.uint32
    assert columns["uuid"].tobytes().hex() == "".join(row.uuid for row in model)
    offsets = columns["model_weights_id.offsets"]
    blob = columns["model_weights_id.bytes"].tobytes()
    texts = [blob[start:stop].decode() for start, stop in itertools.pairwise(offsets)]
    assert texts == [row.model_weights_id for row in model]
    assert {name for name in columns if "." not in name} == {
        *("uuid", "trajectory_id", "T", "B", "num_samples", "max_episode_length"),
        *("base", "size", "crc", "schema", "version", "ts"),
    }


def test_a_segment_holds_at_most_its_limit() -> None:
    one = Rows.of([make_row()])
    full = one.take(np.zeros(MAX_SEGMENT_ROWS, np.int64))
    data = encode_segment(full)
    found = parse_segment(data, num_rows=MAX_SEGMENT_ROWS, name="s")
    assert found.total_samples == 8 * MAX_SEGMENT_ROWS
    assert found.row(MAX_SEGMENT_ROWS - 1) == make_row()
    over = encode_segment(one.take(np.zeros(MAX_SEGMENT_ROWS + 1, np.int64)))
    with pytest.raises(FormatError, match="not a segment"):
        parse_segment(over, num_rows=MAX_SEGMENT_ROWS + 1, name="s")


def test_every_damaged_byte_of_a_segment_is_noticed() -> None:
    data = encode_segment(Rows.of([make_row(), make_row(uuid="cd" * 16)]))
    for position in range(0, len(data), 41):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(FormatError, match="seg"):
            unfold(parse_segment(bytes(damaged), num_rows=2, name="seg"))
    for length in (0, 21, len(data) // 2, len(data) - 1):
        with pytest.raises(FormatError, match="seg"):
            parse_segment(data[:length], num_rows=2, name="seg")


def segment_with(
    attributes: dict[str, Any] | None = None, **columns: Any
) -> tuple[bytes, int]:
    """Encode a well-formed archive of two rows with some columns replaced."""
    rows = Rows.of([make_row(), make_row(uuid="cd" * 16, trajectory_id=4)])
    good = Archive(encode_segment(rows), name="good")
    arrays = {
        field: np.ascontiguousarray(good.read_array(field)) for field in good.arrays
    }
    for name, column in columns.items():
        field = name.replace("__", ".")
        if column is None:
            del arrays[field]
        else:
            arrays[field] = np.asarray(column)
    fields = {
        name: FieldArray((array,), array.dtype.name) for name, array in arrays.items()
    }
    return encode_archive(fields, attributes or good.attributes, codec="zstd"), 2


def int64(*values: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(values, np.int64)


def utf8(text: str | bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(text if isinstance(text, bytes) else text.encode(), np.uint8)


@pytest.mark.parametrize(
    "columns",
    [
        {"T": None},
        {"tags__bytes": None},
        {"extra": int64(1, 2)},
        {"T": int64(4)},
        {"T": int64(4, 4, 4)},
        {"T": np.array([4, 4], np.int32)},
        {"T": np.array([[4], [4]], np.int64)},
        {"num_samples": int64(8, 9)},
        {"T": int64(-4, 4), "B": int64(-2, 2)},
        {"T": int64(0, 4), "num_samples": int64(0, 8)},
        {"B": int64(0, 2), "num_samples": int64(0, 8)},
        {"T": int64(2**31, 4), "B": int64(0, 2), "num_samples": int64(0, 8)},
        {"trajectory_id": int64(-1, 4)},
        {"base": np.array([-1, 0], np.int32)},
        {"size": int64(-1, 4)},
        {"version": int64(-1, 4)},
        {"ts": int64(0, -4)},
        {"uuid": np.zeros(31, np.uint8)},
        {"uuid": np.zeros(32, np.int8)},
        {"tags__offsets": int64(0, 0)},
        {"shape__offsets": int64(0, 99, 14)},
        {"shape__offsets": int64(7, 0, 14)},
        {"shape__offsets": int64(1, 7, 14)},
        {"shape__offsets": int64(0, 7, 13)},
        {"shape__bytes": np.zeros(14, np.int8)},
        {"shape__bytes": np.zeros((14, 1), np.uint8)},
        {"model_weights_id__bytes": utf8("../../../../")},
    ],
    ids=lambda columns: " ".join(columns),
)
def test_a_segment_with_wrong_columns_is_refused(columns: dict[str, Any]) -> None:
    data, num_rows = segment_with(**columns)
    with pytest.raises(FormatError, match="seg"):
        parse_segment(data, num_rows=num_rows, name="seg")


@pytest.mark.parametrize(
    "columns",
    [
        {"model_weights_id__bytes": utf8(b"\xff" * 12)},
        {"shape__bytes": utf8("[4,2,1}[4,2,1]")},
        {"shape__bytes": utf8("[4,2,x][4,2,1]")},
        {"shape__bytes": utf8("[-4,21][4,2,1]")},
        {"shape__bytes": utf8('{"a":1}[4,2,1]')},
        {"tags__bytes": utf8("[]"), "tags__offsets": int64(0, 2, 2)},
        {"tags__bytes": utf8('{"a":[]}'), "tags__offsets": int64(0, 8, 8)},
        {"tags__bytes": utf8('{"a":NaN}'), "tags__offsets": int64(0, 9, 9)},
        {"tags__bytes": utf8("[" * 1000), "tags__offsets": int64(0, 1000, 1000)},
    ],
)
def test_a_string_in_a_segment_is_checked_when_it_is_read(
    columns: dict[str, Any],
) -> None:
    data, num_rows = segment_with(**columns)
    rows = parse_segment(data, num_rows=num_rows, name="seg")
    with pytest.raises(FormatError):
        rows.row(0)


def test_the_attributes_of_a_segment_count() -> None:
    rows = segment_with()
    assert len(parse_segment(rows[0], num_rows=2, name="seg")) == 2
    newer = {"zarrbuf_segment": {"spec": 2, "rows": 2}}
    with pytest.raises(UnsupportedVersionError, match="spec 2"):
        parse_segment(segment_with(newer)[0], num_rows=2, name="seg")
    for attributes in (
        {"zarrbuf_segment": {"spec": 1, "rows": 3}},
        {"zarrbuf_segment": {"spec": 1, "rows": 2, "more": 1}},
        {"zarrbuf_segment": {"spec": 1, "rows": 2}, "more": 1},
        {"other": {"spec": 1, "rows": 2}},
    ):
        data = segment_with(json.loads(json.dumps(attributes)))[0]
        with pytest.raises(FormatError, match="its attributes"):
            parse_segment(data, num_rows=2, name="seg")
