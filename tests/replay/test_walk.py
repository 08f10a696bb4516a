"""The walk of a batch is straight: down once and back, through few modules."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from support.paths import ROOT
from support.walk import Walk, walk_of

from zarrbuf import Trajectory, TrajectoryReplayBuffer

MOST = 18
"""Modules that a draw may enter once archives are open and loops compiled."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A buffer with images, which are chunks, and small fields, which are tables."""
    found = tmp_path_factory.mktemp("walk") / "buffer"
    frames = torch.randint(0, 255, (17, 4, 64, 64, 3), dtype=torch.uint8)
    with TrajectoryReplayBuffer(auto_save=True, auto_save_path=found) as buffer:
        for _ in range(3):
            one = Trajectory(
                rewards=torch.randn(16, 4, 1),
                actions=torch.randn(16, 4, 7),
                curr_obs={"main_images": frames[:-1]},
                next_obs={"main_images": frames[1:]},
            )
            buffer.add_trajectories([one])
    return found


def draw(path: Path, **options: Any) -> Walk:
    """Return the walk of a draw after a first one."""
    with TrajectoryReplayBuffer(**options) as buffer:
        buffer.load_checkpoint(path)
        kept = [buffer.sample(200)]  # what is let go of calls back into its memory
        return walk_of(lambda: kept.append(buffer.sample(64)))


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_draw_goes_down_once_and_back(path: Path, num_threads: int) -> None:
    walk = draw(path, num_threads=num_threads)
    again = {m: visits for m, visits in walk.visits.items() if len(visits) > 1}
    assert again == {}
    for name in ("window", "sampler", "index_map", "batch_reader", "field_tables"):
        assert f"sampling/{name}.py" in walk.visits
    assert "archive/decode.py" in walk.visits


def test_a_draw_enters_few_modules_and_the_docs_say_how_many(path: Path) -> None:
    entered = set(draw(path, num_threads=2).visits)
    assert len(entered) <= MOST, sorted(entered)
    text = (ROOT / "docs" / "architecture.md").read_text()
    said = re.search(r"enters (\d+) of the modules", text)
    assert said is not None
    assert int(said[1]) == len(entered)


def test_a_walk_tells_a_second_visit_from_a_loop_and_a_callback() -> None:
    import_names = {"a": "x = 0\ndef leaf(): pass\ndef run(f): f()\n"}
    folder = walk_of.__globals__["_FOLDER"]
    leaf: dict[str, Any] = {}
    exec(compile(import_names["a"], f"{folder}low/leaf.py", "exec"), leaf)
    top = (
        "def many():\n    for _ in range(3): leaf()\n"
        "def back(): run(lambda: None)\n"
        "def twice(other):\n    leaf()\n    other()\n"
    )
    caller: dict[str, Any] = {"leaf": leaf["leaf"], "run": leaf["run"]}
    exec(compile(top, f"{folder}high/top.py", "exec"), caller)
    beside: dict[str, Any] = {"leaf": leaf["leaf"]}
    exec(compile("def other(): leaf()\n", f"{folder}mid/b.py", "exec"), beside)
    once = {"high/top.py": [""], "low/leaf.py": ["high/top.py"]}
    assert walk_of(caller["many"]).visits == once
    assert walk_of(caller["back"]).visits == once
    assert walk_of(lambda: caller["twice"](beside["other"])).visits == {
        "high/top.py": [""],
        "mid/b.py": ["high/top.py"],
        "low/leaf.py": ["high/top.py", "mid/b.py"],
    }
