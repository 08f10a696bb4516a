"""Faults that were found in conversions and repairs once, each with its test."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.numbered import contents, files_below, lists_nothing, make, numbered
from support.paths import DATA

import zarrbuf
from zarrbuf import Trajectory, TrajectoryReplayBuffer, convert, repair, verify
from zarrbuf.errors import (
    FormatError,
    InvalidInputError,
    NotFoundError,
    StorageError,
)
from zarrbuf.manifest.predicates import select_where
from zarrbuf.rlinf.index import read_index
from zarrbuf.storage.local import LocalStorage
from zarrbuf.storage.resolve import open_storage
from zarrbuf.trajectory.comparing import compare_trajectories

FOLDER = DATA / "rlinf_pt" / "rank_0"


class StoppedError(BaseException):
    """The process is gone."""


def stop_at(count: int) -> Any:
    def progress(done: int, total: int) -> None:
        if done == count:
            raise StoppedError

    return progress


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(FOLDER, tmp_path / "folder")
    return tmp_path / "folder"


# Leftovers of calls that were stopped.


def test_what_a_stopped_recompression_left_counts_as_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a vacuum takes it between its use and the commit."""
    source = tmp_path / "a"
    make(source, 0, 3)
    with pytest.raises(StoppedError):
        zarrbuf.recompress(source, codec="zstd", progress=stop_at(3))

    def list_times(self: LocalStorage, names: list[str]) -> dict[str, int]:
        return {
            f"{name}/{one.name}": one.stat().st_mtime_ns // 10**6
            for name in names
            if (self.root / name).is_dir()
            for one in (self.root / name).iterdir()
        }

    # The time of the last change of an inode, which stands for a link, cannot be set.
    monkeypatch.setattr(LocalStorage, "list_times", list_times)
    for path in (source / "trajectories").rglob("*.zip"):
        os.utime(path, (time.time() - 7200,) * 2)
    taken = []

    def vacuum(done: int, total: int) -> None:
        if done == total:
            taken.extend(zarrbuf.vacuum(source, delete=True, grace_s=3600).names)

    zarrbuf.recompress(source, codec="zstd", progress=vacuum)
    assert taken == []
    assert contents(source) == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize("to", ["zarr", "pt"])
def test_what_another_call_takes_away_is_not_listed(tmp_path: Path, to: str) -> None:
    """Two equal conversions at once, of which one fails and clears up."""
    make(tmp_path / "a", 0, 3)
    target = tmp_path / "x"
    with pytest.raises(StoppedError):
        convert(tmp_path / "a", target, to=to, progress=stop_at(3))

    def clear(done: int, total: int) -> None:
        if done == total:
            for path in target.rglob("trajectory*" if to == "pt" else "*.zip"):
                path.unlink() if path.is_file() else None

    with pytest.raises(StorageError, match="taken away by another program"):
        convert(tmp_path / "a", target, to=to, progress=clear)
    convert(tmp_path / "a", target, to=to)
    assert verify(target).is_sound


def test_files_of_another_conversion_are_not_mixed_in(tmp_path: Path) -> None:
    make(tmp_path / "a", 0, 4)
    make(tmp_path / "b", 7, 2)
    with pytest.raises(StoppedError):
        convert(tmp_path / "a", tmp_path / "x", to="pt", progress=stop_at(3))
    before = files_below(tmp_path / "x")
    with pytest.raises(InvalidInputError, match=r"not empty \(it holds 'trajectory_"):
        convert(tmp_path / "b", tmp_path / "x", to="pt")
    assert files_below(tmp_path / "x") == before


# What an index says and a file holds.


@pytest.mark.parametrize("to", ["zarr", "pt", "pkl"])
def test_a_folder_whose_index_is_wrong_is_not_converted(
    folder: Path, to: str, tmp_path: Path
) -> None:
    index = json.loads((folder / "trajectory_index.json").read_text())
    entry = index["trajectory_index"]["0"]
    entry["shape"][0] //= 2
    entry["num_samples"] //= 2
    (folder / "trajectory_index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match="the index says T="):
        convert(folder, tmp_path / "x", to=to, verify=True)
    assert lists_nothing(tmp_path / "x")


def test_a_stray_file_of_rlinf_makes_no_folder_of_a_buffer(tmp_path: Path) -> None:
    make(tmp_path / "a", 0, 2)
    (tmp_path / "a" / "metadata.json").write_text("{}")
    assert contents(tmp_path / "a") == [(0, 0), (1, 1)]
    assert verify(tmp_path / "a").kind == "zarr"
    assert repair(tmp_path / "a").problems == []


def test_ids_beyond_64_bits_are_left_out(folder: Path) -> None:
    name = f"trajectory_{2**62 - 1}_w.pt"
    shutil.copy(next(folder.glob("trajectory_0_*")), folder / name)
    done = repair(folder, apply=True)
    assert name in done.orphans
    assert any("beyond" in one for one in done.problems)
    assert verify(folder).is_sound


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 2**70),
        ("seed", "7"),
        ("trajectory_counter", "3"),
        ("trajectory_counter", 2**64),
        ("trajectory_format", ["pt"]),
    ],
)
def test_metadata_that_nothing_opens_is_mended(
    folder: Path, key: str, value: Any
) -> None:
    path = folder / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(FormatError, match=r"metadata\.json"):
        read_index(folder)
    planned = repair(folder)
    assert any("metadata.json" in one for one in planned.problems)
    assert len(planned.steps) == 1
    repair(folder, apply=True)
    assert verify(folder).is_sound


