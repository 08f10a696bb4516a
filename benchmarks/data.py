"""The trajectories that are measured: rendered rollouts, combined anew.

The files under `data/` hold eight rollouts of a pick-and-place task, seen by two
cameras at 128x128. A trajectory runs B of them side by side, each from a random step
on; one longer than a rollout chains several. All that is random follows from a seed:
trajectories are made one at a time, none is kept.

Frames of other sizes are resampled: bilinearly where they become larger, since nearest
neighbours would leave runs of equal pixels that no renderer makes; by the mean of the
area where they become smaller. Noise is added after that.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

from zarrbuf import Trajectory

FOLDER: Final = Path(__file__).parent / "data"
CAMERAS: Final = {"main_images": "main_frames", "wrist_images": "wrist_frames"}
EXTRA_FIRST_ROW: Final = ("terminations", "truncations", "dones")
NATIVE: Final = (128, 128)
NUM_NOISE: Final = 1 << 24
INDEXES: Final = ("curr_index", "next_index")
Frames = npt.NDArray[np.uint8]
Rollout = Mapping[str, npt.NDArray[Any]]
Flat = dict[str, torch.Tensor]


@dataclass(frozen=True)
class DataSet:
    """Which trajectories are made.

    Attributes:
        num_trajectories: how many.
        num_steps: `T`.
        num_envs: `B`.
        noise: standard deviation of the camera noise, in grey levels; 0 for none.
        seed: everything random follows from it.
        frame: height and width of the images; None for no images.
    """

    num_trajectories: int = 40
    num_steps: int = 64
    num_envs: int = 8
    noise: float = 0.0
    seed: int = 0
    frame: tuple[int, int] | None = NATIVE

    @classmethod
    def from_json(cls, text: str) -> DataSet:
        """Make the data set that `dataclasses.asdict` and `json.dumps` described."""
        fields = json.loads(text)
        frame = fields.pop("frame")
        return cls(**fields, frame=None if frame is None else (frame[0], frame[1]))

    @property
    def samples_each(self) -> int:
        """Samples of one trajectory."""
        return self.num_steps * self.num_envs

    @property
    def num_samples(self) -> int:
        """Samples of all trajectories."""
        return self.num_trajectories * self.samples_each

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample, about."""
        height, width = self.frame or (0, 0)
        return 2 * len(CAMERAS) * height * width * 3 + 250

    @property
    def content(self) -> str:
        """What is in it, for people."""
        text = f"{self.num_trajectories:,} x T = {self.num_steps}, B = {self.num_envs}"
        if self.frame is None:
            return f"{text}, no images"
        noise = f", noise {self.noise:g}" if self.noise else ""
        return f"{text}, two {self.frame[0]}x{self.frame[1]} cameras{noise}"

    def __iter__(self) -> Iterator[Trajectory]:
        """Make the trajectories, one after the other."""
        rollouts = load_rollouts()
        for number in range(self.num_trajectories):
            rng = np.random.default_rng([self.seed, number])
            yield make_trajectory(rollouts, self, number, rng)


