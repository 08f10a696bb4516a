"""Byte ranges [start, stop) of one object, merged into fetches. Pure."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

BLOCK_BYTES: Final = 512
"""What is there of an object is known in blocks so large, in memory and on disk."""


def merge_ranges(ranges: IntArray, *, max_gap_bytes: int, max_bytes: int) -> IntArray:
    """Merge ranges that overlap or lie near each other.

    Args:
        ranges: int64 [n, 2], start and stop, any order, repeats allowed.
        max_gap_bytes: ranges at most so many bytes apart become one.
        max_bytes: what comes of that is cut into pieces of at most so many bytes.

    Returns:
        int64 [m, 2], ascending, without overlap; every range lies in consecutive ones.
    """
    ranges = ranges[ranges[:, 1] > ranges[:, 0]]
    if not len(ranges):
        return np.zeros((0, 2), np.int64)
    order = np.argsort(ranges[:, 0], kind="stable")
    starts = ranges[order, 0]
    ends = np.maximum.accumulate(ranges[order, 1])
    is_first = np.ones(len(starts), np.bool_)
    is_first[1:] = starts[1:] - ends[:-1] > max_gap_bytes
    is_last = np.append(is_first[1:], True)
    return _cut(starts[is_first], ends[is_last], max_bytes)


def _cut(starts: IntArray, stops: IntArray, max_bytes: int) -> IntArray:
    """Cut ranges into pieces of at most `max_bytes`."""
    counts = -((starts - stops) // max_bytes)
    which = np.repeat(np.arange(len(starts)), counts)
    number = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    begins = starts[which] + number * max_bytes
    return np.stack([begins, np.minimum(begins + max_bytes, stops[which])], axis=1)
