"""Times, their medians and ratios. Imports none of the libraries that are compared."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

Result = TypeVar("Result")


@dataclass
class Times:
    """Seconds by contender and round; a round may leave some out."""

    rounds: list[dict[str, float]] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The contenders, the fastest first."""
        names = dict.fromkeys(name for times in self.rounds for name in times)
        return sorted(names, key=self.median)

    def of(self, name: str) -> list[float]:
        """Return the times of one contender."""
        return [times[name] for times in self.rounds if name in times]

    def median(self, name: str) -> float:
        """Return the median time of one contender."""
        return statistics.median(self.of(name))

    def spread(self, name: str) -> tuple[float, float]:
        """Return the first and the third quartile of the times."""
        times = self.of(name)
        if len(times) < 2:
            return times[0], times[0]
        first, _, third = statistics.quantiles(times, n=4, method="inclusive")
        return first, third

    def ratio(self, name: str, *others: str) -> float:
        """Return the median, over the rounds all ran in, of a ratio of times.

        Args:
            name: whose time is divided.
            others: by the sum of whose times.
        """
        return statistics.median(
            times[name] / sum(times[other] for other in others)
            for times in self.rounds
            if {name, *others} <= times.keys()
        )


@dataclass
class Drawn:
    """Batches of all contenders.

    Attributes:
        count: samples of a batch.
        times: seconds to draw one.
        faults: minor page faults of each batch, by contender.
    """

    count: int
    times: Times = field(default_factory=Times)
    faults: dict[str, list[int]] = field(default_factory=dict)


def timed(call: Callable[..., Result], *arguments: Any) -> tuple[float, Result]:
    """Return the seconds a call takes, and its result."""
    started = time.perf_counter()
    result = call(*arguments)
    return time.perf_counter() - started, result


def page_faults() -> int:
    """Return the minor page faults of this process so far.

    A fault brings one page: 4 KiB, or 2 MiB where the memory was made for huge pages.
    """
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
