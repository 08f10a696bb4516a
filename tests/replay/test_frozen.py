"""Buffers written by earlier versions of the program: read as they were, for ever.

`support.freeze` wrote what lies under `fixtures/`; with the first release it is added
to, never made anew. Each buffer has four trajectories, a checkpoint of its log, the
state of a run and a removed row.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.freeze import batch_of, tensors_of
from support.paths import FIXTURES

from zarrbuf import TrajectoryReplayBuffer, list_buffer, verify

CASES = sorted(path.relative_to(FIXTURES) for path in FIXTURES.glob("v*/*.json"))


def test_there_are_frozen_buffers() -> None:
    assert [str(case) for case in CASES] == [
        "v1/lz4.json",
        "v1/none.json",
        "v1/zstd.json",
    ]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_frozen_buffer_is_read_as_it_was(case: Path) -> None:
    path = (FIXTURES / case).with_suffix("")
    expected: dict[str, Any] = json.loads((FIXTURES / case).read_text())
    result = verify(path)
    assert result.problems == []
    assert result.num_commits == 7
    buffer = TrajectoryReplayBuffer(sample_window_size=0)
    buffer.load_checkpoint(path)
    assert buffer._trajectory_id_list == expected["ids"] == [0, 2, 3]
    for number, tensors in expected["trajectories"].items():
        assert tensors_of(buffer.load_trajectory(int(number))) == tensors
    assert batch_of(buffer) == expected["batch"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_frozen_buffer_can_be_read_as_it_was_before(case: Path) -> None:
    path = (FIXTURES / case).with_suffix("")
    counts = [len(list_buffer(path, version=n).rows) for n in range(8)]
    assert counts == [0, 0, 1, 2, 3, 4, 4, 3]
