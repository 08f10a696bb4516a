"""A buffer that is appended to for ever keeps its newest trajectories, and disk room.

Owns when old trajectories leave the list, and when their archives go.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from zarrbuf.common.arguments import check_whole_number
from zarrbuf.errors import InvalidInputError, ZarrbufError
from zarrbuf.manifest.changes import remove_rows
from zarrbuf.stores.contract import TrajectoryStore
from zarrbuf.stores.logged import LogStore
from zarrbuf.upkeep.vacuum import vacuum_store

_LOG: Final = logging.getLogger("zarrbuf")
GRACE_S: Final = 3600.0
"""Seconds that archives stay which left the list: other processes may read it."""
_VACUUM_INTERVAL_S: Final = GRACE_S / 6
_SLACK: Final = 16
"""One commit takes off one sixteenth of what is kept, not one trajectory at a time."""


class Retention:
    """Keeps the newest trajectories of a store."""

    def __init__(self, store: LogStore, keep_newest: int) -> None:
        """Do nothing yet.

        Args:
            store: what is appended to.
            keep_newest: trajectories that stay listed; up to a sixteenth more may.
        """
        self._store = store
        self._keep_newest = keep_newest
        self._next_vacuum = time.monotonic() + _VACUUM_INTERVAL_S

    def apply(self) -> None:
        """Take off the list what is too old, and now and then delete its archives.

        An error is logged, and the next call tries again: nothing depends on it.
        """
        try:
            listed = self._store.listed
            num_old = len(listed) - self._keep_newest
            if num_old > max(1, self._keep_newest // _SLACK):
                rows = listed.part(0, num_old).rows
                remove_rows(self._store.log, rows, reason="retention")
            if time.monotonic() >= self._next_vacuum:
                self._next_vacuum = time.monotonic() + _VACUUM_INTERVAL_S
                vacuum_store(
                    self._store, delete=True, grace_s=GRACE_S, archives_only=True
                )
        except ZarrbufError as exc:
            _LOG.warning(
                "old trajectories of %s stay for now: %s", self._store.url, exc
            )


def retain(
    store: TrajectoryStore, keep_newest: int | None, *, window_size: int
) -> Callable[[], None] | None:
    """Return what a buffer calls after each save, None to keep all.

    Args:
        store: where the buffer saves.
        keep_newest: trajectories kept; None for all.
        window_size: trajectories drawn from, 0 for all.

    Raises:
        InvalidInputError: if fewer than are drawn from would be kept, or the store is
            none of zarrbuf's on a storage.
    """
    if keep_newest is None:
        return None
    check_whole_number("retention", keep_newest, minimum=1)
    if not isinstance(store, LogStore):
        raise InvalidInputError(
            "retention is for buffers that are saved (auto_save=True) as zarr"
        )
    if not 0 < window_size <= keep_newest:
        raise InvalidInputError(
            f"retention is {keep_newest}; at least the sample_window_size, which is "
            f"{window_size or 'all'}, is needed"
        )
    return Retention(store, keep_newest).apply
