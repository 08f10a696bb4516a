"""Buffers to look at: frames that say which they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from support.remote import save

import zarrbuf
from zarrbuf import Trajectory

SIDE = 40


def frames(num_steps: int, num_envs: int, *, seed: int = 0) -> torch.Tensor:
    """Noise uint8 [T + 1, B, 40, 40, 3], so that no two frames are alike."""
    draws = torch.Generator().manual_seed(seed)
    shape = (num_steps + 1, num_envs, SIDE, SIDE, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=draws)


def recorded(num_steps: int, num_envs: int, *, seed: int = 0) -> Trajectory:
    """A trajectory with two cameras, states, rewards, actions, episodes."""
    main = frames(num_steps, num_envs, seed=seed)
    views = torch.stack([main.flip(2), main.flip(3)], dim=2)
    steps = torch.arange(num_steps, dtype=torch.float32)
    grid = steps[:, None].expand(num_steps, num_envs)
    dones = (grid % 4 == 3)[..., None]
    return Trajectory(
        max_episode_length=4,
        model_weights_id="w",
        actions=torch.stack([grid, -grid], dim=-1).contiguous(),
        rewards=(grid + torch.arange(num_envs))[..., None].contiguous(),
        dones=torch.cat([torch.zeros_like(dones[:1]), dones]),
        intervene_flags=(grid == 2)[..., None].contiguous(),
        curr_obs={
            "main_images": main[:-1],
            "extra_view_images": views[:-1],
            "states": grid[..., None].expand(num_steps, num_envs, 3).contiguous(),
        },
        next_obs={
            "main_images": main[1:],
            "extra_view_images": views[1:],
            "states": (grid + 1)[..., None].expand(num_steps, num_envs, 3).contiguous(),
        },
    )


def save_recorded(
    path: Any, *shapes: tuple[int, int], options: Any = None
) -> list[Trajectory]:
    """Write trajectories of some T and B; what was written."""
    made = [recorded(*shape, seed=number) for number, shape in enumerate(shapes)]
    save(str(path), options, made)
    return made


def archive_of(path: Path, number: int) -> Path:
    """Return the archive of a trajectory, by its id."""
    return path / zarrbuf.list_buffer(path).rows.row(number).path


def colours(num_steps: int, *, height: int = 32, width: int = 48) -> Trajectory:
    """Frames of one colour each, which survive any encoder."""
    steps = torch.arange(num_steps, dtype=torch.uint8)
    images = torch.stack([steps * 20, 255 - steps * 20, steps * 0 + 90], dim=-1)
    frames = images[:, None, None, None, :].expand(num_steps, 1, height, width, 3)
    return Trajectory(
        rewards=torch.zeros(num_steps, 1, 1),
        curr_obs={"main_images": frames.contiguous()},
        next_obs={"main_images": frames.contiguous()},
    )
