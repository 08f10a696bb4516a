"""Which store lies at a path, or is made there; what a caller may name as a buffer.

Owns what may not be mixed in one folder, and that an open buffer is saved before others
look at what it saved. Knows no batch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from zarrbuf.archive.zarr_json import CodecName
from zarrbuf.errors import InvalidInputError, NotFoundError
from zarrbuf.manifest.layout import ROOT_NAME
from zarrbuf.rlinf.index import (
    FILE_FORMATS,
    METADATA_NAME,
    FileFormat,
    check_no_version,
    is_rlinf_folder,
)
from zarrbuf.storage.contract import Storage
from zarrbuf.storage.local import LocalStorage
from zarrbuf.storage.resolve import Location, StorageOptions, open_storage
from zarrbuf.stores.logged import LogStore
from zarrbuf.stores.rlinf_folder import RlinfStore

_LOG: Final = logging.getLogger("zarrbuf")
FORMATS: Final = ("zarr", *FILE_FORMATS)
DEFAULT_FOLDER: Final = "logs"
"""Where buffers save to that are not told, below the working directory."""
LastingStore = LogStore | RlinfStore
"""A store that is there when the process has ended."""


def check_format(name: str, value: str) -> str:
    """Return `value` if it is a format that buffers have.

    Raises:
        InvalidInputError: otherwise, naming the argument and those that there are.
    """
    if value not in FORMATS:
        raise InvalidInputError(
            f"{name} is {value!r}; allowed are {', '.join(FORMATS)}"
        )
    return value


def format_at(storage: Storage) -> str | None:
    """Return the format of what lies on a storage, None if nothing does."""
    if isinstance(storage, LocalStorage) and is_rlinf_folder(storage.root):
        return RlinfStore.open(storage.root).suffix
    return "zarr" if storage.exists(ROOT_NAME) else None


def default_path() -> str:
    """Return where a buffer saves to that is not told.

    `$ZARRBUF_LOG_DIR` (or `logs`) + `/replay_buffer/rank_{RANK or 0}`.
    """
    log_dir = os.environ.get("ZARRBUF_LOG_DIR", DEFAULT_FOLDER)
    rank = os.environ.get("RANK", "0")
    path = os.path.join(log_dir, "replay_buffer", f"rank_{rank}")
    _LOG.info("trajectories are saved below %s", os.path.abspath(path))
    return path


def open_store(
    place: Location | Storage, *, version: int | None = None
) -> LastingStore:
    """Open the buffer or RLinf folder at a path or on a storage, whichever it is.

    Args:
        place: path, URL or storage.
        version: open a buffer as it was after that commit, 0 for empty; None for now.

    Raises:
        InvalidInputError: if a version of an RLinf folder is asked for, or it is no
            whole number.
        NotFoundError: if neither is there.
        FormatError: if it is damaged.
    """
    storage = place if isinstance(place, Storage) else open_storage(place)
    if isinstance(storage, LocalStorage) and not storage.exists(ROOT_NAME):
        if is_rlinf_folder(storage.root):
            check_no_version(storage.root, version)
            return RlinfStore.open(storage.root)
        raise NotFoundError(
            f"{storage.url} holds no replay buffer: neither {ROOT_NAME} nor RLinf's "
            f"{METADATA_NAME} is there"
        )
    return LogStore.open(storage, version=version)


def open_or_create_store(
    storage: Storage, *, trajectory_format: str, seed: int | None, codec: CodecName
) -> LastingStore:
    """Open the store of a format on a storage, or make it there.

    Args:
        storage: local for "pt" and "pkl".
        trajectory_format: "zarr", "pt" or "pkl".
        seed: kept in a new store.
        codec: kept in a new store.

    Raises:
        InvalidInputError: if a store of another format is there.
        FormatError: if what is there is damaged.
    """
    if trajectory_format == "zarr":
        return open_or_create_log_store(storage, seed=seed, codec=codec)
    file_format: FileFormat = "pt" if trajectory_format == "pt" else "pkl"
    return open_or_create_folder(storage, seed=seed, file_format=file_format)


def open_or_create_log_store(
    storage: Storage, *, seed: int | None, codec: CodecName
) -> LogStore:
    """Open the zarrbuf buffer on a storage, or make it there.

    Raises:
        InvalidInputError: if a folder of RLinf's is there.
    """
    if isinstance(storage, LocalStorage) and is_rlinf_folder(storage.root):
        raise InvalidInputError(
            f"{storage.url} holds files of RLinf's, not a zarrbuf buffer; choose "
            "another folder, or convert it with `zarrbuf convert`"
        )
    return LogStore.open_or_create(storage, seed=seed, codec=codec)


def open_or_create_folder(
    storage: Storage, *, seed: int | None, file_format: FileFormat
) -> RlinfStore:
    """Open the folder of RLinf's on a storage, or make it there.

    Raises:
        InvalidInputError: if a zarrbuf buffer, or the other file format, is there.
    """
    folder = local_folder(storage)
    if os.path.exists(folder / ROOT_NAME):
        raise InvalidInputError(
            f"{folder} holds a zarrbuf buffer, not {file_format} files; choose "
            "another folder"
        )
    return RlinfStore.open_or_create(folder, seed=seed, file_format=file_format)


def local_folder(storage: Storage) -> Path:
    """Return the local folder that a storage is.

    Raises:
        InvalidInputError: if it is another kind of storage.
    """
    if not isinstance(storage, LocalStorage):
        raise InvalidInputError(
            f"path {storage.url!r} is not allowed for pt and pkl files; they need "
            "a local path"
        )
    return storage.root


def is_buffer(source: Any) -> bool:
    """Whether a caller named an open buffer, not a place."""
    return hasattr(source, "flush")


def location_of(source: Any) -> Location:
    """Return where a buffer lies; what an open one has queued is saved first.

    Raises:
        InvalidInputError: if it is a buffer in memory.
        StorageError: if saving failed.
    """
    if not is_buffer(source):
        found: Location = source
        return found
    source.flush()
    if source.url is None:
        raise InvalidInputError(
            "the buffer holds trajectories in memory or loaded from elsewhere; save it "
            "by save_checkpoint, and name that path"
        )
    url: str = source.url
    return url


def open_source(
    source: Any,
    storage_options: StorageOptions | None,
    allow_bases: Sequence[Location] = (),
) -> LastingStore:
    """Open the store of a buffer, or of a folder of RLinf's.

    Raises:
        InvalidInputError: if it is a buffer in memory.
        NotFoundError: if there is none.
    """
    path = location_of(source)
    return open_store(open_storage(path, storage_options, allow_bases=allow_bases))


def open_log_store(
    source: Any,
    storage_options: StorageOptions | None,
    *,
    what: str,
    allow_bases: Sequence[Location] = (),
) -> LogStore:
    """Open the store of a buffer of zarrbuf's.

    Args:
        source: path, URL or open buffer.
        storage_options: for object stores.
        what: what is done with it, for the message.
        allow_bases: what its manifest may name besides what lies beside it.

    Raises:
        InvalidInputError: if it is a folder of RLinf's, or in memory.
        NotFoundError: if there is none.
    """
    store = open_source(source, storage_options, allow_bases)
    if not isinstance(store, LogStore):
        raise InvalidInputError(
            f"{store.url} holds {store.suffix} files of RLinf's, which {what} does not "
            "change; convert it first (zarrbuf convert)"
        )
    return store
