"""Part `merging`: buffers of a million trajectories in all, merged by reference.

The rows are made up, each with a uuid, sizes and tags of its own as real ones have; no
archive is there, and none is needed. Everything that is timed runs in fresh processes.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.measures.children import run_module
from benchmarks.measures.memory import load_libraries, resident_bytes
from benchmarks.options import Options, say
from benchmarks.tables import markdown
from benchmarks.tables.markdown import Target, mb
from benchmarks.timing import timed
from zarrbuf import TrajectoryReplayBuffer, merge, split
from zarrbuf.archive.spec import FieldSpec
from zarrbuf.manifest.changes import listing_actions
from zarrbuf.manifest.columns import TextColumn
from zarrbuf.manifest.commit_log import create_log
from zarrbuf.manifest.rows import FIXED_DTYPE, Rows
from zarrbuf.manifest.snapshot import schema_id
from zarrbuf.storage.local import LocalStorage

NUM_BUFFERS: Final = 8
SCHEMA: Final = {"rewards": FieldSpec("float32", (), "step")}
CONDITION: Final = "success_rate > 0.5 and mean_return > 0"
Numbers = Mapping[str, Any]


def run(options: Options) -> list[str]:
    """Measure and return the figures as Markdown."""
    num_rows = options.few(125_000, 2000)
    repeats = options.few(3, 1)
    found: list[Numbers] = []
    with options.folder(needed_bytes=1e9) as folder:
        for number in range(NUM_BUFFERS):
            make_buffer(folder / f"rank_{number}", num_rows, seed=number)
        say(f"listed {NUM_BUFFERS} x {num_rows:,} trajectories")
        for number in range(repeats):
            numbers = run_module(
                "benchmarks.measures.merging", str(folder), str(number)
            )
            found.append(numbers)
            say(f"merged in {numbers['merge_seconds']:.2f} s")
    return render(NUM_BUFFERS * num_rows, found)


def make_buffer(folder: Path, num_rows: int, *, seed: int) -> None:
    """Make a buffer that lists so many trajectories, none of which is there."""
    storage = LocalStorage(folder)
    rows = make_rows(num_rows, np.random.default_rng(seed))
    create_log(
        storage,
        build=lambda now: [
            now.meta_action(schemas={schema_id(SCHEMA): SCHEMA}),
            *listing_actions(rows, storage),
        ],
    )


def make_rows(count: int, rng: np.random.Generator) -> Rows:
    """Return rows as a long run writes them."""
    fixed = np.zeros(count, FIXED_DTYPE)
    fixed["uuid"] = rng.integers(0, 256, (count, 16), np.uint8).view("V16")[:, 0]
    fixed["trajectory_id"] = np.arange(count)
    fixed["T"], fixed["B"], fixed["num_samples"] = 64, 8, 512
    fixed["size"] = rng.integers(3_000_000, 4_000_000, count)
    fixed["crc"] = rng.integers(0, 2**32, count)
    fixed["schema"] = int(schema_id(SCHEMA), 16)
    columns = {
        "intervened": rng.random(count).round(5),
        "mean_length": rng.integers(20, 65, count),
        "mean_return": rng.normal(0, 10, count).round(4),
        "success_rate": rng.integers(0, 9, count) / 8,
        "weights_version": np.arange(count) // 100,
    }
    values = zip(*(c.tolist() for c in columns.values()), strict=True)
    rows = (dict(zip(columns, row, strict=True)) for row in values)
    tags = [json.dumps(row, separators=(",", ":")) for row in rows]
    texts = {
        "model_weights_id": [f"0f3c_{n // 100}" for n in range(count)],
        "shape": ["[64,8,1]"] * count,
        "tags": tags,
    }
    return Rows(fixed, {name: TextColumn.of(text) for name, text in texts.items()})


def measure(folder: Path, number: str) -> Numbers:
    """Merge, open what came of it, and split it by a condition."""
    load_libraries()
    target, part = folder / f"all_{number}", folder / f"some_{number}"
    sources = [folder / f"rank_{n}" for n in range(NUM_BUFFERS)]
    merging, done = timed(merge, sources, target)
    before = resident_bytes()
    buffer = TrajectoryReplayBuffer(sample_window_size=0)
    opening, _ = timed(buffer.load_checkpoint, target)
    opened = resident_bytes() - before
    splitting, (some,) = timed(lambda: split(target, part, where=CONDITION))
    written = sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
    return {
        "rows": done.num_trajectories,
        "merge_seconds": merging,
        "open_seconds": opening,
        "open_bytes": opened,
        "split_seconds": splitting,
        "split_rows": some.num_trajectories,
        "bytes_written": written,
        "archives": sum(1 for _ in target.rglob("trajectories/*/*")),
    }


def render(num_rows: int, found: list[Numbers]) -> list[str]:
    """Return the figures as Markdown."""

    def median(name: str) -> float:
        return statistics.median(float(numbers[name]) for numbers in found)

    per_row = median("bytes_written") / num_rows
    some = [
        Target("merge by reference", 10, median("merge_seconds"), unit=" s"),
        Target("bytes written for a row", 100, per_row),
        Target("open what came of it", 1, median("open_seconds"), unit=" s"),
        Target("archives opened or copied", 0, median("archives")),
    ]
    rows = [
        ("merge", f"{median('merge_seconds'):.2f} s"),
        ("open", f"{median('open_seconds'):.2f} s"),
        ("resident memory added by that", f"{mb(median('open_bytes'))} MB"),
        (
            f"split where `{CONDITION}`, {median('split_rows'):,.0f} rows",
            f"{median('split_seconds'):.2f} s",
        ),
    ]
    return [
        f"{NUM_BUFFERS} buffers of {num_rows // NUM_BUFFERS:,} trajectories each.",
        markdown.targets(some),
        markdown.table(("zarrbuf", ""), rows),
    ]


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2])))
