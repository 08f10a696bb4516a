"""The buffer's contract: add, draw, window, save, load, clear, close."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.batches import (
    assert_same_batch,
    draw,
    flatten,
    generator,
    leaves,
    num_samples,
)
from support.trajectories import assert_same_trajectory, make_trajectory, trajectories

from zarrbuf import Trajectory, TrajectoryReplayBuffer
from zarrbuf.errors import (
    EmptyBufferError,
    InvalidInputError,
    NotFoundError,
    TrajectoryNotFoundError,
)
from zarrbuf.stores.in_memory import MemoryStore

FORMATS = ("zarr", "pt", "pkl")


def some(count: int, *, first: int = 0, **options: Any) -> list[Trajectory]:
    """Return trajectories of different T and B."""
    return [
        make_trajectory(4 + 4 * (n % 2), 1 + n % 3, seed=first + n, **options)
        for n in range(count)
    ]


def saving(path: Path, trajectory_format: str, **options: Any) -> Any:
    """Return a buffer that saves to a path."""
    return TrajectoryReplayBuffer(
        auto_save=True,
        auto_save_path=str(path),
        trajectory_format=trajectory_format,
        **options,
    )


@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    batch=st.lists(trajectories(), min_size=1, max_size=1),
    cache=st.booleans(),
    codec=st.sampled_from(("lz4", "zstd", "none")),
    seed=st.integers(0, 2**31),
)
def test_a_batch_is_what_the_slow_way_gives(
    batch: list[Trajectory], cache: bool, codec: str, seed: int
) -> None:
    # Copies of other content: several trajectories of one schema.
    others = [make_like(batch[0], np.random.default_rng(seed + n)) for n in range(2)]
    batch = [*batch, *others]
    buffer = TrajectoryReplayBuffer(seed=seed, enable_cache=cache, codec=codec)
    buffer.add_trajectories(batch)
    state = generator(seed)
    for count in (1, 17):
        assert_same_batch(buffer.sample(count), draw(batch, count, state))


def make_like(trajectory: Trajectory, rng: np.random.Generator) -> Trajectory:
    """Return a trajectory of the same fields with its steps in another order."""

    def visit(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: visit(item) for key, item in value.items()}
        if isinstance(value, torch.Tensor) and value.ndim >= 2:
            return value[torch.from_numpy(rng.permutation(len(value)))]
        return value

    return Trajectory(**{name: visit(v) for name, v in vars(trajectory).items()})


@pytest.mark.parametrize("trajectory_format", FORMATS)
@pytest.mark.parametrize("window", [0, 1, 3])
def test_draws_follow_rlinf_over_the_window_while_adding(
    tmp_path: Path, trajectory_format: str, window: int
) -> None:
    added = some(6)
    mine = generator(7)
    with saving(tmp_path, trajectory_format, seed=7, sample_window_size=window) as b:
        for number, trajectory in enumerate(added):
            b.add_trajectories([trajectory])
            newest = added[: number + 1][-window:]
            assert b.window_trajectories == len(newest)
            assert len(b) == b.size == number + 1
            assert_same_batch(b.sample(num_chunks=9), draw(newest, 9, mine))
            if number == 2:
                b.flush()
        assert b.window_samples == sum(num_samples(t) for t in newest)
        assert b.total_samples == sum(num_samples(t) for t in added)


def test_without_saving_the_window_is_kept_in_memory(tmp_path: Path) -> None:
    added = some(5)
    buffer = TrajectoryReplayBuffer(seed=3, sample_window_size=2)
    buffer.add_trajectories(added)
    assert_same_batch(buffer.sample(30), draw(added[-2:], 30, generator(3)))
    assert buffer._trajectory_id_list == [3, 4]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("trajectory_format", FORMATS)
def test_the_caller_may_reuse_its_tensors_at_once(
    tmp_path: Path, trajectory_format: str
) -> None:
    trajectory = make_trajectory(8, 2, seed=1)
    kept = make_trajectory(8, 2, seed=1)
    with saving(tmp_path, trajectory_format) as buffer:
        buffer.add_trajectories([trajectory])
        for value in flatten_values(trajectory):
            value.zero_()
        buffer.flush()
        assert_same_trajectory(buffer.load_trajectory(0), kept)


def flatten_values(trajectory: Trajectory) -> list[torch.Tensor]:
    """Return all tensors of a trajectory."""
    found: list[torch.Tensor] = []

    def visit(value: Any) -> None:
        if isinstance(value, dict):
            for item in value.values():
                visit(item)
        elif isinstance(value, torch.Tensor):
            found.append(value)

    visit(vars(trajectory))
    return found


def test_a_batch_is_writable_and_owns_its_memory() -> None:
    buffer = TrajectoryReplayBuffer(seed=1)
    buffer.add_trajectories(some(2))
    first = buffer.sample(16)
    for tensor in leaves(first).values():
        tensor.zero_()
    buffer.manual_seed(1)
    assert buffer.sample(16)["rewards"].abs().sum() > 0


def test_more_samples_than_there_are_come_with_replacement() -> None:
    buffer = TrajectoryReplayBuffer(seed=1)
    buffer.add_trajectories([make_trajectory(2, 1)])
    assert buffer.sample(50)["rewards"].shape == (50,)


def test_numpys_and_torchs_global_generators_are_left_alone() -> None:
    np.random.seed(5)
    torch.manual_seed(5)
    expected = np.random.random(), torch.rand(1).item()
    np.random.seed(5)
    torch.manual_seed(5)
    buffer = TrajectoryReplayBuffer(seed=9)
    buffer.add_trajectories(some(1))
    buffer.sample(4)
    assert (np.random.random(), torch.rand(1).item()) == expected


def test_ready_counts_trajectories_ever_added() -> None:
    buffer = TrajectoryReplayBuffer(sample_window_size=2)
    buffer.add_trajectories(some(5))
    assert buffer.is_ready(5)
    assert not buffer.is_ready(6)
    assert asyncio.run(buffer.is_ready_async(5))
    assert (len(buffer), buffer.window_trajectories) == (5, 2)


@pytest.mark.parametrize("count", [0, -1, 1.5, True, None, "3", 2**24 + 1, 10**18])
def test_a_batch_of_a_size_that_is_none_is_refused(count: Any) -> None:
    buffer = TrajectoryReplayBuffer()
    buffer.add_trajectories(some(1))
    with pytest.raises(InvalidInputError, match="num_chunks is"):
        buffer.sample(count)


def test_an_empty_buffer_says_so() -> None:
    buffer = TrajectoryReplayBuffer()
    with pytest.raises(EmptyBufferError, match="holds no trajectory"):
        buffer.sample(1)
    buffer.add_trajectories([])
    assert len(buffer) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trajectory_format": "npz"}, "trajectory_format is 'npz'"),
        ({"codec": "gzip"}, "codec 'gzip'"),
        ({"sample_window_size": -1}, "sample_window_size is -1"),
        ({"cache_size": "5"}, "cache_size is '5'"),
        ({"cache_bytes": -5}, "cache_bytes is -5"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"auto_save": True, "auto_save_path": "ftp://x/y"}, "scheme 'ftp'"),
    ],
)
def test_bad_options_are_refused_by_name(options: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        TrajectoryReplayBuffer(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": torch.zeros(4, 2, dtype=torch.float64)}, "'rewards' is float64"),
        ({"rewards": torch.zeros(4, 2, 3)}, r"'rewards' is float32 \[3\]"),
        ({"actions": torch.zeros(4, 1, 3)}, "actions has shape"),
        ({"rewards": np.array([[object()]])}, "rewards has dtype object"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_added(
    tmp_path: Path, change: Any, message: str
) -> None:
    with saving(tmp_path, "zarr") as buffer:
        buffer.add_trajectories([make_trajectory(4, 2)])
        good, bad = make_trajectory(4, 2, seed=1), make_trajectory(4, 2, **change)
        with pytest.raises(InvalidInputError, match=message):
            buffer.add_trajectories([good, bad])
        assert len(buffer) == 1
        buffer.flush()
        assert len(list(tmp_path.glob("trajectories/*/*.zip"))) == 1


def test_fields_that_some_lack_are_left_out_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    buffer = TrajectoryReplayBuffer(seed=2, sample_window_size=2)
    full, bare = make_trajectory(4, 2), make_trajectory(4, 2, seed=1, versions=None)
    bare.curr_obs = {"states": bare.curr_obs["states"]}
    extra = make_trajectory(4, 2, seed=2)
    extra.forward_inputs["unheard_of"] = torch.ones(4, 2, 1)
    buffer.add_trajectories([full, bare])
    with caplog.at_level(logging.WARNING, logger="zarrbuf"):
        batch = buffer.sample(12)
        buffer.sample(3)
    assert "versions" not in batch
    assert set(batch["curr_obs"]) == {"states"}
    assert "main_images" in batch["next_obs"]
    said = [r.message for r in caplog.records if "versions" in r.message]
    assert len(said) == 1
    assert_same_batch(batch, draw([full, bare], 12, generator(2)))
    buffer.add_trajectories([extra])
    buffer.sample(4)
    buffer.add_trajectories([make_trajectory(4, 2, seed=3), extra])
    state = generator(11)
    buffer.manual_seed(11)
    expected = draw([make_trajectory(4, 2, seed=3), extra], 5, state)
    assert_same_batch(buffer.sample(5), expected)


@pytest.mark.parametrize("trajectory_format", FORMATS)
def test_members_with_an_underscore_that_rlinf_reads(
    tmp_path: Path, trajectory_format: str
) -> None:
    added = some(3)
    with saving(tmp_path, trajectory_format, sample_window_size=2) as buffer:
        buffer.add_trajectories(added)
        assert buffer._trajectory_id_list == [0, 1, 2]
        entry = buffer._trajectory_index[1]
        assert entry["num_samples"] == 16
        assert tuple(entry["shape"][:2]) == (8, 2)
        assert entry["model_weights_id"] == added[1].model_weights_id
        assert entry["max_episode_length"] == added[1].max_episode_length
        for number in range(3):
            loaded = buffer._load_trajectory(number, added[number].model_weights_id)
            assert_same_trajectory(loaded, added[number])
        flat = buffer._flatten_trajectory(added[2])
        assert_same_batch(flat, flatten(added[2]))


def test_an_unknown_trajectory_is_named_with_those_there_are() -> None:
    buffer = TrajectoryReplayBuffer()
    buffer.add_trajectories(some(3))
    with pytest.raises(TrajectoryNotFoundError, match=r"no trajectory 9.*0 to 2"):
        buffer.load_trajectory(9)


def test_stats_are_numbers_with_the_same_keys_everywhere(tmp_path: Path) -> None:
    empty = TrajectoryReplayBuffer()
    with saving(tmp_path, "zarr") as full:
        full.add_trajectories(some(3))
        full.sample(8)
        stats = full.get_stats(detailed=True)
    assert set(stats) == set(empty.get_stats(detailed=True))
    assert all(type(value) in (int, float) for value in stats.values())
    assert stats["num_trajectories"] == 3
    assert stats["total_samples"] == 4 + 16 + 12
    assert stats["samples"] == 8
    assert set(empty.get_stats()) == {"num_trajectories", "total_samples", "cache_size"}
    assert empty.get_stats().items() <= empty.get_stats(detailed=True).items()
    assert stats["chunks_read"] == 16


def test_only_chunks_that_are_drawn_are_read() -> None:
    buffer = TrajectoryReplayBuffer(seed=0)
    buffer.add_trajectories([make_trajectory(16, 2)])
    buffer.sample(5)
    stats = buffer.get_stats(detailed=True)
    assert stats["chunks_read"] == 2 * 5
    assert stats["bytes_decoded"] == 2 * 5 * 40 * 40 * 3
    assert stats["small_fields_decoded"] == 1
    buffer.sample(5)
    assert buffer.get_stats(detailed=True)["small_fields_decoded"] == 1


def test_small_fields_are_kept_within_the_bound() -> None:
    one = TrajectoryReplayBuffer(seed=0)
    one.add_trajectories([make_trajectory(16, 2)])
    one.sample(1)
    each = int(one.get_stats(detailed=True)["cache_bytes"])
    buffer = TrajectoryReplayBuffer(seed=0, cache_bytes=3 * each)
    buffer.add_trajectories([make_trajectory(16, 2, seed=n) for n in range(8)])
    for _ in range(4):
        buffer.sample(64)
        assert 0 < buffer.get_stats(detailed=True)["cache_bytes"] <= 3 * each
    buffer.clear_cache()
    assert buffer.get_stats(detailed=True)["cache_bytes"] == 0
    off = TrajectoryReplayBuffer(seed=0, enable_cache=False)
    off.add_trajectories([make_trajectory(16, 2)])
    off.sample(4)
    assert off.get_stats(detailed=True)["cache_trajectories"] == 0


def test_clear_forgets_and_goes_on(tmp_path: Path) -> None:
    with saving(tmp_path, "zarr") as buffer:
        buffer.add_trajectories(some(3))
        buffer.sample(3)
        buffer.clear()
        assert (len(buffer), buffer.total_samples) == (0, 0)
        assert not buffer.is_ready(1)
        with pytest.raises(EmptyBufferError):
            buffer.sample(1)
        later = some(2, first=10)
        buffer.add_trajectories(later)
        buffer.manual_seed(4)
        assert_same_batch(buffer.sample(9), draw(later, 9, generator(4)))
    assert len(list(tmp_path.glob("trajectories/*/*.zip"))) == 5
    reopened = saving(tmp_path, "zarr", seed=4)
    assert_same_batch(reopened.sample(9), draw(later, 9, generator(4)))


def test_close_twice_and_go_on(tmp_path: Path) -> None:
    buffer = saving(tmp_path, "zarr")
    buffer.close()
    buffer.add_trajectories(some(2))
    buffer.close()
    buffer.close(wait=False)
    assert len(saving(tmp_path, "zarr")) == 2


def test_the_default_folder_is_below_the_log_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ZARRBUF_LOG_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("RANK", "3")
    with (
        caplog.at_level(logging.INFO, logger="zarrbuf"),
        TrajectoryReplayBuffer(auto_save=True) as buffer,
    ):
        buffer.add_trajectories(some(1))
    folder = tmp_path / "runs" / "replay_buffer" / "rank_3"
    assert (folder / "zarrbuf.json").exists()
    assert sum(str(folder) in record.message for record in caplog.records) == 1


def test_several_buffers_append_to_one_folder_and_see_each_other(
    tmp_path: Path,
) -> None:
    first, second = saving(tmp_path, "zarr"), saving(tmp_path, "zarr")
    for number, buffer in enumerate([first, second, first, second]):
        buffer.add_trajectories([make_trajectory(4, 1, seed=number)])
        buffer.flush()
    first.refresh()
    second.refresh()
    assert first._trajectory_id_list == second._trajectory_id_list == [0, 1, 2, 3]
    first.manual_seed(1)
    second.manual_seed(1)
    assert_same_batch(first.sample(20), leaves(second.sample(20)))


def test_memory_buffers_work_over_fsspec() -> None:
    url = "memory://test_buffer/run"
    with TrajectoryReplayBuffer(auto_save=True, auto_save_path=url) as buffer:
        buffer.add_trajectories(some(2))
        buffer.sample(4)
    again = TrajectoryReplayBuffer(seed=5)
    again.load_checkpoint(url)
    again.manual_seed(5)
    assert_same_batch(again.sample(12), draw(some(2), 12, generator(5)))


@pytest.mark.parametrize("what", ["nothing", "empty folder", "other files"])
def test_loading_what_is_no_buffer_says_so(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x"
    if what != "nothing":
        path.mkdir()
    if what == "other files":
        (path / "notes.txt").write_text("hello")
    buffer = TrajectoryReplayBuffer()
    buffer.add_trajectories(some(1))
    with pytest.raises(NotFoundError, match="holds no replay buffer"):
        buffer.load_checkpoint(path)
    assert len(buffer) == 1


def test_archives_kept_in_memory_anyway_are_opened_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = []
    open_archive = MemoryStore.open_archive

    def count(self: MemoryStore, row: Any) -> Any:
        opened.append(row.trajectory_id)
        return open_archive(self, row)

    monkeypatch.setattr(MemoryStore, "open_archive", count)
    buffer = TrajectoryReplayBuffer(seed=1, cache_bytes=100_000)
    buffer.add_trajectories([make_trajectory(8, 2, seed=n) for n in range(4)])
    for _ in range(5):
        buffer.sample(64)
    assert sorted(opened) == [0, 1, 2, 3]


def test_a_buffer_says_what_it_holds_and_where(tmp_path: Path) -> None:
    buffer = TrajectoryReplayBuffer(sample_window_size=2)
    assert repr(buffer) == "TrajectoryReplayBuffer(empty, in memory, zarr)"
    buffer.add_trajectories([make_trajectory(n, 2) for n in (1, 3, 4)])
    assert repr(buffer) == (
        "TrajectoryReplayBuffer(2 trajectories, ids 1 to 2, T 3 to 4, B 2, 14 samples, "
        "in memory, zarr)"
    )
    folder = tmp_path / "pt"
    with TrajectoryReplayBuffer(
        auto_save=True, auto_save_path=folder, trajectory_format="pt"
    ) as saved:
        assert repr(saved) == f"TrajectoryReplayBuffer(empty, at {folder}, pt)"
        saved.add_trajectories([make_trajectory(4, 2)])
        saved.flush()
        assert "1 trajectories, ids 0 to 0, T 4, B 2, 8 samples, at" in repr(saved)
    buffer.load_checkpoint(folder)
    assert f"8 samples, at {folder}, pt)" in repr(buffer)
