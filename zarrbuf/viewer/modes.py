"""The viewer in each of its forms: a window, a page, a prompt, one image.

Owns which form can be had here. What is looked at is for `session`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import Any, Final, Literal, get_args

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from zarrbuf.common.printing import printable
from zarrbuf.errors import InvalidInputError, ZarrbufError
from zarrbuf.storage.resolve import Location, StorageOptions
from zarrbuf.viewer.cursor import Place, check_place
from zarrbuf.viewer.figures import (
    FIGURE_INCHES,
    Screen,
    check_image_file,
    plot_scene,
    save_figure,
)
from zarrbuf.viewer.frontends.prompt import Prompt
from zarrbuf.viewer.frontends.window import Window
from zarrbuf.viewer.scene import (
    USUAL_CAMERAS,
    Layout,
    Scene,
    SceneReader,
    Wish,
    check_camera,
    check_layout,
)
from zarrbuf.viewer.session import Viewing
from zarrbuf.viewer.trajectories import open_playback

Form = Literal["window", "web", "prompt", "image"]
DEFAULT_OUTPUT: Final = "replay_buffer_viz.png"
"""That of RLinf's visualizer."""
_NO_DISPLAY: Final = (
    "there is no display for a window here; use --web (a browser, over SSH too), "
    "--headless (a prompt and an image file) or --save-image --no-display"
)


def print_line(line: str) -> None:
    """Write a line to standard output, without what a terminal would obey."""
    sys.stdout.write("\n".join(map(printable, line.splitlines())) + "\n")
    sys.stdout.flush()


def plot_step(
    source: Any,
    trajectory_id: int,
    *,
    step: int = 0,
    env: int = 0,
    camera: str = USUAL_CAMERAS[0],
    layout: Layout = "camera",
) -> Figure:
    """Draw one step of a trajectory as a new figure; opens no window.

    Args:
        source: path, URL, open buffer, or a `Playback` for many figures of one.
        trajectory_id: which.
        step: `t`.
        env: `b`.
        camera: one of RLinf's three, or another that there is.
        layout: one "camera", all "cameras", or one camera of all "envs".

    Raises:
        InvalidInputError: if there is no such camera, step or environment.
        TrajectoryNotFoundError: if it is not listed, naming the nearest ids.
    """
    playback = open_playback(source)
    place = check_place(Place(playback.find(trajectory_id), step, env), playback)
    if camera not in USUAL_CAMERAS:
        check_camera(playback.recording(place.position), camera)
    check_layout(layout)
    with closing(SceneReader(playback)) as scenes:
        return plot_scene(scenes.read(Wish(place, camera, layout)))


def view(
    source: Any,
    form: Form = "window",
    *,
    camera: str | None = None,
    layout: Layout = "camera",
    trajectory_id: int | None = None,
    step: int = 0,
    env: int = 0,
    output: str | os.PathLike[str] = DEFAULT_OUTPUT,
    save_each: bool = False,
    port: int | None = None,
    say: Callable[[str], None] = print_line,
    version: int | None = None,
    storage_options: StorageOptions | None = None,
    allow_bases: Sequence[Location] = (),
) -> None:
    """Look through a buffer, frame by frame; returns when whoever looks leaves.

    Args:
        source: a buffer of zarrbuf's or a folder of RLinf's: path, URL or open buffer.
        form: a "window" on this display, a "web" page for browsers on this machine, a
            "prompt" that writes an image, or one "image".
        camera: one of RLinf's three, which falls back to another, or one that there is.
        layout: to start with; one "camera", all "cameras", or one camera of all "envs".
        trajectory_id: where to start; None for the first of the list.
        step: `t` to start at.
        env: `b` to start at.
        output: the image file.
        save_each: have a window write it at every move, too.
        port: of the page; None for matplotlib's 8988, 0 for any that is free.
        say: says a line; by default on standard output.
        version: as it was after that commit; None for now.
        storage_options: for object stores, see `TrajectoryReplayBuffer`.
        allow_bases: see `TrajectoryReplayBuffer`.

    Raises:
        NotFoundError: if there is no buffer.
        EmptyBufferError: if it lists nothing.
        TrajectoryNotFoundError: naming the nearest ids.
        InvalidInputError: if there is no such camera, step or environment, no display
            for a window, or the port is taken.
        StorageError: if the image cannot be written.
        ZarrbufError: if one "image" was asked for and not all of it could be read; it
            is written, with marks.
    """
    if form not in get_args(Form):
        raise InvalidInputError(
            f"form is {form!r}; allowed are {', '.join(get_args(Form))}"
        )
    check_image_file(output)
    playback = open_playback(
        source,
        version=version,
        storage_options=storage_options,
        allow_bases=allow_bases,
    )
    position = 0 if trajectory_id is None else playback.find(trajectory_id)
    viewing = Viewing(
        playback,
        camera=USUAL_CAMERAS[0] if camera is None else camera,
        layout=layout,
        place=Place(position, step, env),
    )
    try:
        if form == "web":
            # Imported when needed: the server is in the extra `[view]`.
            web = importlib.import_module("zarrbuf.viewer.frontends.web")
            web.serve_viewer(
                viewing,
                port=web.DEFAULT_PORT if port is None else port,
                output=output,
                save_each=save_each,
                say=say,
            )
        elif form == "window":
            _run_window(viewing, output, save_each, say)
        elif form == "prompt":
            _run_prompt(viewing, output, say)
        else:
            _write_image(viewing, output, say)
    finally:
        viewing.close()


def _run_window(
    viewing: Viewing,
    output: str | os.PathLike[str],
    save_each: bool,
    say: Callable[[str], None],
) -> None:
    try:
        figure = plt.figure(
            figsize=FIGURE_INCHES, num=f"zarrbuf {viewing.playback.url}"
        )
    except Exception as exc:  # what a toolkit without a display raises is its own
        raise InvalidInputError(f"{_NO_DISPLAY} ({exc})") from exc
    try:
        if getattr(figure.canvas, "required_interactive_framework", None) is None:
            raise InvalidInputError(_NO_DISPLAY)
        window = Window(
            figure,
            viewing,
            output=output,
            save_each=save_each,
            say=say,
            leave=lambda: plt.close(figure),
        )
        with suppress(KeyboardInterrupt):
            plt.show()
        del window  # till now: figures refer weakly to who listens
    finally:
        plt.close(figure)


def _run_prompt(
    viewing: Viewing, output: str | os.PathLike[str], say: Callable[[str], None]
) -> None:
    write = _image_writer(viewing, output)

    def show() -> None:
        say(" | ".join(write().heading[:2]))
        viewing.tell(say)

    show()
    say(f"The image is {os.fspath(output)}; open it in an editor that follows changes.")
    say("Commands: n p nt pt nb pb j ID home end info q; help lists all.")
    with suppress(KeyboardInterrupt):
        Prompt(viewing, show=show, say=say).cmdloop()


def _write_image(
    viewing: Viewing, output: str | os.PathLike[str], say: Callable[[str], None]
) -> None:
    _image_writer(viewing, output)()
    if viewing.message:
        say(viewing.message)
    say(f"saved to {os.fspath(output)}")
    if viewing.error:
        raise ZarrbufError(f"not all of it could be read: {viewing.error}")


def _image_writer(
    viewing: Viewing, output: str | os.PathLike[str]
) -> Callable[[], Scene]:
    """Return what writes the image of what is looked at."""
    screen = Screen(Figure(figsize=FIGURE_INCHES))

    def write() -> Scene:
        scene = viewing.scene()
        screen.show(scene, message=viewing.message)
        save_figure(screen.figure, output)
        return scene

    return write
