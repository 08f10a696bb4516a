"""Random sequences of calls, held against a plain model of RLinf's buffer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from support.batches import assert_same_batch
from support.rlinf_model import Model, Saved

from zarrbuf import Trajectory, TrajectoryReplayBuffer
from zarrbuf.errors import EmptyBufferError

NUM_SEQUENCES = 5_000
SEQUENCES_A_TEST = 250
MAX_CALLS = 14
CALLS = ("add", "add", "sample", "sample", "sample", "window", "clear", "again")
STORED = ("save", "load", "part")
"""Calls that go to the disk, and take a hundred times as long."""
STORED_EVERY = 25
"""One sequence of so many makes them, and then many of them."""


def made(rng: random.Random) -> Trajectory:
    """Return a small trajectory with numbers that no other has."""
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    steps, envs = rng.randint(1, 5), rng.randint(1, 3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    epochs = rng.choice([n for n in (1, 2, 5) if steps % n == 0])
    dones = normal(steps + epochs, envs) > 0
    return Trajectory(
        max_episode_length=rng.choice([None, 3, 80]),
        model_weights_id=f"w_{rng.randint(0, 9)}",
        actions=normal(steps, envs, 2) if rng.random() < 0.9 else None,
        rewards=normal(steps + rng.choice([0, 0, 1]), envs),
        dones=dones,
        terminations=dones if rng.random() < 0.5 else None,
        prev_logprobs=normal(steps, envs, 1),
        prev_values=normal(steps + epochs, envs, 1),
        curr_obs={"states": normal(steps, envs, 3), "nested": {"x": normal(steps, 1)}},
        next_obs={"states": normal(steps, envs, 3)} if rng.random() < 0.8 else {},
    )


class Pair:
    """A buffer and its model, and what both saved."""

    def __init__(self, rng: random.Random, folder: Path) -> None:
        self.rng, self.folder = rng, folder
        self.format = rng.choice(["zarr", "zarr", "pt", "pkl"])
        self.saved: list[tuple[Path, Saved]] = []
        self.begin()

    def begin(self) -> None:
        seed, window = self.rng.randint(0, 2**31), self.rng.choice([0, 1, 2, 5, 100])
        self.model = Model(seed, window)
        self.buffer = TrajectoryReplayBuffer(
            seed=seed, sample_window_size=window, trajectory_format=self.format
        )

    def again(self) -> None:
        """Go on with new ones, as a run that starts."""
        if self.rng.random() < 0.3:
            self.buffer.close()
            self.begin()

    def add(self) -> None:
        trajectories = [made(self.rng) for _ in range(self.rng.randint(0, 3))]
        self.model.add(trajectories)
        self.buffer.add_trajectories(trajectories)

    def sample(self) -> None:
        count = self.rng.choice([1, 2, 7, 40])
        if self.model.drawn:
            assert_same_batch(self.buffer.sample(count), self.model.sample(count))
            return
        with pytest.raises(EmptyBufferError):
            self.buffer.sample(count)

    def window(self) -> None:
        window = self.rng.choice([0, 1, 3, 7])
        self.model.set_window(window)
        self.buffer.sample_window_size = window

    def clear(self) -> None:
        if self.rng.random() < 0.3:
            self.model.clear()
            self.buffer.clear()

    def save(self) -> None:
        path = self.folder / f"{len(self.saved)}"
        self.buffer.save_checkpoint(path)
        self.saved.append((path, self.model.save()))

    def load(self) -> None:
        if self.saved:
            path, saved = self.rng.choice(self.saved)
            self.model.load(saved)
            self.buffer.load_checkpoint(path)

    def part(self) -> None:
        if self.saved:
            path, saved = self.rng.choice(self.saved)
            world_size = self.rng.randint(1, 3)
            rank = self.rng.randrange(world_size)
            self.model.load(saved, rank, world_size)
            self.buffer.load_checkpoint(path, True, rank, world_size)

    def check(self) -> None:
        """Compare what can be asked of both."""
        model, buffer = self.model, self.buffer
        assert len(buffer) == buffer.size == model.size
        assert buffer.total_samples == model.total_samples
        assert buffer._trajectory_counter == model.next_id
        assert buffer._trajectory_id_list[-len(model.drawn) or 10**9 :] == [
            number for number, _ in model.drawn
        ]
        stats = buffer.get_stats()
        assert stats["num_trajectories"] == model.size
        assert stats["total_samples"] == model.total_samples
        assert buffer.is_ready(model.size)
        assert not buffer.is_ready(model.size + 1)
        assert buffer.window_trajectories == len(model.drawn)
        assert buffer.seed == model.seed


@pytest.mark.parametrize("first", range(0, NUM_SEQUENCES, SEQUENCES_A_TEST))
def test_any_sequence_of_calls_gives_what_rlinf_gives(
    first: int, tmp_path: Path
) -> None:
    for number in range(first, first + SEQUENCES_A_TEST):
        rng = random.Random(number)
        pair = Pair(rng, tmp_path / str(number))
        calls = []
        for _ in range(rng.randint(3, MAX_CALLS)):
            is_stored = number % STORED_EVERY == 0 and rng.random() < 0.5
            kinds = STORED if is_stored else CALLS
            calls.append(rng.choice(kinds))
            try:
                getattr(pair, calls[-1])()
                pair.check()
            except Exception as exc:
                exc.add_note(f"sequence {number}, {pair.format}: {', '.join(calls)}")
                raise
        pair.buffer.close()
