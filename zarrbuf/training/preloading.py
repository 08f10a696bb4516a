"""Batches handed out one by one, drawn when they are asked for or ahead by a thread.

Owns that thread. Knows nothing of what a batch is.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

from zarrbuf.training.mixing import Batch


class Source(Protocol):
    """Where batches come from."""

    def is_ready(self) -> bool:
        """Whether one can be drawn."""
        ...

    def draw(self) -> Batch:
        """Draw one."""
        ...


class ClosedError(Exception):
    """The stream was closed while somebody wanted a batch of it."""


class Stream:
    """Draws a batch when one is asked for.

    Attributes:
        is_closed: whether it gives no more batches.
    """

    def __init__(self, source: Source, poll_interval_s: float) -> None:
        """Look every `poll_interval_s` seconds at a source that is waited for."""
        self.is_closed = False
        self._source = source
        self._poll_interval_s = poll_interval_s
        self._was_closed = threading.Event()

    def take(self) -> Batch:
        """Return the next batch, waiting until one can be drawn.

        Raises:
            ClosedError: if there are no more.
            Exception: what the source raised.
        """
        self._wait_until_ready()
        return self._source.draw()

    def _wait_until_ready(self) -> None:
        while not self.is_closed:
            if self._source.is_ready():
                return
            self._was_closed.wait(self._poll_interval_s)
        raise ClosedError

    def close(self) -> None:
        """Give no more batches, and wake who waits for one."""
        self.is_closed = True
        self._was_closed.set()

    def abandon(self) -> None:
        """Give no more batches, now that nobody can ask; takes no lock.

        For finalizers: these may run in any thread, whatever lock it holds.
        """
        self.is_closed = True


class _Failure(NamedTuple):
    """Stands where a batch would, had drawing it not failed."""

    error: BaseException


class Preloader(Stream):
    """Draws batches ahead in a thread, one task a batch.

    The thread never waits for anything but a task: when all is drawn, or the buffers
    are not ready, it has none. So at interpreter exit, which runs what an executor has
    begun and joins its threads, no more than one draw is waited for; and it refers to
    this object only while it draws, never to the dataset.
    """

    def __init__(self, source: Source, poll_interval_s: float, size: int) -> None:
        """Draw at most `size` batches ahead, from the first one that is asked for."""
        super().__init__(source, poll_interval_s)
        self._size = size
        self._drawn: deque[Batch | _Failure] = deque()
        self._changed = threading.Condition()
        self._executor: ThreadPoolExecutor | None = None
        self._is_drawing = False
        self._has_failed = False
        self._has_no_thread = False
        self._thread_id = 0

    def take(self) -> Batch:
        """Return the next batch; raises what `Stream.take` does."""
        while True:
            drawn = self._next_drawn()
            if isinstance(drawn, _Failure):
                try:
                    raise drawn.error
                finally:
                    del drawn  # the error's traceback refers to this frame
            if drawn is not None:
                return drawn
            if self._has_no_thread:
                return super().take()
            self._wait_until_ready()
            with self._changed:
                self._start()

    def _next_drawn(self) -> Batch | _Failure | None:
        """Take what was drawn first; None if nothing is, and nobody is drawing."""
        with self._changed:
            while self._is_drawing and not self._drawn and not self.is_closed:
                self._changed.wait()
            if self.is_closed:
                raise ClosedError
            if not self._drawn:
                return None
            drawn = self._drawn.popleft()
            if isinstance(drawn, _Failure):
                self._has_failed = False  # the next who asks starts anew
            else:
                self._start()
            return drawn

    def _start(self) -> None:
        """Let the thread draw one more, if there is room. The lock is held."""
        is_over = self.is_closed or self._has_failed or self._has_no_thread
        if is_over or self._is_drawing or len(self._drawn) >= self._size:
            return
        try:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(
                    1, thread_name_prefix="zarrbuf-preload"
                )
            self._executor.submit(self._draw_one)
            self._is_drawing = True
        except RuntimeError:  # the interpreter is ending: who asks draws
            self._has_no_thread = True

    def _draw_one(self) -> None:
        self._thread_id = threading.get_ident()
        drawn = self._try_to_draw()
        with self._changed:
            self._is_drawing = False
            if drawn is not None and not self.is_closed:
                self._drawn.append(drawn)
                self._has_failed = isinstance(drawn, _Failure)
                self._start()
            del drawn  # the buffer reuses the memory of batches nobody refers to
            self._changed.notify_all()

    def _try_to_draw(self) -> Batch | _Failure | None:
        try:
            return self._source.draw() if self._source.is_ready() else None
        except BaseException as exc:
            return _Failure(exc)

    def close(self) -> None:
        """Give no more batches; wait for a draw that has begun."""
        super().close()
        with self._changed:
            self._drawn.clear()
            self._changed.notify_all()
            executor = self._executor
        if executor is not None:
            # Called by a buffer while it is drawn from, this is the thread itself.
            executor.shutdown(wait=threading.get_ident() != self._thread_id)

    def abandon(self) -> None:
        """Let go of what was drawn; takes no lock, see `Stream.abandon`."""
        super().abandon()
        # An error refers to this object by its traceback: a cycle.
        self._drawn.clear()
