"""Figures of one step of a trajectory. Returns a `Figure`; opens no window.

The only room that imports matplotlib, which is in the extra `[view]`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from zarrbuf.errors import InvalidInputError
from zarrbuf.format import AnyArray
from zarrbuf.trajectory import Trajectory


def cameras(trajectory: Trajectory) -> list[str]:
    """Return the names of the observations that are images: [T, B, (N,) H, W, C]."""
    return [
        name
        for name, value in trajectory.curr_obs.items()
        if getattr(value, "ndim", 0) in (5, 6) and value.shape[-1] in (1, 3, 4)
    ]


def plot_step(
    trajectory: Trajectory, *, step: int, env: int = 0, camera: str, title: str = ""
) -> Figure:
    """Draw the current and the next observation of one sample side by side.

    Args:
        trajectory: with images uint8 [T, B, H, W, C], or several views
            [T, B, N, H, W, C], which are drawn next to each other.
        step: `t`.
        env: `b`.
        camera: name of the images in `curr_obs`.
        title: put above the step's own line.

    Raises:
        InvalidInputError: if there is no such camera, step or environment.
    """
    known = cameras(trajectory)
    if camera not in known:
        raise InvalidInputError(
            f"camera is {camera!r}; there are {', '.join(known) or 'none'}"
        )
    images = trajectory.curr_obs[camera]
    if not (0 <= step < images.shape[0] and 0 <= env < images.shape[1]):
        raise InvalidInputError(
            f"step {step}, environment {env}: steps [0, {images.shape[0]}) and "
            f"environments [0, {images.shape[1]}) are there"
        )
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, name, observation in (
        (left, "current", trajectory.curr_obs),
        (right, "next", trajectory.next_obs),
    ):
        axes.set_axis_off()
        axes.set_title(f"{name} observation", fontsize=10)
        if camera in observation:
            axes.imshow(_picture(observation[camera][step, env].numpy()))
    figure.suptitle("\n".join(filter(None, (title, _step_line(trajectory, step, env)))))
    return figure


def _picture(image: AnyArray) -> AnyArray:
    tiles = np.concatenate(list(image), axis=1) if image.ndim == 4 else image
    return tiles[..., 0] if tiles.shape[-1] == 1 else tiles


def _step_line(trajectory: Trajectory, step: int, env: int) -> str:
    parts = [f"step {step}, environment {env}"]
    if trajectory.rewards is not None:
        parts.append(f"reward {_sum(trajectory.rewards[step, env]):.3g}")
    if trajectory.actions is not None:
        numbers = trajectory.actions[step, env].flatten().tolist()
        parts.append("action " + " ".join(f"{number:.2f}" for number in numbers[:8]))
    return " | ".join(parts)


def _sum(values: Any) -> float:
    return float(values.float().sum())
