"""DataLoader workers, however they are started, over every kind of storage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.remote import loaded, memory_url, save, with_cameras
from support.s3 import S3
from torch.utils.data import DataLoader, IterableDataset

from zarrbuf import TrajectoryReplayBuffer

STARTS = ("fork", "forkserver", "spawn")
PLACES = ("local", "memory", "s3fs", "obstore")
CASES = [
    (start, place)
    for start in STARTS
    for place in PLACES
    if place != "memory" or start == "fork"  # the memory is that of one process
]


class Batches(IterableDataset[Any]):
    """Batches of a buffer: one that is there already, or one opened by each worker."""

    def __init__(
        self, url: str, options: Any, buffer: TrajectoryReplayBuffer | None
    ) -> None:
        self.url, self.options, self.buffer = url, options, buffer

    def __iter__(self) -> Iterator[Any]:
        buffer = self.buffer or loaded(self.url, self.options, prefetch_batches=2)
        for _ in range(4):
            yield buffer.sample(6)


def place_of(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if name == "local":
        return str(tmp_path / "buffer"), None
    if name == "memory":
        return memory_url(), None
    s3: S3 = request.getfixturevalue("s3")
    return s3.url(), s3.options(name)


def check_workers(start: str, url: str, options: Any, *, times: int) -> None:
    save(url, options, with_cameras(3, num_steps=12))
    own = loaded(url, options, prefetch_batches=2)
    for _ in range(3):
        own.sample(6)
    for number in range(times):
        # Forked workers may use the parent's buffer, in the middle of its work.
        shared = own if start == "fork" and number % 2 == 0 else None
        loader = DataLoader(
            Batches(url, options, shared),
            batch_size=None,
            num_workers=2,
            multiprocessing_context=start,
            timeout=60,
        )
        sizes = [len(batch["rewards"]) for batch in loader]
        assert sizes == [6] * 8
        assert len(own.sample(6)["rewards"]) == 6
    own.close()


@pytest.mark.parametrize(("start", "place"), CASES)
def test_workers_draw(
    start: str, place: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url, options = place_of(place, request, tmp_path)
    check_workers(start, url, options, times=2 if start == "fork" else 1)


@pytest.mark.long
@pytest.mark.parametrize(("start", "place"), CASES)
def test_workers_draw_forty_times(
    start: str, place: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url, options = place_of(place, request, tmp_path)
    check_workers(start, url, options, times=40)


def test_a_forked_child_without_another_client_is_told_what_to_do(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zarrbuf.storage.file_systems._used_obstore_in", {1})
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name: None if name == "s3fs" else real(name),
    )
    with pytest.raises(OSError, match=r"forkserver or spawn, or install zarrbuf\[s3\]"):
        s3.storage(client="obstore").read("x")


def test_tensors_reach_the_parent_whole(s3: S3) -> None:
    url, options = s3.url(), s3.options("s3fs")
    save(url, options, with_cameras(1))
    loader = DataLoader(
        Batches(url, options, None),
        batch_size=None,
        num_workers=1,
        multiprocessing_context="spawn",
    )
    here = loaded(url, options)
    for batch in loader:
        expected = here.sample(6)
        assert torch.equal(batch["rewards"], expected["rewards"])
        assert torch.equal(batch["curr_obs"]["left"], expected["curr_obs"]["left"])
