"""What a vacuum has named nobody lists, whoever was stopped, whatever clocks say.

Writers and vacuums are stopped between any two of their steps by running the other one
inside of a call.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.clock import put_forward
from support.numbered import contents, make, numbered
from support.remote import memory_url

import zarrbuf
from zarrbuf import TrajectoryReplayBuffer, merge, recompress, remove, vacuum
from zarrbuf.errors import ConflictError, StorageError, VacuumedError
from zarrbuf.manifest.actions import Action, sha256_hex
from zarrbuf.manifest.commit_log import CommitLog, open_log
from zarrbuf.manifest.log_checkpoints import read_checkpoint, write_checkpoint
from zarrbuf.manifest.snapshot import Snapshot
from zarrbuf.storage.contract import Storage
from zarrbuf.storage.local import LocalStorage
from zarrbuf.storage.object_store import ObjectStorage
from zarrbuf.storage.resolve import open_storage
from zarrbuf.stores.logged import LogStore, list_archives


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "x") if request.param == "local" else memory_url()


def once_at(
    patch: pytest.MonkeyPatch, op: str, work: Callable[[], Any], *, when: str
) -> list[Any]:
    """Have some work done when a commit of a kind is made: before it, or after."""
    commit, done = CommitLog.commit, list[Any]()

    def stopped(self: CommitLog, *args: Any, **kwargs: Any) -> Any:
        is_due = kwargs.get("op") == op and not done
        if is_due:
            done.append(None)
        if is_due and when == "before":
            done[0] = work()
        found = commit(self, *args, **kwargs)
        if is_due and when == "after":
            done[0] = work()
        return found

    patch.setattr(CommitLog, "commit", stopped)
    return done


def vacuum_later(patch: pytest.MonkeyPatch, path: str) -> Callable[[], Any]:
    """Return a vacuum for which two days have passed, and for which all is old."""

    def work() -> Any:
        with pytest.MonkeyPatch.context() as inner:
            put_forward(inner, lambda: 48)
            return vacuum(path, delete=True)

    return work


def test_a_writer_that_was_stopped_for_days_loses_nothing(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(place, 0, 1)
    with TrajectoryReplayBuffer(auto_save=True, auto_save_path=place) as buffer:
        with monkeypatch.context() as patch:
            done = once_at(patch, "add", vacuum_later(patch, place), when="before")
            buffer.add_trajectories(numbered(1, 3))
            buffer.flush()
        assert len(done[0].names) == 3, "the vacuum took them for forgotten"
        assert len(buffer) == 4
        assert buffer.window_trajectories == 4
        buffer.add_trajectories(numbered(4, 1))
        buffer.flush()
        assert len(buffer) == buffer.window_trajectories == 5
        rewards = buffer.sample(500)["rewards"]
        assert {int(one) for one in rewards.flatten().tolist()} == {0, 1, 2, 3, 4}
    assert contents(place) == [(n, n) for n in range(5)]
    assert zarrbuf.verify(place).is_sound


def test_a_vacuum_between_two_tries_of_an_append_adds_nothing_twice(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(place, 0, 1)
    create_of = ObjectStorage if place.startswith("memory") else LocalStorage
    create, failed = create_of.create, list[str]()
    with TrajectoryReplayBuffer(auto_save=True, auto_save_path=place) as buffer:
        with monkeypatch.context() as patch:
            once_at(patch, "add", vacuum_later(patch, place), when="before")

            def fail(self: Storage, name: str, data: bytes) -> Any:
                if b'"op":"add"' in data and len(failed) < 2:
                    failed.append(name)
                    raise StorageError(f"cannot create {name}")
                return create(self, name, data)  # type: ignore[arg-type]

            patch.setattr(create_of, "create", fail)
            buffer.add_trajectories(numbered(1, 2))
            for _ in range(3):
                try:
                    buffer.flush()
                    break
                except zarrbuf.errors.ZarrbufError:
                    continue
        buffer.flush()
        assert failed
        assert len(buffer) == 3
    assert contents(place) == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_checkpoint_that_takes_up_an_old_archive_keeps_it(
    place: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vacuum stops after its intent; or the checkpoint before its commit."""
    run = f"{place}/run"
    make(run, 0, 3)
    make(f"{place}/b", 9, 1)
    source = TrajectoryReplayBuffer(sample_window_size=0)
    source.load_checkpoint(run)
    source.save_checkpoint(f"{place}/b")
    remove(f"{place}/b", "0-2")
    with monkeypatch.context() as patch:
        if when == "after":
            put_forward(patch, lambda: 48)
            once_at(
                patch, "vacuum", lambda: source.save_checkpoint(f"{place}/b"), when=when
            )
            vacuum(f"{place}/b", delete=True)
        else:
            late = vacuum_later(patch, f"{place}/b")
            once_at(patch, "checkpoint", late, when=when)
            source.save_checkpoint(f"{place}/b")
    assert contents(f"{place}/b") == [(0, 0), (1, 1), (2, 2)]
    assert zarrbuf.verify(f"{place}/b").is_sound
    source.save_checkpoint(f"{place}/b")
    assert contents(f"{place}/b") == [(0, 0), (1, 1), (2, 2)]


