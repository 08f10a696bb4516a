"""What a contender does: store trajectories, draw batches.

All draw the same samples from one seed and return the same bytes; `run` checks that
before it times anything. None of them keeps a trajectory that it was given.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.data import DataSet, Flat
from zarrbuf import Trajectory

SEED: Final = 1234
WINDOW: Final = 50_000
"""Trajectories that buffers in memory keep, as RLinf's configs of transitions ask."""


class Contender(abc.ABC):
    """One way to keep trajectories and to draw from them.

    Attributes:
        name: how tables call it.
        writes: whether it stores something of its own.
        rare: whether a batch takes so long that few are enough.
    """

    name: str
    writes = True
    rare = False

    def __init__(self, folder: Path, data: DataSet) -> None:
        """Prepare to store `data` in `folder`."""
        self.folder = folder
        self.data = data
        self._generator = torch.Generator().manual_seed(SEED)

    def add(self, trajectory: Trajectory) -> None:
        """Store a trajectory, the next one of the data."""
        raise NotImplementedError

    def add_many(self, trajectories: Sequence[Trajectory]) -> None:
        """Store some trajectories, faster where there is a way to."""
        for trajectory in trajectories:
            self.add(trajectory)

    def settle(self) -> None:  # noqa: B027
        """Do what `add` left for later; not timed as a part of it."""

    def open(self) -> None:  # noqa: B027
        """Get ready to sample what is stored."""

    def seed(self, seed: int) -> None:
        """Start the draws anew."""
        self._generator.manual_seed(seed)

    def draw(self, count: int) -> torch.Tensor:
        """Draw the numbers of samples, uniformly, with replacement."""
        total = self.data.num_samples
        return torch.randint(0, total, (count,), generator=self._generator)

    @abc.abstractmethod
    def sample(self, count: int) -> Any:
        """Draw samples; a mapping, nested or flat, of tensors [count, ...]."""

    def disk_bytes(self) -> int:
        """Return the bytes of the files stored."""
        return sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())

    def close(self) -> None:  # noqa: B027
        """Let go of files and memory."""


def flat_batch(batch: Any, prefix: str = "") -> Flat:
    """Return a batch of any contender as tensors by path."""
    flat: Flat = {}
    for name, value in batch.items():
        if hasattr(value, "items"):
            flat.update(flat_batch(value, f"{prefix}{name}/"))
        else:
            flat[prefix + name] = value
    return flat


def groups(
    draws: torch.Tensor, data: DataSet
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield, per trajectory drawn from, the rows of the batch and its samples."""
    number, inside = draws // data.samples_each, draws % data.samples_each
    for one in torch.unique(number).tolist():
        rows = torch.nonzero(number == one).flatten()
        yield one, rows, inside[rows]
