"""Trajectories come back bit by bit, or are refused by the name of a field."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.trajectories import (
    DTYPES,
    LAYOUTS,
    UUID,
    assert_same_trajectory,
    contents_of,
    make_trajectory,
    random_bits,
    random_layout,
    rezip,
    stored,
    trajectories,
)

from zarrbuf.archive.chunks import crc32c
from zarrbuf.archive.spec import TENSOR_FIELDS, AnyArray
from zarrbuf.archive.zarr_json import CODECS, CodecName
from zarrbuf.errors import FormatError
from zarrbuf.trajectory.archived import TrajectoryArchive
from zarrbuf.trajectory.encoding import EncodedTrajectory, encode_trajectory
from zarrbuf.trajectory.trajectory import (
    Trajectory,
    decode_trajectory,
    flatten_trajectory,
    nest,
    to_tensor,
)

Tensor = torch.Tensor
REWARDS = torch.arange(6.0).reshape(2, 3)


def encode(trajectory: Any, codec: CodecName = "lz4") -> EncodedTrajectory:
    return encode_trajectory(trajectory, uuid=UUID, codec=codec)


def open_(encoded: EncodedTrajectory) -> TrajectoryArchive:
    return TrajectoryArchive(encoded.data, name="some.zarr.zip")


def round_trip(trajectory: Any, codec: CodecName = "lz4") -> Trajectory:
    return decode_trajectory(open_(encode(trajectory, codec)))


# Round trips.


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(trajectories(), st.sampled_from(sorted(CODECS)))
def test_a_trajectory_comes_back(trajectory: Trajectory, codec: CodecName) -> None:
    assert_same_trajectory(round_trip(trajectory, codec), trajectory)


@pytest.mark.parametrize("extra_epochs", [0, 1, 2, 4, 8])
def test_a_real_trajectory_comes_back(extra_epochs: int) -> None:
    trajectory = make_trajectory(8, 2, extra_epochs=extra_epochs)
    encoded = encode(trajectory)
    assert_same_trajectory(decode_trajectory(open_(encoded)), trajectory)
    assert encoded.shape == (8, 2, 3)
    assert (encoded.header.num_steps, encoded.header.num_envs) == (8, 2)
    assert encoded.crc == crc32c(encoded.data)
    assert open_(encoded).header == encoded.header


def test_next_frames_cost_nothing_but_where_an_episode_ends() -> None:
    for reset_every, num_resets in ((100, 0), (4, 2), (1, 8)):
        trajectory = make_trajectory(8, 2, reset_every=reset_every)
        archive = open_(encode(trajectory))
        ranges = archive.chunk_ranges("obs/main_images")
        assert len(ranges) == 2 * 8 * 2
        # An episode that ends at the last step has no frame after it anyway.
        ends = num_resets - (8 % reset_every == 0)
        unique = len(np.unique(ranges, axis=0))
        assert unique == 2 * (8 + 1 + max(ends, 0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_layout_comes_back(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    layouts = dict.fromkeys(LAYOUTS)
    trajectory = Trajectory(
        rewards=REWARDS,
        curr_obs={name: random_layout((2, 3, 4), dtype, name, rng) for name in layouts},
        forward_inputs={
            "zero": random_bits((), dtype, rng),
            "one": random_bits((5,), dtype, rng),
            "empty": random_bits((0,), dtype, rng),
            "big": random_bits((2, 3, 4096), dtype, rng),
        },
    )
    assert_same_trajectory(round_trip(trajectory), trajectory)


def test_bits_of_nans_are_kept() -> None:
    bits = torch.tensor([[0x7F800001, 0x7FC12345], [-1, -0x80000000]])
    rewards = bits.to(torch.int32).view(torch.float32)
    found = round_trip(Trajectory(rewards=rewards)).rewards
    assert found is not None
    assert found.view(torch.int32).tolist() == bits.tolist()


def test_conjugated_negated_and_learned_tensors_are_stored_by_value() -> None:
    complexes = torch.tensor([[1 + 2j, 3 - 4j, 0j]] * 2)
    trajectory = Trajectory(
        rewards=REWARDS,
        prev_logprobs=REWARDS.clone().requires_grad_(),
        actions=torch.nn.Parameter(REWARDS),
        curr_obs={"conj": complexes.conj(), "neg": complexes.conj().imag},
    )
    found = round_trip(trajectory)
    assert torch.equal(found.curr_obs["conj"], torch.conj_physical(complexes))
    assert torch.equal(found.curr_obs["neg"], -complexes.imag)
    assert torch.equal(found.prev_logprobs, REWARDS)  # type: ignore[arg-type]
    assert type(found.actions) is torch.Tensor


def test_a_lazily_negated_number_is_stored_by_value() -> None:
    number = torch.tensor([[1 + 2j]]).conj().imag
    assert number.is_neg()
    assert number.is_contiguous()
    assert round_trip(Trajectory(rewards=number)).rewards == -2


def test_observations_of_other_dtype_or_shape_lie_apart() -> None:
    trajectory = Trajectory(
        rewards=REWARDS,
        curr_obs={"same": REWARDS, "dtype": REWARDS, "shape": REWARDS, "curr": REWARDS},
        next_obs={
            "same": REWARDS + 1,
            "dtype": REWARDS.to(torch.int32),
            "shape": REWARDS[..., None],
            "next": REWARDS,
        },
    )
    archive = open_(encode(trajectory))
    assert set(archive.arrays) == {
        "rewards",
        "obs/same",
        *(f"curr_obs/{key}" for key in ("dtype", "shape", "curr")),
        *(f"next_obs/{key}" for key in ("dtype", "shape", "next")),
    }
    assert_same_trajectory(decode_trajectory(archive), trajectory)


def test_numpy_arrays_are_stored_as_tensors() -> None:
    frozen = np.arange(12).reshape(2, 3, 2)
    frozen.flags.writeable = False
    arrays = {
        "frozen": frozen,
        "swapped": frozen.astype(">i4"),
        "mirrored": frozen[..., ::-1],
        "turned": np.asfortranarray(frozen),
        "zero": np.array(2.5),
    }
    found = round_trip(Trajectory(rewards=REWARDS, curr_obs=arrays)).curr_obs
    for name, array in arrays.items():
        assert found[name].shape == array.shape, name
        assert (found[name].numpy() == array).all(), name
    assert found["swapped"].dtype == torch.int32


def test_other_classes_and_mappings_are_taken() -> None:
    plain = SimpleNamespace(
        rewards=REWARDS,
        curr_obs=OrderedDict(b=OrderedDict(x=REWARDS), a=[1]),
        model_weights_id="w_3",
    )
    found = round_trip(plain)
    same = Trajectory(
        rewards=REWARDS,
        curr_obs={"b": {"x": REWARDS}, "a": [1]},
        model_weights_id="w_3",
    )
    assert_same_trajectory(found, same)


def test_what_comes_back_can_be_written_to() -> None:
    trajectory = make_trajectory(4, 2)
    encoded = encode(trajectory)
    found = decode_trajectory(open_(encoded))
    found.curr_obs["main_images"].zero_()
    found.next_obs["states"].zero_()
    found.curr_obs["task_descriptions"].append("x")
    images = found.next_obs["main_images"]
    assert torch.equal(images, trajectory.next_obs["main_images"])
    archive = open_(encoded)
    decode_trajectory(archive).curr_obs["task_descriptions"].append("x")
    assert_same_trajectory(decode_trajectory(archive), trajectory)


def test_tensors_may_be_overwritten_once_they_are_encoded() -> None:
    trajectory, same = make_trajectory(8, 2), make_trajectory(8, 2)
    encoded = encode(trajectory)
    for tree in (vars(trajectory), trajectory.curr_obs, trajectory.next_obs):
        for value in tree.values():
            if isinstance(value, torch.Tensor):
                value.zero_()
    trajectory.forward_inputs["hidden"].zero_()
    trajectory.curr_obs["task_descriptions"].clear()
    assert_same_trajectory(decode_trajectory(open_(encoded)), same)
    assert encoded.header.non_tensor["curr_obs"] is not trajectory.curr_obs


def test_encoding_changes_nothing_of_the_callers() -> None:
    trajectory = make_trajectory(8, 2)
    encode(trajectory)
    assert_same_trajectory(trajectory, make_trajectory(8, 2))


# Rows.


def _flatten_slowly(trajectory: Trajectory, epochs: int) -> dict[str, AnyArray]:
    """Return the samples of the fields that `make_trajectory` gives, one by one."""
    assert trajectory.rewards is not None
    num_steps, num_envs = trajectory.rewards.shape
    length = num_steps // epochs
    flat: dict[str, AnyArray] = {}
    values: dict[str, Any] = {n: getattr(trajectory, n) for n in TENSOR_FIELDS}
    for group in ("curr_obs", "next_obs"):
        for key in ("main_images", "states"):
            values[f"{group}/{key}"] = getattr(trajectory, group)[key]
    values["forward_inputs/hidden"] = trajectory.forward_inputs["hidden"]
    for name, tensor in values.items():
        rows = stored(tensor)
        samples = []
        for t in range(num_steps):
            row = t
            if name in ("dones", "terminations", "truncations"):
                row += t // length + 1
            if name == "prev_values":
                row += t // length
            samples += [rows[row, b] for b in range(num_envs)]
        flat[name] = np.stack(samples)
    return flat


@pytest.mark.parametrize("epochs", [1, 2, 4])
def test_flattening_is_the_obvious_loop(epochs: int) -> None:
    trajectory = make_trajectory(8, 3, extra_epochs=epochs, reset_every=3)
    found = flatten_trajectory(open_(encode(trajectory)))
    expected = _flatten_slowly(trajectory, epochs)
    assert set(found) == set(expected)
    for name, rows in expected.items():
        assert found[name].dtype == rows.dtype, name
        assert found[name].tobytes() == rows.tobytes(), name
        assert len(found[name]) == 8 * 3


def test_a_batch_is_nested_with_its_keys_decoded() -> None:
    flat = {"rewards": REWARDS, "curr_obs/a%2Fb": REWARDS, "curr_obs/x/%2E": REWARDS}
    assert nest(flat) == {
        "rewards": REWARDS,
        "curr_obs": {"a/b": REWARDS, "x": {".": REWARDS}},
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_is_a_view_of_the_stored_array(dtype: torch.dtype) -> None:
    tensor = random_bits((2, 3), dtype, np.random.default_rng(1))
    array = stored(tensor)
    found = to_tensor(array, str(dtype).removeprefix("torch."))
    assert found.dtype == dtype
    assert stored(found).tobytes() == stored(tensor).tobytes()
    array[...] = 0
    assert not stored(found).any()


def test_values_that_claim_one_name_are_refused() -> None:
    trajectory = Trajectory(rewards=REWARDS, curr_obs={"a": REWARDS, "b": "x"})
    data = encode(trajectory).data
    contents = contents_of(data)
    for tree in (b'{"a":"x"}', b'{"a":{}}'):
        root = contents["zarr.json"].replace(b'{"b":"x"}', tree)
        forged = rezip({**contents, "zarr.json": root})
        archive = TrajectoryArchive(forged, name="some.zarr.zip")
        with pytest.raises(FormatError, match=r"some.zarr.zip: .*'curr_obs/a'"):
            decode_trajectory(archive)


def test_a_trajectory_says_its_shapes_and_not_its_numbers() -> None:
    assert repr(Trajectory()) == "Trajectory(max_episode_length=0)"
    trajectory = Trajectory(
        max_episode_length=16,
        model_weights_id="w_1",
        actions=torch.zeros(16, 4, 7),
        rewards=torch.zeros(16, 4, dtype=torch.bfloat16),
        curr_obs={"states": torch.zeros(16, 4, 3), "deep": {"x": torch.ones(16, 4)}},
    )
    assert repr(trajectory) == (
        "Trajectory(max_episode_length=16, model_weights_id='w_1', "
        "actions=float32[16, 4, 7], rewards=bfloat16[16, 4], "
        "curr_obs={states: float32[16, 4, 3], deep: {x: float32[16, 4]}})"
    )
