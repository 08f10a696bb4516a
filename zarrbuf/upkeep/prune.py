"""Take trajectories off the list of a buffer: chosen ones, or all but the newest.

One commit; nothing is deleted. Archives that nothing refers to any more are the
business of `vacuum`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zarrbuf.errors import InvalidInputError
from zarrbuf.manifest.changes import remove_rows
from zarrbuf.manifest.predicates import select_where
from zarrbuf.manifest.rows import IntArray, Rows
from zarrbuf.manifest.selection import parse_ids, select_ids
from zarrbuf.storage.resolve import StorageOptions
from zarrbuf.stores.opening import open_log_store


@dataclass(frozen=True)
class Removal:
    """What was taken off a list.

    Attributes:
        path: the buffer.
        num_removed: trajectories taken off.
        num_left: trajectories listed after that.
        num_bytes: bytes of the archives taken off that lie in this buffer; `vacuum`
            gives them back.
    """

    path: str
    num_removed: int
    num_left: int
    num_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return dataclasses.asdict(self)


def remove(
    buffer: Any,
    ids: str | Sequence[int],
    *,
    storage_options: StorageOptions | None = None,
) -> Removal:
    """Take trajectories off the list of a buffer, by id.

    Args:
        buffer: path, URL or open buffer.
        ids: numbers, or a text such as "3,7-20".
        storage_options: for object stores, see `TrajectoryReplayBuffer`.

    Raises:
        InvalidInputError: if the ids are malformed, or the buffer is a folder of
            RLinf's.
        TrajectoryNotFoundError: naming ids that are not listed; nothing is removed.
        NotFoundError: if there is no buffer.
        StorageError: if the storage failed.
    """
    wanted = parse_ids(ids)
    return _remove(
        buffer, lambda rows: select_ids(rows, wanted), "remove", storage_options
    )


def prune(
    buffer: Any,
    *,
    keep_newest: int | None = None,
    keep_bytes: int | None = None,
    keep: str | None = None,
    storage_options: StorageOptions | None = None,
) -> Removal:
    """Take all but some trajectories off the list; exactly one way is given.

    Args:
        buffer: path, URL or open buffer.
        keep_newest: keep the last so many of the list.
        keep_bytes: keep the last ones whose archives take so many bytes together.
        keep: keep those for which a condition holds, see `zarrbuf.manifest.predicates`.
        storage_options: for object stores, see `TrajectoryReplayBuffer`.

    Raises:
        InvalidInputError: if not exactly one is given, one is not allowed, or the
            buffer is a folder of RLinf's.
        NotFoundError: if there is no buffer.
        StorageError: if the storage failed.
    """
    given = {"keep_newest": keep_newest, "keep_bytes": keep_bytes, "keep": keep}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise InvalidInputError(
            f"given are {', '.join(names) or 'none'}; exactly one of "
            f"{', '.join(given)} is needed"
        )
    for name in ("keep_newest", "keep_bytes"):
        value = given[name]
        if value is not None and (type(value) is not int or value < 1):
            raise InvalidInputError(
                f"{name} is {value!r}; a whole number of at least 1 is needed"
            )

    if keep is not None and not isinstance(keep, str):
        raise InvalidInputError(f"keep is {keep!r:.80}; a condition is a text")

    def choose(rows: Rows) -> IntArray:
        every = np.arange(len(rows))
        if keep is not None:
            return np.setdiff1d(every, select_where(rows, keep))
        if keep_newest is not None:
            return every[: max(0, len(rows) - keep_newest)]
        from_end = np.cumsum(rows.column("size")[::-1])[::-1]
        return every[from_end > (keep_bytes or 0)]

    return _remove(buffer, choose, "prune", storage_options)


def _remove(
    buffer: Any, choose: Any, reason: str, storage_options: StorageOptions | None
) -> Removal:
    store = open_log_store(buffer, storage_options, what=reason)
    rows = store.rows
    chosen = rows.take(choose(rows))
    num_removed = remove_rows(store.log, chosen, reason=reason) if len(chosen) else 0
    own = chosen.column("base") == 0
    return Removal(
        path=store.url,
        num_removed=num_removed,
        num_left=len(store.listed),
        num_bytes=int(chosen.column("size")[own].sum()),
    )
