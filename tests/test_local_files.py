"""Local files that are replaced whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zarrbuf.errors import InvalidInputError, StorageError
from zarrbuf.local_files import write_whole


def put(data: bytes, name: str) -> None:
    Path(name).write_bytes(data)


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"old")

    def write(name: str) -> None:
        assert name.endswith("x.png")
        put(b"new", name)
        assert path.read_bytes() == b"old"

    write_whole(path, write)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError])
def test_whatever_stops_it_leaves_the_old_one_alone(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"old")

    def write(name: str) -> None:
        put(b"half", name)
        raise error

    with pytest.raises(StorageError if error is OSError else error):
        write_whole(path, write)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target = tmp_path / "there" / "x.png"
    target.write_bytes(b"old")
    link = tmp_path / "link.png"
    link.symlink_to(target)
    write_whole(link, lambda name: put(b"new", name))
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_what_is_no_file_is_left_as_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder").mkdir()
    for name in (tmp_path / "pipe.png", tmp_path / "folder", "", "s3://bucket/x.png"):
        with pytest.raises(InvalidInputError, match=r"is no file|is a URL"):
            write_whole(name, lambda name: put(b"new", name))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["folder", "pipe.png"]
    assert (tmp_path / "pipe.png").is_fifo()


def test_the_file_that_was_asked_for_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none" / "x.png"
    with pytest.raises(StorageError, match=r"x\.png: cannot be written: No such file"):
        write_whole(path, lambda name: put(b"new", name))
