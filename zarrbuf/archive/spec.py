"""Names and rules of the format: paths, dtypes, fields, chunks, key names.

Pure: no I/O, no torch, no zarr. Every rule here is a sentence of docs/format.md;
what lies in the bytes of a chunk, a zip or a commit is for other modules.

Words: `T` steps and `B` environments, sample `i = t * B + b`. A *field* is one
array of a trajectory, named by its path in the Zarr group (`obs/main_images`).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeGuard
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt

from zarrbuf.errors import FormatError, InvalidInputError

AnyArray = npt.NDArray[Any]
Rows = Literal["step", "start", "end", "whole"]

SPEC: Final = 1
BIG_ROW_BYTES: Final = 4096
"""A field whose [t, b] row has at least this many bytes has one row a chunk."""
SMALL_CHUNK_BYTES: Final = 1 << 20
"""A small field is one chunk up to this size and is split along time above it."""
MAX_NAME_BYTES: Final = 1024
MAX_WEIGHTS_ID: Final = 200

# torch dtype name -> dtype of the stored array. The names on the left are those
# of `str(torch.dtype)`; where they differ from NumPy's, the array carries the
# attribute `torch_dtype`.
_NUMPY_DTYPES: Final = (
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
    "complex64",
    "complex128",
)
STORED_DTYPE: Final[Mapping[str, str]] = {
    **{name: name for name in _NUMPY_DTYPES},
    "bfloat16": "uint16",
    "float8_e4m3fn": "uint8",
    "float8_e4m3fnuz": "uint8",
    "float8_e5m2": "uint8",
    "float8_e5m2fnuz": "uint8",
    "float8_e8m0fnu": "uint8",
}

# Those of RLinf's `Trajectory`; a trajectory may have others.
TENSOR_FIELDS: Final = (
    "actions",
    "intervene_flags",
    "rewards",
    "terminations",
    "truncations",
    "dones",
    "prev_logprobs",
    "prev_values",
    "versions",
)
DICT_FIELDS: Final = ("forward_inputs", "curr_obs", "next_obs")
_GROUPS: Final = (*DICT_FIELDS, "obs")
_OWN_NAME: Final = re.compile("[A-Za-z][A-Za-z0-9_]{0,99}")
"""It becomes an attribute of a trajectory, so nothing that Python reads as its own."""
EXTRA_ROWS: Final[Mapping[str, Rows]] = {
    "terminations": "start",
    "truncations": "start",
    "dones": "start",
    "prev_values": "end",
}
"""Fields that may have one row more per rollout epoch, and at which end of it."""


def is_weights_id(value: Any) -> TypeGuard[str]:
    """Whether a value can be a `model_weights_id`: it is part of a file name."""
    return (
        isinstance(value, str)
        and len(value) <= MAX_WEIGHTS_ID
        and not any(character in value for character in "/\0")
        and is_text(value)
    )


def is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8: half a surrogate pair cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


@functools.lru_cache(maxsize=4096)
def encode_key(key: str) -> str:
    """Percent-encode one dictionary key into a Zarr node name.

    Letters, digits, `-`, `_` and `.` stay; all else becomes `%XX` of its UTF-8
    bytes, and so does the first character of what Zarr reserves (names of dots
    only, a leading `__`) and of `zarr.json`, which would shadow metadata.

    Raises:
        InvalidInputError: if the key is no string, empty, not UTF-8 or too long.
    """
    if not isinstance(key, str) or not key:
        raise InvalidInputError(
            f"key {key!r} is not allowed: keys are non-empty strings"
        )
    try:
        name = quote(key, safe="").replace("~", "%7E")
    except UnicodeEncodeError as exc:
        raise InvalidInputError(
            f"key {key!r} is not allowed: it is no valid UTF-8"
        ) from exc
    if name.strip(".") == "" or name.startswith("__") or name == "zarr.json":
        name = f"%{ord(name[0]):02X}{name[1:]}"
    if len(name) > MAX_NAME_BYTES:
        raise InvalidInputError(
            f"key {key[:40]!r}... is too long: {len(name)} bytes encoded, "
            f"at most {MAX_NAME_BYTES} are allowed"
        )
    return name


@functools.lru_cache(maxsize=4096)
def decode_key(name: str) -> str:
    """Return the dictionary key of a Zarr node name, see `encode_key`."""
    return unquote(name, errors="strict")


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """What all trajectories of a schema share about one field.

    Attributes:
        dtype: torch dtype name, a key of `STORED_DTYPE`.
        shape: shape of one sample; () for `rows="whole"`, whose length may differ from
            trajectory to trajectory.
        rows: "step" for T rows, and others behind them that are kept but never
            sampled; "start" or "end" for T + E rows whose extra row stands first or
            last in each of E rollout epochs; "whole" for arrays of fewer than two
            dimensions and for nested ones, which are kept but never sampled.
        stored: the dtype of the stored array.
        row_bytes: bytes of one sample.
        is_big: whether each sample is a chunk of its own.
    """

    dtype: str
    shape: tuple[int, ...]
    rows: Rows
    stored: np.dtype[Any] = field(init=False, repr=False, compare=False)
    row_bytes: int = field(init=False, repr=False, compare=False)
    is_big: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        stored = np.dtype(STORED_DTYPE[self.dtype])
        row_bytes = math.prod(self.shape) * stored.itemsize
        is_big = self.rows != "whole" and row_bytes >= BIG_ROW_BYTES
        object.__setattr__(self, "stored", stored)
        object.__setattr__(self, "row_bytes", row_bytes)
        object.__setattr__(self, "is_big", is_big)

    def to_json(self) -> dict[str, Any]:
        """Return the spec as it stands in attributes and in the manifest."""
        return {"dtype": self.dtype, "rows": self.rows, "shape": list(self.shape)}


Schema = Mapping[str, FieldSpec]


def parse_schema(fields: Any, *, where: str) -> dict[str, FieldSpec]:
    """Turn the JSON form of a schema into field specs.

    Args:
        fields: field path -> `{"dtype", "rows", "shape"}`.
        where: what the schema was read from, for the message.

    Raises:
        FormatError: if the value is not such a mapping.
    """
    if not isinstance(fields, dict):
        raise FormatError(f"{where}: a schema must be an object, not {fields!r:.80}")
    return {
        name: _parse_field(name, value, where=where) for name, value in fields.items()
    }


def is_own_name(name: str) -> bool:
    """Whether a field of a trajectory, not of one of its dicts, can have this name."""
    return _OWN_NAME.fullmatch(name) is not None and name not in _GROUPS


@functools.lru_cache(maxsize=4096)
def _is_field_path(path: str) -> bool:
    """Whether a writer would have given this path to a field."""
    group, *names = path.split("/")
    if not names:
        return is_own_name(group)
    try:
        canonical = all(encode_key(decode_key(name)) == name for name in names)
    except ValueError:
        return False
    return canonical and group in _GROUPS


def _parse_field(name: str, value: Any, *, where: str) -> FieldSpec:
    if not isinstance(value, dict) or set(value) != {"dtype", "rows", "shape"}:
        raise FormatError(
            f"{where}: field {name!r:.80} must have exactly dtype, rows and shape"
        )
    if not _is_field_path(name):
        raise FormatError(f"{where}: {name!r:.80} is no name of a field")
    dtype, rows, shape = value["dtype"], value["rows"], value["shape"]
    if not isinstance(dtype, str) or dtype not in STORED_DTYPE:
        raise FormatError(
            f"{where}: field {name!r:.80} has dtype {dtype!r:.40}; "
            f"allowed are {', '.join(STORED_DTYPE)}"
        )
    if rows not in ("step", "start", "end", "whole"):
        raise FormatError(f"{where}: field {name!r:.80} has rows {rows!r:.40}")
    if (
        not isinstance(shape, list)
        or len(shape) > 30
        or not all(type(n) is int and 0 <= n < 2**40 for n in shape)
        or (rows == "whole" and shape)
    ):
        raise FormatError(f"{where}: field {name!r:.80} has shape {shape!r:.80}")
    return FieldSpec(dtype, tuple(shape), rows)


def is_nested(field: str) -> bool:
    """Whether a field lies in a dict in one of RLinf's dicts: it is kept whole."""
    return field.count("/") > 1


