"""RLinf's datasets: the stream, two buffers joined, the thread, every way to end."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from support.batches import assert_same_batch, leaves
from support.trajectories import make_trajectory
from torch.utils.data import DataLoader, IterableDataset

from zarrbuf import (
    PreloadReplayBufferDataset,
    ReplayBufferDataset,
    TrajectoryReplayBuffer,
    replay_buffer_collate_fn,
)
from zarrbuf.errors import EmptyBufferError, InvalidInputError, StorageError
from zarrbuf.sampling.batches import BatchMemory

BOTH = (ReplayBufferDataset, PreloadReplayBufferDataset)
MANY = 10**6
OTHER_THREADS: set[threading.Thread] = set()
pytestmark = pytest.mark.timeout(120)


class Fake:
    """A buffer of another class: no more than `is_ready` and `sample`.

    Batch number k holds k in every row; `hook` is called with k before it is drawn.
    """

    def __init__(self, *, size: int = 1, width: int = 2, **fields: Any) -> None:
        self.size = size
        self.width = width
        self.fields = fields
        self.counts: list[int] = []
        self.asked: list[int] = []
        self.hook: Callable[[int], None] = lambda number: None

    def is_ready(self, min_size: int) -> bool:
        self.asked.append(min_size)
        return self.size >= min_size

    def sample(self, num_chunks: int) -> dict[str, Any]:
        self.hook(len(self.counts))
        self.counts.append(num_chunks)
        number = float(len(self.counts) - 1)
        made = {key: make(num_chunks) for key, make in self.fields.items()}
        return {"x": torch.full((num_chunks, self.width), number), **made}


class Blocking(Fake):
    """Draws batch `at` only when it may."""

    def __init__(self, *, at: int = 0) -> None:
        super().__init__()
        self.began, self.may_go = threading.Event(), threading.Event()

        def wait(number: int) -> None:
            if number == at:
                self.began.set()
                assert self.may_go.wait(30)

        self.hook = wait


class Failing(Fake):
    """Fails at the numbers it is told."""

    def __init__(self, *at: int) -> None:
        super().__init__()
        failing = list(at)

        def fail(number: int) -> None:
            if number in failing:
                failing.remove(number)
                raise StorageError(f"no disk at {number}")

        self.hook = fail


def filled(seed: int = 3, *, first: int = 0, **options: Any) -> TrajectoryReplayBuffer:
    """Return a real buffer."""
    buffer = TrajectoryReplayBuffer(seed=seed)
    buffer.add_trajectories(
        [make_trajectory(8, 2, seed=first + n, **options) for n in range(3)]
    )
    return buffer


def make(
    kind: Any, replay: Any, demo: Any = None, size: int = 4, **options: Any
) -> Any:
    """Return a dataset that looks often at what it waits for."""
    options = {"poll_interval_s": 0.01, **options}
    return kind(replay, demo, size, 1, 1, **options)


def number_of(batch: dict[str, Any]) -> float:
    """Return the number that a batch of a `Fake` holds."""
    return float(batch["x"][0, 0])


def wait_for(condition: Callable[[], bool], *, seconds: float = 30) -> bool:
    """Return whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def preloading_threads() -> int:
    """Return the number of threads that draw ahead, those of other tests left out."""
    threads = set(threading.enumerate()) - OTHER_THREADS
    return sum(thread.name.startswith("zarrbuf-preload") for thread in threads)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    OTHER_THREADS.clear()
    OTHER_THREADS.update(threading.enumerate())
    yield
    if preloading_threads():
        gc.collect()
    assert wait_for(lambda: not preloading_threads())


