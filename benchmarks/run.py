"""`python -m benchmarks.run`: measure, print, and put the figures into a document."""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.contenders import (
    Contender,
    Memory,
    MemoryReused,
    TorchrlMemmap,
    WholeFiles,
    Zarrbuf,
    ZarrbufZstd,
)
from benchmarks.data import DataSet
from benchmarks.measure import (
    Results,
    check_equal,
    measure_memory,
    measure_overheads,
    sample_all,
    write_all,
)
from benchmarks.readers import Tensorstore, ZarrPython

BATCH_SIZE = 256
NOISE = 2.0
_STARTED = time.monotonic()


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"[{time.monotonic() - _STARTED:6.1f} s] {text}", flush=True)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run")
    parser.add_argument("--trajectories", type=int, default=None, metavar="N")
    parser.add_argument("--rounds", type=int, default=None, metavar="N")
    parser.add_argument(
        "--noise", action="store_true", help="measure noisy frames as well"
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
    options.trajectories = options.trajectories or (3 if options.quick else 40)
    options.rounds = options.rounds or (2 if options.quick else 30)
    if options.output is None and not options.quick:
        options.output = Path(__file__).parent.parent / "docs" / "performance.md"
    return options


def command_line(options: argparse.Namespace) -> str:
    """Return the command that repeats a run, without paths of this machine."""
    words = ["python -m benchmarks.run"]
    words += [f"--trajectories {options.trajectories}", f"--rounds {options.rounds}"]
    words += [f"--{name}" for name in ("noise", "quick") if getattr(options, name)]
    return " ".join(words)


def check_space(folder: Path, data: DataSet) -> None:
    """Leave before hours are lost if the disk cannot hold the data twice."""
    needed = 2.5 * data.num_samples * (4 * 128 * 128 * 3 + 1024)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SystemExit(
            f"{folder} has {free / 1e9:.1f} GB free; {needed / 1e9:.1f} GB are "
            "needed, name another folder with --work-dir"
        )


def make_contenders(folder: Path, data: DataSet) -> list[Contender]:
    """Make all contenders, zarrbuf first; readers of its archives come last.

    Noisy frames are not read by other libraries: tensorstore 0.1.86 waits for ever for
    a chunk of a shard of several megabytes in a zip, whoever wrote the zip.
    """
    zarrbuf = Zarrbuf(folder / "zarrbuf", data)
    memory = Memory(folder / "memory", data)
    contenders: list[Contender] = [
        zarrbuf,
        ZarrbufZstd(folder / "zstd", data),
        TorchrlMemmap(folder / "torchrl", data),
        WholeFiles(folder / "whole", data),
        memory,
        MemoryReused(memory),
    ]
    if not data.noise:
        contenders += [Tensorstore(zarrbuf), ZarrPython(zarrbuf)]
    return contenders


def measure(options: argparse.Namespace, *, noise: float) -> Results:
    """Measure one data set; what was stored for it is deleted."""
    steps = 16 if options.quick else 64
    data = DataSet(options.trajectories, num_steps=steps, noise=noise)
    results = Results(data, BATCH_SIZE)
    with tempfile.TemporaryDirectory(
        prefix="zarrbuf-bench-", dir=options.work_dir
    ) as name:
        folder = Path(name)
        check_space(folder, data)
        contenders = make_contenders(folder, data)
        write_all(contenders, results, say)
        for one in contenders:
            one.open()
        check_equal(contenders, BATCH_SIZE, say)
        rare_rounds = 1 if options.quick else 5
        sample_all(
            contenders,
            results,
            say,
            rounds=options.rounds,
            rare_rounds=min(rare_rounds, options.rounds),
        )
        for one in contenders:
            one.close()
        if not noise:
            measure_overheads(folder, results, repeats=3 if options.quick else 30)
            say("measured the costs that do not depend on size")
            measure_memory(folder, results, batches=options.rounds)
            say("measured memory in fresh processes")
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report."""
    options = parse_arguments(arguments)
    logging.getLogger("torchrl").setLevel(logging.WARNING)
    results = measure(options, noise=0.0)
    noisy = measure(options, noise=NOISE) if options.noise else None
    section = report.render(command_line(options), results, noisy)
    print(f"\n{section}\n")
    if options.output is not None:
        old = options.output.read_text() if options.output.exists() else ""
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(report.replace_section(old, section))
        say(f"wrote {options.output}")


if __name__ == "__main__":
    main()
