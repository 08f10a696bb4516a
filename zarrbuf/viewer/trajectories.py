"""The trajectories of a buffer to be looked at, one after the other.

Owns what is kept open and decoded. Knows no figure and no key.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from zarrbuf.archive.spec import AnyArray
from zarrbuf.common.lru import LruCache
from zarrbuf.errors import EmptyBufferError, InvalidInputError, TrajectoryNotFoundError
from zarrbuf.manifest.rows import Rows
from zarrbuf.storage.fetching import FetchCost
from zarrbuf.storage.resolve import Location, StorageOptions, open_storage
from zarrbuf.stores.contract import TrajectoryStore, known_name
from zarrbuf.stores.opening import location_of, open_store
from zarrbuf.viewer.trajectory_reader import ChunkKey, PlaybackStats, Recording

CHUNK_CACHE_BYTES: Final = 256 << 20
"""Decoded chunks that are kept."""
MAX_RECORDINGS: Final = 4
"""Trajectories that are kept open; one of a `pt` file is in memory whole."""
_NUM_NEAREST: Final = 4


class Playback:
    """The trajectories of a buffer, in the order of its list, to be looked at.

    Attributes:
        url: where the buffer lies.
        rows: its rows.
        stats: what looking has cost so far.
    """

    rows: Rows

    def __init__(self, open_list: Callable[[], TrajectoryStore]) -> None:
        """Look at what is listed now.

        Args:
            open_list: opens the buffer, now and when it is read anew.

        Raises:
            EmptyBufferError: if nothing is listed.
        """
        self._open_list = open_list
        self.stats = PlaybackStats()
        self._kept: LruCache[ChunkKey, AnyArray] = LruCache(
            max_cost=CHUNK_CACHE_BYTES, max_items=1 << 16
        )
        self._opening = threading.Lock()
        self.refresh()

    def refresh(self, *, keep: bool = False) -> None:
        """Read the list anew; positions may be those of other trajectories after it.

        Args:
            keep: whether what is open stays so if the list is the same.

        Raises:
            NotFoundError: if the buffer is gone; what was listed stays.
            EmptyBufferError: if nothing is listed any more; what was listed stays.
        """
        store = self._open_list()
        if not len(store.rows):
            raise EmptyBufferError(f"{store.url or 'memory'} lists no trajectory")
        if keep and np.array_equal(store.rows.fixed, self.rows.fixed):
            return
        with self._opening:  # what is being opened has the old position
            self._store, self.rows = store, store.rows
            self.url = store.url or "memory"
            self._recordings: LruCache[int, Recording] = LruCache(
                max_cost=MAX_RECORDINGS, max_items=MAX_RECORDINGS
            )

    def __len__(self) -> int:
        """Return the number of trajectories."""
        return len(self.rows)

    def shape(self, position: int) -> tuple[int, int]:
        """Return `T` and `B` of a trajectory."""
        columns = (self.rows.column(name)[position] for name in ("T", "B"))
        num_steps, num_envs = map(int, columns)
        return num_steps, num_envs

    def find(self, trajectory_id: int) -> int:
        """Return the position of a trajectory.

        Raises:
            InvalidInputError: if the id is no whole number.
            TrajectoryNotFoundError: if it is not listed, naming the nearest that are.
        """
        if not isinstance(trajectory_id, int | np.integer):
            raise InvalidInputError(
                f"trajectory id is {trajectory_id!r}; a whole number is needed"
            )
        ids = self.rows.trajectory_ids
        found = np.flatnonzero(ids == trajectory_id)
        if len(found):
            return int(found[0])
        distance = abs(ids.astype(object) - trajectory_id)
        nearest = np.argsort(distance, kind="stable")[:_NUM_NEAREST]
        names = ", ".join(str(one) for one in sorted(ids[nearest].tolist()))
        raise TrajectoryNotFoundError(
            f"trajectory {trajectory_id} is not listed; the nearest are {names}"
        )

    def name(self, position: int) -> str:
        """Return the name that people know a trajectory by."""
        return known_name(self.rows.row(position), self._store.suffix)

    def recording(self, position: int) -> Recording:
        """Return a trajectory, opened.

        Raises:
            NotFoundError: if its archive is not there.
            FormatError: if it is damaged.
            StorageError: if the storage failed.
        """
        found = self._recordings.get(position)
        if found is not None:
            return found
        with self._opening:  # nobody opens one that another thread opens already
            found = self._recordings.get(position)
            if found is None:
                found = self._open(position)
                self._recordings.put(position, found, cost=1)
            return found

    def _open(self, position: int) -> Recording:
        row = self.rows.row(position)
        (archive,) = self._store.open_archives([row], FetchCost())
        return Recording(
            archive,
            row,
            name=self.name(position),
            stats=self.stats,
            kept=self._kept,
        )


def open_playback(
    source: Any,
    *,
    version: int | None = None,
    storage_options: StorageOptions | None = None,
    allow_bases: Sequence[Location] = (),
) -> Playback:
    """Open a buffer of zarrbuf's, or a folder of RLinf's, to look at it.

    Args:
        source: path, URL, open buffer, or a playback, which is returned.
        version: as it was after that commit; None for now.
        storage_options: for object stores, see `TrajectoryReplayBuffer`.
        allow_bases: see `TrajectoryReplayBuffer`.

    Raises:
        NotFoundError: if there is none.
        EmptyBufferError: if it lists no trajectory.
    """
    if isinstance(source, Playback):
        if version is not None:
            raise InvalidInputError("version is for a buffer that is not open yet")
        return source
    location = location_of(source)
    storage = open_storage(location, storage_options, allow_bases=allow_bases)
    return Playback(lambda: open_store(storage, version=version))