@pytest.mark.parametrize("how", ["twice", "bom"])
def test_metadata_that_only_some_read_is_mended(folder: Path, how: str) -> None:
    path = folder / "metadata.json"
    data = path.read_bytes()
    path.write_bytes(
        b"\xef\xbb\xbf" + data if how == "bom" else b'{"seed": 1, ' + data[1:]
    )
    assert not verify(folder).is_sound
    assert len(repair(folder, apply=True).steps) == 1
    assert verify(folder).is_sound


def test_where_the_draws_of_a_run_were_is_kept(folder: Path) -> None:
    path = folder / "metadata.json"
    extra = {"zarrbuf": {"generator": "AAAA"}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **extra}))
    next(folder.glob("trajectory_0_*")).unlink()
    repair(folder, apply=True)
    assert read_index(folder).generator == "AAAA"


def test_of_two_files_of_an_id_the_one_that_can_be_read_is_taken(folder: Path) -> None:
    exact = next(folder.glob("trajectory_0_*"))
    other = folder / "trajectory_0_zzz.pt"
    shutil.copy(exact, other)
    exact.write_bytes(exact.read_bytes()[:-100])
    done = repair(folder, apply=True)
    assert done.orphans == [exact.name]
    assert read_index(folder).names[0] == other.name
    assert verify(folder).is_sound


def test_a_directory_in_the_place_of_an_index_is_named(folder: Path) -> None:
    (folder / "metadata.json").unlink()
    (folder / "metadata.json").mkdir()
    before = files_below(folder)
    with pytest.raises(StorageError, match=r"metadata\.json is a directory"):
        repair(folder, apply=True)
    assert files_below(folder) == before


# Odd values.


def test_empty_conjugate_and_listed_tensors_are_compared(tmp_path: Path) -> None:
    values = {
        "empty": torch.rand(0),
        "conjugate": torch.tensor([[1 + 2j], [3 - 1j]]).conj(),
        "list": [torch.ones(2), {"a": 1}],
    }
    trajectory = Trajectory(rewards=torch.zeros(2, 1), forward_inputs=values)
    found = compare_trajectories(trajectory, trajectory)
    assert set(found.values()) == {"bit-exact"}
    other = {**values, "list": [torch.ones(2), {"a": 2}]}
    changed = Trajectory(rewards=torch.zeros(2, 1), forward_inputs=other)
    found = compare_trajectories(trajectory, changed)
    assert found["forward_inputs/list"] == "changed"
    (one,) = numbered(0, 1)
    one.forward_inputs = {"empty": torch.rand(0)}
    with TrajectoryReplayBuffer(
        auto_save=True, auto_save_path=str(tmp_path / "a")
    ) as buffer:
        buffer.add_trajectories([one])
    done = convert(tmp_path / "a", tmp_path / "x", verify=True)
    assert done.fields["forward_inputs/empty"] == 1


@pytest.mark.parametrize(
    "text", ["T in (3, 4) == 3", "0 < T in (3, 4)", "T not in (1,) in (2,)"]
)
def test_in_is_not_chained(tmp_path: Path, text: str) -> None:
    make(tmp_path / "a", 0, 1)
    rows = zarrbuf.list_buffer(tmp_path / "a").rows
    with pytest.raises(InvalidInputError, match="'in' stands alone"):
        select_where(rows, text)


@pytest.mark.parametrize("version", ["2", 1.5, True, -1])
def test_a_version_is_a_whole_number(tmp_path: Path, version: Any) -> None:
    source = make(tmp_path / "a", 0, 1)
    for call in (
        lambda: convert(source, tmp_path / "x", version=version),
        lambda: zarrbuf.export(source, tmp_path / "x", version=version),
        lambda: zarrbuf.list_buffer(source, version=version),
        lambda: verify(source, version=version),
    ):
        with pytest.raises(InvalidInputError, match="version is"):
            call()
    assert not (tmp_path / "x").exists()


def test_ids_and_conditions_of_another_kind_are_named(tmp_path: Path) -> None:
    source = make(tmp_path / "a", 0, 1)
    for ids in (3, None):
        with pytest.raises(InvalidInputError, match="ids are"):
            zarrbuf.remove(source, ids)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="keep is 3"):
        zarrbuf.prune(source, keep=3)  # type: ignore[arg-type]


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for call in (repair, verify):
        with pytest.raises(NotFoundError, match="is a file, not a directory"):
            call(tmp_path / "file")


def test_open_buffers_are_taken_where_paths_are(tmp_path: Path) -> None:
    with TrajectoryReplayBuffer(
        auto_save=True, auto_save_path=str(tmp_path / "a")
    ) as buffer:
        buffer.add_trajectories(numbered(0, 2))
        assert convert(buffer, tmp_path / "x").num_trajectories == 2
        assert len(zarrbuf.export(buffer, tmp_path / "y")) == 2
        assert verify(buffer).num_trajectories == 2
        assert repair(buffer).num_trajectories == 2
        assert len(zarrbuf.read_history(buffer)) == 2
    assert open_storage(tmp_path / "x").exists("zarrbuf.json")
