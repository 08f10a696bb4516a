"""Batches that RLinf drew, bit for bit: from its folders and our conversions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.batches import assert_golden
from support.paths import DATA
from support.trajectories import assert_same_trajectory

from zarrbuf import TrajectoryReplayBuffer, convert
from zarrbuf.stores.opening import open_store

FOLDERS = {
    "rlinf_pt/rank_0": "rlinf_pt/rank_0.golden.json",
    "rlinf_pkl": "rlinf_pkl.golden.json",
    "rlinf_ragged_pt": "rlinf_ragged_pt.golden.json",
}
ALL_FOLDERS = [*FOLDERS, "rlinf_pt/rank_1"]
ROUTES = {
    "as it is": (),
    "zarr": ({"to": "zarr"},),
    "zstd": ({"to": "zarr", "codec": "zstd"},),
    "uncompressed": ({"to": "zarr", "codec": "none"},),
    "pt": ({"to": "pt"},),
    "zarr, then pkl": ({"to": "zarr"}, {"to": "pkl"}),
}
CASES = [
    (folder, number, case)
    for folder, name in FOLDERS.items()
    for number, case in enumerate(json.loads((DATA / name).read_text()))
]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    made = {}
    for folder in ALL_FOLDERS:
        for route, steps in ROUTES.items():
            path = DATA / folder
            for step in steps:
                target = tmp_path_factory.mktemp("converted") / "out"
                convert(path, target, **step)
                path = target
            made[folder, route] = path
    return made


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("folder", "case"), [pytest.param(f, c, id=f"{f}-{n}") for f, n, c in CASES]
)
def test_batches_are_those_that_rlinf_drew(
    folder: str,
    case: dict[str, Any],
    route: str,
    converted: dict[tuple[str, str], Path],
) -> None:
    buffer = TrajectoryReplayBuffer(
        sample_window_size=case["sample_window_size"], cache_size=case["cache_size"]
    )
    buffer.load_checkpoint(converted[folder, route], **case["load"])
    assert len(buffer._trajectory_id_list) == case["size"]
    assert buffer._trajectory_counter == case["trajectory_counter"]
    if not case["sample_window_size"]:
        assert buffer.total_samples == case["total_samples"]
    for call in case["calls"]:
        assert_golden(buffer.sample(num_chunks=call["num_chunks"]), call["batch"])


@pytest.mark.parametrize("route", [route for route in ROUTES if ROUTES[route]])
@pytest.mark.parametrize("folder", ALL_FOLDERS)
def test_conversion_keeps_every_tensor_and_value(
    folder: str, route: str, converted: dict[tuple[str, str], Path]
) -> None:
    before, after = open_store(DATA / folder), open_store(converted[folder, route])
    assert len(before.rows) == len(after.rows) > 0
    assert before.next_trajectory_id == after.next_trajectory_id
    assert before.seed == after.seed
    for position in range(len(before.rows)):
        old, new = before.rows.row(position), after.rows.row(position)
        assert old.trajectory_id == new.trajectory_id
        assert old.model_weights_id == new.model_weights_id
        assert old.shape == new.shape
        assert_same_trajectory(before.read_trajectory(old), after.read_trajectory(new))
