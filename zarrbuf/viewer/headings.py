"""What stands above a scene: where it is, what was done and earned there, in words.

Reads single numbers of a recording. Knows no picture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from zarrbuf.archive.spec import AnyArray
from zarrbuf.errors import ZarrbufError
from zarrbuf.viewer.cursor import Place
from zarrbuf.viewer.curves import ENDINGS, Curves
from zarrbuf.viewer.trajectories import Playback
from zarrbuf.viewer.trajectory_reader import Recording

_MAX_NUMBERS: Final = 16
"""Of an action."""


def say_where(playback: Playback, place: Place) -> str:
    """Say which trajectory, step and environment a place is."""
    row = playback.rows.row(place.position)
    num_steps, num_envs = playback.shape(place.position)
    return (
        f"Trajectory ID {row.trajectory_id} (#{place.position}/{len(playback) - 1}) | "
        f"Step {place.step}/{num_steps - 1} | Env {place.env}/{num_envs - 1}"
    )


def say_what_happened(
    recording: Recording, place: Place, curves: Curves
) -> tuple[str, ...]:
    """Say what was earned, what ended and what was done at a step, in two lines."""
    parts = _said(recording, place, "rewards", _say_number)
    if curves.flags:
        one = curves.episodes[curves.episode_at(place.step)]
        parts.append(f"Done: {one.is_over and place.step == one.stop - 1}")
    parts += [
        name.removesuffix("s").capitalize()
        for name in ENDINGS
        if name != "dones" and name in curves.flags and curves.flags[name][place.step]
    ]
    if any(start <= place.step < stop for start, stop in curves.intervened):
        parts.append("Intervention")
    if curves.episodes:
        parts.append(_say_episode(curves.episode_at(place.step), curves))
    lines = [" | ".join(parts)] if parts else []
    lines += _said(recording, place, "actions", _say_numbers)
    return (*lines, *curves.problems[:1])


def _said(
    recording: Recording, place: Place, name: str, say: Callable[[AnyArray], str]
) -> list[str]:
    if name not in recording.fields:
        return []
    try:
        return [say(recording.sample(name, step=place.step, env=place.env))]
    except ZarrbufError:
        return [f"{name}: cannot be read"]


def _say_episode(number: int, curves: Curves) -> str:
    one = curves.episodes[number]
    total = "" if one.total is None else f", return {one.total:.8g}"
    over = "" if one.is_over else ", not over"
    return (
        f"Episode {number + 1}/{len(curves.episodes)}: steps {one.start} to "
        f"{one.stop - 1}{total}{over}"
    )


def _say_number(value: AnyArray) -> str:
    value = np.real(value)
    if value.size == 1:
        return f"Reward: {value.item():.4f}"
    with np.errstate(over="ignore", invalid="ignore"):
        return f"Reward: {value.sum():.4f} (sum of {value.size})"


def _say_numbers(value: AnyArray) -> str:
    numbers = np.real(value).reshape(-1)
    text = " ".join(f"{one:.3f}" for one in numbers[:_MAX_NUMBERS].tolist())
    more = f" ... ({numbers.size})" if numbers.size > _MAX_NUMBERS else ""
    return f"Action: [{text}{more}]"
