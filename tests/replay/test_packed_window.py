"""Buffers in memory keep small trajectories in blocks; draws, ids and saves stay."""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.batches import assert_same_batch, draw, generator, leaves
from support.trajectories import assert_same_value, make_trajectory

import zarrbuf.sampling.batch_reader
from zarrbuf import Trajectory, TrajectoryReplayBuffer, list_buffer
from zarrbuf.errors import InvalidInputError
from zarrbuf.replay.held_memory import held_bytes
from zarrbuf.sampling.field_tables import SmallTables
from zarrbuf.trajectory import packing


def transition(number: int, **more: Any) -> Trajectory:
    """Return one transition of 1.4 KiB."""
    rand = generator(number)

    def some(count: int) -> torch.Tensor:
        return torch.rand(1, 1, count, generator=rand)

    return Trajectory(
        max_episode_length=1,
        model_weights_id=f"w_{number // 50}",
        actions=some(32),
        rewards=some(8),
        dones=torch.tensor([[[number % 7 == 0]]]),
        forward_inputs={"action": some(32)},
        curr_obs={"states": some(32), "z": some(100)},
        next_obs={"states": some(32), "z": some(100)},
        **more,
    )


def _some(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=generator(shape[0]))


def odd(number: int) -> Trajectory:
    """Return trajectories of several kinds: packed ones and archives, extra rows."""
    if number % 5 == 0:
        one = make_trajectory(2, 2, seed=number, image_size=2)
        one.forward_inputs["large"] = _some(2, 2, 9000)  # an archive
        return one
    if number % 5 == 1:
        return make_trajectory(3, 2, seed=number, image_size=2, reset_every=1)
    one = make_trajectory(1 + number % 3, 2, seed=number, image_size=2)
    if number % 5 == 2:
        one.forward_inputs = {"more": _some(1 + number % 3, 2, 4)}
    return one


def small(number: int) -> Trajectory:
    """Return trajectories of two schemas, all packed."""
    return odd(number + 1 if number % 5 == 0 else number)


