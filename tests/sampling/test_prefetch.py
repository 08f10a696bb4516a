"""What is fetched before it is asked for, and what follows others, changes no batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batches import assert_same_batch, draw, generator
from support.paths import TESTS
from support.remote import Asked, loaded, memory_url, save, with_cameras
from support.s3 import S3

from zarrbuf import TrajectoryReplayBuffer
from zarrbuf.common.background import BackgroundThread, EndingError, Repeater, UnderWay
from zarrbuf.errors import FormatError, InvalidInputError, StorageError
from zarrbuf.storage.object_store import ObjectStorage
from zarrbuf.storage.resolve import open_storage
from zarrbuf.stores.logged import LogStore


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def idle(buffer: TrajectoryReplayBuffer) -> None:
    """Wait until nothing is fetched ahead any more."""
    prefetcher = buffer._prefetcher
    for thread in (prefetcher._thread, prefetcher._newest_thread):
        thread.submit(lambda: None).result()


# The next batches.


def test_batches_that_are_expected_need_no_request_when_they_come(
    asked: Asked,
) -> None:
    url, trajectories = memory_url(), with_cameras(4, num_steps=30)
    save(url, None, trajectories)
    with loaded(url, prefetch_batches=2) as buffer:
        draws = generator(1234)
        for number in range(6):
            idle(buffer)
            batch = buffer.sample(9)
            assert_same_batch(batch, draw(trajectories, 9, draws))
            # One size twice makes it foreseeable: the third is fetched already.
            assert (buffer.get_stats(detailed=True)["last_requests"] > 0) == (
                number < 2
            )


def test_one_batch_alone_has_nothing_fetched_ahead(asked: Asked) -> None:
    url = memory_url()
    save(url, None, with_cameras(4, num_steps=30))
    with loaded(url, prefetch_batches=2) as buffer:
        buffer.sample(9)
        idle(buffer)
        assert len(asked.rounds) == 3
        buffer.sample(10)
        idle(buffer)
        assert len(asked.rounds) == 4


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 3),
    st.sampled_from((0, 60_000, 1 << 24)),
    st.lists(
        st.sampled_from(("5", "5", "5", "20", "seed", "add", "clear")), max_size=14
    ),
)
def test_what_is_fetched_ahead_changes_no_batch(
    depth: int, cache_bytes: int, doings: list[str]
) -> None:
    url, trajectories = memory_url(), with_cameras(3, num_steps=8)
    save(url, None, trajectories)
    buffer = loaded(
        url, prefetch_batches=depth, cache_bytes=cache_bytes, cache_size=depth
    )
    draws = generator(1234)
    for doing in ["5", *doings, "5"]:
        if doing == "seed":
            buffer.manual_seed(7)
            draws = generator(7)
        elif doing == "add":
            trajectories += with_cameras(1)
            buffer.add_trajectories(trajectories[-1:])
        elif doing == "clear":
            buffer.clear_cache()
        else:
            batch = buffer.sample(int(doing))
            assert_same_batch(batch, draw(trajectories, int(doing), draws))
    assert buffer._reader.archives.num_bytes <= cache_bytes
    buffer.close()


def test_nothing_is_fetched_ahead_that_there_is_no_room_for(asked: Asked) -> None:
    url = memory_url()
    save(url, None, with_cameras(4, num_steps=30))
    with loaded(url, prefetch_batches=2, cache_bytes=150_000) as buffer:
        for _ in range(3):
            buffer.sample(9)
            idle(buffer)
        assert buffer.get_stats(detailed=True)["requests"] == sum(
            map(len, asked.rounds)
        )


def test_an_error_ahead_is_raised_by_the_batch_that_it_is_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = memory_url()
    save(url, None, with_cameras(4, num_steps=30))
    read = ObjectStorage.read_ranges
    faults: list[str] = []

    def fail(storage: ObjectStorage, ranges: Any) -> Any:
        if faults:
            raise StorageError(faults[0])
        return read(storage, ranges)

    monkeypatch.setattr(ObjectStorage, "read_ranges", fail)
    with loaded(url, prefetch_batches=1) as buffer:
        buffer.sample(9)
        faults.append("no network")
        with pytest.raises(StorageError, match="no network"):
            buffer.sample(9)
        faults.clear()
        buffer.sample(9)
        idle(buffer)
        faults.append("again")
        buffer.sample(9)  # was fetched before
        idle(buffer)
        with pytest.raises(StorageError, match="again"):
            buffer.sample(9)  # was not, and now is not either
        faults.clear()
        buffer.sample(9)


def test_two_threads_may_draw_at_once() -> None:
    url = memory_url()
    save(url, None, with_cameras(4, num_steps=30))
    failures: list[BaseException] = []
    with loaded(url, prefetch_batches=2) as buffer:

        def work(count: int) -> None:
            try:
                for _ in range(25):
                    assert len(buffer.sample(count)["rewards"]) == count
            except BaseException as exc:
                failures.append(exc)

        threads = [threading.Thread(target=work, args=(n,)) for n in (9, 9, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


# The newest.


def test_the_newest_trajectories_are_fetched_whole(asked: Asked) -> None:
    url = memory_url()
    save(url, None, with_cameras(6, num_steps=30))
    with loaded(url, cache_size=2) as buffer:
        buffer.sample(1)
        idle(buffer)
        log = LogStore.open(open_storage(url))
        newest = [log.rows.row(n) for n in (4, 5)]
        for row in newest:
            ranges = [r for some in asked.rounds for r in some if r.name == row.path]
            assert sum(r.stop - r.start for r in ranges) >= row.size
        assert sum(r.stop - r.start for some in asked.rounds for r in some) < (
            sum(row.size for row in newest) + 5 * 40_000
        )


def test_without_a_cache_the_newest_are_not_fetched(asked: Asked) -> None:
    url = memory_url()
    save(url, None, with_cameras(3, num_steps=30))
    with loaded(url, cache_size=3, enable_cache=False) as buffer:
        buffer.sample(1)
        idle(buffer)
        assert len(asked.rounds) == 3


# Following others.


def test_a_learner_follows_the_buffer_that_it_loaded() -> None:
    url, trajectories = memory_url(), with_cameras(4)
    save(url, None, trajectories[:2])
    learner = loaded(url)
    save(url, None, trajectories[2:])
    assert len(learner) == 2
    learner.refresh()
    assert (len(learner), learner.is_ready(4), learner.is_ready(5)) == (4, True, False)
    learner.manual_seed(5)
    assert_same_batch(learner.sample(40), draw(trajectories, 40, generator(5)))
    learner.add_trajectories(with_cameras(1))
    assert sorted(set(learner._trajectory_id_list)) == [0, 1, 2, 3, 4]


def test_a_part_of_a_buffer_stays_what_it_was() -> None:
    url = memory_url()
    save(url, None, with_cameras(4))
    learner = TrajectoryReplayBuffer()
    learner.load_checkpoint(url, is_distributed=True, local_rank=0, world_size=2)
    save(url, None, with_cameras(2))
    learner.refresh()
    assert len(learner) == 2


def test_a_buffer_that_loads_itself_lists_nothing_twice() -> None:
    url = memory_url()
    with TrajectoryReplayBuffer(auto_save=True, auto_save_path=url) as buffer:
        buffer.add_trajectories(with_cameras(2))
        buffer.load_checkpoint(url)
        buffer.add_trajectories(with_cameras(1))
        buffer.flush()
        buffer.refresh()
        assert len(buffer) == 3


def test_a_learner_looks_for_what_is_new_by_itself() -> None:
    url, trajectories = memory_url(), with_cameras(3)
    save(url, None, trajectories[:1])
    with loaded(url, refresh_interval_s=0.01) as learner:
        save(url, None, trajectories[1:])
        eventually(lambda: len(learner) == 3)


def test_an_error_while_looking_reaches_the_next_batch() -> None:
    url = memory_url()
    save(url, None, with_cameras(1))
    with loaded(url, refresh_interval_s=0.01) as learner:
        storage = open_storage(url)
        storage.ensure("manifest/00000000000000000003.json", b"damaged")
        eventually(lambda: learner._refreshing.has_failed)
        with pytest.raises(FormatError, match=r"00003\.json"):
            learner.sample(1)
        storage.delete("manifest/00000000000000000003.json")
        eventually(lambda: not learner._refreshing.has_failed)


@pytest.mark.parametrize("value", [0, -1, "1", True, float("nan"), 1e10])
def test_other_intervals_are_refused_by_name(value: Any) -> None:
    with pytest.raises(InvalidInputError, match="refresh_interval_s"):
        TrajectoryReplayBuffer(refresh_interval_s=value)


# Threads.


def test_work_in_the_background_is_done_in_order_and_closing_leaves_the_rest() -> None:
    thread, done = BackgroundThread("test"), []
    gate = threading.Event()
    first = thread.submit(gate.wait)
    futures = [thread.submit(lambda n=n: done.append(n)) for n in range(3)]  # type: ignore[misc]
    closing = threading.Thread(target=thread.close)
    closing.start()
    eventually(lambda: all(one.cancelled() for one in futures))
    gate.set()
    closing.join(20)
    assert first.result() is True
    assert done == []
    thread.close()
    assert thread.submit(lambda: 7).result() == 7  # a new thread
    failing = thread.submit(lambda: 1 / 0)
    assert isinstance(failing.exception(), ZeroDivisionError)
    thread.close()


def test_forked_children_fetch_ahead_and_follow_on_their_own() -> None:
    url = memory_url()
    save(url, None, with_cameras(4, num_steps=30))
    with loaded(url, prefetch_batches=2, refresh_interval_s=0.01) as buffer:
        for _ in range(3):
            buffer.sample(9)
        child = os.fork()
        if child == 0:
            for _ in range(4):
                buffer.sample(9)
            idle(buffer)
            os._exit(0 if buffer._refreshing.is_running else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_repeater_stops_when_it_is_closed() -> None:
    calls: list[int] = []

    class Caller:
        def call(self) -> None:
            calls.append(1)

    caller = Caller()
    repeater = Repeater(caller.call, interval_s=0.001)
    eventually(lambda: len(calls) > 3)
    repeater.close()
    count = len(calls)
    time.sleep(0.02)
    assert len(calls) == count
    repeater.close()
    dropped = Repeater(caller.call, interval_s=0.001)
    del caller
    eventually(lambda: not dropped.is_running)


def test_the_interpreter_ends_in_the_middle_of_no_call() -> None:
    calls = UnderWay()
    is_under_way, may_go_on = threading.Event(), threading.Event()
    order: list[str] = []

    def call() -> None:
        with calls:
            is_under_way.set()
            may_go_on.wait()
            order.append("called")

    def call_late() -> None:
        try:
            with calls:
                order.append("begun after the end")
        except EndingError:
            order.append("refused")

    def end() -> None:
        calls.end()
        order.append("ended")

    first = threading.Thread(target=call, daemon=True)
    first.start()
    is_under_way.wait()
    ending = threading.Thread(target=end)
    ending.start()
    ending.join(0.05)
    assert order == []
    may_go_on.set()
    ending.join()
    late = threading.Thread(target=call_late, daemon=True)
    late.start()
    late.join()
    assert order == ["called", "ended", "refused"]
    with calls:  # the last work of the main thread is done still
        pass
    calls.reset()
    again = threading.Thread(target=call_late, daemon=True)
    again.start()
    again.join()
    assert order[3:] == ["begun after the end"]


@pytest.mark.parametrize("client", ["obstore", "s3fs"])
def test_a_program_that_leaves_while_requests_are_under_way_ends_well(
    client: str, s3: S3
) -> None:
    save(s3.url(), s3.options(client), with_cameras(2, num_steps=12))
    s3.plan(latency_s=0.05)
    program = (
        "import json, sys\n"
        "from support.remote import loaded\n"
        "buffer = loaded(sys.argv[1], json.loads(sys.argv[2]), prefetch_batches=2)\n"
        "buffer.sample(6)\n"
        "buffer.sample(6)\n"
    )
    words = [sys.executable, "-c", program, s3.url(), json.dumps(s3.options(client))]
    found = subprocess.run(
        words, cwd=TESTS, capture_output=True, text=True, timeout=120
    )
    assert (found.returncode, found.stderr) == (0, "")
