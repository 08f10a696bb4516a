"""Damaged, cut and vanished files, full disks, killed writers: through the buffer."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.numbered import lists_nothing
from support.paths import DATA, TESTS
from support.trajectories import assert_same_trajectory, make_trajectory

from zarrbuf import TrajectoryReplayBuffer, convert, list_buffer, verify
from zarrbuf.errors import FormatError, NotFoundError, StorageError, ZarrbufError
from zarrbuf.manifest.commit_log import CommitLog
from zarrbuf.storage.contract import Outcome
from zarrbuf.storage.local import LocalStorage

COUNT = 3


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "buffer"
    with TrajectoryReplayBuffer(auto_save=True, auto_save_path=path) as buffer:
        for number in range(COUNT):
            buffer.add_trajectories([make_trajectory(4, 2, seed=number)])
    return path


def sample_everything(path: Path) -> None:
    """Open a buffer and draw every sample several times."""
    buffer = TrajectoryReplayBuffer(sample_window_size=0)
    buffer.load_checkpoint(path)
    buffer.sample(400)


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 0x10
    file.write_bytes(data)


def files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def test_any_flipped_byte_of_any_file_is_found(saved: Path) -> None:
    rng = np.random.default_rng(0)
    for file in files(saved):
        sound = file.read_bytes()
        positions = {0, len(sound) - 1, *rng.integers(0, len(sound), 12).tolist()}
        for position in positions:
            flip(file, position)
            result = verify(saved)
            named = any(file.name in problem for problem in result.problems)
            assert not result.is_sound, f"{file} at {position}"
            assert named or file.name == "zarrbuf.json", result.problems
            file.write_bytes(sound)
    assert verify(saved).is_sound


@pytest.mark.parametrize("cut", [0, 1, 21, 22, 1000])
def test_a_cut_archive_is_named(saved: Path, cut: int) -> None:
    victim = next(saved.glob("trajectories/*/*.zip"))
    victim.write_bytes(victim.read_bytes()[:cut])
    with pytest.raises(FormatError, match=victim.name):
        sample_everything(saved)
    assert victim.name in verify(saved).problems[0]


def test_a_vanished_archive_is_named_by_the_name_people_know(saved: Path) -> None:
    listing = list_buffer(saved)
    row = listing.rows.row(1)
    (saved / row.path).unlink()
    with pytest.raises(NotFoundError, match=listing.name(row)):
        sample_everything(saved)
    problems = verify(saved).problems
    assert len(problems) == 1
    assert row.path in problems[0]


def test_an_archive_in_the_place_of_another_is_found(saved: Path) -> None:
    rows = list_buffer(saved).rows
    shutil.copyfile(saved / rows.row(0).path, saved / rows.row(1).path)
    with pytest.raises(FormatError, match="uuid is"):
        sample_everything(saved)
    assert "uuid is" in verify(saved).problems[0]


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_links_and_pipes_are_not_followed(
    saved: Path, tmp_path: Path, kind: str
) -> None:
    victim = next(saved.glob("trajectories/*/*.zip"))
    moved = tmp_path / "elsewhere"
    victim.rename(moved)
    if kind == "link":
        victim.symlink_to(moved)
    else:
        os.mkfifo(victim)
    with pytest.raises(StorageError, match=victim.name):
        sample_everything(saved)


def test_an_unreferenced_archive_is_no_fault(saved: Path) -> None:
    victim = next(saved.glob("trajectories/*/*.zip"))
    (saved / "trajectories" / "00").mkdir(exist_ok=True)
    shutil.copyfile(victim, saved / "trajectories" / "00" / f"{0:032}.zarr.zip")
    result = verify(saved)
    assert result.is_sound
    assert result.num_unreferenced == 1


@pytest.mark.parametrize("name", ["rlinf_ragged_pt", "rlinf_pkl"])
@pytest.mark.parametrize("how", ["cut", "emptied", "vanished", "garbage", "json"])
def test_damaged_folders_of_rlinf_are_refused_whole(
    tmp_path: Path, name: str, how: str
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(DATA / name, folder)
    victim = sorted(folder.glob("trajectory_1_*"))[0]
    newest = sorted(folder.glob("trajectory_[0-9]*"))[-1]
    data = victim.read_bytes()
    damage: dict[str, Callable[[], object]] = {
        "cut": lambda: victim.write_bytes(data[: len(data) // 2]),
        "emptied": lambda: victim.write_bytes(b""),
        "vanished": newest.unlink,  # an older one may have been evicted
        "garbage": lambda: victim.write_bytes(b"\x00garbage" * 99),
        "json": lambda: (folder / "trajectory_index.json").write_text('{"traj'),
    }
    damage[how]()
    where = newest.stem if how == "vanished" else r"trajectory_1|trajectory 1|index"
    with pytest.raises(ZarrbufError, match=where):
        convert(folder, tmp_path / "out")
    assert lists_nothing(tmp_path / "out")
    result = verify(folder)
    assert not result.is_sound
    assert len(result.problems) == 1


def test_a_flipped_byte_of_a_tensor_in_a_pt_file_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(DATA / "rlinf_ragged_pt", folder)
    victim = sorted(folder.glob("trajectory_2_*"))[0]
    flip(victim, victim.stat().st_size // 2)
    with pytest.raises(FormatError, match=r"trajectory_2_.*CRC-32"):
        convert(folder, tmp_path / "out")


ON_A_SMALL_DISK = """
import subprocess, sys, zarrbuf
from pathlib import Path
from support.numbered import lists_nothing
from support.trajectories import make_trajectory
from zarrbuf.errors import StorageError
disk = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], check=True)
buffer = zarrbuf.TrajectoryReplayBuffer(auto_save=True, auto_save_path=disk / "run")
saved = 0
try:
    while True:
        buffer.add_trajectories([make_trajectory(8, 2, seed=saved)])
        buffer.flush()
        saved += 1