def in_thread(work: Callable[[], Any]) -> Callable[[], Any]:
    """Start work in a thread; return how to get its result, within 30 seconds."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as exc:
            results.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(30)
        assert not thread.is_alive(), "hangs"
        return results[0]

    return result


# --- the stream -----------------------------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
def test_batches_are_those_that_the_buffer_draws(kind: Any) -> None:
    expected = filled()
    dataset = make(kind, filled(), size=5)
    assert isinstance(dataset, IterableDataset)
    stream = iter(dataset)
    for _ in range(12):
        assert_same_batch(next(stream), leaves(expected.sample(5)))
    dataset.close()


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("prefetch_size", [1, 2, 5])
def test_what_is_drawn_ahead_is_the_plain_stream(size: int, prefetch_size: int) -> None:
    def buffers() -> tuple[Any, Any]:
        return filled(5), filled(6, first=10)

    plain = iter(make(ReplayBufferDataset, *buffers(), size))
    dataset = make(
        PreloadReplayBufferDataset, *buffers(), size, prefetch_size=prefetch_size
    )
    for _, batch in zip(range(12), dataset, strict=False):
        assert_same_batch(batch, leaves(next(plain)))
    dataset.close()


@pytest.mark.parametrize("kind", BOTH)
def test_iterating_again_goes_on(kind: Any) -> None:
    dataset = make(kind, Fake())
    first, second = iter(dataset), iter(dataset)
    seen = [number_of(next(it)) for it in (first, second, first, first, second)]
    for batch in dataset:
        seen.append(number_of(batch))
        break
    assert seen == [0, 1, 2, 3, 4, 5]
    assert preloading_threads() <= 1
    dataset.close()
    for stream in (first, second, iter(dataset)):
        assert list(stream) == []


def test_two_iterators_in_two_threads_share_the_stream() -> None:
    buffer = Fake()
    dataset = make(PreloadReplayBufferDataset, buffer)

    def take_some() -> list[float]:
        stream = iter(dataset)
        return [number_of(next(stream)) for _ in range(200)]

    results = [in_thread(take_some) for _ in range(3)]
    seen = [result() for result in results]
    dataset.close()
    assert all(numbers == sorted(numbers) for numbers in seen)
    assert sorted(n for numbers in seen for n in numbers) == list(range(600))


@pytest.mark.parametrize("prefetch_size", [1, 3])
def test_no_more_is_drawn_ahead_than_said(prefetch_size: int) -> None:
    buffer = Fake()
    dataset = make(PreloadReplayBufferDataset, buffer, prefetch_size=prefetch_size)
    stream = iter(dataset)
    time.sleep(0.05)
    assert buffer.counts == []
    for taken in range(1, 4):
        next(stream)
        assert wait_for(lambda: len(buffer.counts) == prefetch_size + taken)  # noqa: B023
        time.sleep(0.05)
        assert len(buffer.counts) == prefetch_size + taken
    dataset.close()


def test_a_consumer_that_works_does_not_wait_for_draws() -> None:
    def seconds(kind: Any) -> float:
        buffer = Fake()
        buffer.hook = lambda number: time.sleep(0.014)
        dataset = make(kind, buffer)
        stream = iter(dataset)
        next(stream)
        start = time.perf_counter()
        for _ in range(25):
            next(stream)
            time.sleep(0.02)
        elapsed = time.perf_counter() - start
        dataset.close()
        return elapsed

    assert seconds(PreloadReplayBufferDataset) < 0.8 * seconds(ReplayBufferDataset)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("demo", [None, Fake()])
def test_nobody_refers_to_a_batch_that_was_handed_over(kind: Any, demo: Any) -> None:
    dataset = make(kind, Fake(), demo, prefetch_size=1)
    loader = DataLoader(dataset, batch_size=1, collate_fn=replay_buffer_collate_fn)
    for stream in (iter(dataset), iter(loader)):
        for _ in range(20):
            batch = next(stream)
            tensor = weakref.ref(batch["x"])
            del batch
            assert tensor() is None
    dataset.close()


def test_the_thread_drops_a_batch_before_it_draws_the_next() -> None:
    buffer = Fake()
    drawn: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    sample = buffer.sample

    def watch(num_chunks: int) -> dict[str, Any]:
        alive.append(sum(ref() is not None for ref in drawn))
        batch = sample(num_chunks)
        drawn.append(weakref.ref(batch["x"]))
        return batch

    buffer.sample = watch  # type: ignore[method-assign]
    dataset = make(PreloadReplayBufferDataset, buffer, prefetch_size=2)
    stream = iter(dataset)
    for _ in range(100):
        next(stream)
    dataset.close()
    assert max(alive) <= 2  # one that waits, one that was just handed over


# --- two buffers ----------------------------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    ("size", "fraction", "counts"),
    [
        (8, 0.5, (4, 4)),
        (7, 0.5, (4, 3)),
        (1, 0.5, (1, 0)),
        (3, 0.5, (2, 1)),
        (10, 0.25, (8, 2)),
        (100, 0.29, (71, 29)),
        (5, 0.3, (4, 1)),
        (6, 0, (6, 0)),
        (6, 1, (0, 6)),
    ],
)
def test_every_row_of_a_batch_comes_from_one_of_them(
    kind: Any, size: int, fraction: float, counts: tuple[int, int]
) -> None:
    replay, demo = Fake(), Fake()
    dataset = make(kind, replay, demo, size, demo_fraction=fraction)
    batch = next(iter(dataset))
    dataset.close()
    assert len(batch["x"]) == size == sum(counts)
    for buffer, count in zip((replay, demo), counts, strict=True):
        assert set(buffer.counts) == ({count} if count else set())
        assert bool(buffer.asked) == bool(count)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("size", [6, 7])
def test_rows_of_the_replay_buffer_come_first(kind: Any, size: int) -> None:
    dataset = make(kind, filled(5), filled(6, first=10), size)
    replay, demo = filled(5), filled(6, first=10)
    for _, batch in zip(range(3), dataset, strict=False):
        parts = leaves(replay.sample(size - size // 2)), leaves(demo.sample(size // 2))
        assert set(leaves(batch)) == set(parts[0])
        assert_same_batch(
            batch, {k: torch.cat((parts[0][k], parts[1][k])) for k in parts[0]}
        )
    dataset.close()


@pytest.mark.parametrize("kind", BOTH)
def test_what_one_of_them_lacks_is_left_out_and_said_once(
    kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    replay = Fake(
        obs=lambda n: {"image": torch.zeros(n, 2), "depth": torch.ones(n, 1)},
        only_replay=torch.ones,
        texts=lambda n: ["pick"] * n,
    )
    demo = Fake(
        obs=lambda n: {"image": torch.ones(n, 2)},
        more=lambda n: {"deep": torch.ones(n)},
        texts=lambda n: ["lift"] * n,
    )
    dataset = make(kind, replay, demo)
    with caplog.at_level(logging.WARNING, logger="zarrbuf"):
        for _, batch in zip(range(4), dataset, strict=False):
            assert set(leaves(batch)) == {("x",), ("obs", "image")}
            assert batch["obs"]["image"][:, 0].tolist() == [0, 0, 1, 1]
    dataset.close()
    said = [record.message for record in caplog.records]
    assert len(said) == 1
    assert said[0].endswith("has: more, obs/depth, only_replay, texts")


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda n: torch.zeros(n, 3, dtype=torch.float64),
            r"'obs/y' is float32 \[3\] in the replay buffer and float64 \[3\] in the d",
        ),
        (lambda n: torch.zeros(n, 2), r"float32 \[3\] .* float32 \[2\]"),
        (lambda n: torch.zeros(n, 3, 1), r"float32 \[3\] .* float32 \[3, 1\]"),
    ],
)
def test_a_field_of_two_kinds_is_refused_by_name(
    kind: Any, other: Any, message: str
) -> None:
    replay = Fake(obs=lambda n: {"y": torch.zeros(n, 3)})
    dataset = make(kind, replay, Fake(obs=lambda n: {"y": other(n)}))
    with pytest.raises(InvalidInputError, match=message):
        next(iter(dataset))
    dataset.close()


class Counting(TrajectoryReplayBuffer):
    """Counts the batches that were drawn into memory of the caller's."""

    num_filled = 0

    def sample(self, num_chunks: int, out: Any = None) -> dict[str, Any]:
        batch = super().sample(num_chunks, out=out)
        self.num_filled += out is not None
        return batch


