"""Commands that make buffers out of buffers: merge, split.

One command, one call, then text or JSON.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import click

import zarrbuf
from zarrbuf.cli.terminal import (
    ALLOW_BASE_OPTION,
    JSON_OPTION,
    STORAGE_OPTION,
    format_bytes,
    print_json,
    show_progress,
)
from zarrbuf.common.printing import printable

_MODE_OPTION: Final = click.option(
    "--mode",
    type=click.Choice(["reference", "hardlink", "copy", "move"]),
    help="Name the archives where they are (reference), or bring them along; default: "
    "reference, copy for pt and pkl files.",
)
_PIN_OPTION: Final = click.option(
    "--no-pin",
    is_flag=True,
    help="Do not ask the sources to keep what is named by reference.",
)


@click.command()
@click.argument("paths", metavar="SOURCE... DEST", nargs=-1, required=True)
@click.option(
    "--keep-order",
    is_flag=True,
    help="Sources as they are named; else rank_10 of `rank_*` comes after rank_2.",
)
@_MODE_OPTION
@_PIN_OPTION
@STORAGE_OPTION
@ALLOW_BASE_OPTION
@JSON_OPTION
def merge(
    paths: tuple[str, ...],
    keep_order: bool,
    mode: str,
    no_pin: bool,
    storage_options: dict[str, Any],
    allow_bases: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make one buffer at DEST of several, by id and then by SOURCE."""
    if len(paths) < 2:
        raise click.UsageError("name at least one SOURCE and the DEST")
    *sources, destination = paths
    if not keep_order:
        sources = _sort_ranks(sources)
    with show_progress("merge") as progress:
        done = zarrbuf.merge(
            sources,
            destination,
            mode=mode,
            pin=not no_pin,
            storage_options=storage_options,
            allow_bases=allow_bases,
            progress=progress,
        )
    _report([done], as_json=as_json)


def _sort_ranks(sources: list[str]) -> list[str]:
    """Return rank folders by number, where a shell has sorted them by name."""
    numbers = [re.search(r"(?:^|/)rank_(\d+)/*$", path) for path in sources]
    if not all(numbers) or sources != sorted(sources):
        return sources
    keys = [int(found[1]) for found in numbers if found]
    by_number = [path for _, path in sorted(zip(keys, sources, strict=True))]
    if by_number != sources:
        click.echo(
            "sources go by number, rank_2 before rank_10; --keep-order takes them as "
            "they are named",
            err=True,
        )
    return by_number


@click.command()
@click.argument("source")
@click.argument("destinations", metavar="DEST...", nargs=-1, required=True)
@click.option("--count", type=int, help="The first so many trajectories.")
@click.option("--fraction", help="Parts of the list, one DEST each: 0.9,0.1")
@click.option("--ids", help="Trajectories by id: 3,7-20")
@click.option("--where", metavar="EXPR", help="Where 'mean_return > 3 and T == 64'.")
@click.option("--seed", type=int, help="Draw the parts of --fraction at random.")
@_MODE_OPTION
@_PIN_OPTION
@STORAGE_OPTION
@ALLOW_BASE_OPTION
@JSON_OPTION
def split(
    source: str,
    destinations: tuple[str, ...],
    count: int | None,
    fraction: str | None,
    ids: str | None,
    where: str | None,
    seed: int | None,
    mode: str,
    no_pin: bool,
    storage_options: dict[str, Any],
    allow_bases: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make buffers of parts of SOURCE, chosen by one of the options."""
    with show_progress("split") as progress:
        done = zarrbuf.split(
            source,
            destinations,
            count=count,
            fractions=None if fraction is None else _fractions(fraction),
            ids=ids,
            where=where,
            seed=seed,
            mode=mode,
            pin=not no_pin,
            storage_options=storage_options,
            allow_bases=allow_bases,
            progress=progress,
        )
    _report(done, as_json=as_json)


def _fractions(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"--fraction {text!r}; write 0.9,0.1") from None


def _report(made: Sequence[Any], *, as_json: bool) -> None:
    """Say what buffers were made."""
    if as_json:
        print_json({"made": [one.to_json() for one in made]})
        return
    how = {
        "reference": "named where they are",
        "hardlink": "linked",
        "copy": "copied",
        "move": "moved",
    }
    for one in made:
        click.echo(
            f"{printable(one.destination)}: {one.num_trajectories} trajectories, "
            f"{one.total_samples} samples, {format_bytes(one.num_bytes)} "
            f"{how[one.mode]}"
        )
