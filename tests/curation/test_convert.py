"""Conversions: in parallel, stopped and gone on with, compared; archives in place."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner
from support.numbered import contents, files_below, lists_nothing, make
from support.paths import DATA
from support.remote import loaded, save
from support.s3 import S3
from support.trajectories import assert_same_trajectory, make_trajectory

import zarrbuf
from zarrbuf import Trajectory, convert, export, recompress
from zarrbuf.cli import main as cli
from zarrbuf.common.jobs import run_jobs
from zarrbuf.curation import convert as convert_module
from zarrbuf.curation import rewrite as rewriting
from zarrbuf.errors import ConflictError, FormatError, InvalidInputError, StorageError
from zarrbuf.storage.local import LocalStorage
from zarrbuf.trajectory.archived import TrajectoryArchive
from zarrbuf.trajectory.comparing import compare_trajectories

FOLDERS = ("rlinf_pt/rank_0", "rlinf_pkl", "rlinf_ragged_pt")


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("to", ["zarr", "pt", "pkl"])
def test_every_field_is_found_bit_exact(tmp_path: Path, folder: str, to: str) -> None:
    done = convert(DATA / folder, tmp_path / "out", to=to, verify=True)
    back = convert(tmp_path / "out", tmp_path / "back", to="pt", verify=True)
    assert done.fields["rewards"] == done.num_trajectories
    assert done.fields["curr_obs/main_images"] == done.num_trajectories
    assert back.fields == done.fields
    assert convert(DATA / folder, tmp_path / "quick", to=to).fields == {}
    ours, theirs = loaded(str(tmp_path / "back")), loaded(str(DATA / folder))
    for number in theirs._trajectory_id_list:
        assert_same_trajectory(
            ours.load_trajectory(number), theirs.load_trajectory(number)
        )


def test_threads_change_nothing(tmp_path: Path) -> None:
    source = make(tmp_path / "a", 0, 12)
    for number in (1, 4):
        convert(source, tmp_path / str(number), num_threads=number)
    assert contents(tmp_path / "1") == contents(tmp_path / "4")
    archives = [files_below(tmp_path / n / "trajectories") for n in ("1", "4")]
    assert archives[0] == archives[1]


def test_what_is_not_what_was_read_is_told_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path / "a", 0, 2)
    decode = convert_module.decode_trajectory

    def flip(archive: TrajectoryArchive) -> Trajectory:
        found = decode(archive)
        assert found.rewards is not None
        found.rewards = found.rewards.clone()
        found.rewards[0, 0] += 1
        return found

    monkeypatch.setattr(convert_module, "decode_trajectory", flip)
    with pytest.raises(StorageError, match="not what was read: rewards is changed"):
        convert(source, tmp_path / "out", verify=True)
    assert lists_nothing(tmp_path / "out")
    monkeypatch.undo()
    convert(source, tmp_path / "out", verify=True)
    assert contents(tmp_path / "out") == contents(source)


def test_comparing_sees_bits_kinds_and_names() -> None:
    nan = torch.tensor([[float("nan"), 0.0]])
    a = Trajectory(
        rewards=nan,
        curr_obs={"x": {"y": torch.ones(1, 2)}, "task": ["a", None], "e": {}},
    )
    b = Trajectory(rewards=nan.clone(), curr_obs=dict(a.curr_obs))
    assert set(compare_trajectories(a, b).values()) == {"bit-exact"}
    minus_zero = nan.clone()
    minus_zero[0, 1] = -0.0
    changes: list[tuple[dict[str, Any], str, str]] = [
        ({"rewards": minus_zero}, "rewards", "changed"),
        ({"rewards": nan.double()}, "rewards", "changed"),
        ({"rewards": nan[0]}, "rewards", "changed"),
        ({"rewards": None}, "rewards", "dropped"),
        ({"actions": nan}, "actions", "added"),
        ({"max_episode_length": 3}, "max_episode_length", "changed"),
        ({"curr_obs": {**a.curr_obs, "task": ["a", 0]}}, "curr_obs/task", "changed"),
        ({"curr_obs": {**a.curr_obs, "x": {}}}, "curr_obs/x/y", "dropped"),
        ({"curr_obs": {"x": a.curr_obs["x"], "e": {}}}, "curr_obs/task", "dropped"),
        ({"curr_obs": {**a.curr_obs, "e": 1}}, "curr_obs/e", "changed"),
    ]
    for fields, name, how in changes:
        other = Trajectory(**{**vars(b), **fields})
        assert compare_trajectories(a, other)[name] == how, fields


# Stopped, and gone on with.


@pytest.mark.parametrize("to", ["zarr", "pt"])
def test_a_killed_conversion_goes_on(tmp_path: Path, to: str) -> None:
    """Killed at some moment in the middle, for good."""
    source, out = tmp_path / "a", tmp_path / "out"
    save(str(source), None, [make_trajectory(40, 8, seed=n) for n in range(30)])
    command = [sys.executable, "-m", "zarrbuf.cli", "convert", source, out]
    process = subprocess.Popen([*command, "--to", to, "--num-threads", "1"])
    pattern = "trajectories/*/*.zip" if to == "zarr" else "trajectory_*.pt"
    deadline = time.monotonic() + 60
    while len(list(out.glob(pattern))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_ino for path in out.glob(pattern)}
    assert 3 <= len(before) < 30
    convert(source, out, to=to, verify=True)
    for path, number in before.items():
        assert path.stat().st_ino == number  # not written again
    assert len(list(out.glob(pattern))) == 30
    assert zarrbuf.verify(out).is_sound
    ours, theirs = loaded(str(out)), loaded(str(source))
    assert torch.equal(ours.sample(50)["actions"], theirs.sample(50)["actions"])
    rows, expected = (zarrbuf.list_buffer(one).rows for one in (out, source))
    for number in range(30 if to == "zarr" else 0):
        assert rows.row(number).tags == expected.row(number).tags
        assert rows.row(number).shape == expected.row(number).shape


def test_an_interrupted_conversion_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path / "a", 0, 5)
    create = LocalStorage.create
    count = iter(range(100))

    def interrupt(self: LocalStorage, name: str, data: bytes) -> Any:
        if next(count) == 2:
            raise KeyboardInterrupt
        return create(self, name, data)

    monkeypatch.setattr(LocalStorage, "create", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", num_threads=1)
    left = files_below(tmp_path / "out")
    assert 2 <= len(left) < 5  # one more may have begun
    convert(source, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(source)
    assert left.items() <= files_below(tmp_path / "out").items()


def test_a_leftover_that_is_damaged_is_named(tmp_path: Path) -> None:
    source = make(tmp_path / "a", 0, 2)
    convert(source, tmp_path / "out")
    (one, *_) = (tmp_path / "out").glob("trajectories/*/*.zip")
    data = bytearray(one.read_bytes())
    data[200] ^= 1
    one.write_bytes(data)
    shutil.rmtree(tmp_path / "out" / "manifest")
    (tmp_path / "out" / "zarrbuf.json").unlink()
    with pytest.raises(FormatError, match=one.name):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2"])
def test_threads_that_are_none_are_refused(tmp_path: Path, threads: Any) -> None:
    source = make(tmp_path / "a", 0, 1)
    with pytest.raises(InvalidInputError, match="num_threads"):
        convert(source, tmp_path / "out", num_threads=threads)


def test_jobs_stop_at_the_first_error() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        time.sleep(0.01)
        if number == 3:
            raise ValueError(number)
        return number * number

    seen: list[tuple[int, int]] = []
    assert run_jobs(
        lambda n: n * n, range(5), num_threads=3, progress=lambda *n: seen.append(n)
    ) == [0, 1, 4, 9, 16]
    assert seen == [(n, 5) for n in range(1, 6)]
    with pytest.raises(ValueError, match="3"):
        run_jobs(work, range(1000), num_threads=2)
    assert len(begun) < 20


# In place, and out by name.


def test_recompressing_keeps_all_but_the_bytes(tmp_path: Path) -> None:
    source = str(tmp_path / "a")
    save(source, None, [make_trajectory(20, 4, seed=n) for n in range(4)])
    zarrbuf.remove(source, "1")
    before, plain = loaded(source).sample(30), zarrbuf.list_buffer(source)
    done = recompress(source, codec="zstd", verify=True)
    after = zarrbuf.list_buffer(source)
    assert torch.equal(loaded(source).sample(30)["actions"], before["actions"])
    assert after.rows.trajectory_ids.tolist() == [0, 2, 3]
    assert done.destination_bytes == after.to_json()["bytes"]
    assert done.destination_bytes < plain.to_json()["bytes"]
    assert done.fields["rewards"] == 3
    assert zarrbuf.verify(source).is_sound
    assert len(list(tmp_path.glob("a/trajectories/*/*.zip"))) == 7  # until a vacuum
    assert recompress(source, codec="lz4").source_bytes == done.destination_bytes


def test_recompressing_a_buffer_that_changes_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path / "a", 0, 3)
    run = rewriting.run_jobs

    def append(*args: Any, **kwargs: Any) -> Any:
        found = run(*args, **kwargs)
        make(source, 9, 1)
        return found

    monkeypatch.setattr(rewriting, "run_jobs", append)
    with pytest.raises(ConflictError, match="it goes on"):
        recompress(source, codec="zstd")
    assert contents(source) == [(0, 0), (1, 1), (2, 2), (3, 9)]
    monkeypatch.undo()
    recompress(source, codec="zstd")
    assert contents(source) == [(0, 0), (1, 1), (2, 2), (3, 9)]


def test_recompressing_a_merge_makes_it_independent(tmp_path: Path) -> None:
    source = make(tmp_path / "a", 0, 3)
    zarrbuf.merge([source], tmp_path / "all")
    recompress(tmp_path / "all", codec="lz4")
    shutil.rmtree(source)
    assert contents(tmp_path / "all") == [(0, 0), (1, 1), (2, 2)]


def test_exported_archives_have_their_names_and_any_zarr_reads_them(
    tmp_path: Path,
) -> None:
    source = make(tmp_path / "a", 5, 3)
    names = export(source, tmp_path / "out")
    assert names == [f"trajectory_{n}_w_{n + 5}.zarr.zip" for n in range(3)]
    with zarr.storage.ZipStore(tmp_path / "out" / names[1], mode="r") as store:
        group = zarr.open_group(store, mode="r")
        assert np.asarray(group["rewards"]).tolist() == [[6.0, 6.0]] * 3
    found = files_below(tmp_path / "out")
    assert sorted(found) == names
    assert {*found.values()} == {*files_below(tmp_path / "a" / "trajectories").values()}
    export(source, tmp_path / "out")  # again: nothing to do
    assert files_below(tmp_path / "out") == found
    (tmp_path / "out" / names[0]).write_bytes(b"mine")
    with pytest.raises(ConflictError, match=names[0]):
        export(source, tmp_path / "out")
    assert (tmp_path / "out" / names[0]).read_bytes() == b"mine"


def test_damaged_archives_are_not_exported(tmp_path: Path) -> None:
    source = make(tmp_path / "a", 0, 1)
    (one,) = (tmp_path / "a").glob("trajectories/*/*.zip")
    data = bytearray(one.read_bytes())
    data[100] ^= 1
    one.write_bytes(data)
    with pytest.raises(FormatError, match=r"trajectory_0_w_0.*damaged"):
        export(source, tmp_path / "out")
    with pytest.raises(FormatError, match="damaged"):
        zarrbuf.merge([source], tmp_path / "all", mode="copy")
    assert lists_nothing(tmp_path / "all")


def test_buffers_on_object_stores_are_converted_and_recompressed(s3: S3) -> None:
    options = s3.options("obstore")
    url = s3.url("a")
    convert(DATA / "rlinf_pkl", url, verify=True, storage_options=options)
    recompress(url, codec="zstd", verify=True, storage_options=options)
    assert zarrbuf.verify(url, storage_options=options).is_sound


def test_the_commands(tmp_path: Path) -> None:
    source = make(tmp_path / "a", 0, 3)

    def run(*arguments: Any) -> str:
        done = CliRunner().invoke(cli.main, list(map(str, arguments)))
        assert done.exit_code == 0, done.stderr
        return done.stdout

    text = run("convert", source, tmp_path / "b", "--verify", "--num-threads", 2)
    assert "rewards" in text
    assert "bit-exact in 3" in text
    assert "lz4" not in run("recompress", source, "--codec", "zstd")
    assert "3 archives" in run("export", source, tmp_path / "out")
    assert len(os.listdir(tmp_path / "out")) == 3
