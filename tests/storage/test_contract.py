"""One contract for every storage, then what only a local file system can get wrong."""

from __future__ import annotations

import errno
import multiprocessing
import os
import stat
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.s3 import GCS, S3
from support.trajectories import MemoryStorage

from zarrbuf.errors import (
    ConflictError,
    FormatError,
    InvalidInputError,
    NotFoundError,
    StorageError,
)
from zarrbuf.storage.contract import Outcome, Storage
from zarrbuf.storage.local import LocalStorage
from zarrbuf.storage.resolve import open_storage

NAME = "manifest/00000000000000000001.json"
HOSTILE_NAMES = [
    "../outside",
    "a/../../outside",
    "..",
    ".",
    "a/./b",
    "/etc/passwd",
    "a//b",
    "a/",
    "a\0b",
]
FAILURES = [
    errno.ENOSPC,
    errno.EIO,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EMFILE,
]


@pytest.fixture(params=["local", "memory", "s3fs", "obstore", "gcsfs"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty storage of each kind."""
    if request.param == "local":
        return open_storage(tmp_path / "buffer")
    if request.param == "gcsfs":
        gcs: GCS = request.getfixturevalue("gcs")
        return gcs.storage()
    if request.param != "memory":
        s3: S3 = request.getfixturevalue("s3")
        return s3.storage(client=request.param)
    return open_storage(f"memory://contract-{uuid.uuid4().hex}/buffer")


def content(index: int) -> bytes:
    """Bytes that say who wrote them and whether they are whole."""
    return f"writer {index} ".encode() * 500


class TestContract:
    """What every storage does alike."""

    def test_an_empty_storage_has_nothing_and_creates_nothing(
        self, storage: Storage
    ) -> None:
        assert storage.list_names("") == []
        assert storage.list_names("manifest") == []
        assert not storage.exists(NAME)
        assert storage.read_existing([NAME]) == [None]
        storage.delete(NAME)
        assert storage.list_names("") == []

    @pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 4096])
    def test_what_is_created_is_read_back(self, storage: Storage, data: bytes) -> None:
        assert storage.create(NAME, data) is Outcome.CREATED
        assert storage.read(NAME) == data
        source = storage.open_source(NAME)
        assert source[:] == data
        assert source[len(data) // 2 :] == data[len(data) // 2 :]
        assert storage.exists(NAME)

    def test_a_name_is_created_once_and_keeps_its_first_bytes(
        self, storage: Storage
    ) -> None:
        assert storage.create(NAME, b"first") is Outcome.CREATED
        assert storage.create(NAME, b"second") is Outcome.EXISTS
        assert storage.create(NAME, b"first") is Outcome.EXISTS
        assert storage.read(NAME) == b"first"

    def test_a_name_can_be_created_again_once_it_is_deleted(
        self, storage: Storage
    ) -> None:
        storage.create(NAME, b"first")
        storage.delete(NAME)
        assert not storage.exists(NAME)
        assert storage.create(NAME, b"second") is Outcome.CREATED
        assert storage.read(NAME) == b"second"

    def test_objects_lie_apart(self, storage: Storage) -> None:
        names = ["zarrbuf.json", NAME, "trajectories/ab/x.zip", "trajectories/cd/x.zip"]
        for name in names:
            assert storage.create(name, name.encode()) is Outcome.CREATED
        assert [storage.read(name) for name in names] == [n.encode() for n in names]
        storage.delete(names[2])
        assert [storage.exists(name) for name in names] == [True, True, False, True]

    def test_listing_is_sorted_and_of_one_directory(self, storage: Storage) -> None:
        for name in ("b", "a", "c", "10", "9"):
            storage.create(f"manifest/{name}", b"")
        storage.create("segment/z", b"")
        assert storage.list_names("manifest") == ["10", "9", "a", "b", "c"]
        assert {"manifest", "segment"} <= set(storage.list_names(""))

    def test_read_existing_keeps_the_order_and_says_what_is_absent(
        self, storage: Storage
    ) -> None:
        storage.create("manifest/a", b"A")
        storage.create("manifest/c", b"")
        names = ["manifest/c", "manifest/b", "manifest/a", "absent/x", "manifest/a"]
        assert storage.read_existing(names) == [b"", None, b"A", None, b"A"]
        assert storage.read_existing([]) == []

    @pytest.mark.parametrize("name", ["absent", "manifest/absent", "a/b/c"])
    def test_what_is_absent_is_not_found(self, storage: Storage, name: str) -> None:
        storage.create(NAME, b"x")
        for read in (storage.read, storage.open_source):
            with pytest.raises(NotFoundError) as caught:
                read(name)
            assert storage.describe(name) in str(caught.value)
        assert not storage.exists(name)
        storage.delete(name)

    def test_a_deleted_object_is_gone_and_stays_readable_where_it_is_open(
        self, storage: Storage
    ) -> None:
        storage.create(NAME, b"kept by who reads it")
        source = storage.open_source(NAME)
        storage.delete(NAME)
        assert source[:] == b"kept by who reads it"
        with pytest.raises(NotFoundError):
            storage.read(NAME)

    def test_of_many_threads_one_creates_each_name(self, storage: Storage) -> None:
        threads, names = 8, [f"manifest/{n:020d}.json" for n in range(30)]
        barrier = threading.Barrier(threads)

        def race(index: int) -> list[Outcome]:
            barrier.wait()
            return [storage.create(name, content(index)) for name in names]

        with ThreadPoolExecutor(threads) as pool:
            outcomes = list(pool.map(race, range(threads)))
        for number, name in enumerate(names):
            column = [outcome[number] for outcome in outcomes]
            assert Counter(column) == {Outcome.CREATED: 1, Outcome.EXISTS: threads - 1}
            assert storage.read(name) == content(column.index(Outcome.CREATED))

    def test_a_reader_sees_an_object_whole_or_not_at_all(
        self, storage: Storage
    ) -> None:
        wrong: list[bytes] = []
        done = threading.Event()

        def watch() -> None:
            while not done.is_set():
                for data in storage.read_existing([f"manifest/{n}" for n in range(20)]):
                    if data is not None and data != content(1):
                        wrong.append(data)

        watcher = threading.Thread(target=watch)
        watcher.start()
        for number in range(20):
            storage.create(f"manifest/{number}", content(1))
        done.set()
        watcher.join()
        assert wrong == []

    @pytest.mark.parametrize("name", HOSTILE_NAMES)
    def test_a_name_that_leaves_the_root_is_refused(
        self, storage: Storage, name: str
    ) -> None:
        storage.create("a/b", b"inside")
        calls: list[Callable[[], Any]] = [
            lambda: storage.read(name),
            lambda: storage.open_source(name),
            lambda: storage.create(name, b"x"),
            lambda: storage.list_names(name),
            lambda: storage.delete(name),
            lambda: storage.read_existing([name]),
        ]
        for call in calls:
            with pytest.raises(InvalidInputError, match="is not allowed"):
                call()
        assert storage.read("a/b") == b"inside"

    def test_link_from_another_kind_takes_nothing(self, storage: Storage) -> None:
        class Foreign(MemoryStorage):
            """Any storage that shares no bytes with the others."""

        other = Foreign(f"memory://foreign-{uuid.uuid4().hex}")
        other.create(NAME, b"theirs")
        assert storage.link_from(other, NAME) is False
        assert not storage.exists(NAME)

    def test_what_is_too_large_is_refused(self, storage: Storage) -> None:
        storage.create(NAME, b"0123456789")
        storage.create("manifest/empty", b"")
        assert storage.read(NAME, max_bytes=10) == b"0123456789"
        assert storage.read(NAME, max_bytes=1 << 40) == b"0123456789"
        assert storage.read("manifest/empty", max_bytes=10) == b""
        names = ["manifest/empty", NAME, "manifest/none"]
        assert storage.read_existing(names, max_bytes=10) == [b"", b"0123456789", None]
        for read in (
            lambda: storage.read(NAME, max_bytes=9),
            lambda: storage.read(NAME, max_bytes=0),
            lambda: storage.read_existing(names, max_bytes=9),
        ):
            with pytest.raises(FormatError, match=rf"{NAME} has more than the [09] "):
                read()
        with pytest.raises(NotFoundError):
            storage.read("manifest/none", max_bytes=9)

    def test_what_is_written_once_is_there_whoever_wrote_it(
        self, storage: Storage
    ) -> None:
        storage.create(NAME, b"one")
        storage.ensure_all({NAME: b"one", "a/b": b"two"})
        storage.ensure("a/b", b"two")
        assert storage.read_existing([NAME, "a/b"]) == [b"one", b"two"]
        with pytest.raises(ConflictError, match=f"{NAME} is there with other bytes"):
            storage.ensure_all({"c": b"three", NAME: b"other"})
        assert storage.read(NAME) == b"one"

    def test_a_place_is_known_by_whatever_path(self, storage: Storage) -> None:
        storage.create("a/b/c", b"")
        again = storage.sibling(f"{storage.url}/")
        inner = storage.sibling(f"{storage.url}/a")
        assert again.place == storage.place
        assert inner.place != storage.place

    def test_messages_name_the_object(self, storage: Storage) -> None:
        assert storage.describe(NAME) == f"{storage.url}/{NAME}"
        assert storage.describe("") == storage.url

    def test_how_a_commit_is_made_is_recorded(self, storage: Storage) -> None:
        scheme = storage.url.partition("://")[0]
        methods = {"memory": "lock", "s3": "if-none-match", "gs": "generation"}
        expected = methods.get(scheme, "link")
        assert storage.commit_method == expected


# ------------------------------------------------------------------- local storage


@pytest.fixture
def local(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "buffer")


def files_below(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if not p.is_dir())


def race_for_names(root: str, index: int, barrier: Any, answers: Any) -> None:
    storage = LocalStorage(root)
    barrier.wait()
    outcomes = [
        storage.create(f"manifest/{number}", content(index)).value
        for number in range(50)
    ]
    answers.put((index, outcomes))


def test_of_many_processes_one_creates_each_name(local: LocalStorage) -> None:
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(6), context.Queue()
    processes = [
        context.Process(target=race_for_names, args=(local.url, n, barrier, answers))
        for n in range(6)
    ]
    for process in processes:
        process.start()
    outcomes = dict(answers.get(timeout=30) for _ in processes)
    for process in processes:
        process.join()
    for number in range(50):
        winners = [n for n, found in outcomes.items() if found[number] == "created"]
        assert len(winners) == 1
        assert local.read(f"manifest/{number}") == content(winners[0])
    assert os.listdir(local.root / "tmp") == []
    assert sum(len(found) for found in outcomes.values()) == 300


def test_no_temporary_file_is_left(local: LocalStorage) -> None:
    local.create(NAME, b"x")
    local.create(NAME, b"y")
    assert files_below(local.root) == [NAME]
    assert (local.root / NAME).stat().st_nlink == 1


def test_a_link_whose_answer_was_lost_is_ours(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def link_twice(source: Any, target: Any, **options: Any) -> None:
        link(source, target, **options)
        link(source, target, **options)

    monkeypatch.setattr(os, "link", link_twice)
    assert local.create(NAME, b"ours") is Outcome.CREATED
    monkeypatch.undo()
    assert local.create(NAME, b"theirs") is Outcome.EXISTS
    assert local.read(NAME) == b"ours"
    assert files_below(local.root) == [NAME]


def test_bytes_are_on_disk_before_the_name_is(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.create("manifest/first", b"")  # makes the directories
    calls: list[str] = []
    fsync, link = os.fsync, os.link

    def traced_fsync(fd: int) -> None:
        mode = os.fstat(fd).st_mode
        calls.append("sync directory" if stat.S_ISDIR(mode) else "sync file")
        fsync(fd)

    def traced_link(source: Any, target: Any, **options: Any) -> None:
        calls.append("link")
        link(source, target, **options)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(os, "link", traced_link)
    local.create(NAME, b"x")
    assert calls == ["sync file", "link", "sync directory"]


def test_short_writes_are_continued(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, bytes(data[:7])))
    assert local.create(NAME, content(3)) is Outcome.CREATED
    assert local.read(NAME) == content(3)


@pytest.mark.parametrize("code", FAILURES, ids=lambda code: errno.errorcode[code])
@pytest.mark.parametrize("call", ["write", "fsync", "link", "open", "mkdir"])
def test_a_failing_call_is_a_storage_error_and_leaves_nothing(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    if call != "mkdir":
        local.create("manifest/first", b"kept")

    def fail(*args: Any, **options: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StorageError) as caught:
        local.create(NAME, b"x")
    monkeypatch.undo()
    assert local.describe(NAME) in str(caught.value)
    assert os.strerror(code) in str(caught.value)
    assert files_below(local.root) == ([] if call == "mkdir" else ["manifest/first"])
    assert local.create(NAME, b"x") is Outcome.CREATED


def test_a_write_that_fails_halfway_leaves_nothing(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = os.write, []

    def fill_up(fd: int, data: Any) -> int:
        calls.append(len(data))
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, bytes(data[:100]))

    monkeypatch.setattr(os, "write", fill_up)
    with pytest.raises(StorageError, match="No space left on device"):
        local.create(NAME, content(1))
    assert files_below(local.root) == []
    assert not local.exists(NAME)


def test_a_directory_that_does_not_sync_leaves_it_unknown(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is there already and others may have seen it: no honest "failed"."""
    local.create("manifest/first", b"")

    fsync = os.fsync

    def fail(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", fail)
    assert local.create(NAME, b"x") is Outcome.UNKNOWN
    assert local.read(NAME) == b"x"
    assert os.listdir(local.root / "tmp") == []


def test_a_file_system_without_hard_links_is_named(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(StorageError, match="needs a file system with hard links"):
        local.create(NAME, b"x")


@pytest.mark.parametrize("method", ["read", "open_source"])
@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.EMFILE])
def test_a_failing_read_is_a_storage_error_not_an_absence(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch, method: str, code: int
) -> None:
    local.create(NAME, b"x")

    def fail(*args: Any, **options: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(StorageError) as caught:
        getattr(local, method)(NAME)
    assert not isinstance(caught.value, NotFoundError)
    with pytest.raises(StorageError, match=os.strerror(code)):
        local.read_existing([NAME])


def test_other_failures_name_the_object(
    local: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.create(NAME, b"x")

    def fail(*args: Any, **options: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "listdir", fail)
    monkeypatch.setattr(os, "unlink", fail)
    with pytest.raises(StorageError, match=r"cannot list .*manifest: Input/output"):
        local.list_names("manifest")
    with pytest.raises(StorageError, match=r"cannot delete .*1\.json: Input/output"):
        local.delete(NAME)
    monkeypatch.undo()
    assert local.read(NAME) == b"x"


@pytest.mark.parametrize("method", ["read", "open_source"])
@pytest.mark.parametrize("kind", ["symlink", "dangling", "fifo", "directory"])
def test_what_is_no_regular_file_is_refused_at_once(
    local: LocalStorage, tmp_path: Path, method: str, kind: str
) -> None:
    """A FIFO without a writer would block an ordinary open for ever."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"not below the root")
    target = local.root / NAME
    target.parent.mkdir(parents=True)
    make: dict[str, Callable[[], Any]] = {
        "symlink": lambda: target.symlink_to(secret),
        "dangling": lambda: target.symlink_to(tmp_path / "absent"),
        "fifo": lambda: os.mkfifo(target),
        "directory": target.mkdir,
    }
    make[kind]()
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with pytest.raises(StorageError) as caught:
        getattr(local, method)(NAME)
    assert "regular file" in str(caught.value)
    assert local.describe(NAME) in str(caught.value)
    assert local.create(NAME, b"mine") is Outcome.EXISTS
    assert secret.read_bytes() == b"not below the root"
    assert os.listdir(local.root / "tmp") == []
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("depth", [1, 2])
def test_no_verb_follows_a_link_below_the_root(
    local: LocalStorage, tmp_path: Path, depth: int
) -> None:
    directory = "trajectories" if depth == 1 else "trajectories/ab"
    name = "trajectories/ab/x"
    outside = tmp_path / "outside"
    inner = outside / "ab" if depth == 1 else outside
    inner.mkdir(parents=True)
    (inner / "x").write_bytes(b"theirs")
    (local.root / directory).parent.mkdir(parents=True)
    (local.root / directory).symlink_to(outside)
    other = LocalStorage(tmp_path / "other")
    other.ensure(name, b"theirs")
    verbs: list[Callable[[], Any]] = [
        lambda: local.read(name),
        lambda: local.open_source(name),
        lambda: local.read_existing([name]),
        lambda: local.exists(name),
        lambda: local.create(name, b"mine"),
        lambda: local.create("trajectories/ab/y", b"mine"),
        lambda: local.ensure(name, b"theirs"),
        lambda: local.settle(name),
        lambda: local.link_from(other, name),
        lambda: other.link_from(local, name),
        lambda: local.list_names("trajectories/ab"),
        lambda: local.list_times(["trajectories/ab"]),
        lambda: local.delete(name),
    ]
    for verb in verbs:
        with pytest.raises(StorageError, match=f"{directory} is a link; below the"):
            verb()
    local.delete_empty_directories(["trajectories"], keep_root=True)
    assert files_below(outside) == ["ab/x" if depth == 1 else "x"]


def test_the_root_may_be_a_link(local: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    local.root.symlink_to(tmp_path / "disk")
    local.ensure(NAME, b"x")
    assert local.read(NAME) == b"x"
    assert local.place == LocalStorage(tmp_path / "disk").place
    assert files_below(tmp_path / "disk") == [NAME]


def test_deleting_a_link_keeps_what_it_points_at(
    local: LocalStorage, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"kept")
    (local.root / "segment").mkdir(parents=True)
    (local.root / "segment" / "x").symlink_to(secret)
    local.delete("segment/x")
    assert local.list_names("segment") == []
    assert secret.read_bytes() == b"kept"


def test_hard_links_share_bytes_and_outlive_their_source(tmp_path: Path) -> None:
    source, target = LocalStorage(tmp_path / "a"), LocalStorage(tmp_path / "b")
    source.create(NAME, b"shared")
    assert target.link_from(source, NAME) is True
    assert os.path.samefile(source.root / NAME, target.root / NAME)
    assert target.link_from(source, NAME) is True, "it is there already"
    source.delete(NAME)
    assert target.read(NAME) == b"shared"
    with pytest.raises(NotFoundError):
        target.link_from(source, "manifest/absent")
    with pytest.raises(InvalidInputError):
        target.link_from(source, "../outside")
    assert files_below(tmp_path) == [f"b/{NAME}"]


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_where_links_do_not_work_a_copy_is_up_to_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    source, target = LocalStorage(tmp_path / "a"), LocalStorage(tmp_path / "b")
    source.create(NAME, b"shared")

    def fail(*args: Any, **options: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", fail)
    assert target.link_from(source, NAME) is False
    assert not target.exists(NAME)
    monkeypatch.setattr(os, "link", lambda *a, **o: fail_with(errno.ENOSPC))
    with pytest.raises(StorageError, match=r"cannot link .*No space"):
        target.link_from(source, NAME)


def fail_with(code: int) -> None:
    raise OSError(code, os.strerror(code))


def test_a_path_through_a_file_is_an_error_not_a_crash(local: LocalStorage) -> None:
    local.create("manifest", b"a file where a directory belongs")
    with pytest.raises(StorageError):
        local.create(NAME, b"x")
    with pytest.raises(NotFoundError):
        local.read(NAME)
    assert files_below(local.root) == ["manifest"]


def test_a_root_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    root = tmp_path / "file"
    root.write_bytes(b"")
    storage = LocalStorage(root)
    with pytest.raises(StorageError):
        storage.create(NAME, b"x")
    with pytest.raises(NotFoundError):
        storage.read(NAME)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory_is_a_storage_error(local: LocalStorage) -> None:
    local.create(NAME, b"kept")
    (local.root / "manifest").chmod(0o500)
    try:
        with pytest.raises(StorageError, match="Permission denied"):
            local.create("manifest/other", b"x")
        assert files_below(local.root) == [NAME]
    finally:
        (local.root / "manifest").chmod(0o700)


# --------------------------------------------------------------------- open_storage


@pytest.mark.parametrize(
    "path",
    [
        "",
        "a\0b",
        "s3://",
        "s3:///x",
        "s3://bucket/../x",
        "ftp://host/x",
        "zip://x::file://y",
        "simplecache::s3://bucket/x",
    ],
)
def test_other_paths_are_refused_by_name(path: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        open_storage(path)
    assert repr(path) in str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        "s3://key:secret@bucket/x",
        "http://secret@host/x",
        "http://host/x?token=secret",
        "https://host/x#secret",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_shown(path: str) -> None:
    with pytest.raises(InvalidInputError, match="credentials") as caught:
        open_storage(path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("path", [b"bytes", None, 3, ["x"]])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises((InvalidInputError, TypeError)):
        open_storage(path)


def test_local_paths_and_file_urls_are_one(tmp_path: Path) -> None:
    root = tmp_path / "a b"
    for path in (root, str(root), f"file://{tmp_path}/a%20b", f"{root}/", f"{root}/."):
        opened = open_storage(path)
        assert isinstance(opened, LocalStorage)
        assert opened.url == str(root)


def test_a_relative_path_stays_where_it_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = open_storage("buffer")
    monkeypatch.chdir("/")
    storage.create(NAME, b"x")
    assert files_below(tmp_path) == [f"buffer/{NAME}"]


def test_memory_urls_with_one_path_are_one_storage() -> None:
    url = f"memory://{uuid.uuid4().hex}/buffer"
    one, other = open_storage(url), open_storage(url + "/")
    one.create(NAME, b"x")
    assert other.read(NAME) == b"x"
    assert other.create(NAME, b"y") is Outcome.EXISTS
    assert open_storage(url + "2").list_names("") == []
