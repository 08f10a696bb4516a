"""RLinf's buffer beside ours: what is told of both, and who gets what."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from support.batches import assert_same_batch, leaves
from support.paths import DATA
from support.rlinf_like import Breaking, RlinfLike, WrongInThird
from support.trajectories import make_trajectory

import zarrbuf
from zarrbuf import TrajectoryReplayBuffer, rlinf_ext, shadow, shadow_folder
from zarrbuf.cli.main import main
from zarrbuf.errors import FormatError, InvalidInputError, NotFoundError
from zarrbuf.replay.held_memory import held_bytes
from zarrbuf.replay.shadow_report import find_difference

FOLDER = DATA / "rlinf_ragged_pt"
CLASS = "support.rlinf_like:RlinfLike"


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> type[RlinfLike]:
    """A class that counts how often it was closed, from 0."""
    return type("Counted", (RlinfLike,), {"closed": 0})


def fill(buffer: Any, count: int = 4) -> None:
    for seed in range(count):
        buffer.add_trajectories([make_trajectory(5 + seed, 2, seed=seed)])


def test_the_caller_gets_what_ours_draws_and_a_report(
    closed: type[RlinfLike], caplog: pytest.LogCaptureFixture
) -> None:
    buffer = shadow(closed, draws=5)(seed=3, sample_window_size=3)
    alone = TrajectoryReplayBuffer(seed=3, sample_window_size=3)
    for one in (buffer, alone):
        fill(one)
    for number in range(8):
        batch = buffer.sample(num_chunks=6)
        assert_same_batch(batch, leaves(alone.sample(6)))
        assert (buffer.shadow_report is None) is (number < 4)
    report = buffer.shadow_report
    assert report is not None
    assert report.is_equal
    assert (report.num_draws, report.num_equal, report.num_rows) == (5, 5, 30)
    for cost in report.costs.values():
        assert len(cost.add_seconds) == 4
        assert len(cost.sample_seconds) == 5
        assert min(cost.add_seconds + cost.sample_seconds) > 0
        assert cost.memory_bytes > 1000
        assert cost.disk_bytes is None
    assert closed.closed == 1
    (message,) = caplog.messages
    assert message.startswith("5 of 5 batches are equal bit for bit (30 rows)")
    assert "disk" in message
    buffer.close()
    assert closed.closed == 1


def test_the_first_difference_is_named_and_training_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    buffer = shadow(WrongInThird, draws=4)(seed=3)
    alone = TrajectoryReplayBuffer(seed=3)
    for one in (buffer, alone):
        fill(one)
    for _ in range(6):
        assert_same_batch(buffer.sample(8), leaves(alone.sample(8)))
    report = buffer.shadow_report
    assert report is not None
    assert not report.is_equal
    assert (report.num_draws, report.num_equal) == (4, 3)
    assert report.difference == "batch 3: rewards, row 2"
    assert "the first difference: batch 3: rewards, row 2" in caplog.text


@pytest.mark.parametrize("draws", [3, 100])
def test_what_theirs_raises_ends_the_comparison_and_nothing_else(
    draws: int, caplog: pytest.LogCaptureFixture
) -> None:
    buffer = shadow(Breaking, draws=draws)(seed=3)
    fill(buffer)
    for _ in range(6):
        assert len(buffer.sample(8)["rewards"]) == 8
    report = buffer.shadow_report
    assert report is not None
    assert (report.num_draws, report.num_equal) == (2, 2)
    assert report.stopped == "KeyError: 'trajectory 3'"
    assert not report.is_equal
    assert "RLinf's buffer raised KeyError" in caplog.text


def test_a_class_that_cannot_be_made_is_told_at_the_first_draw() -> None:
    class Unable(RlinfLike):
        def __init__(self, seed: int = 1234) -> None:
            raise OSError("no room")

    buffer = shadow(Unable)(seed=3)
    fill(buffer)
    assert len(buffer.sample(8)["rewards"]) == 8
    assert buffer.shadow_report is not None
    assert buffer.shadow_report.stopped == "OSError: no room"


def test_what_ours_refuses_is_given_to_neither() -> None:
    buffer = shadow(RlinfLike, draws=2)(seed=3)
    fill(buffer)
    bad = make_trajectory(3, 2)
    bad.rewards = torch.zeros(3, 2, 9)
    with pytest.raises(InvalidInputError, match="rewards"):
        buffer.add_trajectories([bad])
    for _ in range(2):
        buffer.sample(4)
    assert buffer.shadow_report is not None
    assert buffer.shadow_report.is_equal


def test_both_write_and_neither_into_the_others_folder(tmp_path: Path) -> None:
    path = tmp_path / "run"
    buffer = shadow(RlinfLike, draws=2)(
        auto_save=True, auto_save_path=str(path), trajectory_format="zarr"
    )
    fill(buffer, 3)
    buffer.sample(4)
    buffer.save_checkpoint(str(tmp_path / "kept"))
    buffer.close()
    assert (tmp_path / "kept.rlinf").is_dir()
    assert len(TrajectoryReplayBuffer(auto_save=True, auto_save_path=path)) == 3
    assert len(list((tmp_path / "run.rlinf").glob("trajectory_*.pt"))) == 3
    report = buffer.shadow_report
    assert report is not None
    assert report.num_draws == 1
    for name, folder in (("zarrbuf", path), ("RLinf", tmp_path / "run.rlinf")):
        files = [one for one in folder.rglob("*") if one.is_file()]
        assert report.costs[name].disk_bytes == sum(one.stat().st_size for one in files)


def test_windows_seeds_loads_and_clears_reach_both() -> None:
    buffer = shadow(RlinfLike, draws=50)(seed=3, sample_window_size=3)
    fill(buffer, 4)
    buffer.sample(8)
    buffer.sample_window_size = 1
    buffer.sample(8)
    buffer.manual_seed(9)
    buffer.sample(8)
    buffer.manual_seed(None)
    buffer.sample(8)
    buffer.clear()
    fill(buffer, 2)
    buffer.sample(8)
    buffer.sample_window_size = 5
    buffer.load_checkpoint(FOLDER, version=None)
    buffer.sample_chunks(8)
    buffer.sample(8000)
    buffer.sample(8)
    buffer.close()
    report = buffer.shadow_report
    assert report is not None
    assert report.difference is None
    assert report.stopped is None
    assert report.num_equal == report.num_draws == 8
    assert report.num_rows < 8000


def test_a_checkpoint_of_a_run_goes_on_in_both(tmp_path: Path) -> None:
    first = shadow(RlinfLike, draws=9)(seed=3, trajectory_format="pt")
    fill(first)
    for _ in range(3):
        first.sample(8)
    first.save_checkpoint(tmp_path / "x")
    buffer = shadow(RlinfLike, draws=3)(trajectory_format="pt")
    buffer.load_checkpoint(tmp_path / "x")
    for _ in range(3):
        assert_same_batch(buffer.sample(8), leaves(first.sample(8)))
    assert buffer.shadow_report is not None
    assert buffer.shadow_report.is_equal


def test_threads_may_add_while_others_draw() -> None:
    buffer = shadow(RlinfLike, draws=60)(seed=3, sample_window_size=2)
    fill(buffer, 2)
    adding = threading.Thread(target=fill, args=(buffer, 40))
    adding.start()
    for _ in range(60):
        buffer.sample(8)
    adding.join()
    assert buffer.shadow_report is not None
    assert buffer.shadow_report.is_equal


def test_a_folder_is_drawn_by_both_from_its_seed(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    report = shadow_folder(
        FOLDER,
        RlinfLike,
        draws=4,
        num_chunks=16,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert report.is_equal
    assert (report.num_draws, report.num_rows) == (4, 64)
    disk = sum(one.stat().st_size for one in FOLDER.rglob("*") if one.is_file())
    assert report.costs["RLinf"].disk_bytes == disk
    assert 0 < (report.costs["zarrbuf"].disk_bytes or 0) != disk
    assert steps[-1][0] == steps[-1][1] == len(steps)


def test_a_folder_drawn_otherwise_is_not_equal() -> None:
    report = shadow_folder(FOLDER, WrongInThird, draws=3, num_chunks=16)
    assert report.difference == "batch 3: rewards, row 2"
    json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("path", "more", "error", "message"),
    [
        ("nowhere", {}, NotFoundError, "nowhere"),
        (FOLDER, {"draws": 0}, InvalidInputError, "draws"),
        (FOLDER, {"num_chunks": 0}, InvalidInputError, "num_chunks"),
        (FOLDER, {"sample_window_size": -1}, InvalidInputError, "sample_window_size"),
        (FOLDER, {"buffer_class": 3}, InvalidInputError, "3 is no class"),
        (FOLDER, {"buffer_class": "json"}, InvalidInputError, "module:name"),
        (FOLDER, {"buffer_class": ".json:x"}, InvalidInputError, "module:name"),
        (FOLDER, {"buffer_class": "json:dumps"}, NotFoundError, "json has no class"),
        (FOLDER, {"buffer_class": "no.such:X"}, NotFoundError, "no module no.such"),
        (FOLDER, {"buffer_class": None}, NotFoundError, "no rlinf"),
    ],
)
def test_bad_calls_are_typed_and_named(
    path: Any, more: dict[str, Any], error: type[Exception], message: str
) -> None:
    named = {"buffer_class": RlinfLike, "draws": 2, **more}
    with pytest.raises(error, match=message):
        shadow_folder(path, **named)


def test_a_zarr_buffer_is_nothing_that_rlinf_reads(tmp_path: Path) -> None:
    zarrbuf.convert(FOLDER, tmp_path / "x")
    with pytest.raises(InvalidInputError, match="zarr buffer"):
        shadow_folder(tmp_path / "x", RlinfLike)


def test_a_damaged_folder_is_an_error_of_its_own(tmp_path: Path) -> None:
    zarrbuf.convert(FOLDER, tmp_path / "x", to="pt")
    victim = next((tmp_path / "x").glob("trajectory_*.pt"))
    victim.write_bytes(victim.read_bytes()[:50])
    with pytest.raises(FormatError, match=victim.name):
        shadow_folder(tmp_path / "x", RlinfLike)


@pytest.mark.parametrize(
    ("name", "code"), [("RlinfLike", 0), ("WrongInThird", 1), ("Breaking", 1)]
)
def test_the_command_exits_by_what_it_found(name: str, code: int) -> None:
    where = f"support.rlinf_like:{name}"
    arguments = ["shadow", str(FOLDER), "--draws", "3", "--class", where]
    shown = CliRunner().invoke(main, arguments)
    assert shown.exit_code == code, shown.output
    equal = 3 if code == 0 else 2
    assert f"{equal} of {2 if name == 'Breaking' else 3} batches" in shown.stdout
    found = CliRunner().invoke(main, [*arguments, "--json"])
    assert found.exit_code == code
    report = json.loads(found.stdout)
    assert report["is_equal"] is (code == 0)
    assert set(report["costs"]) == {"RLinf", "zarrbuf"}


def test_the_command_without_rlinf_is_one_line() -> None:
    done = CliRunner().invoke(main, ["shadow", str(FOLDER)])
    assert done.exit_code == 1
    assert done.stderr.startswith("zarrbuf: in this program there is no rlinf")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("batch", "expected", "difference"),
    [
        ({"a": torch.ones(3)}, {"a": torch.ones(2)}, None),
        ({"a": torch.ones(2)}, {"a": torch.ones(3)}, "a is float32"),
        ({"a": torch.ones(2)}, {"a": torch.ones(2).double()}, "a is float32"),
        ({"a": torch.ones(2, 1)}, {"a": torch.ones(2)}, "a is float32"),
        ({"a": torch.zeros(2)}, {"a": torch.tensor([0.0, -0.0])}, "a, row 1"),
        (
            {"a": torch.tensor([torch.nan])},
            {"a": torch.tensor([torch.nan])},
            None,
        ),
        ({"a": {"b": torch.ones(1)}}, {"a": {"b": torch.zeros(1)}}, "a/b, row 0"),
        ({"a": {}, "b": torch.ones(1)}, {}, "b only in zarrbuf"),
        ({}, {"a": {"b": torch.ones(1)}}, "a/b only in RLinf"),
    ],
)
def test_every_bit_counts(
    batch: dict[str, Any], expected: dict[str, Any], difference: str | None
) -> None:
    found, _ = find_difference(batch, expected)
    if difference is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(difference)


def test_memory_is_counted_once_and_with_what_is_inside(tmp_path: Path) -> None:
    tensor = torch.zeros(1000)
    assert held_bytes({"a": [tensor, tensor[:5], tensor.view(10, 100)]}) == 4000
    assert held_bytes(object()) == 0
    array = np.zeros(500)
    assert held_bytes([array, array[3:], (memoryview(array),)]) == 4000
    shared = np.zeros(100, dtype=np.float32)
    assert held_bytes([shared, torch.from_numpy(shared)]) == 400
    assert held_bytes([b"x" * 100, bytearray(50)]) == 150
    assert held_bytes([tensor, array], without=[tensor]) == 4000
    mapped = np.memmap(tmp_path / "x", dtype=np.uint8, shape=(4096,), mode="w+")
    assert held_bytes([mapped, mapped[5:]]) == 0


def test_workers_compare_when_the_environment_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("ZARRBUF_SHADOW", "2")
    monkeypatch.setenv("ZARRBUF_FORMAT", "zarr")
    module = type(logging)("rlinf.data.storage.replay")
    vars(module)["TrajectoryReplayBuffer"] = RlinfLike
    monkeypatch.setattr(rlinf_ext, "import_homes", lambda: [module])
    monkeypatch.setitem(__import__("sys").modules, module.__name__, module)
    rlinf_ext.register()
    try:
        buffer = vars(module)["TrajectoryReplayBuffer"](
            seed=5, auto_save=True, auto_save_path=str(tmp_path / "run")
        )
        fill(buffer)
        for _ in range(3):
            buffer.sample(4)
        assert isinstance(buffer, rlinf_ext.RlinfReplayBuffer)
        assert buffer.shadow_report.is_equal
        buffer.close()
    finally:
        rlinf_ext.unregister()
    assert vars(module)["TrajectoryReplayBuffer"] is RlinfLike
    assert zarrbuf.list_buffer(tmp_path / "run").kind == "zarr"


@pytest.mark.parametrize("value", ["-1", "many", "1.5", "\u0661"])
def test_a_number_of_draws_that_is_none_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZARRBUF_SHADOW", value)
    with pytest.raises(InvalidInputError, match="ZARRBUF_SHADOW"):
        rlinf_ext.register()
