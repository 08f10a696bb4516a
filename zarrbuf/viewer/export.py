"""One trajectory as a file to show others: a clip (mp4, gif) or a contact sheet (png).

Owns which pictures that takes and that no file is left half-written.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from PIL import Image

from zarrbuf.archive.spec import AnyArray
from zarrbuf.common.arguments import check_whole_number
from zarrbuf.common.jobs import Progress
from zarrbuf.errors import InvalidInputError
from zarrbuf.manifest.rows import IntArray
from zarrbuf.storage.files import check_local_file, write_whole
from zarrbuf.viewer.figures import plot_sheet, save_figure
from zarrbuf.viewer.images import Picture, beside, shrink, to_picture
from zarrbuf.viewer.trajectories import open_playback
from zarrbuf.viewer.trajectory_reader import Recording

SUFFIXES: Final = (".mp4", ".gif", ".png")
DEFAULT_FPS: Final = 10.0
_MAX_FPS: Final = {".mp4": 1000, ".gif": 50, ".png": 1000}
_MAX_SIDE: Final = {".mp4": 16384, ".gif": 65535}
"""Pixels, of the encoders."""
SHEET_FRAMES: Final = 40
_SHEET_SIDE: Final = 320
_AHEAD: Final = 8
"""Steps that are fetched in one round."""


@dataclass(frozen=True)
class Clip:
    """What was written.

    Attributes:
        path: the file.
        trajectory: name of the trajectory.
        cameras: which are shown, side by side.
        num_frames: steps that are shown; equal pictures in a row are one in a GIF.
        num_bytes: size of the file.
    """

    path: str
    trajectory: str
    cameras: tuple[str, ...]
    num_frames: int
    num_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def export_clip(
    source: Any,
    path: str | os.PathLike[str],
    *,
    trajectory_id: int | None = None,
    env: int = 0,
    camera: str | None = None,
    fps: float = DEFAULT_FPS,
    progress: Progress | None = None,
) -> Clip:
    """Write the current observations of a trajectory as a clip or a contact sheet.

    Args:
        source: a buffer of zarrbuf's or a folder of RLinf's: path, URL, open buffer or
            `Playback`.
        path: a file that ends in .mp4, .gif or .png (a sheet of at most 40 steps).
        trajectory_id: which; None for the first of the list.
        env: which environment, `b`.
        camera: which images; None for all cameras, side by side.
        fps: steps a second in a clip, 0.1 to 1000, in a GIF at most 50; a GIF counts in
            10 ms.
        progress: called with (pictures done, pictures in all).

    Raises:
        InvalidInputError: if an argument is not allowed, or there are no images.
        TrajectoryNotFoundError: if it is not listed.
        FormatError: if an image is damaged; no file is left.
        StorageError: if it cannot be written.
    """
    path = os.fspath(path)
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in SUFFIXES:
        raise InvalidInputError(
            f"{path!r} ends in {suffix or 'nothing'!r}; allowed are "
            f"{', '.join(SUFFIXES)}"
        )
    is_number = isinstance(fps, int | float)
    if not is_number or not 0.1 <= fps <= _MAX_FPS[suffix]:
        raise InvalidInputError(
            f"fps is {fps!r}; allowed are 0.1 to {_MAX_FPS[suffix]} for {suffix}"
        )
    check_local_file(path)
    playback = open_playback(source)
    position = 0 if trajectory_id is None else playback.find(trajectory_id)
    recording = playback.recording(position)
    check_whole_number("env", env, maximum=recording.num_envs - 1)
    cameras = _cameras(recording, camera)
    count = recording.num_steps
    if suffix == ".png":
        count = min(count, SHEET_FRAMES)
    steps = np.linspace(0, recording.num_steps - 1, count).round().astype(np.int64)
    pictures = _pictures(recording, cameras, steps, env, progress)
    if suffix == ".png":
        _write_sheet(path, pictures, steps, recording, cameras, env)
    else:
        write = _write_gif
        if suffix == ".mp4":
            # Imported when needed: FFmpeg is in an extra of its own.
            write = importlib.import_module("zarrbuf.viewer.video").write_mp4
        frames = _of_size(pictures, suffix)
        write_whole(path, lambda name: write(name, frames, fps=fps))
    return Clip(path, recording.name, cameras, len(steps), os.path.getsize(path))


def _cameras(recording: Recording, camera: str | None) -> tuple[str, ...]:
    found = recording.cameras
    if camera is not None:
        found = [one for one in found if one == camera]
    if not found:
        raise InvalidInputError(
            f"{recording.name} has no images"
            + (f" {camera!r}" if camera else "")
            + f"; there are {', '.join(recording.cameras) or 'none'}"
        )
    return tuple(found)


def _pictures(
    recording: Recording,
    cameras: tuple[str, ...],
    steps: IntArray,
    env: int,
    progress: Progress | None,
) -> Iterator[Picture]:
    """Yield the pictures of some steps, those of a camera with one scale."""
    scaled = tuple(camera for camera in cameras if camera in recording.ranges)
    for images in _images(recording, scaled, steps, env):
        for camera, image in zip(scaled, images, strict=True):
            recording.ranges[camera].widen(image)
    for number, images in enumerate(_images(recording, cameras, steps, env)):
        yield beside(
            [
                to_picture(image, recording.ranges.get(camera))
                for camera, image in zip(cameras, images, strict=True)
            ]
        )
        if progress is not None:
            progress(number + 1, len(steps))


def _images(
    recording: Recording, cameras: tuple[str, ...], steps: IntArray, env: int
) -> Iterator[list[AnyArray]]:
    """Yield the images of some steps, several steps fetched at once."""
    if not cameras:
        return
    names = [f"curr_obs/{camera}" for camera in cameras]
    for number, step in enumerate(steps.tolist()):
        if number % _AHEAD == 0:
            near = steps[number : number + _AHEAD]
            recording.fetch_samples(names, steps=near, env=env)
        yield [recording.sample(name, step=step, env=env) for name in names]


def _of_size(pictures: Iterator[Picture], suffix: str) -> Iterator[Picture]:
    """Yield pictures that an encoder takes.

    Raises:
        InvalidInputError: for one that is too large.
    """
    for picture in pictures:
        height, width = picture.shape[:2]
        if max(height, width) > _MAX_SIDE[suffix]:
            raise InvalidInputError(
                f"a picture is {width} x {height} pixels; {suffix} takes at most "
                f"{_MAX_SIDE[suffix]} a side: choose one camera, or a .png"
            )
        yield picture


def _write_sheet(
    path: str,
    pictures: Iterator[Picture],
    steps: IntArray,
    recording: Recording,
    cameras: tuple[str, ...],
    env: int,
) -> None:
    small = [shrink(one, max_side=_SHEET_SIDE) for one in pictures]
    title = f"{recording.name}, env {env}: {', '.join(cameras)}"
    save_figure(
        plot_sheet(small, [f"step {t}" for t in steps.tolist()], title=title), path
    )


def _write_gif(name: str, pictures: Iterator[Picture], *, fps: float) -> None:
    images = map(Image.fromarray, pictures)
    next(images).save(
        name,
        format="GIF",
        save_all=True,
        append_images=images,
        duration=10 * round(100 / fps),  # a GIF counts in 10 ms
        loop=0,
    )
