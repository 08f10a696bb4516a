"""A run without an end keeps its newest trajectories, and no more of the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.clock import put_forward
from support.numbered import contents, numbered
from support.remote import loaded

import zarrbuf
from zarrbuf import TrajectoryReplayBuffer
from zarrbuf.errors import InvalidInputError, StorageError
from zarrbuf.storage.local import LocalStorage
from zarrbuf.upkeep import retention


def run(path: Path, count: int, **more: Any) -> TrajectoryReplayBuffer:
    """Append trajectories one by one; the buffer is open then."""
    buffer = TrajectoryReplayBuffer(
        auto_save=True, auto_save_path=str(path), sample_window_size=8, **more
    )
    for number in range(count):
        buffer.add_trajectories(numbered(number, 1))
        buffer.flush()
    return buffer


def archives(path: Path) -> int:
    return len(list(path.glob("trajectories/*/*.zip")))


def test_the_newest_stay_listed(tmp_path: Path) -> None:
    with run(tmp_path / "a", 40, retention=16) as buffer:
        assert buffer.is_ready(40)
        drawn = buffer.sample(300)["rewards"].unique().tolist()
        assert drawn == list(range(32, 40))
    listed = contents(tmp_path / "a")
    assert listed[-16:] == [(n, n) for n in range(24, 40)]
    assert 16 <= len(listed) <= 17
    assert archives(tmp_path / "a") == 40  # others may read them for an hour
    assert zarrbuf.verify(tmp_path / "a").is_sound


def test_the_disk_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour passes with each trajectory, and vacuums are due at any time."""
    hours = [0]
    put_forward(monkeypatch, lambda: 2 * hours[0])
    monkeypatch.setattr(retention, "_VACUUM_INTERVAL_S", 0.0)
    buffer = run(tmp_path / "a", 10, retention=8)
    for number in range(10, 60):
        hours[0] += 1
        buffer.add_trajectories(numbered(number, 1))
        buffer.flush()
        assert archives(tmp_path / "a") <= 20
    buffer.close()
    assert contents(tmp_path / "a")[-8:] == [(n, n) for n in range(52, 60)]


def test_a_reader_of_an_older_list_goes_on(tmp_path: Path) -> None:
    buffer = run(tmp_path / "a", 8, retention=8)
    reader = loaded(str(tmp_path / "a"))
    for number in range(8, 30):
        buffer.add_trajectories(numbered(number, 1))
    buffer.close()
    assert reader.sample(200)["rewards"].unique().tolist() == list(range(8))


def test_what_fails_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    create = LocalStorage.create
    refuse = [True]

    def fail(self: LocalStorage, name: str, data: bytes) -> Any:
        if refuse[0] and b'"op":"retention"' in data:
            raise StorageError(f"cannot create {name}: Input/output error")
        return create(self, name, data)

    monkeypatch.setattr(LocalStorage, "create", fail)
    buffer = run(tmp_path / "a", 14, retention=8)
    assert "stay for now" in caplog.text
    assert len(contents(tmp_path / "a")) == 14
    refuse[0] = False
    buffer.add_trajectories(numbered(14, 1))
    buffer.close()
    assert len(contents(tmp_path / "a")) == 8


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"retention": 7}, "at least the sample_window_size, which is 8"),
        ({"retention": 0}, "retention is 0"),
        ({"retention": 2.5}, "retention is 2.5"),
        ({"retention": 9, "sample_window_size": 0}, "which is all"),
        ({"retention": 9, "auto_save": False}, "auto_save=True"),
        ({"retention": 9, "trajectory_format": "pt"}, "as zarr"),
    ],
)
def test_what_cannot_be_kept_is_refused(
    tmp_path: Path, given: dict[str, Any], words: str
) -> None:
    options: dict[str, Any] = {"auto_save": True, "sample_window_size": 8, **given}
    with pytest.raises(InvalidInputError, match=words):
        TrajectoryReplayBuffer(auto_save_path=str(tmp_path / "a"), **options)