def pair() -> tuple[Counting, Counting]:
    """Return two buffers: of different fields, but for some that both have."""
    replay, demo = Counting(seed=5), Counting(seed=6)
    for number in range(3):
        one = make_trajectory(8, 2, seed=number, versions=None)
        other = make_trajectory(4, 2, seed=number, with_next=False)
        one.forward_inputs["none"] = torch.ones(8, 2, 0)
        other.forward_inputs["none"] = torch.ones(4, 2, 0)
        one.curr_obs["extra"] = {"deep": torch.ones(8, 2, 5000), "low": one.rewards}
        other.forward_inputs["nested"] = torch.ones(4, 2, 2)
        replay.add_trajectories([one])
        demo.add_trajectories([other])
    return replay, demo


def joined(replay: Any, demo: Any, counts: tuple[int, int]) -> dict[Any, torch.Tensor]:
    """Return what a joined batch must be, drawn and joined the slow way."""
    first, second = leaves(replay.sample(counts[0])), leaves(demo.sample(counts[1]))
    return {key: torch.cat((first[key], second[key])) for key in first.keys() & second}


@pytest.mark.parametrize("kind", BOTH)
def test_buffers_that_fill_given_memory_fill_the_joined_batch(kind: Any) -> None:
    replay, demo = pair()
    expected = pair()
    dataset = make(kind, replay, demo, 33)
    stream = iter(dataset)
    kept = []
    for _ in range(8):
        kept.append((next(stream), joined(*expected, (17, 16))))
    for batch, expected_batch in kept:
        assert_same_batch(batch, expected_batch)
        assert all(tensor.is_contiguous() for tensor in leaves(batch).values())
    assert {("curr_obs", "main_images"), ("dones",)} < set(expected_batch)
    assert ("next_obs", "main_images") not in expected_batch
    assert min(replay.num_filled, demo.num_filled) >= 7
    dataset.close()


