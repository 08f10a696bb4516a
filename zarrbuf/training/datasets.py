"""RLinf's datasets: batches of one or two buffers for ever, drawn ahead if wanted.

The face, with no algorithm of its own: it checks arguments and gives every process
its own stream of batches. `mixing` draws and joins, `preloading` has the thread.
"""

from __future__ import annotations

import contextlib
import logging
import numbers
import os
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeVar

from torch.utils.data import IterableDataset

from zarrbuf.common.arguments import check_whole_number
from zarrbuf.errors import InvalidInputError
from zarrbuf.sampling.sampler import MAX_BATCH
from zarrbuf.training.mixing import Batch, Mixture, Sampled
from zarrbuf.training.preloading import ClosedError, Preloader, Stream

Item = TypeVar("Item")
_LOG: Final = logging.getLogger("zarrbuf")


def replay_buffer_collate_fn(batch: Sequence[Item]) -> Item:
    """Take the one batch out of the list that a `DataLoader` wraps it in."""
    return batch[0]


class ReplayBufferDataset(IterableDataset[Batch]):
    """Batches of a replay buffer, for ever; part of each from a demo buffer if given.

    A drop-in for RLinf's class of the same name. Several iterators share one stream of
    draws. An error of a buffer reaches the iterator that asked, whose iteration is
    over then; a new iterator tries again. In a forked child (a worker of a
    `DataLoader`) the stream is a copy: several workers would draw the same batches.
    """

    def __init__(
        self,
        replay_buffer: Sampled,
        demo_buffer: Sampled | None,
        batch_size: int,
        min_replay_buffer_size: int,
        min_demo_buffer_size: Any,
        *,
        demo_fraction: float = 0.5,
        poll_interval_s: float = 0.1,
        **kwargs: Any,
    ) -> None:
        """Prepare a dataset; nothing is drawn before the first batch is asked for.

        Args:
            replay_buffer: drawn from; a `TrajectoryReplayBuffer` or any object with
                its `is_ready` and `sample`.
            demo_buffer: also drawn from, or None. Its rows stand last in a batch.
            batch_size: rows of a batch.
            min_replay_buffer_size: trajectories to wait for in the replay buffer.
            min_demo_buffer_size: trajectories to wait for in the demo buffer; without
                one it is not looked at.
            demo_fraction: share of the demo buffer's rows, from 0 to 1, to the nearest
                row; half a row goes to the replay buffer. A buffer that gives no rows
                is not waited for.
            poll_interval_s: seconds between two looks at buffers that are waited for.
            **kwargs: accepted for RLinf's sake, and not used.

        Raises:
            InvalidInputError: if an argument is not allowed.
        """
        _check_buffer("replay_buffer", replay_buffer)
        if demo_buffer is not None:
            _check_buffer("demo_buffer", demo_buffer)
        self._poll_interval_s = _check_number(
            "poll_interval_s", poll_interval_s, minimum=1e-3, maximum=3600
        )
        if kwargs:
            _LOG.info("a dataset makes no use of: %s", ", ".join(sorted(kwargs)))
        self._source = Mixture(
            replay_buffer,
            demo_buffer,
            num_rows=check_whole_number(
                "batch_size", batch_size, minimum=1, maximum=MAX_BATCH
            ),
            demo_fraction=_check_number(
                "demo_fraction", demo_fraction, minimum=0, maximum=1
            ),
        )
        self.min_replay_buffer_size = min_replay_buffer_size
        if demo_buffer is not None:
            self._source.min_demo = check_whole_number(
                "min_demo_buffer_size", min_demo_buffer_size
            )
        self._is_closed = False
        self._streams: dict[int, Stream] = {}
        # Closes what draws ahead for a dataset that is collected. At exit there is
        # nothing to do: the interpreter ends the thread before it calls finalizers.
        weakref.finalize(self, _abandon, self._streams).atexit = False

    @property
    def replay_buffer(self) -> Sampled:
        """The replay buffer."""
        return self._source.replay

    @property
    def demo_buffer(self) -> Sampled | None:
        """The demo buffer, or None."""
        return self._source.demo

    @property
    def batch_size(self) -> int:
        """Rows of a batch."""
        return self._source.num_rows

    @property
    def min_replay_buffer_size(self) -> int:
        """Trajectories to wait for in the replay buffer; may be set at any time."""
        return self._source.min_replay

    @min_replay_buffer_size.setter
    def min_replay_buffer_size(self, value: int) -> None:
        self._source.min_replay = check_whole_number("min_replay_buffer_size", value)

    @property
    def min_demo_buffer_size(self) -> int:
        """Trajectories to wait for in the demo buffer; may be set at any time."""
        return self._source.min_demo

    @min_demo_buffer_size.setter
    def min_demo_buffer_size(self, value: int) -> None:
        self._source.min_demo = check_whole_number("min_demo_buffer_size", value)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches until the dataset is closed.

        Yields:
            Nested dict of tensors [batch_size, ...], rows of the replay buffer first.
            Batches of two buffers have the fields that both have.

        Raises:
            InvalidInputError: if the two buffers have another dtype or row shape for
                one field.
            Exception: what a buffer raised.
        """
        # Nothing here keeps a batch: its memory is drawn into again once the consumer
        # has dropped it.
        with contextlib.suppress(ClosedError):
            while True:
                yield self._stream().take()

    def _make_stream(self) -> Stream:
        return Stream(self._source, self._poll_interval_s)

    def _stream(self) -> Stream:
        """Return the stream of this process; that of a parent is not its own."""
        pid = os.getpid()
        stream = self._streams.get(pid)
        if stream is None:
            # `setdefault` gives two threads the same one without a lock, which could
            # be held for ever after a fork.
            stream = self._streams.setdefault(pid, self._make_stream())
            for other in set(self._streams) - {pid}:
                self._streams.pop(other, None)
            if self._is_closed:
                stream.close()
        return stream

    def close(self) -> None:
        """End all iteration and wait for a draw ahead that has begun.

        Safe before the first use, twice, and from any thread; who waits for a batch
        is woken at once. The buffers stay open.
        """
        self._is_closed = True
        self._stream().close()


class PreloadReplayBufferDataset(ReplayBufferDataset):
    """The batches of `ReplayBufferDataset`, in their order, drawn ahead by a thread.

    The thread starts with the first batch that is asked for, and belongs to the
    process that asked. Trajectories that are added show up `prefetch_size` batches
    later at most.
    """

    def __init__(
        self,
        replay_buffer: Sampled,
        demo_buffer: Sampled | None,
        batch_size: int,
        min_replay_buffer_size: int,
        min_demo_buffer_size: Any,
        prefetch_size: int = 5,
        **kwargs: Any,
    ) -> None:
        """Prepare a dataset; its thread starts with the first batch asked for.

        Args:
            replay_buffer: see `ReplayBufferDataset`.
            demo_buffer: likewise.
            batch_size: likewise.
            min_replay_buffer_size: likewise.
            min_demo_buffer_size: likewise.
            prefetch_size: batches that are drawn ahead at most, at least 1.
            **kwargs: `demo_fraction` and `poll_interval_s`; others are not used.

        Raises:
            InvalidInputError: if an argument is not allowed.
        """
        self._prefetch_size = check_whole_number(
            "prefetch_size", prefetch_size, minimum=1
        )
        super().__init__(
            replay_buffer,
            demo_buffer,
            batch_size,
            min_replay_buffer_size,
            min_demo_buffer_size,
            **kwargs,
        )

    @property
    def prefetch_size(self) -> int:
        """Batches that are drawn ahead at most."""
        return self._prefetch_size

    def _make_stream(self) -> Stream:
        return Preloader(self._source, self._poll_interval_s, self._prefetch_size)


def _abandon(streams: dict[int, Stream]) -> None:
    for stream in list(streams.values()):
        stream.abandon()


def _check_buffer(name: str, value: object) -> None:
    if not all(callable(getattr(value, m, None)) for m in ("is_ready", "sample")):
        raise InvalidInputError(
            f"{name} is {type(value).__name__}; an object with the methods is_ready "
            "and sample is needed"
        )


def _check_number(name: str, value: Any, *, minimum: float, maximum: float) -> float:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not minimum <= float(value) <= maximum:
        raise InvalidInputError(
            f"{name} is {value!r}; a number from {minimum} to {maximum} is needed"
        )
    return float(value)
