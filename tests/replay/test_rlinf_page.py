"""The page for RLinf's users names every member that RLinf's code touches, as it is."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import zarrbuf
from zarrbuf import TrajectoryReplayBuffer

PAGE = Path(__file__).parents[2] / "docs" / "rlinf.md"
METHODS = (
    *("add_trajectories", "sample", "sample_chunks", "is_ready", "is_ready_async"),
    *("get_stats", "save_checkpoint", "load_checkpoint", "clear", "clear_cache"),
    *("close", "_load_trajectory", "_flatten_trajectory"),
)
ATTRIBUTES = (
    *("size", "total_samples", "seed", "enable_cache", "auto_save", "auto_save_path"),
    *("trajectory_format", "sample_window_size", "random_generator", "logger"),
    *("_trajectory_id_list", "_trajectory_index", "_trajectory_counter"),
)
CLASSES = (
    *("Trajectory", "TrajectoryReplayBuffer"),
    *("ReplayBufferDataset", "PreloadReplayBufferDataset", "replay_buffer_collate_fn"),
)


@pytest.fixture(scope="module")
def named() -> set[str]:
    table = PAGE.read_text().split("## Member by member")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line[:3] == "| `"]
    return {
        re.split(r"\(", n)[0] for cell in cells for n in re.findall("`(.+?)`", cell)
    }


@pytest.mark.parametrize("name", [*METHODS, *ATTRIBUTES, *CLASSES])
def test_the_table_has_a_member(name: str, named: set[str]) -> None:
    assert name in named


def test_what_the_table_names_is_there(named: set[str]) -> None:
    buffer = TrajectoryReplayBuffer()
    not_ours = {"PriorityStore", "TrajectoryCache", "len"}
    for name in named - not_ours:
        assert hasattr(zarrbuf, name) or hasattr(buffer, name), name
    assert all(callable(getattr(buffer, name)) for name in METHODS)
    assert len(buffer) == 0


def test_the_constructor_takes_rlinfs_arguments_in_its_order() -> None:
    parameters = list(inspect.signature(TrajectoryReplayBuffer).parameters.values())
    positional = [(p.name, p.default) for p in parameters if p.kind != p.KEYWORD_ONLY]
    assert positional == [
        ("seed", 1234),
        ("enable_cache", True),
        ("cache_size", 5),
        ("sample_window_size", 100),
        ("auto_save", False),
        ("auto_save_path", ""),
        ("trajectory_format", None),
    ]
