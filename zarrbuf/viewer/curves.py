"""What happened along one trajectory, environment by environment: curves and episodes.

Pure: arrays over the steps in, values to draw out. Knows no file and no figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from zarrbuf.archive.spec import AnyArray

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

MAX_LINES: Final = 16
"""Dimensions of an action or a state that are drawn."""
ENDINGS: Final[tuple[str, ...]] = ("dones", "terminations", "truncations")
CURVE_FIELDS: Final[tuple[str, ...]] = (
    "rewards",
    "prev_values",
    "actions",
    *ENDINGS,
    "intervene_flags",
)
"""What is read of a trajectory for `make_curves`."""


@dataclass(frozen=True, eq=False)
class Curve:
    """One thing over the steps.

    Attributes:
        name: what it is.
        values: [T, n], a line each.
        num_left_out: dimensions beyond `MAX_LINES`.
    """

    name: str
    values: FloatArray
    num_left_out: int = 0


@dataclass(frozen=True)
class Episode:
    """Steps [start, stop) of one episode, what it earned, and whether it is over."""

    start: int
    stop: int
    total: float | None
    is_over: bool


@dataclass(frozen=True, eq=False)
class Curves:
    """What is drawn below the pictures, for one environment of one trajectory.

    Attributes:
        num_steps: `T`.
        curves: one above the other.
        episodes: in order; together they are all steps.
        flags: name -> bool [T]: done, terminated, truncated.
        intervened: stretches [start, stop) of steps in which a person acted.
        problems: what could not be read, one sentence each.
        may_pass: whether some of that may be readable later.
    """

    num_steps: int
    curves: tuple[Curve, ...] = ()
    episodes: tuple[Episode, ...] = ()
    flags: Mapping[str, BoolArray] = field(default_factory=dict)
    intervened: tuple[tuple[int, int], ...] = ()
    problems: tuple[str, ...] = ()
    may_pass: bool = False

    def episode_at(self, step: int) -> int:
        """Return the number of the episode that a step is in."""
        found = [n for n, one in enumerate(self.episodes) if one.start <= step]
        return found[-1] if found else 0


@np.errstate(over="ignore", invalid="ignore")
def make_curves(
    fields: Mapping[str, AnyArray],
    num_steps: int,
    *,
    problems: tuple[str, ...] = (),
    may_pass: bool = False,
) -> Curves:
    """Make the curves of one environment.

    Args:
        fields: name -> [T, ...], those of `CURVE_FIELDS` that there are, and
            observations, `curr_obs/NAME`, which are drawn as they are.
        num_steps: `T`.
        problems: what could not be read.
        may_pass: whether some of that may be readable later.
    """
    rewards = _sums(fields["rewards"]) if "rewards" in fields else None
    flags = {name: _any(fields[name]) for name in ENDINGS if name in fields}
    episodes = _episodes(_ends(flags, num_steps), rewards)
    curves: list[Curve] = []
    if rewards is not None:
        curves.append(Curve("reward", rewards[:, None]))
        curves.append(Curve("return", _returns(rewards, episodes)[:, None]))
    if "prev_values" in fields:
        values = np.real(fields["prev_values"]).astype(np.float64)
        values = values.reshape(num_steps, -1)
        if values.shape[1]:
            curves.append(Curve("value", values.mean(axis=1, keepdims=True)))
    for name, array in fields.items():
        if name == "actions" or name not in CURVE_FIELDS:
            curves += _lines(name.removeprefix("curr_obs/"), array)
    intervened = fields.get("intervene_flags")
    return Curves(
        num_steps,
        tuple(curves),
        episodes,
        flags,
        () if intervened is None else _stretches(_any(intervened)),
        problems,
        may_pass,
    )


def _lines(name: str, array: AnyArray) -> list[Curve]:
    lines = np.real(array).reshape(len(array), -1)
    if not lines.shape[1]:
        return []
    drawn = lines[:, :MAX_LINES].astype(np.float64)
    return [Curve(name, drawn, lines.shape[1] - drawn.shape[1])]


def _sums(array: AnyArray) -> FloatArray:
    """Return one number a step."""
    numbers = np.real(array).astype(np.float64)
    sums: FloatArray = numbers.reshape(len(array), -1).sum(axis=1)
    return sums


def _any(array: AnyArray) -> BoolArray:
    found: BoolArray = (array != 0).reshape(len(array), -1).any(axis=1)
    return found


def _ends(flags: Mapping[str, BoolArray], num_steps: int) -> BoolArray:
    """Return after which steps an episode is over."""
    if "dones" in flags:
        return flags["dones"]
    ends = np.zeros(num_steps, np.bool_)
    for one in flags.values():
        ends = ends | one
    return ends


def _episodes(ends: BoolArray, rewards: FloatArray | None) -> tuple[Episode, ...]:
    stops = [*(np.flatnonzero(ends) + 1).tolist()]
    if not stops or stops[-1] < len(ends):
        stops.append(len(ends))
    starts = [0, *stops[:-1]]
    return tuple(
        Episode(
            start,
            stop,
            None if rewards is None else float(rewards[start:stop].sum()),
            bool(ends[stop - 1]),
        )
        for start, stop in zip(starts, stops, strict=True)
    )


def _returns(rewards: FloatArray, episodes: tuple[Episode, ...]) -> FloatArray:
    """Return what an episode has earned so far, after each step."""
    parts = [np.cumsum(rewards[one.start : one.stop]) for one in episodes]
    return np.concatenate(parts)


def _stretches(flags: BoolArray) -> tuple[tuple[int, int], ...]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
    return tuple(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
