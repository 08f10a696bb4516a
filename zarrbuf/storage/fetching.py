"""Fetch what is missing of many objects at once, and open archives that way.

Joins sparse objects to the storage they come from. Every round is one call of the
storage, whatever number of objects it is for. Knows no manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from zarrbuf.storage.contract import Range, Storage
from zarrbuf.storage.sparse import SparseObject

IntArray = npt.NDArray[np.int64]
Result = TypeVar("Result")
Steps = Generator[IntArray, None, Result]
"""Yields the ranges that have to be there before it can go on; returns what it made."""

MAX_GAP_BYTES: Final = 32 << 10
"""Ranges so near are fetched together: a request costs more than these bytes."""
_MAX_STORAGES: Final = 16
"""Roots that are asked at once, if a batch comes from a merge of many."""


@dataclass(frozen=True, eq=False)
class RemoteObject:
    """An object, what of it is there, and where the rest is.

    Attributes:
        storage: where it lies.
        path: its name there.
        data: its bytes, as far as they are here.
    """

    storage: Storage
    path: str
    data: SparseObject

    def fill_from_cache(self, ranges: IntArray) -> None:
        """Take in what is kept on disk of some ranges."""
        cache = self.storage.range_cache
        if cache is None:
            return
        for start, stop in self.data.missing(ranges, max_gap_bytes=0).tolist():
            data = cache.read(self.key, start, stop)
            if data is not None:
                self.data.fill(start, data)

    @property
    def key(self) -> str:
        """What names the object; archives never change."""
        return f"{self.storage.describe(self.path)} {self.data.num_bytes}"


@dataclass
class FetchCost:
    """What fetching has cost.

    Attributes:
        rounds: calls of a storage that waited for each other.
        requests: ranges asked for.
        num_bytes: bytes of them.
    """

    rounds: int = 0
    requests: int = 0
    num_bytes: int = 0


def fetch(
    wanted: Iterable[tuple[RemoteObject, IntArray]],
    cost: FetchCost,
    *,
    max_gap_bytes: int = MAX_GAP_BYTES,
) -> None:
    """Fetch what is missing of some ranges, in one round.

    Args:
        wanted: objects and the ranges, int64 [n, 2], that have to be there.
        cost: what it costs is added.
        max_gap_bytes: ranges of an object so near are fetched together.

    Raises:
        NotFoundError: if an object is not there.
        FormatError: if an object is shorter than it should be.
        StorageError: if the storage failed.
    """
    of_objects: dict[RemoteObject, list[IntArray]] = {}
    for remote, ranges in wanted:
        of_objects.setdefault(remote, []).append(ranges)
    by_storage: dict[Storage, list[tuple[RemoteObject, Range]]] = {}
    for remote, parts in of_objects.items():
        ranges = np.concatenate(parts)
        remote.fill_from_cache(ranges)
        missing = remote.data.missing(ranges, max_gap_bytes=max_gap_bytes)
        for start, stop in missing.tolist():
            asked = by_storage.setdefault(remote.storage, [])
            asked.append((remote, Range(remote.path, start, stop)))
    cost.rounds += bool(by_storage)
    for (storage, pairs), answers in zip(
        by_storage.items(), _read_all(by_storage), strict=True
    ):
        for (remote, one), data in zip(pairs, answers, strict=True):
            remote.data.fill(one.start, data)
        if storage.range_cache is not None:
            kept = zip(pairs, answers, strict=True)
            storage.range_cache.write((r.key, one.start, d) for (r, one), d in kept)
        cost.requests += len(pairs)
        cost.num_bytes += sum(map(len, answers))


def _read_all(
    by_storage: Mapping[Storage, Sequence[tuple[RemoteObject, Range]]],
) -> list[list[bytes]]:
    """Read ranges of several storages at once."""
    jobs = [(s, [one for _, one in pairs]) for s, pairs in by_storage.items()]
    if len(jobs) < 2:
        return [storage.read_ranges(ranges) for storage, ranges in jobs]
    with ThreadPoolExecutor(min(len(jobs), _MAX_STORAGES)) as pool:
        return list(pool.map(lambda job: job[0].read_ranges(job[1]), jobs))


def fetch_in_steps(
    jobs: Sequence[tuple[RemoteObject, Callable[[SparseObject], Steps[Result]]]],
    cost: FetchCost,
) -> list[Result]:
    """Make something of each of some objects, reading what it needs as it goes.

    Args:
        jobs: objects, and what is done with each.
        cost: what it costs is added.

    Returns:
        What each job returned.

    Raises:
        Exception: what a job raises, and what `fetch` does.
    """
    running = [
        (number, remote, job(remote.data)) for number, (remote, job) in enumerate(jobs)
    ]
    results: dict[int, Result] = {}
    while running:
        waiting = []
        wanted = []
        for number, remote, steps in running:
            try:
                ranges = _next_missing(remote, steps)
            except StopIteration as done:
                results[number] = done.value
            else:
                waiting.append((number, remote, steps))
                wanted.append((remote, ranges))
        fetch(wanted, cost)
        running = waiting
    return [results[number] for number in range(len(jobs))]


def fetch_whole(remotes: Iterable[RemoteObject | None], cost: FetchCost) -> None:
    """Fetch what is missing of whole objects; nothing for those that are None."""
    fetch(
        ((r, np.array([[0, r.data.num_bytes]])) for r in remotes if r is not None), cost
    )


def _next_missing(remote: RemoteObject, steps: Steps[Result]) -> IntArray:
    """Go on with a job until something that it needs is missing."""
    while True:
        ranges = next(steps)
        if len(remote.data.missing(ranges, max_gap_bytes=0)):
            return ranges
