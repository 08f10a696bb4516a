"""Run a read plan: opened archives, decoded small fields, one batch.

Owns the bounds of what is kept open and decoded. Fills a batch chunk by chunk and
reads nothing else of an archive. Knows no commit; archives come from a home.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from zarrbuf.blosc import address_of
from zarrbuf.errors import FormatError
from zarrbuf.format import AnyArray, BatchField, batch_fields, step_rows
from zarrbuf.rows import Row, Rows
from zarrbuf.sampling import Group, IntArray, ReadPlan
from zarrbuf.trajectory import to_tensor
from zarrbuf.trajectory_archive import TrajectoryArchive

MAX_OPEN_ARCHIVES: Final = 4096
"""Mapped files kept; Linux allows a process 65,530 mappings."""

Value = TypeVar("Value")


class Home(Protocol):
    """Where the archives of some trajectories are.

    Attributes:
        keeps_archives: whether their bytes are in memory as long as they are listed.
    """

    @property
    def keeps_archives(self) -> bool:
        """See above."""
        ...

    def open_archive(self, row: Row) -> TrajectoryArchive:
        """Open one archive; raises NotFoundError, FormatError or StorageError."""
        ...


class LruCache(Generic[Value]):
    """What was used last, bounded in cost and number; safe between threads."""

    def __init__(self, *, max_cost: int, max_items: int) -> None:
        """Keep at most `max_items` items, of `max_cost` together."""
        self._max_cost = max_cost
        self._max_items = max_items
        self._items: OrderedDict[str, tuple[Value, int]] = OrderedDict()
        self.make_lock()
        self.cost = 0

    def make_lock(self) -> None:
        """Start with a lock that nobody holds."""
        self._lock = threading.Lock()

    def get(self, key: str) -> Value | None:
        """Return an item and mark it as used, or None."""
        with self._lock:
            item = self._items.get(key)
            if item is None:
                return None
            self._items.move_to_end(key)
            return item[0]

    def put(self, key: str, value: Value, *, cost: int) -> None:
        """Keep an item, unless it alone is beyond the bound; the oldest used go."""
        with self._lock:
            self._drop(key)
            if cost > self._max_cost:
                return
            self._items[key] = (value, cost)
            self.cost += cost
            while self.cost > self._max_cost or len(self._items) > self._max_items:
                self._drop(next(iter(self._items)))

    def discard(self, key: str) -> None:
        """Forget an item if it is there."""
        with self._lock:
            self._drop(key)

    def _drop(self, key: str) -> None:
        item = self._items.pop(key, None)
        if item is not None:
            self.cost -= item[1]

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._items.clear()
            self.cost = 0

    def __len__(self) -> int:
        """Return the number of items kept."""
        return len(self._items)


@dataclass
class ReadStats:
    """What reading has cost so far. Bytes and chunks are those of big fields.

    Attributes:
        samples: samples put into batches.
        chunks_read: chunks decoded for them.
        bytes_read: stored bytes of these chunks.
        bytes_decoded: decoded bytes of these chunks.
        small_fields_decoded: trajectories whose small fields were decoded.
        read_seconds: seconds spent in `read_batch`.
    """

    samples: int = 0
    chunks_read: int = 0
    bytes_read: int = 0
    bytes_decoded: int = 0
    small_fields_decoded: int = 0
    read_seconds: float = 0.0


class BatchReader:
    """Reads batches from archives.

    Attributes:
        stats: what it has cost so far.
    """

    def __init__(self, *, cache_bytes: int, archive_bytes: int) -> None:
        """Keep at most so much in memory.

        Args:
            cache_bytes: decoded small fields.
            archive_bytes: what opened archives take: their chunk indexes, and those
                made from `pt` and `pkl` files whole.
        """
        self._archives: LruCache[TrajectoryArchive] = LruCache(
            max_cost=archive_bytes, max_items=MAX_OPEN_ARCHIVES
        )
        self._small: LruCache[AnyArray] = LruCache(
            max_cost=cache_bytes, max_items=1 << 20
        )
        self.stats = ReadStats()

    @property
    def num_cached(self) -> int:
        """Trajectories whose small fields are kept decoded."""
        return len(self._small)

    @property
    def cached_bytes(self) -> int:
        """Bytes of decoded small fields."""
        return self._small.cost

    def clear(self) -> None:
        """Forget everything that is kept."""
        self._archives.clear()
        self._small.clear()

    def reset_after_fork(self) -> None:
        """Make new locks: those of the parent may be held for ever."""
        self._archives.make_lock()
        self._small.make_lock()

    def forget_archive(self, uuid: str) -> None:
        """Drop an opened archive, because it has moved (from memory to disk)."""
        self._archives.discard(uuid)

    def archive(self, rows: Rows, position: int, home: Home) -> TrajectoryArchive:
        """Return the archive of one row, opened or kept from before.

        Raises:
            NotFoundError: if it is not there.
            FormatError: if it is damaged.
        """
        uuid = rows.uuid(position)
        archive = self._archives.get(uuid)
        if archive is None:
            archive = home.open_archive(rows.row(position))
            is_held = isinstance(archive.source, bytes) and not home.keeps_archives
            cost = archive.index_bytes + (len(archive.source) if is_held else 0)
            self._archives.put(uuid, archive, cost=cost)
        return archive

    def read_batch(
        self,
        plan: ReadPlan,
        fields: Sequence[BatchField],
        open_archive: Callable[[int], TrajectoryArchive],
    ) -> dict[str, torch.Tensor]:
        """Read the samples of a plan.

        Args:
            plan: which samples.
            fields: which fields, served by every trajectory of the plan.
            open_archive: position in the window -> archive.

        Returns:
            Field name -> tensor [n, ...], writable, memory of its own.

        Raises:
            FormatError: if a chunk that is drawn is damaged.
        """
        started = time.perf_counter()
        small = [field for field in fields if not field.spec.is_big]
        batch = {
            field.name: np.empty(
                (plan.num_samples, *field.spec.shape), field.spec.stored
            )
            for field in fields
        }
        big = {
            field.name: field.spec.row_bytes for field in fields if field.spec.is_big
        }
        places = {name: _row_addresses(batch[name], plan) for name in big}
        start = 0
        packed = np.empty(plan.num_samples, _packed_dtype(small))
        for group in plan.groups:
            archive = open_archive(group.position)
            if small:
                self._gather_small(archive, small, group, packed)
            stop = start + len(group.out)
            here = {name: places[name][start:stop] for name in big}
            self._decode_big(archive, here, big, group)
            start = stop
        for field in small:
            batch[field.name][...] = packed[field.name]
        self.stats.samples += plan.num_samples
        self.stats.read_seconds += time.perf_counter() - started
        return {
            field.name: to_tensor(batch[field.name], field.spec.dtype)
            for field in fields
        }

    def _decode_big(
        self,
        archive: TrajectoryArchive,
        places: Mapping[str, Sequence[int]],
        row_bytes: Mapping[str, int],
        group: Group,
    ) -> None:
        """Decode the big fields of one trajectory, array by array.

        Args:
            archive: the trajectory.
            places: batch field name -> address of the row of each sample.
            row_bytes: batch field name -> bytes at each of these addresses.
            group: the samples.

        Raises:
            FormatError: if a chunk is damaged or of another size than a row; addresses
                carry no bounds, so this is checked whatever the lists said.
        """
        for array, fields in archive.arrays_of(tuple(places)):
            known = archive.chunk_ranges(array)
            num_bytes = archive.arrays[array].chunk_bytes
            ranges: list[list[int]] = []
            addresses: list[int] = []
            for field in fields:
                if row_bytes[field.name] != num_bytes:
                    raise FormatError(
                        f"{archive.name}: field {field.name!r} has {num_bytes} bytes a "
                        f"sample; {row_bytes[field.name]} are expected"
                    )
                ranges += known[_chunk_numbers(archive, field, group.flat)].tolist()
                addresses += places[field.name]
            self.stats.bytes_read += archive.decode_at(array, ranges, addresses)
            self.stats.chunks_read += len(ranges)
            self.stats.bytes_decoded += len(ranges) * num_bytes

    def _gather_small(
        self,
        archive: TrajectoryArchive,
        fields: Sequence[BatchField],
        group: Group,
        packed: AnyArray,
    ) -> None:
        table = self._small_table(archive)
        if table.dtype == packed.dtype and packed.itemsize:
            # As plain bytes: NumPy copies structs field by field.
            raw = np.dtype((np.void, packed.itemsize))
            packed.view(raw)[group.out] = table.view(raw)[group.flat]
            return
        for field in fields:
            packed[field.name][group.out] = table[field.name][group.flat]

    def _small_table(self, archive: TrajectoryArchive) -> AnyArray:
        uuid = archive.header.uuid
        table = self._small.get(uuid)
        if table is None:
            table = decode_small_fields(archive)
            self._small.put(uuid, table, cost=table.nbytes)
            self.stats.small_fields_decoded += 1
        return table


def _row_addresses(out: AnyArray, plan: ReadPlan) -> list[int]:
    """Return the address of the row of each sample, in the order of the plan."""
    none = np.zeros(0, np.int64)
    rows = np.concatenate([none, *(group.out for group in plan.groups)])
    addresses: list[int] = (rows * out[:1].nbytes + address_of(out)).tolist()
    return addresses


def _packed_dtype(fields: Sequence[BatchField]) -> np.dtype[Any]:
    return np.dtype(
        [(field.name, field.spec.stored, field.spec.shape) for field in fields]
    )


def decode_small_fields(archive: TrajectoryArchive) -> npt.NDArray[np.void]:
    """Decode all small fields of a trajectory into one table.

    Returns:
        Structured array [T * B], one column a batch field, extra rows trimmed.

    Raises:
        FormatError: if a chunk is damaged.
    """
    header = archive.header
    fields = [f for f in sorted_fields(header.schema) if not f.spec.is_big]
    table = np.empty(header.num_steps * header.num_envs, _packed_dtype(fields))
    arrays = {name: archive.read_array(name) for name in {f.field for f in fields}}
    for field in fields:
        array = arrays[field.field]
        if field.stage is not None:
            array = array[field.stage]
        kept = step_rows(field.spec.rows, len(array), header.num_steps)
        table[field.name] = array[kept].reshape(table.shape + field.spec.shape)
    return table


def sorted_fields(schema: Mapping[str, Any]) -> list[BatchField]:
    """Return the batch fields of a schema by name."""
    return sorted(batch_fields(schema), key=lambda field: field.name)


def _chunk_numbers(
    archive: TrajectoryArchive, field: BatchField, flat: IntArray
) -> IntArray:
    """Return the chunk of each sample of a big field."""
    header = archive.header
    num_rows = archive.num_rows(field.field)
    chunks = flat
    if num_rows != header.num_steps:
        step, env = np.divmod(flat, header.num_envs)
        kept = step_rows(field.spec.rows, num_rows, header.num_steps)
        chunks = kept[step] * header.num_envs + env
    return chunks + (field.stage or 0) * num_rows * header.num_envs
