"""Work in a thread of its own, one piece after the other, that nobody has to wait for.

A daemon: it does not keep the interpreter from ending. Knows no buffer.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final

_MAX_LAST_WAIT_S: Final = 5.0
_LEAVING_S: Final = 0.1
"""For threads of a library to leave the interpreter after their last call. Each needs
it once more, for microseconds; with less than this, 0, about one worker in twenty that
was spawned ended by SIGABRT."""


class BackgroundThread:
    """Runs pieces of work in order; starts with the first one."""

    def __init__(self, name: str) -> None:
        """Start nothing yet; `name` is the thread's."""
        self._name = name
        self._start_anew()

    def _start_anew(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def _own_lock(self) -> threading.Lock:
        """Return the lock; a forked child has a thread and a queue of its own."""
        if self._pid != os.getpid():
            self._start_anew()
        return self._lock

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        """Have something done; what it returns or raises is in the future."""
        future: Future[Any] = Future()
        with self._own_lock():
            self._work.put((future, work))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_run, args=(self._work,), name=self._name, daemon=True
                )
                self._thread.start()
                # Whoever drops this without closing it leaves no thread behind.
                ending = weakref.finalize(self, self._work.put, None)
                ending.atexit = False
        return future

    def close(self) -> None:
        """Leave out what has not begun, and wait for the piece under way. Safe twice.

        The next piece that is submitted starts a new thread.
        """
        with self._own_lock():
            thread, work = self._thread, self._work
            self._start_anew()
        if thread is None:
            return
        _drop_all(work)
        work.put(None)
        thread.join()

    def cancel(self) -> None:
        """Leave out what has not begun; do not wait for the piece under way."""
        with self._own_lock():
            _drop_all(self._work)


def _drop_all(work: queue.SimpleQueue[Any]) -> None:
    with suppress(queue.Empty):
        while True:
            work.get_nowait()[0].cancel()


def _run(work: queue.SimpleQueue[Any]) -> None:
    while (item := work.get()) is not None:
        future, call = item
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(call())
        except BaseException as exc:
            future.set_exception(exc)
        item = future = call = None  # what it holds must not live until the next one


class Repeater:
    """Calls a method again and again in a thread of its own, while its object lives."""

    def __init__(self, work: Callable[[], object], *, interval_s: float) -> None:
        """Start to call `work` every `interval_s` seconds.

        Args:
            work: a method; an error is for `raise_error`, and it goes on.
            interval_s: from the end of one call to the next one.
        """
        self._work = weakref.WeakMethod(work)
        self._interval_s = interval_s
        self._errors: deque[BaseException] = deque(maxlen=1)
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._stopped = threading.Event()
        arguments = (self._work, self._interval_s, self._stopped, self._errors)
        self._thread = threading.Thread(
            target=_repeat, args=arguments, name="zarrbuf-refresh", daemon=True
        )
        self._thread.start()

    @property
    def has_failed(self) -> bool:
        """Whether there is an error to raise."""
        return bool(self._errors)

    @property
    def is_running(self) -> bool:
        """Whether this process has a thread that calls."""
        return self._thread.is_alive()

    def raise_error(self) -> None:
        """Raise what went wrong since the last call, if anything did.

        In a forked child, where there is no thread yet, this starts one.
        """
        if self._pid != os.getpid():
            self._errors.clear()
            self._start()
        with suppress(IndexError):
            error = self._errors.pop()
            raise error

    def close(self) -> None:
        """Call it no more, and wait for a call under way. Safe twice."""
        if self._pid != os.getpid():
            return
        self._stopped.set()
        self._thread.join()


def _repeat(
    method: weakref.WeakMethod[Any],
    interval_s: float,
    stopped: threading.Event,
    errors: deque[BaseException],
) -> None:
    while not stopped.wait(interval_s):
        work = method()
        if work is None:
            return
        try:
            work()
        except BaseException as exc:
            errors.append(exc)
        work = None  # it must not keep its object alive


class EndingError(Exception):
    """The interpreter ends: a thread in the background begins nothing new."""


class UnderWay:
    """Calls that the interpreter must not end in the middle of. Safe between threads.

    The threads of some libraries call back into the interpreter, and one that does
    while it is taken down ends the process by SIGABRT. obstore's do: they still have to
    leave the interpreter when the answer that they brought is there already
    (https://github.com/PyO3/pyo3-async-runtimes/issues/40).
    """

    def __init__(self) -> None:
        """Start with none."""
        self.reset()

    def reset(self) -> None:
        """Have none: a forked child has none of its parent's."""
        self._changed = threading.Condition()
        self._count = 0
        self._is_ending = False
        self._is_used = False

    def __enter__(self) -> None:
        """Begin a call.

        Raises:
            EndingError: in a thread that nobody waits for, once the interpreter ends.
        """
        with self._changed:
            if self._is_ending and threading.current_thread().daemon:
                raise EndingError("the interpreter ends")
            self._count += 1
            self._is_used = True

    def __exit__(self, *exc_info: object) -> None:
        """End a call."""
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def end(self) -> None:
        """Let no thread in the background begin, and wait for what is under way."""
        with self._changed:
            self._is_ending = True
            self._changed.wait_for(lambda: not self._count, _MAX_LAST_WAIT_S)
            is_used = self._is_used
        if is_used:
            time.sleep(_LEAVING_S)
