"""The background writer: order, bound, errors, retries."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.trajectories import make_trajectory

from zarrbuf.common.uuids import new_uuid
from zarrbuf.errors import StorageError
from zarrbuf.stores.contract import NewTrajectory
from zarrbuf.stores.write_queue import BackgroundWriter
from zarrbuf.trajectory.encoding import encode_trajectory


def items(count: int) -> list[NewTrajectory]:
    """Return encoded trajectories with ids from 0."""
    trajectory = make_trajectory(1, 1, image_size=2)
    return [
        NewTrajectory.of(
            encode_trajectory(trajectory, uuid=new_uuid(), codec="lz4"),
            trajectory_id=number,
        )
        for number in range(count)
    ]


class Target:
    """Takes what is appended; waits and fails when told to."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.batches: list[int] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.started = threading.Event()
        self.faults = 0

    def append(self, batch: Sequence[NewTrajectory]) -> None:
        self.started.set()
        assert self.may_go.wait(30)
        if self.faults:
            self.faults -= 1
            raise StorageError(f"trajectory {batch[0].row.trajectory_id}: no disk")
        self.ids += [item.row.trajectory_id for item in batch]
        self.batches.append(len(batch))


def test_everything_is_appended_once_and_in_order() -> None:
    target = Target()
    writer = BackgroundWriter(target.append, max_queue_bytes=1 << 30)
    every = items(50)
    for start in range(0, 50, 5):
        writer.enqueue(every[start : start + 5])
    writer.flush()
    assert target.ids == list(range(50))
    assert writer.num_queued == 0
    writer.close()


def test_what_waits_goes_in_one_batch() -> None:
    target = Target()
    target.may_go.clear()
    writer = BackgroundWriter(target.append, max_queue_bytes=1 << 30)
    every = items(20)
    writer.enqueue(every[:1])
    assert target.started.wait(30)
    writer.enqueue(every[1:])
    target.may_go.set()
    writer.close()
    assert target.batches == [1, 19]


def test_a_full_queue_makes_the_caller_wait() -> None:
    target = Target()
    target.may_go.clear()
    every = items(3)
    size = len(every[0].encoded.data)
    writer = BackgroundWriter(target.append, max_queue_bytes=2 * size)
    writer.enqueue(every[:2])
    writer.wait_for_room()
    writer.enqueue(every[2:])
    has_room = threading.Event()

    def wait() -> None:
        writer.wait_for_room()
        has_room.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not has_room.wait(0.05)
    assert writer.num_queued == 3
    target.may_go.set()
    assert has_room.wait(30)
    thread.join()
    writer.close()
    assert target.ids == [0, 1, 2]


def test_an_error_is_raised_once_and_what_failed_is_tried_again() -> None:
    target = Target()
    target.faults = 2
    writer = BackgroundWriter(target.append, max_queue_bytes=1 << 30)
    writer.enqueue(items(4))
    while target.faults == 2 or writer._is_draining:
        pass
    with pytest.raises(StorageError, match="trajectory 0: no disk"):
        writer.raise_error()
    writer.raise_error()
    with pytest.raises(StorageError, match="trajectory 0: no disk"):
        writer.flush()
    assert target.ids == []
    assert writer.num_queued == 4
    writer.flush()
    assert target.ids == [0, 1, 2, 3]
    writer.close()


def test_adding_after_an_error_on_a_full_queue_goes_on() -> None:
    target = Target()
    target.faults = 1
    writer = BackgroundWriter(target.append, max_queue_bytes=1)
    every = items(3)
    writer.enqueue(every[:1])
    writer.wait_for_room()
    with pytest.raises(StorageError):
        writer.raise_error()
    for item in every[1:]:
        writer.enqueue([item])
        writer.wait_for_room()
    writer.close()
    assert target.ids == [0, 1, 2]


def test_flushing_waits_for_what_came_before_and_not_for_what_comes() -> None:
    target = Target()
    writer = BackgroundWriter(target.append, max_queue_bytes=1 << 30)
    every = items(60)
    writer.enqueue(every[:1])
    stop = threading.Event()

    def keep_adding() -> None:
        for item in every[1:]:
            writer.enqueue([item])
            if stop.wait(0.01):
                return

    slow = target.append

    def append(batch: Sequence[NewTrajectory]) -> None:
        slow(batch)
        stop.wait(0.02)

    writer._append = append
    thread = threading.Thread(target=keep_adding)
    thread.start()
    writer.flush()
    assert 0 in target.ids
    assert writer._num_enqueued < 60
    stop.set()
    thread.join()
    writer.close()


def test_without_new_threads_the_caller_saves_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refuse)
    target = Target()
    writer = BackgroundWriter(target.append, max_queue_bytes=1)
    writer.enqueue(items(2))
    assert target.ids == [0, 1]
    writer.close()


def test_a_full_queue_with_a_failing_store_does_not_hang() -> None:
    target = Target()
    target.faults = 1000
    every = items(6)
    writer = BackgroundWriter(target.append, max_queue_bytes=1)
    for item in every:
        writer.enqueue([item])
        writer.wait_for_room()
    with pytest.raises(StorageError, match="no disk"):
        writer.close()
    assert writer.num_queued == 6
    target.faults = 0
    writer.close()
    writer.close()
    assert target.ids == [0, 1, 2, 3, 4, 5]


def test_closing_without_waiting_lets_the_queue_run_out() -> None:
    target = Target()
    target.may_go.clear()
    writer = BackgroundWriter(target.append, max_queue_bytes=1 << 30)
    writer.enqueue(items(2))
    writer.close(wait=False)
    assert target.ids == []
    target.may_go.set()
    writer.flush()
    assert target.ids == [0, 1]
    writer.close()
