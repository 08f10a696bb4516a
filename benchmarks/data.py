"""The trajectories that are measured: rendered rollouts, combined anew.

The files under `data/` hold eight rollouts of a pick-and-place task, seen by two
cameras. A trajectory runs B of them side by side, each from a random step on. All that
is random follows from a seed: trajectories are made one at a time, none is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from zarrbuf import Trajectory

FOLDER: Final = Path(__file__).parent / "data"
CAMERAS: Final = {"main_images": "main_frames", "wrist_images": "wrist_frames"}
EXTRA_FIRST_ROW: Final = ("terminations", "truncations", "dones")
Rollout = Mapping[str, npt.NDArray[Any]]
Flat = dict[str, torch.Tensor]


@dataclass(frozen=True)
class DataSet:
    """Which trajectories are made.

    Attributes:
        num_trajectories: how many.
        num_steps: `T`, at most the steps of a rollout.
        num_envs: `B`.
        noise: standard deviation of the camera noise, in grey levels; 0 for none.
        seed: everything random follows from it.
    """

    num_trajectories: int = 40
    num_steps: int = 64
    num_envs: int = 8
    noise: float = 0.0
    seed: int = 0

    @property
    def samples_each(self) -> int:
        """Samples of one trajectory."""
        return self.num_steps * self.num_envs

    @property
    def num_samples(self) -> int:
        """Samples of all trajectories."""
        return self.num_trajectories * self.samples_each

    def __iter__(self) -> Iterator[Trajectory]:
        """Make the trajectories, one after the other."""
        rollouts = load_rollouts()
        for number in range(self.num_trajectories):
            rng = np.random.default_rng([self.seed, number])
            yield make_trajectory(rollouts, self, number, rng)


def load_rollouts(folder: Path = FOLDER) -> list[Rollout]:
    """Read the rollouts, unpacked, in order of their names."""
    rollouts: list[Rollout] = []
    for path in sorted(folder.glob("rollout_*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            rollouts.append({name: arrays[name] for name in arrays.files})
    return rollouts


def add_camera_noise(
    frames: npt.NDArray[np.uint8], sigma: float, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Return frames as a real sensor would see them: every value a little off.

    Args:
        frames: uint8, any shape.
        sigma: standard deviation, in grey levels.
        rng: where the noise comes from.
    """
    noisy = rng.standard_normal(frames.shape, np.float32)
    noisy *= sigma
    noisy += frames
    return np.rint(noisy, out=noisy).clip(0, 255, out=noisy).astype(np.uint8)


def make_trajectory(
    rollouts: list[Rollout], data: DataSet, number: int, rng: np.random.Generator
) -> Trajectory:
    """Combine rollouts to one trajectory.

    As long as there are enough rollouts, each environment runs another one: frames
    that two environments share would make the archive smaller than it should be.
    """
    steps, envs = data.num_steps, data.num_envs
    chosen = np.concatenate(
        [rng.permutation(len(rollouts)) for _ in range(-(-envs // len(rollouts)))]
    )
    lanes: list[dict[str, npt.NDArray[Any]]] = []
    for rollout in (rollouts[i] for i in chosen[:envs]):
        start = int(rng.integers(len(rollout["rewards"]) - steps + 1))
        lanes.append(_make_lane(rollout, slice(start, start + steps), data.noise, rng))
    stacked = {
        name: torch.from_numpy(np.stack([lane[name] for lane in lanes], axis=1))
        for name in lanes[0]
    }
    observations = [
        {name: stacked[f"{stage}/{name}"] for name in (*CAMERAS, "states")}
        for stage in ("curr_obs", "next_obs")
    ]
    trajectory = Trajectory(
        max_episode_length=steps,
        model_weights_id=f"benchmark_{number}",
        curr_obs=observations[0],
        next_obs=observations[1],
    )
    for name, value in stacked.items():
        if "/" not in name:
            setattr(trajectory, name, value)
    return trajectory


def _make_lane(
    rollout: Rollout, steps: slice, noise: float, rng: np.random.Generator
) -> dict[str, npt.NDArray[Any]]:
    """Return what one environment gives to a trajectory, arrays [T, ...]."""
    curr, following = rollout["curr_index"][steps], rollout["next_index"][steps]
    lane: dict[str, npt.NDArray[Any]] = {
        "curr_obs/states": rollout["states"][steps],
        "next_obs/states": rollout["next_states"][steps],
        "actions": rollout["actions"][steps],
        "rewards": rollout["rewards"][steps, None],
    }
    seen, where = np.unique(np.concatenate([curr, following]), return_inverse=True)
    for name, source in CAMERAS.items():
        frames = rollout[source][seen]
        if noise:
            frames = add_camera_noise(frames, noise, rng)
        lane[f"curr_obs/{name}"] = frames[where[: len(curr)]]
        lane[f"next_obs/{name}"] = frames[where[len(curr) :]]
    for name in ("terminations", "truncations"):
        lane[name] = np.concatenate([[False], rollout[name][steps]])
    lane["dones"] = lane["terminations"] | lane["truncations"]
    num_steps = len(curr)
    lane["prev_logprobs"] = rng.standard_normal((num_steps, 4), np.float32)
    lane["prev_values"] = rng.standard_normal((num_steps, 1), np.float32)
    return lane


def fields_of(trajectory: Trajectory) -> Flat:
    """Return the tensors of a trajectory by path, as they are."""
    flat = {
        name: value
        for name, value in vars(trajectory).items()
        if isinstance(value, torch.Tensor)
    }
    for group in ("curr_obs", "next_obs"):
        for name, value in getattr(trajectory, group).items():
            flat[f"{group}/{name}"] = value
    return flat


def flatten(trajectory: Trajectory) -> Flat:
    """Return the transitions of a trajectory: tensors [T * B, ...] by path.

    Row `t * B + b` is environment b at step t; extra first rows are left out. Nothing
    is copied where there are none.
    """
    return {
        name: (value[1:] if name in EXTRA_FIRST_ROW else value).flatten(0, 1)
        for name, value in fields_of(trajectory).items()
    }


def num_bytes(trajectory: Trajectory) -> int:
    """Return the bytes of a trajectory's tensors."""
    return sum(value.nbytes for value in fields_of(trajectory).values())
