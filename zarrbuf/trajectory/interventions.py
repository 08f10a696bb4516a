"""The steps of a trajectory in which a person took over, as trajectories of their own.

What RLinf's `Trajectory.extract_intervene_traj` gives, and trajectories with extra rows
too. Pure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import torch

from zarrbuf.archive.spec import DICT_FIELDS, EXTRA_ROWS, TENSOR_FIELDS
from zarrbuf.errors import InvalidInputError

Tensor = torch.Tensor
Record = TypeVar("Record", bound=Any)
MODES: Final = ("any", "all")


def extract_interventions(trajectory: Record, mode: str) -> list[Record] | None:
    """Return, for each environment where a person took over, those steps alone.

    Args:
        trajectory: a dataclass with the fields of `Trajectory`.
        mode: "any" for the steps of which any number of the action is a person's,
            "all" for those of which all are.

    Returns:
        Trajectories [k, 1, ...]; of fields with an extra row in each rollout epoch, the
        extra rows stay. `versions` is None. None if there is no such step.

    Raises:
        InvalidInputError: if the mode is not known, or `intervene_flags` is not
            [T, B, A].
    """
    if mode not in MODES:
        raise InvalidInputError(f"mode is {mode!r}; allowed are {', '.join(MODES)}")
    flags = trajectory.intervene_flags
    if flags is None or not flags.any():
        return None
    if flags.ndim != 3:
        raise InvalidInputError(
            f"intervene_flags has shape {list(flags.shape)}; [T, B, A] is needed"
        )
    taken = flags.bool().any(-1) if mode == "any" else flags.bool().all(-1)
    told = [trajectory.prev_logprobs, trajectory.rewards, taken]
    taken = taken[: len(next(one for one in told if one is not None))]
    found = [
        _steps_of(trajectory, env, taken[:, env])
        for env in range(taken.shape[1])
        if taken[:, env].any()
    ]
    return found or None


def _steps_of(trajectory: Record, env: int, taken: Tensor) -> Record:
    """Return some steps of one environment, bool [T], as a trajectory."""
    changes: dict[str, Any] = {"versions": None}
    for name in TENSOR_FIELDS:
        value = getattr(trajectory, name)
        if value is not None and name != "versions":
            changes[name] = value[:, env : env + 1][_rows(name, len(value), taken)]
    for name in DICT_FIELDS:
        values: Mapping[str, Any] = getattr(trajectory, name) or {}
        changes[name] = {
            key: value[:, env : env + 1][_rows("", len(value), taken)]
            for key, value in values.items()
            if isinstance(value, Tensor) and value.ndim >= 2
        }
    made: Record = dataclasses.replace(trajectory, **changes)
    return made


def _rows(name: str, num_rows: int, taken: Tensor) -> Tensor:
    """Return which rows of a field stay, bool [num_rows]."""
    num_steps, extra = len(taken), num_rows - len(taken)
    place = EXTRA_ROWS.get(name)
    if extra <= 0 or place is None or num_steps % extra:
        rest = torch.zeros(max(0, extra), dtype=torch.bool, device=taken.device)
        return torch.cat([taken, rest])
    epochs = taken.reshape(extra, -1)
    stay = torch.ones(extra, 1, dtype=torch.bool, device=taken.device)
    pair = (stay, epochs) if place == "start" else (epochs, stay)
    return torch.cat(pair, dim=1).reshape(-1)
