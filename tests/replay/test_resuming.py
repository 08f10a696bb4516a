"""Runs that resume, share a folder, fork, and sample while they change."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from support.batches import assert_same_batch, draw, generator

from zarrbuf import Trajectory, TrajectoryReplayBuffer, list_buffer, verify
from zarrbuf.errors import InvalidInputError, StorageError
from zarrbuf.rlinf.files import stage_file
from zarrbuf.storage.local import LocalStorage

FORMATS = ("zarr", "pt", "pkl")


def tiny(value: float, *, num_steps: int = 2, weights: str = "w") -> Trajectory:
    """Return a trajectory that its rewards tell from others."""
    rewards = torch.full((num_steps, 2, 1), float(value))
    return Trajectory(
        model_weights_id=weights, rewards=rewards, actions=rewards.clone()
    )


def saving(path: Path, trajectory_format: str = "zarr", **options: Any) -> Any:
    """Return a buffer that saves to a path."""
    return TrajectoryReplayBuffer(
        auto_save=True,
        auto_save_path=path,
        trajectory_format=trajectory_format,
        **options,
    )


def values(buffer: TrajectoryReplayBuffer) -> dict[int, float]:
    """Return trajectory id -> the value that tells it."""
    found = {}
    for number in buffer._trajectory_id_list:
        rewards = buffer.load_trajectory(number).rewards
        assert rewards is not None
        found[number] = float(rewards.flatten()[0])
    return found


def reopened(path: Path) -> dict[int, float]:
    """Return what a fresh buffer finds at a path."""
    buffer = TrajectoryReplayBuffer()
    buffer.load_checkpoint(path)
    return values(buffer)


@pytest.mark.parametrize("trajectory_format", FORMATS)
def test_resuming_from_an_older_checkpoint_overwrites_nothing(
    tmp_path: Path, trajectory_format: str
) -> None:
    own, checkpoint = tmp_path / "own", tmp_path / "checkpoint"
    with saving(own, trajectory_format) as buffer:
        buffer.add_trajectories([tiny(n) for n in range(3)])
        buffer.save_checkpoint(checkpoint)
        buffer.add_trajectories([tiny(n) for n in range(3, 6)])
    with saving(own, trajectory_format) as buffer:
        buffer.load_checkpoint(checkpoint)
        buffer.add_trajectories([tiny(100)])
        assert values(buffer) == {0: 0, 1: 1, 2: 2, 6: 100}
    assert reopened(own) == {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 100}


@pytest.mark.parametrize("trajectory_format", FORMATS)
def test_a_checkpoint_over_another_of_the_same_names_holds_the_new_data(
    tmp_path: Path, trajectory_format: str
) -> None:
    for value in (1, 2):
        buffer = TrajectoryReplayBuffer(trajectory_format=trajectory_format)
        buffer.add_trajectories([tiny(value)])
        buffer.save_checkpoint(tmp_path)
        assert reopened(tmp_path) == {0: value}


@pytest.mark.parametrize("trajectory_format", FORMATS)
def test_resuming_and_saving_in_one_place(
    tmp_path: Path, trajectory_format: str
) -> None:
    for run in range(3):
        buffer = TrajectoryReplayBuffer(trajectory_format=trajectory_format)
        if run:
            buffer.load_checkpoint(tmp_path)
        buffer.add_trajectories([tiny(run)])
        buffer.save_checkpoint(tmp_path)
    assert reopened(tmp_path) == {0: 0, 1: 1, 2: 2}


def test_a_failed_save_of_files_leaves_the_earlier_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = TrajectoryReplayBuffer(trajectory_format="pt")
    first.add_trajectories([tiny(n) for n in range(3)])
    first.save_checkpoint(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    second = TrajectoryReplayBuffer(trajectory_format="pt")
    second.add_trajectories([tiny(n + 10, num_steps=4) for n in range(3)])
    staged = []

    def fail_later(path: Path, data: bytes) -> Path:
        staged.append(path)
        if len(staged) == 2:
            raise StorageError(f"cannot write {path}: No space left on device")
        return stage_file(path, data)

    monkeypatch.setattr("zarrbuf.replay.run_checkpoint.stage_file", fail_later)
    with pytest.raises(StorageError, match="No space left"):
        second.save_checkpoint(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("trajectory_format", ["pt", "pkl"])
def test_a_checkpoint_where_files_are_saved_keeps_their_index(
    tmp_path: Path, trajectory_format: str
) -> None:
    with saving(tmp_path, trajectory_format, sample_window_size=2, seed=3) as buffer:
        buffer.add_trajectories([tiny(n) for n in range(5)])
        buffer.sample(3)
        buffer.save_checkpoint(tmp_path)
        buffer.add_trajectories([tiny(5)])
        buffer.flush()
        state = json.loads((tmp_path / "metadata.json").read_text())["zarrbuf"]
        assert state["generator"]
    assert reopened(tmp_path) == {n: n for n in range(6)}


def test_two_runs_in_one_window_get_ids_of_their_own(tmp_path: Path) -> None:
    source = TrajectoryReplayBuffer()
    source.add_trajectories([tiny(n) for n in range(5)])
    source.save_checkpoint(tmp_path / "source")
    buffer = saving(tmp_path / "own")
    buffer.load_checkpoint(tmp_path / "source")
    with saving(tmp_path / "own") as other:
        other.add_trajectories([tiny(10 + n) for n in range(3)])
    buffer.refresh()
    assert len(buffer) == 8
    assert buffer.is_ready(8)
    assert not buffer.is_ready(9)
    buffer.save_checkpoint(tmp_path / "both")
    expected = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 10, 6: 11, 7: 12}
    assert reopened(tmp_path / "both") == expected


def test_own_rows_stay_when_another_process_clears(tmp_path: Path) -> None:
    source = TrajectoryReplayBuffer()
    source.add_trajectories([tiny(n) for n in range(2)])
    source.save_checkpoint(tmp_path / "source")
    with saving(tmp_path / "own") as other:
        other.add_trajectories([tiny(n) for n in range(3)])
    buffer = saving(tmp_path / "own")
    buffer.load_checkpoint(tmp_path / "source")
    with saving(tmp_path / "own") as other:
        other.clear()
    buffer.add_trajectories([tiny(7), tiny(8)])
    buffer.flush()
    assert sorted(values(buffer).values()) == [0, 1, 7, 8]


def test_a_rewritten_folder_is_other_data(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for value in (1, 2):
        run = TrajectoryReplayBuffer(trajectory_format="pt")
        run.add_trajectories([tiny(value, num_steps=1 + value)])
        run.save_checkpoint(source)
        buffer = TrajectoryReplayBuffer()
        buffer.load_checkpoint(source)
        for _ in range(2):
            buffer.save_checkpoint(target)
            assert reopened(target) == {0: value}
    assert verify(target).is_sound


@pytest.mark.parametrize("trajectory_format", ["zarr", "pt", "memory"])
def test_sampling_goes_on_while_the_buffer_changes(
    tmp_path: Path, trajectory_format: str
) -> None:
    if trajectory_format == "memory":
        buffer = TrajectoryReplayBuffer(sample_window_size=3)
    else:
        buffer = saving(tmp_path / "own", trajectory_format, sample_window_size=3)
    buffer.add_trajectories([tiny(0)])
    errors: Counter[str] = Counter()
    stop = threading.Event()

    def keep_sampling() -> None:
        while not stop.is_set():
            try:
                batch = buffer.sample(16)
                assert torch.equal(batch["rewards"], batch["actions"])
            except Exception as exc:
                errors[repr(exc)] += 1

    def keep_saving() -> None:
        while not stop.is_set():
            try:
                buffer.refresh()
                buffer.save_checkpoint(tmp_path / "checkpoint")
            except Exception as exc:
                errors[repr(exc)] += 1

    threads = [threading.Thread(target=keep_sampling) for _ in range(2)]
    threads.append(threading.Thread(target=keep_saving))
    for thread in threads:
        thread.start()
    for number in range(1, 60):
        buffer.add_trajectories([tiny(number)])
    stop.set()
    for thread in threads:
        thread.join()
    buffer.close()
    assert errors == Counter()
    assert [*values(buffer).values()][-3:] == [57, 58, 59]


def test_a_forked_child_samples_and_saves(tmp_path: Path) -> None:
    buffer = saving(tmp_path, seed=2)
    buffer.add_trajectories([tiny(0)])
    buffer.flush()
    for number in range(1, 4):
        child = os.fork()
        if not child:
            signal.alarm(30)
            code = 1
            try:
                buffer.sample(4)
                buffer.add_trajectories([tiny(number)])
                buffer.flush()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    buffer.refresh()
    assert sorted(values(buffer).values()) == [0, 1, 2, 3]
    buffer.close()


def test_a_steady_producer_does_not_hold_up_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_all = LocalStorage.create_all

    def slow(self: LocalStorage, objects: Any) -> Any:
        time.sleep(0.01)
        return create_all(self, objects)

    monkeypatch.setattr(LocalStorage, "create_all", slow)
    buffer = saving(tmp_path)
    buffer.add_trajectories([tiny(0)])
    stop = threading.Event()

    def produce() -> None:
        for number in range(1, 400):
            if stop.is_set():
                return
            buffer.add_trajectories([tiny(number)])
            time.sleep(0.002)

    thread = threading.Thread(target=produce)
    thread.start()
    buffer.flush()
    was_producing = thread.is_alive()
    stop.set()
    thread.join()
    buffer.close()
    assert was_producing
    assert list_buffer(tmp_path).rows.trajectory_ids[0] == 0


def test_arrays_of_changing_length_share_a_schema(tmp_path: Path) -> None:
    with saving(tmp_path) as buffer:
        for number in range(5):
            trajectory = tiny(number)
            trajectory.forward_inputs = {"tokens": torch.arange(number)}
            buffer.add_trajectories([trajectory])
    schemas = list_buffer(tmp_path).details["schemas"]
    assert len(schemas) == 1
    tokens = buffer.load_trajectory(3).forward_inputs["tokens"]
    assert torch.equal(tokens, torch.arange(3))


@pytest.mark.parametrize(
    "call",
    [
        lambda path: TrajectoryReplayBuffer(seed=2**70),
        lambda path: TrajectoryReplayBuffer(seed="x"),  # type: ignore[arg-type]
        lambda path: TrajectoryReplayBuffer().load_checkpoint(None),  # type: ignore[arg-type]
        lambda path: TrajectoryReplayBuffer().load_checkpoint("file://host/x"),
        lambda path: TrajectoryReplayBuffer().load_checkpoint("file:///x%00y"),
        lambda path: list_buffer("file://"),
        lambda path: TrajectoryReplayBuffer().load_checkpoint(path, True, 3, 2),
    ],
)
def test_odd_arguments_are_refused_by_name(tmp_path: Path, call: Any) -> None:
    with pytest.raises(InvalidInputError):
        call(tmp_path)


def test_a_name_that_is_too_long_is_a_storage_error() -> None:
    calls: list[Any] = [
        list_buffer,
        verify,
        TrajectoryReplayBuffer().load_checkpoint,
        saving,
        lambda path: saving(path, "pt"),
    ]
    for call in calls:
        with pytest.raises(StorageError, match="File name too long"):
            call("a" * 300)


def test_a_local_url_may_hold_what_other_urls_split(tmp_path: Path) -> None:
    path = tmp_path / "a?b#c d%"
    with saving(path, seed=4) as buffer:
        buffer.add_trajectories([tiny(1)])
    again = TrajectoryReplayBuffer()
    again.load_checkpoint(f"file://{str(path).replace('%', '%25')}")
    assert_same_batch(again.sample(3), draw([tiny(1)], 3, generator(4)))


def test_a_forked_child_draws_what_its_parent_is_saving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go = threading.Event()
    create_all = LocalStorage.create_all

    def wait(self: LocalStorage, objects: Any) -> Any:
        assert may_go.wait(30)
        return create_all(self, objects)

    monkeypatch.setattr(LocalStorage, "create_all", wait)
    buffer = saving(tmp_path)
    buffer.add_trajectories([tiny(5)])
    child = os.fork()
    if not child:
        signal.alarm(30)
        code = 1
        try:
            code = int(not (buffer.sample(4)["rewards"] == 5).all())
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    may_go.set()
    buffer.refresh()
    assert values(buffer) == {0: 5}
    buffer.close()