@dataclass(frozen=True)
class Transitions(DataSet):
    """Trajectories of one transition, as RLinf's RLT worker adds them.

    Fourteen tensors of features, states and actions; no images, no extra rows.
    """

    num_trajectories: int = 10_000
    num_steps: int = 1
    num_envs: int = 1
    frame: tuple[int, int] | None = None

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample, about."""
        return 1_500

    @property
    def content(self) -> str:
        """What is in it, for people."""
        return f"{self.num_trajectories:,} trajectories of one transition"

    def __iter__(self) -> Iterator[Trajectory]:
        """Make the trajectories, one after the other."""
        for number in range(self.num_trajectories):
            yield make_transition(torch.Generator().manual_seed(number))


@functools.cache
def load_rollouts(folder: Path = FOLDER) -> list[Rollout]:
    """Read the rollouts, unpacked, in order of their names; 105 MB that are kept."""
    rollouts: list[Rollout] = []
    for path in sorted(folder.glob("rollout_*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            rollouts.append({name: arrays[name] for name in arrays.files})
    return rollouts


@functools.cache
def _noise(sigma: float) -> npt.NDArray[np.int8]:
    """Return many values of noise, in grey levels."""
    rng = np.random.default_rng(0)
    values = sigma * rng.standard_normal(NUM_NOISE, np.float32)
    levels: npt.NDArray[np.int8] = np.rint(values).clip(-128, 127).astype(np.int8)
    return levels


def add_camera_noise(frames: Frames, sigma: float, rng: np.random.Generator) -> Frames:
    """Return frames as a real sensor would see them: every value a little off.

    Each frame gets another stretch of the same long noise: to draw every value anew
    would take longer than all measurements.

    Args:
        frames: uint8, the first axis is that of frames.
        sigma: standard deviation, in grey levels.
        rng: where the noise comes from.
    """
    noise, size = _noise(sigma), frames[0].size
    starts = rng.integers(0, len(noise) - size, len(frames)).tolist()
    noisy = np.empty_like(frames)
    for frame, out, start in zip(frames, noisy, starts, strict=True):
        here = noise[start : start + size].reshape(frame.shape)
        moved = np.add(frame, here, dtype=np.int16)
        out[...] = moved.clip(0, 255, out=moved)
    return noisy


def resample(frames: Frames, size: tuple[int, int]) -> Frames:
    """Return frames [n, H, W, 3] at another height and width."""
    if frames.shape[1:3] == size:
        return frames
    planes = torch.from_numpy(frames).permute(0, 3, 1, 2)
    if size[0] < frames.shape[1]:
        means = interpolate(planes.float(), size, mode="area")
        planes = means.round_().to(torch.uint8)
    else:
        planes = interpolate(planes, size, mode="bilinear")
    resampled: Frames = planes.permute(0, 2, 3, 1).contiguous().numpy()
    return resampled


def turn(frames: Frames, number: int) -> Frames:
    """Return square frames [n, H, H, 3] in one of eight ways: turned and mirrored."""
    turned = np.rot90(frames, number % 4, axes=(1, 2))
    return turned[:, ::-1] if number % 8 >= 4 else turned


def make_trajectory(
    rollouts: list[Rollout], data: DataSet, number: int, rng: np.random.Generator
) -> Trajectory:
    """Combine rollouts to one trajectory.

    Each environment runs other rollouts, or the same ones turned and mirrored: frames
    that two environments share would make the archive smaller than it should be.
    """
    steps, envs = data.num_steps, data.num_envs
    chained = -(-steps // len(rollouts[0]["rewards"]))
    per_turn = len(rollouts) // chained
    lanes: list[dict[str, npt.NDArray[Any]]] = []
    for env in range(envs):
        turned, place = divmod(env, per_turn)
        if not place:
            order = rng.permutation(len(rollouts))
        chosen = order[place * chained : (place + 1) * chained]
        rollout = chain([rollouts[i] for i in chosen])
        start = int(rng.integers(len(rollout["rewards"]) - steps + 1))
        lanes.append(
            _make_lane(rollout, slice(start, start + steps), data, turned, rng)
        )
    stacked = {
        name: torch.from_numpy(np.stack([lane[name] for lane in lanes], axis=1))
        for name in lanes[0]
    }
    cameras = CAMERAS if data.frame else ()
    observations = [
        {name: stacked[f"{stage}/{name}"] for name in (*cameras, "states")}
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


def chain(rollouts: Sequence[Rollout]) -> Rollout:
    """Return rollouts one after the other, as one."""
    if len(rollouts) == 1:
        return rollouts[0]
    sizes = [len(rollout["main_frames"]) for rollout in rollouts]
    firsts = np.cumsum([0, *sizes[:-1]])
    chained = {
        name: np.concatenate([rollout[name] for rollout in rollouts])
        for name in rollouts[0]
    }
    for name in INDEXES:
        moved = [r[name] + first for r, first in zip(rollouts, firsts, strict=True)]
        chained[name] = np.concatenate(moved)
    return chained


def _make_lane(
    rollout: Rollout,
    steps: slice,
    data: DataSet,
    turned: int,
    rng: np.random.Generator,
) -> dict[str, npt.NDArray[Any]]:
    """Return what one environment gives to a trajectory, arrays [T, ...]."""
    lane: dict[str, npt.NDArray[Any]] = {
        "curr_obs/states": rollout["states"][steps],
        "next_obs/states": rollout["next_states"][steps],
        "actions": rollout["actions"][steps],
        "rewards": rollout["rewards"][steps, None],
    }
    if data.frame is not None:
        lane |= _make_images(rollout, steps, data, turned, rng)
    for name in ("terminations", "truncations"):
        lane[name] = np.concatenate([[False], rollout[name][steps]])
    lane["dones"] = lane["terminations"] | lane["truncations"]
    lane["prev_logprobs"] = rng.standard_normal((data.num_steps, 4), np.float32)
    lane["prev_values"] = rng.standard_normal((data.num_steps, 1), np.float32)
    return lane


def _make_images(
    rollout: Rollout,
    steps: slice,
    data: DataSet,
    turned: int,
    rng: np.random.Generator,
) -> dict[str, npt.NDArray[Any]]:
    """Return the frames of both cameras, each frame seen made once."""
    assert data.frame is not None
    curr, following = (rollout[name][steps] for name in INDEXES)
    seen, where = np.unique(np.concatenate([curr, following]), return_inverse=True)
    images: dict[str, npt.NDArray[Any]] = {}
    for name, source in CAMERAS.items():
        frames = resample(
            np.ascontiguousarray(turn(rollout[source][seen], turned)), data.frame
        )
        if data.noise:
            frames = add_camera_noise(frames, data.noise, rng)
        images[f"curr_obs/{name}"] = frames[where[: len(curr)]]
        images[f"next_obs/{name}"] = frames[where[len(curr) :]]
    return images


def make_transition(generator: torch.Generator) -> Trajectory:
    """Make a trajectory of one transition of one environment."""

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(1, 1, *shape, generator=generator)

    def flag() -> torch.Tensor:
        return torch.zeros(1, 1, 1, dtype=torch.bool)

    return Trajectory(
        max_episode_length=1,
        model_weights_id="benchmark",
        actions=values(80),
        intervene_flags=flag(),
        rewards=values(1),
        terminations=flag(),
        truncations=flag(),
        dones=flag(),
        prev_logprobs=values(1),
        prev_values=values(1),
        versions=values(1),
        forward_inputs={"action": values(80)},
        curr_obs={"features": values(80), "states": values(14)},
        next_obs={"features": values(80), "states": values(14)},
    )


def fields_of(trajectory: Trajectory) -> Flat:
    """Return the tensors of a trajectory by path, as they are."""
    flat = {
        name: value
        for name, value in vars(trajectory).items()
        if isinstance(value, torch.Tensor)
    }
    for group in ("curr_obs", "next_obs", "forward_inputs"):
        for name, value in getattr(trajectory, group).items():
            flat[f"{group}/{name}"] = value
    return flat


def flatten(trajectory: Trajectory) -> Flat:
    """Return the transitions of a trajectory: tensors [T * B, ...] by path.

    Row `t * B + b` is environment b at step t; extra first rows are left out. Nothing
    is copied where there are none.
    """
    fields = fields_of(trajectory)
    extra = {
        name: len(fields[name]) - len(fields["rewards"]) for name in EXTRA_FIRST_ROW
    }
    return {
        name: value[extra.get(name, 0) :].flatten(0, 1)
        for name, value in fields.items()
    }


def num_bytes(trajectory: Trajectory) -> int:
    """Return the bytes of a trajectory's tensors."""
    return sum(value.nbytes for value in fields_of(trajectory).values())
