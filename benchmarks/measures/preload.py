"""Part `preload`: the share of time that a consumer of batches is busy.

The consumer sleeps for as long as a step on an accelerator takes, which leaves the
processor to whoever draws; a consumer that computes there takes it from them. It takes
batches from a dataset that draws ahead, or draws them itself in between.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any, Final

from torchrl.data import ReplayBuffer

from benchmarks.contenders.contract import Contender
from benchmarks.contenders.from_files import TorchrlMemmap, Zarrbuf
from benchmarks.data import DataSet
from benchmarks.measures.rounds import store_all
from benchmarks.options import BATCH_SIZE, Options, say
from benchmarks.tables import markdown
from benchmarks.tables.markdown import Target, ms
from zarrbuf import PreloadReplayBufferDataset, TrajectoryReplayBuffer

STEP_SECONDS: Final = 0.02
PREFETCH: Final = 5
AHEAD: Final = "`PreloadReplayBufferDataset`"
Stream = Iterator[Any]


def run(options: Options) -> list[str]:
    """Measure and return the figures as Markdown."""
    data = DataSet(options.few(40, 3), options.few(64, 16))
    rounds, batches = options.few(5, 1), options.few(60, 4)
    needed = 2.5 * data.num_samples * data.sample_bytes
    with options.folder(needed_bytes=needed) as folder:
        zarrbuf = Zarrbuf(folder / "zarrbuf", data)
        torchrl = TorchrlMemmap(folder / "torchrl", data)
        store_all([zarrbuf, torchrl], data)
        say(f"stored {data.content}")
        buffer = TrajectoryReplayBuffer(sample_window_size=0)
        buffer.load_checkpoint(folder / "zarrbuf")
        ahead = PreloadReplayBufferDataset(
            buffer, None, BATCH_SIZE, 1, 0, prefetch_size=PREFETCH
        )
        streams: dict[str, Stream] = {
            AHEAD: iter(ahead),
            "zarrbuf, `sample` in between": _batches(zarrbuf),
            "TorchRL memmap, in between": _batches(torchrl),
            f"TorchRL memmap, `prefetch={PREFETCH}`": _torchrl_ahead(torchrl),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in streams}
        for _ in range(rounds):
            for name, stream in streams.items():
                found[name].append(consume(stream, batches))
        ahead.close()
        buffer.close()
        zarrbuf.close()
    return render(data, found)


def _batches(contender: Contender) -> Stream:
    """Yield batches drawn when they are asked for."""
    while True:
        yield contender.sample(BATCH_SIZE)


def _torchrl_ahead(torchrl: TorchrlMemmap) -> Stream:
    """Yield batches that TorchRL draws ahead in threads."""
    buffer = ReplayBuffer(
        storage=torchrl.storage, batch_size=BATCH_SIZE, prefetch=PREFETCH
    )
    while True:
        yield buffer.sample()


def consume(stream: Stream, batches: int) -> tuple[float, float]:
    """Take batches and be busy for a while with each.

    Returns:
        The share of time spent busy, and the mean seconds a batch was waited for.
    """
    next(stream)
    busy = 0.0
    started = time.perf_counter()
    for _ in range(batches):
        batch = next(stream)
        step = time.perf_counter()
        time.sleep(STEP_SECONDS)
        busy += time.perf_counter() - step
        del batch
    total = time.perf_counter() - started
    return busy / total, (total - busy) / batches


def render(data: DataSet, found: dict[str, list[tuple[float, float]]]) -> list[str]:
    """Return the figures as Markdown."""
    shares = {
        name: statistics.median(s for s, _ in some) for name, some in found.items()
    }
    rows = [
        (
            name,
            f"{shares[name]:.3f}",
            ms(statistics.median(waited for _, waited in some)),
        )
        for name, some in found.items()
    ]
    head = ("batches from", "share of time busy", "ms waited a batch")
    return [
        f"{data.content}; batches of {BATCH_SIZE}, and {ms(STEP_SECONDS)} ms of sleep "
        "with each.",
        markdown.targets(
            [Target(f"share busy, {AHEAD}", 0.9, shares[AHEAD], at_least=True)]
        ),
        markdown.table(head, rows),
    ]
