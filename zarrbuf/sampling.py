"""Which sample lies where: the window, the index map, the read plan.

Pure: integers in, integers out. Samples are numbered through the trajectories of the
window in order, within a trajectory `i = t * B + b`. Knows no file and no field.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zarrbuf.errors import InvalidInputError

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Window:
    """The trajectories that are drawn from.

    Attributes:
        starts: int64 [n + 1], number of the first sample of each trajectory; the last
            entry is the number of samples.
        num_steps: int64 [n], `T` of each.
        num_envs: int64 [n], `B` of each.
    """

    starts: IntArray
    num_steps: IntArray
    num_envs: IntArray

    @classmethod
    def of(cls, num_steps: IntArray, num_envs: IntArray) -> Window:
        """Make the window of trajectories given by their `T` and `B`."""
        steps = np.asarray(num_steps, np.int64)
        envs = np.asarray(num_envs, np.int64)
        return cls(np.concatenate([[0], np.cumsum(steps * envs)]), steps, envs)

    @property
    def total_samples(self) -> int:
        """Samples in the window."""
        return int(self.starts[-1])


@dataclass(frozen=True)
class Group:
    """The samples of a batch that lie in one trajectory.

    Attributes:
        position: which trajectory of the window.
        out: int64 [k], rows of the batch.
        flat: int64 [k], samples `t * B + b`; by environment, then step, as big fields
            lie in the file.
    """

    position: int
    out: IntArray
    flat: IntArray


@dataclass(frozen=True)
class ReadPlan:
    """All samples of a batch.

    Attributes:
        num_samples: rows of the batch.
        groups: by position; each row of the batch occurs in exactly one.
    """

    num_samples: int
    groups: tuple[Group, ...]


def window_start(num_trajectories: int, sample_window_size: int) -> int:
    """Return the first of the newest `sample_window_size` trajectories, 0 for all."""
    if sample_window_size <= 0:
        return 0
    return max(0, num_trajectories - sample_window_size)


def plan_batch(draws: IntArray, window: Window) -> ReadPlan:
    """Plan which samples are read from which trajectory. Pure (no I/O).

    Args:
        draws: int64 [n], numbers of samples, any order, repeats allowed.
        window: the trajectories that are drawn from.

    Returns:
        Groups in order of the window; within one, samples by environment, then step.

    Raises:
        InvalidInputError: if a number lies outside the window.
    """
    draws = np.asarray(draws, np.int64)
    if len(draws) and (draws.min() < 0 or draws.max() >= window.total_samples):
        raise InvalidInputError(
            f"samples from {draws.min()} to {draws.max()} are drawn; "
            f"[0, {window.total_samples}) are in the window"
        )
    position = np.searchsorted(window.starts, draws, side="right") - 1
    flat = draws - window.starts[position]
    step, env = np.divmod(flat, window.num_envs[position])
    order = np.argsort(
        window.starts[position] + env * window.num_steps[position] + step, kind="stable"
    )
    position, flat = position[order], flat[order]
    cuts = np.flatnonzero(np.diff(position)) + 1
    bounds = [0, *cuts.tolist(), len(draws)] if len(draws) else [0]
    return ReadPlan(
        len(draws),
        tuple(
            Group(int(position[start]), order[start:stop], flat[start:stop])
            for start, stop in itertools.pairwise(bounds)
        ),
    )


def partition(num_items: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return the half-open range of items that one of several ranks takes.

    Parts are contiguous; the first `num_items % world_size` ranks get one more.

    Raises:
        InvalidInputError: if `rank` is not in [0, world_size).
    """
    if world_size < 1 or not 0 <= rank < world_size:
        raise InvalidInputError(
            f"local_rank is {rank} and world_size {world_size}; "
            "0 <= local_rank < world_size is needed"
        )
    size, extra = divmod(num_items, world_size)
    start = rank * size + min(rank, extra)
    return start, start + size + (1 if rank < extra else 0)