except StorageError as exc:
    assert "No space left" in str(exc), exc
    assert f"trajectory_{saved}_" in str(exc), exc
assert saved > 0
assert zarrbuf.list_buffer(disk / "run").rows.trajectory_ids.tolist() == [*range(saved)]
assert zarrbuf.verify(disk / "run").is_sound
assert list((disk / "run" / "tmp").iterdir()) == []
buffer.sample(4)
subprocess.run(["mount", "-o", "remount,size=5m", disk], check=True)
buffer.close()
rows = zarrbuf.list_buffer(disk / "run").rows
assert rows.trajectory_ids.tolist() == [*range(saved + 1)]
assert zarrbuf.verify(disk / "run").is_sound
subprocess.run(["mount", "-o", "remount,size=1200k", disk], check=True)
try:
    zarrbuf.convert(sys.argv[2], disk / "out")
except StorageError as exc:
    assert "No space left" in str(exc), exc
else:
    raise AssertionError("the disk was not full")
assert lists_nothing(disk / "out")
try:
    zarrbuf.convert(sys.argv[2], disk / "other", to="pkl")
except StorageError as exc:
    assert "No space left" in str(exc), exc
else:
    raise AssertionError("the disk was not full")
assert lists_nothing(disk / "other")
subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
for name, to in (("out", "zarr"), ("other", "pkl")):
    zarrbuf.convert(sys.argv[2], disk / name, to=to)
    assert zarrbuf.verify(disk / name).is_sound
    assert len(zarrbuf.list_buffer(disk / name).rows) == 3
print("survived")
"""


def test_a_full_disk_loses_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    source = DATA / "rlinf_pt" / "rank_0"
    done = subprocess.run(
        [
            *["unshare", "--map-root-user", "--mount", sys.executable, "-c"],
            *[ON_A_SMALL_DISK, str(tmp_path), str(source)],
        ],
        capture_output=True,
        text=True,
        cwd=TESTS,
    )
    if "unshare failed" in done.stderr:
        pytest.skip("this system allows no mount namespaces")
    assert done.stdout == "survived\n", done.stderr


def keep_adding(path: Path, acknowledge: int) -> None:
    """Add trajectories for ever; say the number of each that is durable."""
    buffer = TrajectoryReplayBuffer(auto_save=True, auto_save_path=path)
    for number in range(len(buffer), 10_000):
        buffer.add_trajectories([make_trajectory(4, 2, seed=number, image_size=4)])
        buffer.flush()
        os.write(acknowledge, b"%08d" % number)


def test_a_killed_run_keeps_all_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "run"
    rng = np.random.default_rng(1)
    fork = multiprocessing.get_context("fork")
    for _ in range(20):
        reading, writing = os.pipe()
        writer = fork.Process(target=keep_adding, args=(path, writing))
        writer.start()
        os.close(writing)
        said = os.read(reading, 8)
        time.sleep(float(rng.uniform(0, 0.03)))
        writer.kill()
        writer.join()
        while part := os.read(reading, 1 << 16):
            said += part
        os.close(reading)
        last = int(said[-8:])
        ids = list_buffer(path).rows.trajectory_ids.tolist()
        assert ids == list(range(len(ids)))
        assert len(ids) > last
    assert verify(path).is_sound
    buffer = TrajectoryReplayBuffer()
    buffer.load_checkpoint(path)
    for number in ids:
        expected = make_trajectory(4, 2, seed=number, image_size=4)
        assert_same_trajectory(buffer.load_trajectory(number), expected)


def test_a_killed_conversion_can_be_run_again(tmp_path: Path) -> None:
    source, target = DATA / "rlinf_pt" / "rank_0", tmp_path / "out"
    command = [sys.executable, "-m", "zarrbuf.cli", "convert", source, target]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not list(target.glob("trajectories/*/*.zip")) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.wait()
    if lists_nothing(target):
        convert(source, target)
    assert len(list_buffer(target).rows) == 3
    assert verify(target).is_sound


@pytest.mark.parametrize("to", ["zarr", "pkl"])
@pytest.mark.parametrize("nth", [1, 2, 3, 4, 5])
def test_a_conversion_that_fails_anywhere_lists_nothing_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, nth: int
) -> None:
    source, target = DATA / "rlinf_pkl", tmp_path / "out"
    create, calls = LocalStorage.create, []

    def fail(self: LocalStorage, name: str, data: bytes) -> Outcome:
        calls.append(name)
        if len(calls) == nth:
            raise StorageError(f"cannot create {name}: no space")
        return create(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "create", fail)
        with pytest.raises(StorageError, match="no space"):
            convert(source, target, to=to)
    assert lists_nothing(target)
    convert(source, target, to=to)
    assert len(list_buffer(target).rows) == 3
    assert verify(target).is_sound


def test_an_interrupt_after_the_commit_takes_nothing_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CommitLog, "_landed", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(DATA / "rlinf_pkl", tmp_path / "out")
    assert len(list_buffer(tmp_path / "out").rows) == 3
    assert verify(tmp_path / "out").is_sound
