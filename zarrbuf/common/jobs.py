"""Many pieces of work in some threads: in order, with progress, stopped at an error.

Knows no piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Called with (pieces done, pieces in all), in the caller's thread."""


def run_jobs(
    work: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    num_threads: int,
    progress: Progress | None = None,
) -> list[Result]:
    """Do `work` for each job, several at once.

    Args:
        work: called in a thread.
        jobs: what for.
        num_threads: jobs under way at once.
        progress: told after each job, in their order.

    Returns:
        What `work` returned, in order of the jobs.

    Raises:
        BaseException: what the first job that failed raised; those that had not begun
            are left out, and none is under way any more.
    """
    results: list[Result] = []
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for number, result in enumerate(pool.map(work, jobs), 1):
                results.append(result)
                if progress is not None:
                    progress(number, len(jobs))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return results
