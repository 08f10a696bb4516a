"""Memory of batches: given out again once nobody has it, and never before."""

from __future__ import annotations

import sys
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zarrbuf import TrajectoryReplayBuffer
from zarrbuf.archive.spec import STORED_DTYPE, AnyArray
from zarrbuf.sampling.batches import MIN_KEPT_BYTES, BatchMemory, can_pin
from zarrbuf.trajectory.trajectory import Trajectory

SIZE = 4 * MIN_KEPT_BYTES


def new_memory(max_batches: int = 3) -> BatchMemory:
    return BatchMemory(max_batches=max_batches, pin_memory=False)


def empty(memory: BatchMemory, size: int = SIZE, name: str = "x") -> AnyArray:
    return memory.empty(name, (size,), np.dtype(np.uint8))


def address(array: AnyArray) -> int:
    return int(array.ctypes.data)


def others(size: int = SIZE) -> list[AnyArray]:
    """Take what the allocator would give out next, had the memory gone back to it."""
    return [np.empty(size, np.uint8) for _ in range(8)]


HOLDERS: dict[str, Callable[[AnyArray], Any]] = {
    "the array": lambda array: array,
    "a slice": lambda array: array[100:101],
    "one row, reshaped": lambda array: array.reshape(4, -1)[3],
    "a view of another dtype": lambda array: array.view(np.float32),
    "a view of a view": lambda array: array[5:][5:].view("V2").T,
    "an iterator": lambda array: array.flat,
    "a memoryview": memoryview,
    "a slice of a memoryview": lambda array: memoryview(array)[7:9],
    "an array of a memoryview": lambda array: np.asarray(memoryview(array)),
    "a tensor": torch.from_numpy,
    "a slice of a tensor": lambda array: torch.from_numpy(array)[3:4],
    "a row of a tensor": lambda array: torch.from_numpy(array).reshape(4, -1)[1],
    "a tensor of another dtype": lambda array: torch.from_numpy(array).view(
        torch.bfloat16
    ),
    "a tensor's array": lambda array: torch.from_numpy(array).numpy(),
    "a slice of a tensor's array": lambda array: torch.from_numpy(array)[9:].numpy(),
    "a tensor's storage": lambda array: torch.from_numpy(array).untyped_storage(),
    "a tensor over dlpack": torch.from_dlpack,
    "a parameter": lambda array: torch.nn.Parameter(
        torch.from_numpy(array.view(np.float32))
    ),
    "what autograd keeps": lambda array: (
        torch.ones(len(array) // 4, requires_grad=True)
        * torch.from_numpy(array.view(np.float32))
    ).sum(),
}


@pytest.mark.parametrize("kind", HOLDERS)
def test_memory_comes_back_after_the_last_that_refers_to_it(kind: str) -> None:
    memory = new_memory()
    array = empty(memory)
    array[:] = 0
    first = address(array)
    holder = HOLDERS[kind](array)
    del array
    second = empty(memory)
    assert address(second) != first
    second[:] = 1
    del holder
    kept = others()
    third = empty(memory)
    assert address(third) == first
    assert all(address(other) != first for other in kept)
    assert address(second) != first
    assert (second == 1).all()


def test_each_of_several_holders_is_enough() -> None:
    memory = new_memory()
    array = empty(memory)
    first = address(array)
    holders = [hold(array) for name, hold in HOLDERS.items() if "autograd" not in name]
    del array
    while holders:
        assert address(empty(memory)) != first
        holders.pop()
    kept = others()
    assert address(empty(memory)) == first
    del kept


def test_an_array_that_was_never_touched_comes_back_too() -> None:
    memory = new_memory()
    first = address(empty(memory))
    kept = others()
    for _ in range(5):
        assert address(empty(memory)) == first
    del kept


@pytest.mark.parametrize("name", sorted(STORED_DTYPE))
@pytest.mark.parametrize("shape", [(MIN_KEPT_BYTES, 3), (5,), (), (0,), (7, 0, 3)])
def test_arrays_of_every_dtype_and_shape(name: str, shape: tuple[int, ...]) -> None:
    memory = new_memory()
    dtype = np.dtype(STORED_DTYPE[name])
    for _ in range(2):
        array = memory.empty("x", shape, dtype)
        assert (array.dtype, array.shape) == (dtype, shape)
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.flags.aligned
        array[...] = 1
        assert (array == 1).all()
        torch.from_numpy(array)


def test_small_arrays_are_left_to_the_allocator() -> None:
    tracemalloc.start()
    try:
        memory = new_memory()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(50):
            empty(memory, MIN_KEPT_BYTES - 1, f"field {number}")
        assert tracemalloc.get_traced_memory()[0] - before < MIN_KEPT_BYTES
        empty(memory, MIN_KEPT_BYTES)
        assert tracemalloc.get_traced_memory()[0] - before >= MIN_KEPT_BYTES
    finally:
        tracemalloc.stop()


class Traced:
    """How many arrays of `SIZE` bytes there are, besides those from before."""

    def __enter__(self) -> Traced:
        tracemalloc.start()
        self._before = tracemalloc.get_traced_memory()[0]
        return self

    def __exit__(self, *_: object) -> None:
        tracemalloc.stop()

    @property
    def halves(self) -> int:
        return round((tracemalloc.get_traced_memory()[0] - self._before) / SIZE * 2)

    @property
    def count(self) -> float:
        return self.halves / 2


@pytest.mark.parametrize("max_batches", [0, 1, 3])
def test_a_bounded_number_is_kept(max_batches: int) -> None:
    with Traced() as traced:
        memory = new_memory(max_batches)
        for _ in range(3):
            arrays = [empty(memory) for _ in range(6)]
            assert traced.count == 6
            arrays.clear()
            assert traced.count == max_batches


def test_each_field_keeps_its_own() -> None:
    with Traced() as traced:
        memory = new_memory(2)
        for name in ("a", "b"):
            arrays = [empty(memory, name=name) for _ in range(4)]
            arrays.clear()
        assert traced.count == 4
        for name in ("a", "b"):
            arrays = [empty(memory, name=name) for _ in range(2)]
            arrays.clear()
        assert traced.count == 4


def test_another_size_lets_go_of_the_old() -> None:
    with Traced() as traced:
        memory = new_memory()
        arrays = [empty(memory) for _ in range(4)]
        alive = empty(memory)
        other = empty(memory, name="y")
        arrays.clear()
        del other
        assert traced.count == 3 + 1 + 1
        small = empty(memory, SIZE // 2)
        small[:] = 3
        assert traced.halves == 2 * (1 + 1) + 1  # alive, kept for field y, the new one
        del alive
        assert traced.halves == 2 * 1 + 1
        assert len(empty(memory)) == SIZE
        assert (small == 3).all()


def test_clear_lets_go_of_what_is_kept_and_of_what_comes_back_later() -> None:
    with Traced() as traced:
        memory = new_memory()
        arrays = [empty(memory) for _ in range(3)]
        alive, longer = empty(memory), empty(memory)
        alive[:] = 5
        arrays.clear()
        assert traced.count == 5
        memory.clear()
        assert traced.count == 2
        assert (alive == 5).all()
        del alive
        assert traced.count == 1
        del longer
        assert traced.count == 0
        memory.clear()
        first = address(empty(memory))
        assert address(empty(memory)) == first


def test_what_is_lent_outlives_the_memory() -> None:
    memory = new_memory()
    array = empty(memory)
    array[:] = 7
    del memory
    kept = others()
    for other in kept:
        other[:] = 0
    assert (array == 7).all()


OPERATIONS = st.lists(
    st.tuples(st.just("lend"), st.sampled_from("ab"), st.integers(0, 2))
    | st.tuples(
        st.just("hold"), st.integers(0, 9), st.sampled_from(sorted(HOLDERS)[:12])
    )
    | st.tuples(st.just("drop array"), st.integers(0, 9), st.just(0))
    | st.tuples(st.just("drop holder"), st.integers(0, 9), st.just(0))
    | st.tuples(st.just("clear"), st.just(0), st.just(0)),
    max_size=40,
)


@settings(deadline=None, max_examples=100)
@given(OPERATIONS, st.integers(0, 3))
def test_memory_that_somebody_has_is_never_given_out(
    operations: list[tuple[str, Any, Any]], max_batches: int
) -> None:
    memory = new_memory(max_batches)
    sizes = (MIN_KEPT_BYTES - 8, MIN_KEPT_BYTES, MIN_KEPT_BYTES + 1000)
    # Number of a loan -> its array, if not dropped; and all that refers to it.
    arrays: dict[int, AnyArray] = {}
    holders: list[tuple[int, Any]] = []
    ranges: dict[int, tuple[int, int]] = {}
    for number, (operation, which, detail) in enumerate(operations):
        if operation == "lend":
            array = empty(memory, sizes[detail] // 4 * 4, which)
            array[:] = number
            start, stop = address(array), address(array) + array.nbytes
            alive = {*arrays, *(loan for loan, _ in holders)}
            for loan in alive:
                assert stop <= ranges[loan][0] or start >= ranges[loan][1]
            arrays[number] = array
            ranges[number] = start, stop
            del array
        elif operation == "hold" and arrays:
            loan = sorted(arrays)[which % len(arrays)]
            holders.append((loan, HOLDERS[detail](arrays[loan])))
        elif operation == "drop array" and arrays:
            del arrays[sorted(arrays)[which % len(arrays)]]
        elif operation == "drop holder" and holders:
            del holders[which % len(holders)]
        elif operation == "clear":
            memory.clear()
        for loan, array in arrays.items():
            assert (array == loan).all()
        for loan, holder in holders:
            assert_holds(holder, loan)
        loan, array, holder = -1, None, None


def assert_holds(holder: Any, value: int) -> None:
    if isinstance(holder, torch.UntypedStorage):
        holder = torch.tensor([], dtype=torch.uint8).set_(holder)
    if isinstance(holder, torch.Tensor):
        holder = holder.detach().contiguous().view(torch.uint8).numpy()
    raw = np.frombuffer(bytes(np.ascontiguousarray(holder)), np.uint8)
    assert (raw == value).all()


def test_threads_never_get_the_same_memory() -> None:
    memory = new_memory(2)
    failures: list[BaseException] = []

    def use(number: int) -> None:
        try:
            for turn in range(200):
                size = SIZE if turn % 7 else SIZE // 2
                array = empty(memory, size, "xy"[number % 2])
                array[:] = number
                view = torch.from_numpy(array)[:: len(array) // 100]
                del array
                assert (view == number).all()
                if turn % 50 == 49:
                    memory.clear()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_new_fields_and_new_sizes_may_be_asked_for_at_once() -> None:
    memory = new_memory(1)
    failures: list[BaseException] = []
    for number in range(300):  # so many that going through them takes a while
        empty(memory, MIN_KEPT_BYTES, f"field {number}")

    def ask(number: int) -> None:
        try:
            for turn in range(300):
                empty(memory, MIN_KEPT_BYTES + turn % 2, "x")
                empty(memory, MIN_KEPT_BYTES, f"{number} {turn}")
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []


# Page-locked memory.


class Requests:
    """Stands in for `torch.empty`: notes what is asked to be page-locked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.addresses: list[int] = []
        self._empty = torch.empty
        monkeypatch.setattr(torch, "empty", self)

    def __call__(self, *args: Any, pin_memory: bool = False, **options: Any) -> Any:
        tensor = self._empty(*args, **options)
        if pin_memory:
            self.sizes.append(tensor.nbytes)
            self.addresses.append(tensor.data_ptr())
        return tensor


@pytest.mark.parametrize("dtype", ["uint8", "bool", "float32", "complex128"])
def test_page_locked_memory_is_asked_of_torch(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = Requests(monkeypatch)
    memory = BatchMemory(max_batches=3, pin_memory=True)
    for shape in ((3, 5), (SIZE,)):
        array = memory.empty("x", shape, np.dtype(dtype))
        assert (array.dtype, array.shape) == (np.dtype(dtype), shape)
        assert address(array) == requests.addresses[-1]
        assert requests.sizes[-1] == array.nbytes
        array[...] = 1
        assert array.flags.c_contiguous
        assert torch.from_numpy(array).data_ptr() == requests.addresses[-1]
    assert memory.empty("x", (0, 3), np.dtype(dtype)).shape == (0, 3)
    assert len(requests.sizes) == 2


def test_without_asking_nothing_is_page_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = Requests(monkeypatch)
    empty(new_memory())
    assert requests.sizes == []


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("has_device", [False, True])
def test_batches_are_page_locked_where_that_is_wanted_and_helps(
    wanted: bool, has_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_device)
    assert can_pin() is has_device
    requests = Requests(monkeypatch)
    buffer = TrajectoryReplayBuffer(seed=1, pin_memory=wanted)
    buffer.add_trajectories(
        [Trajectory(actions=torch.arange(6000.0).reshape(3, 1, 2000))]
    )
    actions = buffer.sample(5)["actions"]
    assert (actions.data_ptr() in requests.addresses) is (wanted and has_device)
    assert (actions[:, 1] - actions[:, 0] == 1).all()
