"""What a vacuum deletes: nothing that anybody may still read."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.clock import put_forward
from support.numbered import contents, files_below, make
from support.remote import loaded, memory_url
from support.s3 import GCS, S3

import zarrbuf
from zarrbuf import merge, remove, unpin, vacuum
from zarrbuf.cli import main as cli
from zarrbuf.errors import InvalidInputError, StorageError
from zarrbuf.manifest.commit_log import open_log
from zarrbuf.manifest.log_checkpoints import write_checkpoint
from zarrbuf.storage.contract import Storage
from zarrbuf.storage.local import LocalStorage
from zarrbuf.storage.object_store import ObjectStorage
from zarrbuf.storage.resolve import open_storage
from zarrbuf.upkeep import vacuum as vacuum_module


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let hours pass, for the vacuum alone."""
    ahead = [0.0]
    put_forward(monkeypatch, lambda: ahead[0])

    def wait(hours: float) -> None:
        ahead[0] += hours

    return wait


def archives(path: Any) -> set[str]:
    storage = open_storage(path)
    return set(vacuum_module.list_archives(storage))


def test_what_was_removed_goes_after_the_grace(tmp_path: Path, later: Any) -> None:
    a = make(tmp_path / "a", 0, 4)
    before = archives(a)
    remove(a, "1,2")
    later(1)
    assert vacuum(a, delete=True).names == ()  # somebody may read the last version
    assert archives(a) == before
    later(24)
    found = vacuum(a)
    assert len(found.names) == 2
    assert not found.is_deleted
    assert archives(a) == before
    done = vacuum(a, delete=True)
    assert done.names == found.names
    assert done.is_deleted
    assert archives(a) == before - set(found.names)
    assert contents(a) == [(0, 0), (3, 3)]
    assert zarrbuf.verify(a).is_sound
    assert vacuum(a, delete=True).names == ()


def test_the_log_says_what_goes_before_it_goes(
    tmp_path: Path, later: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = make(tmp_path / "a", 0, 3)
    remove(a, "0-1")
    later(48)
    delete = LocalStorage.delete
    said: list[list[str]] = []

    def watch(self: LocalStorage, name: str) -> None:
        last = open_log(open_storage(a), version=0).read_commits()[-1]
        said.append([path for one in last.actions for path in one["paths"]])
        assert name in said[-1]
        delete(self, name)

    monkeypatch.setattr(LocalStorage, "delete", watch)
    done = vacuum(a, delete=True)
    assert len(said) == 2
    last = zarrbuf.read_history(a)[-2:]
    assert [one["num_vacuumed"] for one in last] == [2, 0]
    assert set(said[0]) == set(done.names)


def test_archives_without_a_commit_stay_while_they_are_young(
    tmp_path: Path, later: Any
) -> None:
    a = make(tmp_path / "a", 0, 1)
    orphan = tmp_path / "a" / "trajectories" / "ab" / f"{'ab' * 16}.zarr.zip"
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"a writer was killed before its commit")
    assert vacuum(a, delete=True).num_young == 1
    later(25)
    assert vacuum(a, delete=True).names == (f"trajectories/ab/{'ab' * 16}.zarr.zip",)
    assert not orphan.exists()
    assert contents(a) == [(0, 0)]


def test_a_link_to_an_old_archive_is_young(tmp_path: Path, later: Any) -> None:
    a = make(tmp_path / "a", 0, 1)
    (name,) = archives(a)
    os.utime(tmp_path / "a" / name, (1e9, 1e9))
    b = make(tmp_path / "b", 5, 1)
    assert open_storage(b).link_from(open_storage(a), name)
    assert vacuum(b, delete=True).num_young == 1


