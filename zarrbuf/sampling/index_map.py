"""Which sample lies where: the index map, and the plan of what a batch reads.

Pure: integers in, integers out. Samples are numbered through the trajectories of the
window in order, within a trajectory `i = t * B + b`. Knows no file and no field.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
class IndexMap:
    """Where the samples of the trajectories that are drawn from lie.

    Attributes:
        spans: trajectories, few spans of many.
        starts: int64 [len(spans) + 1], number of the first sample of each span; the
            last entry is the number of samples.
        firsts: int64 [len(spans) + 1], position of the first trajectory of each span.
        total_samples: samples of all of them.
    """

    spans: tuple[Span, ...]
    starts: IntArray
    firsts: IntArray
    total_samples: int

    @classmethod
    def of(cls, num_steps: IntArray, num_envs: IntArray) -> IndexMap:
        """Make the map of trajectories given by their `T` and `B`."""
        steps = np.asarray(num_steps, np.int64)
        envs = np.asarray(num_envs, np.int64)
        return cls.of_spans([Span(np.cumsum(steps * envs), 0, steps, envs)])

    @classmethod
    def of_spans(cls, spans: Sequence[Span]) -> IndexMap:
        """Make the map of some spans, one after the other."""
        starts = np.cumsum([0, *(span.num_samples for span in spans)])
        firsts = np.cumsum([0, *(len(span.ends) for span in spans)])
        return cls(tuple(spans), starts, firsts, int(starts[-1]))

    @property
    def num_trajectories(self) -> int:
        """Positions of the window, those counted that are not drawn from."""
        return int(self.firsts[-1])

    def num_samples_of(self, positions: IntArray) -> IntArray:
        """Return `T * B` of some trajectories, int64 [n]."""
        sizes = np.zeros(len(positions), np.int64)
        for number, span, here in _by_span(positions, self.firsts, self):
            found = positions[here] - self.firsts[number]
            sizes[here] = span.num_steps[found] * span.num_envs[found]
        return sizes

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
    """All samples of a batch, grouped by trajectory.

    Attributes:
        positions: int64 [num_groups], which trajectories of the window; ascending
            where the samples are in the order of their places.
        counts: int64 [num_groups], samples of each.
        rows: int64 [n], rows of the batch, each once; those of the first group first.
        flat: int64 [n], samples `t * B + b` in their trajectories; within one by
            environment, then step, as big fields lie in the file.
        group_of: int64 [n], the group of each sample, ascending.
    """

    positions: IntArray
    counts: IntArray
    rows: IntArray
    flat: IntArray
    group_of: IntArray

    @property
    def groups(self) -> list[Group]:
        """The samples of each trajectory, for those who want one after the other."""
        bounds = np.cumsum(self.counts)[:-1]
        parts = zip(
            self.positions.tolist(),
            np.split(self.rows, bounds),
            np.split(self.flat, bounds),
            strict=False,
        )
        return [Group(*part) for part in parts]

    def by_position(self) -> ReadPlan:
        """Return the groups in order of their positions, none twice.

        For plans of which every sample is a group.
        """
        order = np.argsort(self.positions, kind="stable")
        positions, counts = np.unique(self.positions, return_counts=True)
        group_of = np.repeat(np.arange(len(positions)), counts)
        return ReadPlan(positions, counts, self.rows[order], self.flat[order], group_of)

    def part(self, start: int, stop: int) -> ReadPlan:
        """Return the groups from `start` up to `stop`."""
        first, last = (int(self.counts[:count].sum()) for count in (start, stop))
        return ReadPlan(
            self.positions[start:stop],
            self.counts[start:stop],
            self.rows[first:last],
            self.flat[first:last],
            self.group_of[first:last] - start,
        )


def window_start(num_trajectories: int, sample_window_size: int) -> int:
    """Return the first of the newest `sample_window_size` trajectories, 0 for all."""
    if sample_window_size <= 0:
        return 0
    return max(0, num_trajectories - sample_window_size)


def plan_batch(
    draws: IntArray, index: IndexMap, *, in_place_order: bool = True
) -> ReadPlan:
    """Plan which samples are read from which trajectory. Pure (no I/O).

    Args:
        draws: int64 [n], numbers of samples, any order, repeats allowed.
        index: of the trajectories that are drawn from.
        in_place_order: group the samples as they lie on disk. Small fields are in
            memory and need no order: every sample is a group of its own then.

    Returns:
        Groups in order of the window; within one, samples by environment, then step.

    Raises:
        InvalidInputError: if a number lies outside the window.
    """
    draws = np.asarray(draws, np.int64)
    if len(draws) and (draws.min() < 0 or draws.max() >= index.total_samples):
        raise InvalidInputError(
            f"samples from {draws.min()} to {draws.max()} are drawn; "
            f"[0, {index.total_samples}) are in the window"
        )
    position, flat = _find_samples(draws, index)
    if not in_place_order:
        every = np.arange(len(draws))
        return ReadPlan(position, np.ones_like(every), every, flat, every)
    order = np.argsort(_places(position, flat, draws, index), kind="stable")
    position, flat = position[order], flat[order]
    is_first = np.ones(len(draws), np.bool_)
    is_first[1:] = position[1:] != position[:-1]
    starts = np.flatnonzero(is_first)
    counts = np.diff(starts, append=len(draws))
    group_of = np.cumsum(is_first) - 1
    return ReadPlan(position[starts], counts, order, flat, group_of)


def _by_span(
    numbers: IntArray, bounds: IntArray, index: IndexMap
) -> Iterator[tuple[int, Span, slice | IntArray]]:
    """Yield each span with the numbers that lie in it, as an index into them.

    Args:
        numbers: int64 [n].
        bounds: int64 [len(spans) + 1], ascending.
        index: whose spans.
    """
    if len(index.spans) == 1:
        yield 0, index.spans[0], slice(None)
        return
    which = np.searchsorted(bounds, numbers, side="right") - 1
    for number, span in enumerate(index.spans):
        yield number, span, np.flatnonzero(which == number)


def _find_samples(draws: IntArray, index: IndexMap) -> tuple[IntArray, IntArray]:
    """Find the trajectory of each sample.

    Returns:
        int64 [n] each: the position of the trajectory, and the sample in it.
    """
    position, flat = np.empty((2, len(draws)), np.int64)
    for number, span, here in _by_span(draws, index.starts, index):
        counted = draws[here] - (index.starts[number] - span.before)
        # On the right side: a trajectory without samples ends where it starts.
        found = np.searchsorted(span.ends, counted, side="right")
        size = span.num_steps[found] * span.num_envs[found]
        flat[here] = counted - span.ends[found] + size
        position[here] = found + index.firsts[number]
    return position, flat


def _places(
    position: IntArray, flat: IntArray, draws: IntArray, index: IndexMap
) -> IntArray:
    """Return numbers that order samples as they lie on disk.

    Returns:
        int64 [n]: the number of the first sample of its trajectory, and behind it the
        samples by environment, then step.
    """
    place = draws - flat
    for number, span, here in _by_span(position, index.firsts, index):
        found = position[here] - index.firsts[number]
        step, env = np.divmod(flat[here], span.num_envs[found])
        place[here] += env * span.num_steps[found] + step
    return place
