"""Faults that were found in merges, splits and vacuums once, each with its test."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.clock import put_forward
from support.numbered import contents, files_below, lists_nothing, make, numbered
from support.paths import DATA
from support.trajectories import make_row

import zarrbuf
from zarrbuf import (
    Trajectory,
    TrajectoryReplayBuffer,
    convert,
    merge,
    prune,
    remove,
    split,
    vacuum,
)
from zarrbuf.cli import main as cli
from zarrbuf.common.uuids import new_uuid
from zarrbuf.errors import (
    CommitUnknownError,
    FormatError,
    InvalidInputError,
    StorageError,
    ZarrbufError,
)
from zarrbuf.manifest.columns import TextColumn
from zarrbuf.manifest.commit_log import CommitLog, open_log
from zarrbuf.manifest.layout import ROOT_NAME
from zarrbuf.manifest.predicates import select_where
from zarrbuf.manifest.rows import Rows
from zarrbuf.manifest.selection import parse_ids
from zarrbuf.storage.local import LocalStorage
from zarrbuf.storage.resolve import open_storage
from zarrbuf.stores.logged import LogStore
from zarrbuf.trajectory.encoding import encode_trajectory

FOLDER = DATA / "rlinf_pt" / "rank_0"


def pins(path: Any) -> list[Any]:
    return list(open_log(open_storage(path)).snapshot.pins.values())


@pytest.mark.parametrize("kind", ["zarr", "pt"])
@pytest.mark.parametrize("mode", ["copy", "move"])
def test_parts_are_chosen_before_the_first_is_made(
    tmp_path: Path, kind: str, mode: str
) -> None:
    source = make(tmp_path / "zarr", 0, 10)
    if kind == "pt":
        convert(source, tmp_path / "pt", to="pt")
        source = str(tmp_path / "pt")
    paths = [tmp_path / "x", tmp_path / "y", tmp_path / "z"]
    split(source, paths, fractions=[0.2, 0.2, 0.2], mode=mode)
    found = [[number for _, number in contents(path)] for path in paths]
    assert found == [[0, 1], [2, 3], [4, 5]]


def test_all_destinations_are_looked_at_first(tmp_path: Path) -> None:
    source = make(tmp_path / "a", 0, 4)
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "mine").write_text("x")
    with pytest.raises(InvalidInputError, match="not empty"):
        split(source, [tmp_path / "x", tmp_path / "y"], fractions=[0.5, 0.5])
    assert not (tmp_path / "x").exists()


def test_of_two_merges_to_one_place_one_wins(tmp_path: Path) -> None:
    for attempt in range(6):
        sources = [make(tmp_path / f"{attempt}-{n}", n, 1) for n in (1, 2)]
        barrier = threading.Barrier(2)
        create = LocalStorage.create

        def together(
            self: LocalStorage,
            name: str,
            data: bytes,
            barrier: threading.Barrier = barrier,
            create: Any = create,
        ) -> Any:
            if name == ROOT_NAME:
                barrier.wait(20)
            return create(self, name, data)

        done: list[Any] = []

        def work(source: str, done: list[Any] = done, attempt: int = attempt) -> None:
            try:
                done.append(merge([source], tmp_path / f"x{attempt}", mode="copy"))
            except ZarrbufError as exc:
                done.append(exc)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LocalStorage, "create", together)
            threads = [threading.Thread(target=work, args=(one,)) for one in sources]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        won = [one for one in done if not isinstance(one, Exception)]
        assert len(won) == 1, done
        found = [number for _, number in contents(tmp_path / f"x{attempt}")]
        assert found == [1] or found == [2]


@pytest.mark.parametrize("error", [KeyboardInterrupt, CommitUnknownError])
def test_a_merge_that_may_have_landed_keeps_its_pins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    source = make(tmp_path / "a", 0, 2)
    commit = CommitLog.commit

    def land_then_fail(self: CommitLog, *args: Any, **kwargs: Any) -> Any:
        found = commit(self, *args, **kwargs)
        if kwargs.get("op") == "merge":
            raise error("after it landed")
        return found

    monkeypatch.setattr(CommitLog, "commit", land_then_fail)
    with pytest.raises(error):
        merge([source], tmp_path / "x")
    monkeypatch.undo()
    assert len(pins(source)) == 1
    assert contents(tmp_path / "x") == [(0, 0), (1, 1)]


def test_every_version_that_a_merge_depends_on_is_pinned(tmp_path: Path) -> None:
    a = make(tmp_path / "a", 0, 2)
    merge([a], tmp_path / "b")
    remove(a, "0")
    make(a, 5, 1)
    merge([tmp_path / "b"], tmp_path / "c")
    versions = {pin["version"] for pin in pins(a) if "/c" in pin["by"]}
    assert versions == {pin["version"] for pin in pins(a) if "/b" in pin["by"]}
    assert len(versions) == 1


def test_copies_of_a_buffer_are_told_apart(tmp_path: Path) -> None:
    a = make(tmp_path / "a", 0, 2)
    merge([a], tmp_path / "b")
    shutil.copytree(a, tmp_path / "a2")
    make(tmp_path / "a2", 7, 1)
    merge([tmp_path / "b", tmp_path / "a2"], tmp_path / "x")
    assert [number for _, number in contents(tmp_path / "x")] == [0, 0, 1, 1, 7]


def test_an_archive_that_is_linked_again_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint takes up an old archive after the vacuum has announced it."""
    a = make(tmp_path / "a", 0, 2)
    b = str(tmp_path / "b")
    merge([a], b, mode="hardlink")
    remove(b, "0-1")
    ahead = [48.0]
    put_forward(monkeypatch, lambda: ahead[0])
    commit = CommitLog.commit
    linked: list[str] = []

    def link_after(self: CommitLog, *args: Any, **kwargs: Any) -> Any:
        found = commit(self, *args, **kwargs)
        if kwargs.get("op") == "vacuum" and not linked:
            ahead[0] = 0
            names = zarrbuf.list_buffer(a).rows
            linked.extend(names.row(n).path for n in range(2))
            future = time.time() + 96 * 3600
            for name in linked:
                assert open_storage(b).link_from(open_storage(a), name)
                os.utime(Path(b) / name, (future, future))
        return found

    monkeypatch.setattr(CommitLog, "commit", link_after)
    assert vacuum(b, delete=True).names == ()
    assert len(linked) == 2
    assert all((Path(b) / name).exists() for name in linked)


