"""Part `scale`: a buffer that lists a million trajectories.

The list is as long as it says; the archives are few, and its rows name them over and
over: what is measured here is the list, not the disk. Everything runs in fresh
processes, the page cache hot.

A process adds to a short and to a long list in turn, so that both meet the same
phases of the disk. Another may open no more than 256 files at once.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.data import DataSet
from benchmarks.measures.children import run_module
from benchmarks.measures.memory import load_libraries, resident_bytes
from benchmarks.options import Options, say
from benchmarks.tables import markdown
from benchmarks.tables.markdown import Target, mb, ms
from benchmarks.timing import timed
from zarrbuf import Trajectory, TrajectoryReplayBuffer
from zarrbuf.manifest.changes import listing_actions
from zarrbuf.manifest.layout import CHECKPOINT_DIR, MANIFEST_DIR, SEGMENT_DIR
from zarrbuf.manifest.log_checkpoints import write_checkpoint
from zarrbuf.manifest.rows import Rows
from zarrbuf.storage.local import LocalStorage
from zarrbuf.stores.opening import open_or_create_log_store

FEW: Final = 10
WINDOW: Final = 100_000
MAX_FILES: Final = 256
COUNT: Final = 256
LIST_DIRS: Final = (MANIFEST_DIR, CHECKPOINT_DIR, SEGMENT_DIR)
Numbers = Mapping[str, Any]


def run(options: Options) -> list[str]:
    """Measure and return the figures as Markdown."""
    num_rows = options.few(1_000_000, 70_000)
    archives = options.few(1000, 300)
    repeats = options.few(30, 3)
    with options.folder(needed_bytes=2e9) as folder:
        few, many = folder / "few", folder / "many"
        make_buffer(few, archives=FEW, num_rows=FEW)
        make_buffer(many, archives=archives, num_rows=num_rows)
        lists = sum(p.stat().st_size for d in LIST_DIRS for p in (many / d).iterdir())
        say(f"listed {num_rows:,} trajectories")
        found: dict[str, Numbers] = {}
        for kind, where in (
            ("open", [many]),
            ("window", [many]),
            ("add", [few, many]),
        ):
            arguments = (kind, str(repeats), *map(str, where))
            found[kind] = run_module("benchmarks.measures.scale", *arguments)
            say(f"measured in a process of its own: {kind}")
    return render(num_rows, archives, lists, found)


def small_trajectories(count: int) -> DataSet:
    """Return trajectories of two steps, with small images."""
    return DataSet(count, num_steps=2, num_envs=1, frame=(32, 32))


def make_buffer(folder: Path, *, archives: int, num_rows: int) -> None:
    """Make a buffer that lists so many rows over so many archives.

    The rows are committed as every large change is, in segments; a checkpoint follows,
    as one does after every 256th commit.
    """
    with TrajectoryReplayBuffer(auto_save=True, auto_save_path=folder) as buffer:
        buffer.add_trajectories(list(small_trajectories(archives)))
    storage = LocalStorage(folder)
    store = open_or_create_log_store(storage, seed=1, codec="lz4")
    added = repeat_rows(store.rows, num_rows - archives)
    if len(added):
        store.log.commit(lambda now: listing_actions(added, storage), op="add")
    write_checkpoint(storage, store.log.snapshot)


def repeat_rows(rows: Rows, count: int) -> Rows:
    """Return `count` more rows for the same archives, with ids that go on."""
    more = rows.take(np.arange(count) % len(rows))
    fixed = more.fixed.copy()
    fixed["trajectory_id"] = int(rows.trajectory_ids.max()) + 1 + np.arange(count)
    return Rows(fixed, more.texts)


def measure_open(repeats: int, folder: str) -> Numbers:
    """Open a buffer and draw from all of it."""
    load_libraries()
    before = resident_bytes()
    buffer = TrajectoryReplayBuffer(sample_window_size=0)
    opening, _ = timed(buffer.load_checkpoint, folder)
    opened = resident_bytes() - before
    first, _ = timed(buffer.sample, COUNT)
    index = []
    for _ in range(max(repeats, 10)):
        buffer.sample(COUNT)
        index.append(buffer.get_stats(detailed=True)["last_plan_seconds"])
    with TrajectoryReplayBuffer(
        sample_window_size=0, auto_save=True, auto_save_path=folder
    ) as own:
        refresh = [timed(own.refresh)[0] for _ in range(repeats)]
    return {
        "rows": len(buffer),
        "open_seconds": opening,
        "open_bytes": opened,
        "first_seconds": first,
        "index_seconds": statistics.median(index),
        "refresh_seconds": statistics.median(refresh),
    }


def measure_window(repeats: int, folder: str) -> Numbers:
    """Sample a large window in a process that may open few files."""
    load_libraries()
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
    buffer = TrajectoryReplayBuffer(sample_window_size=WINDOW)
    buffer.load_checkpoint(folder)
    times = [timed(buffer.sample, COUNT)[0] for _ in range(max(repeats, 10))]
    return {
        "rows": len(buffer),
        "seconds": statistics.median(times),
        "opened": buffer.get_stats(detailed=True)["archives_opened"],
        "files": len(os.listdir("/proc/self/fd")),
    }


def measure_add(repeats: int, few: str, many: str) -> Numbers:
    """Add to a short and to a long list in turn, each addition made durable."""
    load_libraries()
    made = iter(small_trajectories(repeats + 1))
    buffers = {
        name: TrajectoryReplayBuffer(
            sample_window_size=0, auto_save=True, auto_save_path=folder
        )
        for name, folder in (("few", few), ("many", many))
    }
    added: dict[str, list[float]] = {name: [] for name in buffers}
    index: dict[str, list[float]] = {name: [] for name in buffers}
    for number, trajectory in enumerate(made):
        order = list(buffers) if number % 2 else list(buffers)[::-1]
        for name in order:
            buffer = buffers[name]
            seconds, _ = timed(_add, buffer, trajectory)
            # What is drawn from has changed, so it is numbered anew.
            numbering, _ = timed(lambda buffer=buffer: buffer.total_samples)
            buffer.sample(COUNT)
            if number:
                planning = buffer.get_stats(detailed=True)["last_plan_seconds"]
                added[name].append(seconds)
                index[name].append(numbering + planning)
    for buffer in buffers.values():
        buffer.close()
    pairs = zip(added["many"], added["few"], strict=True)
    return {
        "few_seconds": statistics.median(added["few"]),
        "many_seconds": statistics.median(added["many"]),
        "ratio": statistics.median(many / few for many, few in pairs),
        "index_seconds": statistics.median(index["many"]),
    }


def _add(buffer: TrajectoryReplayBuffer, trajectory: Trajectory) -> None:
    buffer.add_trajectories([trajectory])
    buffer.flush()


def render(
    num_rows: int, archives: int, list_bytes: int, found: Mapping[str, Numbers]
) -> list[str]:
    """Return the figures as Markdown."""
    opened, window, added = (found[kind] for kind in ("open", "window", "add"))
    index = max(opened["index_seconds"], added["index_seconds"]) * 1e3
    some = [
        Target(
            f"`add_trajectories` and `flush`: {num_rows:,} rows / {FEW} rows",
            2,
            added["ratio"],
        ),
        Target("index work of a draw over all rows", 5, index, unit=" ms"),
        Target(
            f"rows drawn from with at most {MAX_FILES} open files",
            min(WINDOW, num_rows),
            window["rows"],
            at_least=True,
        ),
    ]
    rows = [
        ("open", f"{opened['open_seconds']:.2f} s"),
        ("resident memory added by that", f"{mb(opened['open_bytes'])} MB"),
        ("files of the list", f"{mb(list_bytes)} MB"),
        (f"first `sample({COUNT})`", f"{ms(opened['first_seconds'])} ms"),
        ("index work of a draw", f"{ms(opened['index_seconds'])} ms"),
        ("index work of a draw, one row added", f"{ms(added['index_seconds'])} ms"),
        ("`refresh` with nothing new", f"{ms(opened['refresh_seconds'])} ms"),
        (f"add and flush, {FEW} rows listed", f"{ms(added['few_seconds'])} ms"),
        ("add and flush, all rows listed", f"{ms(added['many_seconds'])} ms"),
        (
            f"`sample({COUNT})`, window of {window['rows']:,} rows, at most "
            f"{MAX_FILES} open files",
            f"{ms(window['seconds'])} ms",
        ),
        ("archives opened for that", f"{window['opened']:,}"),
        ("files open after that", f"{window['files']}"),
    ]
    return [
        f"{num_rows:,} rows that name {archives:,} archives.",
        markdown.targets(some),
        markdown.table(("zarrbuf", ""), rows),
    ]


KINDS: Final[Mapping[str, Callable[..., Numbers]]] = {
    "open": measure_open,
    "window": measure_window,
    "add": measure_add,
}


def main(kind: str, repeats: str, *folders: str) -> None:
    """Measure and print."""
    print(json.dumps(KINDS[kind](int(repeats), *folders)))


if __name__ == "__main__":
    main(*sys.argv[1:])
