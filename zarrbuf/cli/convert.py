"""Commands that write trajectories anew: convert, recompress, export.

One command, one call, then text or JSON.
"""

from __future__ import annotations

from typing import Any, Final

import click

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

_CODECS: Final = ["lz4", "zstd", "none"]
_VERIFY_OPTION: Final = click.option(
    "--verify", is_flag=True, help="Read all again and compare it bit for bit."
)
_THREADS_OPTION: Final = click.option(
    "--num-threads", type=click.IntRange(min=1), help="Trajectories at once."
)


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.option("--to", type=click.Choice(["zarr", "pt", "pkl"]), default="zarr")
@click.option("--codec", type=click.Choice(_CODECS), default="lz4")
@_VERIFY_OPTION
@_THREADS_OPTION
@AT_OPTION
@STORAGE_OPTION
@ALLOW_BASE_OPTION
@JSON_OPTION
def convert(
    source: str,
    destination: str,
    to: str,
    codec: str,
    verify: bool,
    num_threads: int | None,
    version: int | None,
    storage_options: dict[str, Any],
    allow_bases: tuple[str, ...],
    as_json: bool,
) -> None:
    """Convert the buffer at SRC into a new one at DST, losslessly.

    If it is stopped, the same command goes on.
    """
    with show_progress("convert") as progress:
        done = zarrbuf.convert(
            source,
            destination,
            to=to,
            codec=codec,
            verify=verify,
            num_threads=num_threads,
            version=version,
            storage_options=storage_options,
            allow_bases=allow_bases,
            progress=progress,
        )
    _report(done, as_json=as_json)


@click.command()
@click.argument("path")
@click.option("--codec", type=click.Choice(_CODECS), required=True)
@_VERIFY_OPTION
@_THREADS_OPTION
@STORAGE_OPTION
@ALLOW_BASE_OPTION
@JSON_OPTION
def recompress(
    path: str,
    codec: str,
    verify: bool,
    num_threads: int | None,
    storage_options: dict[str, Any],
    allow_bases: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write the trajectories of the buffer at PATH anew, ids kept.

    One commit lists the new archives in place of the old ones, which zarrbuf vacuum
    gives back.
    """
    with show_progress("recompress") as progress:
        done = zarrbuf.recompress(
            path,
            codec=codec,
            verify=verify,
            num_threads=num_threads,
            storage_options=storage_options,
            allow_bases=allow_bases,
            progress=progress,
        )
    _report(done, as_json=as_json)


def _report(done: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(done.to_json())
        return
    click.echo(
        f"{printable(done.destination)}: {done.num_trajectories} trajectories, "
        f"{done.total_samples} samples, {done.source_format} -> "
        f"{done.destination_format}, {format_bytes(done.source_bytes)} -> "
        f"{format_bytes(done.destination_bytes)}"
        f"{_say_ratio(done.source_bytes, done.destination_bytes)}"
    )
    for name, count in done.fields.items():
        click.echo(f"  {printable(name):40} bit-exact in {count}")


def _say_ratio(before: int, after: int) -> str:
    """Say how sizes in bytes compare; nothing if there is nothing to compare."""
    if not before or not after:
        return ""
    if after <= before:
        return f" (1/{before / after:.1f} of the size)"
    return f" ({after / before:.1f} times the size)"


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("directory", metavar="DIRECTORY")
@AT_OPTION
@STORAGE_OPTION
@ALLOW_BASE_OPTION
@JSON_OPTION
def export(
    source: str,
    directory: str,
    version: int | None,
    storage_options: dict[str, Any],
    allow_bases: tuple[str, ...],
    as_json: bool,
) -> None:
    """Copy the archives of SRC to DIRECTORY under the names that ls shows."""
    with show_progress("export") as progress:
        names = zarrbuf.export(
            source,
            directory,
            version=version,
            storage_options=storage_options,
            allow_bases=allow_bases,
            progress=progress,
        )
    if as_json:
        print_json({"directory": directory, "names": names})
        return
    click.echo(f"{printable(directory)}: {len(names)} archives")
