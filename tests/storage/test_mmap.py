"""Files as memory: the same bytes, no descriptor, gone with the last view."""

from __future__ import annotations

import gc
import mmap
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.batches import assert_same_batch, draw, generator
from support.trajectories import make_trajectory

from zarrbuf import TrajectoryReplayBuffer
from zarrbuf.storage import mmap as mapping
from zarrbuf.storage.local import LocalStorage
from zarrbuf.storage.mmap import TAIL_BYTES, are_in_memory, map_file, will_need

PAGE = mmap.PAGESIZE
SIZES = [
    *(0, 1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE + 17),
    *(TAIL_BYTES - 1, TAIL_BYTES, TAIL_BYTES + 1, TAIL_BYTES + PAGE, (3 << 20) + 5),
]


def content(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


def mapped(path: Path) -> memoryview:
    with path.open("rb") as file:
        return map_file(file.fileno())


def is_mapped(path: Path) -> bool:
    """Whether the system lists the file among what this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return any(str(path) in line for line in lines)


@pytest.mark.parametrize("size", SIZES)
def test_a_mapped_file_has_its_bytes(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x"
    data = content(size)
    path.write_bytes(data)
    view = mapped(path)
    assert len(view) == view.nbytes == size
    assert (view.format, view.itemsize, view.ndim) == ("B", 1, 1)
    assert view == data
    assert bytes(view) == data
    assert bytes(view[size // 3 : size // 2]) == data[size // 3 : size // 2]
    assert np.frombuffer(view, np.uint8).tobytes() == data
    assert bytes(view[-5:]) == data[-5:]


def test_nobody_can_write_to_a_mapped_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(content(100))
    view = mapped(path)
    assert view.readonly
    with pytest.raises(TypeError, match="read-only"):
        view[3] = 1
    array = np.asarray(view)
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        array[3] = 1
    with pytest.raises(ValueError, match="cannot set WRITEABLE flag"):
        array.flags.writeable = True
    assert path.read_bytes() == content(100)
    lines = Path("/proc/self/maps").read_text().splitlines()
    assert [line.split()[1] for line in lines if str(path) in line] == ["r--s"]


def open_descriptors() -> int:
    gc.collect()  # what other tests left
    return len(os.listdir("/proc/self/fd"))


def test_no_descriptor_is_kept(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / str(number)).write_bytes(content(PAGE + number))
    storage = LocalStorage(tmp_path)
    before = open_descriptors()
    views = [storage.open_source(str(number)) for number in range(50)]
    assert open_descriptors() == before
    assert [len(view) for view in views] == [PAGE + number for number in range(50)]


HOLDERS: dict[str, Any] = {
    "the view": lambda view: view,
    "a slice": lambda view: view[10:11],
    "a slice of a slice": lambda view: view[10:][:5][1:],
    "an array": lambda view: np.frombuffer(view, np.uint8),
    "a row of an array": lambda view: np.frombuffer(view, "<u2")[7:8],
    "another view": lambda view: memoryview(np.asarray(view)),
}


@pytest.mark.parametrize("kind", HOLDERS)
def test_pages_stay_mapped_as_long_as_somebody_has_a_view(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "pages"
    path.write_bytes(content(5 * PAGE))
    view = mapped(path)
    holder = HOLDERS[kind](view)
    expected = bytes(holder)
    del view
    assert is_mapped(path)
    assert bytes(holder) == expected
    del holder
    assert not is_mapped(path)


def test_an_empty_file_is_not_mapped(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_bytes(b"")
    view = mapped(path)
    assert view == b""
    assert not is_mapped(path)


@pytest.mark.parametrize("change", ["delete", "replace"])
def test_a_file_that_is_gone_can_still_be_read(tmp_path: Path, change: str) -> None:
    path = tmp_path / "x"
    data = content(2 * TAIL_BYTES)
    path.write_bytes(data)
    view = mapped(path)
    if change == "delete":
        path.unlink()
    else:
        other = tmp_path / "other"
        other.write_bytes(b"other content")
        other.replace(path)
    assert view == data


def test_what_cannot_be_mapped_is_an_error_of_the_system(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(content(10))
    fd = os.open(path, os.O_WRONLY)
    try:
        with pytest.raises(PermissionError):
            map_file(fd)
    finally:
        os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        map_file(fd)


# Asking for pages.


class Advice:
    """Stands in for the C library: notes which pages are asked for."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, int]] = []

    def madvise(self, address: int, num_bytes: int, advice: int) -> int:
        assert advice == mmap.MADV_WILLNEED
        assert address % PAGE == 0
        self.runs.append((address, address + num_bytes))
        return -1  # advice may fail, and nobody has to care


def asked_for(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the runs of pages that are asked for, in pages."""
    advice = Advice()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapping, "_LIBC", advice)
        table = np.array(ranges, np.int64).reshape(-1, 2)
        kept = table.copy()
        assert will_need(table) == len(advice.runs)
        assert (table == kept).all()
    return [(start // PAGE, -(-stop // PAGE)) for start, stop in advice.runs]


@pytest.mark.parametrize(
    ("ranges", "runs"),
    [
        ([], []),
        ([(0, 1)], [(0, 1)]),
        ([(PAGE - 1, PAGE + 1)], [(0, 2)]),
        ([(0, PAGE)], [(0, 1)]),
        ([(PAGE, 2 * PAGE), (0, PAGE)], [(0, 2)]),
        ([(5, 6), (5, 6), (5, 6)], [(0, 1)]),
        ([(7 * PAGE, 8 * PAGE), (2 * PAGE, 3 * PAGE)], [(2, 3), (7, 8)]),
        ([(0, 9 * PAGE), (PAGE, 2 * PAGE), (5 * PAGE, 6 * PAGE)], [(0, 9)]),
        ([(0, 9 * PAGE), (PAGE, 2 * PAGE), (9 * PAGE, 9 * PAGE + 1)], [(0, 10)]),
        ([(0, 9 * PAGE), (PAGE, 2), (10 * PAGE, 10 * PAGE + 1)], [(0, 9), (10, 11)]),
    ],
)
def test_pages_are_asked_for_once_in_as_few_runs_as_there_are(
    ranges: list[tuple[int, int]], runs: list[tuple[int, int]]
) -> None:
    assert asked_for(ranges) == runs


@given(
    st.lists(
        st.tuples(st.integers(0, 40 * PAGE), st.integers(1, 5 * PAGE))
        | st.tuples(st.integers(0, 40).map(PAGE.__mul__), st.just(PAGE)),
        max_size=30,
    ),
    st.sampled_from((0, 2**46)),
)
def test_the_pages_asked_for_are_those_of_the_ranges(
    ranges: list[tuple[int, int]], base: int
) -> None:
    wanted: set[int] = set()
    for start, size in ranges:
        wanted |= set(range((base + start) // PAGE, -(-(base + start + size) // PAGE)))
    runs = asked_for([(base + start, base + start + size) for start, size in ranges])
    pages = [page for start, stop in runs for page in range(start, stop)]
    assert pages == sorted(wanted)  # each once, in order
    # As few runs as there are: one per page that has none right before it.
    assert len(runs) == sum(page - 1 not in wanted for page in wanted)


def test_real_pages_may_be_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(content(20 * PAGE))
    view = mapped(path)
    first = np.frombuffer(view, np.uint8).ctypes.data
    starts = first + np.array([0, 7 * PAGE + 5, 19 * PAGE])
    assert will_need(np.stack([starts, starts + 100], 1)) == 3
    assert will_need(np.stack([starts, starts + 8 * PAGE], 1)) == 2
    assert view == content(20 * PAGE)
    # Addresses where nothing is: advice that fails is no error.
    nowhere = np.array([PAGE])
    assert will_need(np.stack([nowhere, nowhere + 1], 1)) == 1


def test_pages_nobody_has_read_are_not_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "hole"
    with path.open("wb") as file:
        file.truncate(600 * PAGE)  # nothing was written: no page of it is in memory
    view = mapped(path)
    first = np.frombuffer(view, np.uint8).ctypes.data
    touched, untouched = first + 7 * PAGE + 5, first + 300 * PAGE
    assert not are_in_memory([touched])
    assert view[7 * PAGE + 5] == 0
    assert are_in_memory([touched])
    assert not are_in_memory([touched, untouched])
    assert are_in_memory([])
    assert are_in_memory([PAGE])  # what cannot be told counts as in memory


@contextmanager
def few_descriptors(count: int) -> Iterator[None]:
    """Let this process have no more than `count` descriptors besides those it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_window_may_have_more_archives_than_descriptors(tmp_path: Path) -> None:
    added = [make_trajectory(2, 1, seed=number) for number in range(100)]
    with TrajectoryReplayBuffer(auto_save=True, auto_save_path=tmp_path) as buffer:
        buffer.add_trajectories(added)
    with TrajectoryReplayBuffer(
        seed=3, auto_save=True, auto_save_path=tmp_path, sample_window_size=0
    ) as buffer:
        state = generator(3)
        assert_same_batch(buffer.sample(1), draw(added, 1, state))
        before = open_descriptors()
        with few_descriptors(20):
            for _ in range(2):
                batch = buffer.sample(500)
            assert open_descriptors() == before
        draw(added, 500, state)
        assert_same_batch(batch, draw(added, 500, state))
        stats = buffer.get_stats(detailed=True)
        assert stats["archives_opened"] > 90


def test_sampling_from_files_that_are_deleted_goes_on(tmp_path: Path) -> None:
    added = [make_trajectory(4, 2, seed=number) for number in range(3)]
    with TrajectoryReplayBuffer(
        seed=3, auto_save=True, auto_save_path=tmp_path
    ) as buffer:
        buffer.add_trajectories(added)
        buffer.flush()
        state = generator(3)
        assert_same_batch(buffer.sample(50), draw(added, 50, state))
        for path in tmp_path.glob("trajectories/*/*.zip"):
            path.unlink()
        assert_same_batch(buffer.sample(50), draw(added, 50, state))