@pytest.mark.parametrize("who", [0, 1])
def test_fields_that_come_and_go_cost_no_draw(who: int) -> None:
    buffers, expected = pair(), pair()
    stream = iter(make(ReplayBufferDataset, *buffers, 9))
    changes = [
        {"rewards": None},
        {"truncations": None, "prev_values": None},
        {"forward_inputs": {}},
    ]
    for number, change in enumerate(changes):
        for _ in range(3):
            assert_same_batch(next(stream), joined(*expected, (5, 4)))
        for buffer in (buffers[who], expected[who]):
            buffer.add_trajectories(
                [make_trajectory(4, 2, seed=number, with_next=not who, **change)]
            )
    batch = next(stream)
    assert_same_batch(batch, joined(*expected, (5, 4)))
    assert "rewards" not in batch
    assert buffers[1 - who].num_filled >= 8
    for buffer in (buffers[who], expected[who]):
        buffer.clear()
        buffer.add_trajectories([make_trajectory(4, 2, seed=9)])
    batch = next(stream)
    assert_same_batch(batch, joined(*expected, (5, 4)))
    assert "rewards" in batch


@pytest.mark.parametrize("kind", BOTH)
def test_a_joined_batch_is_the_consumers_alone_until_it_is_dropped(kind: Any) -> None:
    dataset = make(kind, *pair(), 64, prefetch_size=2)
    stream = iter(dataset)
    next(stream)
    kept = [next(stream)["curr_obs"]["main_images"] for _ in range(4)]
    copies = [tensor.clone() for tensor in kept]
    for _ in range(6):
        next(stream)["curr_obs"]["main_images"].zero_()
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))
    used = {tensor.data_ptr() for tensor in kept}
    assert len(used) == 4
    del kept
    again = {next(stream)["curr_obs"]["main_images"].data_ptr() for _ in range(12)}
    assert len(again) <= 6
    dataset.close()


def test_a_joined_batch_is_page_locked_if_its_parts_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def memory(**options: Any) -> BatchMemory:
        asked.append(options.pop("pin_memory"))
        return BatchMemory(**options, pin_memory=False)

    monkeypatch.setattr("zarrbuf.training.mixing.BatchMemory", memory)
    next(iter(make(ReplayBufferDataset, *pair())))
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: True)
    next(iter(make(ReplayBufferDataset, *pair())))
    assert asked == [False, True]


# --- waiting --------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("who", ["replay", "demo"])
def test_it_waits_for_both_and_sizes_may_change_while_it_does(
    kind: Any, who: str
) -> None:
    buffers = {"replay": Fake(size=3), "demo": Fake(size=3)}
    dataset = make(kind, buffers["replay"], buffers["demo"])
    name = f"min_{who}_buffer_size"
    setattr(dataset, name, 5)
    assert getattr(dataset, name) == 5
    result = in_thread(lambda: number_of(next(iter(dataset))))
    assert wait_for(lambda: 5 in buffers[who].asked)
    time.sleep(0.03)
    assert all(buffer.counts == [] for buffer in buffers.values())
    setattr(dataset, name, 3)
    assert result() == 0
    setattr(dataset, name, MANY)
    stream = iter(dataset)
    ahead = len(buffers["replay"].counts) - 1
    for _ in range(ahead):
        next(stream)
    result = in_thread(lambda: number_of(next(stream)))
    time.sleep(0.03)
    buffers[who].size = MANY
    assert result() == ahead + 1
    dataset.close()


