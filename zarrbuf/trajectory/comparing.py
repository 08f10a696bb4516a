"""Whether two trajectories are the same, bit for bit, field by field.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from zarrbuf.trajectory.trajectory import Trajectory


def compare_trajectories(before: Trajectory, after: Trajectory) -> dict[str, str]:
    """Compare every field of two trajectories.

    Returns:
        Field path -> "bit-exact", "changed" (another dtype, shape, bit or value),
        "dropped" (only in `before`) or "added" (only in `after`).
    """
    old, new = dict(_leaves(vars(before))), dict(_leaves(vars(after)))
    found = {}
    for path in sorted(old.keys() | new.keys()):
        if path not in new:
            found[path] = "dropped"
        elif path not in old:
            found[path] = "added"
        else:
            is_equal = is_same(old[path], new[path])
            found[path] = "bit-exact" if is_equal else "changed"
    return found


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what is no dict, and empty dicts, by path; None at the top is nothing."""
    for key, item in value.items():
        path = f"{prefix}{key}"
        if isinstance(item, Mapping) and item:
            yield from _leaves(item, f"{path}/")
        elif prefix or (item is not None and not isinstance(item, Mapping)):
            yield path, item


def is_same(a: Any, b: Any) -> bool:
    """Whether two values are the same in kind and every bit, tensors and NaN too."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and _bits(a) == _bits(b)
    if isinstance(a, list | tuple) and type(a) is type(b):
        return len(a) == len(b) and all(map(is_same, a, b))
    if isinstance(a, float | np.generic) and type(a) is type(b):
        return np.asarray(a).tobytes() == np.asarray(b).tobytes()  # NaN is not NaN
    return type(a) is type(b) and bool(a == b)


def _bits(tensor: torch.Tensor) -> bytes:
    if not tensor.numel():
        return b""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg()
    dense = plain.contiguous().reshape(-1)
    return dense.view(torch.uint8).numpy().tobytes()
