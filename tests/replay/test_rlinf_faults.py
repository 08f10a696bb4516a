"""Each fault that was found in RLinf's buffer, as a test that ours passes.

The numbers are those of docs/rlinf.md. Faults 9 and 14 are of its datasets, 13 and 15
of its scripts.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from support.batches import assert_same_batch, draw, generator, leaves
from support.trajectories import assert_same_trajectory, make_trajectory

from zarrbuf import Trajectory, TrajectoryReplayBuffer
from zarrbuf.errors import InvalidInputError, StorageError
from zarrbuf.stores.logged import LogStore

FORMATS = ("zarr", "pt", "pkl")


def made(first: int, count: int) -> list[Trajectory]:
    """Return trajectories of different T and B."""
    return [
        make_trajectory(4 + 4 * (n % 2), 1 + n % 2, seed=n, image_size=38)
        for n in range(first, first + count)
    ]


def saving(path: Path, trajectory_format: str, **options: Any) -> Any:
    """Return a buffer that saves to a path."""
    return TrajectoryReplayBuffer(
        auto_save=True,
        auto_save_path=path,
        trajectory_format=trajectory_format,
        **options,
    )


def loaded(path: Path, **options: Any) -> TrajectoryReplayBuffer:
    """Return a fresh buffer that loaded a checkpoint."""
    buffer = TrajectoryReplayBuffer(**options)
    buffer.load_checkpoint(path)
    return buffer


@pytest.mark.parametrize("trajectory_format", FORMATS)
def test_1_a_second_run_into_a_folder_continues_it(
    tmp_path: Path, trajectory_format: str
) -> None:
    every = made(0, 5)
    with saving(tmp_path, trajectory_format) as first:
        first.add_trajectories(every[:3])
    with saving(tmp_path, trajectory_format) as second:
        assert len(second) == 3
        second.add_trajectories(every[3:])
    third = loaded(tmp_path)
    assert third._trajectory_id_list == [0, 1, 2, 3, 4]
    for number, trajectory in enumerate(every):
        assert_same_trajectory(third.load_trajectory(number), trajectory)


@pytest.mark.parametrize("trajectory_format", FORMATS)
@pytest.mark.parametrize("drawn_before", [False, True])
def test_2_a_checkpoint_while_saving_holds_the_window(
    tmp_path: Path, trajectory_format: str, drawn_before: bool
) -> None:
    every = made(0, 5)
    buffer = saving(tmp_path / "run", trajectory_format, sample_window_size=3)
    buffer.add_trajectories(every)
    if drawn_before:
        buffer.sample(4)
    buffer.save_checkpoint(tmp_path / "checkpoint")
    expected = leaves(buffer.sample(20))
    again = loaded(tmp_path / "checkpoint", sample_window_size=0)
    assert again._trajectory_id_list == [2, 3, 4]
    assert_same_batch(again.sample(20), expected)


@pytest.mark.parametrize("trajectory_format", FORMATS)
@pytest.mark.parametrize("auto_save", [False, True])
def test_3_saving_after_loading_keeps_what_was_loaded(
    tmp_path: Path, trajectory_format: str, auto_save: bool
) -> None:
    every = made(0, 4)
    with saving(tmp_path / "first", trajectory_format) as buffer:
        buffer.add_trajectories(every[:2])
    again = TrajectoryReplayBuffer(
        trajectory_format=trajectory_format,
        auto_save=auto_save,
        auto_save_path=tmp_path / "second",
    )
    again.load_checkpoint(tmp_path / "first")
    again.add_trajectories(every[2:])
    again.save_checkpoint(tmp_path / "third")
    final = loaded(tmp_path / "third")
    assert final._trajectory_id_list == [0, 1, 2, 3]
    for number, trajectory in enumerate(every):
        assert_same_trajectory(final.load_trajectory(number), trajectory)


@pytest.mark.parametrize("trajectory_format", FORMATS)
def test_4_draws_go_on_after_loading(tmp_path: Path, trajectory_format: str) -> None:
    buffer = TrajectoryReplayBuffer(seed=8, trajectory_format=trajectory_format)
    buffer.add_trajectories(made(0, 3))
    before = leaves(buffer.sample(15))
    buffer.save_checkpoint(tmp_path)
    after = leaves(buffer.sample(15))
    again = loaded(tmp_path)
    assert_same_batch(again.sample(15), after)
    fresh = loaded(tmp_path)
    fresh.manual_seed(8)
    assert_same_batch(fresh.sample(15), before)


def test_4_files_of_rlinf_start_at_their_seed(tmp_path: Path) -> None:
    buffer = TrajectoryReplayBuffer(seed=77, trajectory_format="pt")
    every = made(0, 2)
    buffer.add_trajectories(every)
    buffer.sample(3)
    buffer.save_checkpoint(tmp_path)
    metadata = json.loads((tmp_path / "metadata.json").read_text())
    del metadata["zarrbuf"]
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    again = loaded(tmp_path, seed=1)
    assert_same_batch(again.sample(15), draw(every, 15, generator(77)))


@pytest.mark.parametrize("trajectory_format", FORMATS)
def test_5_loading_into_a_used_buffer_replaces_what_it_held(
    tmp_path: Path, trajectory_format: str
) -> None:
    with saving(tmp_path / "other", trajectory_format, seed=6) as other:
        other.add_trajectories(made(10, 3))
    buffer = saving(tmp_path / "used", trajectory_format, sample_window_size=2)
    buffer.add_trajectories(made(0, 6))
    buffer.sample(9)
    buffer.load_checkpoint(tmp_path / "other")
    assert_same_batch(buffer.sample(12), draw(made(11, 2), 12, generator(6)))
    buffer.add_trajectories(made(20, 1))
    # Ids go on after the highest of both, so none in "used" is given twice.
    assert buffer._trajectory_id_list == [0, 1, 2, 6]
    buffer.manual_seed(2)
    newest = [*made(12, 1), *made(20, 1)]
    assert_same_batch(buffer.sample(12), draw(newest, 12, generator(2)))


def test_6_keys_that_come_and_go(caplog: pytest.LogCaptureFixture) -> None:
    buffer = TrajectoryReplayBuffer(seed=1)
    first, second = made(0, 2)
    second.prev_logprobs = None
    second.curr_obs["depth_of_test_6"] = torch.ones(8, 2, 4)
    second.next_obs["depth_of_test_6"] = torch.ones(8, 2, 4)
    buffer.add_trajectories([first])
    assert "prev_logprobs" in buffer.sample(1)
    buffer.add_trajectories([second])
    with caplog.at_level(logging.WARNING, logger="zarrbuf"):
        batch = buffer.sample(64)
    assert "prev_logprobs" not in batch
    assert "depth_of_test_6" not in batch["curr_obs"]
    assert "depth_of_test_6" in caplog.text
    wrong = made(2, 1)[0]
    wrong.curr_obs["states"] = wrong.curr_obs["states"].double()
    with pytest.raises(InvalidInputError, match="'curr_obs/states' is float64"):
        buffer.add_trajectories([wrong])
    assert len(buffer) == 2


@pytest.mark.parametrize("trajectory_format", FORMATS)
@pytest.mark.parametrize("num_epochs", [1, 2])
def test_7_values_with_extra_rows_are_aligned(
    tmp_path: Path, trajectory_format: str, num_epochs: int
) -> None:
    steps = torch.arange(8.0)[:, None].expand(8, 2).clone()
    length = 8 // num_epochs
    values, dones = [], []
    for epoch in range(num_epochs):
        own = steps[epoch * length : (epoch + 1) * length]
        values += [own, torch.full((1, 2), -1.0)]
        dones += [torch.ones(1, 2, dtype=torch.bool), own % 2 == 1]
    trajectory = make_trajectory(8, 2, image_size=4)
    trajectory.rewards = steps
    trajectory.prev_values = torch.cat(values)[..., None]
    trajectory.dones = torch.cat(dones)
    with saving(tmp_path, trajectory_format) as buffer:
        buffer.add_trajectories([trajectory, trajectory])
    batch = loaded(tmp_path).sample(100)
    assert torch.equal(batch["prev_values"][:, 0], batch["rewards"])
    assert torch.equal(batch["dones"], batch["rewards"] % 2 == 1)


@pytest.mark.parametrize("trajectory_format", FORMATS)
def test_8_adding_after_clear_cache(tmp_path: Path, trajectory_format: str) -> None:
    with saving(tmp_path, trajectory_format) as buffer:
        buffer.add_trajectories(made(0, 1))
        buffer.clear_cache()
        buffer.add_trajectories(made(1, 1))
        buffer.sample(2)
    assert len(loaded(tmp_path)) == 2


def test_10_evicted_trajectories_count_and_are_not_drawn(tmp_path: Path) -> None:
    for options in ({}, {"auto_save": True, "auto_save_path": tmp_path}):
        buffer = TrajectoryReplayBuffer(sample_window_size=2, **options)
        buffer.add_trajectories(made(0, 5))
        newest = sum(t.actions.shape[0] * t.actions.shape[1] for t in made(3, 2))
        every = sum(t.actions.shape[0] * t.actions.shape[1] for t in made(0, 5))
        stats = buffer.get_stats(detailed=True)
        assert (len(buffer), buffer.size, stats["num_trajectories"]) == (5, 5, 5)
        assert buffer.total_samples == stats["total_samples"] == every
        assert buffer.window_trajectories == stats["window_trajectories"] == 2
        assert buffer.window_samples == stats["window_samples"] == newest
        buffer.sample_window_size = 1
        assert buffer.window_trajectories == 1
        buffer.close()


def failing_writer(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make the writing of archives fail while the returned list is not empty."""
    faults = ["disk on fire"]
    write = LogStore._write

    def fail(self: LogStore, items: Any) -> None:
        if faults:
            raise StorageError(f"{items[0].row.path}: {faults[0]}")
        write(self, items)

    monkeypatch.setattr(LogStore, "_write", fail)
    return faults


