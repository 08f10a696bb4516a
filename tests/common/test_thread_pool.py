"""Threads that share work: every piece once, errors kept, forks and ends survived."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from zarrbuf.common.thread_pool import Workers

WAIT = 20
"""Seconds after which something that should have happened has failed to."""


@pytest.fixture(params=[1, 2, 3, 4, 5])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    """Workers of each number of threads."""
    made = Workers(request.param)
    yield made
    made.close()


class Failure(Exception):  # noqa: N818
    """An error of the work, of a type nobody else raises."""


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10, 5000])
def test_every_piece_is_done_exactly_once(workers: Workers, count: int) -> None:
    done: list[int] = []
    for _ in range(3):
        done.clear()
        workers.run(done.append, range(count))
        assert Counter(done) == Counter(range(count))


def test_pieces_may_come_from_an_iterator(workers: Workers) -> None:
    done: list[int] = []
    workers.run(done.append, (number * 2 for number in range(7)))
    assert sorted(done) == [0, 2, 4, 6, 8, 10, 12]


def test_as_many_threads_work_at_once_as_were_asked_for(workers: Workers) -> None:
    count = workers.num_threads
    all_here = threading.Barrier(count)
    names: set[int] = set()

    def meet(_: int) -> None:
        all_here.wait(WAIT)  # passed only if that many are in it together
        names.add(threading.get_ident())

    workers.run(meet, range(count))
    assert len(names) == count
    assert threading.get_ident() in names


def test_no_more_threads_work_at_once_than_were_asked_for(workers: Workers) -> None:
    lock = threading.Lock()
    running, most = 0, 0

    def count_in(_: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.001)
        with lock:
            running -= 1

    workers.run(count_in, range(30))
    assert 1 <= most <= workers.num_threads


def test_one_thread_alone_starts_none() -> None:
    before = threading.active_count()
    one = Workers(1)
    seen: set[int] = set()
    one.run(lambda _: seen.add(threading.get_ident()), range(50))
    assert seen == {threading.get_ident()}
    assert threading.active_count() == before


def test_one_piece_is_done_by_the_caller() -> None:
    before = threading.active_count()
    many = Workers(4)
    seen: list[int] = []
    many.run(lambda _: seen.append(threading.get_ident()), [None])
    assert seen == [threading.get_ident()]
    assert threading.active_count() == before


# Errors.


def test_an_error_of_the_caller_is_raised_and_no_piece_begun_after(
    workers: Workers,
) -> None:
    caller = threading.get_ident()
    failed = threading.Event()
    begun: list[int] = []

    def work(piece: int) -> None:
        begun.append(piece)
        if threading.get_ident() == caller:
            failed.set()
            raise Failure("in the caller")
        # The others begin a second piece well after the caller has failed, if at all.
        assert failed.wait(WAIT)
        time.sleep(0.1)

    with pytest.raises(Failure, match="in the caller"):
        workers.run(work, range(1000))
    assert len(begun) <= workers.num_threads


@pytest.mark.parametrize("num_threads", [2, 3, 4])
def test_an_error_of_another_thread_is_raised_and_the_rest_left_out(
    num_threads: int,
) -> None:
    workers = Workers(num_threads)
    caller = threading.get_ident()
    failed = threading.Event()
    done: list[int] = []

    def work(piece: int) -> None:
        if threading.get_ident() != caller:
            failed.set()
            raise Failure("in another thread")
        assert failed.wait(WAIT)
        time.sleep(0.01)
        done.append(piece)

    with pytest.raises(Failure, match="in another thread"):
        workers.run(work, range(500))
    assert len(done) < 100
    workers.close()


def test_all_that_runs_has_ended_before_the_error_is_raised(workers: Workers) -> None:
    lock = threading.Lock()
    running = 0
    started = threading.Barrier(workers.num_threads)
    caller = threading.get_ident()

    def work(_: int) -> None:
        nonlocal running
        with lock:
            running += 1
        try:
            started.wait(WAIT)
            if threading.get_ident() == caller:
                raise Failure
            time.sleep(0.05)
        finally:
            with lock:
                running -= 1

    with pytest.raises(Failure):
        workers.run(work, range(workers.num_threads))
    assert running == 0


@pytest.mark.parametrize("kind", [ValueError, MemoryError, Failure, KeyboardInterrupt])
def test_errors_keep_their_type(workers: Workers, kind: type[BaseException]) -> None:
    def work(piece: int) -> None:
        if piece == 3:
            raise kind("the third")

    with pytest.raises(kind, match="the third"):
        workers.run(work, range(6))
    done: list[int] = []
    workers.run(done.append, range(20))
    assert sorted(done) == list(range(20))


def test_an_error_of_the_pieces_is_raised(workers: Workers) -> None:
    def pieces() -> Iterator[int]:
        yield 1
        raise Failure

    with pytest.raises(Failure):
        workers.run(lambda _: None, pieces())


# Ends and new beginnings.


def test_usable_after_close_and_closing_twice_is_safe(workers: Workers) -> None:
    done: list[int] = []
    workers.close()
    for _ in range(3):
        workers.run(done.append, range(9))
        workers.close()
        workers.close()
    assert Counter(done) == Counter(dict.fromkeys(range(9), 3))


def test_close_ends_the_threads() -> None:
    before = set(threading.enumerate())
    workers = Workers(4)
    workers.run(lambda _: time.sleep(0.001), range(50))
    started = set(threading.enumerate()) - before
    assert len(started) == 3
    assert all(thread.name.startswith("zarrbuf-worker") for thread in started)
    workers.close()
    assert set(threading.enumerate()) - before == set()


def test_threads_are_used_again() -> None:
    workers = Workers(3)
    before = threading.active_count()
    for _ in range(20):
        workers.run(lambda _: time.sleep(0.0001), range(8))
        assert threading.active_count() <= before + 2
    workers.close()


def test_usable_after_reset(workers: Workers) -> None:
    done: list[int] = []
    workers.run(done.append, range(9))
    executor = workers._executor
    workers.reset()
    workers.run(done.append, range(9))
    assert Counter(done) == Counter(dict.fromkeys(range(9), 2))
    assert workers._executor is None or workers._executor is not executor
    if executor is not None:
        executor.shutdown()


@pytest.mark.parametrize("when", ["idle", "while its parent works"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_works_after_reset(when: str) -> None:
    workers = Workers(3)
    workers.run(lambda _: time.sleep(0.001), range(20))
    going = threading.Event()
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            workers.run(lambda _: going.set(), range(6))

    busy = threading.Thread(target=keep_busy)
    if when != "idle":
        busy.start()
        assert going.wait(WAIT)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(WAIT)
            workers.reset()
            done: list[int] = []
            workers.run(done.append, range(500))
            workers.close()
            os.write(writing, b"ok" if sorted(done) == list(range(500)) else b"no")
        finally:
            os._exit(0)
    os.close(writing)
    answer = os.read(reading, 2)
    os.close(reading)
    os.waitpid(child, 0)
    stop.set()
    if when != "idle":
        busy.join(WAIT)
    workers.run(lambda _: None, range(9))
    workers.close()
    assert answer == b"ok"


# Several callers.


def test_several_threads_may_run_at_once(workers: Workers) -> None:
    results: dict[int, list[int]] = {number: [] for number in range(5)}

    def call(number: int) -> None:
        for _ in range(20):
            workers.run(results[number].append, range(17))

    callers = [threading.Thread(target=call, args=(n,)) for n in results]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(WAIT)
        assert not caller.is_alive()
    for done in results.values():
        assert Counter(done) == Counter(dict.fromkeys(range(17), 20))


def test_an_error_reaches_its_own_caller_only() -> None:
    workers = Workers(3)
    failures: list[Exception] = []
    done: list[int] = []

    def fail(_: int) -> None:
        raise Failure

    def call_and_fail() -> None:
        for _ in range(50):
            try:
                workers.run(fail, range(5))
            except Exception as exc:
                failures.append(exc)

    def call() -> None:
        for _ in range(50):
            workers.run(done.append, range(5))

    callers = [threading.Thread(target=target) for target in (call_and_fail, call)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(WAIT)
    workers.close()
    assert [type(failure) for failure in failures] == [Failure] * 50
    assert len(done) == 250


def test_a_caller_does_not_wait_for_the_work_of_another() -> None:
    workers = Workers(2)
    holding, release = threading.Barrier(3), threading.Event()

    def hold(_: int) -> None:
        holding.wait(WAIT)
        release.wait(WAIT)

    # Both threads of these workers are held: the caller's and the one more.
    other = threading.Thread(target=workers.run, args=(hold, range(2)))
    other.start()
    holding.wait(WAIT)
    done: list[int] = []
    mine = threading.Thread(target=workers.run, args=(done.append, range(9)))
    mine.start()
    mine.join(2)
    waits = mine.is_alive()
    release.set()
    for thread in (other, mine):
        thread.join(WAIT)
    workers.close()
    assert sorted(done) == list(range(9))
    assert not waits


def test_work_may_call_run_itself() -> None:
    workers = Workers(3)
    done: list[tuple[int, int]] = []

    def outer(piece: int) -> None:
        workers.run(lambda inner: done.append((piece, inner)), range(4))

    calling = threading.Thread(target=workers.run, args=(outer, range(8)), daemon=True)
    calling.start()
    calling.join(5)
    assert not calling.is_alive()
    assert sorted(done) == [(a, b) for a in range(8) for b in range(4)]
    workers.close()


# Executors that refuse.


def test_the_caller_does_all_alone_when_no_thread_can_be_had(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refuse)
    done: list[tuple[int, int]] = []
    workers.run(lambda piece: done.append((piece, threading.get_ident())), range(30))
    assert sorted(done) == [(piece, threading.get_ident()) for piece in range(30)]


def test_an_executor_that_refuses_halfway_changes_nothing(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = ThreadPoolExecutor.submit
    calls: list[object] = []

    def refuse_second(self: ThreadPoolExecutor, *args: Any) -> Future[Any]:
        calls.append(args)
        if len(calls) > 1:
            raise RuntimeError("can't start new thread")
        return submit(self, *args)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refuse_second)
    done: list[int] = []
    workers.run(done.append, range(100))
    assert sorted(done) == list(range(100))


@pytest.mark.parametrize("end", ["close", "reset"])
def test_ending_while_threads_are_asked_for_changes_nothing(
    workers: Workers, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = ThreadPoolExecutor.submit
    seen: set[ThreadPoolExecutor] = set()

    def submit_and_end(self: ThreadPoolExecutor, *args: Any) -> Future[Any]:
        seen.add(self)
        future = submit(self, *args)
        getattr(workers, end)()  # as another thread may do in between
        return future

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit_and_end)
    done: list[int] = []
    workers.run(done.append, range(100))
    assert sorted(done) == list(range(100))
    for executor in seen:
        executor.shutdown()
