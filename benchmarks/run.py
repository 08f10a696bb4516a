"""`python -m benchmarks.run`: measure, print, and put the figures into a document."""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.measures import (
    batches,
    cold,
    frames,
    memory,
    merging,
    preload,
    remote,
    scale,
    states,
    threads,
    transitions,
    viewing,
)
from benchmarks.options import Options, say
from benchmarks.tables import markdown

Part = Callable[[Options], list[str]]
PARTS: Final[Mapping[str, tuple[str, Part]]] = {
    "batches": ("Batches and storing", batches.run),
    "states": ("Without images", states.run),
    "transitions": ("Trajectories of one transition", transitions.run),
    "threads": ("Two threads", threads.run),
    "frames": ("Frames of other sizes", frames.run),
    "cold": ("Cold page cache", cold.run),
    "memory": ("Memory", memory.run),
    "preload": ("A consumer of batches", preload.run),
    "remote": ("An object store", remote.run),
    "scale": ("A million trajectories", scale.run),
    "merging": ("A million trajectories, merged", merging.run),
    "viewing": ("Frames looked at", viewing.run),
}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run")
    parser.add_argument(
        "--only",
        metavar="NAME[,NAME]",
        help=f"parts to measure, others stay as they are: {', '.join(PARTS)}",
    )
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="batches drawn by each contender"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test; its figures mean nothing"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="document for the figures; docs/performance.md, for --quick none",
    )
    parser.add_argument(
        "--work-dir", type=Path, metavar="DIR", help="where the data is stored"
    )
    options = parser.parse_args(arguments)
    options.only = options.only.split(",") if options.only else list(PARTS)
    for name in options.only:
        if name not in PARTS:
            parser.error(f"part {name!r} is not known; allowed are {', '.join(PARTS)}")
    if options.output is None and not options.quick:
        options.output = Path(__file__).parent.parent / "docs" / "performance.md"
    return options


def command_line(options: argparse.Namespace, name: str) -> str:
    """Return the command that repeats a part, without paths of this machine."""
    words = [f"python -m benchmarks.run --only {name}"]
    if options.rounds:
        words.append(f"--rounds {options.rounds}")
    if options.quick:
        words.append("--quick")
    return " ".join(words)


def measure(name: str, options: argparse.Namespace) -> None:
    """Measure one part, print its figures and write them where they belong."""
    title, part = PARTS[name]
    say(f"--- {name}: {title}")
    content = markdown.section(
        command_line(options, name),
        part(Options(options.quick, options.rounds, options.work_dir)),
    )
    print(f"\n### {title}\n\n{content}\n", flush=True)
    if options.output is not None:
        old = options.output.read_text() if options.output.exists() else ""
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(markdown.replace_section(old, name, title, content))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report; a part that fails does not keep the others from running."""
    options = parse_arguments(arguments)
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    failed = []
    for name in options.only:
        try:
            measure(name, options)
        except Exception:
            traceback.print_exc()
            failed.append(name)
    say(f"failed: {', '.join(failed)}" if failed else "done")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
