"""What is shown of a place: pictures, numbers, curves and words, not drawn yet.

Owns which panels a scene has, what is said above them, and that what cannot be read is
shown as such and stops nobody. Knows no figure.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np

from zarrbuf.archive.spec import AnyArray
from zarrbuf.common.background import BackgroundThread
from zarrbuf.errors import FormatError, InvalidInputError, ZarrbufError
from zarrbuf.viewer.cursor import Place
from zarrbuf.viewer.curves import CURVE_FIELDS, ENDINGS, Curves, make_curves
from zarrbuf.viewer.images import (
    Picture,
    broken_picture,
    shrink,
    square_columns,
    tile,
    to_picture,
)
from zarrbuf.viewer.trajectories import CHUNK_CACHE_BYTES, Playback
from zarrbuf.viewer.trajectory_reader import Recording

USUAL_CAMERAS: Final = ("main_images", "wrist_images", "extra_view_images")
Layout = Literal["camera", "cameras", "envs"]
_STAGES: Final = ("current observation", "next observation")
_BROKEN_SIZE: Final = (96, 128)
_GRID_SIDE: Final = 2048
"""Pixels of a grid of environments; its tiles are shrunk to that."""
_MAX_BARS: Final = 64
"""Of a state, where it is shown instead of images."""
_MAX_CURVE_NUMBERS: Final = 1024
"""A state with more numbers than this has no curve: all steps would be read for it."""
_MAX_AHEAD_BYTES: Final = CHUNK_CACHE_BYTES // 4
"""Of decoded chunks of one scene; what it would push out is on the screen."""
_MAX_NUMBERS: Final = 16
"""Of an action."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One observation, or those of all environments side by side.

    Attributes:
        title: what is put above it.
        picture: what is shown; None if there is none.
        values: numbers that are shown where there are no images, [n].
        envs: which environment each tile shows; empty if there is but one.
        env: the one that everything else is told of.
        error: why it could not be read.
    """

    title: str
    picture: Picture | None = None
    values: AnyArray | None = None
    envs: tuple[int, ...] = ()
    env: int = 0
    error: str = ""


@dataclass(frozen=True, eq=False)
class Scene:
    """What is shown of one place.

    Attributes:
        place: which.
        heading: lines above everything.
        panels: current and next observation of each camera that is shown.
        curves: of the environment; the same object as long as that is the same.
        cameras: those that there are.
        camera: the one that is shown; None for no images.
        is_broken: whether the trajectory cannot be read.
    """

    place: Place
    heading: tuple[str, ...]
    panels: tuple[tuple[Panel, Panel], ...]
    curves: Curves
    cameras: tuple[str, ...] = ()
    camera: str | None = None
    is_broken: bool = False

    @property
    def error(self) -> str:
        """What of it could not be read, the first of it; empty if all was."""
        panels = [panel.error for pair in self.panels for panel in pair]
        found = [one for one in (*panels, *self.curves.problems) if one]
        return found[0] if found else ""


def choose_camera(recording: Recording, wanted: str) -> str | None:
    """Return the camera that is shown of a trajectory; None if it has none.

    Falls back to the first of RLinf's three that is there, else the first by name.
    """
    if wanted in recording.cameras:
        return wanted
    usual = [name for name in USUAL_CAMERAS if name in recording.cameras]
    return next(iter([*usual, *recording.cameras]), None)


def check_camera(recording: Recording, wanted: str) -> None:
    """Raise InvalidInputError if a trajectory has no such images, naming those."""
    if wanted not in recording.cameras:
        raise InvalidInputError(
            f"camera is {wanted!r}; {recording.name} has "
            f"{', '.join(recording.cameras) or 'none'}"
        )


def check_layout(layout: str) -> Layout:
    """Return `layout` if it is one; raise InvalidInputError if not."""
    for one in get_args(Layout):
        if layout == one:
            found: Layout = one
            return found
    raise InvalidInputError(
        f"layout is {layout!r}; allowed are {', '.join(get_args(Layout))}"
    )


@dataclass(frozen=True)
class Wish:
    """What is to be shown.

    Attributes:
        place: which trajectory, step and environment.
        camera: name of the images; another one if the trajectory has no such.
        layout: one "camera", all "cameras", or one camera of all "envs".
    """

    place: Place
    camera: str = USUAL_CAMERAS[0]
    layout: Layout = "camera"


class SceneReader:
    """Makes scenes of places in a buffer, and reads ahead.

    Attributes:
        playback: the buffer.
    """

    def __init__(self, playback: Playback) -> None:
        """Read nothing yet."""
        self.playback = playback
        self._curves: tuple[tuple[Recording, int], Curves] | None = None
        self._thread = BackgroundThread("zarrbuf-scenes")
        self._pending: dict[Wish, Future[None]] = {}

    def read(self, wish: Wish) -> Scene:
        """Read what is to be shown; what cannot be read is shown as such."""
        place = wish.place
        where = say_where(self.playback, place)
        is_here = self._has_read_ahead(wish)
        try:
            recording = self.playback.recording(place.position)
        except ZarrbufError as exc:
            return _broken_scene(place, where, str(exc), self.playback)
        if not is_here:
            self._read_pictures(wish, max_decoded_bytes=0)
        curves = self._read_curves(recording, place)
        envs, names = _shown(recording, wish)
        what = say_what_happened(recording, place, curves)
        return Scene(
            place,
            (where, *what),
            tuple(_panels(recording, place, name, envs) for name in names)
            or (_vector_panels(recording, place),),
            curves,
            tuple(recording.cameras),
            choose_camera(recording, wish.camera),
        )

    def _has_read_ahead(self, wish: Wish) -> bool:
        """Return whether that was read in the background, once it is done."""
        pending = self._pending.pop(wish, None)
        if pending is None or pending.cancel():
            return False
        pending.result()
        return True

    def read_ahead(self, wishes: Sequence[Wish]) -> None:
        """Read pictures in the background, instead of those asked for before.

        What goes wrong is shown where the picture is looked at.
        """
        self._thread.cancel()
        under_way = {one: f for one, f in self._pending.items() if f.running()}
        self._pending = under_way | {
            wish: self._thread.submit(
                functools.partial(
                    self._read_pictures, wish, max_decoded_bytes=_MAX_AHEAD_BYTES
                )
            )
            for wish in wishes
            if wish not in under_way
        }

    def _read_pictures(self, wish: Wish, *, max_decoded_bytes: int) -> None:
        """Fetch pictures in one round, and decode them unless they are too many."""
        with suppress(ZarrbufError):  # raised again when one is looked at
            recording = self.playback.recording(wish.place.position)
            envs, names = _shown(recording, wish)
            recording.read_observations(
                names,
                step=wish.place.step,
                envs=envs,
                max_decoded_bytes=max_decoded_bytes,
            )

    def _read_curves(self, recording: Recording, place: Place) -> Curves:
        key = (recording, place.env)
        if self._curves is not None and self._curves[0] == key:
            return self._curves[1]
        curves = read_curves(recording, place.env)
        self._curves = None if curves.may_pass else (key, curves)
        return curves

    def close(self) -> None:
        """Read nothing ahead any more. Safe twice."""
        self._thread.close()


def read_curves(recording: Recording, env: int) -> Curves:
    """Read the curves of one environment; what cannot be read is said in them."""
    wanted = [name for name in CURVE_FIELDS if name in recording.fields]
    if not recording.cameras:
        names = [f"curr_obs/{name}" for name in recording.vectors]
        shapes = {name: recording.fields[name].spec.shape for name in names}
        wanted += [n for n in names if math.prod(shapes[n]) <= _MAX_CURVE_NUMBERS]
    fields: dict[str, AnyArray] = {}
    problems: list[str] = []
    may_pass = False
    with suppress(ZarrbufError):  # each is read, and its error told, below
        recording.fetch_samples(wanted, steps=np.arange(recording.num_steps), env=env)
    for name in wanted:
        try:
            fields[name] = recording.series(name, env=env)
        except FormatError as exc:
            problems.append(f"damaged: {exc}")
        except ZarrbufError as exc:
            problems.append(f"cannot be read: {exc}")
            may_pass = True
    return make_curves(
        fields, recording.num_steps, problems=tuple(problems), may_pass=may_pass
    )


def _shown(recording: Recording, wish: Wish) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return which environments and which observations are shown."""
    camera = choose_camera(recording, wish.camera)
    if camera is None:
        return (wish.place.env,), ()
    if wish.layout == "cameras":
        return (wish.place.env,), tuple(recording.cameras)
    if wish.layout == "envs":
        return tuple(range(recording.num_envs)), (camera,)
    return (wish.place.env,), (camera,)


