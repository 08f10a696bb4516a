"""What is taken off a list, and what of it stays readable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.numbered import contents, files_below, make, numbered
from support.remote import loaded, memory_url
from support.s3 import S3

import zarrbuf
from zarrbuf import TrajectoryReplayBuffer, prune, remove
from zarrbuf.errors import (
    InvalidInputError,
    NotFoundError,
    TrajectoryNotFoundError,
)
from zarrbuf.manifest.commit_log import open_log
from zarrbuf.storage.resolve import open_storage


def test_what_is_removed_is_off_the_list_and_on_the_disk(tmp_path: Path) -> None:
    a = make(tmp_path / "a", 0, 6)
    before = files_below(tmp_path / "a" / "trajectories")
    done = remove(a, "1,3-4")
    assert contents(a) == [(0, 0), (2, 2), (5, 5)]
    assert (done.num_removed, done.num_left) == (3, 3)
    assert files_below(tmp_path / "a" / "trajectories") == before
    removed = [len(data) for data in before.values()]
    assert done.num_bytes == sum(removed) // 2  # they are of one size
    assert zarrbuf.verify(a).is_sound
    make(a, 9, 1)  # ids are never given twice
    assert contents(a)[-1] == (6, 9)


def test_who_reads_an_older_version_goes_on(tmp_path: Path) -> None:
    a = make(tmp_path / "a", 0, 4)
    reader = loaded(a)
    remove(a, [0, 1])
    assert set(reader.sample(40)["rewards"].unique().tolist()) == {0, 1, 2, 3}
    reader.refresh()
    assert set(reader.sample(40)["rewards"].unique().tolist()) == {2, 3}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"keep_newest": 2}, [4, 5]),
        ({"keep_newest": 9}, [0, 1, 2, 3, 4, 5]),
        ({"keep": "mean_return >= 9"}, [3, 4, 5]),
        ({"keep": "trajectory_id in (0, 5)"}, [0, 5]),
        ({"keep": "T > 100"}, []),
        ({"keep_bytes": 1}, []),
        ({"keep_bytes": 10**12}, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_prune_keeps_what_was_asked_for(
    tmp_path: Path, given: dict[str, Any], expected: list[int]
) -> None:
    a = make(tmp_path / "a", 0, 6)
    done = prune(a, **given)
    assert [n for _, n in contents(a)] == expected
    assert done.num_removed == 6 - len(expected)


def test_prune_by_bytes_keeps_no_more_than_that(tmp_path: Path) -> None:
    a = make(tmp_path / "a", 0, 6)
    sizes = zarrbuf.list_buffer(a).rows.column("size").tolist()
    prune(a, keep_bytes=sum(sizes[-3:]))
    assert [n for _, n in contents(a)] == [3, 4, 5]
    prune(a, keep_bytes=sum(sizes[-3:]) - 1)
    assert [n for _, n in contents(a)] == [4, 5]


def test_an_open_buffer_is_saved_first(tmp_path: Path) -> None:
    with TrajectoryReplayBuffer(
        auto_save=True, auto_save_path=str(tmp_path / "a"), sample_window_size=0
    ) as buffer:
        buffer.add_trajectories(numbered(0, 5))
        assert prune(buffer, keep_newest=2).num_removed == 3
        buffer.refresh()
        assert buffer.window_trajectories == 2
        buffer.add_trajectories(numbered(7, 1))
    assert contents(tmp_path / "a") == [(3, 3), (4, 4), (5, 7)]


def test_nothing_to_remove_is_no_commit(tmp_path: Path) -> None:
    a = make(tmp_path / "a", 0, 2)
    before = files_below(tmp_path)
    assert prune(a, keep_newest=2).num_removed == 0
    assert files_below(tmp_path) == before


def test_calls_that_cannot_be_done_change_nothing(tmp_path: Path) -> None:
    a = make(tmp_path / "a", 0, 3)
    TrajectoryReplayBuffer(
        auto_save=True, auto_save_path=str(tmp_path / "pt"), trajectory_format="pt"
    ).close()
    before = files_below(tmp_path)
    calls: list[tuple[type[Exception], str, Any]] = [
        (TrajectoryNotFoundError, "no trajectory 7", lambda: remove(a, "1,7")),
        (InvalidInputError, "'-1'", lambda: remove(a, [-1])),
        (InvalidInputError, "''", lambda: remove(a, "")),
        (InvalidInputError, "exactly one", lambda: prune(a)),
        (InvalidInputError, "exactly", lambda: prune(a, keep_newest=1, keep="T > 1")),
        (InvalidInputError, "at least 1", lambda: prune(a, keep_newest=0)),
        (InvalidInputError, "at least 1", lambda: prune(a, keep_bytes=-5)),
        (InvalidInputError, "no row has 'x'", lambda: prune(a, keep="x > 1")),
        (NotFoundError, "none", lambda: remove(tmp_path / "none", "1")),
        (InvalidInputError, "convert it", lambda: remove(tmp_path / "pt", "1")),
    ]
    for kind, words, call in calls:
        with pytest.raises(kind, match=words):
            call()
        assert files_below(tmp_path) == before, words


def test_history_says_what_each_commit_did(tmp_path: Path) -> None:
    a = make(tmp_path / "a", 0, 3)
    zarrbuf.merge([a], tmp_path / "b")
    remove(a, "0")
    found = zarrbuf.read_history(a)
    assert [one["version"] for one in found] == [1, 2, 3, 4]
    assert [one["num_added"] for one in found] == [0, 3, 0, 0]
    assert [one["num_removed"] for one in found] == [0, 0, 0, 1]
    assert [one["op"] for one in found] == ["create", "add", "pin", "remove"]
    assert [len(one["pins"]) for one in found] == [0, 0, 1, 0]
    assert str(tmp_path / "b") in found[2]["pins"][0]
    assert found == sorted(found, key=lambda one: one["time"])
    with pytest.raises(NotFoundError):
        zarrbuf.read_history(tmp_path / "none")


@pytest.mark.parametrize("client", ["s3fs", "obstore"])
def test_buffers_on_an_object_store_are_pruned(s3: S3, client: str) -> None:
    options = s3.options(client)
    a = make(s3.url(), 0, 3, options)
    prune(a, keep_newest=1, storage_options=options)
    assert len(loaded(a, options)) == 1
    assert len(zarrbuf.read_history(a, storage_options=options)) == 3


def test_many_are_removed_at_once() -> None:
    """Several commits where one would be too large; here by a small bound."""
    url = make(memory_url(), 0, 30)
    assert prune(url, keep_newest=3).num_removed == 27
    assert open_log(open_storage(url)).snapshot.table.num_live == 3
