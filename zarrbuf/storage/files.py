"""Local files that others may read while they are written anew: images and clips.

Owns that whoever reads one sees the old file or the new one, and that no part of one is
left behind. Knows no format.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress

from zarrbuf.common.uuids import new_uuid
from zarrbuf.errors import InvalidInputError, StorageError


def check_local_file(path: str | os.PathLike[str]) -> str:
    """Return `path` as text, if a file is or can be there.

    Raises:
        InvalidInputError: if it is a URL, or something else than a file is there.
    """
    name = os.fspath(path)
    if "://" in name:
        raise InvalidInputError(f"{name} is a URL; a local file is needed")
    if not name or (os.path.exists(name) and not os.path.isfile(name)):
        raise InvalidInputError(f"{name!r} is no file; name one, or a new one")
    return name


def write_whole(path: str | os.PathLike[str], write: Callable[[str], None]) -> None:
    """Have a file written under another name, and put it in its place when it is whole.

    Args:
        path: of a file, or of none yet; a link is followed.
        write: writes a file of the name that it is given, which ends as `path` does.

    Raises:
        InvalidInputError: if it is a URL, or something else than a file is there.
        StorageError: if it cannot be written; an older one stays.
    """
    shown = check_local_file(path)
    target = os.path.realpath(shown)
    directory, name = os.path.split(target)
    suffix = os.path.splitext(name)[1]
    partial = os.path.join(directory, f".{new_uuid()[:8]}{suffix}")
    try:
        write(partial)
        with suppress(FileNotFoundError):
            shutil.copymode(target, partial)
        os.replace(partial, target)
    except OSError as exc:
        raise StorageError(
            f"{shown}: cannot be written: {exc.strerror or exc}"
        ) from exc
    finally:
        with suppress(OSError):
            os.remove(partial)