def _panels(
    recording: Recording, place: Place, camera: str, envs: tuple[int, ...]
) -> tuple[Panel, Panel]:
    """Return what is shown of a camera, now and next."""
    seen = recording.ranges.get(camera)
    if seen is not None:  # all that is shown has one scale
        for stage, env in itertools.product((0, 1), envs):
            with suppress(ZarrbufError):
                if recording.has(camera, stage):
                    seen.widen(_image(recording, place, camera, stage, env))
    return (
        _panel(recording, place, camera, 0, envs),
        _panel(recording, place, camera, 1, envs),
    )


def _image(
    recording: Recording, place: Place, camera: str, stage: int, env: int
) -> AnyArray:
    return recording.observation(camera, stage=stage, step=place.step, env=env)


def _panel(
    recording: Recording, place: Place, camera: str, stage: int, envs: tuple[int, ...]
) -> Panel:
    title = f"{_STAGES[stage]}: {camera}"
    if not recording.has(camera, stage):
        return Panel(f"{title} (none)")
    pictures: list[Picture] = []
    errors: list[str] = []
    for env in envs:
        try:
            image = _image(recording, place, camera, stage, env)
            pictures.append(to_picture(image, recording.ranges.get(camera)))
        except ZarrbufError as exc:
            size = recording.image_size(camera, stage)
            pictures.append(broken_picture(*size))
            errors.append(str(exc))
    if len(envs) == 1:
        return Panel(title, pictures[0], error="; ".join(errors))
    columns = square_columns(len(envs))
    pictures = [shrink(one, max_side=_GRID_SIDE // columns) for one in pictures]
    grid = tile(pictures, num_columns=columns)
    return Panel(title, grid, envs=envs, env=place.env, error="; ".join(errors[:1]))


def _vector_panels(recording: Recording, place: Place) -> tuple[Panel, Panel]:
    """Show the numbers of observations, where there are no images."""
    return _vector_panel(recording, place, 0), _vector_panel(recording, place, 1)


def _vector_panel(recording: Recording, place: Place, stage: int) -> Panel:
    title = _STAGES[stage]
    names = [name for name in recording.vectors if recording.has(name, stage)]
    if not names:
        return Panel(f"{title} (none)")
    try:
        numbers = [
            recording.observation(name, stage=stage, step=place.step, env=place.env)
            for name in names
        ]
    except ZarrbufError as exc:
        return Panel(title, error=str(exc))
    flat = np.concatenate([np.real(one).reshape(-1) for one in numbers])
    title = f"{title}: {', '.join(names)}"
    if len(flat) > _MAX_BARS:
        title += f" (the first {_MAX_BARS} of {len(flat)} numbers)"
    return Panel(title, values=flat[:_MAX_BARS].astype(np.float64))


def _broken_scene(place: Place, where: str, error: str, playback: Playback) -> Scene:
    broken = broken_picture(*_BROKEN_SIZE)
    left, right = (
        Panel(stage, broken, error=why)
        for stage, why in zip(_STAGES, (error, ""), strict=True)
    )
    num_steps, _ = playback.shape(place.position)
    heading = (where, "cannot be read")
    return Scene(place, heading, ((left, right),), Curves(num_steps), is_broken=True)


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
