"""Everything in memory as flat tensors: what sampling from files is held against.

What a gather costs depends on the pages that it writes to. Pages that the process has
touched before cost nothing; a fresh page is a fault, in which the system finds and
clears it. So there are three rows: memory used before, memory never used before, and
whatever the C library hands out, which mostly is the memory of the batch that was
dropped before.
"""

from __future__ import annotations

import mmap
from collections import deque
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders.contract import WINDOW, Contender
from benchmarks.data import DataSet, Flat, fields_of, flatten
from zarrbuf import Trajectory


class Memory(Contender):
    """Everything in memory, gathered as a program does that drops its batches."""

    name = "in memory, `index_select`"

    def __init__(self, folder: Path, data: DataSet) -> None:  # noqa: D107
        super().__init__(folder, data)
        self.tensors: Flat = {}
        self._num_rows = 0

    def add(self, trajectory: Trajectory) -> None:  # noqa: D102
        stop = self._num_rows + self.data.samples_each
        for name, value in flatten(trajectory).items():
            if name not in self.tensors:
                shape = (self.data.num_samples, *value.shape[1:])
                self.tensors[name] = value.new_empty(shape)
            self.tensors[name][self._num_rows : stop] = value
        self._num_rows = stop

    def sample(self, count: int) -> Any:  # noqa: D102
        draws = self.draw(count)
        return {n: v.index_select(0, draws) for n, v in self.tensors.items()}

    def disk_bytes(self) -> int:  # noqa: D102
        return 0

    def close(self) -> None:  # noqa: D102
        self.tensors = {}


class _OtherGather(Contender):
    """Another way to gather from the tensors of a `Memory`."""

    writes = False

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory.folder, memory.data)
        self._memory = memory

    def disk_bytes(self) -> int:
        return 0


class MemoryReused(_OtherGather):
    """The same, into memory used before: the limit of copying."""

    name = "in memory, `index_select(out=)`, the copy limit"

    def __init__(self, memory: Memory) -> None:  # noqa: D107
        super().__init__(memory)
        self._batch: Flat = {}

    def sample(self, count: int) -> Any:  # noqa: D102
        draws = self.draw(count)
        for name, value in self._memory.tensors.items():
            if name not in self._batch:
                self._batch[name] = value.new_empty((count, *value.shape[1:]))
            torch.index_select(value, 0, draws, out=self._batch[name])
        return self._batch

    def close(self) -> None:  # noqa: D102
        self._batch = {}


class MemoryFresh(_OtherGather):
    """The same, into pages that the process never had before.

    They are mapped for the batch and unmapped with it, as the C library does for a
    large tensor when it has no freed memory of the size, because batches are held in a
    queue, or in the first rounds. Nothing is asked of `malloc`, whose settings would
    change the other contenders as well.
    """

    name = "in memory, `index_select` into fresh pages"

    def sample(self, count: int) -> Any:  # noqa: D102
        draws = self.draw(count)
        batch: Flat = {}
        for name, value in self._memory.tensors.items():
            batch[name] = self._empty(count, value)
            torch.index_select(value, 0, draws, out=batch[name])
        return batch

    def _empty(self, count: int, like: torch.Tensor) -> torch.Tensor:
        """Return rows in pages of their own; the mapping lives as long as they do."""
        pages = mmap.mmap(-1, count * like[:1].nbytes)
        self._advise(pages)
        return torch.frombuffer(pages, dtype=like.dtype).view(count, *like.shape[1:])

    def _advise(self, pages: mmap.mmap) -> None:
        """Say nothing: pages are as large as the system makes them by itself."""


class MemoryFreshHuge(MemoryFresh):
    """The same, in huge pages, as NumPy asks for them from 4 MiB on."""

    name = "in memory, `index_select` into fresh huge pages"

    def _advise(self, pages: mmap.mmap) -> None:
        pages.madvise(mmap.MADV_HUGEPAGE)


class CopiedIn(Contender):
    """What RLinf's cache in memory does with a trajectory: a flat copy of each tensor.

    RLinf saves with `torch.save` besides. The last five are kept, as its cache does.
    """

    name = "copied into RLinf's cache"
    max_kept = 5

    def __init__(self, folder: Path, data: DataSet) -> None:  # noqa: D107
        super().__init__(folder, data)
        self._kept: deque[Flat] = deque(maxlen=self.max_kept)

    def add(self, trajectory: Trajectory) -> None:  # noqa: D102
        fields = fields_of(trajectory)
        self._kept.append({n: v.flatten(0, 1).clone() for n, v in fields.items()})

    def sample(self, count: int) -> Any:  # noqa: D102
        raise NotImplementedError("only stores")

    def disk_bytes(self) -> int:  # noqa: D102
        return 0

    def close(self) -> None:  # noqa: D102
        self._kept.clear()


class RlinfSlots(Contender):
    """RLinf's algorithm for `auto_save=False`: a slot of rows for each trajectory.

    One tensor a field has room for the whole window. A batch finds the trajectory of
    each draw with `bucketize`, groups the draws by trajectory, asks which of them are
    kept, and fills itself by row numbers.
    """

    name = "RLinf's slots in memory"

    def __init__(self, folder: Path, data: DataSet) -> None:  # noqa: D107
        super().__init__(folder, data)
        self._fields: Flat = {}
        self._slots: dict[int, int] = {}
        self._num_samples: list[int] = []
        self._window: tuple[int, torch.Tensor] = 0, torch.zeros(0, dtype=torch.int64)

    def add(self, trajectory: Trajectory) -> None:  # noqa: D102
        number, each = len(self._num_samples), self.data.samples_each
        slot = number % WINDOW
        for name, value in flatten(trajectory).items():
            if name not in self._fields:
                shape = (WINDOW * each, *value.shape[1:])
                self._fields[name] = value.new_empty(shape)
            self._fields[name][slot * each : (slot + 1) * each] = value
        self._slots.pop(number - WINDOW, None)
        self._slots[number] = slot
        self._num_samples.append(each)

    def sample(self, count: int) -> Any:  # noqa: D102
        if self._window[0] != len(self._num_samples):
            sizes = torch.tensor(self._num_samples[-WINDOW:])
            self._window = len(self._num_samples), sizes.cumsum(0)
        ends = self._window[1]
        first = len(self._num_samples) - len(ends)
        draws = self.draw(count)
        where = torch.bucketize(draws, ends, right=True)
        starts = torch.cat([ends.new_zeros(1), ends[:-1]])
        inside = draws - starts[where]
        by_trajectory: dict[int, list[tuple[int, int]]] = {}
        for row in range(count):
            place = int(inside[row])
            by_trajectory.setdefault(first + int(where[row]), []).append((row, place))
        numbers = first + where
        is_kept = torch.isin(numbers, torch.tensor(list(self._slots)))
        assert bool(is_kept.all()), "all of the window are kept"
        slots = torch.tensor([self._slots[number] for number in numbers.tolist()])
        rows = slots * self.data.samples_each + inside
        batch: Flat = {}
        for name, value in self._fields.items():
            batch[name] = value.new_empty((count, *value.shape[1:]))
            batch[name][torch.arange(count)] = value[rows]
        return batch

    def disk_bytes(self) -> int:  # noqa: D102
        return 0

    def close(self) -> None:  # noqa: D102
        self._fields = {}
