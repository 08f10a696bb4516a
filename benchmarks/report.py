"""Results -> Markdown. Pure: knows what figures mean, not how they were taken."""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import torch

from benchmarks.contenders import Memory, TorchrlMemmap, WholeFiles, Zarrbuf
from benchmarks.measure import Results

BEGIN: Final = "<!-- bench:begin -->"
END: Final = "<!-- bench:end -->"
_PACKAGES: Final = ("numpy", "zarr", "numcodecs", "tensorstore", "torchrl")
Row = Sequence[str]


def table(head: Row, rows: Sequence[Row]) -> str:
    """Return a Markdown table; the first column is text, the others are figures."""
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def _ms(seconds: float) -> str:
    milliseconds = seconds * 1e3
    return f"{milliseconds:,.1f}" if milliseconds < 100 else f"{milliseconds:,.0f}"


def _mb(num_bytes: float) -> str:
    megabytes = num_bytes / 1e6
    return f"{megabytes:,.1f}" if megabytes < 100 else f"{megabytes:,.0f}"


def _times(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}"


def targets(results: Results) -> str:
    """Return the table of targets with what was measured."""
    assert results.sampling is not None
    zarrbuf = Zarrbuf.name
    write, sample = results.write, results.sample
    smaller = results.disk[WholeFiles.name] / results.disk[zarrbuf]
    faster = write.ratio(WholeFiles.name, zarrbuf)
    memmap = sample.ratio(zarrbuf, TorchrlMemmap.name)
    whole = sample.ratio(WholeFiles.name, zarrbuf)
    held = results.sampling.peak / results.raw_bytes
    rows = [
        ("`.pt` bytes / zarrbuf bytes", "at least 20", smaller, smaller >= 20),
        ("`torch.save` time / zarrbuf time", "at least 3", faster, faster >= 3),
        ("batch: zarrbuf / TorchRL memmap", "at most 0.7", memmap, memmap <= 0.7),
        ("batch: whole files / zarrbuf", "at least 50", whole, whole >= 50),
        ("memory added by sampling / raw bytes", "at most 0.1", held, held <= 0.1),
    ]
    return table(
        ("target", "bound", "measured", "met"),
        [
            (name, bound, f"{value:.3g}", "yes" if met else "**no**")
            for name, bound, value, met in rows
        ],
    )


def sampling(results: Results) -> str:
    """Return the table of batches."""
    times = results.sample
    names = dict.fromkeys(name for one in times.rounds for name in one)
    rows = []
    for name in sorted(names, key=times.median):
        first, third = times.spread(name)
        rows.append(
            (
                name,
                _ms(times.median(name)),
                f"{_ms(first)} to {_ms(third)}",
                str(len(times.of(name))),
                f"{statistics.median(results.faults[name]):,.0f}",
                _times(times.ratio(name, Zarrbuf.name)),
            )
        )
    head = (
        f"`sample({results.batch_size})`",
        "median ms",
        "quartiles",
        "batches",
        "page faults",
        "time / zarrbuf's",
    )
    return table(head, rows)


def writing(results: Results) -> str:
    """Return the table of writing and of sizes."""
    times, rows = results.write, []
    each = results.raw_bytes / results.data.num_trajectories
    for name in sorted(results.disk, key=times.median):
        if name == Memory.name:
            continue
        size = results.disk[name]
        rows.append(
            (
                name,
                _ms(times.median(name)),
                f"{each / times.median(name) / 1e9:.2f}",
                _times(times.ratio(name, Zarrbuf.name)),
                _mb(size),
                f"{results.raw_bytes / size:.1f}",
            )
        )
    head = (
        "storing one trajectory",
        "median ms",
        "raw GB/s",
        "time / zarrbuf's",
        "MB, all",
        "raw / stored",
    )
    return table(head, rows)