def test_recompressing_again_uses_no_archive_that_was_named(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(place, 0, 2)
    with monkeypatch.context() as patch:
        done = once_at(patch, "recompress", vacuum_later(patch, place), when="before")
        with pytest.raises((ConflictError, StorageError), match=r"the same call"):
            recompress(place, codec="zstd")
    assert len(done[0].names) == 2
    recompress(place, codec="zstd")
    assert contents(place) == [(0, 0), (1, 1)]
    assert zarrbuf.verify(place).is_sound


def test_an_intent_stands_until_its_own_vacuum_says_that_it_is_done(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was killed may be asleep; who cleans up does not speak for it."""
    make(place, 0, 3)
    remove(place, "0")

    class KilledError(BaseException):
        pass

    kind = ObjectStorage if place.startswith("memory") else LocalStorage
    delete = kind.delete

    def die(self: Storage, name: str) -> None:
        if name.startswith("trajectories/"):
            raise KilledError
        delete(self, name)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        put_forward(patch, lambda: 48)
        with patch.context() as inner:
            inner.setattr(kind, "delete", die)
            with pytest.raises(KilledError):
                vacuum(place, delete=True)
        assert len(vacuum(place, delete=True).names) == 1
    log = open_log(open_storage(place))
    (paths,) = log.snapshot.intents.values()
    assert log.snapshot.doomed == set(paths)
    write_checkpoint(log.storage, log.snapshot)
    again = open_log(open_storage(place))
    root = sha256_hex(log.storage.read("zarrbuf.json"))
    empty = Snapshot(0, root, root)
    found = read_checkpoint(log.storage, empty, version=None, at_ms=None)
    assert found.intents == again.snapshot.intents == log.snapshot.intents
    row = open_log(open_storage(place), version=2).snapshot.rows.row(0)
    assert row.path in log.snapshot.doomed

    def relist(now: Snapshot) -> list[Action]:
        return [row.to_action()]

    before = again.snapshot.version
    with pytest.raises(VacuumedError, match="vacuum has said it deletes") as caught:
        again.commit(relist, op="x")
    assert caught.value.uuids == {row.uuid}
    assert again.refresh().version == before


@pytest.mark.parametrize("hours", [-26, -1.1, 1.1, 26, 24 * 365 * 80])
def test_the_clock_of_a_machine_decides_nothing(
    place: str, hours: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, real_ns = time.time, time.time_ns
    make(place, 0, 3)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + 3600 * hours)
        patch.setattr(time, "time_ns", lambda: real_ns() + int(3600e9 * hours))
        make(place, 3, 1)
        remove(place, "0")
        assert vacuum(place, delete=True).names == ()
        assert vacuum(place, delete=True, grace_s=3600).names == ()
    ts = zarrbuf.list_buffer(place).rows.column("ts").tolist()
    assert all(abs(one / 1000 - real()) < 600 for one in ts)
    make(place, 4, 1)
    remove(place, "1")
    with monkeypatch.context() as patch:
        put_forward(patch, lambda: 48)
        assert len(vacuum(place, delete=True).names) == 2
    assert contents(place) == [(2, 2), (3, 3), (4, 4)]


def test_a_commit_of_the_far_future_does_not_keep_all_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make(tmp_path / "x", 0, 2)
    with monkeypatch.context() as patch:
        patch.setattr(CommitLog, "_now_ms", lambda _: 4_100_000_000_000)  # 2099
        make(place, 2, 1)
    remove(place, "0")
    with monkeypatch.context() as patch:
        put_forward(patch, lambda: 48)
        assert len(vacuum(place, delete=True).names) == 1
    assert contents(place) == [(1, 1), (2, 2)]


def test_what_a_slice_of_time_hides_is_found_by_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge by links of a source whose archive is old, while the target is swept."""
    source = make(tmp_path / "a", 0, 2)
    for name in list_archives(open_storage(source)):
        os.utime(tmp_path / "a" / name, (1e9, 1e9))
    target = str(tmp_path / "b")
    make(target, 5, 1)
    buffer = TrajectoryReplayBuffer(sample_window_size=0)
    buffer.load_checkpoint(source)
    done = once_at(
        monkeypatch, "checkpoint", vacuum_later(monkeypatch, target), when="before"
    )
    buffer.save_checkpoint(target)
    assert done
    assert contents(target) == [(0, 0), (1, 1)]
    assert torch.equal(
        buffer.load_trajectory(0).rewards,  # type: ignore[arg-type]
        LogStore.open(open_storage(target))
        .read_trajectory(  # type: ignore[arg-type]
            LogStore.open(open_storage(target)).rows.row(0)
        )
        .rewards,
    )
    merge([target], tmp_path / "c", mode="copy")
    assert contents(tmp_path / "c") == [(0, 0), (1, 1)]
