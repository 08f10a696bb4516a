"""A window numbers the samples of listed rows one after the other, however they lie."""

from __future__ import annotations

import dataclasses
import gc
import tracemalloc
import uuid
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import support.trajectories
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.trajectories import make_trajectory

from zarrbuf import Trajectory, TrajectoryReplayBuffer
from zarrbuf.common.uuids import new_uuid
from zarrbuf.errors import NotFoundError
from zarrbuf.manifest.row_table import RowTable, Stretch
from zarrbuf.manifest.rows import Row, Rows
from zarrbuf.replay.live_set import LiveSet
from zarrbuf.sampling import window as window_module
from zarrbuf.sampling.index_map import plan_batch
from zarrbuf.sampling.window import LiveRows, Part
from zarrbuf.stores.contract import NewTrajectory, TrajectoryStore
from zarrbuf.stores.in_memory import MemoryStore
from zarrbuf.trajectory.encoding import EncodedTrajectory, encode_trajectory


def make_row(trajectory_id: int, num_steps: int = 2, num_envs: int = 3) -> Row:
    return support.trajectories.make_row(
        trajectory_id,
        num_steps=num_steps,
        num_envs=num_envs,
        shape=(num_steps, num_envs),
        max_episode_length=5,
    )


@st.composite
def parts(draw: st.DrawFn) -> tuple[list[Part], list[tuple[Any, Row]]]:
    """Draw parts, and the rows listed in them with their stores."""
    found: list[Part] = []
    model: list[tuple[Any, Row]] = []
    for _ in range(draw(st.integers(0, 3))):
        shapes = st.tuples(st.integers(1, 5), st.integers(1, 4))
        rows = [
            make_row(number, *shape)
            for number, shape in enumerate(draw(st.lists(shapes, max_size=7)))
        ]
        live = [draw(st.booleans()) for _ in rows]
        table = RowTable.of(Rows.of(rows))
        table = table.removed(np.flatnonzero(~np.array(live, np.bool_)))
        start = draw(st.integers(0, len(rows)))
        stop = draw(st.integers(start, len(rows)))
        store: Any = MemoryStore()
        found.append((store, Stretch(table, start, stop)))
        model += [(store, rows[n]) for n in range(start, stop) if live[n]]
    return found, model