def is_staged(field: str) -> bool:
    """Whether a field holds current and next observation on a first axis."""
    return field.startswith("obs/")


@dataclass(frozen=True, slots=True)
class BatchField:
    """One field of a batch and where a trajectory keeps it.

    Attributes:
        name: the name in the batch, `curr_obs/main_images`.
        field: the field of the archive, `obs/main_images`.
        stage: index on the stage axis, or None where the field has none.
        spec: dtype, sample shape, rows.
    """

    name: str
    field: str
    stage: int | None
    spec: FieldSpec


def batch_fields(schema: Schema) -> Iterator[BatchField]:
    """Yield the fields of a batch that trajectories of `schema` can serve."""
    for name, spec in schema.items():
        if spec.rows == "whole":
            continue
        if is_staged(name):
            for stage, group in enumerate(("curr_obs", "next_obs")):
                yield BatchField(f"{group}/{name[4:]}", name, stage, spec)
        else:
            yield BatchField(name, name, None, spec)


def sorted_fields(schema: Schema) -> list[BatchField]:
    """Return the batch fields of a schema by name."""
    return sorted(batch_fields(schema), key=lambda field: field.name)


def array_shape(
    spec: FieldSpec, *, num_rows: int, num_envs: int, staged: bool
) -> tuple[int, ...]:
    """Return the shape of the stored array of a sampled field.

    Args:
        spec: the field; not one with `rows="whole"`.
        num_rows: rows on the time axis, extra rows included.
        num_envs: `B`.
        staged: whether a stage axis of 2 comes first.
    """
    return (*((2,) if staged else ()), num_rows, num_envs, *spec.shape)


