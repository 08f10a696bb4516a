"""Tables that share memory are what lists of their own would be."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import support.trajectories
from hypothesis import given, settings
from hypothesis import strategies as st

from zarrbuf.manifest.columns import GrowingArray, GrowingText, TextColumn
from zarrbuf.manifest.row_table import RowTable, Stretch
from zarrbuf.manifest.rows import Row, Rows

WORDS = st.sampled_from(["", "a", "b", "ab", "w" * 36, "ä", "x\0", "x"])


def make_row(trajectory_id: int, *, schema: int = 1, num_steps: int = 2) -> Row:
    return support.trajectories.make_row(
        trajectory_id,
        model_weights_id=f"w{trajectory_id // 3}",
        num_steps=num_steps,
        shape=(num_steps, 2, 1),
        schema=f"{schema:016x}",
        tags={"n": trajectory_id} if trajectory_id % 4 == 0 else {},
    )


def unfold(rows: Rows) -> list[Row]:
    return [rows.row(position) for position in range(len(rows))]


# ------------------------------------------------------------------------------ arrays


@settings(deadline=None)
@given(st.data())
def test_versions_of_an_array_are_lists(data: st.DataObject) -> None:
    versions = [(GrowingArray.empty(np.int64), [])]
    models: list[list[int]] = [[]]
    arrays = [versions[0][0]]
    for _ in range(data.draw(st.integers(1, 12))):
        number = data.draw(st.integers(0, len(arrays) - 1))
        more = data.draw(st.lists(st.integers(0, 9), max_size=80))
        arrays.append(arrays[number].extended(np.array(more, np.int64)))
        models.append([*models[number], *more])
        for array, model in zip(arrays, models, strict=True):
            assert array.values.tolist() == model


def test_only_the_longest_version_grows_in_place() -> None:
    first = GrowingArray.empty(np.int64).extended(np.arange(4))
    second = first.extended(np.arange(4))
    other = first.extended(np.arange(9, 12))
    third = second.extended(np.arange(4))
    assert np.shares_memory(first.values, second.values)
    assert np.shares_memory(first.values, third.values)
    assert not np.shares_memory(first.values, other.values)
    assert third.values.tolist() == [0, 1, 2, 3] * 3
    assert other.values.tolist() == [0, 1, 2, 3, 9, 10, 11]


def test_an_array_is_not_to_be_written_to() -> None:
    array = GrowingArray.empty(np.int64).extended(np.arange(4))
    with pytest.raises(ValueError, match="read-only"):
        array.values[0] = 1


@settings(deadline=None)
@given(st.data())
def test_versions_of_a_column_are_lists(data: st.DataObject) -> None:
    columns, models = [GrowingText.empty()], [[]]  # type: ignore[var-annotated]
    for _ in range(data.draw(st.integers(1, 10))):
        number = data.draw(st.integers(0, len(columns) - 1))
        more = data.draw(st.lists(WORDS, max_size=9))
        part = TextColumn.of(["never", *more]).slice(1, 1 + len(more))
        columns.append(columns[number].extended(part))
        models.append([*models[number], *more])
        for column, model in zip(columns, models, strict=True):
            found = [column.column.get(n) for n in range(len(model))]
            assert found == model


def test_a_string_that_comes_again_is_kept_once() -> None:
    column = GrowingText.empty()
    for number in range(3000):
        column = column.extended(TextColumn.of([f"w{number % 7}"]))
    assert column.column.num_distinct == 7
    assert column.column.get(2999) == "w3"


def test_many_distinct_strings_are_kept_too() -> None:
    texts = [str(n) for n in range(5000)]
    column = GrowingText.empty().extended(TextColumn.of(texts))
    for text in texts[:1100]:
        column = column.extended(TextColumn.of([text]))
    assert [column.column.get(n) for n in range(6100)] == [*texts, *texts[:1100]]


# ------------------------------------------------------------------------------ tables


class Model:
    """The same as a table: rows, and which of them are listed."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.live: list[bool] = []

    def copy(self) -> Model:
        model = Model()
        model.rows, model.live = list(self.rows), list(self.live)
        return model

    def listed(self, start: int = 0, stop: int | None = None) -> list[Row]:
        stop = len(self.rows) if stop is None else stop
        return [self.rows[n] for n in range(start, stop) if self.live[n]]


def assert_is(table: RowTable, model: Model) -> None:
    assert unfold(table.rows) == model.rows
    assert table.live.tolist() == model.live
    listed = model.listed()
    assert table.num_live == len(table.listed) == len(listed)
    assert unfold(table.listed.rows) == listed
    assert table.listed.uuids() == [row.uuid for row in listed]
    ends = [
        sum(r.num_samples for r in model.listed(0, n + 1)) for n in range(len(table))
    ]
    assert table.ends.tolist() == ends
    assert table.total_samples == sum(row.num_samples for row in listed)
    positions = [n for n, is_live in enumerate(model.live) if is_live]
    assert dict(table.schemas) == {int(model.rows[n].schema, 16): n for n in positions}