def _durable_ratio(results: Results) -> float:
    """Return how much longer `torch.save` and fsync take than zarrbuf."""
    return statistics.median(
        (times[WholeFiles.name] + synced) / times[Zarrbuf.name]
        for times, synced in zip(
            results.write.rounds, results.sync_seconds, strict=True
        )
    )


def costs(results: Results) -> str:
    """Return the table of what else it costs."""
    assert results.sampling is not None
    assert results.keeping is not None
    figures, held = results.figures, results.sampling
    count, raw = results.data.num_trajectories, results.raw_bytes
    kept = max(1, count - 2)
    each = results.keeping.anonymous / kept
    batches = f"{results.memory_batches} batches"
    rows: list[Row] = [
        ("`add_trajectories` holds its caller", _ms_of(results.add_seconds)),
        ("then `flush`, fsync included", _ms_of(_flush_seconds(results))),
        ("`torch.save` and fsync / zarrbuf", f"{_durable_ratio(results):.2f}"),
        (f"open the buffer and {count} archives", f"{_ms(figures['open'])} ms"),
        ("metadata of one trajectory", f"{_ms(figures['metadata'])} ms"),
        (
            "the same made with zarr-python",
            f"{_ms(figures['metadata with zarr-python'])} ms",
        ),
        (
            "`add_trajectories` and `flush`, a few bytes a field",
            f"{_ms(figures['smallest append'])} ms",
        ),
        ("raw bytes of the data", f"{_mb(raw)} MB"),
        (f"{batches}: own memory added, one batch held", f"{_mb(held.anonymous)} MB"),
        (f"{batches}: pages of mapped archives added", f"{_mb(held.file_backed)} MB"),
        (f"{batches}: both at their peak", f"{_mb(held.peak)} MB"),
        (
            "`auto_save=False`: own memory a trajectory",
            f"{_mb(each)} MB, 1/{raw / count / each:.1f} of raw"
            if count > 2 and each > 0
            else "not measured",
        ),
    ]
    return table(("zarrbuf", ""), rows)


def _ms_of(seconds: Sequence[float]) -> str:
    return f"{_ms(statistics.median(seconds))} ms"


def _flush_seconds(results: Results) -> list[float]:
    totals = results.write.of(Zarrbuf.name)
    return [t - a for t, a in zip(totals, results.add_seconds, strict=True)]


def machine() -> str:
    """Describe the machine and the versions."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return (
        f"{model[1].strip() if model else platform.machine()}, {os.cpu_count()} cores, "
        f"{memory / 2**30:.0f} GiB; Python {platform.python_version()}, torch "
        f"{torch.__version__} with {torch.get_num_threads()} threads, {packages}"
    )


def render(command: str, results: Results, noisy: Results | None) -> str:
    """Return the section of docs/performance.md that holds the figures."""
    data = results.data
    parts = [
        f"`{command}` on {datetime.now(UTC):%Y-%m-%d}. {machine()}.",
        f"{data.num_trajectories} trajectories of T = {data.num_steps}, "
        f"B = {data.num_envs}, two 128x128 cameras: {_mb(results.raw_bytes)} MB raw.",
        targets(results),
        "### Sampling",
        sampling(results),
        "### Writing and size",
        writing(results),
        "### Other costs",
        costs(results),
    ]
    if noisy is not None:
        count = noisy.data.num_trajectories
        parts += [
            "### With camera noise",
            f"{count} trajectories, every value of every frame moved by noise of "
            f"standard deviation {noisy.data.noise:g}: what no codec can make small.",
            sampling(noisy),
            writing(noisy),
        ]
    return "\n\n".join(parts)


def replace_section(text: str, section: str) -> str:
    """Put a section between the markers of a document, which may be empty."""
    block = f"{BEGIN}\n{section}\n{END}"
    if BEGIN not in text:
        return f"{text.rstrip()}\n\n{block}\n".lstrip()
    start, stop = text.index(BEGIN), text.index(END) + len(END)
    return text[:start] + block + text[stop:]