@pytest.fixture(params=["loops", "no loops"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "no loops":
        monkeypatch.setattr(zarrbuf.sampling.batch_reader, "have_loops", lambda: False)


@pytest.mark.usefixtures("both_ways")
@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.integers(0, 6),
    st.lists(
        st.sampled_from(("add", "add 9", "sample", "sample", "clear", "cache")),
        max_size=16,
    ),
)
def test_every_batch_is_that_of_the_slow_way(window: int, doings: list[str]) -> None:
    buffer = TrajectoryReplayBuffer(seed=4, sample_window_size=window)
    draws = generator(4)
    added: list[Trajectory] = []
    number = 0
    for doing in [*doings, "add", "sample"]:
        if doing.startswith("add"):
            some = [small(number + n) for n in range(9 if doing == "add 9" else 1)]
            number += len(some)
            added += some
            buffer.add_trajectories(some)
        elif doing == "clear":
            buffer.clear()
            added = []
        elif doing == "cache":
            buffer.clear_cache()
        elif added:
            batch = buffer.sample(13)
            assert_same_batch(batch, draw(added[-window:], 13, draws))
    index = buffer._trajectory_index
    ids = [index[n]["trajectory_id"] for n in buffer._trajectory_id_list]
    kept = added[-window:]
    assert ids == list(range(len(added) - len(kept), len(added)))
    for trajectory_id, one in zip(ids, kept, strict=True):
        found = buffer.load_trajectory(trajectory_id)
        assert_same_value(vars(found), vars(one), "trajectory")


def test_archives_and_blocks_are_drawn_together() -> None:
    added = [odd(number) for number in range(20)]
    buffer = TrajectoryReplayBuffer(seed=4, sample_window_size=15)
    buffer.add_trajectories(added)
    draws = generator(4)
    for _ in range(4):
        assert_same_batch(buffer.sample(64), draw(added[-15:], 64, draws))


@pytest.mark.parametrize("to", ["zarr", "pt", "pkl"])
def test_a_checkpoint_is_what_archives_would_save(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuids = [f"{number:032x}" for number in range(100)]
    saved = []
    for name in ("packed", "archives"):
        fresh = iter(uuids)
        monkeypatch.setattr("zarrbuf.replay.buffer.new_uuid", lambda f=fresh: next(f))
        if name == "archives":
            monkeypatch.setattr(
                "zarrbuf.replay.buffer.pack_trajectory", lambda *_, **__: None
            )
        buffer = TrajectoryReplayBuffer(
            seed=4, sample_window_size=7, trajectory_format=to
        )
        buffer.add_trajectories([odd(number) for number in range(10)])
        buffer.sample(9)
        buffer.save_checkpoint(tmp_path / name)
        files = {path.name: path for path in (tmp_path / name).rglob("*[0-9a-f].z*")}
        rows = list_buffer(tmp_path / name).rows
        told = [rows.row(n) for n in range(len(rows))]
        kind = (lambda one: one.crc) if to == "zarr" else (lambda one: one.shape)
        saved.append((files, [(one.tags, one.schema, kind(one)) for one in told]))
        again = TrajectoryReplayBuffer()
        again.load_checkpoint(tmp_path / name)
        assert_same_batch(again.sample(9), leaves(buffer.sample(9)))
        for trajectory_id in again._trajectory_id_list:
            found = again.load_trajectory(trajectory_id)
            assert_same_value(vars(found), vars(odd(trajectory_id)), "trajectory")
    (files, told), (other_files, other_told) = saved
    assert told == other_told
    assert set(files) == set(other_files)
    assert bool(files) is (to == "zarr")
    for name, path in files.items():
        assert path.read_bytes() == other_files[name].read_bytes(), name


def test_a_window_drawn_from_keeps_what_was_forgotten_since() -> None:
    buffer = TrajectoryReplayBuffer(seed=4, sample_window_size=3)
    added = [transition(number) for number in range(300)]
    buffer.add_trajectories(added[:3])
    window = buffer._live.window()
    for one in added[3:]:
        buffer.add_trajectories([one])
    rows = window.rows
    for position in range(3):
        store, row = rows.store(position), rows.row(position)
        assert_same_value(
            vars(store.read_trajectory(row)), vars(added[position]), "old"
        )
    assert len(buffer._live._store._blocks) <= 3  # type: ignore[attr-defined]


def test_what_is_refused_changes_nothing() -> None:
    buffer = TrajectoryReplayBuffer(seed=4)
    buffer.add_trajectories([transition(1)])
    bad = transition(2)
    bad.actions = torch.rand(1, 1, 31)
    with pytest.raises(InvalidInputError, match=r"trajectories\[1\].*actions"):
        buffer.add_trajectories([transition(3), bad])
    assert len(buffer) == buffer.window_samples == 1
    assert_same_batch(buffer.sample(5), draw([transition(1)], 5, generator(4)))


def test_what_fails_halfway_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = TrajectoryReplayBuffer(seed=4)
    buffer.add_trajectories([transition(0)])
    take, taken = packing.Block.take, []

    def fill_up(self: packing.Block, one: packing.PackedTrajectory) -> Any:
        taken.append(one)
        if len(taken) == 3:
            raise MemoryError("no memory")
        return take(self, one)

    monkeypatch.setattr(packing.Block, "take", fill_up)
    with pytest.raises(MemoryError):
        buffer.add_trajectories([transition(n) for n in range(1, 5)])
    monkeypatch.undo()
    assert len(buffer) == buffer.window_samples == 1
    buffer.add_trajectories([transition(5)])
    assert buffer._trajectory_id_list == [0, 1]
    expected = draw([transition(0), transition(5)], 20, generator(4))
    assert_same_batch(buffer.sample(20), expected)


@pytest.mark.parametrize("kind", ["one schema", "many schemas"])
def test_blocks_go_with_what_lay_in_them(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_MAX_LAYOUTS", 20)
    buffer = TrajectoryReplayBuffer(seed=4, sample_window_size=5)
    for number in range(300):
        one = transition(number)
        if kind == "many schemas":
            one.forward_inputs = {f"x{number}": torch.rand(1, 1, 3)}
        else:  # of many layouts: what is not drawn has another shape each time
            one.forward_inputs["whole"] = torch.rand(number + 1)
        buffer.add_trajectories([one])
        store = buffer._live._store
        assert len(store._blocks) <= 7  # type: ignore[attr-defined]
        assert len(store._filling) <= 7  # type: ignore[attr-defined]
    assert len(buffer.sample(9)["rewards"]) == 9


def test_layouts_take_little_beside_the_data() -> None:
    buffer = TrajectoryReplayBuffer(seed=4, sample_window_size=100)
    added = [
        Trajectory(
            rewards=torch.rand(steps, 1, 2),
            dones=torch.zeros(steps + 1, 1, 1, dtype=torch.bool),
            truncations=torch.zeros(steps + 1, 1, 1, dtype=torch.bool),
        )
        for steps in range(2000, 2300)
    ]
    buffer.add_trajectories(added)
    assert held_bytes(buffer) <= 1.5 * held_bytes(added[-100:]) + (2 << 20)
    per_layout = held_bytes(packing._LAYOUTS) / len(packing._LAYOUTS)
    assert per_layout < 1000


def test_two_threads_that_draw_take_the_rows_of_the_right_blocks() -> None:
    """Both find that a block has no number, and give it one at once."""
    both = threading.Barrier(2)

    class Slow(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            found = super().get(key, default)
            with suppress(threading.BrokenBarrierError):
                both.wait(timeout=0.2)
            return found

    buffer = TrajectoryReplayBuffer(seed=4, sample_window_size=0)
    buffer.add_trajectories([small(number) for number in range(40)])
    window = buffer._live.window()
    tables = SmallTables(window.index, window.fields, num_dropped=0)
    tables._numbers = Slow()
    blocks = list(buffer._live._store._blocks.values())  # type: ignore[attr-defined]
    assert len(blocks) > 1

    def number(some: list[packing.Block]) -> list[bool]:
        return [tables._blocks[tables._number(one)] is one for one in some]

    with ThreadPoolExecutor(2) as pool:
        right = list(pool.map(number, [blocks, blocks[::-1]]))
    assert all(map(all, right))


@pytest.mark.parametrize("to", ["zarr", "pt"])
def test_archives_that_are_made_to_be_saved_are_not_kept(
    to: str, tmp_path: Path
) -> None:
    buffer = TrajectoryReplayBuffer(seed=4, trajectory_format=to)
    added = [transition(number) for number in range(20)]
    buffer.add_trajectories(added)
    before = held_bytes(buffer)
    buffer.save_checkpoint(tmp_path / "x")
    for number, one in enumerate(added):
        assert_same_value(vars(buffer.load_trajectory(number)), vars(one), "one")
    assert held_bytes(buffer) <= before + 4096


@pytest.mark.parametrize("kind", ["packed", "archives"])
def test_clearing_while_another_thread_adds_leaves_a_buffer_that_works(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "archives":
        monkeypatch.setattr(
            "zarrbuf.replay.buffer.pack_trajectory", lambda *_, **__: None
        )
    added = [transition(number) for number in range(60)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(60):
            buffer = TrajectoryReplayBuffer(seed=4, sample_window_size=100)
            is_over = threading.Event()

            def add(
                buffer: TrajectoryReplayBuffer = buffer,
                is_over: threading.Event = is_over,
            ) -> None:
                while not is_over.is_set():
                    buffer.add_trajectories(added[:10])

            with ThreadPoolExecutor(1) as pool:
                adding = pool.submit(add)
                for _ in range(5):
                    buffer.clear()
                is_over.set()
                adding.result()
            buffer.clear()
            buffer.add_trajectories(added)
            expected = draw(added, 30, generator(4))
            assert_same_batch(buffer.sample(30), expected)
    finally:
        sys.setswitchinterval(interval)


def test_no_loop_is_compiled_for_what_needs_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> bool:
        raise AssertionError("asked for loops")

    monkeypatch.setattr(zarrbuf.sampling.batch_reader, "have_loops", fail)
    monkeypatch.setattr(zarrbuf.sampling.batch_reader, "compile_reading", fail)
    buffer = TrajectoryReplayBuffer(seed=4)
    buffer.add_trajectories([transition(1), transition(2)])
    assert len(buffer.sample(5)["rewards"]) == 5


def test_memory_is_that_of_the_data() -> None:
    buffer = TrajectoryReplayBuffer(seed=4, sample_window_size=50_000)
    added = [transition(number) for number in range(4000)]
    raw = held_bytes(added)
    for one in added:
        buffer.add_trajectories([one])
    buffer.sample(512)
    assert held_bytes(buffer) <= 1.5 * raw + (2 << 20)


def test_a_draw_costs_less_than_from_archives_by_far(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cost(add: Callable[[TrajectoryReplayBuffer, Trajectory], None]) -> list[float]:
        buffer = TrajectoryReplayBuffer(seed=4, sample_window_size=50_000)
        added = [transition(number) for number in range(1200)]
        times: list[list[float]] = [[], []]
        for number, one in enumerate(added):
            started = time.perf_counter()
            add(buffer, one)
            times[0].append(time.perf_counter() - started)
            if number > 1150:
                started = time.perf_counter()
                buffer.sample(512)
                times[1].append(time.perf_counter() - started)
        return [statistics.median(some) for some in times]

    packed = cost(lambda buffer, one: buffer.add_trajectories([one]))
    monkeypatch.setattr("zarrbuf.replay.buffer.pack_trajectory", lambda *_, **__: None)
    archived = cost(lambda buffer, one: buffer.add_trajectories([one]))
    assert packed[0] < archived[0] / 2
    assert packed[1] < archived[1]


def test_few_bytes_of_many_schemas_take_few_blocks() -> None:
    buffer = TrajectoryReplayBuffer(seed=4, sample_window_size=0)
    for size in range(300):
        one = transition(size)
        one.forward_inputs = {f"x{size}": torch.rand(1, 1, 3)}
        buffer.add_trajectories([one])
    raw = held_bytes([transition(size) for size in range(300)])
    assert held_bytes(buffer) < 4 * raw + (1 << 20)
    assert len(packing._LAYOUTS) <= packing._MAX_LAYOUTS
    assert len(buffer.sample(50)["rewards"]) == 50
