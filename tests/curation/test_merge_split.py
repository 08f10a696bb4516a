"""Merge and split: what stands in the new buffer, and what it depends on."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.numbered import contents, files_below, lists_nothing, make, numbered
from support.remote import loaded, memory_url, save
from support.s3 import S3

import zarrbuf
from zarrbuf import TrajectoryReplayBuffer
from zarrbuf.curation import of_buffers
from zarrbuf.curation.merge_split import merge, split
from zarrbuf.errors import (
    ConflictError,
    FormatError,
    InvalidInputError,
    NotFoundError,
    StorageError,
    TrajectoryNotFoundError,
    UntrustedBaseError,
)
from zarrbuf.manifest.changes import remove_rows
from zarrbuf.manifest.commit_log import open_log
from zarrbuf.storage.contract import Range
from zarrbuf.storage.fetching import FetchCost, RemoteObject, fetch
from zarrbuf.storage.local import LocalStorage
from zarrbuf.storage.object_store import ObjectStorage
from zarrbuf.storage.resolve import open_storage
from zarrbuf.storage.sparse import SparseObject
from zarrbuf.stores.logged import LogStore

MODES = ("reference", "hardlink", "copy", "move")


@pytest.mark.parametrize("mode", MODES)
def test_a_merge_interleaves_by_id_and_gives_ids_anew(
    tmp_path: Path, mode: str
) -> None:
    sources = [make(tmp_path / f"rank_{n}", 100 * n, 2 + n) for n in range(3)]
    done = merge(sources, tmp_path / "all", mode=mode)
    expected = [0, 100, 200, 1, 101, 201, 102, 202, 203]
    assert contents(tmp_path / "all") == list(enumerate(expected))
    assert done.num_trajectories == 9
    assert done.total_samples == 54
    assert (done.bytes_copied > 0) == (mode == "copy")
    left = [len(loaded(source)) for source in sources]
    assert left == ([0, 0, 0] if mode == "move" else [2, 3, 4])
    assert zarrbuf.verify(tmp_path / "all").is_sound
    for source in sources:
        assert zarrbuf.verify(source).is_sound


@pytest.mark.parametrize("mode", MODES)
def test_what_a_merge_depends_on(tmp_path: Path, mode: str) -> None:
    sources = [make(tmp_path / f"rank_{n}", 100 * n, 2) for n in range(2)]
    merge(sources, tmp_path / "all", mode=mode)
    shutil.rmtree(sources[0])
    if mode == "reference":
        with pytest.raises(NotFoundError, match=r"names trajectories of .*rank_0, wh"):
            loaded(str(tmp_path / "all")).sample(50)
    else:
        assert len(contents(tmp_path / "all")) == 4


def test_by_reference_no_archive_is_opened_or_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [make(tmp_path / f"rank_{n}", 100 * n, 4) for n in range(2)]
    before = [files_below(Path(source)) for source in sources]
    opened: list[str] = []
    original = LocalStorage.open_source

    def watch(self: LocalStorage, name: str) -> memoryview:
        opened.append(name)
        return original(self, name)

    monkeypatch.setattr(LocalStorage, "open_source", watch)
    merge(sources, tmp_path / "all")
    assert opened == []
    assert not (tmp_path / "all" / "trajectories").exists()
    for source, old in zip(sources, before, strict=True):
        new = files_below(Path(source))
        assert {name: new[name] for name in old} == old
        assert len(new) == len(old) + 1  # the commit with the pin


def test_samples_of_a_merge_are_those_of_one_buffer(tmp_path: Path) -> None:
    sources = [make(tmp_path / f"rank_{n}", 100 * n, 3) for n in range(2)]
    merge(sources, tmp_path / "all")
    order = [0, 100, 1, 101, 2, 102]
    save(str(tmp_path / "one"), None, [numbered(n, 1)[0] for n in order])
    ours, theirs = loaded(str(tmp_path / "all")), loaded(str(tmp_path / "one"))
    for _ in range(3):
        a, b = ours.sample(20), theirs.sample(20)
        assert torch.equal(a["rewards"], b["rewards"])
        images = "main_images"
        assert torch.equal(a["curr_obs"][images], b["curr_obs"][images])
        assert torch.equal(a["next_obs"][images], b["next_obs"][images])


def test_a_merge_goes_on_being_a_buffer(tmp_path: Path) -> None:
    sources = [make(tmp_path / f"rank_{n}", 100 * n, 2) for n in range(2)]
    merge(sources, tmp_path / "all")
    make(tmp_path / "all", 500, 1)
    make(sources[0], 600, 1)  # what a source gets later is its own
    expected = [0, 100, 1, 101, 500]
    assert contents(tmp_path / "all") == list(enumerate(expected))


def test_merges_of_merges_name_the_owner(tmp_path: Path) -> None:
    a, b, c = (make(tmp_path / name, 100 * n, 2) for n, name in enumerate("abc"))
    merge([a, b], tmp_path / "ab")
    make(tmp_path / "ab", 700, 1)
    merge([tmp_path / "ab", c], tmp_path / "abc")
    snapshot = open_log(open_storage(tmp_path / "abc")).snapshot
    names = [base["url"] for base in snapshot.bases]
    assert names == ["../ab", "../a", "../b", "../c"]
    expected = [0, 200, 100, 201, 1, 101, 700]
    assert contents(tmp_path / "abc") == list(enumerate(expected))
    for owner in (a, b, tmp_path / "ab", c):
        pins = open_log(open_storage(owner)).snapshot.pins.values()
        assert any(str(tmp_path / "abc") in pin["by"] for pin in pins)


def test_buffers_moved_together_stay_together(tmp_path: Path) -> None:
    sources = [make(tmp_path / "x" / f"rank_{n}", 100 * n, 2) for n in range(2)]
    merge(sources, tmp_path / "x" / "all")
    os.rename(tmp_path / "x", tmp_path / "y")
    assert len(contents(tmp_path / "y" / "all")) == 4


def test_open_buffers_are_sources(tmp_path: Path) -> None:
    with TrajectoryReplayBuffer(
        auto_save=True, auto_save_path=str(tmp_path / "a")
    ) as one:
        one.add_trajectories(numbered(0, 3))
        merge([one], tmp_path / "all")
    assert contents(tmp_path / "all") == [(0, 0), (1, 1), (2, 2)]
    memory = TrajectoryReplayBuffer()
    with pytest.raises(InvalidInputError, match="save it by save_checkpoint"):
        merge([memory], tmp_path / "none")


def test_a_checkpoint_of_a_merge_is_independent(tmp_path: Path) -> None:
    sources = [make(tmp_path / f"rank_{n}", 100 * n, 2) for n in range(2)]
    merge(sources, tmp_path / "all")
    buffer = loaded(str(tmp_path / "all"))
    buffer.save_checkpoint(str(tmp_path / "saved"))
    for source in sources:
        shutil.rmtree(source)
    assert contents(tmp_path / "saved") == [(0, 0), (1, 100), (2, 1), (3, 101)]


@pytest.mark.parametrize("client", ["s3fs", "obstore"])
def test_buffers_on_an_object_store_are_merged(s3: S3, client: str) -> None:
    options = s3.options(client)
    sources = [make(s3.url(f"rank_{n}"), 100 * n, 2, options) for n in range(3)]
    s3.log()
    merge(sources, s3.url("all"), storage_options=options)
    assert not [one for one in s3.log() if "/trajectories/" in one["path"]]
    buffer = loaded(s3.url("all"), options, prefetch_batches=0)
    batch = buffer.sample(60)
    assert set(batch["rewards"].unique().tolist()) == {0, 1, 100, 101, 200, 201}
    buffer.close()
    for mode in ("copy", "move"):
        url = s3.url(mode)
        merge(sources, url, mode=mode, storage_options=options)
        assert len(loaded(url, options)) == 6
    assert [len(loaded(source, options)) for source in sources] == [0, 0, 0]


def test_several_storages_are_asked_at_once() -> None:
    barrier = threading.Barrier(3, timeout=20)

    class Slow(ObjectStorage):
        def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
            barrier.wait()  # ends in an error unless all three are asked
            return super().read_ranges(ranges)

    wanted = []
    for n in range(3):
        storage = open_storage(memory_url())
        storage.ensure("a", bytes([n]) * 1000)
        storage.__class__ = Slow
        remote = RemoteObject(storage, "a", SparseObject(1000, name="a"))
        wanted.append((remote, np.array([[0, 600]])))
    cost = FetchCost()
    fetch(wanted, cost)
    assert cost.rounds == 1
    found = [bytes(remote.data.view[:600]) for remote, _ in wanted]
    assert found == [bytes([n]) * 600 for n in range(3)]


# Splits.


def test_a_split_takes_the_first(tmp_path: Path) -> None:
    source = make(tmp_path / "a", 0, 5)
    (done,) = split(source, [tmp_path / "some"], count=3)
    assert contents(done.destination) == [(0, 0), (1, 1), (2, 2)]
    assert len(loaded(source)) == 5


def test_a_split_by_fractions_leaves_nothing_out(tmp_path: Path) -> None:
    source = make(tmp_path / "a", 0, 11)
    paths = [tmp_path / "train", tmp_path / "test"]
    split(source, paths, fractions=[0.8, 0.2])
    assert [n for _, n in contents(paths[0])] == list(range(9))
    assert [n for _, n in contents(paths[1])] == [9, 10]
    drawn = [tmp_path / "train2", tmp_path / "test2"]
    split(source, drawn, fractions=[0.8, 0.2], seed=3)
    found = [[n for _, n in contents(path)] for path in drawn]
    assert sorted(found[0] + found[1]) == list(range(11))
    assert found[1] != [9, 10]


@pytest.mark.parametrize("ids", ["1,3-4", [4, 1, 3, 3]])
def test_a_split_by_ids_keeps_the_order_of_the_list(tmp_path: Path, ids: Any) -> None:
    source = make(tmp_path / "a", 0, 6)
    split(source, tmp_path / "some", ids=ids)
    assert contents(tmp_path / "some") == [(0, 1), (1, 3), (2, 4)]


def test_a_split_that_moves_takes_off_the_list(tmp_path: Path) -> None:
    source = make(tmp_path / "a", 0, 5)
    split(source, [tmp_path / "some"], count=2, mode="move")
    assert contents(source) == [(2, 2), (3, 3), (4, 4)]
    assert contents(tmp_path / "some") == [(0, 0), (1, 1)]


@settings(deadline=None, max_examples=20)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    data=st.data(),
)
def test_ids_of_merges_and_splits(sizes: Sequence[int], data: st.DataObject) -> None:
    """Against the plain way: sort by id and source, then number."""
    root = memory_url()
    listed = []
    for n, size in enumerate(sizes):
        make(f"{root}/{n}", 100 * n, size)
        listed += [(number, n, 100 * n + number) for number in range(size)]
    urls = [f"{root}/{n}" for n in range(len(sizes))]
    merge(urls, f"{root}/all")
    expected = [name for _, _, name in sorted(listed)]
    assert contents(f"{root}/all") == list(enumerate(expected))
    some = data.draw(st.sets(st.integers(0, len(expected) - 1), min_size=1))
    split(f"{root}/all", f"{root}/some", ids=sorted(some))
    chosen = [expected[n] for n in sorted(some)]
    assert contents(f"{root}/some") == list(enumerate(chosen))


# What is refused, and what is left then.


def test_a_schema_clash_names_each_field(tmp_path: Path) -> None:
    a = make(tmp_path / "a", 0, 1)
    (other,) = numbered(0, 1)
    other.rewards = torch.zeros(3, 2, 4)
    other.curr_obs = {"main_images": torch.zeros(3, 2, 8, 8, 3, dtype=torch.uint8)}
    other.next_obs = {}
    save(str(tmp_path / "b"), None, [other])
    before = files_below(tmp_path)
    with pytest.raises(InvalidInputError) as caught:
        merge([a, tmp_path / "b"], tmp_path / "all")
    text = str(caught.value)
    assert f"{tmp_path}/b: field 'curr_obs/main_images' is uint8 [8, 8, 3]" in text
    assert f"{tmp_path}/b: field 'rewards' is float32 [4]" in text
    assert files_below(tmp_path) == before


def test_calls_that_cannot_be_done_change_nothing(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", 0, 2), make(tmp_path / "b", 0, 2)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    before = files_below(tmp_path)
    calls: list[tuple[type[Exception], str, Any]] = [
        (InvalidInputError, "same buffer", lambda: merge([a, b, a], tmp_path / "x")),
        (InvalidInputError, "not empty", lambda: merge([a, b], tmp_path / "full")),
        (InvalidInputError, "not empty", lambda: merge([a], b)),
        (InvalidInputError, "a list is needed", lambda: merge([], tmp_path / "x")),
        (InvalidInputError, "a list is needed", lambda: merge(a, tmp_path / "x")),
        (
            InvalidInputError,
            "allowed are",
            lambda: merge([a], tmp_path / "x", mode="m"),
        ),
        (NotFoundError, "none", lambda: merge([a, tmp_path / "none"], tmp_path / "x")),
        (UntrustedBaseError, "beside", lambda: merge([a], tmp_path / "deep" / "x")),
        (InvalidInputError, "kind of store", lambda: merge([a], memory_url())),
        (InvalidInputError, "1 to 2", lambda: split(a, tmp_path / "x", count=3)),
        (InvalidInputError, "1 to 2", lambda: split(a, tmp_path / "x", count=0)),
        (InvalidInputError, "exactly one", lambda: split(a, tmp_path / "x")),
        (
            InvalidInputError,
            "exactly one",
            lambda: split(a, tmp_path / "x", count=1, ids="1"),
        ),
        (
            InvalidInputError,
            "at most 1",
            lambda: split(a, [tmp_path / "x", tmp_path / "y"], fractions=[0.6, 0.6]),
        ),
        (
            InvalidInputError,
            "without any",
            lambda: split(a, [tmp_path / "x", tmp_path / "y"], fractions=[0.9, 0.1]),
        ),
        (
            InvalidInputError,
            "1 destinations are named for 2",
            lambda: split(a, [tmp_path / "x"], fractions=[0.5, 0.5]),
        ),
        (
            InvalidInputError,
            "not all different",
            lambda: split(a, [tmp_path / "x"] * 2, fractions=[0.5, 0.5]),
        ),
        (InvalidInputError, "'x'", lambda: split(a, tmp_path / "x", ids="1,x")),
        (InvalidInputError, "'5-3'", lambda: split(a, tmp_path / "x", ids="5-3")),
        (
            TrajectoryNotFoundError,
            "no trajectory 7, 8; the ids there are: 0 to 1",
            lambda: split(a, tmp_path / "x", ids="0,7-8"),
        ),
    ]
    for kind, words, call in calls:
        with pytest.raises(kind, match=words):
            call()
        assert files_below(tmp_path) == before, words


def test_elsewhere_is_allowed_by_both_who_merge_and_who_read(tmp_path: Path) -> None:
    a = make(tmp_path / "a", 0, 2)
    merge([a], tmp_path / "deep" / "x", allow_bases=[tmp_path])
    with pytest.raises(UntrustedBaseError, match="allow_bases"):
        contents(tmp_path / "deep" / "x")
    found = contents(tmp_path / "deep" / "x", allow_bases=[tmp_path / "a"])
    assert found == [(0, 0), (1, 1)]


def test_another_buffer_in_the_place_of_a_base_is_refused(tmp_path: Path) -> None:
    a = make(tmp_path / "a", 0, 2)
    merge([a], tmp_path / "x")
    shutil.rmtree(a)
    make(a, 5, 2)
    with pytest.raises(FormatError, match="names trajectories of the buffer"):
        contents(tmp_path / "x")


def test_a_source_that_cannot_be_written_needs_to_be_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = make(tmp_path / "a", 0, 2)
    create = LocalStorage.create

    def refuse(self: LocalStorage, name: str, data: bytes) -> Any:
        if self.url == a:
            raise StorageError(f"cannot create {self.url}/{name}: Read-only")
        return create(self, name, data)

    monkeypatch.setattr(LocalStorage, "create", refuse)
    with pytest.raises(StorageError, match=r"copy it, or go without \(pin=False"):
        merge([a], tmp_path / "x")
    assert lists_nothing(tmp_path / "x")
    merge([a], tmp_path / "x", pin=False)
    assert len(contents(tmp_path / "x")) == 2


def test_a_merge_that_fails_takes_its_pins_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [make(tmp_path / f"rank_{n}", 100 * n, 2) for n in range(2)]
    create = LocalStorage.create

    def refuse(self: LocalStorage, name: str, data: bytes) -> Any:
        if self.url.endswith("/x"):
            raise StorageError(f"cannot create {self.url}/{name}: full")
        return create(self, name, data)

    monkeypatch.setattr(LocalStorage, "create", refuse)
    with pytest.raises(StorageError, match="full"):
        merge(sources, tmp_path / "x")
    for source in sources:
        assert not open_log(open_storage(source)).snapshot.pins


def test_rows_removed_while_they_are_pinned_stop_the_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = make(tmp_path / "a", 0, 3)
    original = of_buffers.reference_bases

    def meanwhile(*args: Any) -> Any:
        other = LogStore.open(open_storage(a))
        remove_rows(other.log, other.rows.slice(1, 2), reason="remove")
        return original(*args)

    monkeypatch.setattr(of_buffers, "reference_bases", meanwhile)
    with pytest.raises(ConflictError, match="took 1 of the trajectories off"):
        merge([a], tmp_path / "x")
    assert lists_nothing(tmp_path / "x")
    assert not open_log(open_storage(a)).snapshot.pins