@settings(deadline=None, max_examples=300)
@given(parts(), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_samples_are_those_of_the_listed_rows_one_after_the_other(
    made: tuple[list[Part], list[tuple[Any, Row]]], size: int, seed: int
) -> None:
    found, model = made
    rows = LiveRows.of(found).newest(size)
    window = model[-size:] if size else model
    assert len(rows) == len(window)
    positions = rows.positions.tolist()
    assert [(rows.store(n), rows.row(n)) for n in positions] == window
    assert rows.uuids(rows.positions) == [row.uuid for _, row in window]
    samples = [
        (where, sample)
        for where, (_, row) in enumerate(window)
        for sample in range(row.num_samples)
    ]
    assert rows.index.total_samples == len(samples)
    if not samples:
        return
    draws = np.random.default_rng(seed).integers(0, len(samples), 20)
    plan = plan_batch(draws, rows.index)

    def place(number: int) -> tuple[int, int, int]:
        where, sample = samples[draws[number]]
        step, env = divmod(sample, window[where][1].num_envs)
        return where, env, step

    order = sorted(range(20), key=place)  # a stable sort, as that of the plan
    assert [n for group in plan.groups for n in group.out.tolist()] == order
    got = [
        (positions.index(group.position), sample)
        for group in plan.groups
        for sample in group.flat.tolist()
    ]
    assert got == [samples[draws[n]] for n in order]


def test_rows_lie_in_the_memory_of_the_tables() -> None:
    table = RowTable.of(Rows.of([make_row(n) for n in range(100)]))
    table = table.removed(np.array([3, 50]))
    rows = LiveRows.of([(MemoryStore(), table.listed)])
    (span,) = rows.index.spans
    for array, whole in (
        (span.ends, table.ends),
        (span.num_steps, table.rows.fixed),
        (span.num_envs, table.rows.fixed),
    ):
        assert np.shares_memory(array, whole)


# --------------------------------------------------------------------- stores in memory


@pytest.fixture(scope="module")
def encoded() -> EncodedTrajectory:
    return encode_trajectory(make_trajectory(3, 2), uuid=new_uuid(), codec="lz4")


def make_items(encoded: EncodedTrajectory, *ids: int) -> list[NewTrajectory]:
    items = [NewTrajectory.of(encoded, trajectory_id=number) for number in ids]
    return [
        dataclasses.replace(item, row=dataclasses.replace(item.row, uuid=new_uuid()))
        for item in items
    ]


def ids_of(store: TrajectoryStore) -> list[int]:
    ids: list[int] = store.rows.trajectory_ids.tolist()
    return ids


def open_all(store: TrajectoryStore) -> None:
    for number in range(len(store.rows)):
        store.open_archive(store.rows.row(number))
        store.schema(store.rows.row(number))


def test_memory_is_a_queue_and_what_was_frozen_stays(
    encoded: EncodedTrajectory,
) -> None:
    store = MemoryStore()
    frozen: list[tuple[MemoryStore, list[int]]] = []
    for number in range(0, 1000, 2):
        store.append(make_items(encoded, number, number + 1))
        if number >= 20:
            store.drop_first(2)
        if number % 50 == 0:
            frozen.append((store.frozen(), ids_of(store)))
        assert len(store.listed) == min(number + 2, 20)
        assert len(store._table) <= 200, "what is forgotten is given back"
    assert ids_of(store) == list(range(980, 1000))
    assert len(store._items) == 20
    for copy, ids in frozen:
        assert ids_of(copy) == ids
        open_all(copy)
        assert copy.frozen() is copy


def test_what_was_dropped_is_no_longer_there(encoded: EncodedTrajectory) -> None:
    store = MemoryStore()
    store.append(make_items(encoded, 0, 1))
    row = store.rows.row(0)
    store.drop_first(1)
    with pytest.raises(NotFoundError, match="no longer in memory"):
        store.open_archive(row)
    with pytest.raises(NotFoundError, match="no longer in memory"):
        store.frozen().open_archive(row)


@settings(deadline=None)
@given(st.sets(st.integers(0, 7)), st.booleans())
def test_any_may_be_discarded(gone: set[int], is_clear: bool) -> None:
    store = MemoryStore()
    items = make_items(ENCODED, *range(8))
    store.append(items)
    mark = store.mark
    copy = store.frozen()
    store.discard([items[n].row.uuid for n in gone] + ["ff" * 16])
    kept = [n for n in range(8) if n not in gone]
    assert ids_of(store) == kept
    open_all(store)
    if is_clear:
        store.remove_all(reason="test")
        assert ids_of(store) == kept[:0]
    store.append(make_items(ENCODED, 8, 9))
    assert ids_of(store) == [*(kept if not is_clear else []), 8, 9]
    newest = store.after(store.listed, max(mark, store.mark - 2))
    assert newest.trajectory_ids.tolist() == [8, 9]
    assert ids_of(copy) == list(range(8))
    open_all(copy)


ENCODED = encode_trajectory(make_trajectory(1, 1), uuid=new_uuid(), codec="lz4")


# ------------------------------------------------------------------------------- fields


def make_live_set(window_size: int = 0) -> LiveSet:
    reader = TrajectoryReplayBuffer()._reader
    return LiveSet(
        MemoryStore(), reader, window_size=window_size, max_queue_bytes=1 << 20
    )


def encode(**changes: Any) -> EncodedTrajectory:
    trajectory = make_trajectory(2, 1, **changes)
    return encode_trajectory(trajectory, uuid=new_uuid(), codec="lz4")


def test_fields_are_looked_up_once_for_some_schemas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live = make_live_set()
    live.add([encode()])
    first = live.window().fields
    calls: list[Any] = []
    found = window_module.sorted_fields
    monkeypatch.setattr(
        window_module, "sorted_fields", lambda s: calls.append(s) or found(s)
    )
    for _ in range(5):
        live.add([encode()])
        assert live.window().fields is first
    assert not calls
    live.add([encode(rewards=None)])
    fewer = live.window().fields
    assert len(calls) == 2
    assert {f.name for f in first} - {f.name for f in fewer} == {"rewards"}


def test_a_window_that_moves_on_has_the_fields_of_what_is_in_it() -> None:
    live = make_live_set(window_size=2)
    for rewards in (torch.ones(2, 1), None, None, torch.ones(2, 1), torch.ones(2, 1)):
        live.add([encode(rewards=rewards)])
    names = {field.name for field in live.window().fields}
    assert "rewards" in names
    live.add([encode(rewards=None)])
    names = {field.name for field in live.window().fields}
    assert "rewards" not in names


def test_refreshing_memory_counts_nothing_twice() -> None:
    live = make_live_set()
    live.add([encode(), encode()])
    live.refresh()
    assert live.size == 2
    assert len(live.drawn()) == 2


def test_a_window_that_is_past_holds_no_memory(tmp_path: Path) -> None:
    """Between two draws, trajectories that left the window are let go of."""
    frames = torch.randint(0, 255, (8, 2, 40, 40, 3), dtype=torch.uint8)
    one = Trajectory(rewards=torch.ones(8, 2), curr_obs={"main_images": frames})
    options: Any = {"sample_window_size": 2}
    for more in ({}, {"auto_save": True, "auto_save_path": tmp_path}):
        buffer = TrajectoryReplayBuffer(**options, **more)
        buffer.add_trajectories([one, one])
        buffer.sample(4)
        held = weakref.ref(buffer._live.window())
        buffer.add_trajectories([one])
        gc.collect()
        assert held() is None
        buffer.flush()
        tracemalloc.start()
        for _ in range(20):
            buffer.add_trajectories([one])
            buffer.flush()
        grown = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert grown < 5 * frames.nbytes, "of twenty, two are kept"
        buffer.close()


def test_a_prefetcher_holds_no_window() -> None:
    path = f"memory://window-{uuid.uuid4().hex}"
    with TrajectoryReplayBuffer(auto_save=True, auto_save_path=path) as buffer:
        buffer.add_trajectories([make_trajectory(4, 2, image_size=40)])
    with TrajectoryReplayBuffer(prefetch_batches=2) as buffer:
        buffer.load_checkpoint(path)
        for _ in range(3):
            buffer.sample(4)
        buffer._prefetcher._thread.submit(lambda: None).result()
        buffer._prefetcher._newest_thread.submit(lambda: None).result()
        held = weakref.ref(buffer._live.window())
        buffer.clear()
        gc.collect()
        assert held() is None
