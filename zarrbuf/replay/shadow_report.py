"""What running RLinf's buffer beside ours has shown: equality, and what both cost.

Owns what is the same in two batches, and how it is told to people and to programs.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import torch

from zarrbuf.trajectory.comparing import is_same

OURS: Final = "zarrbuf"
THEIRS: Final = "RLinf"


@dataclass
class Cost:
    """What one of the two buffers has cost.

    Attributes:
        add_seconds: wait of who added, one a trajectory.
        sample_seconds: one a batch.
        memory_bytes: of tensors, arrays and bytes that it refers to, at the end.
        disk_bytes: of its files at the end; None if it has none on a local disk.
    """

    add_seconds: list[float] = field(default_factory=list)
    sample_seconds: list[float] = field(default_factory=list)
    memory_bytes: int = 0
    disk_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the figures: medians, and the first batch, in seconds; bytes."""
        return {
            "add_seconds": _median(self.add_seconds),
            "first_sample_seconds": _median(self.sample_seconds[:1]),
            "sample_seconds": _median(self.sample_seconds),
            "memory_bytes": self.memory_bytes,
            "disk_bytes": self.disk_bytes,
        }


@dataclass
class ShadowReport:
    """What came of running both.

    Attributes:
        num_draws: batches that both drew.
        num_equal: of these, those equal in every bit of every row that RLinf returned.
        num_rows: rows compared.
        difference: what is different first, and where; None if nothing is.
        stopped: what RLinf's buffer raised, which ended the comparison; None otherwise.
        costs: of each, by its name.
    """

    num_draws: int = 0
    num_equal: int = 0
    num_rows: int = 0
    difference: str | None = None
    stopped: str | None = None
    costs: dict[str, Cost] = field(
        default_factory=lambda: {THEIRS: Cost(), OURS: Cost()}
    )

    @property
    def is_equal(self) -> bool:
        """Whether batches were compared, and nothing was different or failed."""
        return bool(self.num_draws) and self.difference is None and self.stopped is None

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        costs = {name: cost.to_json() for name, cost in self.costs.items()}
        return {**asdict(self), "costs": costs, "is_equal": self.is_equal}

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        found = [
            f"{self.num_equal} of {self.num_draws} batches are equal bit for bit "
            f"({self.num_rows} rows)"
        ]
        if self.difference is not None:
            found.append(f"the first difference: {self.difference}")
        if self.stopped is not None:
            found.append(f"{THEIRS}'s buffer raised {self.stopped}")
        found.append(f"{'':24}{THEIRS:>14}{OURS:>14}")
        columns = [cost.to_json() for cost in self.costs.values()]
        for name, label, show in (
            ("add_seconds", "add, median", _ms),
            ("first_sample_seconds", "first batch", _ms),
            ("sample_seconds", "batch, median", _ms),
            ("memory_bytes", "memory", _mib),
            ("disk_bytes", "disk", _mib),
        ):
            values = "".join(f"{show(column[name]):>14}" for column in columns)
            found.append(f"{label:24}{values}")
        return found


def _median(seconds: list[float]) -> float | None:
    return statistics.median(seconds) if seconds else None


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.2f} ms"


def _mib(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / 2**20:.1f} MiB"


def find_difference(
    batch: Mapping[str, Any], expected: Mapping[str, Any]
) -> tuple[str | None, int]:
    """Compare a batch of ours with RLinf's, which may have fewer rows.

    Returns:
        The first difference, None if there is none; the rows compared.
    """
    ours, theirs = dict(_leaves(batch)), dict(_leaves(expected))
    only = [
        f"{', '.join(sorted(some - others))} only in {name}'s"
        for name, some, others in (
            (OURS, set(ours), set(theirs)),
            (THEIRS, set(theirs), set(ours)),
        )
        if some - others
    ]
    if only:
        return "; ".join(only), 0
    num_rows = 0
    for name in sorted(theirs):
        a, b = ours[name], theirs[name]
        num_rows = len(b)
        if a.dtype != b.dtype or a.shape[1:] != b.shape[1:] or len(a) < len(b):
            return f"{name} is {_shape(a)}, {THEIRS}'s {_shape(b)}", num_rows
        if not is_same(a[:num_rows], b):
            rows = (n for n in range(num_rows) if not is_same(a[n], b[n]))
            return f"{name}, row {next(rows)}", num_rows
    return None, num_rows


def _leaves(batch: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in batch.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _shape(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
