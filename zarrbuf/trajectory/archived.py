"""The archive of one trajectory: T, B and fields, checked against its arrays.

Pure and torch-free. Owns the attributes of the root group.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from zarrbuf.archive.chunks import Shard, Source
from zarrbuf.archive.group import Archive, is_metadata
from zarrbuf.archive.spec import (
    DICT_FIELDS,
    FieldSpec,
    Rows,
    Schema,
    array_shape,
    batch_fields,
    is_nested,
    is_staged,
    is_weights_id,
    parse_schema,
)
from zarrbuf.archive.zarr_json import (
    ArrayInfo,
    check_spec,
    time_dimension,
)
from zarrbuf.archive.zip_file import directory_start, parse_zip
from zarrbuf.errors import FormatError
from zarrbuf.storage.sparse import SparseObject

IntArray = npt.NDArray[np.int64]

TAIL_BYTES: Final = 96 << 10
"""Read first: directory, metadata, and of most trajectories all small fields and the
chunk index of the last big one."""
_OBJECT_BYTES: Final = 20_000
"""Measured with tracemalloc: an opened archive of 10 arrays, without indexes."""


@dataclass(frozen=True)
class TrajectoryHeader:
    """The attributes of a trajectory.

    Attributes:
        uuid: 32 hex digits.
        num_steps: `T`.
        num_envs: `B`.
        max_episode_length: steps; None if it was not told.
        model_weights_id: the policy that drove it.
        schema: field path -> spec.
        non_tensor: values that are no tensors, as a tree of JSON values.
    """

    uuid: str
    num_steps: int
    num_envs: int
    max_episode_length: int | None
    model_weights_id: str
    schema: Schema
    non_tensor: Mapping[str, Any]

    def to_attributes(self) -> dict[str, Any]:
        """Return the attributes of the root group."""
        fields = {name: spec.to_json() for name, spec in self.schema.items()}
        attributes: dict[str, Any] = {
            "zarrbuf": {
                "spec": 1,
                "uuid": self.uuid,
                "T": self.num_steps,
                "B": self.num_envs,
                "max_episode_length": self.max_episode_length,
                "model_weights_id": self.model_weights_id,
                "fields": fields,
            }
        }
        if self.non_tensor:
            attributes["non_tensor"] = dict(self.non_tensor)
        return attributes


class ChunkTable(NamedTuple):
    """Where a big field of batches lies in one archive: a sample is a chunk.

    Attributes:
        shard: the chunks, in the order stage, row of the time axis, environment.
        first: the chunk of the first row: with a stage axis, behind the other stage.
        num_rows: rows on the time axis, extra rows included.
        rows: where extra rows stand.
    """

    shard: Shard
    first: int
    num_rows: int
    rows: Rows


class TrajectoryArchive(Archive):
    """The archive of one trajectory.

    Attributes:
        header: its attributes, checked against its arrays.
        chunk_tables: those big fields of batches that were looked up, see
            `chunk_table`.
    """

    def __init__(self, source: Source, *, name: str, is_whole: bool = True) -> None:
        """Open the archive of a trajectory; arguments as those of `Archive`.

        Raises:
            FormatError: if the archive, its attributes, or both together, break the
                format.
            UnsupportedVersionError: if it is of a newer spec.
        """
        super().__init__(source, name=name, is_whole=is_whole)
        self.header = _parse_header(self.attributes, name=name)
        _check_fields(self.header, self.arrays, name=name)
        self.chunk_tables: dict[str, ChunkTable] = {}

    @classmethod
    def open_sparse(
        cls, data: SparseObject, *, name: str
    ) -> Generator[IntArray, None, TrajectoryArchive]:
        """Open an archive of which nothing may be there yet.

        Yields:
            Ranges, int64 [n, 2], that have to be there before it goes on.

        Returns:
            The archive; directory, metadata and the indexes of big fields are there.

        Raises:
            FormatError: as the constructor does.
        """
        size = data.num_bytes
        yield np.array([[max(0, size - TAIL_BYTES), size]])
        start, _ = directory_start(data.view, name=name)
        yield np.array([[start, size]])
        members = parse_zip(data.view, name=name, is_whole=False)
        metadata = filter(is_metadata, members.values())
        yield np.array([[0, 0], *([one.start, one.stop] for one in metadata)])
        archive = cls(data.view, name=name, is_whole=False)
        big = archive.big_fields
        yield np.concatenate(
            [np.zeros((0, 2), np.int64), *map(archive.index_range, big)]
        )
        for field in big:
            archive.shard(field)
        return archive

    @property
    def big_fields(self) -> list[str]:
        """Fields of which each sample is a chunk."""
        schema = self.header.schema
        return [
            n
            for n, spec in schema.items()
            if spec.is_big and not self.arrays[n].is_empty
        ]

    @property
    def small_ranges(self) -> IntArray:
        """Where all small fields lie, int64 [n, 2]."""
        small = [n for n, spec in self.header.schema.items() if not spec.is_big]
        return np.concatenate(
            [np.zeros((0, 2), np.int64), *map(self.member_range, small)]
        )

    def chunk_table(self, name: str) -> ChunkTable:
        """Return where a big field of batches is kept here, and remember it.

        Raises:
            FormatError: if its shard index is damaged.
        """
        # The same field may be an array of its own here and a stage of one there.
        (one,) = (f for f in batch_fields(self.header.schema) if f.name == name)
        num_rows = self.num_rows(one.field)
        first = (one.stage or 0) * num_rows * self.header.num_envs
        shard = self.shard(one.field)
        table = ChunkTable(shard, first, num_rows, one.spec.rows)
        self.chunk_tables[name] = table
        return table

    def emptied(self) -> Self:  # noqa: D102
        copied = super().emptied()
        copied.chunk_tables = {}
        return copied

    @property
    def open_bytes(self) -> int:
        """Bytes of memory that it takes once it is read from, its source aside."""
        indexes = 16 * sum(info.grid.num_chunks for info in self.arrays.values())
        return indexes + _OBJECT_BYTES

    @property
    def fetched_bytes(self) -> int:
        """Bytes of memory that what was fetched of it takes."""
        return 0 if self.remote is None else self.remote.data.resident_bytes

    def num_rows(self, field: str) -> int:
        """Rows on the time axis of a sampled field, extra rows included."""
        return self.arrays[field].shape[1 if is_staged(field) else 0]


def _parse_header(attributes: Mapping[str, Any], *, name: str) -> TrajectoryHeader:
    value = attributes.get("zarrbuf")
    if not isinstance(value, dict):
        raise FormatError(f"{name}: the group has no attribute 'zarrbuf'")
    check_spec(value.get("spec"), where=name)
    expected = {
        "uuid": str,
        "T": int,
        "B": int,
        "max_episode_length": int | None,
        "model_weights_id": str,
        "fields": dict,
    }
    for key, kind in expected.items():
        found = value.get(key)
        if key not in value or isinstance(found, bool) or not isinstance(found, kind):
            raise FormatError(
                f"{name}: attribute zarrbuf.{key} is {found!r:.80}, not of type "
                f"{getattr(kind, '__name__', kind)}"
            )
    non_tensor = attributes.get("non_tensor", {})
    if (
        set(value) != {"spec", *expected}
        or not set(attributes) <= {"zarrbuf", "non_tensor"}
        or not isinstance(non_tensor, dict)
        or not set(non_tensor) <= set(DICT_FIELDS)
        or not all(isinstance(tree, dict) for tree in non_tensor.values())
        or not re.fullmatch(r"[0-9a-f]{32}", value["uuid"])
        or not is_weights_id(value["model_weights_id"])
        or value["T"] < 1
        or value["B"] < 1
    ):
        raise FormatError(f"{name}: the attributes are not those of a trajectory")
    return TrajectoryHeader(
        value["uuid"],
        value["T"],
        value["B"],
        value["max_episode_length"],
        value["model_weights_id"],
        parse_schema(value["fields"], where=name),
        non_tensor,
    )


def _check_fields(
    header: TrajectoryHeader, arrays: Mapping[str, ArrayInfo], *, name: str
) -> None:
    if set(header.schema) != set(arrays):
        odd = sorted(set(header.schema) ^ set(arrays))
        raise FormatError(f"{name}: fields and arrays differ: {odd!r:.200}")
    for field, spec in header.schema.items():
        info = arrays[field]
        if info.dtype != spec.dtype or not _fits(info, spec, header):
            raise FormatError(
                f"{name}: array {field!r} is {info.dtype} {info.shape}, which is not "
                f"what its field says: {spec} with T={header.num_steps}, "
                f"B={header.num_envs}"
            )
    names = [field.name for field in batch_fields(header.schema)]
    if len(names) != len(set(names)):
        raise FormatError(f"{name}: two of its arrays claim one field of batches")
    if all(spec.rows != "step" for spec in header.schema.values()):
        raise FormatError(f"{name}: no field says T and B")


def _fits(info: ArrayInfo, spec: FieldSpec, header: TrajectoryHeader) -> bool:
    if spec.rows == "whole":
        return not info.staged and (len(info.shape) < 2 or is_nested(info.field))
    axis = 1 if info.staged else 0
    if len(info.shape) < axis + 2 or is_nested(info.field):
        return False
    num_rows = info.shape[axis]
    expected = array_shape(
        spec, num_rows=num_rows, num_envs=header.num_envs, staged=info.staged
    )
    extra = num_rows - header.num_steps
    return (
        info.shape == expected
        and info.time_name == time_dimension(spec.rows, num_rows, header.num_steps)
        and (
            extra == 0
            or (extra > 0 and (spec.rows == "step" or header.num_steps % extra == 0))
        )
    )
