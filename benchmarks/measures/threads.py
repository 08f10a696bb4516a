"""Part `threads`: what a second thread that decodes is worth.

zarrbuf only, into a batch given back, so that nothing but decoding is left. Frames with
camera noise, which are the most work a byte of batch, and rendered ones.
"""

from __future__ import annotations

from typing import Final

from benchmarks.contenders.contract import Contender
from benchmarks.contenders.from_files import Zarrbuf, ZarrbufReader
from benchmarks.data import DataSet
from benchmarks.measures.rounds import check_equal, draw_rounds, store_all
from benchmarks.options import NOISE, Options, say
from benchmarks.tables import markdown
from benchmarks.tables.markdown import Target
from benchmarks.timing import Drawn

COUNT: Final = 128
ONE: Final = "one thread"
TWO: Final = "two threads"
CHOSEN: Final = "as zarrbuf chooses"


def run(options: Options) -> list[str]:
    """Measure and return the figures as Markdown."""
    number, steps = options.few(4, 1), options.few(64, 16)
    noisy = DataSet(number, steps, noise=NOISE, frame=(224, 224))
    rendered = DataSet(number, steps, frame=(224, 224))
    found = {data.content: draw(data, options) for data in (noisy, rendered)}
    faster = found[noisy.content].times.ratio(ONE, TWO)
    name = f"one thread / two threads, {noisy.content}"
    parts = [markdown.targets([Target(name, 1.5, faster, at_least=True)])]
    for content, drawn in found.items():
        parts += [f"{content}, with `out=`:", markdown.sampling(drawn, ONE)]
    return parts


def draw(data: DataSet, options: Options) -> Drawn:
    """Store one data set, and draw from it with one and with two threads."""
    needed = 2 * data.num_samples * data.sample_bytes
    with options.folder(needed_bytes=needed) as folder:
        zarrbuf = Zarrbuf(folder / "zarrbuf", data)
        store_all([zarrbuf], data)
        say(f"stored {data.content}")
        readers: list[Contender] = [
            ZarrbufReader(zarrbuf, ONE, reuse=True, num_threads=1),
            ZarrbufReader(zarrbuf, TWO, reuse=True, num_threads=2),
            ZarrbufReader(zarrbuf, CHOSEN, reuse=True, num_threads=None),
        ]
        for one in readers:
            one.open()
        check_equal(readers, zarrbuf, COUNT)
        drawn = draw_rounds(readers, COUNT, rounds=options.num_rounds(30))
        for one in (zarrbuf, *readers):
            one.close()
    return drawn
