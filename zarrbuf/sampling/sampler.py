"""Draw a batch: which samples, into which memory, at what cost.

Joins the draws, the plan, the reader and the memory of batches. Owns no trajectory and
no generator.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, Final

import torch

from zarrbuf.common.arguments import check_whole_number
from zarrbuf.errors import EmptyBufferError
from zarrbuf.sampling.batch_reader import BatchReader
from zarrbuf.sampling.batches import BatchMemory, arrays_of, new_batch
from zarrbuf.sampling.index_map import plan_batch
from zarrbuf.sampling.prefetch import Prefetcher
from zarrbuf.sampling.stats import ReadStats
from zarrbuf.sampling.window import Window

MAX_BATCH: Final = 2**24
"""Samples of one batch; the images of so many are more than memories hold."""


class Sampler:
    """Draws batches from windows."""

    def __init__(
        self, reader: BatchReader, memory: BatchMemory, prefetcher: Prefetcher
    ) -> None:
        """Read with `reader`, into `memory` unless the caller has some."""
        self._reader = reader
        self._memory = memory
        self._prefetcher = prefetcher

    def sample(
        self,
        count: int,
        find_window: Callable[[], Window],
        generator: torch.Generator,
        out: Any,
    ) -> dict[str, Any]:
        """Do what `TrajectoryReplayBuffer.sample` says.

        Args:
            count: samples.
            find_window: gives what is drawn from; finding its fields may take time.
            generator: torch's.
            out: a batch to fill again, or None.
        """
        count = check_whole_number("num_chunks", count, minimum=1, maximum=MAX_BATCH)
        started = perf_counter()
        window = find_window()
        total, fields = window.index.total_samples, window.fields
        if not total:
            raise EmptyBufferError(
                "the buffer holds no trajectory; add or load some before sampling"
            )
        stats = ReadStats(batches=1, samples=count)
        if out is None:
            arrays, batch = new_batch(fields, count, self._memory)
        else:
            arrays, batch = arrays_of(out, fields, count), out
        draws = torch.randint(0, total, (count,), generator=generator)
        any_big = any(field.spec.is_big for field in fields)
        plan = plan_batch(draws.numpy(), window.index, in_place_order=any_big)
        planned = perf_counter()
        stats.plan_seconds = planned - started
        if window.is_remote:
            self._prefetcher.wait_for(draws, window)
            stats.fetch_seconds = perf_counter() - planned
        self._reader.read_batch(plan, arrays, fields, window, stats)
        if window.is_remote:
            self._prefetcher.fetch_newest(window)
            self._prefetcher.plan_next(
                generator, count, window, batch_bytes=stats.bytes_read
            )
        self._reader.stats.add(stats)
        return batch
