"""Columns of strings hold what lists of strings hold, those that repeat once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zarrbuf.manifest import columns
from zarrbuf.manifest.columns import TextColumn

# Few of them, so that they repeat; some as long as what is compared at once.
ANY = st.sampled_from(["", "\0", "a", "a\0", "ab", "ä", "w" * 8, "w" * 63, "w" * 64])
LONG = st.sampled_from(["", "a", "w" * 62 + "a", "w" * 62 + "b", "w" * 63])


def lists() -> st.SearchStrategy[list[str]]:
    return st.lists(LONG, max_size=40) | st.lists(ANY, max_size=40)


def plain(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    blobs = [text.encode() for text in texts]
    offsets = np.array([0, *itertools.accumulate(map(len, blobs))], np.int64)
    return offsets, np.frombuffer(b"".join(blobs), np.uint8)


def unfold(column: TextColumn) -> list[str]:
    return [column.get(position) for position in range(len(column.numbers))]


@settings(deadline=None)
@given(lists())
def test_a_column_comes_back_from_one_string_after_the_other(texts: list[str]) -> None:
    offsets, data = plain(texts)
    for column in (TextColumn.of(texts), TextColumn.unpack(offsets, data)):
        assert unfold(column) == texts
        found = column.pack()
        assert found[0].tolist() == offsets.tolist()
        assert found[1].tobytes() == data.tobytes()


@settings(deadline=None)
@given(lists(), lists(), st.data())
def test_parts_of_columns_are_parts_of_lists(
    texts: list[str], more: list[str], data: st.DataObject
) -> None:
    model = [*texts, *more]
    column = TextColumn.concat([TextColumn.of(texts), TextColumn.of(more)])
    start = data.draw(st.integers(0, len(model)))
    stop = data.draw(st.integers(start, len(model)))
    part = column.slice(start, stop)
    assert unfold(part) == model[start:stop]
    assert np.shares_memory(part.data, column.data) or not len(column.data)
    trimmed = part.trimmed()
    assert unfold(trimmed) == model[start:stop]
    assert trimmed.num_distinct <= stop - start
    every = np.arange(column.num_distinct, dtype=np.int32)[::-1]
    assert column.blobs(every) == [column.blob(number) for number in every.tolist()]
    if model:
        positions = data.draw(st.lists(st.integers(0, len(model) - 1)))
        taken = column.take(np.array(positions, np.int64))
        assert unfold(taken) == [model[n] for n in positions]


def test_strings_that_repeat_are_kept_once() -> None:
    runs = [f"w{n // 100}" for n in range(4000)]
    mixed = [f"w{n % 40}" for n in range(4000)]
    for texts in (runs, mixed, [""] * 4000):
        column = TextColumn.unpack(*plain(texts))
        assert column.num_distinct == len(set(texts))
        assert unfold(column) == texts
    different = [f"w{n}" for n in range(4000)]
    assert unfold(TextColumn.unpack(*plain(different))) == different


def test_equal_hashes_do_not_make_strings_equal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(columns, "_FACTORS", np.zeros(8, np.uint64))
    texts = ["a", "b", "b", "a"] * 5
    column = TextColumn.unpack(*plain(texts))
    assert unfold(column) == texts
    assert column.num_distinct == 11