def test_a_link_that_is_there_counts_as_written_now(tmp_path: Path) -> None:
    a = make(tmp_path / "a", 0, 1)
    merge([a], tmp_path / "b", mode="hardlink")
    name = zarrbuf.list_buffer(a).rows.row(0).path
    os.utime(tmp_path / "b" / name, (1e9, 1e9))
    assert open_storage(tmp_path / "b").link_from(open_storage(a), name)
    assert (tmp_path / "b" / name).stat().st_mtime > 1.7e9


@pytest.mark.parametrize("mode", ["hardlink", "move"])
@pytest.mark.parametrize("how", ["cut", "link", "fifo"])
def test_what_is_no_whole_archive_is_not_linked(
    tmp_path: Path, mode: str, how: str
) -> None:
    a = make(tmp_path / "a", 0, 2)
    path = tmp_path / "a" / zarrbuf.list_buffer(a).rows.row(0).path
    data = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(data[:-3])
    elif how == "link":
        (tmp_path / "elsewhere").write_bytes(data)
        path.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(path)
    with pytest.raises((FormatError, StorageError)):
        merge([a], tmp_path / "x", mode=mode)
    assert lists_nothing(tmp_path / "x")
    assert len(zarrbuf.list_buffer(a).rows) == 2


def test_a_leftover_of_another_content_is_not_taken(tmp_path: Path) -> None:
    a = make(tmp_path / "a", 0, 1)
    name = zarrbuf.list_buffer(a).rows.row(0).path
    (tmp_path / "x" / name).parent.mkdir(parents=True)
    (tmp_path / "x" / name).write_bytes(b"other")
    for mode in ("hardlink", "copy", "move"):
        with pytest.raises(FormatError, match="is there, and is not trajectory_0_w_0"):
            merge([a], tmp_path / "x", mode=mode)
    assert (tmp_path / "x" / name).read_bytes() == b"other"


