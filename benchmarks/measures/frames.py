"""Part `frames`: other sizes of frames, and other shapes of trajectories.

Rendered and with camera noise, which no codec can make small. Each case is a row; its
times are medians and its ratios are taken within a round, as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.contenders.contract import Contender
from benchmarks.contenders.from_files import (
    WITH_OUT,
    TorchrlMemmap,
    Zarrbuf,
    ZarrbufReader,
)
from benchmarks.contenders.in_memory import Memory, MemoryFresh, MemoryReused
from benchmarks.data import DataSet
from benchmarks.measures.rounds import check_equal, draw_rounds, store_all
from benchmarks.options import NOISE, Options, say
from benchmarks.tables import markdown
from benchmarks.tables.markdown import mb, ms
from benchmarks.timing import Drawn, timed
from zarrbuf import Trajectory


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        data: what is stored.
        count: samples of a batch.
    """

    data: DataSet
    count: int


@dataclass(frozen=True)
class Found:
    """What was measured of one case.

    Attributes:
        case: the case.
        drawn: its batches.
        raw_bytes: bytes of all tensors.
        disk_bytes: bytes stored by zarrbuf.
        store_seconds: seconds zarrbuf took to store them.
    """

    case: Case
    drawn: Drawn
    raw_bytes: int
    disk_bytes: int
    store_seconds: float


_SIZES: Final = (
    ((64, 64), 12, 64, 8, 256),
    ((128, 128), 6, 64, 8, 256),
    ((224, 224), 2, 64, 8, 128),
    ((480, 640), 3, 16, 4, 32),
)
"""Frame, trajectories, `T`, `B` and samples of a batch: 0.3 to 0.7 GB raw each."""
_SHAPES: Final = ((3, 1000, 1, 256), (40, 64, 1, 256), (1, 48, 64, 256))
"""Trajectories, `T`, `B` and samples of a batch, of rendered frames at 128 px."""


def make_cases(options: Options) -> list[Case]:
    """Return all cases; those of a smoke test are small and fewer."""
    if options.quick:
        small = [
            DataSet(2, 8, 2, frame=(64, 64)),
            DataSet(2, 8, 2, NOISE, frame=(64, 64)),
            DataSet(1, 140, 1),
            DataSet(1, 2, 10),
            DataSet(1, 2, 2, frame=(480, 640)),
        ]
        return [Case(data, 16) for data in small]
    sizes = [
        Case(DataSet(number, steps, envs, noise, frame=frame), count)
        for noise in (0.0, NOISE)
        for frame, number, steps, envs, count in _SIZES
    ]
    shapes = [
        Case(DataSet(number, steps, envs), count)
        for number, steps, envs, count in _SHAPES
    ]
    return [*sizes, *shapes]


def run(options: Options) -> list[str]:
    """Measure and return the figures as Markdown."""
    found = [measure(case, options) for case in make_cases(options)]
    return ["Sampling, times in ms:", sampling(found), "Storing:", storing(found)]


def measure(case: Case, options: Options) -> Found:
    """Store the data of one case with everyone, and draw from it."""
    data = case.data
    needed = 3 * data.num_samples * data.sample_bytes
    with options.folder(needed_bytes=needed) as folder:
        zarrbuf = TimedZarrbuf(folder / "zarrbuf", data)
        memory = Memory(folder / "memory", data)
        contenders: list[Contender] = [
            zarrbuf,
            ZarrbufReader(zarrbuf, WITH_OUT, reuse=True),
            TorchrlMemmap(folder / "torchrl", data),
            memory,
            MemoryReused(memory),
            MemoryFresh(memory),
        ]
        raw_bytes = store_all(contenders, data)
        say(f"stored {data.content}")
        check_equal(contenders, memory, case.count)
        drawn = draw_rounds(contenders, case.count, rounds=options.num_rounds(10))
        disk_bytes = zarrbuf.disk_bytes()
        for one in contenders:
            one.close()
    return Found(case, drawn, raw_bytes, disk_bytes, zarrbuf.seconds)


class TimedZarrbuf(Zarrbuf):
    """zarrbuf that counts how long it stores.

    Attributes:
        seconds: so far.
    """

    seconds = 0.0

    def add_many(self, trajectories: Sequence[Trajectory]) -> None:  # noqa: D102
        for trajectory in trajectories:
            self.seconds += timed(self.add, trajectory)[0]


def sampling(found: Sequence[Found]) -> str:
    """Return the table of batches, one row a case."""
    rows = []
    for one in found:
        drawn, each = one.drawn.times, one.raw_bytes / one.case.data.num_samples
        batch_bytes = each * one.case.count
        rows.append(
            (
                one.case.data.content,
                f"{one.case.count}",
                mb(batch_bytes),
                *(ms(drawn.median(name)) for name in (Zarrbuf.name, WITH_OUT)),
                f"{batch_bytes / drawn.median(WITH_OUT) / 1e9:.2f}",
                *(ms(drawn.median(name)) for name in _OTHERS),
                f"{drawn.ratio(Zarrbuf.name, TorchrlMemmap.name):.2f}",
                f"{drawn.ratio(Zarrbuf.name, MemoryFresh.name):.2f}",
                f"{drawn.ratio(WITH_OUT, MemoryReused.name):.2f}",
            )
        )
    head = (
        "trajectories",
        "samples",
        "batch MB",
        "`sample`",
        "`sample(out=)`",
        "GB/s decoded with `out=`",
        "TorchRL memmap",
        "`index_select`",
        "into fresh pages",
        "with `out=`",
        "`sample` / TorchRL",
        "`sample` / fresh pages",
        "`out=` / `out=`",
    )
    return markdown.table(head, rows)


_OTHERS: Final = (
    TorchrlMemmap.name,
    Memory.name,
    MemoryFresh.name,
    MemoryReused.name,
)


def storing(found: Sequence[Found]) -> str:
    """Return the table of sizes and of storing, one row a case."""
    rows = [
        (
            one.case.data.content,
            mb(one.raw_bytes),
            mb(one.disk_bytes),
            f"{one.raw_bytes / one.disk_bytes:.1f}",
            f"{one.raw_bytes / one.store_seconds / 1e9:.2f}",
        )
        for one in found
    ]
    head = ("trajectories", "raw MB", "stored MB", "raw / stored", "raw GB/s")
    return markdown.table(head, rows)
