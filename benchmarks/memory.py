"""What a buffer adds to the memory of a process that does nothing else.

`run` starts this module in a fresh process, which prints one JSON object. Anonymous
memory is the process's own; file-backed memory is the page cache seen through a
mapping, which the system takes back when it needs it. Linux only: it reads
`/proc/self/status`.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.data import DataSet
from zarrbuf.buffer import TrajectoryReplayBuffer

_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Growth:
    """Resident bytes added since the process had loaded its libraries.

    Attributes:
        anonymous: the process's own memory.
        file_backed: pages of mapped files.
        peak: both together, at their highest.
    """

    anonymous: int
    file_backed: int
    peak: int


def _usage() -> dict[str, int]:
    """Return the memory figures of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    pairs = (line.split() for line in lines if line.endswith(" kB"))
    return {key.rstrip(":"): int(value) * 1024 for key, value, _ in pairs}


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _growth(before: dict[str, int]) -> Growth:
    gc.collect()
    now = _usage()
    return Growth(
        now["RssAnon"] - before["RssAnon"],
        now["RssFile"] - before["RssFile"],
        now["VmHWM"] - before["VmRSS"],
    )


def sample(folder: str, count: int, num_batches: int) -> Growth:
    """Open a buffer and draw batches; the last one is still held at the end."""
    _reset_peak()
    before = _usage()
    buffer = TrajectoryReplayBuffer(sample_window_size=0)
    buffer.load_checkpoint(folder)
    batch = None
    for _ in range(num_batches):
        batch = buffer.sample(count)
    growth = _growth(before)
    assert batch is not None
    return growth


def _give_back_freed() -> None:
    """Let the C library return freed memory; else new data hides in it."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def keep(data: DataSet) -> Growth:
    """Add trajectories to a buffer that saves nothing.

    Counted from the second one on: the first two also bring what making and encoding
    them needs once.
    """
    buffer = TrajectoryReplayBuffer(sample_window_size=0)
    before: dict[str, int] = {}
    made = iter(data)  # kept to the end, with the rollouts that it holds
    for number in range(data.num_trajectories):
        buffer.add_trajectories([next(made)])
        if number == 1:
            _give_back_freed()
            _reset_peak()
            before = _usage()
    _give_back_freed()
    return _growth(before or _usage())


def in_fresh_process(*arguments: str) -> Growth:
    """Run this module and return what it measured."""
    command = [sys.executable, "-m", "benchmarks.memory", *arguments]
    done = subprocess.run(
        command, cwd=_ROOT, check=True, text=True, stdout=subprocess.PIPE
    )
    return Growth(**json.loads(done.stdout))


def main(kind: str, *arguments: str) -> None:
    """Measure and print."""
    if kind == "sample":
        folder, count, num_batches = arguments
        growth = sample(folder, int(count), int(num_batches))
    else:
        growth = keep(DataSet(**json.loads(arguments[0])))
    print(json.dumps(asdict(growth)))


if __name__ == "__main__":
    main(*sys.argv[1:])
