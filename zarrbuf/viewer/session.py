"""Somebody looks through a buffer: where, at which camera, what a command changes.

Owns the commands, their keys and words, and what is said to who looks. Draws nothing
and reads no key.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from zarrbuf.errors import (
    FormatError,
    InvalidInputError,
    NotFoundError,
    TrajectoryNotFoundError,
    ZarrbufError,
)
from zarrbuf.viewer.cursor import (
    FAR,
    MOVES,
    Place,
    check_place,
    nearest_place,
    neighbours,
)
from zarrbuf.viewer.scene import (
    USUAL_CAMERAS,
    Layout,
    Scene,
    SceneReader,
    Wish,
    check_camera,
    check_layout,
)
from zarrbuf.viewer.trajectories import Playback

KEYS: Final = {
    "right": "next",
    "n": "next",
    "left": "prev",
    "p": "prev",
    "up": "next_trajectory",
    "down": "prev_trajectory",
    "b": "next_env",
    "v": "prev_env",
    "home": "home",
    "end": "end",
    "pagedown": "far_next",
    "pageup": "far_prev",
    "c": "next_camera",
    "a": "cameras",
    "g": "envs",
    "r": "refresh",
}
"""Keys of a window -> commands; those of RLinf's visualizer mean what they do there."""
_LAYOUTS: Final[dict[str, Layout]] = {"cameras": "cameras", "envs": "envs"}
HELP_LINE: Final = (
    "Keys: \N{LEFTWARDS ARROW}\N{RIGHTWARDS ARROW}/p/n=step | PgUp/PgDn="
    f"{FAR} steps | \N{UPWARDS ARROW}\N{DOWNWARDS ARROW}=traj | b/v=env | "
    "c=camera, a=all | g=all envs | r=refresh | s=save | Home/End | q=quit | "
    "click a curve or tile"
)


