"""One or two buffers as one: how many rows each gives, and how they are joined.

A buffer is anything with `is_ready` and `sample`. Waits for nothing, knows no thread.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import torch

from zarrbuf.errors import InvalidInputError
from zarrbuf.sampling.batches import BatchMemory

Batch = dict[str, Any]
"""Nested dict of tensors [n, ...]."""
_LOG: Final = logging.getLogger("zarrbuf")


class Sampled(Protocol):
    """What a dataset needs of a buffer; RLinf's own has it too."""

    def is_ready(self, min_size: int, /) -> bool:
        """Whether there are at least `min_size` trajectories."""
        ...

    def sample(self, num_chunks: int, /) -> Batch:
        """Draw `num_chunks` transitions."""
        ...


class Mixture:
    """What batches are drawn from.

    Attributes:
        replay: the replay buffer.
        demo: the demo buffer, or None.
        num_rows: rows of a batch.
        min_replay: trajectories wanted in the replay buffer.
        min_demo: trajectories wanted in the demo buffer.
    """

    def __init__(
        self,
        replay: Sampled,
        demo: Sampled | None,
        *,
        num_rows: int,
        demo_fraction: float,
    ) -> None:
        """Share the rows out: to the nearest row, half a row to the replay buffer."""
        self.replay = replay
        self.demo = demo
        self.num_rows = num_rows
        self.min_replay = 0
        self.min_demo = 0
        share = demo_fraction if demo is not None else 0
        self._num_demo = math.ceil(num_rows * share - 0.5)
        self._num_replay = num_rows - self._num_demo
        if 0 < share < 1 and not (self._num_demo and self._num_replay):
            who = "replay" if self._num_demo else "demo"
            _LOG.warning("the %s buffer gives no row to batches of %d", who, num_rows)
        self._can_fill = demo is not None and _fills(replay) and _fills(demo)
        self._said: set[str] = set()
        self._room: _Room | None = None

    def is_ready(self) -> bool:
        """Whether every buffer that gives rows holds what is wanted."""
        if self._num_replay and not self.replay.is_ready(self.min_replay):
            return False
        if self.demo is None or not self._num_demo:
            return True
        return bool(self.demo.is_ready(self.min_demo))

    def draw(self) -> Batch:
        """Draw one batch, from the replay buffer first."""
        if self.demo is None or not self._num_demo:
            return self.replay.sample(self._num_replay)
        if not self._num_replay:
            return self.demo.sample(self._num_demo)
        return self._draw_both(self.replay, self.demo)

    def _draw_both(self, replay: Sampled, demo: Sampled) -> Batch:
        # Where both buffers fill memory that is given, they fill the two parts of the
        # joined batch. Which fields there are is known from the batch before.
        room = self._room
        whole, first, second = room.make() if room is not None else (None, None, None)
        parts = (
            _sample(replay, self._num_replay, first),
            _sample(demo, self._num_demo, second),
        )
        if whole is not None and parts[0] is first and parts[1] is second:
            return whole
        left_out: list[str] = []
        joined = _join(*parts, (), left_out)
        self._say(left_out)
        if self._can_fill:
            self._room = _Room(*parts)
        return joined

    def _say(self, left_out: Sequence[str]) -> None:
        names = sorted(set(left_out) - self._said)
        if names:
            self._said.update(names)
            _LOG.warning(
                "joined batches leave out what only one of the two buffers has: %s",
                ", ".join(names),
            )


def _fills(buffer: Sampled) -> bool:
    """Whether a buffer draws into memory that is given."""
    try:
        return "out" in inspect.signature(buffer.sample).parameters
    except (TypeError, ValueError):  # not known of some callables written in C
        return False


def _sample(buffer: Any, num_rows: int, out: Batch | None) -> Batch:
    """Draw into `out` if it has the fields that the buffer has by now."""
    if out is not None:
        try:
            filled: Batch = buffer.sample(num_rows, out=out)
            return filled
        except InvalidInputError:  # said before anything is drawn
            pass
    batch: Batch = buffer.sample(num_rows)
    return batch