@pytest.mark.parametrize("kind", BOTH)
def test_a_real_buffer_is_waited_for_and_again_after_it_was_cleared(kind: Any) -> None:
    buffer = TrajectoryReplayBuffer(seed=1)
    dataset = make(kind, buffer, prefetch_size=1)
    stream = iter(dataset)
    for _ in range(3):
        result = in_thread(lambda: next(stream))
        time.sleep(0.03)
        buffer.add_trajectories([make_trajectory(4, 2)])
        assert len(result()["rewards"]) == 4
        next(stream)
        wait_for(lambda: not dataset._stream()._is_drawing if kind is BOTH[1] else True)
        buffer.clear()
        if kind is PreloadReplayBufferDataset:
            next(stream)  # was drawn before
    dataset.close()


@pytest.mark.parametrize("kind", BOTH)
def test_waiting_costs_no_time_of_the_processor(kind: Any) -> None:
    dataset = kind(Fake(size=0), None, 4, 1, 0)
    result = in_thread(lambda: list(dataset))
    start = time.process_time()
    time.sleep(0.5)
    used = time.process_time() - start
    dataset.close()
    assert result() == []
    assert used < 0.1


@pytest.mark.parametrize("is_full", [True, False])
def test_a_thread_with_nothing_to_draw_costs_nothing_either(is_full: bool) -> None:
    buffer = Fake()
    dataset = make(PreloadReplayBufferDataset, buffer, prefetch_size=2)
    next(iter(dataset))
    if not is_full:
        dataset.min_replay_buffer_size = MANY
    time.sleep(0.05)
    start = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - start < 0.06
    assert len(buffer.counts) <= 3
    dataset.close()


# --- errors ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
def test_an_error_reaches_the_consumer_in_its_place_and_once(kind: Any) -> None:
    dataset = make(kind, Failing(3))
    stream = iter(dataset)
    assert [number_of(next(stream)) for _ in range(3)] == [0, 1, 2]
    error = in_thread(lambda: next(stream))()
    assert type(error) is StorageError
    assert "no disk at 3" in str(error)
    frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert frames[-2:] == ["sample", "fail"]
    assert in_thread(lambda: list(stream))() == []
    again = iter(dataset)
    assert [number_of(next(again)) for _ in range(3)] == [3, 4, 5]
    dataset.close()


@pytest.mark.parametrize("kind", BOTH)
def test_drawing_pauses_after_an_error(kind: Any) -> None:
    buffer = Failing(1, 2)
    dataset = make(kind, buffer)
    first, second = iter(dataset), iter(dataset)
    next(first)
    with pytest.raises(StorageError, match="no disk at 1"):
        next(first)
    time.sleep(0.03)
    assert len(buffer.counts) == 1
    buffer.hook = lambda number: None
    assert number_of(next(second)) == 1
    dataset.close()


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), StopIteration()])
def test_errors_that_are_no_exceptions_do_not_hang(
    kind: Any, error: BaseException
) -> None:
    def fail(number: int) -> None:
        raise error

    buffer = Fake()
    buffer.hook = fail
    dataset = make(kind, buffer)
    found = in_thread(lambda: list(dataset))()
    dataset.close()
    assert error in (
        found,
        found.__cause__,
    )  # a StopIteration must not look like the end


@pytest.mark.parametrize("kind", BOTH)
def test_an_error_of_is_ready_reaches_the_consumer(kind: Any) -> None:
    buffer = Fake()
    buffer.is_ready = lambda min_size: 1 / 0  # type: ignore[assignment,method-assign]
    dataset = make(kind, buffer)
    assert isinstance(in_thread(lambda: next(iter(dataset)))(), ZeroDivisionError)
    dataset.close()


