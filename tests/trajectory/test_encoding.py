"""What a trajectory may hold, and what is refused by the name of its field."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from support.trajectories import UUID, assert_same_trajectory, contents_of

from zarrbuf.archive.spec import EXTRA_ROWS, TENSOR_FIELDS
from zarrbuf.archive.zarr_json import MAX_METADATA_BYTES
from zarrbuf.errors import InvalidInputError
from zarrbuf.trajectory.archived import TrajectoryArchive
from zarrbuf.trajectory.encoding import (
    EncodedTrajectory,
    encode_trajectory,
    flatten_encoded,
)
from zarrbuf.trajectory.trajectory import Trajectory, decode_trajectory

Tensor = torch.Tensor
REWARDS = torch.arange(6.0).reshape(2, 3)


def encode(trajectory: Any) -> EncodedTrajectory:
    return encode_trajectory(trajectory, uuid=UUID, codec="lz4")


def open_(encoded: EncodedTrajectory) -> TrajectoryArchive:
    return TrajectoryArchive(encoded.data, name="some.zarr.zip")


def round_trip(trajectory: Any) -> Trajectory:
    return decode_trajectory(open_(encode(trajectory)))


def refuse(match: str, **changes: Any) -> None:
    changes.setdefault("rewards", REWARDS)
    with pytest.raises(InvalidInputError, match=match):
        encode(Trajectory(**changes))


# T and B.


def test_the_shape_comes_from_log_probabilities_then_rewards_then_any() -> None:
    wide = torch.zeros(2, 3, 7)
    both = Trajectory(prev_logprobs=wide, rewards=REWARDS, actions=wide[..., :1])
    assert encode(both).shape == (2, 3, 7)
    both.prev_logprobs = None
    assert encode(both).shape == (2, 3)
    both.rewards = None
    assert encode(both).shape == (2, 3, 1)
    both.actions = None
    both.dones = torch.zeros(3, 3)
    both.curr_obs = {"x": wide}
    assert encode(both).shape == (2, 3, 7)
    assert_same_trajectory(round_trip(both), both)


def test_a_trajectory_that_does_not_say_t_and_b_is_refused() -> None:
    cases: tuple[dict[str, Any], ...] = (
        {},
        {"dones": torch.zeros(3, 2), "prev_values": torch.zeros(3, 2)},
        {"rewards": torch.zeros(3), "curr_obs": {"x": torch.tensor(1)}},
        {"curr_obs": {"x": "text"}},
    )
    for changes in cases:
        with pytest.raises(InvalidInputError, match="no field that says T and B"):
            encode(Trajectory(**changes))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0, 4)])
def test_no_step_or_no_environment_is_refused(shape: tuple[int, ...]) -> None:
    refuse("rewards has shape .* at least one step", rewards=torch.zeros(shape))


@pytest.mark.parametrize("name", [n for n in TENSOR_FIELDS if n != "rewards"])
def test_another_t_or_b_is_refused_by_name(name: str) -> None:
    rewards = torch.zeros(4, 3)
    shapes = [(4, 2), (3, 3), (4, 4, 3), (0, 3), (4, 0)]
    for shape in shapes:
        changes: dict[str, Any] = {"rewards": rewards, name: torch.zeros(shape)}
        if name == "prev_logprobs":
            # It is the one that says T and B; more rewards than that may come.
            if shape != (3, 3):
                refuse("rewards has shape|at least one step", **changes)
        else:
            refuse(f"{name} has shape .*\\[4, 3, ...\\]", **changes)


def test_another_t_or_b_in_a_dict_is_refused_by_path() -> None:
    rewards = torch.zeros(4, 3)
    for group in ("curr_obs", "next_obs", "forward_inputs"):
        tree = {"b c": torch.zeros(4, 2)}
        refuse(f"{group}/b%20c has shape", rewards=rewards, **{group: tree})
        refuse(f"{group}/x has", rewards=rewards, **{group: {"x": torch.zeros(3, 3)}})
        # Nothing nested is drawn, so that it may have any shape.
        kept = Trajectory(rewards=rewards, **{group: {"a": tree}})
        assert_same_trajectory(round_trip(kept), kept)
        assert set(flatten_encoded(kept)) == {"rewards"}


@pytest.mark.parametrize("name", sorted(EXTRA_ROWS))
def test_extra_rows_divide_the_steps(name: str) -> None:
    rewards = torch.zeros(6, 2)
    for extra in range(8):
        changes: dict[str, Any] = {name: torch.zeros(6 + extra, 2)}
        if extra in (0, 1, 2, 3, 6):
            encoded = encode(Trajectory(rewards=rewards, **changes))
            assert open_(encoded).num_rows(name) == 6 + extra
        else:
            refuse(f"{name} has shape .* divisor of 6", rewards=rewards, **changes)


@pytest.mark.parametrize("extra", [1, 3, 40])
def test_of_other_fields_with_more_rows_the_first_are_drawn(extra: int) -> None:
    more = torch.arange((4 + extra) * 3 * 2.0).reshape(4 + extra, 3, 2)
    trajectory = Trajectory(
        rewards=torch.zeros(4, 3),
        actions=more,
        intervene_flags=more > 9,
        forward_inputs={"x": more},
        curr_obs={"states": more, "dones": more[..., 0]},
        next_obs={"states": more + 1},
    )
    assert_same_trajectory(round_trip(trajectory), trajectory)
    flat = flatten_encoded(trajectory)
    for name, expected in (
        ("actions", more),
        ("intervene_flags", more > 9),
        ("forward_inputs/x", more),
        ("curr_obs/states", more),
        ("next_obs/states", more + 1),
        ("curr_obs/dones", more[..., 0]),
    ):
        assert flat[name].equal(expected[:4].reshape(12, *expected.shape[2:])), name


# What cannot be stored.


def _quantized() -> Tensor:
    kind = torch.qint8
    return torch.quantize_per_tensor(REWARDS, 1.0, 0, kind)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: REWARDS.to(torch.complex32),
        _quantized,
        lambda: REWARDS.to_sparse(),
        lambda: REWARDS.to_sparse_csr(),
        lambda: REWARDS.to("meta"),
        lambda: torch.nested.nested_tensor([REWARDS, REWARDS[:1]]),
        lambda: torch.zeros(2, 3, *[1] * 30),
        lambda: np.array([[None] * 3] * 2),
        lambda: np.array([["a"] * 3] * 2),
        lambda: np.zeros((2, 3), "M8[s]"),
        lambda: np.zeros((2, 3), np.longdouble),
        lambda: np.zeros((2, 3), [("a", "f4")]),
        lambda: np.zeros((2, 3), ml_dtypes.bfloat16),
    ],
)
def test_tensors_that_cannot_be_stored_are_refused_by_name(make: Any) -> None:
    refuse(r"^actions (is|has)", actions=make())
    refuse(
        r"^forward_inputs\['a'\]\['b'\] (is|has)", forward_inputs={"a": {"b": make()}}
    )


@pytest.mark.parametrize("value", [1, "x", [REWARDS], {"a": REWARDS}, 1.5])
def test_a_field_must_be_a_tensor(value: Any) -> None:
    refuse("actions is a .* tensor is needed", actions=value)


@pytest.mark.parametrize("value", [REWARDS, [1], "x", 1])
def test_a_dict_must_be_a_dict(value: Any) -> None:
    refuse("curr_obs is a .* a dict of tensors", curr_obs=value)


class _Odd:
    def __repr__(self) -> str:
        return "odd"


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        frozenset(),
        bytearray(b"x"),
        2**64,
        -(2**63) - 1,
        1j,
        np.str_("x"),
        np.longdouble(1),
        np.datetime64(1, "s"),
        torch.float32,
        _Odd(),
        int,
        range(3),
        REWARDS.numpy,
    ],
    ids=repr,
)
def test_values_that_cannot_be_stored_are_refused_by_name(value: Any) -> None:
    refuse(r"^curr_obs\['a'\]\['b'\] is", curr_obs={"a": {"b": value}})
    refuse(r"^curr_obs\['a'\]\[1\]\['b'\] is", curr_obs={"a": [0, {"b": value}]})
    refuse(r"^next_obs\['a'\]\[0\] is", next_obs={"a": [value]})


def test_tensors_in_lists_are_refused_by_name() -> None:
    refuse(r"^curr_obs\['a'\]\[0\] is", curr_obs={"a": [REWARDS]})


@pytest.mark.parametrize("key", [1, None, b"a", ("a",), "", "\ud800", "x" * 1025])
def test_keys_that_cannot_be_stored_are_refused(key: Any) -> None:
    values: tuple[Any, ...] = (REWARDS, "x", {})
    for value in values:
        refuse("key", forward_inputs={key: value})
        refuse("key", forward_inputs={"a": {key: value}})


def test_keys_in_lists_are_strings() -> None:
    refuse(r"^curr_obs\['a'\]\[0\] is", curr_obs={"a": [{1: 2}]})
    trajectory = Trajectory(rewards=REWARDS, curr_obs={"a": [{"": 2, "b/c": {}}]})
    assert_same_trajectory(round_trip(trajectory), trajectory)


@pytest.mark.parametrize("value", ["\ud800", ["a", "x\udfff"], [{"\ud800": 1}]])
def test_half_a_surrogate_pair_is_refused(value: Any) -> None:
    refuse("no tensors cannot be stored.*surrogate", curr_obs={"a": value})


def _nested_list(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def _nested_dict(depth: int, leaf: Any) -> Any:
    for _ in range(depth):
        leaf = {"k": leaf}
    return leaf


def test_nesting_is_written_only_as_deep_as_it_is_read() -> None:
    # 64 levels: the document, its attributes, non_tensor, curr_obs, 60 lists.
    trajectory = Trajectory(rewards=REWARDS, curr_obs={"a": _nested_list(60)})
    assert_same_trajectory(round_trip(trajectory), trajectory)
    for depth in (61, 62, 64, 100):
        refuse("deeper than 64", curr_obs={"a": _nested_list(depth)})


@pytest.mark.parametrize("leaf", [REWARDS, "x", {}], ids=["tensor", "text", "dict"])
def test_dicts_may_be_nested_32_deep(leaf: Any) -> None:
    trajectory = Trajectory(rewards=REWARDS, forward_inputs=_nested_dict(32, leaf))
    assert_same_trajectory(round_trip(trajectory), trajectory)
    refuse("nested too deep", forward_inputs=_nested_dict(34, leaf))


def test_names_of_32_long_keys_still_fit_a_zip() -> None:
    tree: Any = REWARDS
    for _ in range(32):
        tree = {"ü" * 170: tree}
    trajectory = Trajectory(rewards=REWARDS, forward_inputs=tree)
    assert_same_trajectory(round_trip(trajectory), trajectory)


def test_endless_nesting_is_refused() -> None:
    around: dict[str, Any] = {}
    around["a"] = around
    refuse("nested too deep", forward_inputs=around)
    endless: list[Any] = []
    endless.append(endless)
    refuse(r"forward_inputs\['a'\] is nested too deep", forward_inputs={"a": endless})
    refuse("nested", forward_inputs={"a": _nested_list(5000)})


def test_text_is_written_only_as_long_as_it_is_read() -> None:
    def with_text(length: int) -> Trajectory:
        return Trajectory(rewards=REWARDS, curr_obs={"a": "x" * length})

    empty = encode(with_text(0)).data
    length = MAX_METADATA_BYTES - len(contents_of(empty)["zarr.json"])
    assert_same_trajectory(round_trip(with_text(length)), with_text(length))
    refuse("no tensors cannot be stored", curr_obs={"a": "x" * (length + 1)})


@pytest.mark.parametrize("value", ["a/b", "/", "\0", "x" * 201, None, 3, b"x"])
def test_weights_ids_are_part_of_a_file_name(value: Any) -> None:
    refuse("model_weights_id is", model_weights_id=value)


@pytest.mark.parametrize("value", [1.5, math.nan, "3", True, 2**63, REWARDS])
def test_an_episode_length_is_a_whole_number(value: Any) -> None:
    refuse("max_episode_length is", max_episode_length=value)


@pytest.mark.parametrize(
    ("value", "kept"), [(None, None), (80.0, 80), (np.int32(7), 7), (np.float64(3), 3)]
)
def test_an_episode_length_may_be_a_whole_float_or_untold(
    value: Any, kept: int | None
) -> None:
    trajectory = Trajectory(rewards=REWARDS, max_episode_length=value)
    found = round_trip(trajectory).max_episode_length
    assert found == kept
    assert type(found) is type(kept)


def test_fields_that_would_be_lost_are_refused_by_name() -> None:
    @dataclasses.dataclass
    class More(Trajectory):
        bonus: Tensor | None = None

    assert_same_trajectory(
        round_trip(More(rewards=REWARDS)), Trajectory(rewards=REWARDS)
    )
    for bonus in (1, [REWARDS], {"a": REWARDS}, "x"):
        with pytest.raises(InvalidInputError, match="field 'bonus' of More is a"):
            encode(More(rewards=REWARDS, bonus=bonus))  # type: ignore[arg-type]


def test_an_unknown_field_is_kept_and_drawn_if_it_is_a_tensor() -> None:
    @dataclasses.dataclass
    class More(Trajectory):
        bonus: Tensor | None = None
        step_trace: dict[str, Any] = dataclasses.field(default_factory=dict)
        note: Any = None

    more = More(rewards=REWARDS, bonus=REWARDS + 1)
    found = round_trip(more)
    assert found.bonus.equal(REWARDS + 1)  # type: ignore[attr-defined]
    assert not hasattr(found, "step_trace")
    assert flatten_encoded(more)["bonus"].equal((REWARDS + 1).reshape(-1))
    assert f"bonus=float32{list(REWARDS.shape)}" in repr(found)
    again = round_trip(found)
    assert again.bonus.equal(REWARDS + 1)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["_bonus", "obs", "a" * 101])
def test_an_unknown_field_has_a_name_that_means_nothing_else(name: str) -> None:
    kind = dataclasses.make_dataclass(
        "More", [(name, Any)], bases=(Trajectory,), kw_only=True
    )
    with pytest.raises(InvalidInputError, match=f"field '{name}' of More"):
        encode(kind(rewards=REWARDS, **{name: REWARDS}))
