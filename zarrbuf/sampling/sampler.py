"""Draw a batch: which samples, into which memory, at what cost.

Joins the draws, the plan, the reader and the memory of batches. Owns no trajectory and
no generator.
"""

from __future__ import annotations

from typing import Any, Final

import torch

from zarrbuf.common.arguments import check_whole_number
from zarrbuf.errors import EmptyBufferError
from zarrbuf.sampling.batch_memory import BatchMemory
from zarrbuf.sampling.batch_reader import BatchReader
from zarrbuf.sampling.batches import arrays_of, as_batch, new_arrays
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
        self, window: Window, count: int, generator: torch.Generator, out: Any
    ) -> dict[str, Any]:
        """Do what `TrajectoryReplayBuffer.sample` says, from `window`."""
        count = check_whole_number("num_chunks", count, minimum=1, maximum=MAX_BATCH)
        total, fields = window.index.total_samples, window.fields
        if not total:
            raise EmptyBufferError(
                "the buffer holds no trajectory; add or load some before sampling"
            )
        planning = ReadStats()
        with planning.timing("plan"):
            if out is None:
                arrays = new_arrays(fields, count, self._memory)
            else:
                arrays = arrays_of(out, fields, count)
            draws = torch.randint(0, total, (count,), generator=generator)
            any_big = any(field.spec.is_big for field in fields)
            plan = plan_batch(draws.numpy(), window.index, in_place_order=any_big)
        if window.is_remote:
            with planning.timing("fetch"):
                self._prefetcher.wait_for(draws, window)
        stats = self._reader.read_batch(plan, arrays, fields, window)
        if window.is_remote:
            self._prefetcher.fetch_newest(window)
            self._prefetcher.plan_next(
                generator, count, window, batch_bytes=stats.bytes_read
            )
        stats.add(planning)
        self._reader.stats.add(stats)
        return as_batch(fields, arrays) if out is None else out
