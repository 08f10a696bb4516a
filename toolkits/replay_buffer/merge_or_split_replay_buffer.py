"""Merge the rank_* folders below a directory, or split one, with RLinf's flags.

    merge_or_split_replay_buffer.py --source-path DIR --save-path DEST [--copy] [--move]
    merge_or_split_replay_buffer.py --source-path DIR --save-path DEST --split-count N

The same as `zarrbuf merge` and `zarrbuf split`. RLinf's script moves files unless told
to copy; this one takes nothing away unless told to move.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence

import click

from zarrbuf.cli.main import main as zarrbuf_main


def find_sources(path: str) -> list[str]:
    """Return the rank_* folders below a directory by number, or the directory."""
    try:
        names = os.listdir(path)
    except OSError:
        return [path]  # a URL, or what the command will say is not there
    ranks = [match for name in names if (match := re.fullmatch(r"rank_(\d+)", name))]
    ranks.sort(key=lambda match: int(match[1]))
    return [os.path.join(path, match[0]) for match in ranks] or [path]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--source-path", required=True, help="A buffer, or what holds rank_*.")
@click.option("--save-path", required=True, help="Where nothing is yet.")
@click.option("--copy", is_flag=True, help="Make the result independent.")
@click.option("--move", is_flag=True, help="Take the trajectories from the sources.")
@click.option("--allow-base", multiple=True, help="Trust what lies there, too.")
@click.option("--split-count", type=int, help="Take the first so many only.")
def command(
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
        arguments = ["merge", *options, "--", *sources, save_path]
    elif len(sources) > 1:
        raise click.UsageError(
            f"--split-count is for one buffer; {source_path} holds {len(sources)} "
            "(merge them first)"
        )
    else:
        count = ["--count", str(split_count)]
        arguments = ["split", *options, *count, "--", *sources, save_path]
    zarrbuf_main(arguments, prog_name="merge_or_split_replay_buffer.py")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run with the given arguments, those of the process if None."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    command(given, prog_name="merge_or_split_replay_buffer.py")


if __name__ == "__main__":
    main()
