"""Part `states`: buffers without images, where nothing hides what drawing costs.

A sample is 243 bytes, so a batch is all planning and gathering. Once from few long
trajectories, once from many short ones, where each sample lies in another file.
"""

from __future__ import annotations

from typing import Final

from benchmarks.contenders.contract import Contender
from benchmarks.contenders.from_files import (
    WITH_OUT,
    TorchrlMemmap,
    WholeFiles,
    Zarrbuf,
    ZarrbufReader,
)
from benchmarks.contenders.in_memory import Memory, MemoryFresh, MemoryReused
from benchmarks.data import DataSet
from benchmarks.measures.rounds import check_equal, draw_rounds, store_all
from benchmarks.options import Options, say
from benchmarks.tables import markdown
from benchmarks.tables.markdown import Target
from benchmarks.timing import Drawn

COUNT: Final = 4096


def run(options: Options) -> list[str]:
    """Measure and return the figures as Markdown."""
    cases = [
        DataSet(options.few(40, 3), 64, 8, frame=None),
        DataSet(options.few(2000, 20), 64, 1, frame=None),
    ]
    found = {data.content: draw(data, options) for data in cases}
    some = [
        Target(
            f"`sample({COUNT})` / TorchRL memmap, {content}",
            1,
            drawn.times.ratio(Zarrbuf.name, TorchrlMemmap.name),
        )
        for content, drawn in found.items()
    ]
    parts = [markdown.targets(some)]
    for content, drawn in found.items():
        parts += [f"{content}:", markdown.sampling(drawn, Zarrbuf.name)]
    return parts


def draw(data: DataSet, options: Options) -> Drawn:
    """Store one data set with everyone, and draw from it.

    zarr-python and tensorstore are left out: small fields of theirs are held decoded
    in memory, which is the row of memory.
    """
    with options.folder(needed_bytes=1e9) as folder:
        zarrbuf = Zarrbuf(folder / "zarrbuf", data)
        memory = Memory(folder / "memory", data)
        contenders: list[Contender] = [
            zarrbuf,
            ZarrbufReader(zarrbuf, WITH_OUT, reuse=True),
            TorchrlMemmap(folder / "torchrl", data),
            WholeFiles(folder / "whole", data),
            memory,
            MemoryReused(memory),
            MemoryFresh(memory),
        ]
        store_all(contenders, data)
        say(f"stored {data.content}")
        check_equal(contenders, memory, COUNT)
        drawn = draw_rounds(
            contenders, COUNT, rounds=options.num_rounds(100), rare_rounds=2
        )
        for one in contenders:
            one.close()
    return drawn
