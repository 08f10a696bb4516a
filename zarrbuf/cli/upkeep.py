"""Commands that look after a buffer: remove, prune, vacuum, log.

One command, one call, then text or JSON.
"""

from __future__ import annotations

from typing import Any, Final

import click

import zarrbuf
from zarrbuf.cli.terminal import (
    ALLOW_BASE_OPTION,
    JSON_OPTION,
    STORAGE_OPTION,
    format_bytes,
    format_time,
    print_json,
    show_progress,
)
from zarrbuf.common.printing import printable
from zarrbuf.manifest.layout import TRAJECTORY_DIR

_SHOWN: Final = 20
"""Names of archives that are shown to people; --json has all."""


@click.command()
@click.argument("path")
@click.option("--ids", required=True, help="Trajectories by id: 3,7-20")
@STORAGE_OPTION
@JSON_OPTION
def remove(path: str, ids: str, storage_options: dict[str, Any], as_json: bool) -> None:
    """Take trajectories off the list of the buffer at PATH; deletes no file."""
    done = zarrbuf.remove(path, ids, storage_options=storage_options)
    _report_removal(done, as_json=as_json)


@click.command()
@click.argument("path")
@click.option("--keep-newest", type=int, help="Keep the last so many.")
@click.option("--keep-bytes", type=int, help="Keep the last ones of so many bytes.")
@click.option("--keep", metavar="EXPR", help="Keep those where 'success_rate > 0'.")
@STORAGE_OPTION
@JSON_OPTION
def prune(
    path: str,
    keep_newest: int | None,
    keep_bytes: int | None,
    keep: str | None,
    storage_options: dict[str, Any],
    as_json: bool,
) -> None:
    """Take all but some trajectories off the list of the buffer at PATH."""
    done = zarrbuf.prune(
        path,
        keep_newest=keep_newest,
        keep_bytes=keep_bytes,
        keep=keep,
        storage_options=storage_options,
    )
    _report_removal(done, as_json=as_json)


def _report_removal(done: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(done.to_json())
        return
    click.echo(
        f"{printable(done.path)}: {done.num_removed} trajectories taken off the list, "
        f"{done.num_left} left; {format_bytes(done.num_bytes)} can be given back by "
        "zarrbuf vacuum"
    )


@click.command()
@click.argument("path")
@click.option("--delete", is_flag=True, help="Delete; without, say what would be.")
@click.option(
    "--grace-hours",
    type=float,
    default=24.0,
    show_default=True,
    help="Keep what was listed or written within so many hours.",
)
@STORAGE_OPTION
@JSON_OPTION
def vacuum(
    path: str,
    delete: bool,
    grace_hours: float,
    storage_options: dict[str, Any],
    as_json: bool,
) -> None:
    """Delete archives that no list, no reader and no other buffer needs."""
    with show_progress("vacuum") as progress:
        done = zarrbuf.vacuum(
            path,
            delete=delete,
            grace_s=3600 * grace_hours,
            storage_options=storage_options,
            progress=progress,
        )
    if as_json:
        print_json(done.to_json())
        return
    for name in done.names[:_SHOWN]:
        click.echo(printable(name))
    if len(done.names) > _SHOWN:
        click.echo(f"... and {len(done.names) - _SHOWN} more")
    num_archives = sum(name.startswith(TRAJECTORY_DIR) for name in done.names)
    counts = {
        "archives": num_archives,
        "segments": len(done.names) - num_archives,
        "temporary files": done.num_temporary,
    }
    found = [f"{n} {kind}" for kind, n in counts.items() if n or kind == "archives"]
    what = "deleted" if done.is_deleted else "would be deleted (--delete does it)"
    until = "" if done.next_ms is None else f" until {format_time(done.next_ms)}"
    click.echo(
        f"{printable(done.path)}: {', '.join(found)} {what}; off the list but kept: "
        f"{done.num_kept} for readers and other buffers, {done.num_young} too young"
        f"{until}"
    )


@click.command()
@click.argument("path")
@click.option("--apply", is_flag=True, help="Do it; without, say what would be done.")
@STORAGE_OPTION
@ALLOW_BASE_OPTION
@JSON_OPTION
def repair(
    path: str,
    apply: bool,
    storage_options: dict[str, Any],
    allow_bases: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make the damaged buffer or folder at PATH usable again."""
    with show_progress("repair") as progress:
        done = zarrbuf.repair(
            path,
            apply=apply,
            storage_options=storage_options,
            allow_bases=allow_bases,
            progress=progress,
        )
    if as_json:
        print_json(done.to_json())
        return
    for problem in done.problems:
        click.echo(f"damaged: {printable(problem)}")
    for step in done.steps:
        click.echo(f"{'done' if apply else 'to do'}: {printable(step)}")
    for name in done.orphans[:_SHOWN]:
        click.echo(f"in no list: {printable(name)}")
    if len(done.orphans) > _SHOWN:
        click.echo(f"... and {len(done.orphans) - _SHOWN} more")
    hint = "; --apply does it" if done.steps and not apply else ""
    click.echo(
        f"{printable(done.path)}: {done.num_trajectories} trajectories listed "
        f"{'now' if apply or not done.steps else 'then'}{hint}"
    )


@click.command()
@click.argument("path")
@click.option("--by", required=True, help="Uuid or URL of the other buffer.")
@STORAGE_OPTION
@JSON_OPTION
def unpin(path: str, by: str, storage_options: dict[str, Any], as_json: bool) -> None:
    """Let go of what the buffer at PATH keeps for another one that is gone."""
    gone = zarrbuf.unpin(path, by, storage_options=storage_options)
    if as_json:
        print_json({"path": path, "let_go": gone})
        return
    for one in gone:
        click.echo(f"{printable(path)}: keeps nothing for {printable(one)} any more")


@click.command(name="log")
@click.argument("path")
@STORAGE_OPTION
@JSON_OPTION
def show_log(path: str, storage_options: dict[str, Any], as_json: bool) -> None:
    """List the commits of the buffer at PATH."""
    commits = zarrbuf.read_history(path, storage_options=storage_options)
    if as_json:
        print_json({"path": path, "commits": commits})
        return
    for one in commits:
        changes = [
            f"{sign}{one[name]}"
            for name, sign in (("num_added", "+"), ("num_removed", "-"))
            if one[name]
        ]
        if one["num_vacuumed"]:
            changes.append(f"{one['num_vacuumed']} archives deleted")
        changes += [f"pinned by {by}" for by in one["pins"]]
        changes += [f"let go by {by}" for by in one["unpins"]]
        text = f"{one['op']:12} {', '.join(changes):16} {one['writer']}"
        click.echo(f"{one['version']:6} {one['time'][:19]} {printable(text)}")
