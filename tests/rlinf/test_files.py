"""RLinf's folders: their JSON, their file names, their files; odd and hostile ones."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.paths import DATA
from support.trajectories import assert_same_trajectory, make_trajectory

from zarrbuf import Trajectory, TrajectoryReplayBuffer
from zarrbuf.errors import FormatError, InvalidInputError, NotFoundError, StorageError
from zarrbuf.rlinf.files import (
    encode_trajectory_file,
    read_trajectory_file,
    replace_file,
)
from zarrbuf.rlinf.index import read_index
from zarrbuf.stores.rlinf_folder import RlinfStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "folder"
    shutil.copytree(DATA / "rlinf_ragged_pt", target)
    return target


def edit(path: Path, change: Any) -> None:
    """Change a JSON file through a function."""
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))


@pytest.mark.parametrize("file_format", ["pt", "pkl"])
def test_files_come_back_as_they_were_and_load_as_rlinf_loads_them(
    tmp_path: Path, file_format: Any
) -> None:
    trajectory = make_trajectory(4, 2, extra_epochs=2)
    trajectory.versions = None
    path = tmp_path / f"trajectory_0_x.{file_format}"
    path.write_bytes(encode_trajectory_file(trajectory, file_format))
    assert_same_trajectory(read_trajectory_file(path), trajectory)
    if file_format == "pt":
        value = torch.load(path, weights_only=False)
    else:
        value = pickle.loads(path.read_bytes())
    assert type(value) is dict
    assert "versions" not in value
    assert_same_trajectory(Trajectory(**value), trajectory)


def test_the_old_name_of_the_index_is_read(folder: Path) -> None:
    expected = read_index(folder).rows
    (folder / "trajectory_index.json").rename(folder / "trajector_index.json")
    assert read_index(folder).rows == expected


def test_a_weights_id_in_the_file_name_may_differ_from_the_index(folder: Path) -> None:
    old = next(folder.glob("trajectory_3_*"))
    old.rename(folder / "trajectory_3_other_weights.pt")
    index = read_index(folder)
    assert index.names[3] == "trajectory_3_other_weights.pt"
    rewards = RlinfStore.open(folder).read_trajectory(index.rows[3]).rewards
    assert rewards is not None
    assert rewards.shape[:2] == (16, 2)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("metadata.json", lambda v: v.update(trajectory_format="h5"), "'h5'"),
        ("metadata.json", lambda v: v.update(seed="x"), "seed is 'x'"),
        ("trajectory_index.json", lambda v: {"trajectory_index": {}}, "missing"),
        ("trajectory_index.json", lambda v: {"a": 1}, "missing"),
        (
            "trajectory_index.json",
            lambda v: v["trajectory_id_list"].append(77),
            "trajectory 77 has no entry",
        ),
        (
            "trajectory_index.json",
            lambda v: v["trajectory_id_list"].append(0),
            "twice",
        ),
        (
            "trajectory_index.json",
            lambda v: v["trajectory_index"]["1"].update(shape=[1]),
            "entry 1",
        ),
        (
            "trajectory_index.json",
            lambda v: v["trajectory_index"]["1"].update(num_samples=3),
            "num_samples",
        ),
        (
            "trajectory_index.json",
            lambda v: v["trajectory_index"]["1"].update(
                model_weights_id="../../etc/passwd"
            ),
            "entry 1",
        ),
    ],
)
def test_a_malformed_index_is_named(
    folder: Path, file: str, change: Any, words: str
) -> None:
    edit(folder / file, change)
    with pytest.raises(FormatError, match=words):
        read_index(folder)


def test_a_missing_file_or_json_is_named(folder: Path) -> None:
    shutil.move(folder / "metadata.json", folder / "m")
    with pytest.raises(NotFoundError, match=r"metadata\.json is missing"):
        read_index(folder)
    shutil.move(folder / "m", folder / "metadata.json")
    whole = read_index(folder)
    next(folder.glob(f"trajectory_{whole.order[2]}_*")).unlink()
    found = read_index(folder)
    assert [row.trajectory_id for row in found.evicted] == [whole.order[2]]
    assert found.counts == whole.counts
    newest = whole.order[-1]
    next(folder.glob(f"trajectory_{newest}_*")).unlink()
    with pytest.raises(FileNotFoundError, match=rf"trajectory_{newest}_.*repair"):
        read_index(folder)


@pytest.mark.parametrize(
    "value",
    [
        [1, 2],
        {"rewards": torch.ones(2, 1), "unheard_of": {"a": torch.ones(2, 1)}},
        {"rewards": Trajectory()},
        {"rewards": os.system},
    ],
)
@pytest.mark.parametrize("file_format", ["pt", "pkl"])
def test_files_that_hold_something_else_are_refused(
    tmp_path: Path, value: Any, file_format: str
) -> None:
    path = tmp_path / f"trajectory_0_x.{file_format}"
    if file_format == "pt":
        torch.save(value, path)
    else:
        path.write_bytes(pickle.dumps(value))
    with pytest.raises(FormatError, match="trajectory_0_x"):
        read_trajectory_file(path)


def test_a_file_of_another_shape_than_the_index_is_refused(folder: Path) -> None:
    first = next(folder.glob("trajectory_0_*"))
    second = next(folder.glob("trajectory_3_*"))
    shutil.copyfile(first, second)
    buffer = TrajectoryReplayBuffer()
    buffer.load_checkpoint(folder)
    with pytest.raises(FormatError, match=r"trajectory_3_.*the index says T=16, B=2"):
        buffer.sample(100)


def test_fields_that_differ_between_files_are_named(folder: Path) -> None:
    path = next(folder.glob("trajectory_1_*"))
    value = torch.load(path, weights_only=True)
    value["rewards"] = value["rewards"].double()
    torch.save(value, path)
    buffer = TrajectoryReplayBuffer()
    buffer.load_checkpoint(folder)
    with pytest.raises(InvalidInputError, match="'rewards' is float"):
        buffer.sample(4)


def test_archives_made_from_files_are_kept_within_the_bound(folder: Path) -> None:
    whole = TrajectoryReplayBuffer()
    whole.load_checkpoint(folder)
    whole.sample(100)
    kept = whole._reader.archives.num_bytes
    tight = TrajectoryReplayBuffer(cache_bytes=kept // 2)
    tight.load_checkpoint(folder)
    for _ in range(3):
        tight.sample(100)
        assert tight._reader.archives.num_bytes <= kept // 2


def test_files_whose_index_was_lost_keep_their_names(folder: Path) -> None:
    (folder / "trajectory_index.json").unlink()
    (folder / "metadata.json").unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with TrajectoryReplayBuffer(
        auto_save=True, auto_save_path=folder, trajectory_format="pt"
    ) as buffer:
        buffer.add_trajectories([make_trajectory(4, 1)])
        assert buffer._trajectory_id_list == [5]
    for name, data in before.items():
        assert (folder / name).read_bytes() == data


def test_replacing_a_file_is_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    replace_file(path, b"old")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(StorageError, match=r"x\.json: No space left"):
                replace_file(path, b"new")
        assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
        assert path.read_bytes() == b"old"


def test_only_one_format_a_folder(folder: Path) -> None:
    with pytest.raises(InvalidInputError, match="holds pt files"):
        RlinfStore.open_or_create(folder, seed=1, file_format="pkl")
    with pytest.raises(NotFoundError, match="holds no replay buffer of RLinf"):
        RlinfStore.open(folder / "nowhere")


@pytest.mark.parametrize(
    ("where", "number"),
    [
        *itertools.product(["id", "counter", "seed"], [2**62, 2**63, 2**64]),
        *itertools.product(["length"], [2**63, 2**64]),
    ],
)
def test_numbers_beyond_64_bits_are_refused(
    folder: Path, number: int, where: str
) -> None:
    def change_index(value: Any) -> None:
        if where == "id":
            value["trajectory_id_list"][0] = number
            value["trajectory_index"][str(number)] = value["trajectory_index"].pop("0")
        elif where == "length":
            value["trajectory_index"]["0"]["max_episode_length"] = number

    def change_metadata(value: Any) -> None:
        value.update({"counter": {"trajectory_counter": number}}.get(where, {}))
        value.update({"seed": {"seed": number}}.get(where, {}))

    edit(folder / "trajectory_index.json", change_index)
    edit(folder / "metadata.json", change_metadata)
    with pytest.raises(FormatError, match=r"whole number|no entry|no valid JSON"):
        read_index(folder)


def test_mutations_of_a_pt_file_end_in_typed_errors(tmp_path: Path) -> None:
    path = tmp_path / "trajectory_0_x.pt"
    torch.save({"rewards": torch.zeros(2, 2, 1), "curr_obs": {}}, path)
    sound = path.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = bytearray(sound)
        for _ in range(int(random.integers(1, 4))):
            data[int(random.integers(len(data) - 600, len(data)))] = int(
                random.integers(0, 256)
            )
        path.write_bytes(data[: int(random.integers(1, len(data) + 1))])
        try:
            read_trajectory_file(path)
        except FormatError:
            refused += 1
    assert refused > 250


def test_compressed_records_and_repeated_storages_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trajectory_0_x.pt"
    torch.save({"rewards": torch.zeros(2, 2, 1)}, path)
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records:
            archive.writestr(name, data)
    with pytest.raises(FormatError, match="compressed"):
        read_trajectory_file(path)
    torch.save({"rewards": torch.zeros(1).expand(2**20, 1000, 1)}, path)
    with pytest.raises(FormatError, match="claim more than"):
        read_trajectory_file(path)


def test_a_dangling_link_is_named(folder: Path) -> None:
    victim = next(folder.glob("trajectory_0_*"))
    victim.unlink()
    victim.symlink_to(folder / "nowhere")
    with pytest.raises(NotFoundError, match="trajectory_0_"):
        read_index(folder)


@pytest.mark.parametrize("to", ["zarr", "pt", "pkl"])
@pytest.mark.parametrize("length", [0, 2**62, 2**63 - 1, -(2**62) - 1])
def test_a_length_that_was_taken_is_loaded_again(
    tmp_path: Path, to: str, length: int
) -> None:
    buffer = TrajectoryReplayBuffer(trajectory_format=to)
    one = Trajectory(max_episode_length=length, rewards=torch.ones(1, 1, 1))
    buffer.add_trajectories([one])
    buffer.save_checkpoint(tmp_path / "x")
    again = TrajectoryReplayBuffer()
    again.load_checkpoint(tmp_path / "x")
    assert again.load_trajectory(0).max_episode_length == length
