"""What a buffer holds: trajectories loaded, saved and on their way, under one lock.

Owns the order of these parts, the ids, and the hand-over from the queue to the store.
Makes the window that is sampled from; draws nothing and encodes nothing.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np

from zarrbuf.archive.spec import AnyArray, BatchField
from zarrbuf.errors import TrajectoryNotFoundError
from zarrbuf.manifest.rows import Row, Rows
from zarrbuf.sampling.batch_reader import BatchReader
from zarrbuf.sampling.window import FieldFinder, LiveRows, Part, Window, known_fields
from zarrbuf.stores.contract import NewTrajectory, TrajectoryStore
from zarrbuf.stores.in_memory import MemoryStore
from zarrbuf.stores.write_queue import BackgroundWriter
from zarrbuf.trajectory.encoding import EncodedTrajectory
from zarrbuf.trajectory.packing import PackedTrajectory
from zarrbuf.trajectory.same_fields import check_fields
from zarrbuf.trajectory.trajectory import Trajectory

_LIVE: weakref.WeakSet[LiveSet] = weakref.WeakSet()


def _reset_all() -> None:
    for live in list(_LIVE):
        live.reset_after_fork()


@functools.cache
def _watch_forks() -> None:
    os.register_at_fork(after_in_child=_reset_all)


class LiveSet:
    """The parts of a buffer: what was loaded, what its store lists, what is queued.

    Attributes:
        writer: saves what is queued; unused where the store is memory.
        size: trajectories ever added or loaded, those that left the window too.
        total_samples: of these.
        num_at_hand: trajectories that RLinf's cache would hold now.
        next_trajectory_id: the id of the next one added.
    """

    def __init__(
        self,
        store: TrajectoryStore,
        reader: BatchReader,
        *,
        window_size: int,
        max_queue_bytes: int,
        max_at_hand: int | None = None,
        after_save: Callable[[], None] | None = None,
    ) -> None:
        """Start with what `store` lists.

        Args:
            store: where trajectories that are added go.
            reader: told when an archive moves from memory to disk.
            window_size: trajectories in the window, 0 for all.
            max_queue_bytes: encoded bytes that may wait to be saved.
            max_at_hand: trajectories that RLinf's cache would hold; None for all.
            after_save: called in the writer's thread whenever something was saved,
                while nothing else is done with the store.
        """
        self._store = store
        self._after_save = after_save
        self._reader = reader
        self._window_size = window_size
        self.writer = BackgroundWriter(self._save, max_queue_bytes=max_queue_bytes)
        self._max_at_hand = max_at_hand
        self.num_at_hand = 0
        self.size = len(store.listed)
        self.total_samples = store.listed.total_samples
        self.next_trajectory_id = store.next_trajectory_id
        self._make_locks()
        self._loaded: Part | None = None
        self._followed: TrajectoryStore | None = None
        self._mark = 0
        self._seen = store.mark  # what is queued is not listed up to here
        self._queued = MemoryStore()
        self._drawn: LiveRows | None = None
        self._window: Window | None = None
        self._fields = FieldFinder(reader.archives)
        self._known: dict[str, BatchField] | None = None
        self._checked: Sequence[BatchField] | None = None  # the last that are known
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

    @property
    def is_in_memory(self) -> bool:
        """Whether trajectories that are added are saved nowhere."""
        return isinstance(self._store, MemoryStore)

    def add(self, trajectories: Sequence[EncodedTrajectory | PackedTrajectory]) -> None:
        """Add trajectories, all or none; they are in the next window.

        Args:
            trajectories: archives; where nothing is saved, packed ones too.

        Raises:
            InvalidInputError: if a field has another dtype or shape than is known.
        """
        with self._lock:
            known, checked = self._known_fields(), self._checked
            for number, one in enumerate(trajectories):
                fields = one.fields
                if fields is not checked:
                    check_fields(fields, known, name=f"trajectories[{number}]")
                    known = {**known, **{field.name: field for field in fields}}
                    checked = fields
            first_id, count = self.next_trajectory_id, len(trajectories)
            if isinstance(self._store, MemoryStore):  # first: it takes all or none
                self._store.take(trajectories, trajectory_id=first_id)
            self._known, self._checked = known, checked
            self.next_trajectory_id += count
            self.size += count
            self._take_to_hand(count)
            self.total_samples += sum(one.num_samples for one in trajectories)
            self._forget_window()
            if isinstance(self._store, MemoryStore):
                self._drop_old(self._store)
                return
            items = [
                NewTrajectory.of(one, trajectory_id=number)
                for number, one in enumerate(trajectories, first_id)
                if isinstance(one, EncodedTrajectory)
            ]
            self._queued.append(items)
            self.writer.enqueue(items)
        self.writer.wait_for_room()  # not under the lock, which the writer needs

    def _take_to_hand(self, count: int) -> None:
        self.num_at_hand += count
        if self._max_at_hand is not None:
            self.num_at_hand = min(self.num_at_hand, self._max_at_hand)

    def _drop_old(self, store: MemoryStore) -> None:
        """Forget what has left the window, which nothing but memory has."""
        if self._window_size and len(store) > self._window_size:
            for uuid in store.drop_first(len(store) - self._window_size):
                self._reader.archives.discard(uuid)
        self._seen = store.mark

    def _known_fields(self) -> dict[str, BatchField]:
        if self._known is None:
            self._known, self._checked = known_fields(self.parts()), None
        return self._known

    def _save(self, items: Sequence[NewTrajectory]) -> None:
        """Save queued trajectories; runs in the writer's thread."""
        with self._store_lock:
            listed = self._store.append(items)
            if self._after_save is not None:
                self._after_save()
        saved = [item.row.uuid for item in items]
        with self._lock:
            self._queued.discard(saved)
            self._take_in_store(own=listed)
        for uuid in saved:
            self._reader.archives.discard(uuid)

    def _take_in_store(self, *, own: Collection[str]) -> None:
        """Count what others appended, and let the next window have it."""
        mark = self._store.mark  # first: what is listed meanwhile is looked at again
        newest = self._store.after(self._store.listed, self._seen)
        uuids = newest.uuids()
        self._queued.discard(uuids)
        self._seen = mark
        others = ~np.isin(uuids, list(own)) if own else np.ones(len(uuids), np.bool_)
        self.size += int(others.sum())
        self.total_samples += int(newest.rows.column("num_samples")[others].sum())
        self.next_trajectory_id = max(
            self.next_trajectory_id, self._store.next_trajectory_id
        )
        self._forget_window()

    def _forget_window(self) -> None:
        """Have the next window made anew; what only the old one needs is let go of."""
        self._drawn = None
        self._window = None

    def parts(self, *, saved_only: bool = False) -> list[Part]:
        """Return all rows that are listed, in order, with their stores."""
        with self._lock:
            parts: list[Part] = [] if self._loaded is None else [self._loaded]
            store = self._store.frozen()
            listed = store.listed
            if self._mark:
                listed = store.after(listed, self._mark)
            parts.append((store, listed))
            if len(self._queued.listed) and not saved_only:
                newest = store.after(listed, self._seen)
                parts.append(self._queued_part(newest.uuids()))
            return parts

    def _queued_part(self, newest: Collection[str]) -> Part:
        """Return what is queued, less what was listed since the queue was looked at."""
        queued = self._queued.without(newest) if newest else self._queued.frozen()
        return queued, queued.listed

    @property
    def trajectory_ids(self) -> list[int]:
        """The ids of all trajectories that are listed, in order."""
        return [n for _, one in self.parts() for n in one.trajectory_ids.tolist()]

    def rows(self) -> list[Row]:
        """Return the rows of all trajectories that are listed, in order."""
        rows = Rows.concat([listed.rows for _, listed in self.parts()])
        return [rows.row(position) for position in range(len(rows))]

    def trajectory(self, trajectory_id: int) -> Trajectory:
        """Return a trajectory that is listed, window or not.

        Raises:
            TrajectoryNotFoundError: if no such id is listed.
        """
        for store, listed in reversed(self.parts()):
            position = listed.find(trajectory_id)
            if position is not None:
                rows = listed.table.rows
                return self._reader.archives.trajectory(rows, position, store)
        ids = self.trajectory_ids
        known = f"{min(ids)} to {max(ids)}" if ids else "none"
        raise TrajectoryNotFoundError(
            f"no trajectory {trajectory_id!r}; the ids there are: {known}"
        )

    @property
    def url(self) -> str | None:
        """Where all that is listed lies; None if a part is elsewhere or in memory."""
        return None if self._loaded is not None else self._store.url

    @property
    def window_size(self) -> int:
        """Trajectories in the window, 0 for all."""
        return self._window_size

    @window_size.setter
    def window_size(self, value: int) -> None:
        with self._lock:
            self._window_size = value
            self._forget_window()

    def drawn(self) -> LiveRows:
        """Return the rows that are sampled from now: the newest, as many as are asked.

        The same object while nothing is added or taken away.
        """
        with self._lock:
            if self._drawn is None:
                rows = LiveRows.of(self.parts())
                self._drawn = rows.newest(self._window_size)
            return self._drawn

    def window(self) -> Window:
        """Return what is sampled from now, with the fields of its batches.

        The same object while nothing is added or taken away.

        Raises:
            InvalidInputError: if two trajectories have a field of one name, but of
                different dtype or shape.
        """
        window = self._window
        if window is not None:
            return window
        rows = self.drawn()
        # Not under the lock: files whose fields no list tells are opened for it.
        fields = self._fields.fields_of(rows)
        window = Window.of(rows, fields, self._reader.archives)
        with self._lock:
            if self._drawn is not rows:  # something was added meanwhile
                return window
            if self._window is None:
                self._window = window
            return self._window

    def describe(self) -> str:
        """Say how much is drawn from, of what shape, and where it is. Opens nothing."""
        parts = self.drawn().parts
        rows = Rows.concat([listed.rows for _, listed in parts])
        if not len(rows):
            return f"empty, {self._where(parts)}"
        ids = rows.trajectory_ids
        return (
            f"{len(rows)} trajectories, ids {ids.min()} to {ids.max()}, "
            f"T {_range(rows.column('T'))}, B {_range(rows.column('B'))}, "
            f"{rows.total_samples} samples, {self._where(parts)}"
        )

    def _where(self, parts: Sequence[Part]) -> str:
        places = {store.url for store, listed in parts if len(listed)}
        found = sorted(place for place in places if place is not None)
        if not found and self._store.url is not None:
            found = [self._store.url]
        return f"at {', '.join(found)}" if found else "in memory"

    @contextmanager
    def saved_rows(self) -> Iterator[tuple[LiveRows, TrajectoryStore]]:
        """Give the durable rows of the window and the store, while nothing is saved."""
        self.writer.flush()
        with self._store_lock:
            rows = LiveRows.of(self.parts(saved_only=True))
            yield rows.newest(self._window_size), self._store

    def refresh(self) -> None:
        """Take in what others appended, after what is queued here is saved."""
        self.writer.flush()
        self.look()

    def look(self) -> None:
        """Take in what others appended; errors of the writer stay for its callers."""
        with self._store_lock:
            self._store.refresh()
            if self._followed is not None:
                self._followed.refresh()
        with self._lock:
            self._follow()
            if self._store.mark != self._seen:
                self._known = None
                self._take_in_store(own=())

    def _follow(self) -> None:
        """Take in what others appended to the buffer that was loaded."""
        store = self._followed
        if store is None or self._loaded is None:
            return
        listed, before = store.listed, self._loaded[1]
        if listed.stop == before.stop and len(listed) == len(before):
            return
        self.size += max(0, listed.stop - before.stop)
        more = listed.table.samples_before(listed.stop)
        self.total_samples += max(0, more - before.table.samples_before(before.stop))
        highest = int(listed.trajectory_ids.max(initial=-1))
        self.next_trajectory_id = max(self.next_trajectory_id, highest + 1)
        self._loaded = (store, listed)
        self._known = None
        self._forget_window()

    def load(self, store: TrajectoryStore, *, rank: int, world_size: int) -> None:
        """Replace everything by the part of `rank` of what another store lists.

        Raises:
            InvalidInputError: if the rank is not allowed.
            NotFoundError: if a trajectory of the window is not there.
        """
        portion = store.portion(rank, world_size, window_size=self._window_size)
        with self._lock:
            if isinstance(self._store, MemoryStore):
                self._store.remove_all(reason="load")
            is_same = store.is_same(self._store)
            # Of the buffer that is saved to, what came later is listed as its own.
            self._mark = store.mark if is_same else self._store.mark
            self._loaded = (store, portion.listed)
            self._followed = store if world_size == 1 and not is_same else None
            self.size = portion.num_trajectories
            self.num_at_hand = 0
            self._take_to_hand(len(portion.listed))
            self.total_samples = portion.total_samples
            self.next_trajectory_id = portion.next_trajectory_id
            if not isinstance(self._store, MemoryStore):
                self.next_trajectory_id = max(
                    self.next_trajectory_id, self._store.next_trajectory_id
                )
            self._forget()

    def clear(self) -> None:
        """Take everything off the list; what is saved stays on disk."""
        self.writer.flush()
        # What lies in memory is added to under the other lock.
        is_shared = self._lock if self.is_in_memory else nullcontext()
        with self._store_lock, is_shared:
            self._store.remove_all(reason="clear")
            mark = self._store.mark
            self._clear_counts(mark)

    def _clear_counts(self, mark: int) -> None:
        with self._lock:
            self._mark = 0
            self._seen = mark
            self._loaded = self._followed = None
            self.size = self.total_samples = self.num_at_hand = 0
            if isinstance(self._store, MemoryStore):
                self.next_trajectory_id = 0
            self._forget()

    def _forget(self) -> None:
        self._forget_window()
        self._known = None
        self._fields.clear()
        self._reader.clear()


def _range(values: AnyArray) -> str:
    """Return the one value there is, or the smallest and the largest."""
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"
