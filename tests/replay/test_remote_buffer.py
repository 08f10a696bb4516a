"""Buffers on object stores: the same batches, from few requests and few bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batches import assert_same_batch, draw, generator, leaves
from support.remote import Asked, loaded, memory_url, save, with_cameras
from support.s3 import S3
from support.trajectories import assert_same_trajectory, make_trajectory

from zarrbuf import Trajectory, TrajectoryReplayBuffer, convert, list_buffer, verify
from zarrbuf.errors import FormatError, NotFoundError
from zarrbuf.storage.fetching import FetchCost, RemoteObject, fetch, fetch_in_steps
from zarrbuf.storage.ranges import BLOCK_BYTES
from zarrbuf.storage.resolve import open_storage
from zarrbuf.storage.sparse import SparseObject
from zarrbuf.stores.logged import LogStore
from zarrbuf.trajectory.archived import TAIL_BYTES, TrajectoryArchive

CLIENTS = ("s3fs", "obstore")


@pytest.fixture(params=["memory", *CLIENTS])
def place(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """A URL where nothing is yet, and its storage options."""
    if request.param == "memory":
        return memory_url(), {}
    s3: S3 = request.getfixturevalue("s3")
    return s3.url(), s3.options(request.param)


def some_trajectories(count: int = 4, image_size: int = 64) -> list[Trajectory]:
    return [
        make_trajectory(4 + n, 3, seed=n, image_size=image_size, reset_every=3)
        for n in range(count)
    ]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


# The same batches.


def test_batches_are_those_of_a_local_buffer(place: tuple[str, Any]) -> None:
    trajectories = some_trajectories()
    save(*place, trajectories)
    buffer = loaded(*place)
    buffer.manual_seed(3)
    draws = generator(3)
    for count in (1, 40, 7):
        assert_same_batch(buffer.sample(count), draw(trajectories, count, draws))


def test_checkpoints_go_on_where_they_were_saved(place: tuple[str, Any]) -> None:
    url, options = place
    trajectories = some_trajectories()
    buffer = TrajectoryReplayBuffer(storage_options=options)
    buffer.add_trajectories(trajectories)
    buffer.sample(9)
    buffer.save_checkpoint(url)
    again = loaded(url, options)
    for count in (5, 12):
        assert_same_batch(again.sample(count), leaves(buffer.sample(count)))
    for number, one in enumerate(trajectories):
        assert_same_trajectory(again.load_trajectory(number), one)


def test_a_run_is_resumed_and_others_follow_it(place: tuple[str, Any]) -> None:
    url, options = place
    trajectories = some_trajectories()
    save(url, options, trajectories[:1])
    follower = TrajectoryReplayBuffer(
        auto_save=True, auto_save_path=url, storage_options=options
    )
    save(url, options, trajectories[1:])
    assert len(follower) == 1
    follower.refresh()
    assert len(follower) == 4
    follower.manual_seed(1)
    expected = draw(trajectories, 30, generator(1))
    assert_same_batch(follower.sample(30), expected)
    follower.close()


def test_convert_list_and_verify_take_urls(
    place: tuple[str, Any], tmp_path: Path
) -> None:
    url, options = place
    save(tmp_path / "here", None, some_trajectories())
    done = convert(tmp_path / "here", url, storage_options=options)
    assert done.num_trajectories == 4
    assert len(list_buffer(url, storage_options=options).rows) == 4
    result = verify(url, storage_options=options)
    assert (result.problems, result.num_trajectories) == ([], 4)
    convert(url, tmp_path / "again", storage_options=options)
    buffers = [loaded(tmp_path / "again"), loaded(url, options)]
    assert_same_batch(buffers[0].sample(20), leaves(buffers[1].sample(20)))


# Requests and bytes.


def test_a_batch_takes_three_rounds_and_a_repeated_one_none(asked: Asked) -> None:
    url = memory_url()
    save(url, None, with_cameras(6, num_steps=20))
    buffer = loaded(url)
    buffer.manual_seed(5)
    asked.rounds.clear()
    buffer.sample(30)
    tails, indexes, chunks = asked.rounds
    assert all(0 <= r.stop - r.start - TAIL_BYTES < BLOCK_BYTES for r in tails)
    assert len({one.name for one in tails}) == len(tails) == 6
    index_bytes = 16 * 2 * 20 * 3 + 4
    assert all(r.stop - r.start < index_bytes + 2 * BLOCK_BYTES for r in indexes)
    stats = buffer.get_stats(detailed=True)
    assert stats["requests"] == len(tails) + len(indexes) + len(chunks)
    assert stats["bytes_fetched"] == asked.num_bytes
    assert stats["fetch_seconds"] > 0
    buffer.manual_seed(5)
    buffer.sample(30)
    assert len(asked.rounds) == 3
    assert buffer.get_stats(detailed=True)["last_requests"] == 0


def test_little_more_is_fetched_than_is_drawn(asked: Asked) -> None:
    url = memory_url()
    save(url, None, with_cameras(8, num_steps=40))
    buffer = loaded(url)
    asked.rounds.clear()
    buffer.sample(20)
    tails, indexes, chunks = asked.rounds
    fetched = sum(one.stop - one.start for one in chunks)
    # A frame that is drawn twice, or is also the next one, is fetched once.
    assert fetched <= 1.5 * buffer.get_stats(detailed=True)["last_bytes_read"]
    opening = sum(one.stop - one.start for one in [*tails, *indexes])
    assert opening <= 8 * (128 << 10)


def test_the_current_and_the_next_frame_are_one_range(asked: Asked) -> None:
    url = memory_url()
    save(url, None, with_cameras(1, num_steps=50))
    buffer = loaded(url)
    asked.rounds.clear()
    buffer.sample(1)
    assert len(asked.rounds[-1]) == 2
    assert buffer.get_stats(detailed=True)["last_chunks_read"] == 4
    frame = 40 * 40 * 3
    assert all(one.stop - one.start < 2 * frame + 2000 for one in asked.rounds[-1])


def test_small_fields_alone_need_no_chunks(asked: Asked) -> None:
    url = memory_url()
    save(url, None, some_trajectories(5, image_size=2))
    buffer = loaded(url)
    asked.rounds.clear()
    buffer.sample(50)
    assert len(asked.rounds) == 1
    buffer.sample(50)
    assert len(asked.rounds) == 1


@pytest.mark.parametrize("client", CLIENTS)
def test_an_append_is_two_puts_and_a_get_however_many_share_its_commit(
    s3: S3, client: str
) -> None:
    with TrajectoryReplayBuffer(
        auto_save=True,
        auto_save_path=s3.url(),
        storage_options=s3.options(client),
    ) as buffer:
        for count in (1, 1, 5):
            s3.log()
            buffer.add_trajectories(with_cameras(count))
            buffer.flush()
            log = s3.log()
            puts = [entry["path"] for entry in log if entry["method"] == "PUT"]
            gets = [entry["path"] for entry in log if entry["method"] == "GET"]
            assert len(log) == len(puts) + len(gets)
            assert len([path for path in puts if "/trajectories/" in path]) == count
            # Of several, the first may be on its way before the others are queued.
            commits = [path for path in puts if "/manifest/" in path]
            assert len(puts) == count + len(commits)
            assert len(commits) <= min(2, count)
            assert len(gets) <= len(commits)
            assert all("/manifest/" in path for path in gets)  # nothing is listed
        s3.log()
        buffer.refresh()
        assert [entry["method"] for entry in s3.log()] == ["GET"]


# Bounds.


@pytest.mark.parametrize("cache_bytes", [0, 100_000, 1 << 20])
def test_what_was_fetched_is_kept_within_the_bound(cache_bytes: int) -> None:
    url = memory_url()
    trajectories = some_trajectories(6, image_size=128)
    save(url, None, trajectories)
    buffer = loaded(url, cache_bytes=cache_bytes)
    buffer.manual_seed(2)
    draws = generator(2)
    for count in (30, 1, 64):
        assert_same_batch(buffer.sample(count), draw(trajectories, count, draws))
        assert buffer._reader.archives.num_bytes <= cache_bytes


def test_an_archive_larger_than_the_bound_stays_open(asked: Asked) -> None:
    url = memory_url()
    (trajectory,) = with_cameras(1, num_steps=60)
    save(url, None, [trajectory])
    buffer = loaded(url, cache_bytes=300_000)
    asked.rounds.clear()
    draws = generator(1234)
    for _ in range(6):
        assert_same_batch(buffer.sample(25), draw([trajectory], 25, draws))
    assert buffer.get_stats(detailed=True)["archives_opened"] == 1
    assert len(asked.rounds) == 2 + 6


# Damage.


def test_a_damaged_chunk_is_found_when_it_is_drawn() -> None:
    url = memory_url()
    save(url, None, some_trajectories(1, image_size=128))
    storage = open_storage(url)
    (row,) = (LogStore.open(storage).rows.row(0),)
    data = bytearray(storage.read(row.path))
    data[5000] ^= 1
    storage.delete(row.path)
    storage.ensure(row.path, bytes(data))
    with pytest.raises(FormatError, match="crc32c"):
        loaded(url).sample(200)


@pytest.mark.parametrize("change", ["shorter", "empty", "gone", "other"])
def test_an_archive_that_is_not_the_one_listed_is_named(change: str) -> None:
    url = memory_url()
    save(url, None, some_trajectories(2))
    storage = open_storage(url)
    rows = LogStore.open(storage).rows
    path = rows.row(0).path
    data = storage.read(path)
    if change == "gone":
        storage.delete(path)
    else:
        found = {
            "shorter": data[:-7],
            "empty": b"",
            "other": storage.read(rows.row(1).path),
        }
        storage.delete(path)
        storage.ensure(path, found[change])
    error = NotFoundError if change == "gone" else FormatError
    with pytest.raises(error, match=r"trajectory_0_.*zarr|bytes"):
        loaded(url).sample(100)


def test_a_row_that_claims_a_huge_archive_is_refused_without_memory() -> None:
    with pytest.raises(FormatError, match="no memory has room"):
        SparseObject(1 << 62, name="x")


# Sparse objects and steps, against what they stand for.


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_fetched_ranges_are_those_of_the_object(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 9 * BLOCK_BYTES))
    content = np.random.default_rng(size).bytes(size)
    storage = open_storage(memory_url())
    storage.ensure("a", content)
    remote = RemoteObject(storage, "a", SparseObject(size, name="a"))
    fetched = 0
    for _ in range(data.draw(st.integers(1, 5))):
        pairs = st.tuples(st.integers(0, size), st.integers(0, size)).map(sorted)
        ranges = np.array(data.draw(st.lists(pairs, max_size=5)), np.int64)
        ranges = ranges.reshape(-1, 2)
        gap = data.draw(st.integers(0, 3 * BLOCK_BYTES))
        cost = FetchCost()
        fetch([(remote, ranges)], cost, max_gap_bytes=gap)
        fetched += cost.num_bytes
        for start, stop in ranges.tolist():
            assert remote.data.view[start:stop] == content[start:stop]
        again = FetchCost()
        fetch([(remote, ranges)], again, max_gap_bytes=gap)
        assert again == FetchCost()
    assert remote.data.view.readonly
    assert remote.data.resident_bytes <= -(-size // 4096) * 4096 + 4096


def test_jobs_go_on_in_rounds_until_all_have_what_they_need() -> None:
    storage = open_storage(memory_url())
    contents = [bytes([n]) * 10_000 for n in range(3)]
    storage.ensure_all({str(n): data for n, data in enumerate(contents)})

    def job(data: SparseObject) -> Iterator[Any]:
        seen = []
        for start in range(0, 3000 * (1 + data.view[0]), 3000):
            yield np.array([[start, start + 10]])
            seen.append(data.view[start])
        return seen

    def first(data: SparseObject) -> Any:
        yield np.array([[0, 1]])
        return (yield from job(data))

    jobs = [
        (RemoteObject(storage, str(n), SparseObject(10_000, name="x")), first)
        for n in range(3)
    ]
    cost = FetchCost()
    assert fetch_in_steps(jobs, cost) == [[0], [1, 1], [2, 2, 2]]
    # What lies in the block that is there already needs no round.
    assert (cost.rounds, cost.requests) == (3, 3 + 2 + 1)


def test_an_archive_is_opened_from_any_tail() -> None:
    """As many rounds as it takes, wherever the first one ends."""
    url = memory_url()
    save(url, None, some_trajectories(1))
    storage = open_storage(url)
    row = LogStore.open(storage).rows.row(0)
    whole = TrajectoryArchive(storage.read(row.path), name="x")
    for tail in (1, 22, 600, 3000, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("zarrbuf.trajectory.archived.TAIL_BYTES", tail)
            (archive,) = LogStore.open(storage).open_archives([row], FetchCost())
        assert archive.members == whole.members
        assert archive.header == whole.header
