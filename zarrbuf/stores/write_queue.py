"""The background writer: a bounded queue in front of a store.

Owns one thread. What fails stays queued and drawable: the error reaches the caller at
its next add, and every flush tries again.
"""

from __future__ import annotations

import itertools
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

from zarrbuf.manifest.actions import MAX_ADDS
from zarrbuf.stores.contract import NewTrajectory

_LOG: Final = logging.getLogger("zarrbuf")


_LIVE: Final[weakref.WeakSet[BackgroundWriter]] = weakref.WeakSet()


def _finish_all() -> None:
    """Have everything saved while the interpreter can still start threads.

    The clients of object stores need some, to find a host for one.
    """
    for writer in list(_LIVE):
        with suppress(Exception):  # is logged where it happens
            writer.flush()


# Before executors stop: what is registered last is called first.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]


class BackgroundWriter:
    """Appends trajectories to a store, in order, from a thread of its own."""

    def __init__(
        self,
        append: Callable[[Sequence[NewTrajectory]], None],
        *,
        max_queue_bytes: int,
    ) -> None:
        """Prepare a writer; its thread starts with the first trajectory.

        Args:
            append: makes trajectories durable; called in the writer's thread with
                what is queued, at most 1,000 at once.
            max_queue_bytes: encoded bytes queued before `wait_for_room` waits.
        """
        self._append = append
        self._max_queue_bytes = max_queue_bytes
        self.reset()
        _LIVE.add(self)

    def reset(self) -> None:
        """Forget the queue and the thread: what a forked child has to do."""
        self._queue: deque[NewTrajectory] = deque()
        self._queue_bytes = 0
        self._num_enqueued = 0
        self._num_saved = 0
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._is_draining = False
        self._executor: ThreadPoolExecutor | None = None

    @property
    def num_queued(self) -> int:
        """Trajectories that are not durable yet."""
        return len(self._queue)

    def raise_error(self) -> None:
        """Raise what went wrong since the last call, if anything did."""
        with self._changed:
            error, self._error = self._error, None
        if error is not None:
            raise error

    def enqueue(self, items: Sequence[NewTrajectory]) -> None:
        """Queue trajectories. Never waits, never raises."""
        with self._changed:
            self._queue.extend(items)
            self._queue_bytes += sum(len(item.encoded.data) for item in items)
            self._num_enqueued += len(items)
            self._start()

    def wait_for_room(self) -> None:
        """Wait while more is queued than may be, unless saving fails.

        Never raises: what goes wrong is for the next `raise_error` or `flush`.
        """
        with self._changed:
            while self._queue_bytes > self._max_queue_bytes and self._is_draining:
                self._changed.wait()

    def _start(self) -> None:
        """Let the thread drain the queue, unless it does so already."""
        if self._is_draining or not self._queue:
            return
        self._is_draining = True
        try:
            if self._executor is None:
                # An executor's threads are joined at interpreter exit, after they
                # have done what is queued; a plain daemon thread would drop it.
                self._executor = ThreadPoolExecutor(
                    1, thread_name_prefix="zarrbuf-writer"
                )
            self._executor.submit(self._drain)
        except RuntimeError:  # the interpreter is ending: no new threads, so do it here
            self._drain()

    def _drain(self) -> None:
        while batch := self._next_batch():
            try:
                self._append(batch)
            except Exception as exc:
                _LOG.error("trajectories are not saved yet: %s", exc)
                with self._changed:
                    self._error = exc
                    self._is_draining = False
                    self._changed.notify_all()
                return
            with self._changed:
                for item in batch:
                    self._queue.popleft()
                    self._queue_bytes -= len(item.encoded.data)
                self._num_saved += len(batch)
                self._changed.notify_all()

    def _next_batch(self) -> list[NewTrajectory]:
        with self._changed:
            batch = list(itertools.islice(self._queue, MAX_ADDS))
            if not batch:
                self._is_draining = False
                self._changed.notify_all()
            return batch

    def flush(self) -> None:
        """Wait until all that was queued before this call is durable.

        What failed before is tried again first.

        Raises:
            StorageError: if the storage fails; what failed stays queued.
        """
        with self._changed:
            target = self._num_enqueued
            if not self._is_draining:
                self._error = None
            self._start()
            while self._num_saved < target and self._is_draining:
                self._changed.wait()
            is_done = self._num_saved >= target
        if not is_done:
            self.raise_error()

    def close(self, *, wait: bool = True) -> None:
        """Stop the thread, after what is queued is written if `wait`.

        Raises:
            StorageError: if the storage fails.
        """
        try:
            if wait:
                self.flush()
        finally:
            with self._changed:
                executor, self._executor = self._executor, None
            if executor is not None:
                executor.shutdown(wait=wait)
