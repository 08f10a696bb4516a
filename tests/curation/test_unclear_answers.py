"""Answers of a storage that are lost, or come twice; two callers at one place; copies.

Whatever was told to be done is listed and can be read; nobody takes away what may be
somebody else's.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.numbered import contents, make, numbered
from support.remote import memory_url, save
from support.s3 import S3

import zarrbuf
from zarrbuf import TrajectoryReplayBuffer, convert, merge, recompress, split
from zarrbuf.errors import (
    CommitUnknownError,
    ConflictError,
    InvalidInputError,
    StorageError,
    ZarrbufError,
)
from zarrbuf.storage.contract import Outcome
from zarrbuf.storage.local import LocalStorage
from zarrbuf.storage.object_store import ObjectStorage
from zarrbuf.storage.resolve import open_storage


def save_checkpoint(source: str, target: str) -> None:
    with TrajectoryReplayBuffer() as buffer:
        buffer.load_checkpoint(source)
        buffer.save_checkpoint(target)


def append(source: str, target: str) -> None:
    save(target, None, numbered(0, 3))


def copied(source: str, target: Any) -> Any:
    return merge([source], target, mode="copy")


def recompressed(source: str, target: str) -> None:
    copied(source, target)
    recompress(target, codec="zstd", num_threads=1)


CALLS: tuple[Callable[[str, str], Any], ...] = (
    append,
    save_checkpoint,
    lambda source, target: convert(source, target, num_threads=1),
    lambda source, target: merge([source], target),
    copied,
    lambda source, target: split(source, target, fractions=[1.0], mode="copy"),
    recompressed,
)


@contextmanager
def losing(number: int, how: str) -> Iterator[list[int]]:
    """Have the answer to one creation be lost: the request may have landed or not."""
    count = [0]
    create = ObjectStorage._create

    def lose(self: ObjectStorage, objects: Any) -> Sequence[Outcome]:
        answers = []
        for name, data in objects.items():
            count[0] += 1
            is_lost = count[0] - 1 == number
            if is_lost and how == "lost":
                answers.append(Outcome.UNKNOWN)
                continue
            (answer,) = create(self, {name: data})
            if is_lost and how == "told twice":
                (answer,) = create(self, {name: data})
            answers.append(Outcome.UNKNOWN if is_lost and how == "landed" else answer)
        return answers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ObjectStorage, "_create", lose)
        yield count


@pytest.mark.parametrize("how", ["landed", "lost", "told twice"])
@pytest.mark.parametrize("call", CALLS)
def test_an_answer_that_is_lost_loses_no_trajectory(
    call: Callable[[str, str], Any], how: str
) -> None:
    for number in range(100):
        folder = memory_url()
        source = make(f"{folder}/a", 0, 3)
        with losing(number, how) as count:
            call(source, f"{folder}/x")
        assert contents(f"{folder}/x") == [(0, 0), (1, 1), (2, 2)], number
        assert zarrbuf.verify(f"{folder}/x").is_sound
        if count[0] <= number:
            break
    assert number > 4


@pytest.mark.parametrize("fault", ["503", "lost", "reset"])
def test_a_store_that_fails_now_and_then_fails_no_conversion(
    s3: S3, fault: str
) -> None:
    options = s3.options("obstore")
    source = make(s3.url("a"), 0, 6, options)
    s3.plan({"fault": fault, "method": "PUT", "times": 40, "share": 0.4})
    convert(source, s3.url("x"), storage_options=options)
    with TrajectoryReplayBuffer(storage_options=options) as buffer:
        buffer.add_trajectories(numbered(0, 6))
        buffer.save_checkpoint(s3.url("y"))
    s3.plan()
    for place in ("x", "y"):
        assert len(contents(s3.url(place), options=options)) == 6
        assert zarrbuf.verify(s3.url(place), storage_options=options).is_sound


@pytest.mark.parametrize(
    "kind", ["convert", "copy", "hardlink", "reference", "pt", "pkl"]
)
def test_of_two_equal_calls_at_once_what_is_told_to_be_done_is(
    tmp_path: Path, kind: str
) -> None:
    source = make(tmp_path / "a", 0, 5)
    for attempt in range(12):
        target = tmp_path / f"x{attempt}"
        start = threading.Barrier(2)
        done: list[Any] = []

        def work(
            target: Path = target,
            start: threading.Barrier = start,
            done: list[Any] = done,
        ) -> None:
            start.wait(20)
            try:
                if kind in ("convert", "pt", "pkl"):
                    to = "zarr" if kind == "convert" else kind
                    done.append(convert(source, target, to=to))
                else:
                    done.append(merge([source], target, mode=kind))
            except ZarrbufError as exc:
                done.append(exc)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        failed = [one for one in done if isinstance(one, Exception)]
        assert len(failed) < 2, failed
        assert all(isinstance(one, ConflictError | InvalidInputError) for one in failed)
        assert contents(target) == [(n, n) for n in range(5)]
        assert zarrbuf.verify(target).is_sound


@pytest.mark.parametrize("mode", ["convert", "copy"])
def test_a_commit_that_lands_late_finds_its_archives(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path / "a", 0, 3)
    late: list[Callable[[], Any]] = []
    create = LocalStorage.create

    def hold(self: LocalStorage, name: str, data: bytes) -> Any:
        if name.startswith("manifest/") and self.url.endswith("/x"):
            late.append(lambda: create(self, name, data))
            return Outcome.UNKNOWN
        return create(self, name, data)

    monkeypatch.setattr(LocalStorage, "create", hold)
    monkeypatch.setattr(LocalStorage, "deadline_s", 0.1)
    call = convert if mode == "convert" else copied
    with pytest.raises(CommitUnknownError):
        call(source, tmp_path / "x")
    late[0]()
    assert contents(tmp_path / "x") == [(0, 0), (1, 1), (2, 2)]
    assert zarrbuf.verify(tmp_path / "x").is_sound


@pytest.mark.parametrize("number", range(8))
def test_what_a_failure_leaves_is_gone_on_with(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path / "a", 0, 3)
    count, create = [0], LocalStorage.create

    def fail(self: LocalStorage, name: str, data: bytes) -> Any:
        count[0] += 1
        if count[0] > number:
            raise StorageError(f"cannot create {name}: no room")
        return create(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "create", fail)
        if number < 5:
            with pytest.raises(StorageError, match="no room"):
                convert(source, tmp_path / "x", num_threads=1)
        else:
            convert(source, tmp_path / "x", num_threads=1)
    if number < 5:
        convert(source, tmp_path / "x", num_threads=1)
    assert contents(tmp_path / "x") == [(0, 0), (1, 1), (2, 2)]


def test_files_are_not_put_where_a_buffer_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path / "a", 0, 2)
    with monkeypatch.context() as patch:
        patch.setattr(zarrbuf.curation.convert, "encode_trajectory", lambda: None)
        with pytest.raises(TypeError):
            convert(source, tmp_path / "x")
    with pytest.raises(InvalidInputError, match=r"not empty \(it holds 'zarrbuf.json'"):
        convert(source, tmp_path / "x", to="pt")
    convert(source, tmp_path / "x")
    assert contents(tmp_path / "x") == [(0, 0), (1, 1)]


# Copies of a whole buffer have its uuid.


@pytest.fixture
def buffer(tmp_path: Path) -> Iterator[TrajectoryReplayBuffer]:
    with TrajectoryReplayBuffer(
        auto_save=True, auto_save_path=tmp_path / "run"
    ) as found:
        found.add_trajectories(numbered(0, 3))
        found.flush()
        yield found


def test_a_checkpoint_on_a_copy_of_the_buffer_is_written(
    buffer: TrajectoryReplayBuffer, tmp_path: Path
) -> None:
    shutil.copytree(tmp_path / "run", tmp_path / "backup")
    buffer.add_trajectories(numbered(3, 2))
    buffer.save_checkpoint(tmp_path / "backup")
    assert contents(tmp_path / "backup") == [(n, n) for n in range(5)]
    assert contents(tmp_path / "run") == [(n, n) for n in range(5)]


def test_a_copy_that_has_diverged_is_loaded_whole(
    buffer: TrajectoryReplayBuffer, tmp_path: Path
) -> None:
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    make(tmp_path / "copy", 70, 4)
    for number in range(3, 6):
        buffer.add_trajectories(numbered(number, 1))
        buffer.flush()
    buffer.load_checkpoint(tmp_path / "copy")
    assert buffer.window_trajectories == 7
    found = {float(one) for one in buffer.sample(400)["rewards"].flatten().tolist()}
    assert found >= {70.0, 71.0, 72.0, 73.0}
    buffer.add_trajectories(numbered(90, 1))
    assert buffer.window_trajectories == 8


def test_the_same_buffer_by_another_path_is_the_same(
    buffer: TrajectoryReplayBuffer, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run")
    buffer.save_checkpoint(tmp_path / "link")
    assert contents(tmp_path / "run") == [(0, 0), (1, 1), (2, 2)]
    with pytest.raises(InvalidInputError, match="same buffer"):
        merge([tmp_path / "run", tmp_path / "link"], tmp_path / "x")


def test_a_storage_on_a_server_is_known_by_its_endpoint(s3: S3) -> None:
    one = open_storage(s3.url("a"), s3.options("obstore"))
    same = open_storage(s3.url("a"), s3.options("s3fs"))
    other = open_storage(
        s3.url("a"), {**s3.options("s3fs"), "endpoint_url": "http://127.0.0.1:9"}
    )
    assert one.place == same.place != other.place