@pytest.mark.parametrize("kind", BOTH)
def test_an_empty_buffer_that_need_hold_nothing_says_so(kind: Any) -> None:
    dataset = kind(TrajectoryReplayBuffer(), None, 4, 0, 0)
    with pytest.raises(EmptyBufferError, match="holds no trajectory"):
        next(iter(dataset))
    dataset.close()


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"batch_size": 2**24 + 1}, "batch_size is"),
        ({"min_replay_buffer_size": -1}, "min_replay_buffer_size is -1"),
        (
            {"demo_buffer": Fake(), "min_demo_buffer_size": None},
            "min_demo_buffer_size is None",
        ),
        ({"replay_buffer": None}, "replay_buffer is NoneType"),
        ({"demo_buffer": 3}, "demo_buffer is int"),
        ({"demo_fraction": -0.1}, "demo_fraction is -0.1"),
        ({"demo_fraction": 1.5}, "demo_fraction is 1.5"),
        ({"demo_fraction": float("nan")}, "demo_fraction is nan"),
        ({"demo_fraction": True}, "demo_fraction is True"),
        ({"demo_fraction": "half"}, "demo_fraction is 'half'"),
        ({"poll_interval_s": 0}, "poll_interval_s is 0"),
        ({"poll_interval_s": float("inf")}, "poll_interval_s is inf"),
    ],
)
def test_bad_arguments_are_refused_by_name(
    kind: Any, options: dict[str, Any], message: str
) -> None:
    good = {
        "replay_buffer": Fake(),
        "demo_buffer": None,
        "batch_size": 4,
        "min_replay_buffer_size": 1,
        "min_demo_buffer_size": 0,
    }
    with pytest.raises(InvalidInputError, match=message):
        kind(**{**good, **options})


@pytest.mark.parametrize("kind", BOTH)
def test_without_a_demo_buffer_its_minimum_is_not_looked_at(kind: Any) -> None:
    dataset = kind(Fake(), None, 4, 1, None)
    assert next(iter(dataset)) is not None
    dataset.close()


@pytest.mark.parametrize("value", [0, -1, 1.5, None])
def test_a_prefetch_size_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInputError, match="prefetch_size is"):
        make(PreloadReplayBufferDataset, Fake(), prefetch_size=value)


def test_a_minimum_is_checked_where_it_is_set() -> None:
    dataset = make(ReplayBufferDataset, Fake())
    with pytest.raises(InvalidInputError, match="min_replay_buffer_size is 'a'"):
        dataset.min_replay_buffer_size = "a"
    with pytest.raises(InvalidInputError, match="min_demo_buffer_size is -3"):
        dataset.min_demo_buffer_size = -3


