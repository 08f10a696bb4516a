"""Part `memory`: what a buffer adds to the memory of a process that does nothing else.

`run` starts this module in a fresh process, which prints one JSON object. Anonymous
memory is the process's own; file-backed memory is the page cache seen through a
mapping, which the system takes back when it needs it. Linux only: it reads
`/proc/self/status`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Final

from benchmarks.data import DataSet, load_rollouts
from benchmarks.measures.children import run_module
from benchmarks.options import BATCH_SIZE, Options, say
from benchmarks.tables import markdown
from benchmarks.tables.markdown import Target, mb
from zarrbuf import Trajectory, TrajectoryReplayBuffer

FIRST: Final = 2
"""Trajectories that bring what making and encoding them needs once; not counted."""


@dataclass(frozen=True)
class Growth:
    """Resident bytes added since the process had loaded its libraries.

    Attributes:
        anonymous: the process's own memory.
        file_backed: pages of mapped files.
        peak: both together, at their highest.
        loaded: resident bytes of what is loaded once, loops compiled for the process
            included; not in the figures before.
    """

    anonymous: int
    file_backed: int
    peak: int
    loaded: int = 0


def _usage() -> dict[str, int]:
    """Return the memory figures of this process, in bytes."""
    with open("/proc/self/status") as file:
        pairs = [line.split() for line in file if line.endswith(" kB\n")]
    return {key.rstrip(":"): int(value) * 1024 for key, value, _ in pairs}


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return _usage()["VmRSS"]


def _reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def load_libraries() -> None:
    """Draw from a buffer of a few bytes, which loads and compiles what is needed."""
    with TrajectoryReplayBuffer() as buffer:
        buffer.add_trajectories(list(DataSet(1, 2, 1)))
        buffer.sample(2)
    give_back_freed()


def give_back_freed() -> None:
    """Let the C library return freed memory; else new data hides in it."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _growth(before: dict[str, int]) -> Growth:
    gc.collect()
    now = _usage()
    return Growth(
        now["RssAnon"] - before["RssAnon"],
        now["RssFile"] - before["RssFile"],
        now["VmHWM"] - before["VmRSS"],
    )


def sample(folder: str, num_batches: int) -> Growth:
    """Open a buffer and draw batches; the last one is still held at the end."""
    load_rollouts()  # not the library's, but needed to load it
    start = resident_bytes()
    load_libraries()
    _reset_peak()
    before = _usage()
    buffer = TrajectoryReplayBuffer(sample_window_size=0)
    buffer.load_checkpoint(folder)
    batch = None
    for _ in range(num_batches):
        batch = buffer.sample(BATCH_SIZE)
    growth = _growth(before)
    assert batch is not None
    return dataclasses.replace(growth, loaded=before["VmRSS"] - start)


def _grow(data: DataSet, use: Callable[[Trajectory], None]) -> Growth:
    """Make and use all trajectories; return what memory grew by after the first two.

    Each is dropped before the next one is made.
    """
    before = _usage()
    made = iter(data)
    for number in range(data.num_trajectories):
        use(next(made))
        if number + 1 == FIRST:
            give_back_freed()
            _reset_peak()
            before = _usage()
    give_back_freed()
    return _growth(before)


def make(data: DataSet) -> Growth:
    """Make trajectories and drop them: what is no buffer's doing."""
    return _grow(data, lambda trajectory: None)


def keep(data: DataSet) -> Growth:
    """Add trajectories to a buffer that saves nothing."""
    buffer = TrajectoryReplayBuffer(sample_window_size=0)
    growth = _grow(data, lambda trajectory: buffer.add_trajectories([trajectory]))
    assert len(buffer) == data.num_trajectories
    return growth


def train(data: DataSet) -> Growth:
    """Do the same and draw a batch after each, as a run does that keeps all."""
    buffer = TrajectoryReplayBuffer(sample_window_size=0)

    def use(trajectory: Trajectory) -> None:
        buffer.add_trajectories([trajectory])
        buffer.sample(BATCH_SIZE)

    return _grow(data, use)


KINDS: Final[Mapping[str, Callable[[DataSet], Growth]]] = {
    "make": make,
    "keep": keep,
    "train": train,
}


def run(options: Options) -> list[str]:
    """Measure and return the figures as Markdown."""
    data = DataSet(options.few(40, 4), options.few(64, 16))
    batches = options.num_rounds(30)
    raw_bytes = data.num_samples * data.sample_bytes
    with (
        options.folder(needed_bytes=raw_bytes) as folder,
        TrajectoryReplayBuffer(auto_save=True, auto_save_path=folder) as buffer,
    ):
        for trajectory in data:
            buffer.add_trajectories([trajectory])
        buffer.flush()
        say(f"stored {data.content}")
        described = json.dumps(asdict(data))
        sampling = _in_child("sample", str(folder), str(batches))
        grown = {kind: _in_child(kind, described) for kind in KINDS}
    return render(data, batches, raw_bytes, sampling, grown)


def render(
    data: DataSet,
    batches: int,
    raw_bytes: int,
    sampling: Growth,
    grown: Mapping[str, Growth],
) -> list[str]:
    """Return the figures as Markdown."""
    counted = data.num_trajectories - FIRST
    each_raw, each = (
        raw_bytes / data.num_trajectories,
        grown["keep"].anonymous / counted,
    )
    some = [
        Target("memory added by sampling / raw bytes", 0.1, sampling.peak / raw_bytes),
        Target(
            "trajectories in memory, `auto_save=False` / raw tensors",
            10,
            each_raw / each,
            at_least=True,
        ),
    ]
    rows = [
        (f"{batches} batches: own memory, two batches at once", sampling.anonymous),
        (f"{batches} batches: pages of mapped archives", sampling.file_backed),
        (f"{batches} batches: both at their peak", sampling.peak),
        ("libraries and compiled loops, once, not in these", sampling.loaded),
        ("`auto_save=False`: a trajectory", each),
        (f"`auto_save=False`: {counted} trajectories", grown["keep"].anonymous),
        ("the same and a batch after each, at the peak", grown["train"].peak),
        ("making these trajectories alone, at the peak", grown["make"].peak),
        (f"{counted} trajectories raw", each_raw * counted),
    ]
    return [
        f"{data.content}: {mb(raw_bytes)} MB raw; batches of {BATCH_SIZE}.",
        markdown.targets(some),
        markdown.table(
            ("memory added", "MB"), [(name, mb(size)) for name, size in rows]
        ),
    ]


def _in_child(*arguments: str) -> Growth:
    growth = Growth(**run_module("benchmarks.measures.memory", *arguments))
    say(f"measured the memory of a process: {arguments[0]}")
    return growth


def main(kind: str, *arguments: str) -> None:
    """Measure and print."""
    if kind == "sample":
        folder, num_batches = arguments
        growth = sample(folder, int(num_batches))
    else:
        data = DataSet.from_json(arguments[0])
        growth = KINDS[kind](data)
    print(json.dumps(asdict(growth)))


if __name__ == "__main__":
    main(*sys.argv[1:])
