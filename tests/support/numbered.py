"""Buffers whose trajectories say who they are, for tests of what moves them about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from support.remote import loaded, save

from zarrbuf import Trajectory, list_buffer
from zarrbuf.errors import NotFoundError


def numbered(first: int, count: int) -> list[Trajectory]:
    """Trajectories whose rewards and images say which one they are."""
    found = []
    for number in range(first, first + count):
        rewards = torch.full((3, 2), float(number))
        images = torch.full((3, 2, 40, 40, 3), number % 256, dtype=torch.uint8)
        found.append(
            Trajectory(
                max_episode_length=3,
                model_weights_id=f"w_{number}",
                rewards=rewards,
                curr_obs={"main_images": images},
                next_obs={"main_images": images + 1},
            )
        )
    return found


def make(path: Any, first: int, count: int, options: Any = None) -> str:
    """Append numbered trajectories to a buffer; its path or URL."""
    save(str(path), options, numbered(first, count))
    return str(path)


def contents(path: Any, **more: Any) -> list[tuple[int, int]]:
    """Ids of a buffer, and which trajectory each is, read from its archive."""
    buffer = loaded(str(path), **more)
    found = []
    for number in buffer._trajectory_id_list:
        trajectory = buffer.load_trajectory(number)
        assert trajectory.rewards is not None
        name = int(trajectory.rewards[0, 0])
        images = trajectory.curr_obs["main_images"]
        assert images.unique().tolist() == [name % 256]
        found.append((number, name))
    buffer.close()
    return found


def lists_nothing(path: Any) -> bool:
    """Whether no buffer and no folder at a path lists a trajectory."""
    try:
        return not len(list_buffer(path).rows)
    except NotFoundError:
        return True


def files_below(path: Path) -> dict[str, bytes]:
    """Every file below a directory, and its bytes."""
    return {
        str(one.relative_to(path)): one.read_bytes()
        for one in sorted(path.rglob("*"))
        if one.is_file()
    }
