"""Figures -> Markdown. Pure but for what it says of the machine."""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import torch

from benchmarks.timing import Drawn

_PACKAGES: Final = (
    "numpy",
    "numba",
    "zarr",
    "numcodecs",
    "tensorstore",
    "torchrl",
)
Row = Sequence[str]


@dataclass(frozen=True)
class Target:
    """One thing that was promised.

    Attributes:
        name: what is measured.
        bound: the limit.
        measured: the figure.
        at_least: whether the limit is a lower one.
        unit: what follows both.
    """

    name: str
    bound: float
    measured: float
    at_least: bool = False
    unit: str = ""

    @property
    def is_met(self) -> bool:
        """Whether the figure keeps the limit."""
        if self.at_least:
            return self.measured >= self.bound
        return self.measured <= self.bound

    def row(self) -> Row:
        """Return the row of a table."""
        side = "at least" if self.at_least else "at most"
        return (
            self.name,
            f"{side} {_figure(self.bound)}{self.unit}",
            f"{_figure(self.measured)}{self.unit}",
            "yes" if self.is_met else "**no**",
        )


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def table(head: Row, rows: Sequence[Row]) -> str:
    """Return a Markdown table; the first column is text, the others are figures."""
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def targets(some: Sequence[Target]) -> str:
    """Return the table of targets with what was measured."""
    head = ("target", "bound", "measured", "met")
    return table(head, [target.row() for target in some])


def ms(seconds: float) -> str:
    """Return seconds as milliseconds."""
    milliseconds = seconds * 1e3
    if milliseconds < 1:
        return f"{milliseconds:.3f}"
    return f"{milliseconds:,.1f}" if milliseconds < 100 else f"{milliseconds:,.0f}"


def median_ms(seconds: Sequence[float]) -> str:
    """Return the median of seconds as milliseconds, with the unit."""
    return f"{ms(statistics.median(seconds))} ms"


def mb(num_bytes: float) -> str:
    """Return bytes as megabytes."""
    megabytes = num_bytes / 1e6
    return f"{megabytes:,.1f}" if megabytes < 100 else f"{megabytes:,.0f}"


def times(ratio: float) -> str:
    """Return a ratio."""
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}"


def sampling(drawn: Drawn, reference: str) -> str:
    """Return the table of batches, the fastest contender first.

    Args:
        drawn: the batches.
        reference: the contender whose time is 1.
    """
    rows = []
    for name in drawn.times.names:
        first, third = drawn.times.spread(name)
        rows.append(
            (
                name,
                ms(drawn.times.median(name)),
                f"{ms(first)} to {ms(third)}",
                str(len(drawn.times.of(name))),
                f"{statistics.median(drawn.faults[name]):,.0f}",
                times(drawn.times.ratio(name, reference)),
            )
        )
    head = (
        f"`sample({drawn.count})`",
        "median ms",
        "quartiles",
        "batches",
        "page faults",
        f"time / {reference}'s",
    )
    return table(head, rows)


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


def machine() -> str:
    """Describe the machine and the versions."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    packages = ", ".join(map(_version, _PACKAGES))
    return (
        f"{model[1].strip() if model else platform.machine()}, {os.cpu_count()} cores, "
        f"{memory / 2**30:.0f} GiB; Python {platform.python_version()}, torch "
        f"{torch.__version__} with {torch.get_num_threads()} threads, {packages}"
    )


def section(command: str, parts: Sequence[str]) -> str:
    """Return what stands between the markers of one part."""
    intro = f"`{command}` on {datetime.now(UTC):%Y-%m-%d}. {machine()}."
    return "\n\n".join([intro, *parts])


def replace_section(text: str, name: str, title: str, content: str) -> str:
    """Put the section of a part between its markers.

    Args:
        text: the document, which may be empty or lack the markers.
        name: name of the part.
        title: heading for a section that is new to the document.
        content: what shall stand there.
    """
    begin, end = f"<!-- bench:{name}:begin -->", f"<!-- bench:{name}:end -->"
    block = f"{begin}\n{content}\n{end}"
    if begin not in text:
        return f"{text.rstrip()}\n\n### {title}\n\n{block}\n".lstrip()
    start, stop = text.index(begin), text.index(end) + len(end)
    return text[:start] + block + text[stop:]
