"""What rows say of trajectories is what a person would count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.remote import save
from support.trajectories import make_trajectory

import zarrbuf
from zarrbuf import Trajectory
from zarrbuf.common.uuids import new_uuid
from zarrbuf.trajectory.encoding import encode_trajectory


def tags_of(**fields: Any) -> dict[str, Any]:
    trajectory = Trajectory(**fields)
    return encode_trajectory(trajectory, uuid=new_uuid(), codec="none").tags


def column(*values: float) -> torch.Tensor:
    """[T, 2] whose second environment has only zeros."""
    return torch.tensor([[value, 0.0] for value in values])


def test_return_length_and_success_are_means_over_environments() -> None:
    done = column(0, 0, 1, 0).bool()
    tags = tags_of(
        rewards=column(1, 2, 3, 4),
        dones=done,
        terminations=done,
        intervene_flags=column(1, 0, 0, 0).bool(),
        versions=torch.tensor([[3, 3], [3, 4], [4, 4], [5, 5]]),
    )
    assert tags == {
        "mean_return": 5,  # (10 + 0) / 2
        "mean_length": 3.5,  # (3 + 4) / 2
        "success_rate": 0.5,
        "intervened": 0.125,
        "weights_version": 5,
    }


def test_rows_before_a_rollout_epoch_are_no_steps() -> None:
    # Two epochs of two steps: each has one row more, before it.
    dones = torch.zeros(6, 1, dtype=torch.bool)
    dones[3] = True
    tags = tags_of(rewards=torch.zeros(4, 1), dones=dones)
    assert tags["mean_length"] == 4
    dones[4] = True
    assert tags_of(rewards=torch.zeros(4, 1), dones=dones)["mean_length"] == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32])
def test_rewards_of_any_dtype_are_added(dtype: torch.dtype) -> None:
    rewards = torch.full((300, 2, 3), 2, dtype=dtype)
    assert tags_of(rewards=rewards)["mean_return"] == 1800


def test_what_has_no_number_is_left_out() -> None:
    assert tags_of(actions=torch.zeros(3, 2, 1)) == {}
    assert tags_of(rewards=column(float("nan"), 1)) == {}
    assert tags_of(rewards=column(float("inf"), 1)) == {}
    assert tags_of(rewards=torch.zeros(3, 2, dtype=torch.complex64)) == {}
    assert tags_of(rewards=torch.zeros(3, 2, 0))["mean_return"] == 0


def test_numbers_are_short() -> None:
    assert tags_of(rewards=column(1 / 3, 0))["mean_return"] == 0.16667
    assert tags_of(rewards=column(1234567, 0))["mean_return"] == 617280.0
    versions = torch.full((1, 2), 123456789)
    assert tags_of(versions=versions)["weights_version"] == 123456789


def test_listings_show_them(tmp_path: Path) -> None:
    save(str(tmp_path), None, [make_trajectory(8, 2, seed=n) for n in range(2)])
    rows = zarrbuf.list_buffer(tmp_path).rows
    for position in range(2):
        assert set(rows.row(position).tags) == {
            "mean_return",
            "mean_length",
            "success_rate",
            "intervened",
            "weights_version",
        }
