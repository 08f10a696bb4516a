"""What a buffer holds: trajectories loaded, saved and on their way, under one lock.

Owns the order of these parts, the ids, and the hand-over from the queue to the store.
Makes the view that is sampled from; draws nothing and encodes nothing.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from zarrbuf.encoding import EncodedTrajectory
from zarrbuf.format import BatchField
from zarrbuf.reader import BatchReader, sorted_fields
from zarrbuf.rows import Rows
from zarrbuf.sampling import partition
from zarrbuf.stores import MemoryStore, NewTrajectory, TrajectoryStore
from zarrbuf.views import Part, View, check_fields, known_fields
from zarrbuf.writer import BackgroundWriter

_LIVE: weakref.WeakSet[Contents] = weakref.WeakSet()


def _reset_all() -> None:
    for contents in list(_LIVE):
        contents.reset_after_fork()


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_reset_all)


class Contents:
    """The parts of a buffer: what was loaded, what its store lists, what is queued.

    Attributes:
        writer: saves what is queued; unused where the store is memory.
        num_ever: trajectories ever added or loaded.
        next_trajectory_id: the id of the next one added.
    """

    def __init__(
        self,
        store: TrajectoryStore,
        reader: BatchReader,
        *,
        window_size: int,
        max_queue_bytes: int,
    ) -> None:
        """Start with what `store` lists.

        Args:
            store: where trajectories that are added go.
            reader: told when an archive moves from memory to disk.
            window_size: trajectories in the window, 0 for all.
            max_queue_bytes: encoded bytes that may wait to be saved.
        """
        self._store = store
        self._reader = reader
        self._window_size = window_size
        self.writer = BackgroundWriter(self._save, max_queue_bytes=max_queue_bytes)
        self.num_ever = len(store.rows)
        self.next_trajectory_id = store.next_trajectory_id
        self._store_size = len(store.rows)
        self._make_locks()
        self._loaded: Part | None = None
        self._mark = 0
        self._queued: tuple[NewTrajectory, ...] = ()
        self._view: View | None = None
        self._known: dict[str, BatchField] | None = None
        _watch_forks()
        _LIVE.add(self)

    def _make_locks(self) -> None:
        # The store is shared with the writer's thread; the rest with all who draw.
        self._store_lock = threading.Lock()
        self._lock = threading.RLock()

    def reset_after_fork(self) -> None:
        """Make a forked child work: locks and threads of the parent are not its own.

        What is queued is saved by the parent; here it can only be drawn.
        """
        self._make_locks()
        self._reader.reset_after_fork()
        self.writer.reset()

    def add(self, encoded: Sequence[EncodedTrajectory]) -> None:
        """Add trajectories, all or none; they are in the next view.

        Raises:
            InvalidInputError: if a field has another dtype or shape than is known.
        """
        with self._lock:
            known = dict(self._known_fields())
            for number, one in enumerate(encoded):
                fields = sorted_fields(one.header.schema)
                check_fields(fields, known, name=f"trajectories[{number}]")
                known.update({field.name: field for field in fields})
            items = [
                NewTrajectory.of(one, trajectory_id=self.next_trajectory_id + number)
                for number, one in enumerate(encoded)
            ]
            self._known = known
            self.next_trajectory_id += len(items)
            self.num_ever += len(items)
            self._view = None
            if isinstance(self._store, MemoryStore):
                self._keep_in_memory(self._store, items)
                return
            self._queued += tuple(items)
            self.writer.enqueue(items)
        self.writer.wait_for_room()  # not under the lock, which the writer needs

    def _keep_in_memory(
        self, store: MemoryStore, items: Sequence[NewTrajectory]
    ) -> None:
        store.append(items)
        if self._window_size and len(store.rows) > self._window_size:
            store.drop_first(len(store.rows) - self._window_size)

    def _known_fields(self) -> dict[str, BatchField]:
        if self._known is None:
            self._known = known_fields(self.parts())
        return self._known

    def _save(self, items: Sequence[NewTrajectory]) -> None:
        """Save queued trajectories; runs in the writer's thread."""
        with self._store_lock:
            self._store.append(items)
        saved = {item.row.uuid for item in items}
        with self._lock:
            self._queued = tuple(q for q in self._queued if q.row.uuid not in saved)
            self._take_in_store(num_own=len(saved))
        for uuid in saved:
            self._reader.forget_archive(uuid)

    def _take_in_store(self, *, num_own: int) -> None:
        """Count what others appended, and let the next view have it."""
        size = len(self._store.rows)
        self.num_ever += max(0, size - self._store_size - num_own)
        self._store_size = size
        self.next_trajectory_id = max(
            self.next_trajectory_id, self._store.next_trajectory_id
        )
        self._view = None

    def parts(self, *, saved_only: bool = False) -> list[Part]:
        """Return all rows that are listed, in order, with their stores."""
        with self._lock:
            parts: list[Part] = [] if self._loaded is None else [self._loaded]
            store = self._store.frozen()
            rows = store.rows_after(self._mark) if self._mark else store.rows
            parts.append((store, rows))
            if self._queued and not saved_only:
                parts.append(self._queued_part(rows))
            return parts

    def _queued_part(self, listed: Rows) -> Part:
        """Return what is queued, less what was listed since the queue was looked at."""
        newest = set(listed.fixed["uuid"][-len(self._queued) :].tolist())
        queued = MemoryStore()
        queued.append(
            [
                item
                for item in self._queued
                if bytes.fromhex(item.row.uuid) not in newest
            ]
        )
        return queued, queued.rows

    def view(self) -> View:
        """Return what is sampled from now."""
        with self._lock:
            if self._view is None:
                self._view = View.of(self.parts(), sample_window_size=self._window_size)
            return self._view

    @contextmanager
    def saved_view(self) -> Iterator[tuple[View, TrajectoryStore]]:
        """Give the view of what is durable and the store, while nothing is saved."""
        self.writer.flush()
        with self._store_lock:
            parts = self.parts(saved_only=True)
            yield View.of(parts, sample_window_size=self._window_size), self._store

    def refresh(self) -> None:
        """Take in what others appended to the store."""
        self.writer.flush()
        with self._store_lock:
            self._store.refresh()
        with self._lock:
            listed = set(self._store.rows.fixed["uuid"].tolist())
            self._queued = tuple(
                q for q in self._queued if bytes.fromhex(q.row.uuid) not in listed
            )
            self._known = None
            self._take_in_store(num_own=0)

    def load(self, store: TrajectoryStore, *, rank: int, world_size: int) -> None:
        """Replace everything by the part of `rank` of what another store lists.

        Raises:
            InvalidInputError: if the rank is not allowed.
        """
        start, stop = partition(len(store.rows), rank, world_size)
        rows = store.rows.take(np.arange(start, stop))
        with self._lock:
            if isinstance(self._store, MemoryStore):
                self._store.remove_all(reason="load")
            self._mark = self._store.mark
            self._loaded = (store, rows)
            self._store_size = len(self._store.rows)
            self.num_ever = len(rows)
            self.next_trajectory_id = int(rows.trajectory_ids.max(initial=-1)) + 1
            if not isinstance(self._store, MemoryStore):
                self.next_trajectory_id = max(
                    self.next_trajectory_id, self._store.next_trajectory_id
                )
            self._forget()

    def clear(self) -> None:
        """Take everything off the list; what is saved stays on disk."""
        self.writer.flush()
        with self._store_lock:
            self._store.remove_all(reason="clear")
        with self._lock:
            self._mark = 0
            self._loaded = None
            self._store_size = 0
            self.num_ever = 0
            self._forget()

    def _forget(self) -> None:
        self._view = None
        self._known = None
        self._reader.clear()