@pytest.mark.parametrize("call", ["add", "flush", "save", "close", "load", "clear"])
def test_11_errors_of_the_background_writer_reach_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    faults = failing_writer(monkeypatch)
    buffer = saving(tmp_path / "run", "zarr", seed=1)
    every = made(0, 2)
    buffer.add_trajectories(every[:1])
    while buffer._live.writer._is_draining:
        pass
    calls: dict[str, Any] = {
        "add": lambda: buffer.add_trajectories(every[1:]),
        "flush": buffer.flush,
        "save": lambda: buffer.save_checkpoint(tmp_path / "checkpoint"),
        "close": buffer.close,
        "load": lambda: buffer.load_checkpoint(tmp_path / "run"),
        "clear": buffer.clear,
    }
    with pytest.raises(StorageError, match=r"trajectories/.*disk on fire"):
        calls[call]()
    # Nothing is lost: it can be drawn, and is saved once the disk works again.
    assert_same_batch(buffer.sample(5), draw(every[:1], 5, generator(1)))
    faults.clear()
    buffer.flush()
    assert loaded(tmp_path / "run")._trajectory_id_list == [0]


@pytest.mark.parametrize("trajectory_format", FORMATS)
def test_12_an_add_writes_no_more_with_more_trajectories(
    tmp_path: Path, trajectory_format: str
) -> None:
    if trajectory_format != "zarr":
        # RLinf's index is one file; it is replaced whole, so a crash leaves the old
        # one or the new one.
        with saving(tmp_path, trajectory_format) as buffer:
            buffer.add_trajectories(made(0, 2))
            for name in ("metadata.json", "trajectory_index.json"):
                inode = (tmp_path / name).stat().st_ino
                buffer.add_trajectories(made(2, 1))
                buffer.flush()
                assert (tmp_path / name).stat().st_ino != inode
        return
    with saving(tmp_path, "zarr") as buffer:
        sizes = []
        for number in range(12):
            buffer.add_trajectories(made(2 * (number % 4), 1))
            buffer.flush()
            newest = max((tmp_path / "manifest").iterdir())
            sizes.append(newest.stat().st_size)
    assert max(sizes[1:]) <= min(sizes[1:]) + 40  # digits of ids and of times


@pytest.mark.parametrize("trajectory_format", FORMATS)
def test_13_a_checkpoint_is_read_with_any_number_of_ranks(
    tmp_path: Path, trajectory_format: str
) -> None:
    every = made(0, 5)
    buffer = TrajectoryReplayBuffer(trajectory_format=trajectory_format)
    buffer.add_trajectories(every)
    buffer.save_checkpoint(tmp_path)
    for world_size in (1, 2, 3, 7):
        found = []
        for rank in range(world_size):
            part = TrajectoryReplayBuffer()
            part.load_checkpoint(tmp_path, True, rank, world_size)
            found += part._trajectory_id_list
            counter = max(part._trajectory_id_list, default=-1) + 1
            assert part._trajectory_counter == counter
        assert found == [0, 1, 2, 3, 4]
