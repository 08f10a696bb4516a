"""A buffer with the face of RLinf's, over the plain model; some of them are wrong."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from support.rlinf_model import Model

from zarrbuf.stores.opening import open_store
from zarrbuf.trajectory.trajectory import Trajectory


class RlinfLike:
    """What RLinf's class of the same arguments does.

    Attributes:
        closed: how often `close` was called, by any of them.
    """

    closed = 0

    def __init__(
        self,
        seed: int = 1234,
        enable_cache: bool = True,
        cache_size: int = 5,
        sample_window_size: int = 100,
        auto_save: bool = False,
        auto_save_path: str = "",
        trajectory_format: str = "pt",
    ) -> None:
        """Take the arguments that RLinf's has always had."""
        self._model = Model(seed, sample_window_size)
        self._path = Path(auto_save_path) if auto_save else None
        self._suffix = trajectory_format

    @property
    def random_generator(self) -> torch.Generator:
        """The generator of the draws."""
        return self._model.generators[0]

    @property
    def sample_window_size(self) -> int:
        """Trajectories drawn from."""
        return self._model.window

    @sample_window_size.setter
    def sample_window_size(self, value: int) -> None:
        self._model.window = value

    def add_trajectories(self, trajectories: Sequence[Trajectory]) -> None:
        """Add them, and write each."""
        first = self._model.next_id
        self._model.add(trajectories)
        if self._path is not None:
            self._path.mkdir(parents=True, exist_ok=True)
            for number, one in enumerate(trajectories, first):
                name = f"trajectory_{number}_x.{self._suffix}"
                torch.save(vars(one), self._path / name)

    def sample(self, num_chunks: int) -> dict[str, Any]:
        """Draw as many as there are, at most."""
        total = sum(one.rewards.numel() for _, one in self._model.drawn)  # type: ignore[union-attr]
        batch: dict[str, Any] = {}
        for path, rows in self._model.sample(min(num_chunks, total)).items():
            place = batch
            for name in path[:-1]:
                place = place.setdefault(name, {})
            place[path[-1]] = rows
        return batch

    def clear(self) -> None:
        """Forget all."""
        self._model.clear()

    def save_checkpoint(self, save_path: str) -> None:
        """Write something there."""
        os.makedirs(save_path)

    def load_checkpoint(
        self,
        load_path: str,
        is_distributed: bool = False,
        local_rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Take what is there, and draw from the seed on."""
        assert not is_distributed, "the model of one process"
        store = open_store(load_path)
        rows = [store.rows.row(number) for number in range(len(store.rows))]
        self._model.loaded = [
            (one.trajectory_id, store.read_trajectory(one)) for one in rows
        ]
        self._model.kept = []
        self._model.generators[0].manual_seed(
            1234 if store.seed is None else store.seed
        )

    def close(self) -> None:
        """End."""
        type(self).closed += 1


class WrongInThird(RlinfLike):
    """Its third batch has another number in one row."""

    num_drawn = 0

    def sample(self, num_chunks: int) -> dict[str, Any]:
        """Draw."""
        batch = super().sample(num_chunks)
        self.num_drawn += 1
        if self.num_drawn == 3:
            batch["rewards"][2] += 1
        return batch


class Breaking(RlinfLike):
    """Its third batch is an error, as when it misses a file."""

    num_drawn = 0

    def sample(self, num_chunks: int) -> dict[str, Any]:
        """Draw."""
        self.num_drawn += 1
        if self.num_drawn == 3:
            raise KeyError("trajectory 3")
        return super().sample(num_chunks)
