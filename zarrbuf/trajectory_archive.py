"""The archive of one trajectory: T, B and fields, checked against its arrays.

Pure and torch-free. Owns the attributes of the root group.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from zarrbuf.archive import Archive
from zarrbuf.chunks import Source
from zarrbuf.errors import FormatError
from zarrbuf.format import (
    DICT_FIELDS,
    BatchField,
    FieldSpec,
    Schema,
    array_shape,
    batch_fields,
    is_staged,
    is_weights_id,
    parse_schema,
)
from zarrbuf.metadata import (
    ArrayInfo,
    check_spec,
    time_dimension,
)

_OBJECT_BYTES: Final = 20_000
"""Measured with tracemalloc: an opened archive of 10 arrays, without indexes."""


@dataclass(frozen=True)
class TrajectoryHeader:
    """The attributes of a trajectory.

    Attributes:
        uuid: 32 hex digits.
        num_steps: `T`.
        num_envs: `B`.
        max_episode_length: steps.
        model_weights_id: the policy that drove it.
        schema: field path -> spec.
        non_tensor: values that are no tensors, as a tree of JSON values.
    """

    uuid: str
    num_steps: int
    num_envs: int
    max_episode_length: int
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


class TrajectoryArchive(Archive):
    """The archive of one trajectory.

    Attributes:
        header: its attributes, checked against its arrays.
    """

    def __init__(self, source: Source, *, name: str) -> None:
        """Open the archive of a trajectory.

        Raises:
            FormatError: if the archive, its attributes, or both together, break the
                format.
            UnsupportedVersionError: if it is of a newer spec.
        """
        super().__init__(source, name=name)
        self.header = _parse_header(self.attributes, name=name)
        _check_fields(self.header, self.arrays, name=name)
        self._batch_fields = {f.name: f for f in batch_fields(self.header.schema)}

    def batch_field(self, name: str) -> BatchField:
        """Return where a field of batches is kept here."""
        return self._batch_fields[name]

    @property
    def open_bytes(self) -> int:
        """Bytes of memory that it takes once it is read from, its source aside."""
        indexes = 16 * sum(info.grid.num_chunks for info in self.arrays.values())
        return indexes + _OBJECT_BYTES

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
        "max_episode_length": int,
        "model_weights_id": str,
        "fields": dict,
    }
    for key, kind in expected.items():
        if type(value.get(key)) is not kind:
            raise FormatError(
                f"{name}: attribute zarrbuf.{key} is {value.get(key)!r:.80}, "
                f"not of type {kind.__name__}"
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
        return len(info.shape) < 2 and not info.staged
    axis = 1 if info.staged else 0
    if len(info.shape) < axis + 2:
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
            or (spec.rows != "step" and extra > 0 and header.num_steps % extra == 0)
        )
    )
