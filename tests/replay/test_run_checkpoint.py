"""Checkpoints of a run: what they hold, what they share, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.batches import assert_same_batch, draw, generator, leaves
from support.trajectories import assert_same_trajectory, make_trajectory

from zarrbuf import Trajectory, TrajectoryReplayBuffer, list_buffer, verify
from zarrbuf.errors import InvalidInputError, StorageError
from zarrbuf.storage.contract import Outcome
from zarrbuf.storage.local import LocalStorage


def made(first: int, count: int) -> list[Trajectory]:
    """Return trajectories with big fields."""
    return [make_trajectory(4, 2, seed=n) for n in range(first, first + count)]


def archives(path: Path) -> dict[str, int]:
    """Return the archives below a root with their inodes."""
    return {file.name: file.stat().st_ino for file in path.glob("trajectories/*/*.zip")}


@pytest.mark.parametrize("auto_save", [False, True])
def test_saving_again_moves_the_window_and_writes_only_what_is_new(
    tmp_path: Path, auto_save: bool
) -> None:
    target = tmp_path / "checkpoint"
    buffer = TrajectoryReplayBuffer(
        sample_window_size=3, auto_save=auto_save, auto_save_path=tmp_path / "run"
    )
    buffer.add_trajectories(made(0, 3))
    buffer.save_checkpoint(target)
    before = archives(target)
    buffer.add_trajectories(made(3, 2))
    buffer.save_checkpoint(target)
    after = archives(target)
    assert len(after) == 5
    assert {name: after[name] for name in before} == before
    assert list_buffer(target).rows.trajectory_ids.tolist() == [2, 3, 4]
    again = TrajectoryReplayBuffer()
    again.load_checkpoint(target)
    assert_same_batch(again.sample(9), leaves(buffer.sample(9)))
    assert verify(target).is_sound
    if auto_save:
        run = archives(tmp_path / "run")
        assert {name: run[name] for name in after} == after  # linked, not copied


def test_without_links_archives_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalStorage, "link_from", lambda *_: False)
    buffer = TrajectoryReplayBuffer(auto_save=True, auto_save_path=tmp_path / "run")
    buffer.add_trajectories(made(0, 2))
    buffer.save_checkpoint(tmp_path / "checkpoint")
    run, copy = archives(tmp_path / "run"), archives(tmp_path / "checkpoint")
    assert set(run) == set(copy)
    assert not set(run.values()) & set(copy.values())
    assert verify(tmp_path / "checkpoint").is_sound


def test_a_checkpoint_over_another_run_replaces_its_list(tmp_path: Path) -> None:
    first = TrajectoryReplayBuffer()
    first.add_trajectories(made(0, 3))
    first.save_checkpoint(tmp_path)
    second = TrajectoryReplayBuffer(seed=3)
    second.add_trajectories(made(10, 2))
    second.save_checkpoint(tmp_path)
    again = TrajectoryReplayBuffer()
    again.load_checkpoint(tmp_path)
    assert again._trajectory_id_list == [0, 1]
    assert_same_batch(again.sample(9), draw(made(10, 2), 9, generator(3)))
    assert verify(tmp_path).is_sound


def test_a_checkpoint_where_the_run_saves_keeps_all_and_the_state(
    tmp_path: Path,
) -> None:
    buffer = TrajectoryReplayBuffer(
        seed=5, auto_save=True, auto_save_path=tmp_path, sample_window_size=2
    )
    buffer.add_trajectories(made(0, 4))
    buffer.sample(3)
    buffer.save_checkpoint(tmp_path)
    expected = leaves(buffer.sample(8))
    again = TrajectoryReplayBuffer(sample_window_size=2)
    again.load_checkpoint(tmp_path)
    assert again._trajectory_id_list == [0, 1, 2, 3]
    assert_same_batch(again.sample(8), expected)


def test_a_checkpoint_of_loaded_and_own_goes_elsewhere(tmp_path: Path) -> None:
    with TrajectoryReplayBuffer(
        auto_save=True, auto_save_path=tmp_path / "old"
    ) as buffer:
        buffer.add_trajectories(made(0, 2))
    buffer = TrajectoryReplayBuffer(auto_save=True, auto_save_path=tmp_path / "new")
    buffer.load_checkpoint(tmp_path / "old")
    buffer.add_trajectories(made(2, 1))
    with pytest.raises(InvalidInputError, match="save the checkpoint elsewhere"):
        buffer.save_checkpoint(tmp_path / "new")
    buffer.save_checkpoint(tmp_path / "checkpoint")
    ids = list_buffer(tmp_path / "checkpoint").rows.trajectory_ids.tolist()
    assert ids == [0, 1, 2]


def test_more_than_a_thousand_trajectories_are_one_commit(tmp_path: Path) -> None:
    buffer = TrajectoryReplayBuffer(sample_window_size=0, seed=1)
    small = [make_trajectory(1, 1, seed=n, image_size=1) for n in range(1003)]
    buffer.add_trajectories(small)
    buffer.save_checkpoint(tmp_path)
    listing = list_buffer(tmp_path)
    assert listing.rows.trajectory_ids.tolist() == list(range(1003))
    assert listing.details["version"] == 2
    assert len(list((tmp_path / "segment").iterdir())) == 1
    again = TrajectoryReplayBuffer(sample_window_size=0)
    again.load_checkpoint(tmp_path)
    assert_same_batch(again.sample(30), leaves(buffer.sample(30)))


@pytest.mark.parametrize("trajectory_format", ["pt", "pkl"])
def test_rlinf_folders_hold_the_window_and_rlinfs_json(
    tmp_path: Path, trajectory_format: str
) -> None:
    buffer = TrajectoryReplayBuffer(
        seed=9, sample_window_size=2, trajectory_format=trajectory_format
    )
    buffer.add_trajectories(made(0, 3))
    buffer.save_checkpoint(tmp_path)
    metadata = json.loads((tmp_path / "metadata.json").read_text())
    index = json.loads((tmp_path / "trajectory_index.json").read_text())
    assert {k: metadata[k] for k in metadata if k != "zarrbuf"} == {
        "trajectory_format": trajectory_format,
        "size": 3,
        "total_samples": 24,
        "trajectory_counter": 3,
        "seed": 9,
    }
    assert index["trajectory_id_list"] == [1, 2]
    assert index["trajectory_index"]["2"] == {
        "num_samples": 8,
        "trajectory_id": 2,
        "max_episode_length": 4,
        "shape": [4, 2, 3],
        "model_weights_id": made(2, 1)[0].model_weights_id,
    }
    name = f"trajectory_2_{made(2, 1)[0].model_weights_id}.{trajectory_format}"
    assert (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("first", "second"), [("zarr", "pt"), ("pt", "zarr"), ("pt", "pkl")]
)
def test_another_format_at_the_place_is_refused(
    tmp_path: Path, first: str, second: str
) -> None:
    for number, name in enumerate((first, second)):
        buffer = TrajectoryReplayBuffer(trajectory_format=name)
        buffer.add_trajectories(made(0, 1))
        if not number:
            buffer.save_checkpoint(tmp_path)
            continue
        before = sorted(path.name for path in tmp_path.rglob("*"))
        with pytest.raises(InvalidInputError, match=r"holds|trajectory_format is"):
            buffer.save_checkpoint(tmp_path)
        with pytest.raises(InvalidInputError, match=r"holds|trajectory_format is"):
            TrajectoryReplayBuffer(
                trajectory_format=name, auto_save=True, auto_save_path=tmp_path
            )
        assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_failed_checkpoint_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = TrajectoryReplayBuffer(seed=1)
    buffer.add_trajectories(made(0, 2))
    buffer.save_checkpoint(tmp_path)
    buffer.add_trajectories(made(2, 3))
    create, calls = LocalStorage.create, []

    def fail_later(self: LocalStorage, name: str, data: bytes) -> Outcome:
        calls.append(name)
        if len(calls) > 1:
            raise StorageError(f"cannot create {name}: no space left")
        return create(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "create", fail_later)
        with pytest.raises(StorageError, match="no space left"):
            buffer.save_checkpoint(tmp_path)
    assert list_buffer(tmp_path).rows.trajectory_ids.tolist() == [0, 1]
    assert verify(tmp_path).is_sound
    buffer.save_checkpoint(tmp_path)
    assert list_buffer(tmp_path).rows.trajectory_ids.tolist() == [0, 1, 2, 3, 4]


def test_what_is_loaded_from_other_formats_is_saved(tmp_path: Path) -> None:
    every = made(0, 2)
    paths: list[Any] = []
    for name in ("pt", "zarr", "pkl"):
        buffer = TrajectoryReplayBuffer(trajectory_format=name)
        if paths:
            buffer.load_checkpoint(paths[-1])
        else:
            buffer.add_trajectories(every)
        paths.append(tmp_path / name)
        buffer.save_checkpoint(paths[-1])
    final = TrajectoryReplayBuffer()
    final.load_checkpoint(paths[-1])
    for number, trajectory in enumerate(every):
        assert_same_trajectory(final.load_trajectory(number), trajectory)
