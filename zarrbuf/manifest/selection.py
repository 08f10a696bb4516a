"""Which trajectories of a list: the first, parts, ids, in what order.

Pure: rows of the manifest in, positions out. Knows no storage.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from zarrbuf.errors import InvalidInputError, TrajectoryNotFoundError
from zarrbuf.manifest.rows import IntArray, Rows

_ID_RANGE: Final = re.compile(r"\s*(\d{1,18})\s*(?:-\s*(\d{1,18})\s*)?")
MAX_IDS: Final = 10_000_000


def select_first(rows: Rows, count: int) -> IntArray:
    """Return the positions of the first `count` rows.

    Raises:
        InvalidInputError: if there are fewer, or none is asked for.
    """
    if not 1 <= count <= len(rows):
        raise InvalidInputError(
            f"count is {count}; the buffer holds {len(rows)} trajectories, so 1 to "
            f"{len(rows)} are allowed"
        )
    return np.arange(count)


def select_fractions(
    rows: Rows, fractions: Sequence[float], *, seed: int | None
) -> list[IntArray]:
    """Return disjoint parts of the rows, each in the order of the list.

    Args:
        rows: all.
        fractions: of each part; together at most 1. Parts end at the whole number of
            rows nearest to where they should, so that parts of 1 leave nothing out.
        seed: of the draw of the parts; None for one after the other.

    Raises:
        InvalidInputError: if a fraction is not allowed, or a part would be empty.
    """
    if not fractions or not all(0 < one <= 1 for one in fractions):
        raise InvalidInputError(
            f"fractions are {list(fractions)}; numbers above 0 and up to 1 are needed"
        )
    if sum(fractions) > 1 + 1e-9:
        raise InvalidInputError(
            f"fractions are {list(fractions)}, together {sum(fractions):g}; at most 1 "
            "is allowed"
        )
    edges = np.rint(np.cumsum([0.0, *fractions]) * len(rows)).astype(np.int64)
    if (np.diff(edges) < 1).any():
        raise InvalidInputError(
            f"fractions {list(fractions)} of {len(rows)} trajectories leave a part "
            "without any"
        )
    order = np.arange(len(rows))
    if seed is not None:
        order = np.random.default_rng(seed).permutation(order)
    return [np.sort(order[a:b]) for a, b in itertools.pairwise(edges)]


def parse_ids(ids: str | Sequence[int]) -> IntArray:
    """Read ids such as "3,7-20"; both ends of a range belong to it.

    Args:
        ids: a text, or whole numbers.

    Returns:
        int64, rising.

    Raises:
        InvalidInputError: pointing at what is no id.
    """
    if not isinstance(ids, str | Iterable):
        raise InvalidInputError(f"ids are {ids!r:.80}; numbers or 3,7-20 are needed")
    text = ids if isinstance(ids, str) else ",".join(map(str, ids))
    parts: list[IntArray] = []
    total = 0
    for part in text.split(","):
        match = _ID_RANGE.fullmatch(part)
        first = int(match[1]) if match else 0
        last = int(match[2] or first) if match else -1
        total += last - first + 1
        if last < first or total > MAX_IDS:
            raise InvalidInputError(
                f"ids {text!r:.200}: {part!r:.40} is no id and no range, or there "
                f"are more than {MAX_IDS}; write 3,7-20"
            )
        parts.append(np.arange(first, last + 1))
    return np.unique(np.concatenate(parts))


def select_ids(rows: Rows, ids: IntArray) -> IntArray:
    """Return the positions of the rows that have some ids, in order of the list.

    Raises:
        TrajectoryNotFoundError: naming ids that are not listed.
    """
    positions: IntArray = np.flatnonzero(np.isin(rows.trajectory_ids, ids))
    absent = np.setdiff1d(ids, rows.trajectory_ids[positions])
    if len(absent):
        known = rows.trajectory_ids
        span = f"{known.min()} to {known.max()}" if len(known) else "none"
        raise TrajectoryNotFoundError(
            f"no trajectory {', '.join(map(str, absent[:5].tolist()))}"
            f"{' ...' if len(absent) > 5 else ''}; the ids there are: {span}"
        )
    return positions


def interleave(parts: Sequence[Rows]) -> IntArray:
    """Return the order of a merge: by id, then by source, then as they stood.

    Args:
        parts: the rows of each source.

    Returns:
        Positions in the rows of all sources, one after the other.
    """
    ids = np.concatenate([part.trajectory_ids for part in parts])
    sources = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    order: IntArray = np.lexsort((sources, ids))
    return order


def partition(num_items: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return the half-open range of items that one of several ranks takes.

    Parts are contiguous; the first `num_items % world_size` ranks get one more.

    Raises:
        InvalidInputError: if `rank` is not in [0, world_size).
    """
    if world_size < 1 or not 0 <= rank < world_size:
        raise InvalidInputError(
            f"local_rank is {rank} and world_size {world_size}; "
            "0 <= local_rank < world_size is needed"
        )
    size, extra = divmod(num_items, world_size)
    start = rank * size + min(rank, extra)
    return start, start + size + (1 if rank < extra else 0)
