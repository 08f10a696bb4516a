"""Steps in which a person took over, against a loop over environments and steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.trajectories import assert_same_value, make_trajectory

from zarrbuf import Trajectory
from zarrbuf.archive.spec import EXTRA_ROWS, TENSOR_FIELDS
from zarrbuf.errors import InvalidInputError

Tensor = torch.Tensor


def steps_slowly(
    name: str, tensor: Tensor, env: int, taken: list[bool]
) -> list[Tensor]:
    """Return the rows of one environment that stay, one by one."""
    num_steps, found = len(taken), []
    extra = len(tensor) - num_steps
    length = num_steps // extra if extra else num_steps
    row = 0
    for step in range(num_steps):
        is_first, is_last = step % length == 0, step % length == length - 1
        if extra and EXTRA_ROWS.get(name) == "start" and is_first:
            found.append(tensor[row, env])
            row += 1
        if taken[step]:
            found.append(tensor[row, env])
        row += 1
        if extra and EXTRA_ROWS.get(name) == "end" and is_last:
            found.append(tensor[row, env])
            row += 1
    return found


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([(4, 1), (4, 2), (6, 3)]),
    st.integers(1, 3),
    st.sampled_from(["any", "all"]),
    st.integers(0, 2**31),
)
def test_they_are_what_a_loop_finds(
    steps: tuple[int, int], num_envs: int, mode: str, seed: int
) -> None:
    num_steps, epochs = steps
    trajectory = make_trajectory(num_steps, num_envs, seed=seed, extra_epochs=epochs)
    draws = torch.Generator().manual_seed(seed)
    flags = torch.rand(num_steps, num_envs, 3, generator=draws) > 0.6
    trajectory.intervene_flags = flags
    taken = flags.any(-1) if mode == "any" else flags.all(-1)
    found = trajectory.extract_intervene_traj(mode=mode) or []
    envs = [env for env in range(num_envs) if taken[:, env].any()]
    assert len(found) == len(envs)
    for env, one in zip(envs, found, strict=True):
        assert one.max_episode_length == trajectory.max_episode_length
        assert one.model_weights_id == trajectory.model_weights_id
        assert one.versions is None
        for name in TENSOR_FIELDS:
            value = getattr(trajectory, name)
            if value is None or name == "versions":
                continue
            rows = steps_slowly(name, value, env, taken[:, env].tolist())
            assert_same_value(getattr(one, name), torch.stack(rows)[:, None], name)
        for group in ("curr_obs", "next_obs", "forward_inputs"):
            for key, value in getattr(trajectory, group).items():
                if isinstance(value, Tensor) and value.ndim >= 2:
                    rows = steps_slowly("", value, env, taken[:, env].tolist())
                    found_rows = getattr(one, group)[key]
                    assert_same_value(found_rows, torch.stack(rows)[:, None], key)


def test_rows_behind_the_steps_are_left_out() -> None:
    """As RLT adds them, which RLinf's own method cannot take."""
    flags = torch.zeros(5, 1, 2, dtype=torch.bool)
    flags[[1, 4]] = True
    actions = torch.arange(10.0).reshape(5, 1, 2)
    trajectory = Trajectory(
        rewards=torch.arange(4.0)[:, None], actions=actions, intervene_flags=flags
    )
    (found,) = trajectory.extract_intervene_traj() or []
    assert found.rewards.tolist() == [[1.0]]
    assert found.actions.tolist() == [[[2.0, 3.0]]]


def test_without_any_there_is_none() -> None:
    rewards = torch.zeros(2, 1)
    assert Trajectory(rewards=rewards).extract_intervene_traj() is None
    flags = torch.zeros(2, 1, 3, dtype=torch.bool)
    never = Trajectory(rewards=rewards, intervene_flags=flags)
    assert never.extract_intervene_traj() is None
    flags = flags.clone()
    flags[0, 0, 1] = True
    partly = Trajectory(rewards=rewards, intervene_flags=flags)
    assert partly.extract_intervene_traj("all") is None
    assert len(partly.extract_intervene_traj("any") or []) == 1


@pytest.mark.parametrize(
    ("flags", "mode", "match"),
    [
        (torch.ones(2, 1, 3, dtype=torch.bool), "most", "mode is 'most'; allowed are"),
        (torch.ones(2, 1, dtype=torch.bool), "any", r"\[2, 1\]; \[T, B, A\] is needed"),
    ],
)
def test_what_is_not_allowed_is_named(flags: Any, mode: str, match: str) -> None:
    trajectory = Trajectory(rewards=torch.zeros(2, 1), intervene_flags=flags)
    with pytest.raises(InvalidInputError, match=match):
        trajectory.extract_intervene_traj(mode)


def test_arguments_may_be_given_in_rlinfs_order() -> None:
    actions, flags, rewards = (
        torch.zeros(2, 1, 3),
        torch.zeros(2, 1, 3),
        torch.ones(2, 1),
    )
    trajectory = Trajectory(50, "w_1", actions, flags, rewards)
    assert trajectory.max_episode_length == 50
    assert trajectory.model_weights_id == "w_1"
    assert trajectory.actions is actions
    assert trajectory.intervene_flags is flags
    assert trajectory.rewards is rewards
