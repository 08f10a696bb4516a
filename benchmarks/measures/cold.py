"""Part `cold`: a batch whose frames are on the disk and not in the page cache.

That is every batch of a buffer much larger than memory. It is held against reading as
many bytes, in ranges of the same sizes, at random places in one file: all ranges are
asked for before the first is waited for, as zarrbuf does. Ranges that touch are one
range on both sides, so neither pays for more requests than needed. The file is only
read; zarrbuf decodes as well, which a hot batch shows.

After each dropping `mincore` counts what is left, and `/proc/self/io` says what the
disk was read for. A disk of a virtual machine may still be cached by its host, for
both alike.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.contenders.from_files import Zarrbuf
from benchmarks.contenders.readers import BIG, STAGES
from benchmarks.data import DataSet
from benchmarks.measures import pages
from benchmarks.measures.rounds import store_all
from benchmarks.options import NOISE, Options, say
from benchmarks.tables import markdown
from benchmarks.tables.markdown import Target, mb, ms
from benchmarks.timing import Times, timed
from zarrbuf import TrajectoryReplayBuffer
from zarrbuf.stores.opening import open_store

COLD: Final = "zarrbuf"
FIRST: Final = "zarrbuf, nothing opened yet"
SUDDEN: Final = "zarrbuf, the batch before was hot"
HOT: Final = "zarrbuf, page cache hot"
BOTH: Final = "both: ranges of the file, then a hot batch"
BASELINE: Final = "the same ranges of one file"
MAX_LEFT: Final = 0.01
"""Share of the pages that may be left in the page cache; more is not cold."""
IntArray = npt.NDArray[np.int64]


@dataclass
class Found:
    """What was measured on one data set.

    Attributes:
        data: the data set.
        count: samples of a batch.
        times: seconds of a batch.
        needed: stored bytes that each batch needs, each byte once.
        ranges: ranges that they lie in.
        device: bytes read from the disk for each batch, by way of reading.
        left: share of pages that were in the page cache before each batch.
    """

    data: DataSet
    count: int
    times: Times = field(default_factory=Times)
    needed: list[int] = field(default_factory=list)
    ranges: list[int] = field(default_factory=list)
    device: dict[str, list[int]] = field(default_factory=dict)
    left: list[float] = field(default_factory=list)


class Baseline:
    """One file as large as all archives together, read in ranges."""

    def __init__(self, path: Path, num_bytes: int) -> None:
        """Write the file, of bytes that nothing can make smaller."""
        rng = np.random.default_rng(0)
        with path.open("wb") as file:
            while file.tell() < num_bytes:
                file.write(rng.bytes(min(16 << 20, num_bytes - file.tell())))
        self._num_bytes = num_bytes
        self._fd = os.open(path, os.O_RDONLY)
        # Else the system reads on behind each range, which nobody needs.
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)

    def place(self, sizes: IntArray, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Return random places for ranges, in ascending order; none overlap."""
        sizes = rng.permutation(sizes)
        free = self._num_bytes - int(sizes.sum())
        gaps = np.sort(rng.integers(0, free + 1, len(sizes)))
        starts = gaps + np.cumsum(sizes) - sizes
        return list(zip(starts.tolist(), sizes.tolist(), strict=True))

    def read(self, ranges: list[tuple[int, int]], into: memoryview) -> None:
        """Ask for all ranges, then read one after the other."""
        for start, size in ranges:
            os.posix_fadvise(self._fd, start, size, os.POSIX_FADV_WILLNEED)
        position = 0
        for start, size in ranges:
            position += os.preadv(self._fd, [into[position : position + size]], start)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def run(options: Options) -> list[str]:
    """Measure and return the figures as Markdown."""
    cases = [
        (DataSet(options.few(40, 2), options.few(64, 16)), 256),
        (DataSet(options.few(4, 1), 64, 8, noise=NOISE, frame=(224, 224)), 128),
    ]
    if options.quick:
        cases = [(data, 32) for data, _ in cases[:1]]
    return render([measure(data, count, options) for data, count in cases])


def measure(data: DataSet, count: int, options: Options) -> Found:
    """Store one data set, and draw from it cold."""
    found = Found(data, count)
    needed = 2.5 * data.num_samples * data.sample_bytes
    with options.folder(needed_bytes=needed) as folder:
        zarrbuf = Zarrbuf(folder / "zarrbuf", data)
        store_all([zarrbuf], data)
        stored = zarrbuf.disk_bytes()
        zarrbuf.close()
        (folder / "baseline").mkdir()
        baseline = Baseline(folder / "baseline" / "file", stored)
        say(f"stored {data.content}")
        chunks = find_chunks(folder / "zarrbuf")
        with TrajectoryReplayBuffer(sample_window_size=0) as buffer:
            buffer.load_checkpoint(folder / "zarrbuf")
            for _ in range(3):  # opens all archives, decodes all small fields
                buffer.sample(count)
            pages.drop(folder)
            buffer.sample(count)  # batches before and after cold ones are cold
            for number in range(options.num_rounds(10)):
                one_round(folder, found, buffer, baseline, chunks, 100 + number)
        baseline.close()
    say(f"drew {options.num_rounds(10)} cold batches")
    return found


