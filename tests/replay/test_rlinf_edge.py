"""Situations of real runs, as RLinf wrote them and drew from them, state included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.batches import assert_golden, leaves
from support.paths import DATA

from zarrbuf import TrajectoryReplayBuffer, convert, list_buffer, verify
from zarrbuf.stores.opening import open_store

EDGE = DATA / "rlinf_edge"
GOLDEN: dict[str, Any] = json.loads((EDGE / "golden.json").read_text())
LOADED = [name for name, case in GOLDEN.items() if case.get("state")]
ROUTES = ("folder", "zarr", "pt", "pkl", "zarr, then pt", "saved", "saved twice")


def route_of(name: str, route: str, tmp_path: Path) -> Path:
    """Return where a case lies after a route."""
    path = EDGE / name
    if route == "folder":
        return path
    if route.startswith("saved"):
        for number in range(1 + route.endswith("twice")):
            buffer = TrajectoryReplayBuffer(**GOLDEN[name]["arguments"])
            buffer.load_checkpoint(path)
            path = tmp_path / f"saved{number}"
            buffer.save_checkpoint(save_path=str(path))
        return path
    for number, kind in enumerate(route.split(", then ")):
        target = tmp_path / f"{number}"
        convert(path, target, to=kind)
        path = target
    return path


def assert_state(buffer: TrajectoryReplayBuffer, state: dict[str, Any]) -> None:
    assert buffer.size == state["size"]
    assert len(buffer) == state["len"]
    assert buffer.total_samples == state["total_samples"]
    assert buffer.get_stats() == state["stats"]
    assert buffer._trajectory_counter == state["next_id"]
    for number, is_ready in state["is_ready"].items():
        assert buffer.is_ready(int(number)) is is_ready


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", LOADED)
def test_state_and_batches_are_those_of_rlinf(
    name: str, route: str, tmp_path: Path
) -> None:
    case = GOLDEN[name]
    path = route_of(name, route, tmp_path)
    buffer = TrajectoryReplayBuffer(**case["arguments"])
    buffer.load_checkpoint(str(path))
    assert_state(buffer, case["state"])
    for call in case["calls"]:
        batch = buffer.sample(num_chunks=call["num_chunks"])
        assert_golden(batch, call["batch"])
    assert_state(buffer, case["state"])


@pytest.mark.parametrize("more", [{}, {"auto_save": True}])
def test_a_request_above_the_window_leaves_every_later_batch_in_step(
    more: dict[str, Any], tmp_path: Path
) -> None:
    case = GOLDEN["oversize"]
    store = open_store(EDGE / "oversize")
    if more:
        more = {**more, "auto_save_path": tmp_path}
    buffer = TrajectoryReplayBuffer(seed=case["seed"], **case["arguments"], **more)
    added = 0
    for call in case["calls"]:
        while added < call["added"]:
            buffer.add_trajectories([store.read_trajectory(store.rows.row(added))])
            added += 1
        batch = buffer.sample(call["num_chunks"])
        expected = call["batch"]["rewards"]["shape"][0]
        for tensor in leaves(batch).values():
            assert len(tensor) == call["num_chunks"]
        assert_golden(first_rows(batch, expected), call["batch"])
    buffer.close()


def first_rows(batch: Any, count: int) -> Any:
    if isinstance(batch, dict):
        return {name: first_rows(value, count) for name, value in batch.items()}
    return batch[:count]


def test_what_is_added_to_a_resumed_run_is_counted(tmp_path: Path) -> None:
    case = GOLDEN["resumed"]
    store = open_store(EDGE / "resumed")
    buffer = TrajectoryReplayBuffer(**case["arguments"])
    buffer.load_checkpoint(EDGE / "resumed")
    buffer.add_trajectories([store.read_trajectory(store.rows.row(0))])
    assert_state(buffer, case["after_one_more"])
    buffer.save_checkpoint(tmp_path / "x")
    again = TrajectoryReplayBuffer(**case["arguments"])
    again.load_checkpoint(tmp_path / "x")
    assert_state(again, case["after_one_more"])


def test_a_counter_above_the_ids_is_honoured() -> None:
    case = GOLDEN["counter"]
    store = open_store(EDGE / "counter")
    buffer = TrajectoryReplayBuffer(**case["arguments"])
    buffer.load_checkpoint(EDGE / "counter")
    buffer.add_trajectories([store.read_trajectory(store.rows.row(0))])
    assert buffer._trajectory_id_list == case["ids"]


def test_evicted_trajectories_are_reported_and_no_damage(tmp_path: Path) -> None:
    path = EDGE / "evicted"
    listing = list_buffer(path)
    assert len(listing.rows) == 3
    assert listing.details["num_evicted"] == 5
    result = verify(path)
    assert result.is_sound
    assert (result.num_evicted, result.num_trajectories) == (5, 3)
    convert(path, tmp_path / "zarr")
    assert list_buffer(tmp_path / "zarr").rows.trajectory_ids.tolist() == [5, 6, 7]
