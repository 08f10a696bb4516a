"""What sampling has cost: counted, added up, and the same keys always."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest
import torch
from support.batches import generator
from support.trajectories import UUID, make_trajectory

from zarrbuf import Trajectory, TrajectoryReplayBuffer
from zarrbuf.errors import EmptyBufferError, InvalidInputError
from zarrbuf.sampling.stats import ReadStats, StatsKeeper
from zarrbuf.trajectory.archived import TrajectoryArchive
from zarrbuf.trajectory.encoding import encode_trajectory

COUNTS = (
    "batches",
    "samples",
    "chunks_read",
    "bytes_read",
    "bytes_decoded",
    "requests",
    "bytes_fetched",
    "archives_opened",
    "small_fields_decoded",
    "samples_cached",
)
SECONDS = (
    "compile_seconds",
    "plan_seconds",
    "read_seconds",
    "fetch_seconds",
    "decode_seconds",
    "gather_seconds",
)


def added() -> list[Trajectory]:
    return [make_trajectory(4 + 4 * (n % 2), 1 + n, seed=n) for n in range(3)]


def filled(**options: Any) -> TrajectoryReplayBuffer:
    buffer = TrajectoryReplayBuffer(seed=7, **options)
    buffer.add_trajectories(added())
    return buffer


# Single calls.


def test_the_parts_of_a_call_are_timed_and_take_no_longer_than_it() -> None:
    buffer = TrajectoryReplayBuffer(seed=1)
    buffer.add_trajectories([make_trajectory(8, 2, image_size=40)])
    started = perf_counter()
    buffer.sample(64)
    whole_s = perf_counter() - started
    stats = buffer.get_stats(detailed=True)
    parts = ("plan", "read", "decode", "gather")
    for part in parts:
        assert stats[f"{part}_seconds"] > 0, part
    assert stats["fetch_seconds"] >= 0
    seconds = [stats[name] for name in stats if re.fullmatch("[a-z]+_seconds", name)]
    assert len(seconds) == 6
    assert sum(seconds) <= whole_s


def test_adding_adds_every_number() -> None:
    names = list(vars(ReadStats()))
    assert set(names) == {*COUNTS, *SECONDS}
    one = ReadStats(**{name: number for number, name in enumerate(names)})
    other = ReadStats(**{name: 100 * number for number, name in enumerate(names)})
    one.add(other)
    assert vars(one) == {name: 101 * number for number, name in enumerate(names)}
    assert vars(other) == {name: 100 * number for number, name in enumerate(names)}


def test_the_keeper_gives_totals_and_the_last_call() -> None:
    keeper = StatsKeeper()
    names = list(vars(ReadStats()))
    assert keeper.numbers() == dict.fromkeys(
        [*names, *(f"last_{name}" for name in names)], 0
    )
    keeper.add(ReadStats(samples=3, plan_seconds=0.5))
    keeper.add(ReadStats(samples=4, read_seconds=0.25))
    found = keeper.numbers()
    assert (found["samples"], found["last_samples"]) == (7, 4)
    assert (found["plan_seconds"], found["last_plan_seconds"]) == (0.5, 0)
    assert (found["read_seconds"], found["last_read_seconds"]) == (0.25, 0.25)


def test_threads_lose_no_call() -> None:
    keeper = StatsKeeper()

    def add() -> None:
        for _ in range(2000):
            keeper.add(ReadStats(batches=1, samples=2, bytes_read=3))
            found = keeper.numbers()
            # Never half of a call.
            assert 3 * found["samples"] == 2 * found["bytes_read"]

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert keeper.numbers()["batches"] == 8000
    assert keeper.numbers()["samples"] == 16000


def test_a_lock_that_is_held_for_ever_can_be_replaced() -> None:
    keeper = StatsKeeper()
    keeper.add(ReadStats(samples=1))
    assert keeper._lock.acquire()
    keeper.make_lock()
    assert keeper.numbers()["samples"] == 1


# Of a buffer.


def test_every_key_is_there_from_the_beginning_and_a_number() -> None:
    buffer = TrajectoryReplayBuffer()
    first = buffer.get_stats(detailed=True)
    assert {*COUNTS, *SECONDS} <= set(first)
    assert {f"last_{name}" for name in (*COUNTS, *SECONDS)} <= set(first)
    buffer.add_trajectories(added())
    for count in (0, 1, 9):
        if count:
            buffer.sample(count)
        stats = buffer.get_stats(detailed=True)
        assert set(stats) == set(first)
        assert all(type(value) in (int, float) for value in stats.values())
        assert all(value >= 0 for value in stats.values())
        assert all(type(stats[name]) is int for name in COUNTS)
        assert all(type(stats[f"last_{name}"]) is int for name in COUNTS)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_totals_are_the_sums_of_the_calls(num_threads: int) -> None:
    buffer = filled(num_threads=num_threads)
    sums = dict.fromkeys((*COUNTS, *SECONDS), 0.0)
    for count in (1, 30, 7):
        buffer.sample(count)
        stats = buffer.get_stats(detailed=True)
        for name in sums:
            sums[name] += stats[f"last_{name}"]
            assert stats[name] == pytest.approx(sums[name])
        assert (stats["last_batches"], stats["last_samples"]) == (1, count)
    assert (stats["batches"], stats["samples"]) == (3, 38)
    for name in SECONDS:
        assert stats[name] > 0


def test_reading_the_numbers_changes_none() -> None:
    buffer = filled()
    buffer.sample(5)
    assert buffer.get_stats(detailed=True) == buffer.get_stats(detailed=True)


@pytest.mark.parametrize("codec", ["lz4", "zstd", "none"])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_bytes_read_are_those_of_the_chunks_that_were_drawn(
    codec: Any, num_threads: int
) -> None:
    buffer = filled(codec=codec, num_threads=num_threads)
    sizes: list[int] = []  # stored bytes of both frames of each sample, in order
    for trajectory in added():
        data = encode_trajectory(trajectory, uuid=UUID, codec=codec).data
        archive = TrajectoryArchive(data, name="x")
        stored = np.diff(archive.chunk_ranges("obs/main_images"))[:, 0]
        sizes += stored.reshape(2, -1).sum(axis=0).tolist()
    state = generator(7)
    for count in (1, 50):
        draws = torch.randint(0, len(sizes), (count,), generator=state).tolist()
        buffer.sample(count)
        stats = buffer.get_stats(detailed=True)
        assert stats["last_chunks_read"] == 2 * count
        assert stats["last_bytes_decoded"] == 2 * count * 40 * 40 * 3
        assert stats["last_bytes_read"] == sum(sizes[number] for number in draws)


@pytest.mark.usefixtures("nothing_packed")
def test_without_big_fields_no_chunk_is_counted() -> None:
    buffer = TrajectoryReplayBuffer(seed=1)
    buffer.add_trajectories([make_trajectory(4, 2, image_size=2)])
    buffer.sample(20)
    stats = buffer.get_stats(detailed=True)
    assert stats["samples"] == 20
    assert stats["chunks_read"] == stats["bytes_read"] == stats["bytes_decoded"] == 0
    assert stats["small_fields_decoded"] == 1


def test_small_fields_are_decoded_once_and_then_kept() -> None:
    buffer = filled()
    for turn in range(3):
        buffer.sample(300)  # so many that each trajectory is drawn from
        stats = buffer.get_stats(detailed=True)
        assert stats["last_small_fields_decoded"] == (3 if turn == 0 else 0)
        assert stats["last_samples_cached"] == (0 if turn == 0 else 300)
    assert (stats["small_fields_decoded"], stats["samples_cached"]) == (3, 600)
    buffer.clear_cache()
    buffer.sample(300)
    assert buffer.get_stats(detailed=True)["last_small_fields_decoded"] == 3


def test_without_a_cache_small_fields_are_decoded_each_time() -> None:
    buffer = filled(enable_cache=False)
    for _ in range(2):
        buffer.sample(300)
        stats = buffer.get_stats(detailed=True)
        assert stats["last_small_fields_decoded"] == 3
        assert stats["last_samples_cached"] == 0


def test_archives_are_opened_once(tmp_path: Path) -> None:
    with TrajectoryReplayBuffer(auto_save=True, auto_save_path=tmp_path) as buffer:
        buffer.add_trajectories(added())
    with TrajectoryReplayBuffer(
        seed=7, auto_save=True, auto_save_path=tmp_path
    ) as buffer:
        for turn in range(3):
            buffer.sample(300)
            stats = buffer.get_stats(detailed=True)
            assert stats["last_archives_opened"] == (3 if turn == 0 else 0)
            assert stats["archives_opened"] == 3
        buffer.clear_cache()
        buffer.sample(300)
        assert buffer.get_stats(detailed=True)["archives_opened"] == 6


def test_a_call_that_is_refused_counts_for_nothing() -> None:
    empty = TrajectoryReplayBuffer()
    with pytest.raises(EmptyBufferError):
        empty.sample(1)
    assert empty.get_stats(detailed=True)["batches"] == 0
    buffer = filled()
    buffer.sample(3)
    before = buffer.get_stats(detailed=True)
    for count, out in ((0, None), (3, {})):
        with pytest.raises(InvalidInputError):
            buffer.sample(count, out=out)
    assert buffer.get_stats(detailed=True) == before


def test_threads_that_draw_at_once_are_all_counted() -> None:
    buffer = filled(num_threads=2)
    failures: list[BaseException] = []

    def sample() -> None:
        try:
            for _ in range(10):
                buffer.sample(11)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=sample) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    stats = buffer.get_stats(detailed=True)
    assert (stats["batches"], stats["samples"]) == (40, 440)
    assert stats["chunks_read"] == 880
