"""The local cache of remote objects: bounded, shared, never wrong."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batches import assert_same_batch, draw, generator
from support.remote import Asked, loaded, memory_url, save, with_cameras

from zarrbuf import TrajectoryReplayBuffer
from zarrbuf.errors import InvalidInputError, StorageError
from zarrbuf.storage.block_cache import DiskCache
from zarrbuf.storage.ranges import BLOCK_BYTES

SIZE = 9 * BLOCK_BYTES + 100


def content(name: str, size: int = SIZE) -> bytes:
    return np.random.default_rng(list(name.encode())).bytes(size)


def room_of(folder: Path) -> int:
    """Return the bytes on disk of all files of a cache but its two own."""
    total = 0
    for path in folder.glob("??/*"):
        with contextlib.suppress(FileNotFoundError):  # other processes delete some
            total += 512 * path.stat().st_blocks
    return total


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


# One cache.


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_what_is_read_is_what_was_written(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = DiskCache(tmp_path_factory.mktemp("cache"), max_bytes=1 << 30)
    blocks = -(-SIZE // BLOCK_BYTES)
    there = {name: np.zeros(blocks, np.bool_) for name in "ab"}
    for _ in range(data.draw(st.integers(1, 12))):
        name = data.draw(st.sampled_from("ab"))
        first, stop = sorted(data.draw(st.tuples(*[st.integers(0, blocks)] * 2)))
        start, end = first * BLOCK_BYTES, min(stop * BLOCK_BYTES, SIZE)
        if end <= start:
            continue
        expected = content(name)[start:end]
        if data.draw(st.booleans()):
            cache.write([(name, start, expected)])
            there[name][first:stop] = True
        found = cache.read(name, start, end)
        assert found == (expected if there[name][first:stop].all() else None)


def test_a_damaged_block_is_not_there(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, max_bytes=1 << 20)
    data = content("a")
    for suffix in ("data", "sums"):
        for position in range(0, SIZE if suffix == "data" else 40, 37):
            cache.write([("a", 0, data)])
            assert cache.read("a", 0, SIZE) == data
            path = cache._path("a", suffix)
            damaged = bytearray(path.read_bytes())
            damaged[position] ^= 0x10
            path.write_bytes(damaged)
            assert cache.read("a", 0, SIZE) is None


@pytest.mark.parametrize("change", ["cut", "gone", "hole", "link", "fifo", "folder"])
@pytest.mark.parametrize("suffix", ["data", "sums"])
def test_a_file_that_is_not_as_it_was_is_not_there(
    suffix: str, change: str, tmp_path: Path
) -> None:
    cache = DiskCache(tmp_path / "cache", max_bytes=1 << 20)
    data = content("a")
    cache.write([("a", 0, data)])
    path = cache._path("a", suffix)
    size = path.stat().st_size
    path.unlink()
    if change == "cut":
        path.write_bytes(b"x" * (size - 1))
    elif change == "hole":
        path.touch()
        os.truncate(path, size)
    elif change == "link":
        (tmp_path / "outside").write_bytes(b"kept")
        path.symlink_to(tmp_path / "outside")
    elif change == "fifo":
        os.mkfifo(path)
    elif change == "folder":
        path.mkdir()
    assert cache.read("a", 0, SIZE) is None
    cache.write([("a", 0, data)])  # as far as it can be
    if change in ("cut", "gone", "hole"):
        assert cache.read("a", 0, SIZE) == data
    elif change == "link":
        assert (tmp_path / "outside").read_bytes() == b"kept"


def test_its_room_stays_within_the_bound_and_the_newest_stay(tmp_path: Path) -> None:
    most = 2_000_000
    cache = DiskCache(tmp_path, max_bytes=most)
    for number in range(200):
        name = f"object {number}"
        cache.write([(name, 0, content(name, 51_200))])
        assert room_of(tmp_path) <= most
        assert cache.read(name, 0, 51_200) == content(name, 51_200)
        cache.read("object 0", 0, 51_200)  # used again and again: it stays
    assert cache.read("object 0", 0, 51_200) is not None
    assert cache.read("object 1", 0, 51_200) is None
    assert room_of(tmp_path) > most // 3
    cache.write([("huge", 0, content("huge", most))])
    assert cache.read("huge", 0, most) is None
    assert room_of(tmp_path) <= most


def fill(arguments: tuple[str, int, int]) -> int:
    folder, seed, most = arguments
    cache = DiskCache(folder, max_bytes=most)
    wrong = 0
    for number in range(60):
        name = f"object {(number * 7 + seed) % 50}"
        data = content(name, 20_480)
        cache.write([(name, 0, data)])
        found = cache.read(name, 0, 20_480)
        wrong += found is not None and found != data
        with cache._locked():  # else files come and go while they are counted
            wrong += room_of(Path(folder)) > most
    return wrong


def test_processes_share_it_within_the_bound(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        wrong = pool.map(fill, [(str(tmp_path), seed, 500_000) for seed in range(4)])
    assert wrong == [0] * 4


def test_a_full_disk_costs_nothing_but_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = DiskCache(tmp_path, max_bytes=1 << 20)

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr("os.pwrite", full)
        cache.write([("a", 0, content("a"))])
        assert cache.read("a", 0, SIZE) is None
    cache.write([("a", 0, content("a"))])
    assert cache.read("a", 0, SIZE) == content("a")


# Which directory.


def test_a_directory_with_anything_else_is_refused_and_left_alone(
    tmp_path: Path,
) -> None:
    save(str(tmp_path / "run"), None, with_cameras(1))
    before = sorted(tmp_path.rglob("*"))
    for folder in (tmp_path, tmp_path / "run", tmp_path / "run" / "trajectories"):
        with pytest.raises(InvalidInputError, match="an empty directory is needed"):
            TrajectoryReplayBuffer(cache_dir=folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_only_its_own_files_are_deleted(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, max_bytes=300_000)
    others = [tmp_path / "notes.txt", tmp_path / "ab" / "notes.txt"]
    others += [tmp_path / "ab" / ("0" * 32 + ".zarr.zip"), tmp_path / "c" / "x.data"]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 100_000)
    for number in range(60):
        cache.write([(str(number), 0, content(str(number), 10_240))])
    assert all(path.read_bytes() == b"x" * 100_000 for path in others)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cache_dir '.*file/cache' cannot be used"):
        DiskCache(tmp_path / "file" / "cache", max_bytes=1)


# Under a buffer.


def test_another_run_finds_what_this_one_fetched(asked: Asked, tmp_path: Path) -> None:
    url, trajectories = memory_url(), with_cameras(4, num_steps=30)
    save(url, None, trajectories)
    for number in range(3):
        asked.rounds.clear()
        buffer = loaded(url, cache_dir=tmp_path / "cache")
        buffer.manual_seed(3)
        batch = buffer.sample(20)
        assert_same_batch(batch, draw(trajectories, 20, generator(3)))
        assert bool(asked.rounds) == (number == 0)
        assert (buffer.get_stats(detailed=True)["requests"] == 0) == (number > 0)
    shutil.rmtree(tmp_path / "cache")  # at any time
    assert_same_batch(buffer.sample(50), draw(trajectories, 50, later(3, 20)))


def later(seed: int, count: int) -> Any:
    """Return a generator that has drawn once."""
    made = generator(seed)
    draw(with_cameras(4, num_steps=30), count, made)
    return made


def test_a_cache_that_was_damaged_changes_no_batch(tmp_path: Path) -> None:
    url, trajectories = memory_url(), with_cameras(3, num_steps=20)
    save(url, None, trajectories)
    rng = np.random.default_rng(1)
    for _ in range(8):
        buffer = loaded(url, cache_dir=tmp_path / "cache", cache_dir_bytes=3_000_000)
        buffer.manual_seed(3)
        for count in (20, 40):
            buffer.sample(count)
        buffer.manual_seed(9)
        assert_same_batch(buffer.sample(30), draw(trajectories, 30, generator(9)))
        for path in (tmp_path / "cache").rglob("*.[ds]*"):
            damaged = np.frombuffer(path.read_bytes(), np.uint8).copy()
            some = rng.integers(0, len(damaged), max(1, len(damaged) // 2000))
            damaged[some] ^= 0xFF
            path.write_bytes(damaged.tobytes())
