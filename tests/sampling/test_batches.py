"""Batches given back to be filled again: only those that fit, and in place."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.batches import assert_same_batch, draw, generator, leaves
from support.trajectories import (
    DTYPES,
    assert_same_value,
    make_trajectory,
    random_bits,
    stored,
    trajectories,
)

from zarrbuf import Trajectory, TrajectoryReplayBuffer
from zarrbuf.archive.spec import STORED_DTYPE, BatchField, FieldSpec
from zarrbuf.errors import InvalidInputError
from zarrbuf.sampling.batches import BatchMemory, arrays_of, as_batch, new_arrays

Tensor = torch.Tensor
COUNT = 6


def filled(seed: int = 5, **options: Any) -> TrajectoryReplayBuffer:
    buffer = TrajectoryReplayBuffer(seed=seed, **options)
    buffer.add_trajectories([make_trajectory(8, 2, seed=n) for n in range(3)])
    return buffer


def spoil(batch: dict[str, Any]) -> None:
    """Overwrite every bit of a batch."""
    for tensor in leaves(batch).values():
        tensor.view(torch.uint8)[...] = 0x5A


# Batches that fit.


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("image_size", [2, 40])
def test_a_batch_given_back_is_filled_in_place(
    num_threads: int, image_size: int
) -> None:
    added = [make_trajectory(8, 2, seed=n, image_size=image_size) for n in range(3)]
    buffer, twin = (
        TrajectoryReplayBuffer(seed=5, num_threads=num_threads) for _ in range(2)
    )
    buffer.add_trajectories(added)
    twin.add_trajectories(added)
    batch = buffer.sample(COUNT)
    twin.sample(COUNT)
    tensors = leaves(batch)
    addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    for _ in range(3):
        spoil(batch)
        assert buffer.sample(COUNT, out=batch) is batch
        assert_same_batch(batch, leaves(twin.sample(COUNT)))
        for name, tensor in leaves(batch).items():
            assert tensor is tensors[name]
            assert tensor.data_ptr() == addresses[name]


@settings(
    deadline=None,
    max_examples=20,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(trajectories(), st.integers(0, 2**31))
def test_any_batch_can_be_given_back(trajectory: Trajectory, seed: int) -> None:
    buffer = TrajectoryReplayBuffer(seed=seed)
    buffer.add_trajectories([trajectory])
    state = generator(seed)
    batch = buffer.sample(COUNT)
    draw([trajectory], COUNT, state)
    assert buffer.sample(COUNT, out=batch) is batch
    assert_same_batch(batch, draw([trajectory], COUNT, state))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fields_of_every_dtype_are_filled(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    added = Trajectory(
        actions=random_bits((4, 2, 3), dtype, rng),
        rewards=random_bits((4, 2, 8192 // dtype.itemsize), dtype, rng),
    )
    buffer, twin = (TrajectoryReplayBuffer(seed=1) for _ in range(2))
    buffer.add_trajectories([added])
    twin.add_trajectories([added])
    batch = {
        "actions": torch.zeros(COUNT, 3, dtype=dtype),
        "rewards": torch.zeros(COUNT, 8192 // dtype.itemsize, dtype=dtype),
    }
    assert buffer.sample(COUNT, out=batch) is batch
    assert_same_batch(batch, leaves(twin.sample(COUNT)))


def test_a_batch_the_caller_made_of_any_mapping_is_filled() -> None:
    buffer, twin = filled(), filled()
    expected = twin.sample(COUNT)

    def copied(value: Any) -> Any:
        if isinstance(value, dict):
            inner = {key: copied(item) for key, item in reversed(value.items())}
            return MappingProxyType(OrderedDict(inner))
        # A piece of something larger is as good as a tensor of its own.
        larger = torch.zeros(COUNT + 3, *value.shape[1:], dtype=value.dtype)
        return larger[2 : 2 + COUNT]

    batch = copied(expected)
    assert buffer.sample(COUNT, out=batch) is batch
    assert_same_value(leaves(batch), leaves(expected), "batch")


def test_memory_around_a_batch_is_left_alone() -> None:
    buffer = filled()
    batch = buffer.sample(COUNT)
    around: list[Tensor] = []

    def within(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: within(item) for key, item in value.items()}
        larger = torch.zeros(COUNT + 2, *value.shape[1:], dtype=value.dtype)
        around.append(larger)
        return larger[1:-1]

    buffer.sample(COUNT, out=within(batch))
    assert any(bool(larger.any()) for larger in around)
    for larger in around:
        assert not larger[0].any()
        assert not larger[-1].any()


# Batches that do not.


def changed(batch: dict[str, Any], change: Callable[[Tensor], Any]) -> dict[str, Any]:
    """Return the batch with one image tensor changed."""
    images = change(batch["curr_obs"]["main_images"])
    return {**batch, "curr_obs": {**batch["curr_obs"], "main_images": images}}


IMAGES = r"out\['curr_obs'\]\['main_images'\] is "
PLACES: dict[str, Callable[[Tensor], Any]] = {
    "another dtype": lambda t: t.to(torch.int8),
    "another dtype of the same size": lambda t: t.view(torch.int8),
    "another shape": lambda t: t.reshape(COUNT, -1),
    "one sample less": lambda t: t[1:],
    "one sample more": lambda t: torch.cat([t, t[:1]]),
    "one sample": lambda t: t[0],
    "none": lambda t: t[:0],
    "not contiguous": lambda t: t.transpose(1, 2),
    "every second of a larger one": lambda t: torch.cat([t, t])[::2],
    "a stride of zero": lambda t: t[:1].expand(t.shape),
    "sparse": lambda t: t.to_sparse(),
    "on the meta device": lambda t: t.to("meta"),
    "an array": lambda t: t.numpy(),
    "a list": lambda t: t.tolist(),
    "None": lambda t: None,
}


@pytest.mark.parametrize("fault", PLACES)
def test_a_tensor_that_does_not_fit_is_refused_by_name(fault: str) -> None:
    buffer, twin = filled(), filled()
    batch = twin.sample(COUNT)
    kept = {name: tensor.clone() for name, tensor in leaves(batch).items()}
    with pytest.raises(InvalidInputError, match=IMAGES):
        buffer.sample(COUNT, out=changed(batch, PLACES[fault]))
    assert_same_value(leaves(batch), kept, "batch")  # nothing was written
    # Nothing was drawn either: the next batch is the first.
    assert_same_batch(buffer.sample(COUNT), kept)


@pytest.mark.parametrize("fault", ["gradient", "conjugate", "negative"])
def test_a_tensor_of_numbers_that_is_no_plain_memory_is_refused(fault: str) -> None:
    dtype = torch.complex64 if fault in ("conjugate", "negative") else torch.float32
    buffer = TrajectoryReplayBuffer(seed=5)
    actions = torch.ones(4, 2, 3, dtype=dtype)
    buffer.add_trajectories([Trajectory(actions=actions)])
    tensor = torch.zeros(COUNT, 3, dtype=dtype)
    bad = {
        "gradient": lambda: tensor.requires_grad_(),
        "conjugate": tensor.conj,
        "negative": lambda: torch._neg_view(tensor),
    }[fault]()
    with pytest.raises(InvalidInputError, match=r"out\['actions'\] is "):
        buffer.sample(COUNT, out={"actions": bad})
    assert buffer.sample(COUNT, out={"actions": tensor.detach()})["actions"].all()


def without(batch: dict[str, Any], *path: str) -> dict[str, Any]:
    """Return the batch without one field."""
    name, *rest = path
    if not rest:
        return {key: value for key, value in batch.items() if key != name}
    return {**batch, name: without(batch[name], *rest)}


@pytest.mark.parametrize(
    "path",
    [
        ("rewards",),
        ("curr_obs", "main_images"),
        ("next_obs", "states"),
        ("forward_inputs", "hidden"),
    ],
)
def test_a_field_that_is_missing_is_named(path: tuple[str, ...]) -> None:
    buffer, twin = filled(), filled()
    batch = twin.sample(COUNT)
    kept = {name: tensor.clone() for name, tensor in leaves(batch).items()}
    label = "".join(rf"\[{key!r}\]" for key in path)
    with pytest.raises(InvalidInputError, match=f"out{label} is missing"):
        buffer.sample(COUNT, out=without(batch, *path))
    assert_same_batch(buffer.sample(COUNT), kept)


@pytest.mark.parametrize("where", ["top", "within", "instead of a dict"])
def test_a_field_too_many_is_named(where: str) -> None:
    buffer, twin = filled(), filled()
    batch = twin.sample(COUNT)
    kept = {name: tensor.clone() for name, tensor in leaves(batch).items()}
    extra = torch.zeros(COUNT)
    if where == "top":
        bad, rule = {**batch, "x": extra}, r"out\['x'\] is not a field"
    elif where == "within":
        bad = {**batch, "curr_obs": {**batch["curr_obs"], "x/y": extra}}
        rule = r"out\['curr_obs'\]\['x/y'\] is not a field"
    else:
        bad, rule = {**batch, "curr_obs": extra}, r"out\['curr_obs'\]"
    with pytest.raises(InvalidInputError, match=rule):
        buffer.sample(COUNT, out=bad)
    assert_same_batch(buffer.sample(COUNT), kept)


@pytest.mark.parametrize("out", [3, "batch", [], (), torch.zeros(3), object(), False])
def test_what_is_no_batch_at_all_is_refused(out: Any) -> None:
    buffer, twin = filled(), filled()
    with pytest.raises(InvalidInputError, match="out is a "):
        buffer.sample(COUNT, out=out)
    assert_same_batch(buffer.sample(COUNT), leaves(twin.sample(COUNT)))


def test_an_empty_batch_lacks_all_fields() -> None:
    with pytest.raises(InvalidInputError, match="is missing"):
        filled().sample(COUNT, out={})


@pytest.mark.parametrize("count", [1, COUNT - 1, COUNT + 1])
def test_a_batch_of_another_number_is_refused(count: int) -> None:
    buffer = filled()
    batch = buffer.sample(COUNT)
    with pytest.raises(InvalidInputError, match=r"is \w+ \[6.*is needed"):
        buffer.sample(count, out=batch)


def test_fields_that_share_memory_are_refused() -> None:
    """One of them would hold what belongs to the other."""
    buffer = filled()
    batch = buffer.sample(COUNT)
    images = batch["curr_obs"]["main_images"]
    with pytest.raises(InvalidInputError, match="main_images"):
        buffer.sample(
            COUNT,
            out={**batch, "next_obs": {**batch["next_obs"], "main_images": images}},
        )


def test_a_batch_is_given_by_either_name_of_the_call() -> None:
    buffer, twin = filled(), filled()
    batch = buffer.sample(COUNT)
    twin.sample(COUNT)
    assert buffer.sample_chunks(COUNT, batch) is batch
    assert_same_batch(batch, leaves(twin.sample_chunks(COUNT)))


# Arrays and tensors.


def fields_of(*specs: tuple[str, FieldSpec]) -> list[BatchField]:
    return [BatchField(name, name, None, spec) for name, spec in specs]


@given(
    st.sampled_from(sorted(STORED_DTYPE)),
    st.sampled_from(((), (3,), (2, 0), (2, 3))),
    st.integers(1, 5),
)
def test_arrays_and_tensors_are_the_same_memory(
    dtype: str, shape: tuple[int, ...], count: int
) -> None:
    fields = fields_of(
        ("rewards", FieldSpec(dtype, shape, "step")),
        ("forward_inputs/a%2Fb/c", FieldSpec("float32", (2,), "step")),
    )
    memory = BatchMemory(max_batches=1, pin_memory=False)
    arrays = new_arrays(fields, count, memory)
    batch = as_batch(fields, arrays)
    assert set(batch) == {"rewards", "forward_inputs"}
    assert batch["forward_inputs"]["a/b"]["c"].shape == (count, 2)
    assert batch["rewards"].dtype is getattr(torch, dtype)
    found = arrays_of(batch, fields, count)
    assert set(found) == set(arrays)
    for name, array in found.items():
        assert (array.dtype, array.shape) == (arrays[name].dtype, arrays[name].shape)
        array.reshape(-1).view(np.uint8)[:] = 1
        assert arrays[name].tobytes() == array.tobytes()
        if array.size:
            assert np.shares_memory(array, arrays[name])
    assert stored(batch["rewards"]).tobytes() == found["rewards"].tobytes()
