"""Threads that share a list of pieces of work with their caller.

Pays only for work that leaves the interpreter lock alone. Owns the threads; knows
nothing of the work.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

Piece = TypeVar("Piece")


MAX_DEFAULT_THREADS: Final = 4
"""More hardly gain: memory, not processors, bounds what is decoded in a second."""


def default_num_threads() -> int:
    """Return as many threads as this process has processors, up to a bound."""
    return min(MAX_DEFAULT_THREADS, len(os.sched_getaffinity(0)))


class Workers:
    """The caller's thread and `num_threads - 1` more, started at the first use.

    Attributes:
        num_threads: threads that work at once.
    """

    def __init__(self, num_threads: int) -> None:
        """Use `num_threads` threads, the caller's included."""
        self.num_threads = num_threads
        self.reset()

    def reset(self) -> None:
        """Forget the threads: what a forked child has to do."""
        self._executor: ThreadPoolExecutor | None = None

    def run(self, work: Callable[[Piece], object], pieces: Iterable[Piece]) -> None:
        """Call `work` with each piece, in any order; return when all are done.

        Raises:
            Exception: the first that `work` raised; pieces not begun are left out.
        """
        queue = deque(pieces)
        helpers: list[Future[None]] = []
        try:
            count = min(self.num_threads, len(queue)) - 1
            self._help(work, queue, count, helpers)
            _drain(work, queue)
        finally:
            queue.clear()
            # A helper that has not begun has nothing to do any more.
            failures = [one.exception() for one in helpers if not one.cancel()]
        for failure in failures:
            if failure is not None:
                raise failure

    def _help(
        self,
        work: Callable[[Piece], object],
        queue: deque[Piece],
        count: int,
        helpers: list[Future[None]],
    ) -> None:
        if count < 1:
            return
        try:
            executor = self._executor
            if executor is None:
                executor = self._executor = ThreadPoolExecutor(
                    self.num_threads - 1, thread_name_prefix="zarrbuf-worker"
                )
            for _ in range(count):
                helpers.append(executor.submit(_drain, work, queue))
        except RuntimeError:  # the interpreter is ending: fewer threads do it
            pass

    def close(self) -> None:
        """Stop the threads; the next `run` starts new ones. Safe twice."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()


def _drain(work: Callable[[Piece], object], queue: deque[Piece]) -> None:
    while True:
        try:
            piece = queue.popleft()
        except IndexError:
            return
        try:
            work(piece)
        except BaseException:
            queue.clear()
            raise