def test_a_move_that_cannot_end_says_where_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = make(tmp_path / "a", 0, 1), make(tmp_path / "b", 5, 1)
    create = LocalStorage.create

    def refuse(self: LocalStorage, name: str, data: bytes) -> Any:
        if self.url == b:
            raise StorageError("cannot create: Read-only file system")
        return create(self, name, data)

    monkeypatch.setattr(LocalStorage, "create", refuse)
    with pytest.raises(StorageError, match=r"/x is whole, but .*/b still lists"):
        merge([a, b], tmp_path / "x", mode="move")
    assert [number for _, number in contents(tmp_path / "x")] == [0, 5]


# Folders of RLinf's.


def test_files_of_an_open_buffer_are_not_taken_from_it(tmp_path: Path) -> None:
    with TrajectoryReplayBuffer(
        auto_save=True, auto_save_path=str(tmp_path / "a"), trajectory_format="pt"
    ) as buffer:
        buffer.add_trajectories(numbered(0, 2))
        with pytest.raises(InvalidInputError, match="close it first"):
            merge([buffer], tmp_path / "x", mode="move")
        merge([buffer], tmp_path / "y")
    assert len(contents(tmp_path / "y")) == 2


def test_a_move_keeps_what_others_appended_meanwhile(tmp_path: Path) -> None:
    convert(make(tmp_path / "zarr", 0, 3), tmp_path / "a", to="pt")
    create = LocalStorage.create
    appended: list[bool] = []

    def append(self: LocalStorage, name: str, data: bytes) -> Any:
        if not appended:
            appended.append(True)
            with TrajectoryReplayBuffer(
                auto_save=True,
                auto_save_path=str(tmp_path / "a"),
                trajectory_format="pt",
            ) as buffer:
                buffer.add_trajectories(numbered(9, 1))
        return create(self, name, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStorage, "create", append)
        split(tmp_path / "a", tmp_path / "x", count=2, mode="move")
    assert contents(tmp_path / "a") == [(2, 2), (3, 9)]
    assert contents(tmp_path / "x") == [(0, 0), (1, 1)]


@pytest.mark.parametrize("how", ["link", "fifo", "device"])
def test_links_and_fifos_are_no_files_of_a_folder(tmp_path: Path, how: str) -> None:
    shutil.copytree(FOLDER, tmp_path / "a")
    path = sorted((tmp_path / "a").glob("*.pt"))[1]
    path.unlink()
    (tmp_path / "secret.txt").write_text("secret")
    if how == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if how == "device" else tmp_path / "secret.txt")
    with pytest.raises(StorageError, match=r"regular file|a link"):
        merge([tmp_path / "a"], tmp_path / "x")
    assert lists_nothing(tmp_path / "x")


def test_an_index_without_metadata_is_what_a_killed_merge_left(tmp_path: Path) -> None:
    merge([FOLDER], tmp_path / "x")
    whole = files_below(tmp_path / "x")
    (tmp_path / "x" / "metadata.json").unlink()
    merge([FOLDER], tmp_path / "x")
    assert files_below(tmp_path / "x") == whole


# Callers.


def test_a_buffer_that_holds_more_than_its_path_is_no_source(tmp_path: Path) -> None:
    other = make(tmp_path / "other", 5, 3)
    with TrajectoryReplayBuffer(
        auto_save=True, auto_save_path=str(tmp_path / "a")
    ) as buffer:
        buffer.add_trajectories(numbered(0, 1))
        buffer.load_checkpoint(other)
        with pytest.raises(InvalidInputError, match="loaded from elsewhere"):
            merge([buffer], tmp_path / "x")


