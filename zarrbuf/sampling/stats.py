"""What sampling has cost: numbers, of the last call and in total. Pure."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass
class ReadStats:
    """What calls of `sample` have cost. Bytes and chunks are those of big fields.

    Attributes:
        batches: calls.
        samples: samples put into batches.
        chunks_read: chunks decoded for them.
        bytes_read: stored bytes of these chunks.
        bytes_decoded: decoded bytes of these chunks.
        requests: ranges asked of object stores, to open archives and for chunks.
        bytes_fetched: bytes of these ranges.
        archives_opened: trajectories that had to be opened.
        small_fields_decoded: trajectories whose small fields had to be decoded.
        samples_cached: samples whose small fields were kept decoded.
        compile_seconds: compiling the loops, in the first call of a process.
        plan_seconds: finding the fields of a new window, drawing, and finding out which
            chunks are wanted.
        read_seconds: opening archives.
        fetch_seconds: waiting for object stores, for chunks.
        decode_seconds: checking and decoding chunks, finding out whether they are in
            memory, and the wait for them.
        gather_seconds: copying small fields into the batch.
    """

    batches: int = 0
    samples: int = 0
    chunks_read: int = 0
    bytes_read: int = 0
    bytes_decoded: int = 0
    requests: int = 0
    bytes_fetched: int = 0
    archives_opened: int = 0
    small_fields_decoded: int = 0
    samples_cached: int = 0
    compile_seconds: float = 0.0
    plan_seconds: float = 0.0
    read_seconds: float = 0.0
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0
    gather_seconds: float = 0.0

    def add(self, other: ReadStats) -> None:
        """Add what other calls have cost."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class StatsKeeper:
    """The last call and the sum of all; safe between threads."""

    def __init__(self) -> None:
        """Start from nothing."""
        self._total = ReadStats()
        self._last = ReadStats()
        self.make_lock()

    def make_lock(self) -> None:
        """Start with a lock that nobody holds."""
        self._lock = threading.Lock()

    def add(self, call: ReadStats) -> None:
        """Take in one call."""
        with self._lock:
            self._total.add(call)
            self._last = call

    def numbers(self) -> dict[str, float]:
        """Return every total by its name, and the last call's as `last_{name}`."""
        with self._lock:
            total, last = dict(vars(self._total)), dict(vars(self._last))
        return {**total, **{f"last_{name}": value for name, value in last.items()}}
