"""What a caller may name as a buffer: a path, a URL or an open buffer.

Owns that an open buffer is saved before others look at what it saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zarrbuf.errors import InvalidInputError
from zarrbuf.storage.resolve import Location, StorageOptions, open_storage
from zarrbuf.stores.contract import TrajectoryStore
from zarrbuf.stores.logged import LogStore
from zarrbuf.stores.opening import open_store


def location_of(source: Any) -> Location:
    """Return where a buffer lies; what an open one has queued is saved first.

    Raises:
        InvalidInputError: if it is a buffer in memory.
        StorageError: if saving failed.
    """
    if not hasattr(source, "flush"):
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
) -> TrajectoryStore:
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
