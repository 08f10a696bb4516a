"""Local files that are replaced whole."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest

from zarrbuf.errors import InvalidInputError, StorageError
from zarrbuf.storage.files import write_whole


def put(data: bytes, name: str) -> None:
    Path(name).write_bytes(data)


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"old")

    def write(name: str) -> None:
        assert name.endswith(".png")
        put(b"new", name)
        assert path.read_bytes() == b"old"

    path.chmod(0o600)
    write_whole(path, write)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
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
    for data in (b"new", b"where there was none"):
        write_whole(link, functools.partial(put, data))
        assert link.is_symlink()
        assert target.read_bytes() == data
        target.unlink()


def test_a_name_may_be_as_long_as_names_are(tmp_path: Path) -> None:
    path = tmp_path / f"{'x' * 251}.png"
    write_whole(path, functools.partial(put, b"new"))
    assert path.read_bytes() == b"new"


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
