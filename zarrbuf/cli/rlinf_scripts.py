"""The scripts of RLinf's `toolkits/replay_buffer`, with its flags, over our commands.

What lies in the checkout under RLinf's names calls these; every one of them does what a
command of `zarrbuf` does, which has more options.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from zarrbuf.cli.main import main as zarrbuf_main

_SAMPLE_DEFAULTS: Final = {"num_chunks": 4, "sample_window_size": 10}
"""Where RLinf's differ from those of `zarrbuf sample`."""


def sample(
    arguments: Sequence[str] | None = None, *, name: str = "sample_replay_buffer.py"
) -> None:
    """Run `zarrbuf sample` with RLinf's defaults.

    Args:
        arguments: those of the process if None.
        name: of the script, as its help tells it.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    zarrbuf_main(
        ["sample", *given], prog_name=name, default_map={"sample": _SAMPLE_DEFAULTS}
    )


def visualize(arguments: Sequence[str] | None = None) -> None:
    """Run `zarrbuf view`, a window, with the flags of RLinf's visualizer."""
    parser = _view_parser("visualize.py", "keys", "which has more options")
    parser.add_argument(
        "--save_image", action="store_true", help="write the image at every move"
    )
    parser.add_argument(
        "--no_display", action="store_true", help="no window; needs --save_image"
    )
    given = parser.parse_args(arguments)
    if given.no_display and not given.save_image:
        parser.error("--no_display requires --save_image to be enabled")
    flags = [
        *(["--save-image"] if given.save_image else []),
        *(["--no-display"] if given.no_display else []),
    ]
    _view(given, flags, name="visualize.py")


def visualize_headless(arguments: Sequence[str] | None = None) -> None:
    """Run `zarrbuf view --headless`, a prompt, with the flags of RLinf's script."""
    name = "visualize_headless.py"
    parser = _view_parser(name, "words", "with --headless")
    _view(parser.parse_args(arguments), ["--headless"], name=name)


def _view_parser(name: str, input_kind: str, more: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=name,
        description=f"Look through a replay buffer, with the flags and {input_kind} of "
        f"RLinf's script. The same as `zarrbuf view`, {more}.",
    )
    parser.add_argument("--replay_dir", required=True, help="path or URL of a buffer")
    parser.add_argument(
        "--camera",
        default="main_images",
        help="main_images, wrist_images, extra_view_images or another (default: "
        "main_images)",
    )
    parser.add_argument(
        "--output",
        default="replay_buffer_viz.png",
        help="image file (default: replay_buffer_viz.png)",
    )
    return parser


def _view(given: argparse.Namespace, flags: Sequence[str], *, name: str) -> None:
    options = [f"--camera={given.camera}", f"--output={given.output}"]
    zarrbuf_main(["view", *options, *flags, "--", given.replay_dir], prog_name=name)


def find_sources(path: str) -> list[str]:
    """Return the rank_* folders below a directory by name, or the directory.

    RLinf's order: `rank_10` comes before `rank_2`.
    """
    try:
        names = sorted(os.listdir(path))
    except OSError:
        return [path]  # a URL, or what the command will say is not there
    ranks = [os.path.join(path, name) for name in names if name.startswith("rank_")]
    return [rank for rank in ranks if os.path.isdir(rank)] or [path]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--source-path",
    default=".",
    show_default=True,
    help="A buffer, or what holds rank_*.",
)
@click.option("--save-path", required=True, help="Where nothing is yet.")
@click.option("--copy", is_flag=True, help="Make the result independent.")
@click.option("--move", is_flag=True, help="Take the trajectories from the sources.")
@click.option("--allow-base", multiple=True, help="Trust what lies there, too.")
@click.option("--split-count", type=int, help="Take the first so many only.")
def merge_or_split(
    source_path: str,
    save_path: str,
    copy: bool,
    move: bool,
    allow_base: tuple[str, ...],
    split_count: int | None,
) -> None:
    """Merge the rank_* folders below a directory, or split a buffer."""
    if copy and move:
        raise click.UsageError("--copy and --move exclude each other")
    sources = find_sources(source_path)
    options = ["--mode", "copy" if copy else "move"] if copy or move else []
    for place in allow_base:
        options += ["--allow-base", place]
    if split_count is None:
        arguments = ["merge", "--keep-order", *options, "--", *sources, save_path]
    elif len(sources) > 1:
        raise click.UsageError(
            f"--split-count is for one buffer; {source_path} holds {len(sources)} "
            "(merge them first)"
        )
    else:
        count = ["--count", str(split_count)]
        arguments = ["split", *options, *count, "--", *sources, save_path]
    zarrbuf_main(arguments, prog_name="merge_or_split_replay_buffer.py")