@pytest.mark.parametrize(
    "call",
    [
        lambda a, x: split(a, x, count=1.5),
        lambda a, x: split(a, x, count="2"),
        lambda a, x: split(a, x, count=True),
        lambda a, x: split(a, x, fractions=0.5),
        lambda a, x: split(a, x, fractions=["a"]),
        lambda a, x: split(a, x, ids=3),
        lambda a, x: split(a, x, ids=",".join(["0-999999"] * 11)),
        lambda a, x: split(a, x, where=5),
        lambda a, x: split(a, x, fractions=[0.5], seed=-1),
        lambda a, x: merge(None, x),
        lambda a, x: merge((one for one in [a]), x),
        lambda a, x: prune(a, keep_newest="2"),
        lambda a, x: prune(a, keep_bytes=1.5),
    ],
)
def test_arguments_of_another_kind_are_named(tmp_path: Path, call: Any) -> None:
    a = make(tmp_path / "a", 0, 3)
    before = files_below(tmp_path)
    with pytest.raises(InvalidInputError):
        call(a, tmp_path / "x")
    assert files_below(tmp_path) == before


def test_a_seed_that_is_none_is_one_line(tmp_path: Path) -> None:
    a = make(tmp_path / "a", 0, 3)
    arguments = ["split", a, str(tmp_path / "x"), "--fraction", "1", "--seed", "-1"]
    done = CliRunner().invoke(cli.main, arguments)
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1


def test_large_numbers_are_too_large() -> None:
    rows = Rows.of([make_row(0)])
    for text in (f"T + {10**400} > 1", f"-{10**400} < T", f"{10**400} * 2 == T"):
        with pytest.raises(InvalidInputError, match="too large"):
            select_where(rows, text)


@pytest.mark.parametrize(
    "tags", ['{"x":[1]}', f'{{"x":{10**400}}}', '{"x":{}}', "[]", "{", '"x"', "\xff"]
)
def test_tags_that_are_none_are_no_tags(tags: str) -> None:
    rows = Rows.of([make_row(0), make_row(1, tags={"x": 3, "y": 1})])
    texts = {**rows.texts, "tags": TextColumn.of([tags, '{"x":3}'])}
    found = select_where(Rows(rows.fixed, texts), "x > 0")
    assert found.tolist() == [1]


def test_rewards_of_one_dimension_are_kept_and_not_summed() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        trajectory = Trajectory(
            actions=torch.zeros(3, 2, 1), rewards=torch.ones(5, dtype=dtype)
        )
        encoded = encode_trajectory(trajectory, uuid=new_uuid(), codec="lz4")
        assert "mean_return" not in encoded.tags


def test_any_time_has_a_text_and_pins_name_what_was(tmp_path: Path) -> None:
    a = make(tmp_path / "a", 0, 1)
    log = open_log(open_storage(a))
    pin = {"action": "pin", "pin": "ab" * 16, "version": 99, "by": "me"}
    with pytest.raises(InvalidInputError, match="pins version 99, to come yet"):
        log.commit(lambda now: [pin], op="pin")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CommitLog, "_now_ms", lambda _: 2**62)
        store = LogStore.open(open_storage(a))
        remove(a, [0])
    assert zarrbuf.read_history(a)[-1]["time"].startswith("9999-12-31")
    assert len(store.listed) == 1


def test_names_may_have_any_letter(tmp_path: Path) -> None:
    for name in ("a\u3000b", "x\u00a0y", "o\u200dk", "a#b", "c?d", "e%20f", "g@h"):
        source = make(tmp_path / name, 0, 1)
        merge([source], tmp_path / f"{name}-all")
        assert contents(tmp_path / f"{name}-all") == [(0, 0)], name


def test_ids_are_bounded_before_they_are_made() -> None:
    with pytest.raises(InvalidInputError, match="more than"):
        parse_ids(",".join(f"{n}0000000-{n}9999999" for n in range(100)))
    assert np.array_equal(parse_ids("3,1-2"), [1, 2, 3])
