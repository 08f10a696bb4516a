"""Draw a batch: which samples, into which memory, at what cost.

Joins the draws, the plan, the reader and the memory of batches. Owns no trajectory and
no generator.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any, Final

from zarrbuf.common.arguments import as_whole_number, check_whole_number
from zarrbuf.errors import EmptyBufferError, NothingAskedError
from zarrbuf.sampling.batch_reader import BatchReader
from zarrbuf.sampling.batches import BatchMemory, arrays_of, new_batch
from zarrbuf.sampling.draws import Draws
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
        draws: Draws,
        out: Any,
    ) -> dict[str, Any]:
        """Do what `TrajectoryReplayBuffer.sample` says.

        Args:
            count: samples.
            find_window: gives what is drawn from; finding its fields may take time.
            draws: the random numbers.
            out: a batch to fill again, or None.
        """
        if type(count) is not int or not 0 < count <= MAX_BATCH:
            count = check_count(count)
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
        samples = draws.draw(total, count)
        any_big = any(field.spec.is_big for field in fields)
        plan = plan_batch(samples.numpy(), window.index, in_place_order=any_big)
        planned = perf_counter()
        stats.plan_seconds = planned - started
        if window.is_remote:
            self._prefetcher.wait_for(samples, window)
            stats.fetch_seconds = perf_counter() - planned
        self._reader.read_batch(plan, arrays, fields, window, stats)
        if window.is_remote:
            self._prefetcher.fetch_newest(window)
            self._prefetcher.plan_next(
                draws, count, window, batch_bytes=stats.bytes_read
            )
        self._reader.stats.add(stats)
        return batch


def check_count(count: Any) -> int:
    """Return a number of samples as an int.

    Raises:
        NothingAskedError: if it is 0 or less, which RLinf answers by an assertion.
        InvalidInputError: if it is no whole number, or too large.
    """
    number = as_whole_number(count)
    if number is not None and number <= 0:
        raise NothingAskedError(
            f"num_chunks is {count!r}; a whole number from 1 to {MAX_BATCH} is needed"
        )
    return check_whole_number("num_chunks", count, minimum=1, maximum=MAX_BATCH)