def step_rows(rows: Rows, num_rows: int, num_steps: int) -> AnyArray:
    """Return which rows of the time axis are the T steps.

    Args:
        rows: where extra rows stand.
        num_rows: rows stored, `T` and the extra ones.
        num_steps: `T`.

    Returns:
        int64 [T], ascending; without extra rows `arange(T)`.
    """
    num_epochs = num_rows - num_steps
    index = np.arange(num_rows, dtype=np.int64)
    if num_epochs == 0 or rows == "step":
        return index[:num_steps]
    epochs = index.reshape(num_epochs, num_steps // num_epochs + 1)
    kept = epochs[:, 1:] if rows == "start" else epochs[:, :-1]
    return kept.reshape(-1)


@dataclass(frozen=True, slots=True)
class ChunkGrid:
    """How an array is cut: one shard of equal inner chunks.

    Attributes:
        outer: shape of the shard, at least the array's; a whole number of `inner`.
        inner: shape of one chunk.
    """

    outer: tuple[int, ...]
    inner: tuple[int, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """Chunks along each axis."""
        return tuple(o // i for o, i in zip(self.outer, self.inner, strict=True))

    @property
    def num_chunks(self) -> int:
        """Chunks in the shard."""
        return math.prod(self.counts)


def chunk_grid(shape: tuple[int, ...], itemsize: int, *, staged: bool) -> ChunkGrid:
    """Return the chunk grid that the format prescribes for an array.

    Arrays of two or more dimensions (after the stage axis) are `[T, B, ...]`. A row
    of at least `BIG_ROW_BYTES` is a chunk; smaller ones share one chunk, which is
    split along time above `SMALL_CHUNK_BYTES`.

    Args:
        shape: shape of the whole array, at least one dimension.
        itemsize: bytes of one element.
        staged: whether the first axis is the stage axis.
    """
    full = tuple(max(1, n) for n in shape)
    time = 1 if staged else 0
    lead = time + 2
    if len(shape) >= lead and math.prod(shape[lead:]) * itemsize >= BIG_ROW_BYTES:
        return ChunkGrid(full, (1,) * lead + full[lead:])
    pieces = -(-math.prod(full) * itemsize // SMALL_CHUNK_BYTES)
    steps = -(-full[time] // min(pieces, full[time]))
    rounded = -(-full[time] // steps) * steps
    return ChunkGrid(
        (*full[:time], rounded, *full[time + 1 :]),
        (*full[:time], steps, *full[time + 1 :]),
    )
