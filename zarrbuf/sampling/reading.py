"""One batch while it is read: what goes where, from whom, at what cost.

Values that `reader` and `small_reader` hand to each other. Reads nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from zarrbuf.archive.spec import AnyArray, BatchField
from zarrbuf.sampling.index_map import IntArray, ReadPlan, Window
from zarrbuf.sampling.stats import ReadStats
from zarrbuf.storage.fetching import FetchCost
from zarrbuf.trajectory.archived import TrajectoryArchive


class Trajectories(Protocol):
    """The trajectories of a window, by position.

    Attributes:
        window: the same object as long as positions mean the same trajectories.
    """

    @property
    def window(self) -> Window:
        """See above."""
        ...

    def uuids(self, positions: IntArray) -> list[str]:
        """Return the uuids of some, ascending positions."""
        ...

    def archives(
        self, positions: IntArray, cost: FetchCost
    ) -> Iterator[TrajectoryArchive]:
        """Yield archives of some, ascending positions; opened where they are not."""
        ...


@dataclass(frozen=True)
class Reading:
    """One batch that is read.

    Attributes:
        arrays: field name -> C-contiguous array [n, ...] of the stored dtype.
        fields: which fields, served by every trajectory of the plan.
        trajectories: those of the window.
        stats: what it costs.
        cost: what fetching costs, a part of that.
    """

    arrays: Mapping[str, AnyArray]
    fields: Sequence[BatchField]
    trajectories: Trajectories
    stats: ReadStats
    cost: FetchCost = field(default_factory=FetchCost)

    @functools.cached_property
    def big(self) -> list[BatchField]:
        """Fields of which each sample is a chunk."""
        return [one for one in self.fields if one.spec.is_big]

    @functools.cached_property
    def small(self) -> list[BatchField]:
        """The others."""
        return [one for one in self.fields if not one.spec.is_big]


@dataclass(frozen=True)
class Part:
    """Some of the samples of a batch.

    Attributes:
        plan: which.
        archives: those of its groups, or none where no big field is read.
    """

    plan: ReadPlan
    archives: Sequence[TrajectoryArchive]
