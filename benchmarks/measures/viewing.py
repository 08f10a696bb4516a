"""Part `viewing`: looking at single frames, from a disk and from an object store.

One trajectory of 2,000 steps with 480x640 frames behind the object server, which
answers after 30 ms; and a local buffer of 10,000 trajectories. A picture is there when
the canvas of a window (14 by 8 inches, 100 DPI) holds its pixels.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.data import chain, load_rollouts, resample
from benchmarks.measures.children import run_module
from benchmarks.measures.object_server import BUCKET
from benchmarks.measures.remote import LATENCY_S, Server, serving
from benchmarks.options import Options, say
from benchmarks.tables import markdown
from benchmarks.tables.markdown import Target, ms
from benchmarks.timing import timed
from zarrbuf import Trajectory, TrajectoryReplayBuffer
from zarrbuf.viewer.cursor import Place
from zarrbuf.viewer.figures import FIGURE_INCHES, Screen
from zarrbuf.viewer.session import Viewing
from zarrbuf.viewer.trajectories import open_playback

SIZE: Final = (480, 640)
NUM_MOVES: Final = 100
PAUSES_S: Final = (0.0, 0.2)
"""A key that is held, and somebody who looks."""
Numbers = Mapping[str, Any]


def run(options: Options) -> list[str]:
    """Measure and return the figures as Markdown."""
    num_steps = options.few(2000, 300)
    num_small = options.few(10_000, 50)
    repeats = options.few(3, 1)
    moves: list[Numbers] = []
    firsts: list[Numbers] = []
    with options.folder(needed_bytes=5e9) as folder:
        store(folder / "bucket" / "long", [make_long(num_steps)])
        say(f"stored {num_steps:,} steps")
        with serving(folder / "bucket") as server:
            for pause_s in (*PAUSES_S,) * repeats:
                moves.append(move_through(server, num_steps // 2, pause_s))
                say(f"moved in {ms(moves[-1]['move'])} ms")
        store(folder / "many", (make_short(number) for number in range(num_small)))
        say(f"stored {num_small:,} trajectories")
        for _ in range(repeats):
            firsts.append(
                run_module("benchmarks.measures.viewing", str(folder / "many"))
            )
    return render(num_steps, num_small, moves, firsts)


def store(path: Path, trajectories: Any) -> None:
    """Write trajectories as a buffer."""
    with TrajectoryReplayBuffer(auto_save=True, auto_save_path=str(path)) as buffer:
        for one in trajectories:
            buffer.add_trajectories([one])


def make_long(num_steps: int) -> Trajectory:
    """Return one environment's rendered frames, large, one after the other."""
    rollout = chain(load_rollouts())
    frames = rollout["main_frames"]
    frames = np.concatenate([frames] * (-(-(num_steps + 1) // len(frames))))
    parts = [
        resample(frames[start : min(start + 100, num_steps + 1)], SIZE)
        for start in range(0, num_steps + 1, 100)
    ]
    images = torch.from_numpy(np.concatenate(parts))[:, None]
    noise = torch.rand(num_steps, 1, 8, generator=torch.Generator().manual_seed(1))
    return Trajectory(
        actions=noise,
        rewards=noise[..., :1],
        dones=torch.arange(1, num_steps + 1)[:, None, None] % 200 == 0,
        curr_obs={"main_images": images[:-1]},
        next_obs={"main_images": images[1:]},
    )


def make_short(number: int) -> Trajectory:
    """Return a trajectory of two steps."""
    image = torch.full((2, 1, 40, 40, 3), number % 256, dtype=torch.uint8)
    return Trajectory(
        rewards=torch.ones(2, 1, 1),
        curr_obs={"main_images": image},
        next_obs={"main_images": image},
    )


class Canvas(FigureCanvasAgg):
    """What a window's canvas does until it shows its pixels."""

    def blit(self, bbox: Any = None) -> None:
        """Have the pixels already."""

    def draw_idle(self, *arguments: Any, **options: Any) -> None:
        """Draw at once."""
        super().draw()  # type: ignore[no-untyped-call]


class Looking:
    """A window without a display."""

    def __init__(self, source: Any, place: Place, options: Any = None) -> None:
        """Open the buffer and draw the first picture."""
        playback = open_playback(source, storage_options=options)
        self.viewing = Viewing(playback, place=place)
        figure = Figure(figsize=FIGURE_INCHES)
        Canvas(figure)
        self.screen = Screen(figure)
        self.show()

    def show(self) -> None:
        """Have the pixels on the canvas."""
        self.screen.show(self.viewing.scene())
        self.screen.redraw()

    def move(self) -> None:
        """Go one step on."""
        self.viewing.do("next")
        self.show()


def move_through(server: Server, start: int, pause_s: float) -> Numbers:
    """Move 100 steps through the long trajectory on the store."""
    options = server.options("s3fs")
    first, looking = timed(Looking, f"s3://{BUCKET}/long", Place(0, start), options)
    time.sleep(0.5)  # what is read ahead has come
    server.count()
    times = []
    for _ in range(NUM_MOVES):
        seconds, _ = timed(looking.move)
        times.append(seconds)
        time.sleep(pause_s)
    time.sleep(0.5)
    counted = server.count()
    recording = looking.viewing.playback.recording(0)
    shard = recording._archive.shard("obs/main_images")
    steps = np.arange(start + 1, start + NUM_MOVES + 1)
    shown = np.concatenate([steps, steps + recording.num_steps])
    ranges = np.unique(shard.ranges[shown], axis=0)
    looking.viewing.close()
    return {
        "pause": pause_s,
        "first": first,
        "second": times[0],
        "move": statistics.median(times),
        "slowest": max(times),
        "bytes": counted["bytes"],
        "requests": counted["requests"],
        "needed": int((ranges[:, 1] - ranges[:, 0]).sum()),
    }


def render(
    num_steps: int, num_small: int, moves: list[Numbers], firsts: list[Numbers]
) -> list[str]:
    """Return the figures as Markdown."""

    def median(name: str, pause_s: float) -> float:
        return statistics.median(
            float(one[name]) for one in moves if one["pause"] == pause_s
        )

    opening = statistics.median(float(one["first"]) for one in firsts)
    read = statistics.median(one["bytes"] / one["needed"] for one in moves)
    held, looked = PAUSES_S
    some = [
        Target("bytes read for those of the frames shown", 1.2, read),
        Target("the next step, held key", 150, 1e3 * median("move", held), unit=" ms"),
        Target(
            "the next step, looked at", 150, 1e3 * median("move", looked), unit=" ms"
        ),
        Target(
            "the step after the first", 150, 1e3 * median("second", looked), unit=" ms"
        ),
        Target("first picture of a local buffer", 1.5, opening, unit=" s"),
    ]
    rows = [
        (
            name,
            ms(median("first", pause)),
            ms(median("second", pause)),
            ms(median("move", pause)),
            ms(median("slowest", pause)),
            f"{median('requests', pause) / NUM_MOVES:.2f}",
        )
        for name, pause in (("a key that is held", held), ("0.2 s between", looked))
    ]
    return [
        f"{num_steps:,} steps of {SIZE[0]}x{SIZE[1]} frames on a store that answers "
        f"after {1e3 * LATENCY_S:.0f} ms, {NUM_MOVES} moves; {num_small:,} "
        "trajectories on a disk.",
        markdown.targets(some),
        markdown.table(
            ("ms", "first picture", "second", "a move", "slowest", "requests a move"),
            rows,
        ),
    ]


if __name__ == "__main__":
    seconds, shown = timed(Looking, sys.argv[1], Place())
    shown.viewing.close()
    print(json.dumps({"first": seconds}))
