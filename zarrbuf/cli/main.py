"""The command line: one command, one call, then text or JSON and an exit code.

Exit codes: 0 done; 1 what was asked for cannot be had (nothing there, damaged, full);
2 the call is wrong. An error is one line on standard error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import click

import zarrbuf
from zarrbuf.cli.convert import convert, export, recompress
from zarrbuf.cli.curate import merge, split
from zarrbuf.cli.shadow import shadow
from zarrbuf.cli.terminal import (
    ALLOW_BASE_OPTION,
    AT_OPTION,
    JSON_OPTION,
    STORAGE_OPTION,
    format_bytes,
    format_time,
    print_json,
    show_progress,
)
from zarrbuf.cli.upkeep import prune, remove, repair, show_log, unpin, vacuum
from zarrbuf.cli.view import view
from zarrbuf.common.printing import printable
from zarrbuf.errors import InvalidInputError, ZarrbufError

_EXTRAS: Final = {"matplotlib": "view", "PIL": "view", "tornado": "view", "av": "video"}
"""Packages that a command may lack -> the extra that has them."""


class _Group(click.Group):
    """Turns the errors of this project into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ZarrbufError as exc:
            click.echo(f"zarrbuf: {printable(str(exc))}", err=True)
            ctx.exit(2 if isinstance(exc, InvalidInputError) else 1)
        except ModuleNotFoundError as exc:
            package = (exc.name or "").partition(".")[0]
            if package not in _EXTRAS:
                raise
            click.echo(
                f"zarrbuf: {package} is not installed; "
                f"pip install 'zarrbuf[{_EXTRAS[package]}]'",
                err=True,
            )
            ctx.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(zarrbuf.__version__, prog_name="zarrbuf")
def main() -> None:
    """Replay buffers of trajectories as Zarr archives.

    A PATH is a buffer of zarrbuf's, or a folder of RLinf's pt or pkl files; which one
    it is is seen from what lies there.
    """


@main.command()
@click.option("--load-path", required=True, metavar="PATH", help="What to sample.")
@click.option("--num-chunks", type=int, required=True, help="Transitions to draw.")
@click.option(
    "--sample-window-size",
    type=int,
    default=0,
    show_default=True,
    help="Draw from the newest so many trajectories; 0 for all.",
)
@click.option("--cache-size", type=int, default=5, show_default=True)
@click.option("--enable-cache", is_flag=True, help="Keep small fields decoded.")
@click.option("--seed", type=int, help="Start the draws at this seed.")
@AT_OPTION
@STORAGE_OPTION
@ALLOW_BASE_OPTION
@JSON_OPTION
def sample(
    load_path: str,
    num_chunks: int,
    sample_window_size: int,
    cache_size: int,
    enable_cache: bool,
    seed: int | None,
    version: int | None,
    storage_options: dict[str, Any],
    allow_bases: tuple[str, ...],
    as_json: bool,
) -> None:
    """Draw one batch and say what is in it and what it cost."""
    buffer = zarrbuf.TrajectoryReplayBuffer(
        enable_cache=enable_cache,
        cache_size=cache_size,
        sample_window_size=sample_window_size,
        storage_options=storage_options,
        allow_bases=allow_bases,
    )
    started = time.perf_counter()
    buffer.load_checkpoint(load_path, version=version)
    opened = time.perf_counter()
    if seed is not None:
        buffer.manual_seed(seed)
    batch = buffer.sample(num_chunks=num_chunks)
    drawn = time.perf_counter()
    report: dict[str, Any] = {
        "batch": dict(_describe(batch)),
        "open_seconds": opened - started,
        "sample_seconds": drawn - opened,
        "stats": buffer.get_stats(detailed=True),
    }
    if as_json:
        print_json(report)
        return
    for name, field in report["batch"].items():
        click.echo(f"{printable(name):32} {field['shape']!s:24} {field['dtype']}")
    stats = report["stats"]
    ms = {
        "drawn": report["sample_seconds"] - stats["compile_seconds"],
        "opened": report["open_seconds"],
        "loops compiled": stats["compile_seconds"],
    }
    costs = ", ".join(f"{name} in {1e3 * value:.1f} ms" for name, value in ms.items())
    click.echo(
        f"{num_chunks} of {stats['window_samples']} samples in "
        f"{stats['window_trajectories']} trajectories: {costs}; read "
        f"{stats['chunks_read']} chunks, {format_bytes(stats['bytes_read'])} stored, "
        f"{format_bytes(stats['bytes_decoded'])} decoded"
    )