def assert_stretch_is(stretch: Stretch, rows: list[Row]) -> None:
    assert len(stretch) == len(rows)
    assert unfold(stretch.rows) == rows
    assert stretch.trajectory_ids.tolist() == [row.trajectory_id for row in rows]
    assert stretch.total_samples == sum(row.num_samples for row in rows)
    assert set(stretch.schemas) == {int(row.schema, 16) for row in rows}
    for schema, position in stretch.schemas.items():
        row = stretch.table.rows.row(position)
        assert int(row.schema, 16) == schema
        assert row in rows


def changed(
    table: RowTable, model: Model, next_id: int, data: st.DataObject
) -> tuple[RowTable, Model, int]:
    """Append or remove at random."""
    model = model.copy()
    positions = [n for n, is_live in enumerate(model.live) if is_live]
    if positions and data.draw(st.booleans()):
        gone = sorted(data.draw(st.sets(st.sampled_from(positions), max_size=9)))
        for position in gone:
            model.live[position] = False
        return table.removed(np.array(gone, np.int64)), model, next_id
    count = data.draw(st.sampled_from([0, 1, 1, 2, 5, 70]))
    falling = data.draw(st.integers(0, 9)) == 0
    numbers = range(next_id, next_id + count)
    rows = [
        make_row(
            number,
            schema=data.draw(st.integers(0, 3)) if count < 9 else 1,
            num_steps=number % 5 + 1,
        )
        for number in (reversed(numbers) if falling else numbers)
    ]
    model.rows += rows
    model.live += [True] * count
    return table.appended(Rows.of(rows)), model, next_id + count


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_tables_that_branch_are_lists(data: st.DataObject) -> None:
    """Whatever is made of a table, lost or not, it and all others stay as they were."""
    tables, models, next_id = [RowTable.empty()], [Model()], 0
    for _ in range(data.draw(st.integers(1, 10))):
        # Mostly the newest goes on; now and then one that was left behind.
        number = data.draw(st.sampled_from([-1, -1, -1, 0, len(tables) // 2]))
        table, model, next_id = changed(tables[number], models[number], next_id, data)
        tables.append(table)
        models.append(model)
    for table, model in zip(tables, models, strict=True):
        assert_is(table, model)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_stretches_are_slices_of_the_listed_rows(data: st.DataObject) -> None:
    table, model, next_id = RowTable.empty(), Model(), 0
    for _ in range(data.draw(st.integers(1, 6))):
        table, model, next_id = changed(table, model, next_id, data)
    listed = model.listed()
    first = data.draw(st.integers(0, len(listed)))
    last = data.draw(st.integers(first, len(listed)))
    part = table.listed.part(first, last)
    assert_stretch_is(part, listed[first:last])
    count = data.draw(st.integers(0, len(listed) + 1))
    newest = part.newest(count)
    assert_stretch_is(newest, listed[first:last][-count:] if count else [])
    ids = [row.trajectory_id for row in listed[first:last]]
    for number in range(-1, next_id + 1):
        position = part.find(number)
        assert (position is not None) == (number in ids)
        if position is not None:
            assert table.rows.row(position).trajectory_id == number
    some = sorted({*ids[::2], next_id, next_id + 5})
    found = table.rows.trajectory_ids[table.find(np.array(some, np.int64))]
    assert sorted(found.tolist()) == sorted(ids[::2])


@pytest.mark.parametrize("odd", ["1", 1.0, None, [1], 2**70, 2**64 - 1, -1])
def test_what_is_no_id_is_not_found(odd: Any) -> None:
    table = RowTable.of(Rows.of([make_row(n) for n in range(3)]))
    assert table.listed.find(odd) is None
    assert table.listed.find(np.int32(1)) == 1


@settings(deadline=None)
@given(st.data())
def test_removed_rows_go_from_a_place_on(data: st.DataObject) -> None:
    table, model, next_id = RowTable.empty(), Model(), 0
    for _ in range(data.draw(st.integers(1, 6))):
        table, model, next_id = changed(table, model, next_id, data)
    start = data.draw(st.integers(0, len(table)))
    kept = [n for n in range(len(table)) if n < start or model.live[n]]
    found = table.without_removed(start)
    if len(kept) == len(table):
        assert found is table
    model.rows = [model.rows[n] for n in kept]
    model.live = [model.live[n] for n in kept]
    assert_is(found, model)
    more = make_row(next_id)
    model.rows.append(more)
    model.live.append(True)
    assert_is(found.appended(Rows.of([more])), model)


def test_an_id_may_come_again_after_it_was_removed() -> None:
    table = RowTable.of(Rows.of([make_row(n) for n in range(4)]))
    again = dataclasses.replace(make_row(1), model_weights_id="again")
    table = table.removed(np.array([1])).appended(Rows.of([again]))
    assert table.listed.find(1) == 4
    assert table.find(np.array([0, 1])).tolist() == [0, 4]