@pytest.mark.parametrize("kind", BOTH)
def test_attributes_and_options_of_others(
    kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    replay, demo = Fake(), Fake()
    with caplog.at_level(logging.INFO, logger="zarrbuf"):
        dataset = make(kind, replay, demo, 6, device="cpu")
    assert "no use of: device" in caplog.text
    assert dataset.replay_buffer is replay
    assert dataset.demo_buffer is demo
    assert dataset.batch_size == 6
    assert (dataset.min_replay_buffer_size, dataset.min_demo_buffer_size) == (1, 1)
    if kind is PreloadReplayBufferDataset:
        assert dataset.prefetch_size == 5


# --- the end --------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
def test_closing_before_use_and_twice(kind: Any) -> None:
    dataset = make(kind, Fake())
    for _ in range(2):
        in_thread(dataset.close)()
        assert list(dataset) == []
    assert preloading_threads() == 0


@pytest.mark.parametrize("kind", BOTH)
def test_closing_between_batches(kind: Any) -> None:
    dataset = make(kind, Fake())
    stream = iter(dataset)
    next(stream)
    next(stream)
    assert in_thread(dataset.close)() is None
    assert preloading_threads() == 0
    assert list(stream) == []
    assert in_thread(dataset.close)() is None


@pytest.mark.parametrize("kind", BOTH)
def test_closing_wakes_who_waits_for_trajectories_at_once(kind: Any) -> None:
    buffer = Fake(size=0)
    dataset = make(kind, buffer, poll_interval_s=1000)
    results = [in_thread(lambda: list(dataset)) for _ in range(3)]
    assert wait_for(lambda: len(buffer.asked) >= 3)
    start = time.monotonic()
    dataset.close()
    assert [result() for result in results] == [[], [], []]
    assert time.monotonic() - start < 10


def test_closing_wakes_who_waits_for_a_draw_and_waits_for_the_draw_itself() -> None:
    buffer = Blocking(at=1)
    dataset = make(PreloadReplayBufferDataset, buffer)
    stream = iter(dataset)
    next(stream)
    assert buffer.began.wait(30)
    waiting = in_thread(lambda: list(stream))
    time.sleep(0.03)
    closing = [in_thread(dataset.close) for _ in range(2)]
    assert waiting() == []
    assert preloading_threads() == 1
    buffer.may_go.set()
    assert [close() for close in closing] == [None, None]
    assert preloading_threads() == 0
    assert buffer.counts == [4, 4]


def test_closing_while_the_consumer_draws_lets_it_end() -> None:
    buffer = Blocking(at=0)
    dataset = make(ReplayBufferDataset, buffer)
    waiting = in_thread(lambda: [number_of(batch) for batch in dataset])
    assert buffer.began.wait(30)
    assert in_thread(dataset.close)() is None
    buffer.may_go.set()
    assert waiting() in ([], [0])
    assert buffer.counts == [4]


@pytest.mark.parametrize("kind", BOTH)
def test_a_buffer_may_close_the_dataset_that_draws_from_it(kind: Any) -> None:
    buffer = Fake()
    dataset = make(kind, buffer)
    buffer.hook = lambda number: dataset.close() if number == 2 else None
    seen = in_thread(lambda: [number_of(batch) for batch in dataset])()
    assert isinstance(seen, list)
    assert len(buffer.counts) == 3


def test_closing_at_any_moment() -> None:
    for pause in range(40):
        dataset = make(PreloadReplayBufferDataset, Fake(), prefetch_size=1 + pause % 3)
        waiting = in_thread(lambda: sum(1 for _ in dataset))  # noqa: B023
        time.sleep(pause / 10000)
        closing = [in_thread(dataset.close) for _ in range(2)]
        assert [close() for close in closing] == [None, None]
        assert isinstance(waiting(), int)
        assert preloading_threads() == 0


@pytest.mark.parametrize("moment", ["full", "drawing", "not ready", "failed"])
def test_a_dataset_that_is_collected_leaves_no_thread(moment: str) -> None:
    buffer = Blocking(at=2) if moment == "drawing" else Fake()
    if moment == "failed":
        buffer = Failing(2)
    dataset = make(PreloadReplayBufferDataset, buffer)
    stream = iter(dataset)
    next(stream)
    if moment == "not ready":
        dataset.min_replay_buffer_size = MANY
    if isinstance(buffer, Blocking):
        assert buffer.began.wait(30)
    gone = weakref.ref(dataset)
    del dataset
    assert gone() is not None  # the iterator needs it
    next(stream)
    del stream
    assert gone() is None
    if isinstance(buffer, Blocking):
        buffer.may_go.set()
    assert wait_for(lambda: preloading_threads() == 0)
    if moment == "drawing":
        assert len(buffer.counts) == 3


def test_without_new_threads_the_consumer_draws_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buffer = Fake()
    dataset = make(PreloadReplayBufferDataset, buffer, prefetch_size=2)
    stream = iter(dataset)
    next(stream)
    assert wait_for(lambda: len(buffer.counts) == 3)

    def refuse(*_: object) -> None:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refuse)
    assert [number_of(next(stream)) for _ in range(4)] == [1, 2, 3, 4]
    assert len(buffer.counts) == 5
    dataset.close()


