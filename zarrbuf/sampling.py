"""Which sample lies where: the window, the index map, the read plan.

Pure: integers in, integers out. Samples are numbered through the trajectories of the
window in order, within a trajectory `i = t * B + b`. Knows no file and no field.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from zarrbuf.errors import InvalidInputError

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Span:
    """Trajectories of one list that follow each other.

    Attributes:
        ends: int64 [n], samples drawn from up to and including each trajectory, counted
            from somewhere; one that is not drawn from adds none.
        before: this number before the first one.
        num_steps: int64 [n], `T` of each.
        num_envs: int64 [n], `B` of each.
    """

    ends: IntArray
    before: int
    num_steps: IntArray
    num_envs: IntArray

    @property
    def num_samples(self) -> int:
        """Samples that are drawn from."""
        return int(self.ends[-1]) - self.before if len(self.ends) else 0


@dataclass(frozen=True)
class Window:
    """The trajectories that are drawn from.

    Attributes:
        spans: trajectories, few spans of many.
        starts: int64 [len(spans) + 1], number of the first sample of each span; the
            last entry is the number of samples.
        firsts: int64 [len(spans) + 1], position of the first trajectory of each span.
    """

    spans: tuple[Span, ...]
    starts: IntArray
    firsts: IntArray

    @classmethod
    def of(cls, num_steps: IntArray, num_envs: IntArray) -> Window:
        """Make the window of trajectories given by their `T` and `B`."""
        steps = np.asarray(num_steps, np.int64)
        envs = np.asarray(num_envs, np.int64)
        return cls.of_spans([Span(np.cumsum(steps * envs), 0, steps, envs)])

    @classmethod
    def of_spans(cls, spans: Sequence[Span]) -> Window:
        """Make the window of some spans, one after the other."""
        starts = np.cumsum([0, *(span.num_samples for span in spans)])
        firsts = np.cumsum([0, *(len(span.ends) for span in spans)])
        return cls(tuple(spans), starts, firsts)

    @property
    def total_samples(self) -> int:
        """Samples in the window."""
        return int(self.starts[-1])

    def locate(self, position: int) -> tuple[int, int]:
        """Return the span of a position in the window, and the position in it."""
        number = int(np.searchsorted(self.firsts, position, side="right")) - 1
        return number, position - int(self.firsts[number])


class Group(NamedTuple):
    """The samples of a batch that lie in one trajectory.

    Attributes:
        position: which trajectory of the window, those counted that are not drawn
            from.
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
    position, flat, place = _find_samples(draws, window)
    order = np.argsort(place, kind="stable")
    position, flat = position[order], flat[order]
    cuts = np.flatnonzero(np.diff(position)) + 1
    starts = [0, *cuts.tolist()] if len(draws) else []
    bounds = itertools.pairwise([*starts, len(draws)])
    firsts = position[np.array(starts, np.int64)].tolist()
    groups = [
        Group(first, order[start:stop], flat[start:stop])
        for first, (start, stop) in zip(firsts, bounds, strict=True)
    ]
    return ReadPlan(len(draws), tuple(groups))


def _find_samples(
    draws: IntArray, window: Window
) -> tuple[IntArray, IntArray, IntArray]:
    """Find the trajectory of each sample.

    Returns:
        int64 [n] each: the position of the trajectory, the sample in it, and a number
        that says where the sample is read, after all of the trajectories before it.
    """
    position, flat, place = np.empty((3, len(draws)), np.int64)
    number = np.searchsorted(window.starts, draws, side="right") - 1
    for n, span in enumerate(window.spans):
        here = np.flatnonzero(number == n)
        counted = draws[here] - window.starts[n] + span.before
        # On the right side: a trajectory without samples ends where it starts.
        found = np.searchsorted(span.ends, counted, side="right")
        steps, envs = span.num_steps[found], span.num_envs[found]
        start = span.ends[found] - steps * envs
        flat[here] = counted - start
        step, env = np.divmod(flat[here], envs)
        position[here] = window.firsts[n] + found
        place[here] = window.starts[n] - span.before + start + env * steps + step
    return position, flat, place


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
