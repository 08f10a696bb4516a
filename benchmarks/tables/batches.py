"""The figures of part `batches` -> Markdown. Pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Final

from benchmarks.contenders.from_files import TorchrlMemmap, WholeFiles, Zarrbuf
from benchmarks.contenders.in_memory import CopiedIn, MemoryFresh, MemoryReused
from benchmarks.data import DataSet
from benchmarks.options import BATCH_SIZE
from benchmarks.tables import markdown
from benchmarks.tables.markdown import Target, mb, median_ms, ms, times
from benchmarks.timing import Drawn, Times

_RLINF: Final = (CopiedIn.name, WholeFiles.name)
_RLINF_NAME: Final = "copied into RLinf's cache and `torch.save`"


@dataclass
class Results:
    """What was measured.

    Attributes:
        data: the data set.
        raw_bytes: bytes of all tensors.
        write: seconds to store a trajectory; a round is a trajectory.
        drawn: batches; None until they are drawn.
        disk: bytes stored by each contender that stores files.
        add_seconds: how long `add_trajectories` held its caller.
        sync_seconds: what fsync of each `.pt` file took.
        figures: single figures by name, seconds.
    """

    data: DataSet
    raw_bytes: int = 0
    write: Times = field(default_factory=Times)
    drawn: Drawn = field(default_factory=lambda: Drawn(BATCH_SIZE))
    disk: dict[str, int] = field(default_factory=dict)
    add_seconds: list[float] = field(default_factory=list)
    sync_seconds: list[float] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)


def render(results: Results, *, with_out: str) -> list[str]:
    """Return the figures of the part.

    Args:
        results: what was measured.
        with_out: name of the contender that is given its batch back.
    """
    return [
        f"{results.data.content}: {mb(results.raw_bytes)} MB raw.",
        markdown.targets(find_targets(results, with_out=with_out)),
        "Sampling:",
        markdown.sampling(results.drawn, Zarrbuf.name),
        "Storing:",
        storing(results),
        "Other costs:",
        costs(results),
    ]


def find_targets(results: Results, *, with_out: str) -> list[Target]:
    """Return what was promised of batches and of storing."""
    ours, drawn, write = Zarrbuf.name, results.drawn.times, results.write
    each = results.raw_bytes / results.data.num_trajectories
    smaller = results.disk[WholeFiles.name] / results.disk[ours]
    return [
        Target("batch / TorchRL memmap", 0.5, drawn.ratio(ours, TorchrlMemmap.name)),
        Target(
            "batch / `index_select` into fresh pages",
            0.5,
            drawn.ratio(ours, MemoryFresh.name),
        ),
        Target(
            "batch with `out=` / copy limit",
            3,
            drawn.ratio(with_out, MemoryReused.name),
        ),
        Target(
            "batch: whole files / zarrbuf",
            50,
            drawn.ratio(WholeFiles.name, ours),
            at_least=True,
        ),
        Target("`.pt` bytes / zarrbuf bytes", 20, smaller, at_least=True),
        Target("storing, raw GB/s", 1, each / write.median(ours) / 1e9, at_least=True),
        Target(
            "storing: `torch.save` / zarrbuf",
            4,
            write.ratio(WholeFiles.name, ours),
            at_least=True,
        ),
        Target(f"storing / {_RLINF_NAME}", 1.2, write.ratio(ours, *_RLINF)),
    ]


def storing(results: Results) -> str:
    """Return the table of storing and of sizes."""
    write, rows = results.write, []
    each = results.raw_bytes / results.data.num_trajectories
    for name in write.names:
        if name not in results.disk and name != CopiedIn.name:
            continue
        size = results.disk.get(name)
        rows.append(
            (
                name,
                ms(write.median(name)),
                f"{each / write.median(name) / 1e9:.2f}",
                times(write.ratio(name, Zarrbuf.name)),
                mb(size) if size else "",
                f"{results.raw_bytes / size:.1f}" if size else "",
            )
        )
    head = (
        "one trajectory",
        "median ms",
        "raw GB/s",
        "time / zarrbuf's",
        "MB, all",
        "raw / stored",
    )
    return markdown.table(head, rows)


def _durable_ratio(results: Results) -> float:
    """Return how much longer `torch.save` and fsync take than zarrbuf."""
    return statistics.median(
        (each[WholeFiles.name] + synced) / each[Zarrbuf.name]
        for each, synced in zip(results.write.rounds, results.sync_seconds, strict=True)
    )


def costs(results: Results) -> str:
    """Return the table of what else it costs."""
    figures = results.figures
    flush_seconds = [
        total - added
        for total, added in zip(
            results.write.of(Zarrbuf.name), results.add_seconds, strict=True
        )
    ]
    rows = [
        ("`add_trajectories` holds its caller", median_ms(results.add_seconds)),
        ("then `flush`, fsync included", median_ms(flush_seconds)),
        ("`torch.save` and fsync / zarrbuf", f"{_durable_ratio(results):.2f}"),
        (
            f"open the buffer and {results.data.num_trajectories} archives",
            f"{ms(figures['open'])} ms",
        ),
        ("metadata of one trajectory", f"{ms(figures['metadata'])} ms"),
        (
            "the same made with zarr-python",
            f"{ms(figures['metadata with zarr-python'])} ms",
        ),
        (
            "`add_trajectories` and `flush`, a few bytes a field",
            f"{ms(figures['smallest append'])} ms",
        ),
    ]
    return markdown.table(("zarrbuf", ""), rows)
