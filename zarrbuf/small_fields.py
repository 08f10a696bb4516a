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

from zarrbuf.big_fields import Places
from zarrbuf.chunks import address_of
from zarrbuf.compiled import have_loops
from zarrbuf.format import AnyArray, BatchField, batch_fields, step_rows
from zarrbuf.parallel import gather_rows
from zarrbuf.sampling import Group
from zarrbuf.trajectory_archive import TrajectoryArchive


def gather_small_fields(
    groups: Sequence[Group],
    tables: Sequence[AnyArray],
    fields: Sequence[BatchField],
    packed: AnyArray,
) -> None:
    """Copy the small fields of some groups into their rows of the batch.

    Args:
        groups: the samples.
        tables: decoded small fields of each group's trajectory.
        fields: the columns of `packed`; tables may have more.
        packed: structured array [n].
    """
    if have_loops() and packed.itemsize and _have_dtype(tables, packed.dtype):
        places = Places.of(groups)
        first = np.repeat([address_of(table) for table in tables], places.counts)
        sizes = np.repeat([len(table) for table in tables], places.counts)
        assert (places.flat >= 0).all()
        assert (places.flat < sizes).all()
        sources = (first + places.flat * packed.itemsize).astype(np.uint64)
        gather_rows(sources, packed, places.rows)
        return
    for group, table in zip(groups, tables, strict=True):
        for field in fields:
            packed[field.name][group.out] = table[field.name][group.flat]


def _have_dtype(tables: Sequence[AnyArray], dtype: np.dtype[Any]) -> bool:
    # One object for one schema: comparing structured dtypes takes microseconds.
    return all(table.dtype is dtype for table in tables)


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