def _describe(batch: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in sorted(batch):
        value = batch[name]
        if isinstance(value, Mapping):
            yield from _describe(value, f"{prefix}{name}/")
        else:
            shape, dtype = list(value.shape), str(value.dtype).removeprefix("torch.")
            yield f"{prefix}{name}", {"shape": shape, "dtype": dtype}


@main.command()
@click.argument("path")
@AT_OPTION
@STORAGE_OPTION
@ALLOW_BASE_OPTION
@JSON_OPTION
def info(
    path: str,
    version: int | None,
    storage_options: dict[str, Any],
    allow_bases: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say what the buffer at PATH holds, in a few lines."""
    summary = zarrbuf.list_buffer(
        path, version=version, storage_options=storage_options, allow_bases=allow_bases
    ).to_json()
    if as_json:
        print_json(summary)
        return
    schemas = summary.pop("schemas", {})
    for name, value in summary.items():
        text = f"{value} ({format_bytes(value)})" if name == "bytes" else str(value)
        click.echo(f"{name:20} {printable(text)}")
    for schema_id, fields in schemas.items():
        click.echo(f"schema {schema_id}")
        for field, spec in fields.items():
            click.echo(f"  {printable(field):30} {spec['dtype']:10} {spec['shape']}")


@main.command(name="ls")
@click.argument("path")
@AT_OPTION
@STORAGE_OPTION
@ALLOW_BASE_OPTION
@JSON_OPTION
def list_trajectories(
    path: str,
    version: int | None,
    storage_options: dict[str, Any],
    allow_bases: tuple[str, ...],
    as_json: bool,
) -> None:
    """List the trajectories of the buffer at PATH."""
    listing = zarrbuf.list_buffer(
        path, version=version, storage_options=storage_options, allow_bases=allow_bases
    )
    rows = (listing.rows.row(position) for position in range(len(listing.rows)))
    if as_json:
        entries = [zarrbuf.row_json(row, name=listing.name(row)) for row in rows]
        print_json({"path": listing.path, "trajectories": entries})
        return
    for row in rows:
        size = format_bytes(row.size) if row.size else ""
        shape = f"T={row.num_steps} B={row.num_envs}"
        click.echo(f"{printable(listing.name(row)):64} {shape:16} {size}")


@main.command()
@click.argument("path")
@click.option("--deep", is_flag=True, help="Decode every trajectory, too.")
@AT_OPTION
@STORAGE_OPTION
@ALLOW_BASE_OPTION
@JSON_OPTION
def verify(
    path: str,
    deep: bool,
    version: int | None,
    storage_options: dict[str, Any],
    allow_bases: tuple[str, ...],
    as_json: bool,
) -> None:
    """Read every byte of the buffer at PATH; exit 1 if anything is wrong."""
    with show_progress("verify") as progress:
        result = zarrbuf.verify(
            path,
            deep=deep,
            version=version,
            storage_options=storage_options,
            allow_bases=allow_bases,
            progress=progress,
        )
    if as_json:
        print_json(result.to_json())
    else:
        for problem in result.problems:
            click.echo(f"damaged: {printable(problem)}")
        if result.num_evicted:
            click.echo(
                f"evicted: {result.num_evicted} trajectories, let go of by a run"
            )
        if result.unreferenced_ms is not None:
            first, last = map(format_time, result.unreferenced_ms)
            click.echo(
                f"unreferenced: {result.num_unreferenced} archives, written {first} to "
                f"{last}; zarrbuf vacuum says which can go"
            )
        click.echo(
            f"{result.num_trajectories} trajectories, {result.num_commits} commits, "
            f"{result.num_chunks} chunks, {format_bytes(result.num_bytes)} read: "
            + ("sound" if result.is_sound else f"{len(result.problems)} problems")
        )
    if not result.is_sound:
        sys.exit(1)


_CONVERSION = (convert, recompress, export)
_CURATION = (merge, split)
_UPKEEP = (remove, prune, vacuum, unpin, repair, show_log)
for _command in (*_CONVERSION, *_CURATION, *_UPKEEP, shadow, view):
    main.add_command(_command)


if __name__ == "__main__":
    main()
