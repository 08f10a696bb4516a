"""Chunks fetched before they are asked for: of the next batches, and of the newest.

The draws of the next batches follow from the generator, so a copy of it tells them; the
generator itself stays where it is, and what a caller gets is the same without. Owns the
thread that fetches. Nothing here changes a batch: what was not fetched in time, or not
rightly foreseen, is fetched when it is needed.
"""

from __future__ import annotations

import functools
import os
import threading
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from zarrbuf.common.background import BackgroundThread
from zarrbuf.sampling.batch_reader import BatchReader
from zarrbuf.sampling.draws import Draws
from zarrbuf.sampling.index_map import IndexMap, IntArray, plan_batch
from zarrbuf.sampling.window import Window
from zarrbuf.storage.fetching import FetchCost, fetch_whole

Tensor = torch.Tensor


@dataclass(frozen=True)
class _Planned:
    """A batch that is expected, and the fetching of its chunks."""

    draws: Tensor
    fetched: Future[Any]


class Prefetcher:
    """Fetches ahead from object stores. Safe between threads."""

    def __init__(self, reader: BatchReader, *, depth: int, num_newest: int) -> None:
        """Fetch nothing yet.

        Args:
            reader: keeps what is fetched.
            depth: batches that are fetched ahead.
            num_newest: trajectories that are fetched whole, the newest.
        """
        self._reader = reader
        self._depth = depth
        self._num_newest = num_newest
        self._thread = BackgroundThread("zarrbuf-prefetch")
        # Apart, so that no batch waits for whole trajectories.
        self._newest_thread = BackgroundThread("zarrbuf-newest")
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._forget()

    def _own_lock(self) -> threading.Lock:
        """Return the lock; in a forked child what the parent had ahead is forgotten."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._lock = threading.Lock()
            self._forget()
        return self._lock

    def _forget(self) -> None:
        self._ahead: deque[_Planned] = deque()
        self._expected: Draws | None = None  # after the last one planned
        # Of the last batch; windows are not kept, since they hold memory.
        self._last: tuple[IndexMap, int] | None = None
        self._newest_of: IndexMap | None = None

    def close(self) -> None:
        """Fetch no more, until the next batch is drawn. Safe twice."""
        with self._own_lock():
            self._forget()
        self._thread.close()
        self._newest_thread.close()

    def wait_for(self, draws: Tensor, window: Window) -> None:
        """Wait until the chunks of a batch are here, if they are on their way.

        Args:
            draws: int64 [n], the samples drawn now.
            window: those of `plan_next` are expected for the same one.
        """
        with self._own_lock():
            last = self._last
            if (
                last is None
                or last[0] is not window.index
                or not self._ahead
                or not self._ahead[0].draws.equal(draws)
            ):
                self._drop_plans()
                return
            planned = self._ahead.popleft()
        if planned.fetched.cancel():  # it has not begun: reading does it sooner
            return
        # What failed will fail again where it is needed, and be raised there.
        with suppress(Exception):
            planned.fetched.result()

    def _drop_plans(self) -> None:
        for planned in self._ahead:
            planned.fetched.cancel()
        self._ahead.clear()
        self._expected = None

    def plan_next(
        self,
        draws: Draws,
        count: int,
        window: Window,
        *,
        batch_bytes: int,
    ) -> None:
        """Have the chunks of the next batches fetched, after two of one size.

        Args:
            draws: where they stand after the batch that was drawn now.
            count: samples of that batch.
            window: drawn from.
            batch_bytes: what the chunks of that batch took; ahead is fetched what has
                room among what is kept.
        """
        with self._own_lock():
            depth = self._depth_for(window, count, batch_bytes)
            if not depth:
                self._drop_plans()
                return
            if self._expected is None:
                self._expected = draws.copy()
            total = window.index.total_samples
            while len(self._ahead) < depth:
                samples = self._expected.draw(total, count)
                plan = plan_batch(samples.numpy(), window.index)
                fetching = functools.partial(
                    self._reader.fetch_batch, plan, window.fields, window
                )
                self._ahead.append(_Planned(samples, self._thread.submit(fetching)))

    def _depth_for(self, window: Window, count: int, batch_bytes: int) -> int:
        """Return how many batches are fetched ahead now."""
        before, self._last = self._last, (window.index, count)
        if before is None or before[0] is not window.index or before[1] != count:
            return 0
        room = self._reader.archives.max_bytes // 2
        return min(self._depth, room // max(1, batch_bytes))

    def fetch_newest(self, window: Window) -> None:
        """Have the newest trajectories fetched whole, once for each window."""
        with self._own_lock():
            if self._newest_of is window.index or not self._num_newest:
                return
            self._newest_of = window.index
        positions = window.newest(self._num_newest)
        fetching = functools.partial(self._fetch_whole, positions, window)
        self._newest_thread.submit(fetching)

    def _fetch_whole(self, positions: IntArray, window: Window) -> None:
        cost = FetchCost()
        archives = list(window.archives(positions, cost))
        room = self._reader.archives.max_bytes // 2
        for archive in reversed(archives):
            if self._newest_of is not window.index:
                return  # there are newer ones
            room -= archive.open_bytes + len(archive.source)
            if archive.remote is None or room < 0:
                continue
            fetch_whole([archive.remote], cost)
            self._reader.archives.weigh([archive])