def test_writing_an_archive_again_makes_it_young(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    name = f"trajectories/ab/{'ab' * 16}.zarr.zip"
    storage.ensure(name, b"x")
    before = storage.list_times(["trajectories/ab"])[name]
    time.sleep(0.05)
    storage.ensure(name, b"x")
    assert storage.list_times(["trajectories/ab"])[name] > before


def test_what_others_name_stays(tmp_path: Path, later: Any) -> None:
    a = make(tmp_path / "a", 0, 4)
    merge([a], tmp_path / "b")
    remove(a, "0-3")
    later(1000)
    done = vacuum(a, delete=True)
    assert done.names == ()
    assert done.num_kept == 4
    assert contents(tmp_path / "b") == [(0, 0), (1, 1), (2, 2), (3, 3)]
    # The owner keeps it for a merge of the merge, too.
    merge([tmp_path / "b"], tmp_path / "c")
    remove(tmp_path / "b", "0-3")
    later(1000)
    assert vacuum(a, delete=True).names == ()
    assert vacuum(tmp_path / "b", delete=True).names == ()
    assert len(contents(tmp_path / "c")) == 4


def test_what_is_pinned_meanwhile_stays(
    tmp_path: Path, later: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = make(tmp_path / "a", 0, 3)
    version = open_log(open_storage(a)).snapshot.version
    remove(a, "0")
    later(48)
    find = vacuum_module._find

    def pin_then(*args: Any) -> Any:
        found = find(*args)
        pin = {"action": "pin", "pin": "ab" * 16, "version": version, "by": "me"}
        open_log(open_storage(a)).commit(lambda now: [pin], op="pin")
        return found

    monkeypatch.setattr(vacuum_module, "_find", pin_then)
    before = archives(a)
    vacuum(a, delete=True)
    assert archives(a) == before


def test_added_and_removed_within_the_grace_stays(tmp_path: Path, later: Any) -> None:
    a = make(tmp_path / "a", 0, 1)
    make(a, 5, 1)
    remove(a, "1")
    for name in archives(a):  # however old the storage says that they are
        os.utime(tmp_path / "a" / name, (1e9, 1e9))
    assert vacuum(a, delete=True, grace_s=3600).names == ()


def test_names_that_are_not_ours_stay(tmp_path: Path, later: Any) -> None:
    a = make(tmp_path / "a", 0, 1)
    places = [
        "trajectories/notes.txt",
        "trajectories/ab/notes.txt",
        f"trajectories/cd/{'ab' * 16}.zarr.zip",  # in another's directory
        f"trajectories/ab/{'ab' * 16}.zarr.zip.bak",
        "segment/x",
    ]
    for place in places:
        path = tmp_path / "a" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    later(1000)
    assert vacuum(a, delete=True).names == ()
    assert all((tmp_path / "a" / place).exists() for place in places)


def test_a_vacuum_that_fails_goes_on_when_called_again(
    tmp_path: Path, later: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = make(tmp_path / "a", 0, 5)
    remove(a, "0-3")
    later(48)
    delete = LocalStorage.delete
    count = iter(range(100))

    def fail(self: LocalStorage, name: str) -> None:
        if next(count) >= 2:
            raise StorageError(f"cannot delete {name}: Input/output error")
        delete(self, name)

    monkeypatch.setattr(LocalStorage, "delete", fail)
    with pytest.raises(StorageError, match="cannot delete"):
        vacuum(a, delete=True)
    monkeypatch.setattr(LocalStorage, "delete", delete)
    assert len(archives(a)) == 3
    vacuum(a, delete=True)
    assert len(archives(a)) == 1
    assert contents(a) == [(4, 4)]
    assert zarrbuf.verify(a).is_sound


def test_a_writer_at_work_loses_nothing(tmp_path: Path, later: Any) -> None:
    """Its archives are there before its commit is."""
    a = make(tmp_path / "a", 0, 1)
    commit = LocalStorage.create
    deleted: list[Sequence[str]] = []

    def vacuum_before_the_commit(self: LocalStorage, name: str, data: bytes) -> Any:
        if name.startswith("manifest/") and not deleted:
            deleted.append(())
            deleted[0] = vacuum(a, delete=True).names
        return commit(self, name, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStorage, "create", vacuum_before_the_commit)
        make(a, 7, 2)
    assert deleted == [()]
    assert contents(a) == [(0, 0), (1, 7), (2, 8)]


def stores(s3: S3, gcs: GCS) -> list[tuple[str, Any]]:
    return [
        (memory_url(), None),
        (s3.url("s3fs"), s3.options("s3fs")),
        (s3.url("obstore"), s3.options("obstore")),
        (gcs.url(), gcs.options()),
    ]


def test_every_store_knows_when_an_object_was_written(s3: S3, gcs: GCS) -> None:
    for url, options in stores(s3, gcs):
        storage: Storage = open_storage(url, options)
        assert isinstance(storage, ObjectStorage)
        storage.ensure("trajectories/ab/x", b"x")
        storage.ensure("trajectories/ab/deeper/y", b"y")
        found = storage.list_times(["trajectories/ab", "trajectories/none"])
        assert list(found) == ["trajectories/ab/x"], url
        assert abs(found["trajectories/ab/x"] / 1000 - time.time()) < 60, url


def test_object_stores_are_vacuumed(s3: S3, gcs: GCS, later: Any) -> None:
    places = stores(s3, gcs)
    for url, options in places:
        make(url, 0, 3, options)
        remove(url, "0-1", storage_options=options)
    later(48)
    for url, options in places:
        done = vacuum(url, delete=True, storage_options=options)
        assert len(done.names) == 2, url
        assert len(loaded(url, options)) == 1
        assert loaded(url, options).sample(5)["rewards"].unique().tolist() == [2.0]


@pytest.mark.parametrize("grace_s", [0, -1, 3599, float("nan"), 1e12, "x", None])
def test_a_grace_that_is_none_is_refused(tmp_path: Path, grace_s: Any) -> None:
    a = make(tmp_path / "a", 0, 1)
    before = files_below(tmp_path)
    with pytest.raises(InvalidInputError, match="at least 3600 seconds"):
        vacuum(a, delete=True, grace_s=grace_s)
    assert files_below(tmp_path) == before


def test_what_is_let_go_of_goes(tmp_path: Path, later: Any) -> None:
    a = make(tmp_path / "a", 0, 3)
    merge([a], tmp_path / "b")
    merge([a], tmp_path / "c")
    remove(a, "0-2")
    later(48)
    before = files_below(tmp_path)
    with pytest.raises(InvalidInputError, match=r"nothing for 'b'.*it does for: .*/c"):
        unpin(a, "b")
    assert files_below(tmp_path) == before
    (gone,) = unpin(a, str(tmp_path / "b"))
    assert gone.endswith("/b")
    assert vacuum(a, delete=True).names == ()  # c still needs it
    uuid = open_log(open_storage(tmp_path / "c")).uuid
    assert len(unpin(a, uuid)) == 1
    assert len(vacuum(a, delete=True).names) == 3
    with pytest.raises(InvalidInputError, match="for: nobody"):
        unpin(a, uuid)


@pytest.mark.parametrize("depth", [0, 1])
def test_nothing_of_another_buffer_is_deleted_through_a_link(
    tmp_path: Path, later: Any, depth: int
) -> None:
    make(tmp_path / "theirs", 0, 6)
    hostile = make(tmp_path / "a", 0, 1)
    before = archives(tmp_path / "theirs")
    places = {name.rsplit("/", depth + 1)[0] for name in before}
    for place in places:
        shutil.rmtree(tmp_path / "a" / place, ignore_errors=True)
        (tmp_path / "a" / place).symlink_to(tmp_path / "theirs" / place)
    later(48)
    with pytest.raises(StorageError, match="is a link; below the root"):
        vacuum(hostile, delete=True)
    assert archives(tmp_path / "theirs") == before
    assert len(contents(tmp_path / "theirs")) == 6


def test_what_killed_writers_leave_goes(tmp_path: Path, later: Any) -> None:
    path = make(tmp_path / "a", 0, 2)
    merge([path], tmp_path / "many", mode="copy")
    for name in ("ab" * 16, "not ours", "AB" * 16):
        (tmp_path / "a" / "tmp" / name).write_bytes(b"half")
    segment = f"segment/{'cd' * 16}.zarr.zip"
    open_storage(path).ensure(segment, b"left by a checkpoint that failed")
    done = vacuum(path, delete=True)
    assert (done.names, done.num_temporary) == ((), 0)
    later(25)
    dry = vacuum(path)
    done = vacuum(path, delete=True)
    assert dry.names == done.names == (segment,)
    assert dry.num_temporary == done.num_temporary == 1
    assert sorted(os.listdir(tmp_path / "a" / "tmp")) == ["AB" * 16, "not ours"]
    assert contents(path) == [(0, 0), (1, 1)]
    assert vacuum(path, delete=True).num_temporary == 0


@pytest.mark.parametrize("by", ["commit", "checkpoint", "damage", "repair"])
def test_segments_that_something_names_stay(
    tmp_path: Path, later: Any, by: str
) -> None:
    sources = [make(tmp_path / "a", 0, 3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zarrbuf.manifest.changes.MAX_ADDS", 2)
        target = merge(sources, tmp_path / "b").destination  # by a segment
    log = open_log(open_storage(target))
    if by == "checkpoint":
        target = sources[0]
        log = open_log(open_storage(target))
        write_checkpoint(log.storage, log.snapshot)
    elif by == "damage":
        target = sources[0]
        log = open_log(open_storage(target))
        log.storage.ensure(f"segment/{'cd' * 16}.zarr.zip", b"x")
        log.storage.ensure(f"checkpoint/{7:020d}.abababab.json", b"damaged")
    elif by == "repair":
        log.storage.ensure(f"segment/{'cd' * 16}.zarr.zip", b"x")
        log.storage.ensure(f"damaged/{'ab' * 16}/plan.json", b"{}")
    before = log.storage.list_names("segment")
    assert before
    later(1000)
    assert vacuum(target, delete=True).names == ()
    assert log.storage.list_names("segment") == before


def test_people_are_told_how_much_nothing_names_and_when_it_may_go(
    tmp_path: Path,
) -> None:
    path = make(tmp_path / "a", 0, 2)
    open_storage(path).ensure(f"trajectories/ab/{'ab' * 16}.zarr.zip", b"x")
    run = CliRunner().invoke(cli.main, ["vacuum", path])
    assert "1 too young until 20" in run.stdout
    run = CliRunner().invoke(cli.main, ["verify", path])
    assert "unreferenced: 1 archives, written 20" in run.stdout
    assert run.exit_code == 0