class Viewing:
    """Where somebody looks in a buffer, and at what.

    Attributes:
        playback: the buffer.
        place: where they look.
        camera: the images they want to see, where there are such.
        layout: one "camera", all "cameras", or one camera of all "envs".
        message: what the last command had to say; empty for nothing.
        error: why something of the last scene could not be read; empty if all was.
    """

    def __init__(
        self,
        playback: Playback,
        *,
        camera: str = USUAL_CAMERAS[0],
        layout: Layout = "camera",
        place: Place | None = None,
    ) -> None:
        """Start somewhere.

        Args:
            playback: the buffer.
            camera: one of RLinf's three, which may be missing, or one that there is.
            layout: see there.
            place: where to start; None for the first sample.

        Raises:
            InvalidInputError: if there is no such camera, step or environment.
            StorageError: if a camera is named and the storage failed.
        """
        self.playback = playback
        self.place = check_place(place or Place(), playback)
        self.camera = camera
        self.layout = check_layout(layout)
        self.message = self.error = ""
        self._scenes = SceneReader(playback)
        self._before: Place | None = None
        self._shown_camera = camera
        if camera not in USUAL_CAMERAS:
            with suppress(FormatError, NotFoundError):  # which are shown
                check_camera(playback.recording(self.place.position), camera)

    def do(self, command: str) -> None:
        """Do a command: a move, or another way to look.

        Args:
            command: a key of `MOVES`, "next_camera", "cameras", "envs" or "refresh".

        Raises:
            NotFoundError: if the buffer is gone.
            EmptyBufferError: if it lists nothing any more.
            StorageError: if its list cannot be read.
        """
        self.message = ""
        if command in MOVES:
            self._move(command)
        elif command == "refresh":
            self._refresh(keep=False)
            self.message = f"there are {len(self.playback)} trajectories now"
        elif command == "next_camera":
            self._next_camera()
        else:
            layout = _LAYOUTS[command]
            self.layout = "camera" if self.layout == layout else layout

    def _move(self, command: str) -> None:
        """Move, if need be into what was added since the list was read."""
        place = MOVES[command](self.place, self.playback)
        if place == self.place and command in ("next", "next_trajectory"):
            self._refresh()
            place = MOVES[command](self.place, self.playback)
        if place == self.place:
            self.message = "there is nothing further that way"
        else:
            self._go(place)

    def _refresh(self, *, keep: bool = True) -> None:
        """Read the list anew, and stay at the trajectory or where it was."""
        row = self.playback.rows.row(self.place.position)
        self.playback.refresh(keep=keep)
        self._before = None  # whose position may be that of another
        try:
            position = self.playback.find(row.trajectory_id)
        except TrajectoryNotFoundError:
            last = len(self.playback) - 1
            self.place = Place(min(self.place.position, last))
        else:
            place = replace(self.place, position=position)
            self.place = nearest_place(place, self.playback)

    def _go(self, place: Place) -> None:
        if place.position != self.place.position:
            self.message = f"now in {self.playback.name(place.position)}"
        self._before, self.place = self.place, place

    def jump(self, text: str) -> None:
        """Go to the first sample of a trajectory named by its id.

        Raises:
            InvalidInputError: if the text is no number.
            TrajectoryNotFoundError: naming the nearest that are listed.
            NotFoundError: if the buffer is gone.
        """
        try:
            trajectory_id = int(text)
        except ValueError:
            raise InvalidInputError(
                f"{text!r:.40} is no trajectory id; write a number"
            ) from None
        self.message = ""
        try:
            position = self.playback.find(trajectory_id)
        except TrajectoryNotFoundError:
            self._refresh()
            position = self.playback.find(trajectory_id)
        if Place(position) != self.place:
            self._go(Place(position))

    def go_to(self, *, step: int | None = None, env: int | None = None) -> None:
        """Go to a step or an environment of the trajectory, the nearest there is."""
        self.message = ""
        place = Place(
            self.place.position,
            self.place.step if step is None else step,
            self.place.env if env is None else env,
        )
        place = nearest_place(place, self.playback)
        if place != self.place:
            self._go(place)

    def choose_camera(self, camera: str) -> None:
        """Look at another camera.

        Raises:
            InvalidInputError: naming those that there are.
        """
        check_camera(self.playback.recording(self.place.position), camera)
        self.camera = self._shown_camera = camera
        self.message = f"camera {camera}"

    def _next_camera(self) -> None:
        cameras = self.cameras()
        if len(cameras) < 2:
            self.message = "there is no other camera"
            return
        shown = self._shown_camera
        number = cameras.index(shown) if shown in cameras else -1
        self.choose_camera(cameras[(number + 1) % len(cameras)])

    def cameras(self) -> list[str]:
        """Return the cameras of the trajectory; none if it cannot be read."""
        try:
            return self.playback.recording(self.place.position).cameras
        except ZarrbufError:
            return []

    def scene(self) -> Scene:
        """Read what is to be shown now, and start to read what will be next.

        Where the trajectory does not have the camera, another one is shown, which
        `message` says once.
        """
        scene = self._scenes.read(self._wish(self.place))
        self._tell_camera(scene)
        self.error = scene.error
        places = neighbours(self.place, self._before, self.playback)
        if scene.is_broken:
            places = [one for one in places if one.position != self.place.position]
        self._scenes.read_ahead([self._wish(place) for place in places])
        return scene

    def _tell_camera(self, scene: Scene) -> None:
        if scene.camera is None or scene.camera == self._shown_camera:
            return
        note = f"camera {scene.camera}"
        if scene.camera != self.camera:
            note = (
                f"{self.playback.name(scene.place.position)} has no {self.camera}: "
                f"showing {scene.camera} (there are {', '.join(scene.cameras)})"
            )
        self._shown_camera = scene.camera
        self.message = f"{self.message} | {note}" if self.message else note

    def tell(self, say: Callable[[str], None]) -> None:
        """Say what the last command had to say, and what could not be read."""
        for line in (self.message, self.error):
            if line:
                say(line)

    def _wish(self, place: Place) -> Wish:
        return Wish(place, self.camera, self.layout)

    def info(self) -> list[str]:
        """Say where this is, and what the list tells of the trajectory."""
        place, row = self.place, self.playback.rows.row(self.place.position)
        num_steps, num_envs = self.playback.shape(place.position)
        cameras = ", ".join(self.cameras()) or "none"
        lines = [
            f"Trajectory ID: {row.trajectory_id} "
            f"(#{place.position}/{len(self.playback) - 1})",
            f"Step: {place.step}/{num_steps - 1}",
            f"Env (batch): {place.env}/{num_envs - 1}",
            f"Shape: {row.shape}",
            f"Weights: {row.model_weights_id or '-'}",
            f"Camera: {self._shown_camera} (there are {cameras})",
        ]
        return [*lines, *(f"{name}: {value}" for name, value in row.tags.items())]

    def close(self) -> None:
        """Read nothing ahead any more. Safe twice."""
        self._scenes.close()
