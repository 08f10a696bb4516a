"""The command that shows a buffer: view.

One command, one call. The viewer is loaded only here: it needs matplotlib.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import click
from click.core import ParameterSource

import zarrbuf
from zarrbuf.cli.terminal import (
    ALLOW_BASE_OPTION,
    AT_OPTION,
    JSON_OPTION,
    STORAGE_OPTION,
    format_bytes,
    print_json,
    show_progress,
)
from zarrbuf.common.printing import printable

_FORMS: Final[dict[str, Any]] = {
    "--web": "web",
    "--headless": "prompt",
    "--no-display": "image",
}
_USUAL_CAMERA: Final = "main_images"
_NUM_SHOWN: Final = 10
"""Ids that are told at the start."""


@click.command()
@click.argument("path")
@click.option(
    "--camera",
    metavar="NAME",
    help="Which images: main_images (default), wrist_images, extra_view_images or "
    "another that there is.",
)
@click.option(
    "--trajectory", "trajectory_id", type=int, metavar="ID", help="Start there."
)
@click.option("--step", type=int, default=0, show_default=True, help="Start there.")
@click.option("--env", type=int, default=0, show_default=True, help="Start there.")
@click.option(
    "--layout",
    type=click.Choice(["camera", "cameras", "envs"]),
    default="camera",
    show_default=True,
    help="One camera, all cameras, or one camera of all environments.",
)
@click.option("--web", is_flag=True, help="In a browser, over SSH too.")
@click.option(
    "--port", type=int, help="Of the page, on 127.0.0.1; default 8988, 0 for any."
)
@click.option("--headless", is_flag=True, help="A prompt that writes an image file.")
@click.option("--save-image", is_flag=True, help="Write the image at every move.")
@click.option(
    "--no-display", is_flag=True, help="With --save-image: write one image and end."
)
@click.option(
    "--output",
    default="replay_buffer_viz.png",
    show_default=True,
    metavar="FILE",
    help="The image file.",
)
@click.option(
    "--export",
    "clip",
    metavar="FILE",
    help="Write the trajectory as a clip (.mp4, .gif) or a contact sheet (.png).",
)
@click.option("--fps", type=float, default=10.0, show_default=True, help="Of a clip.")
@AT_OPTION
@STORAGE_OPTION
@ALLOW_BASE_OPTION
@JSON_OPTION
def view(
    path: str,
    camera: str | None,
    trajectory_id: int | None,
    step: int,
    env: int,
    layout: Literal["camera", "cameras", "envs"],
    web: bool,
    port: int | None,
    headless: bool,
    save_image: bool,
    no_display: bool,
    output: str,
    clip: str | None,
    fps: float,
    version: int | None,
    storage_options: dict[str, Any],
    allow_bases: tuple[str, ...],
    as_json: bool,
) -> None:
    """Look through the buffer at PATH, frame by frame."""
    forms = {"--web": web, "--headless": headless, "--no-display": no_display}
    forms["--export"] = clip is not None
    chosen = [name for name, is_given in forms.items() if is_given]
    if len(chosen) > 1:
        raise click.UsageError(f"{' and '.join(chosen)} exclude each other")
    if no_display and not save_image:
        raise click.UsageError("--no-display needs --save-image")
    _check_purposes(
        is_export=clip is not None,
        is_clip=clip is not None and not clip.endswith(".png"),
        is_web=web,
    )
    playback = zarrbuf.open_playback(
        path, version=version, storage_options=storage_options, allow_bases=allow_bases
    )
    if clip is not None:
        with show_progress("export", unit="frames") as progress:
            done = zarrbuf.export_clip(
                playback,
                clip,
                trajectory_id=trajectory_id,
                env=env,
                camera=camera,
                fps=fps,
                progress=progress,
            )
        _report(done, as_json=as_json)
        return
    if not web:
        _introduce(playback, camera)
    zarrbuf.view(
        playback,
        _FORMS[chosen[0]] if chosen else "window",
        camera=camera,
        layout=layout,
        trajectory_id=trajectory_id,
        step=step,
        env=env,
        output=output,
        save_each=save_image,
        port=port,
    )


def _introduce(playback: Any, camera: str | None) -> None:
    """Say what there is to be seen, in the words of RLinf's visualizer."""
    ids = playback.rows.trajectory_ids
    some = ", ".join(map(str, ids[:_NUM_SHOWN].tolist()))
    more = "..." if len(ids) > _NUM_SHOWN else ""
    click.echo(f"Loaded replay buffer from {printable(playback.url)}")
    click.echo(f"Total trajectories: {len(playback)}")
    click.echo(f"Total samples: {playback.rows.total_samples}")
    click.echo(f"Camera view: {printable(camera or _USUAL_CAMERA)}")
    click.echo(f"Trajectory IDs: [{some}]{more}")


def _check_purposes(*, is_export: bool, is_clip: bool, is_web: bool) -> None:
    """Refuse options that would do nothing."""
    context = click.get_current_context()
    for name, option, is_for, purpose in (
        ("port", "--port", is_web, "--web"),
        ("fps", "--fps", is_clip, "--export of a clip"),
        ("as_json", "--json", is_export, "--export"),
        ("step", "--step", not is_export, "looking, not for --export"),
        ("layout", "--layout", not is_export, "looking, not for --export"),
        ("output", "--output", not is_export, "looking, not for --export"),
        ("save_image", "--save-image", not is_export, "looking, not for --export"),
    ):
        source = context.get_parameter_source(name)
        if source is ParameterSource.COMMANDLINE and not is_for:
            raise click.UsageError(f"{option} is for {purpose}")


def _report(done: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(done.to_json())
        return
    click.echo(
        f"{printable(done.path)}: {done.num_frames} frames of "
        f"{printable(done.trajectory)}, {format_bytes(done.num_bytes)}"
    )
