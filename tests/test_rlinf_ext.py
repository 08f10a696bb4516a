"""RLinf's workers with our classes: over packages with RLinf's module names."""

from __future__ import annotations

import importlib
import logging
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.trajectories import make_trajectory

import zarrbuf
from zarrbuf import rlinf_ext
from zarrbuf.errors import InvalidInputError, NotFoundError

BUFFER = """
    class TrajectoryCache: ...
    class PriorityStore: ...
    class TrajectoryReplayBuffer: ...
"""
DATASETS = """
    class ReplayBufferDataset: ...
    class PreloadReplayBufferDataset(ReplayBufferDataset): ...
    def replay_buffer_collate_fn(batch): return batch[0]
"""
NAMES = "TrajectoryReplayBuffer, PriorityStore, TrajectoryCache"
DATASET_NAMES = "ReplayBufferDataset, PreloadReplayBufferDataset"
NEW = {
    "data/storage/replay/buffer.py": BUFFER,
    "data/storage/replay/dataset.py": DATASETS,
    "data/storage/replay/__init__.py": f"""
    from rlinf.data.storage.replay.buffer import {NAMES}
    from rlinf.data.storage.replay.dataset import {DATASET_NAMES}
    """,
    "data/storage/__init__.py": f"""
    from rlinf.data.storage.replay import {NAMES}, {DATASET_NAMES}
    """,
    "workers/actor.py": f"""
    from rlinf.data.storage.replay import {DATASET_NAMES}
    from rlinf.data.storage.replay import TrajectoryReplayBuffer as Buffer
    """,
}
OLD = {
    "data/replay_buffer.py": BUFFER,
    "data/embodied_buffer_dataset.py": DATASETS,
    "workers/actor.py": f"""
    from rlinf.data.replay_buffer import TrajectoryReplayBuffer as Buffer
    from rlinf.data.embodied_buffer_dataset import {DATASET_NAMES}
    """,
}
LATER = {
    "workers/late.py": """
    from rlinf.workers.actor import Buffer, PreloadReplayBufferDataset
    """
}
LAYOUTS = {"new": {**NEW, **LATER}, "old": {**OLD, **LATER}}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(rlinf_ext.FORMAT_VARIABLE, raising=False)
    yield
    rlinf_ext.unregister()
    for name in [name for name in sys.modules if name.partition(".")[0] == "rlinf"]:
        del sys.modules[name]


@pytest.fixture(params=sorted(LAYOUTS))
def layout(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    name: str = request.param
    install(LAYOUTS[name], tmp_path, monkeypatch)
    return name


def install(
    files: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Make a package `rlinf` of these files and let it be imported."""
    for name, text in files.items():
        path = folder / "site" / "rlinf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(folder / "site")
    importlib.invalidate_caches()


def load_as_a_worker_does(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a worker's module, then what the variable names, and return the first."""
    actor = importlib.import_module("rlinf.workers.actor")
    monkeypatch.setenv("RLINF_EXT_MODULE", "zarrbuf.rlinf_ext")
    importlib.import_module("zarrbuf.rlinf_ext").register()
    return actor


def names_of(module: Any) -> dict[str, Any]:
    """Return the classes and functions that a module binds."""
    return {n: v for n, v in vars(module).items() if hasattr(v, "__qualname__")}


def test_every_name_is_ours_and_again_theirs(
    layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor = importlib.import_module("rlinf.workers.actor")
    modules = {n: m for n, m in sys.modules.items() if n.partition(".")[0] == "rlinf"}
    before = {name: names_of(module) for name, module in modules.items()}
    assert load_as_a_worker_does(monkeypatch) is actor
    late: Any = importlib.import_module("rlinf.workers.late")
    for module in (actor, late):
        assert issubclass(module.Buffer, zarrbuf.TrajectoryReplayBuffer)
        ours = zarrbuf.PreloadReplayBufferDataset
        assert module.PreloadReplayBufferDataset is ours
    assert actor.ReplayBufferDataset is zarrbuf.ReplayBufferDataset
    for name, module in modules.items():
        for one, value in names_of(module).items():
            is_theirs = value is before[name][one]
            is_class = one == "Buffer" or one in (
                "TrajectoryReplayBuffer",
                "ReplayBufferDataset",
                "PreloadReplayBufferDataset",
            )
            assert is_theirs is not is_class, f"{name}.{one}"
    rlinf_ext.unregister()
    assert {name: names_of(module) for name, module in modules.items()} == before
    assert late.Buffer is before["rlinf.workers.actor"]["Buffer"]


def test_asked_twice_it_acts_and_speaks_once(
    layout: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    actor = load_as_a_worker_does(monkeypatch)
    ours = actor.Buffer
    rlinf_ext.register()
    assert actor.Buffer is ours
    (message,) = caplog.messages
    assert "TrajectoryReplayBuffer, ReplayBufferDataset" in message
    assert ("storage.replay" in message) is (layout == "new")


@pytest.mark.parametrize("chosen", [None, "", "zarr", "pkl"])
def test_the_format_is_the_variables_or_what_rlinf_asks_for(
    layout: str, chosen: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if chosen is not None:
        monkeypatch.setenv(rlinf_ext.FORMAT_VARIABLE, chosen)
    actor = load_as_a_worker_does(monkeypatch)
    asks: list[tuple[Any, Any]] = [
        ((), {}),
        ((), {"trajectory_format": "pt"}),
        ((1234, True, 5, 100, False, "", "pt"), {}),
    ]
    for number, (arguments, named) in enumerate(asks):
        buffer = actor.Buffer(*arguments, **named)
        buffer.add_trajectories([make_trajectory(4, 2)])
        buffer.save_checkpoint(tmp_path / f"{number}")
        found = zarrbuf.list_buffer(tmp_path / f"{number}")
        assert found.kind == (chosen or "pt")
    asked = actor.Buffer(trajectory_format="pkl").trajectory_format
    assert asked == (chosen or "pkl")


def test_a_format_that_is_none_changes_nothing(
    layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = importlib.import_module("rlinf.workers.actor").Buffer
    monkeypatch.setenv(rlinf_ext.FORMAT_VARIABLE, "hdf5")
    with pytest.raises(InvalidInputError, match=r"ZARRBUF_FORMAT is 'hdf5'.*zarr, pt"):
        rlinf_ext.register()
    assert importlib.import_module("rlinf.workers.actor").Buffer is theirs


def test_without_rlinf_it_says_so() -> None:
    with pytest.raises(NotFoundError, match=r"no rlinf\.data\.storage\.replay or"):
        rlinf_ext.register()


def test_an_rlinf_that_lacks_a_package_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {**NEW, "data/storage/__init__.py": "import no_such_package"}
    install(files, tmp_path, monkeypatch)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        rlinf_ext.register()
