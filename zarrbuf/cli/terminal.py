"""What all commands share: options, progress, JSON and sizes as they are printed.

The face has no algorithm; here is how it looks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import click
from tqdm import tqdm

from zarrbuf.common.jobs import Progress
from zarrbuf.common.times import to_datetime

JSON_OPTION: Final = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object."
)


def _parse_options(
    context: click.Context, parameter: click.Parameter, pairs: tuple[str, ...]
) -> dict[str, Any]:
    """Turn KEY=VALUE pairs into storage options."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{pair!r} is not KEY=VALUE")
        options[key] = {"true": True, "false": False}.get(value.lower(), value)
    return options


STORAGE_OPTION: Final = click.option(
    "--storage-option",
    "storage_options",
    metavar="KEY=VALUE",
    multiple=True,
    callback=_parse_options,
    help="For object stores: endpoint_url, key, secret, region, client ...",
)
AT_OPTION: Final = click.option(
    "--at",
    "version",
    type=click.IntRange(min=0),
    metavar="VERSION",
    help="As it was after that commit (zarrbuf log lists them).",
)
ALLOW_BASE_OPTION: Final = click.option(
    "--allow-base",
    "allow_bases",
    metavar="PATH",
    multiple=True,
    help="Trust what a buffer names there, too; default: beside it, in its bucket.",
)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object."""
    click.echo(json.dumps(value, indent=2))


@contextmanager
def show_progress(what: str, *, unit: str = "trajectories") -> Iterator[Progress]:
    """Show a bar on a terminal; be quiet in a pipe."""
    with tqdm(desc=what, unit=f" {unit}", disable=None, leave=False) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


def format_time(ms: int) -> str:
    """Return a time, ms since 1970, for people, to the minute."""
    return f"{to_datetime(ms):%Y-%m-%d %H:%M} UTC"


def format_bytes(count: float) -> str:
    """Return a number of bytes for people, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
