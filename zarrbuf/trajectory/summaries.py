"""What the manifest says of a trajectory beside its shape: return, length, success.

Pure. Computed once, when a trajectory is added, so that trajectories are chosen without
opening one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from zarrbuf.archive.spec import EXTRA_ROWS, AnyArray, step_rows

_DIGITS: Final = 5


def summarize(
    fields: Mapping[str, tuple[AnyArray, str]], num_steps: int
) -> dict[str, float | int]:
    """Return the tags of a trajectory; one that a field is missing for is left out.

    Args:
        fields: field path -> stored array [T or T + E, B, ...] and torch dtype.
        num_steps: `T`.

    Returns:
        `mean_return`: sum of the rewards of an environment, mean of all. `mean_length`:
        steps of an environment until it is done first, `T` if never, mean of all.
        `success_rate`: share of the environments that terminate. `intervened`: share
        of the samples that a person acted in. `weights_version`: the highest in
        `versions`. Rounded to 5 digits.
    """
    tags: dict[str, float | int | None] = {}
    rewards = _numbers(fields, "rewards")
    if rewards is not None:
        rewards = rewards[:num_steps]
        with np.errstate(all="ignore"):  # what is not finite is left out
            total = float(rewards.astype(np.float64).sum())
        tags["mean_return"] = total / rewards.shape[1]
    dones = _flags(fields, "dones", num_steps)
    if dones is not None:
        first = np.where(dones.any(0), dones.argmax(0) + 1, num_steps)
        tags["mean_length"] = float(first.mean())
    terminations = _flags(fields, "terminations", num_steps)
    if terminations is not None:
        tags["success_rate"] = float(terminations.any(0).mean())
    flags = _flags(fields, "intervene_flags", num_steps)
    if flags is not None:
        tags["intervened"] = float(flags.mean())
    versions = _numbers(fields, "versions")
    if versions is not None and versions.size:
        tags["weights_version"] = float(versions[:num_steps].max())
    return {name: _rounded(value) for name, value in tags.items() if _is_finite(value)}


def _is_finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _rounded(value: Any) -> float | int:
    """Return a number with few digits; whole ones stay exact."""
    if value == int(value) and abs(value) < 2**53:
        return int(value)
    return float(f"{value:.{_DIGITS}g}")


def _numbers(fields: Mapping[str, tuple[AnyArray, str]], name: str) -> AnyArray | None:
    """Return a field as numbers NumPy can add, None if it is absent or has others."""
    if name not in fields:
        return None
    array, dtype = fields[name]
    if array.ndim < 2:
        return None
    if dtype == "bfloat16":
        bits = array.astype(np.uint32) << np.uint32(16)
        numbers: AnyArray = bits.view(np.float32)
        return numbers
    if array.dtype.kind not in "fiub" or dtype != array.dtype.name:
        return None
    return array


def _flags(
    fields: Mapping[str, tuple[AnyArray, str]], name: str, num_steps: int
) -> AnyArray | None:
    """Return a field as bool [T, B], less its extra rows."""
    array = _numbers(fields, name)
    if array is None or not array.size:
        return None
    flags: AnyArray = (array != 0).reshape(*array.shape[:2], -1).any(-1)
    rows = step_rows(EXTRA_ROWS.get(name, "step"), len(flags), num_steps)
    kept: AnyArray = flags[rows]
    return kept
