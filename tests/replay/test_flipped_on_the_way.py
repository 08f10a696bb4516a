"""A bit that is flipped on its way from a store costs requests, and no batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.batches import assert_same_batch, draw, generator
from support.numbered import contents, make
from support.remote import loaded, memory_url, save, with_cameras

from zarrbuf.errors import FormatError
from zarrbuf.storage.contract import Range
from zarrbuf.storage.object_store import ObjectStorage


class Flips:
    """Flips a bit in the middle of some answers that are asked for.

    Attributes:
        number: which answers about archives, from 0; None for all.
        count: how many there were.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.number: range | None = range(0)
        self.count = 0
        read_ranges = ObjectStorage.read_ranges

        def read(storage: ObjectStorage, ranges: Sequence[Range]) -> list[bytes]:
            found = read_ranges(storage, ranges)
            for position, one in enumerate(ranges):
                if not one.name.startswith("trajectories/"):
                    continue
                if self.number is None or self.count in self.number:
                    data = bytearray(found[position])
                    data[len(data) // 2] ^= 4
                    found[position] = bytes(data)
                self.count += 1
            return found

        patch.setattr(ObjectStorage, "read_ranges", read)


@pytest.fixture
def flips(monkeypatch: pytest.MonkeyPatch) -> Flips:
    return Flips(monkeypatch)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("kept", ["memory", "disk"])
def test_every_batch_is_right_whichever_answer_was_flipped(
    kept: str, prefetch: int, flips: Flips, tmp_path: Path
) -> None:
    url, trajectories = memory_url(), with_cameras(3)
    save(url, None, trajectories)
    flips.count = 0
    with loaded(url) as buffer:
        buffer.sample(20)
    num_answers = flips.count
    assert num_answers >= 3
    for number in range(num_answers):
        cache: dict[str, Any] = {}
        if kept == "disk":
            cache = {"cache_dir": tmp_path / str(number)}
        flips.count, flips.number = 0, range(number, number + 1)
        draws = generator(1234)
        with loaded(url, prefetch_batches=prefetch, **cache) as buffer:
            for _ in range(3):
                assert_same_batch(buffer.sample(20), draw(trajectories, 20, draws))
        flips.number = range(0)
        draws = generator(1234)
        with loaded(url, **cache) as buffer:  # what another process finds on disk
            assert_same_batch(buffer.sample(20), draw(trajectories, 20, draws))


def test_whole_trajectories_are_fetched_again_too(flips: Flips) -> None:
    url = memory_url()
    make(url, 0, 2)
    flips.count, flips.number = 0, range(1)
    assert contents(url) == [(0, 0), (1, 1)]


def test_what_is_flipped_in_the_store_is_told_after_the_second_time(
    flips: Flips,
) -> None:
    url = memory_url()
    save(url, None, with_cameras(1))
    flips.count, flips.number = 0, None
    with loaded(url) as buffer, pytest.raises(FormatError):
        buffer.sample(20)
    asked = flips.count
    flips.number = range(0)
    with loaded(url) as buffer:
        buffer.sample(20)
        assert asked <= 2 * flips.count
