"""Small fields of a batch: whole trajectories decoded into tables, rows gathered.

Pure. The small fields of one sample are one row of a table, so that a sample costs one
copy however many fields there are.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrbuf.archive.chunks import address_of, require
from zarrbuf.archive.decode import have_loops, scatter_rows
from zarrbuf.archive.spec import AnyArray, BatchField, batch_fields, step_rows
from zarrbuf.errors import FormatError
from zarrbuf.sampling.index_map import IntArray, ReadPlan, Window
from zarrbuf.trajectory.archived import TrajectoryArchive


class SmallTables:
    """Decoded small fields of the trajectories of one window, by position.

    Attributes:
        window: whose positions these are.
        fields: the columns of every table.
        num_dropped: what the cache that the tables come from had forgotten by then.
        num_bytes: of the tables.
    """

    def __init__(
        self,
        window: Window,
        fields: Sequence[BatchField],
        *,
        num_dropped: int,
    ) -> None:
        """Start without any."""
        self.window = window
        self.fields = list(fields)
        self.num_dropped = num_dropped
        self._dtype = packed_dtype(fields)
        self.num_bytes = 0
        self._tables: dict[int, AnyArray] = {}
        # Memory that the system hands out as zeros costs nothing until it is used.
        self._addresses = np.zeros(window.num_trajectories, np.int64)
        self._sizes = np.zeros(window.num_trajectories, np.int64)

    def unknown(self, positions: IntArray) -> IntArray:
        """Return which of some trajectories have no table yet.

        Args:
            positions: int64 [n], repeats allowed.

        Returns:
            int64 [m], indices in `positions`, by position, none twice.
        """
        unknown = np.flatnonzero(self._addresses[positions] == 0)
        if not len(unknown):
            return unknown
        return unknown[np.unique(positions[unknown], return_index=True)[1]]

    def table_bytes(self, positions: IntArray) -> IntArray:
        """Return what the tables of some trajectories take, int64 [n]."""
        return self.window.num_samples_of(positions) * self._dtype.itemsize

    def put(self, position: int, table: AnyArray, *, name: str) -> None:
        """Keep the table of a trajectory; it may have more columns.

        Raises:
            FormatError: if it has other than T * B rows, `name` says whose.
        """
        (expected,) = self.window.num_samples_of(np.array([position]))
        if len(table) != expected:
            raise FormatError(
                f"{name}: holds {len(table)} samples; the list says {expected}"
            )
        if table.dtype is not self._dtype:
            wanted = np.empty(len(table), self._dtype)
            for field in self.fields:
                wanted[field.name] = table[field.name]
            table = wanted
        # Of two threads that bring one, the first wins: the address must be that of
        # the table that is kept.
        table = self._tables.setdefault(position, table)
        self.num_bytes += table.nbytes
        self._sizes[position] = len(table)
        self._addresses[position] = address_of(table)  # last: it tells that it is there

    def gather(self, plan: ReadPlan, batch: Mapping[str, AnyArray]) -> None:
        """Copy the rows of a plan to their rows of the batch.

        Args:
            plan: samples of trajectories that all have a table.
            batch: field name -> array [n, ...], of `fields` at least.
        """
        if not have_loops():
            self._gather_plainly(plan, batch)
            return
        sizes = plan.for_samples(self._sizes[plan.positions])
        require((plan.flat >= 0).all() and (plan.flat < sizes).all())
        columns = self._dtype.fields
        assert columns is not None
        offsets = [columns[field.name][1] for field in self.fields]
        outs = [batch[field.name] for field in self.fields]
        num_bytes = self._dtype.itemsize
        first = plan.for_samples(self._addresses[plan.positions])
        sources = (first + plan.flat * num_bytes).astype(np.uint64)
        scatter_rows(sources, num_bytes, offsets, outs, plan.rows)

    def _gather_plainly(self, plan: ReadPlan, batch: Mapping[str, AnyArray]) -> None:
        for group in plan.groups:
            table = self._tables[group.position]
            for field in self.fields:
                batch[field.name][group.out] = table[field.name][group.flat]


def packed_dtype(fields: Sequence[BatchField]) -> np.dtype[Any]:
    """Return the dtype of a table that has these fields as columns, in this order."""
    return _packed_dtype_of(tuple(fields))


@functools.lru_cache(maxsize=256)
def _packed_dtype_of(fields: tuple[BatchField, ...]) -> np.dtype[Any]:
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
    table = np.empty(header.num_steps * header.num_envs, packed_dtype(fields))
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
