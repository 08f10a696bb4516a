"""Where one looks in a buffer, and how a step there or back changes it. Pure.

The moves and their rules at the ends are those of RLinf's visualizer: a step beyond the
end of a trajectory leads into the next one, one before its start into the last sample
of the one before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from zarrbuf.common.arguments import check_whole_number

FAR: Final = 10
"""Steps of a long stride."""


class Lengths(Protocol):
    """The trajectories among which one moves."""

    def __len__(self) -> int:
        """Return their number."""
        ...

    def shape(self, position: int) -> tuple[int, int]:
        """Return `T` and `B` of one."""
        ...


@dataclass(frozen=True)
class Place:
    """Where one looks.

    Attributes:
        position: of the trajectory in the list.
        step: `t`.
        env: `b`.
    """

    position: int = 0
    step: int = 0
    env: int = 0


Move = Callable[[Place, Lengths], Place]


def check_place(place: Place, lengths: Lengths) -> Place:
    """Return `place` if it is there.

    Raises:
        InvalidInputError: if there is no such step or environment.
    """
    num_steps, num_envs = lengths.shape(place.position)
    check_whole_number("step", place.step, maximum=num_steps - 1)
    check_whole_number("env", place.env, maximum=num_envs - 1)
    return place


def nearest_place(place: Place, lengths: Lengths) -> Place:
    """Return `place`, or the nearest that there is of its trajectory."""
    num_steps, num_envs = lengths.shape(place.position)
    step = min(max(0, place.step), num_steps - 1)
    return Place(place.position, step, min(max(0, place.env), num_envs - 1))


def _forward(place: Place, lengths: Lengths) -> Place:
    if place.step + 1 < lengths.shape(place.position)[0]:
        return replace(place, step=place.step + 1)
    return _next_trajectory(place, lengths)


def _back(place: Place, lengths: Lengths) -> Place:
    if place.step > 0:
        return replace(place, step=place.step - 1)
    if place.position == 0:
        return place
    num_steps, num_envs = lengths.shape(place.position - 1)
    return Place(place.position - 1, num_steps - 1, num_envs - 1)


def _far_forward(place: Place, lengths: Lengths) -> Place:
    last = lengths.shape(place.position)[0] - 1
    return replace(place, step=min(last, place.step + FAR))


def _far_back(place: Place, lengths: Lengths) -> Place:
    return replace(place, step=max(0, place.step - FAR))


def _next_trajectory(place: Place, lengths: Lengths) -> Place:
    return Place(place.position + 1) if place.position + 1 < len(lengths) else place


def _previous_trajectory(place: Place, lengths: Lengths) -> Place:
    return Place(place.position - 1) if place.position > 0 else place


def _next_env(place: Place, lengths: Lengths) -> Place:
    last = lengths.shape(place.position)[1] - 1
    return replace(place, env=min(last, place.env + 1))


def _previous_env(place: Place, lengths: Lengths) -> Place:
    return replace(place, env=max(0, place.env - 1))


def _first(place: Place, lengths: Lengths) -> Place:
    return replace(place, step=0)


def _last(place: Place, lengths: Lengths) -> Place:
    return replace(place, step=lengths.shape(place.position)[0] - 1)


MOVES: Final[dict[str, Move]] = {
    "next": _forward,
    "prev": _back,
    "far_next": _far_forward,
    "far_prev": _far_back,
    "next_trajectory": _next_trajectory,
    "prev_trajectory": _previous_trajectory,
    "next_env": _next_env,
    "prev_env": _previous_env,
    "home": _first,
    "end": _last,
}


def neighbours(place: Place, before: Place | None, lengths: Lengths) -> list[Place]:
    """Return where one will look next, the likeliest first.

    Args:
        place: where one looks now.
        before: where one looked before that; None at the start.
        lengths: the trajectories.
    """
    ahead = _forward(place, lengths)
    behind = _back(place, lengths)
    if before is None:
        found = [ahead, behind]
    elif _forward(before, lengths) == place:
        found = [ahead, _forward(ahead, lengths)]
    elif _back(before, lengths) == place:
        found = [behind, _back(behind, lengths)]
    else:
        found = [ahead, behind]
    return [one for one in dict.fromkeys(found) if one not in (place, before)]
