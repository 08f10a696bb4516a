"""Buffers on object stores, and what is asked of these."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.batches import generator

from zarrbuf import Trajectory, TrajectoryReplayBuffer
from zarrbuf.storage.contract import Range
from zarrbuf.storage.object_store import ObjectStorage


def memory_url() -> str:
    return f"memory://remote-{uuid.uuid4().hex}/buffer"


def with_cameras(count: int, *, num_steps: int = 6) -> list[Trajectory]:
    """Return trajectories with two cameras, whose frames follow each other."""
    found = []
    for seed in range(count):
        draws = generator(seed)
        frames = {
            name: torch.randint(
                0,
                256,
                (num_steps + 1, 3, 40, 40, 3),
                dtype=torch.uint8,
                generator=draws,
            )
            for name in ("left", "right")
        }
        found.append(
            Trajectory(
                actions=torch.rand(num_steps, 3, 2, generator=draws),
                rewards=torch.rand(num_steps, 3, 1, generator=draws),
                curr_obs={name: one[:-1] for name, one in frames.items()},
                next_obs={name: one[1:] for name, one in frames.items()},
            )
        )
    return found


def save(url: str, options: Any, trajectories: Sequence[Trajectory]) -> None:
    with TrajectoryReplayBuffer(
        auto_save=True, auto_save_path=url, storage_options=options
    ) as buffer:
        buffer.add_trajectories(trajectories)


def loaded(url: str, options: Any = None, **more: Any) -> TrajectoryReplayBuffer:
    more = {"sample_window_size": 0, "prefetch_batches": 0, "cache_size": 0, **more}
    buffer = TrajectoryReplayBuffer(storage_options=options, **more)
    buffer.load_checkpoint(url)
    return buffer


class Asked:
    """Notes what is asked of storages for ranges."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rounds: list[list[Range]] = []
        read = ObjectStorage.read_ranges

        def note(storage: ObjectStorage, ranges: Sequence[Range]) -> list[bytes]:
            self.rounds.append(list(ranges))
            return read(storage, ranges)

        monkeypatch.setattr(ObjectStorage, "read_ranges", note)

    @property
    def num_bytes(self) -> int:
        return sum(one.stop - one.start for some in self.rounds for one in some)
