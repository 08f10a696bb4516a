"""Small trajectories as rows of blocks in memory, as they are: no archive, no codec.

An archive costs the same however little is in it; one transition has no use for it.
The rows of a block are those that batches are drawn from, one sample each, all fields
side by side. What is never drawn (extra rows, arrays of less than two dimensions) is
kept beside them, so that the trajectory comes back to the bit. No I/O.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from zarrbuf.archive.spec import (
    AnyArray,
    BatchField,
    FieldSpec,
    Rows,
    Schema,
    sorted_fields,
    step_rows,
)
from zarrbuf.trajectory.encoding import (
    Collected,
    check_non_tensor,
    collect,
    describe_fields,
    to_stored,
)
from zarrbuf.trajectory.trajectory import Tensor, Trajectory, assemble, to_tensor

MAX_PACKED_BYTES: Final = 64 << 10
"""Of the tensors of a trajectory; a larger one becomes an archive, compressed."""
_FIRST_BLOCK_BYTES: Final = 4 << 10
_MAX_BLOCK_BYTES: Final = 1 << 20
_MAX_LAYOUTS: Final = 1024

IntArray = npt.NDArray[np.int64]
_Key = tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]


class _Column(NamedTuple):
    """Where one tensor of a trajectory goes.

    Attributes:
        path: of the tensor.
        dtype: torch dtype name.
        stored: the dtype of the array that it is kept as.
        shape: of the tensor.
        is_drawn: whether it is a column of the block.
        extra: which of its rows are not drawn; None if all are.
    """

    path: str
    dtype: str
    stored: np.dtype[Any]
    shape: tuple[int, ...]
    is_drawn: bool
    extra: _Extra | None


class _Extra(NamedTuple):
    """Rows of the time axis beside the T steps.

    Attributes:
        rows: where they stand.
        num_steps: `T`.
    """

    rows: Rows
    num_steps: int

    def split(self, num_rows: int) -> tuple[slice | IntArray, slice | IntArray]:
        """Return which rows are drawn, int64 [T] or a slice, and which are not."""
        if num_rows == self.num_steps + 1 and self.rows == "start":
            return slice(1, None), slice(0, 1)
        if num_rows == self.num_steps + 1 or self.rows == "step":
            return slice(0, self.num_steps), slice(self.num_steps, None)
        kept = step_rows(self.rows, num_rows, self.num_steps)
        return kept, np.setdiff1d(np.arange(num_rows), kept)


@dataclass(frozen=True, eq=False)
class Layout:
    """What trajectories share whose tensors have the same names, dtypes and shapes.

    Attributes:
        num_steps: `T`.
        num_envs: `B`.
        shape: shape of the tensor that gave T and B.
        schema: field path -> spec, as an archive of them has.
        fields: those of batches, by name; of layouts with equal ones the same object,
            as long as it is remembered.
        columns: one a tensor.
    """

    num_steps: int
    num_envs: int
    shape: tuple[int, ...]
    schema: Schema
    fields: tuple[BatchField, ...]
    columns: tuple[_Column, ...]

    @property
    def num_rows(self) -> int:
        """Rows of a block that one takes, `T * B`."""
        return self.num_steps * self.num_envs


class PackedTrajectory(NamedTuple):
    """A checked trajectory on its way into a block; views of the caller's memory.

    Attributes:
        uuid: 32 hex digits.
        layout: what it has.
        arrays: one a column of the layout, of the stored dtypes.
        max_episode_length: steps; None if it was not told.
        model_weights_id: the policy that drove it.
        non_tensor: values that are no tensors, as a tree of JSON values.
    """

    uuid: str
    layout: Layout
    arrays: Sequence[AnyArray]
    max_episode_length: int | None
    model_weights_id: str
    non_tensor: Mapping[str, Any]

    @property
    def fields(self) -> Sequence[BatchField]:
        """The fields of batches, by name."""
        return self.layout.fields

    @property
    def num_samples(self) -> int:
        """Samples in the trajectory, `T * B`."""
        return self.layout.num_rows


class Block:
    """Rows of some trajectories of the same fields, appended until it is full.

    What is written once is never changed, so that readers need no lock.

    Attributes:
        fields: the columns.
        table: structured array [n], one column a field, by name.
        num_used: rows that are taken.
        num_kept: trajectories in it that are not forgotten.
    """

    def __init__(self, fields: tuple[BatchField, ...], num_rows: int) -> None:
        """Make room for so many rows."""
        self.fields = fields
        self.table = np.empty(num_rows, packed_dtype(fields))
        self.num_used = 0
        self.num_kept = 0
        self._columns = {field.name: self.table[field.name] for field in fields}

    @classmethod
    def after(cls, full: Block | None, layout: Layout) -> Block:
        """Return the next block for trajectories of a layout, at most twice as large.

        The first ones are small: there may be many schemas of few trajectories each.
        """
        row_bytes = max(1, packed_dtype(layout.fields).itemsize)
        num_bytes = _FIRST_BLOCK_BYTES if full is None else 2 * full.table.nbytes
        num_rows = min(num_bytes, _MAX_BLOCK_BYTES) // row_bytes
        return cls(layout.fields, max(num_rows, layout.num_rows))

    def has_room(self, layout: Layout) -> bool:
        """Whether a trajectory of a layout fits."""
        return self.num_used + layout.num_rows <= len(self.table)

    def take(self, one: PackedTrajectory) -> InBlock:
        """Copy a trajectory to the next rows, of which there must be enough."""
        start, layout = self.num_used, one.layout
        stop = start + layout.num_rows
        rest: list[bytes] = []
        for column, array in zip(layout.columns, one.arrays, strict=True):
            if not column.is_drawn:
                rest.append(array.tobytes())
                continue
            drawn = array
            if column.extra is not None:
                kept, others = column.extra.split(len(array))
                rest.append(array[others].tobytes())
                drawn = array[kept]
            target = self._columns[column.path][start:stop]
            target[...] = drawn.reshape(target.shape)
        self.num_used = stop
        self.num_kept += 1
        return InBlock(
            layout,
            self,
            start,
            b"".join(rest),
            one.max_episode_length,
            one.model_weights_id,
            one.non_tensor,
        )


class InBlock(NamedTuple):
    """A trajectory in a block.

    Attributes:
        layout: what it has.
        block: where.
        start: its first row there.
        rest: what is never drawn.
        max_episode_length: steps; None if it was not told.
        model_weights_id: the policy that drove it.
        non_tensor: values that are no tensors, as a tree of JSON values.
    """

    layout: Layout
    block: Block
    start: int
    rest: bytes
    max_episode_length: int | None
    model_weights_id: str
    non_tensor: Mapping[str, Any]

    @property
    def table(self) -> AnyArray:
        """Its rows: structured array [T * B]."""
        return self.block.table[self.start : self.start + self.layout.num_rows]

    def unpack(self) -> Trajectory:
        """Return the trajectory, every tensor as it was given."""
        table, used = self.table, 0
        tensors: list[tuple[str, Tensor]] = []

        def read(shape: tuple[int, ...], stored: np.dtype[Any]) -> AnyArray:
            nonlocal used
            count = math.prod(shape)
            array = np.frombuffer(self.rest, stored, count, used).reshape(shape)
            used += count * stored.itemsize
            return array

        for column in self.layout.columns:
            array = np.empty(column.shape, column.stored)
            if not column.is_drawn:
                array[...] = read(column.shape, column.stored)
            elif column.extra is None:
                array[...] = table[column.path].reshape(column.shape)
            else:
                kept, others = column.extra.split(len(array))
                array[kept] = table[column.path].reshape(array[kept].shape)
                array[others] = read(array[others].shape, column.stored)
            tensors.append((column.path, to_tensor(array, column.dtype)))
        return assemble(
            tensors,
            self.non_tensor,
            max_episode_length=self.max_episode_length,
            model_weights_id=self.model_weights_id,
            name="trajectory",
        )


class PackedRows(NamedTuple):
    """Where some trajectories lie in blocks.

    Attributes:
        blocks: the blocks.
        which: int64 [n], the block of each trajectory; -1 for one that is in none.
        starts: int64 [n], the first row of each there.
    """

    blocks: Sequence[Block]
    which: IntArray
    starts: IntArray


def pack_trajectory(trajectory: Any, *, uuid: str) -> PackedTrajectory | None:
    """Check a trajectory for a block; None if it is too large for one.

    Args:
        trajectory: a `Trajectory` or any object with its attributes.
        uuid: 32 hex digits, the name of the archive that it may become.

    Raises:
        InvalidInputError: as `encode_trajectory`.
    """
    collected = collect(trajectory)
    layout = _layout_of(collected)
    if layout is None:
        return None
    if any(collected.non_tensor.values()):
        check_non_tensor(collected, layout.shape, layout.schema)
    return PackedTrajectory(
        uuid,
        layout,
        [to_stored(tensor) for tensor in collected.leaves.values()],
        collected.max_episode_length,
        collected.model_weights_id,
        collected.non_tensor,
    )


def packed_dtype(fields: Sequence[BatchField]) -> np.dtype[Any]:
    """Return the dtype of a table that has these fields as columns, in this order."""
    return _packed_dtype_of(tuple(fields))


@functools.lru_cache(maxsize=256)
def _packed_dtype_of(fields: tuple[BatchField, ...]) -> np.dtype[Any]:
    return np.dtype(
        [(field.name, field.spec.stored, field.spec.shape) for field in fields]
    )


_LAYOUTS: Final[dict[_Key, Layout | None]] = {}
"""Those met so far; None for trajectories that are too large."""
_FIELDS: Final[dict[tuple[BatchField, ...], tuple[BatchField, ...]]] = {}
_SCHEMAS: Final[dict[tuple[tuple[str, FieldSpec], ...], Schema]] = {}
_UNMET: Final = object()


def _layout_of(collected: Collected) -> Layout | None:
    key = tuple([(n, t.dtype, t.shape) for n, t in collected.leaves.items()])
    known: Any = _LAYOUTS.get(key, _UNMET)  # once: another thread may clear it
    if known is not _UNMET:
        found: Layout | None = known
        return found
    layout = _new_layout(collected)
    if len(_LAYOUTS) >= _MAX_LAYOUTS:
        for one in (_LAYOUTS, _FIELDS, _SCHEMAS):
            one.clear()
    _LAYOUTS[key] = layout
    return layout


def _new_layout(collected: Collected) -> Layout | None:
    shape, schema = describe_fields(collected)
    leaves = collected.leaves
    num_bytes = sum(tensor.nbytes for tensor in leaves.values())
    fields = tuple(sorted_fields(schema))
    if num_bytes > MAX_PACKED_BYTES or any(field.spec.is_big for field in fields):
        return None
    specs = {field.name: field.spec for field in fields}
    whole = {name: spec for name, spec in schema.items() if spec.rows == "whole"}
    columns = [
        _column(name, tensor, specs.get(name), whole, num_steps=shape[0])
        for name, tensor in leaves.items()
    ]
    fields = _FIELDS.setdefault(fields, fields)
    schema = _SCHEMAS.setdefault(tuple(schema.items()), schema)
    return Layout(shape[0], shape[1], shape, schema, fields, tuple(columns))


def _column(
    path: str,
    tensor: Tensor,
    drawn: FieldSpec | None,
    whole: Schema,
    *,
    num_steps: int,
) -> _Column:
    shape = tuple(tensor.shape)
    extra = None
    if drawn is not None and shape[0] != num_steps:
        extra = _Extra(drawn.rows, num_steps)
    spec = whole[path] if drawn is None else drawn
    return _Column(path, spec.dtype, spec.stored, shape, drawn is not None, extra)