def find_chunks(folder: Path) -> IntArray:
    """Find the stored chunks of the images of every sample.

    Returns:
        int64 [samples, images, 2]: start and stop of each, archives numbered one
        after the other as if they lay in one file.
    """
    store = open_store(folder)
    tables_: list[IntArray] = []
    offset = 0
    for number in range(len(store.rows)):
        row = store.rows.row(number)
        archive = store.open_archive(row)
        fields = []
        for name in BIG:
            stage, _, camera = name.partition("/")
            ranges = np.asarray(archive.chunk_ranges(f"obs/{camera}"), np.int64)
            fields.append(ranges.reshape(2, -1, 2)[STAGES[stage]] + offset)
        tables_.append(np.stack(fields, axis=1))
        offset += row.size + 2 * pages.PAGE_BYTES  # archives never touch
    return np.concatenate(tables_)


def merge(ranges: IntArray) -> IntArray:
    """Return the sizes of ranges [n, 2], those that overlap or touch being one."""
    ranges = ranges[np.argsort(ranges[:, 0])]
    stops = np.maximum.accumulate(ranges[:, 1])
    cuts = np.flatnonzero(ranges[1:, 0] > stops[:-1]) + 1
    starts = ranges[np.concatenate([[0], cuts]), 0]
    sizes: IntArray = stops[np.concatenate([cuts - 1, [len(stops) - 1]])] - starts
    return sizes


def one_round(
    folder: Path,
    found: Found,
    buffer: TrajectoryReplayBuffer,
    baseline: Baseline,
    chunks: IntArray,
    seed: int,
) -> None:
    """Draw the batch of one seed cold, hot and with nothing opened; read the like."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(0, len(chunks), (found.count,), generator=generator)
    sizes = merge(chunks[draws.numpy()].reshape(-1, 2))
    places = baseline.place(sizes, np.random.default_rng(seed))
    into = memoryview(bytearray(int(sizes.sum())))
    times: dict[str, float] = {}

    def sample() -> None:
        buffer.manual_seed(seed)
        buffer.sample(found.count)

    def cold(name: str) -> None:
        times[name] = _read_cold(folder / "zarrbuf", found, name, sample)

    def read() -> None:
        times[BASELINE] = _read_cold(
            folder / "baseline", found, BASELINE, lambda: baseline.read(places, into)
        )

    if seed % 2:
        read()
    cold(COLD)
    if not seed % 2:
        read()
    times[HOT], _ = timed(sample)
    cold(SUDDEN)
    buffer.clear_cache()
    cold(FIRST)
    buffer.sample(found.count)  # opens what this batch has not
    pages.drop(folder / "zarrbuf")
    buffer.sample(found.count)
    times[BOTH] = times[BASELINE] + times[HOT]
    found.times.rounds.append(times)
    found.needed.append(int(sizes.sum()))
    found.ranges.append(len(sizes))


def _read_cold(
    folder: Path, found: Found, name: str, call: Callable[[], None]
) -> float:
    """Drop the files of a folder, check that they are gone, and time a call.

    Raises:
        AssertionError: if too much of them stayed in the page cache.
    """
    pages.drop(folder)
    left = pages.resident_share(folder)
    assert left <= MAX_LEFT, f"{left:.1%} of the pages of {folder} stayed in memory"
    found.left.append(left)
    before = pages.device_bytes()
    seconds, _ = timed(call)
    found.device.setdefault(name, []).append(pages.device_bytes() - before)
    return seconds


def render(found: list[Found]) -> list[str]:
    """Return the figures as Markdown."""
    some = [
        Target(
            f"cold batch / {BASELINE}, {one.data.content}",
            1.5,
            one.times.ratio(COLD, BASELINE),
        )
        for one in found
    ]
    parts = [markdown.targets(some)]
    for one in found:
        parts += [
            f"{one.data.content}, batches of {one.count}: "
            f"{mb(statistics.median(one.needed))} MB in "
            f"{statistics.median(one.ranges):,.0f} ranges are needed; at most "
            f"{max(one.left):.2%} of the pages were in memory before.",
            case_table(one),
        ]
    return parts


def case_table(found: Found) -> str:
    """Return the table of one data set."""
    rows = []
    for name in (BASELINE, HOT, BOTH, COLD, SUDDEN, FIRST):
        read = found.device.get(name)
        if read is None:
            figures = ("", "")
        else:
            pairs = zip(read, found.needed, strict=True)
            amplification = statistics.median(one / need for one, need in pairs)
            figures = mb(statistics.median(read)), f"{amplification:.2f}"
        first, third = found.times.spread(name)
        rows.append(
            (
                name,
                ms(found.times.median(name)),
                f"{ms(first)} to {ms(third)}",
                *figures,
                markdown.times(found.times.ratio(name, BASELINE)),
            )
        )
    head = (
        "a batch",
        "median ms",
        "quartiles",
        "MB read from disk",
        "read / needed",
        "time / the file's",
    )
    return markdown.table(head, rows)
