"""What was acknowledged survives a crash, at any moment, whatever failed before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.forgetful_disk import ForgetfulDisk
from support.numbered import contents, numbered

import zarrbuf
from zarrbuf import TrajectoryReplayBuffer
from zarrbuf.errors import CommitUnknownError, ConflictError, StorageError
from zarrbuf.storage.local import LocalStorage

NAME = "trajectories/ab/x.zip"
Acknowledge = Callable[[Path, list[int]], None]


def append(base: Path, acknowledge: Acknowledge) -> None:
    """Add one by one to a new buffer, some directories below what is there."""
    root = base / "some" / "where"
    with TrajectoryReplayBuffer(auto_save=True, auto_save_path=root) as buffer:
        for number, one in enumerate(numbered(0, 4)):
            buffer.add_trajectories([one])
            buffer.flush()
            acknowledge(root, list(range(number + 1)))


def go_on(base: Path, acknowledge: Acknowledge) -> None:
    """Add where somebody made the directories, and died before they were synced."""
    root = base / "run"
    for name in ("manifest", "tmp", *(f"trajectories/{n:02x}" for n in range(256))):
        (root / name).mkdir(parents=True)
    with TrajectoryReplayBuffer(auto_save=True, auto_save_path=root) as buffer:
        buffer.add_trajectories(numbered(0, 2))
        buffer.flush()
        acknowledge(root, [0, 1])


def reuse(base: Path, acknowledge: Acknowledge) -> None:
    """Convert where a copy of the archives lies that nobody synced."""
    source, root = base / "source", base / "out"
    with TrajectoryReplayBuffer(auto_save=True, auto_save_path=source) as buffer:
        buffer.add_trajectories(numbered(0, 3))
    zarrbuf.convert(source, base / "first")
    shutil.copytree(base / "first" / "trajectories", root / "trajectories")
    zarrbuf.convert(source, root)
    acknowledge(root, [0, 1, 2])


def checkpoint(base: Path, acknowledge: Acknowledge) -> None:
    """Save a checkpoint by hard links, twice, and one by bytes."""
    with TrajectoryReplayBuffer(
        auto_save=True, auto_save_path=base / "a", sample_window_size=2
    ) as buffer:
        buffer.add_trajectories(numbered(0, 3))
        buffer.save_checkpoint(base / "b")
        acknowledge(base / "b", [1, 2])
        buffer.add_trajectories(numbered(3, 1))
        buffer.save_checkpoint(base / "b")
        acknowledge(base / "b", [2, 3])
    with TrajectoryReplayBuffer() as buffer:
        buffer.add_trajectories(numbered(0, 2))
        buffer.save_checkpoint(base / "c")
        acknowledge(base / "c", [0, 1])


SCENARIOS = (append, go_on, reuse, checkpoint)


def lost(
    scenario: Callable[[Path, Acknowledge], None],
    tmp_path: Path,
    patch: pytest.MonkeyPatch,
    *,
    ignored: tuple[str, int] | None = None,
    num_draws: int = 0,
) -> tuple[int, ForgetfulDisk]:
    """Run a scenario and crash after each acknowledgement; how many lost something."""
    base = tmp_path / "disk"
    base.mkdir()
    disk = ForgetfulDisk(base, patch)
    disk.ignored = {ignored} if ignored else ()
    num_lost = 0

    def acknowledge(root: Path, numbers: list[int]) -> None:
        nonlocal num_lost
        for seed in (None, *range(num_draws)):
            left = tmp_path / "left"
            disk.crash(left, seed)
            with pytest.MonkeyPatch.context() as quiet:
                quiet.setattr(os, "fsync", lambda fd: None)
                try:
                    found = contents(left / root.relative_to(base))
                    num_lost += [number for _, number in found] != numbers
                except zarrbuf.errors.ZarrbufError:
                    num_lost += 1
            shutil.rmtree(left)

    try:
        scenario(base, acknowledge)
    finally:
        patch.undo()
        shutil.rmtree(base)
    return num_lost, disk


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: one.__name__)
def test_nothing_acknowledged_is_lost(
    scenario: Callable[[Path, Acknowledge], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert lost(scenario, tmp_path, monkeypatch, num_draws=20)[0] == 0


def test_without_any_one_sync_something_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So none is there for nothing, and these scenarios would show each that is not."""
    sites: set[tuple[str, int]] = set()
    for scenario in SCENARIOS:
        sites |= lost(scenario, tmp_path, monkeypatch)[1].sites
    assert len(sites) >= 6
    for site in sites:
        num_lost = sum(
            lost(scenario, tmp_path, monkeypatch, ignored=site)[0]
            for scenario in SCENARIOS
        )
        assert num_lost, site


@pytest.mark.parametrize("directory", ["manifest", "trajectories/ab", "", "tmp"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_directory_that_does_not_sync_at_first_loses_nothing(
    directory: str, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zarrbuf.replay.buffer, "new_uuid", lambda: "ab" * 16)

    def scenario(base: Path, acknowledge: Acknowledge) -> None:
        root = base / "run"
        with TrajectoryReplayBuffer(auto_save=True, auto_save_path=root) as buffer:
            disk = os.fsync.__self__  # type: ignore[attr-defined]
            disk.failing[root / directory] = times
            for _ in range(times + 1):
                try:
                    if not buffer.total_samples:
                        buffer.add_trajectories(numbered(0, 1))
                    buffer.flush()
                    break
                except StorageError:
                    continue
            acknowledge(root, [0])

    assert lost(scenario, tmp_path, monkeypatch, num_draws=5)[0] == 0


def test_linking_again_after_a_sync_that_failed_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "disk"
    source = LocalStorage(base / "a")
    source.ensure(NAME, b"x")
    disk = ForgetfulDisk(base, monkeypatch)
    target = LocalStorage(base / "b")
    target.ensure("other", b"")
    disk.failing[base / "b" / "trajectories" / "ab"] = 1
    with pytest.raises(StorageError, match="Input/output error"):
        target.link_from(source, NAME)
    assert target.link_from(source, NAME)
    disk.crash(tmp_path / "left")
    assert (tmp_path / "left" / "b" / NAME).read_bytes() == b"x"


def test_linking_over_other_bytes_is_refused(tmp_path: Path) -> None:
    source, target = LocalStorage(tmp_path / "a"), LocalStorage(tmp_path / "b")
    source.ensure(NAME, b"one")
    target.ensure(NAME, b"two")
    with pytest.raises(ConflictError, match="other bytes"):
        target.link_from(source, NAME)
    assert target.read(NAME) == b"two"


def test_what_never_syncs_is_never_told_to_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = LocalStorage(tmp_path / "run")
    storage.deadline_s = 0.2
    storage.ensure("manifest/a", b"")
    disk = ForgetfulDisk(tmp_path, monkeypatch)
    disk.failing[tmp_path / "run" / "manifest"] = 1 << 20
    with pytest.raises(StorageError, match="may or may not be there"):
        storage.ensure("manifest/b", b"x")
    with TrajectoryReplayBuffer() as buffer:
        buffer.add_trajectories(numbered(0, 1))
        disk.failing.clear()
        buffer.save_checkpoint(tmp_path / "other")
        disk.failing[tmp_path / "other" / "manifest"] = 1 << 20
        monkeypatch.setattr(LocalStorage, "deadline_s", 0.2)
        buffer.add_trajectories(numbered(1, 1))
        with pytest.raises(CommitUnknownError, match="stayed unknown"):
            buffer.save_checkpoint(tmp_path / "other")