class _Room:
    """Makes room for batches like two that were drawn, their rows in one memory."""

    def __init__(self, replay: Batch, demo: Batch) -> None:
        """Remember shapes and dtypes of two batches."""
        self._kinds = _kinds_of(replay), _kinds_of(demo)
        self._memory = BatchMemory(pin_memory=_is_pinned(replay))

    def make(self) -> tuple[Batch, Batch, Batch]:
        """Return a joined batch, not initialised, and its two parts.

        Returns:
            Nested dicts of tensors [n + m, ...], [n, ...] and [m, ...]. The parts are
            views of the whole, but for fields of only one, which are memory of no use.
        """
        return self._split(*self._kinds, "")

    def _split(
        self, replay: Batch, demo: Batch, name: str
    ) -> tuple[Batch, Batch, Batch]:
        whole: Batch = {}
        first: Batch = {}
        second: Batch = {}
        for key in {**replay, **demo}:
            path = f"{name}/{key}"
            a, b = replay.get(key), demo.get(key)
            if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
                whole[key] = self._empty(a, path, num_rows=len(a) + len(b))
                first[key], second[key] = whole[key][: len(a)], whole[key][len(a) :]
            elif isinstance(a, dict) and isinstance(b, dict):
                whole[key], first[key], second[key] = self._split(a, b, path)
            else:
                first |= self._unused(replay, key, f"replay{path}")
                second |= self._unused(demo, key, f"demo{path}")
        return whole, first, second

    def _unused(self, kinds: Batch, key: str, name: str) -> Batch:
        """Return memory for one key of a batch, if it is there, as a dict."""
        kind = kinds.get(key)
        if isinstance(kind, torch.Tensor):
            return {key: self._empty(kind, name, num_rows=len(kind))}
        if kind is None:
            return {}
        inner = [self._unused(kind, k, f"{name}/{k}") for k in kind]
        return {key: {k: v for one in inner for k, v in one.items()}}

    def _empty(self, kind: torch.Tensor, name: str, *, num_rows: int) -> torch.Tensor:
        shape = (num_rows, *kind.shape[1:])
        num_bytes = math.prod(shape) * kind.itemsize
        if not num_bytes:  # torch gives no bytes another dtype
            return torch.empty(shape, dtype=kind.dtype)
        memory = self._memory.empty(name, (num_bytes,), np.dtype(np.uint8))
        return torch.from_numpy(memory).view(kind.dtype).reshape(shape)


def _kinds_of(batch: Mapping[str, Any]) -> Batch:
    """Return a batch without its memory."""
    return {
        key: _kinds_of(value) if isinstance(value, dict) else value.to("meta")
        for key, value in batch.items()
        if isinstance(value, dict | torch.Tensor)
    }


def _is_pinned(batch: Mapping[str, Any]) -> bool:
    """Whether a batch has page-locked memory; the joined one gets it then, too."""
    return any(
        _is_pinned(value) if isinstance(value, dict) else value.is_pinned()
        for value in batch.values()
        if isinstance(value, dict | torch.Tensor)
    )


def _join(
    replay: Batch, demo: Batch, parents: tuple[str, ...], left_out: list[str]
) -> Batch:
    """Join two batches along their rows.

    Args:
        replay: nested dict of tensors [n, ...].
        demo: nested dict of tensors [m, ...].
        parents: keys that lead to these dicts.
        left_out: gets the names of what is no tensor in both.

    Returns:
        Nested dict of tensors [n + m, ...].
    """
    joined: Batch = {}
    for key in {**replay, **demo}:
        path = (*parents, str(key))
        first, second = replay.get(key), demo.get(key)
        if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
            _check_fit("/".join(path), first, second)
            joined[key] = torch.cat((first, second))
        elif isinstance(first, dict) and isinstance(second, dict):
            joined[key] = _join(first, second, path, left_out)
        else:
            left_out.append("/".join(path))
    return joined


def _check_fit(name: str, first: torch.Tensor, second: torch.Tensor) -> None:
    if first.dtype == second.dtype and first.shape[1:] == second.shape[1:]:
        return
    kinds = [
        f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape[1:])}"
        for tensor in (first, second)
    ]
    raise InvalidInputError(
        f"field {name!r} is {kinds[0]} in the replay buffer and {kinds[1]} in the demo "
        "buffer; a joined batch needs the same dtype and row shape"
    )
