"""Part `transitions`: trajectories of one transition, kept in memory.

RLinf's RLT worker adds them one by one and draws from the newest 50,000. `run` times
adding and drawing with everyone in one process, and starts this module in a fresh
process for each, where the first batch and the memory are measured.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from benchmarks.contenders.contract import Contender
from benchmarks.contenders.from_files import TorchrlTensors, ZarrbufInMemory
from benchmarks.contenders.in_memory import Memory, MemoryReused, RlinfSlots
from benchmarks.data import Transitions, num_bytes
from benchmarks.measures.children import run_module
from benchmarks.measures.memory import give_back_freed, resident_bytes
from benchmarks.measures.rounds import check_equal, draw_rounds, in_turn
from benchmarks.options import Options, say
from benchmarks.tables import markdown
from benchmarks.tables.markdown import Target, mb, median_ms, ms
from benchmarks.timing import Drawn, Times, timed

COUNT: Final = 512
MIB: Final = 1 << 20
NUM_BATCHES: Final = 20
"""Batches that a fresh process draws before its memory is looked at."""
OTHERS: Final = (RlinfSlots, TorchrlTensors)


@dataclass(frozen=True)
class Alone:
    """One contender in a process of its own.

    Attributes:
        first: seconds of the first batch.
        memory: bytes that resident memory grew by.
        raw: bytes of the tensors that were added.
    """

    first: float
    memory: int
    raw: int


def run(options: Options) -> list[str]:
    """Measure and return the figures as Markdown."""
    data = Transitions(options.few(10_000, 600))
    adding, drawn = together(data, options)
    alone = {}
    for kind in (ZarrbufInMemory, *OTHERS):
        found = run_module(
            "benchmarks.measures.transitions", kind.__name__, str(data.num_trajectories)
        )
        alone[kind.name] = Alone(**found)
        say(f"measured in a process of its own: {kind.name}")
    return render(data, adding, drawn, alone)


def together(data: Transitions, options: Options) -> tuple[Times, Drawn]:
    """Add every trajectory to all, in turn, and draw from all."""
    with options.folder(needed_bytes=1e9) as folder:
        memory = Memory(folder, data)
        contenders: list[Contender] = [
            ZarrbufInMemory(folder, data),
            *(kind(folder, data) for kind in OTHERS),
            memory,
        ]
        adding = Times()
        for number, trajectory in enumerate(data):
            adding.rounds.append(
                {
                    one.name: timed(one.add, trajectory)[0]
                    for one in in_turn(contenders, number)
                }
            )
        say(f"added {data.content}")
        contenders.append(MemoryReused(memory))
        check_equal(contenders, memory, COUNT)
        drawn = draw_rounds(contenders, COUNT, rounds=options.num_rounds(100))
        for one in contenders:
            one.close()
    return adding, drawn


def in_own_process(kind: type[Contender], data: Transitions) -> Alone:
    """Add all and draw some batches."""
    made = list(data)
    raw = sum(map(num_bytes, made))
    give_back_freed()
    before = resident_bytes()
    contender = kind(Path(), data)
    for trajectory in made:
        contender.add(trajectory)
    first, _ = timed(contender.sample, COUNT)
    for _ in range(NUM_BATCHES):
        contender.sample(COUNT)
    give_back_freed()
    grown = resident_bytes() - before
    contender.close()
    return Alone(first, grown, raw)


def render(
    data: Transitions, adding: Times, drawn: Drawn, alone: Mapping[str, Alone]
) -> list[str]:
    """Return the figures as Markdown."""
    ours, rlinf = ZarrbufInMemory.name, RlinfSlots.name
    mine = alone[ours]
    bound = 1.5 * mine.raw / MIB + 30
    some = [
        Target("adding one", 0.2, adding.median(ours) * 1e3, unit=" ms"),
        Target(
            "memory, 1.5 times the raw bytes and 30 MiB",
            bound,
            mine.memory / MIB,
            unit=" MiB",
        ),
        Target(f"first `sample({COUNT})`", 60, mine.first * 1e3, unit=" ms"),
        Target("a later one", 3, drawn.times.median(ours) * 1e3, unit=" ms"),
        Target("a later one / RLinf's slots", 1, drawn.times.ratio(ours, rlinf)),
    ]
    rows = [
        (
            name,
            median_ms(adding.of(name)),
            f"{ms(statistics.mean(adding.of(name)))} ms",
            f"{ms(one.first)} ms",
            mb(one.memory),
        )
        for name, one in alone.items()
    ]
    return [
        f"{data.content}, {mb(mine.raw)} MB raw; a window of 50,000.",
        markdown.targets(some),
        markdown.table(
            ("in memory", "adding one", "mean", "first batch", "memory added, MB"), rows
        ),
        markdown.sampling(drawn, ours),
    ]


def main(name: str, num_trajectories: str) -> None:
    """Measure one contender and print."""
    kinds = {kind.__name__: kind for kind in (ZarrbufInMemory, *OTHERS)}
    data = Transitions(int(num_trajectories))
    print(json.dumps(asdict(in_own_process(kinds[name], data))))


if __name__ == "__main__":
    main(*sys.argv[1:])
