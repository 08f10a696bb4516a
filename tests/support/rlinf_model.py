"""RLinf's replay buffer as a plain model, written from what it promises.

It keeps everything in lists and draws by the obvious way; nothing of zarrbuf but the
trajectories themselves is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from support.batches import Path, Tensor, draw, num_samples

from zarrbuf.trajectory.trajectory import Trajectory


@dataclass
class Saved:
    """What a checkpoint holds: the window, what was ever counted, both generators."""

    kept: list[tuple[int, Trajectory]]
    size: int
    total_samples: int
    next_id: int
    seed: int
    generators: list[Tensor]


@dataclass
class Model:
    """A buffer in memory.

    Attributes:
        seed: of the draws.
        window: newest trajectories that are drawn from, 0 for all.
        loaded: ids and trajectories of a checkpoint, oldest first.
        kept: of those added, the ones that were in the window after the last add.
        size: trajectories ever added or loaded.
        total_samples: of these.
        next_id: of the next trajectory.
    """

    seed: int
    window: int
    loaded: list[tuple[int, Trajectory]] = field(default_factory=list)
    kept: list[tuple[int, Trajectory]] = field(default_factory=list)
    size: int = 0
    total_samples: int = 0
    next_id: int = 0

    def __post_init__(self) -> None:
        """Seed the generators."""
        self.generators = [
            torch.Generator().manual_seed(self.seed),
            torch.Generator().manual_seed(self.seed + 0x7A617272),
        ]

    @property
    def drawn(self) -> list[tuple[int, Trajectory]]:
        """What a batch comes from."""
        return [*self.loaded, *self.kept][-self.window :]

    def add(self, trajectories: Sequence[Trajectory]) -> None:
        """Add trajectories."""
        for trajectory in trajectories:
            self.kept.append((self.next_id, trajectory))
            self.next_id += 1
            self.size += 1
            self.total_samples += num_samples(trajectory)
        self.kept = self.kept[-self.window :]

    def set_window(self, window: int) -> None:
        """Draw from another number of trajectories."""
        self.window = window

    def sample(self, count: int) -> dict[Path, Tensor]:
        """Draw a batch."""
        return draw([one for _, one in self.drawn], count, *self.generators)

    def clear(self) -> None:
        """Forget everything; the draws go on."""
        self.loaded, self.kept = [], []
        self.size = self.total_samples = self.next_id = 0

    def save(self) -> Saved:
        """Return a checkpoint."""
        return Saved(
            self.drawn,
            self.size,
            self.total_samples,
            self.next_id,
            self.seed,
            [generator.get_state() for generator in self.generators],
        )

    def load(self, saved: Saved, rank: int = 0, world_size: int = 1) -> None:
        """Become what was saved, or one part of it."""
        share, more = divmod(len(saved.kept), world_size)
        start = rank * share + min(rank, more)
        self.loaded = saved.kept[start : start + share + (rank < more)]
        self.kept = []
        if world_size == 1:
            self.size, self.total_samples = saved.size, saved.total_samples
            self.next_id = saved.next_id
        else:
            self.size = len(self.loaded)
            self.total_samples = sum(num_samples(one) for _, one in self.loaded)
            self.next_id = max((number + 1 for number, _ in self.loaded), default=0)
        self.seed = saved.seed
        for generator, state in zip(self.generators, saved.generators, strict=True):
            generator.set_state(state)