SCRIPT = """
import threading, time
import torch
from zarrbuf import PreloadReplayBufferDataset, ReplayBufferDataset

class Fake:
    size, pause = 1, 0.0
    def is_ready(self, min_size):
        return self.size >= min_size
    def sample(self, num_chunks):
        time.sleep(self.pause)
        return {"x": torch.zeros(num_chunks, 2)}

buffer = Fake()
dataset = PreloadReplayBufferDataset(buffer, None, 4, 1, 0)
stream = iter(dataset)
next(stream)
"""
MOMENTS = {
    "full": "time.sleep(0.05)",
    "drawing": "buffer.pause = 0.3; next(stream); next(stream)",
    "not ready": "dataset.min_replay_buffer_size = 9; time.sleep(0.05)",
    "a thread waits": (
        "dataset.min_replay_buffer_size = 9\n"
        "work = lambda: list(stream)\n"
        "threading.Thread(target=work, daemon=True).start(); time.sleep(0.05)"
    ),
    "a thread goes on": (
        "def work():\n"
        "    threading.main_thread().join(0.2)\n"
        "    for number, _ in zip(range(20), stream): pass\n"
        "    assert number == 19\n"
        "    print('done')\n"
        "threading.Thread(target=work).start()"
    ),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_process_that_does_not_close_ends_cleanly(moment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + MOMENTS[moment]],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("done\n" if moment == "a thread goes on" else "")


# --- other processes ------------------------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_data_loader_as_rlinf_uses_it(kind: Any, num_workers: int) -> None:
    expected = filled(8)
    dataset = make(kind, filled(8), size=6)
    options: dict[str, Any] = {"multiprocessing_context": "fork"} if num_workers else {}
    loader = DataLoader(
        dataset,
        batch_size=1,
        num_workers=num_workers,
        drop_last=True,
        collate_fn=replay_buffer_collate_fn,
        **options,
    )
    stream = iter(loader)
    for _ in range(7):
        assert_same_batch(next(stream), leaves(expected.sample(6)))
    del stream, loader
    dataset.close()


def test_a_worker_of_a_data_loader_hands_errors_over() -> None:
    loader = DataLoader(
        make(PreloadReplayBufferDataset, Failing(2)),
        batch_size=1,
        num_workers=1,
        multiprocessing_context="fork",
        collate_fn=replay_buffer_collate_fn,
    )
    stream = iter(loader)
    assert [number_of(next(stream)) for _ in range(2)] == [0, 1]
    with pytest.raises(StorageError, match="no disk at 2"):
        next(stream)


@pytest.mark.parametrize("is_closed", [False, True])
@pytest.mark.parametrize("kind", BOTH)
def test_a_forked_child_has_a_stream_of_its_own(kind: Any, is_closed: bool) -> None:
    buffer = Fake()
    dataset = make(kind, buffer, prefetch_size=2)
    stream = iter(dataset)
    for _ in range(3):
        next(stream)
    ahead = 2 if kind is PreloadReplayBufferDataset else 0
    assert wait_for(lambda: len(buffer.counts) == 3 + ahead)
    if is_closed:
        dataset.close()
    child = os.fork()
    if not child:
        signal.alarm(30)
        code = 1
        try:
            seen = [number_of(batch) for batch, _ in zip(stream, "1234", strict=False)]
            first = 3 + ahead  # the buffer is a copy, and so far it has drawn
            assert seen == ([] if is_closed else [*range(first, first + 4)])
            dataset.close()
            assert list(dataset) == []
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [number_of(batch) for batch, _ in zip(stream, "12", strict=False)] == (
        [] if is_closed else [3, 4]
    )
    dataset.close()


def test_a_child_forked_in_the_middle_of_a_draw_draws() -> None:
    buffer = filled(4)
    dataset = make(PreloadReplayBufferDataset, buffer, size=64)
    stream = iter(dataset)
    for _ in range(6):
        next(stream)
        child = os.fork()
        if not child:
            signal.alarm(30)
            code = 1
            try:
                code = int(len(next(stream)["rewards"]) != 64)
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    dataset.close()


def test_batches_drawn_while_trajectories_are_added_are_whole() -> None:
    buffer = TrajectoryReplayBuffer(seed=1, sample_window_size=4)
    dataset = make(PreloadReplayBufferDataset, buffer, size=16)
    stop = threading.Event()

    def add() -> None:
        for number in range(10**6):
            if stop.is_set():
                return
            rewards = torch.full((4, 2), float(number))
            values = torch.full((5, 2, 1), float(number))
            buffer.add_trajectories(
                [make_trajectory(4, 2, rewards=rewards, prev_values=values)]
            )

    adding = in_thread(add)
    for _, batch in zip(range(60), dataset, strict=False):
        assert batch["rewards"].tolist() == batch["prev_values"][:, 0].tolist()
    stop.set()
    assert adding() is None
    dataset.close()
