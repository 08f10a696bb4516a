"""Contenders that keep files, or could: zarrbuf, TorchRL, whole `.pt` files."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from tensordict import TensorDict
from torchrl.data import LazyMemmapStorage, LazyTensorStorage, ReplayBuffer

from benchmarks.contenders.contract import WINDOW, Contender, groups
from benchmarks.data import DataSet, Flat, flatten
from zarrbuf import Trajectory, TrajectoryReplayBuffer

WITH_OUT: Final = "zarrbuf, `out=`"
"""Name of zarrbuf when it is given each batch back."""


class Zarrbuf(Contender):
    """zarrbuf, sampled from its files by a buffer that did not write them.

    Attributes:
        add_seconds: how long each `add_trajectories` held its caller.
    """

    name = "zarrbuf"
    codec = "lz4"

    def __init__(self, folder: Path, data: DataSet) -> None:  # noqa: D107
        super().__init__(folder, data)
        self._writer = TrajectoryReplayBuffer(
            sample_window_size=0,
            auto_save=True,
            auto_save_path=folder,
            codec=self.codec,
        )
        self._reader = TrajectoryReplayBuffer(sample_window_size=0)
        self.add_seconds: list[float] = []

    def add(self, trajectory: Trajectory) -> None:  # noqa: D102
        started = time.perf_counter()
        self._writer.add_trajectories([trajectory])
        self.add_seconds.append(time.perf_counter() - started)
        self._writer.flush()

    def add_many(self, trajectories: Sequence[Trajectory]) -> None:  # noqa: D102
        self._writer.add_trajectories(trajectories)
        self._writer.flush()

    def open(self) -> None:  # noqa: D102
        self._writer.close()
        self._reader.load_checkpoint(self.folder)

    def seed(self, seed: int) -> None:  # noqa: D102
        self._reader.manual_seed(seed)

    def sample(self, count: int) -> Any:  # noqa: D102
        return self._reader.sample(count)

    def close(self) -> None:  # noqa: D102
        self._writer.close()
        self._reader.close()


class ZarrbufInMemory(Contender):
    """zarrbuf with `auto_save=False`."""

    name = "zarrbuf, in memory"

    def __init__(self, folder: Path, data: DataSet) -> None:  # noqa: D107
        super().__init__(folder, data)
        self._buffer = TrajectoryReplayBuffer(sample_window_size=WINDOW)

    def add(self, trajectory: Trajectory) -> None:  # noqa: D102
        self._buffer.add_trajectories([trajectory])

    def seed(self, seed: int) -> None:  # noqa: D102
        self._buffer.manual_seed(seed)

    def sample(self, count: int) -> Any:  # noqa: D102
        return self._buffer.sample(count)

    def close(self) -> None:  # noqa: D102
        self._buffer.close()


class ZarrbufZstd(Zarrbuf):
    """zarrbuf with the smaller, slower codec."""

    name = "zarrbuf, zstd"
    codec = "zstd"


class ZarrbufReader(Contender):
    """Another buffer on the files of zarrbuf, sampled in another way."""

    writes = False

    def __init__(
        self,
        zarrbuf: Zarrbuf,
        name: str,
        *,
        reuse: bool = False,
        hold: bool = False,
        **arguments: Any,
    ) -> None:
        """Prepare to read.

        Args:
            zarrbuf: whose files are read.
            name: how tables call it.
            reuse: give the same batch back for every draw, with `out=`.
            hold: keep every batch, so that no memory can be used again.
            arguments: of the buffer.
        """
        super().__init__(zarrbuf.folder, zarrbuf.data)
        self.name = name
        self._reuse, self._hold = reuse, hold
        self.buffer = TrajectoryReplayBuffer(sample_window_size=0, **arguments)
        self._batches: list[Any] = []

    def open(self) -> None:  # noqa: D102
        self.buffer.load_checkpoint(self.folder)

    def seed(self, seed: int) -> None:  # noqa: D102
        self.buffer.manual_seed(seed)

    def sample(self, count: int) -> Any:  # noqa: D102
        if self._reuse and self._batches:
            return self.buffer.sample(count, out=self._batches[0])
        batch = self.buffer.sample(count)
        if self._reuse or self._hold:
            self._batches.append(batch)
        return batch

    def close(self) -> None:  # noqa: D102
        self._batches = []
        self.buffer.close()


class TorchrlMemmap(Contender):
    """TorchRL: every transition a row of memory-mapped tensors.

    Read by row number, past the sampler, in the process that wrote them: all pages
    are mapped and in the page cache.
    """

    name = "TorchRL `LazyMemmapStorage`"

    def __init__(self, folder: Path, data: DataSet) -> None:  # noqa: D107
        super().__init__(folder, data)
        self.storage = self._new_storage()
        self._buffer = ReplayBuffer(storage=self.storage, batch_size=256)

    def _new_storage(self) -> LazyTensorStorage:
        return LazyMemmapStorage(self.data.num_samples, scratch_dir=self.folder)

    def add(self, trajectory: Trajectory) -> None:  # noqa: D102
        flat = flatten(trajectory)
        rows = TensorDict(
            {tuple(name.split("/")): value for name, value in flat.items()},
            batch_size=[self.data.samples_each],
        )
        self._buffer.extend(rows)

    def sample(self, count: int) -> Any:  # noqa: D102
        return self.storage.get(self.draw(count))


class TorchrlTensors(TorchrlMemmap):
    """The same in memory."""

    name = "TorchRL `LazyTensorStorage`"

    def _new_storage(self) -> LazyTensorStorage:
        return LazyTensorStorage(self.data.num_samples)


class WholeFiles(Contender):
    """RLinf's way: a `.pt` file per trajectory, loaded whole, the last five kept.

    Attributes:
        sync_seconds: what making each file durable would have taken on top.
    """

    name = "whole `.pt` files (RLinf's way)"
    rare = True
    max_kept = 5

    def __init__(self, folder: Path, data: DataSet) -> None:  # noqa: D107
        super().__init__(folder, data)
        folder.mkdir(parents=True)
        self._num_files = 0
        self._kept: OrderedDict[int, Flat] = OrderedDict()
        self.sync_seconds: list[float] = []

    def _path(self, number: int) -> Path:
        return self.folder / f"trajectory_{number}.pt"

    def add(self, trajectory: Trajectory) -> None:  # noqa: D102
        content = {n: v for n, v in vars(trajectory).items() if v is not None}
        torch.save(content, self._path(self._num_files))
        self._num_files += 1

    def settle(self) -> None:  # noqa: D102
        started = time.perf_counter()
        with self._path(self._num_files - 1).open("rb") as file:
            os.fsync(file.fileno())
        self.sync_seconds.append(time.perf_counter() - started)

    def _load(self, number: int) -> Flat:
        flat = self._kept.pop(number, None)
        if flat is None:
            content = torch.load(self._path(number), weights_only=True)
            flat = flatten(Trajectory(**content))
        self._kept[number] = flat
        if len(self._kept) > self.max_kept:
            self._kept.popitem(last=False)
        return flat

    def sample(self, count: int) -> Any:  # noqa: D102
        batch: Flat = {}
        for number, rows, inside in groups(self.draw(count), self.data):
            for name, value in self._load(number).items():
                if name not in batch:
                    batch[name] = value.new_empty((count, *value.shape[1:]))
                batch[name][rows] = value[inside]
        return batch

    def close(self) -> None:  # noqa: D102
        self._kept.clear()
