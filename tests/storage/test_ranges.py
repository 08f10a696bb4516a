"""Merging byte ranges, against bytes marked one by one."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from zarrbuf.storage.ranges import IntArray, merge_ranges

SIZE = 60


def marked(ranges: IntArray) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    found = np.zeros(SIZE, np.bool_)
    for start, stop in ranges.tolist():
        found[start:stop] = True
    return found


def filled(marks: np.ndarray[tuple[int], np.dtype[np.bool_]], gap: int) -> list[bool]:
    """Return the marks with gaps of at most `gap` between two of them marked too."""
    found = marks.tolist()
    places = np.flatnonzero(marks).tolist()
    for left, right in itertools.pairwise(places):
        if right - left - 1 <= gap:
            found[left:right] = [True] * (right - left)
    return found


@given(
    st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)), max_size=12),
    st.integers(0, 9),
    st.integers(1, 25),
)
def test_merged_ranges_are_what_is_wanted_and_the_small_gaps(
    pairs: list[tuple[int, int]], gap: int, most: int
) -> None:
    ranges = np.array(pairs, np.int64).reshape(-1, 2)
    merged = merge_ranges(ranges, max_gap_bytes=gap, max_bytes=most)
    assert marked(merged).tolist() == filled(marked(ranges), gap)
    sizes = merged[:, 1] - merged[:, 0]
    assert ((sizes > 0) & (sizes <= most)).all()
    assert (merged[1:, 0] >= merged[:-1, 1]).all()
    # Cut only where it must be: as few pieces as the sizes allow.
    runs = merge_ranges(ranges, max_gap_bytes=gap, max_bytes=SIZE)
    assert len(merged) == sum(-(-(b - a) // most) for a, b in runs.tolist())
    assert (runs[1:, 0] - runs[:-1, 1] > gap).all()
