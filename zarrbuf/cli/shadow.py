"""The command that draws from a folder with RLinf's class and with ours.

One command, one call, then text or JSON.
"""

from __future__ import annotations

import sys

import click

import zarrbuf
from zarrbuf.cli.terminal import JSON_OPTION, print_json, show_progress
from zarrbuf.common.printing import printable


@click.command()
@click.argument("path")
@click.option(
    "--draws",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Batches to compare.",
)
@click.option(
    "--num-chunks",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Transitions of each.",
)
@click.option(
    "--sample-window-size",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="Draw from the newest so many trajectories; 0 for all.",
)
@click.option("--cache-size", type=click.IntRange(min=0), default=5, show_default=True)
@click.option("--enable-cache/--no-enable-cache", default=True, show_default=True)
@click.option(
    "--class",
    "buffer_class",
    metavar="MODULE:NAME",
    help="RLinf's class, where it is not where RLinf keeps it.",
)
@JSON_OPTION
def shadow(
    path: str,
    draws: int,
    num_chunks: int,
    sample_window_size: int,
    cache_size: int,
    enable_cache: bool,
    buffer_class: str | None,
    as_json: bool,
) -> None:
    """Draw from RLinf's folder at PATH with RLinf's class and with zarrbuf's.

    Compares every batch bit for bit, and the time, memory and disk of both. RLinf must
    be installed. PATH is only read. Exit 1 if anything is different.
    """
    with show_progress("shadow", unit="steps") as progress:
        report = zarrbuf.shadow_folder(
            path,
            buffer_class,
            draws=draws,
            num_chunks=num_chunks,
            sample_window_size=sample_window_size,
            cache_size=cache_size,
            enable_cache=enable_cache,
            progress=progress,
        )
    if as_json:
        print_json(report.to_json())
    else:
        click.echo("\n".join(printable(line) for line in report.lines()))
    if not report.is_equal:
        sys.exit(1)
