"""What a caller hands in -> the archive of a trajectory.

Owns the checks of names, dtypes, shapes, T and B, and of values that are no tensors.
Nothing of the caller's memory is kept. No I/O.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.ma import MaskedArray

from zarrbuf.archive.chunks import crc32c
from zarrbuf.archive.decode import encode_rows
from zarrbuf.archive.group import FieldArray, encode_archive
from zarrbuf.archive.spec import (
    DICT_FIELDS,
    EXTRA_ROWS,
    MAX_WEIGHTS_ID,
    STORED_DTYPE,
    TENSOR_FIELDS,
    AnyArray,
    BatchField,
    FieldSpec,
    Schema,
    batch_fields,
    encode_key,
    is_nested,
    is_own_name,
    is_weights_id,
    sorted_fields,
)
from zarrbuf.archive.zarr_json import (
    METADATA_NAME,
    CodecName,
    encode_group_metadata,
    parse_json,
    time_dimension,
)
from zarrbuf.common.arguments import as_whole_number
from zarrbuf.common.thread_pool import Workers
from zarrbuf.errors import InvalidInputError
from zarrbuf.trajectory.archived import TrajectoryArchive, TrajectoryHeader
from zarrbuf.trajectory.plain_values import to_json, to_json_key
from zarrbuf.trajectory.summaries import summarize
from zarrbuf.trajectory.trajectory import (
    KNOWN_FIELDS,
    Tensor,
    Trajectory,
    decode_trajectory,
    fields_of,
    flatten_trajectory,
    to_tensor,
)

MAX_CHUNK_BYTES: Final = 2**31 - 17
MAX_DIMS: Final = 31
MAX_DEPTH: Final = 32
"""Levels of nested dicts; a name of a zip member has at most 65,535 bytes."""


_ALONE: Final = Workers(1)
_STORED: Final = {
    getattr(torch, name): getattr(torch, stored)
    for name, stored in STORED_DTYPE.items()
}
"""torch dtype -> that of the stored array."""


@dataclass(frozen=True)
class EncodedTrajectory:
    """A trajectory as it will lie on disk, and what the manifest says of it.

    Attributes:
        data: the archive.
        header: its attributes.
        shape: shape of the field that gave T and B.
        crc: crc32c of `data`.
        tags: what the manifest says of its content.
    """

    data: bytes
    header: TrajectoryHeader
    shape: tuple[int, ...]
    crc: int
    tags: dict[str, Any]

    @property
    def fields(self) -> Sequence[BatchField]:
        """The fields of batches, by name."""
        return sorted_fields(self.header.schema)

    @property
    def num_samples(self) -> int:
        """Samples in the trajectory, `T * B`."""
        return self.header.num_steps * self.header.num_envs


def encode_trajectory(
    trajectory: Any,
    *,
    uuid: str,
    codec: CodecName,
    workers: Workers = _ALONE,
) -> EncodedTrajectory:
    """Encode a trajectory; nothing of the caller's tensors is kept.

    Args:
        trajectory: a `Trajectory` or any object with its attributes.
        uuid: 32 hex digits, the name of the archive.
        codec: how chunks are compressed.
        workers: threads that compress.

    Raises:
        InvalidInputError: naming the field that cannot be stored and what is allowed.
    """
    collected = collect(trajectory)
    first, schema, arrays = _fields_of(collected)
    header = _header(collected, uuid, first, schema)
    attributes = header.to_attributes()
    _check_attributes(attributes)
    data = encode_archive(
        arrays,
        attributes,
        codec=codec,
        encode_rows=functools.partial(encode_rows, workers=workers),
    )
    tags = _tags(arrays, first[0])
    return EncodedTrajectory(data, header, first, crc32c(data), tags)


def renamed(data: bytes, *, uuid: str, codec: CodecName) -> EncodedTrajectory:
    """Return the trajectory of an archive encoded anew, under another name.

    Raises:
        FormatError: if the archive is damaged.
    """
    trajectory = decode_trajectory(TrajectoryArchive(data, name=uuid))
    return encode_trajectory(trajectory, uuid=uuid, codec=codec)


class Collected(NamedTuple):
    """What a trajectory has, each value checked by itself.

    Attributes:
        leaves: field path -> tensor.
        non_tensor: values that are no tensors, as a tree of JSON values.
        max_episode_length: steps; None if it was not told.
        model_weights_id: the policy that drove it.
    """

    leaves: Mapping[str, Tensor]
    non_tensor: Mapping[str, Any]
    max_episode_length: int | None
    model_weights_id: str


def collect(trajectory: Any) -> Collected:
    """Split a trajectory into tensors by field path and other values.

    Raises:
        InvalidInputError: naming a value of a kind that is not kept.
    """
    leaves, non_tensor = _collect(trajectory)
    return Collected(
        leaves,
        non_tensor,
        _max_episode_length(trajectory),
        _model_weights_id(trajectory),
    )


def describe_fields(collected: Collected) -> tuple[tuple[int, ...], Schema]:
    """Return the shape with T and B, and the fields, of what was collected.

    Raises:
        InvalidInputError: naming the field that cannot be stored.
    """
    first, schema, _ = _fields_of(collected)
    return first, schema


def check_non_tensor(
    collected: Collected, shape: tuple[int, ...], schema: Schema
) -> None:
    """Check that the values that are no tensors can be stored with these fields.

    Raises:
        InvalidInputError: if they cannot.
    """
    header = _header(collected, "0" * 32, shape, schema)
    _check_attributes(header.to_attributes())


def _fields_of(
    collected: Collected,
) -> tuple[tuple[int, ...], dict[str, FieldSpec], dict[str, FieldArray]]:
    first = _first_shape(collected.leaves)
    return first, *_arrays(collected.leaves, *first[:2])


def _header(
    collected: Collected, uuid: str, shape: tuple[int, ...], schema: Schema
) -> TrajectoryHeader:
    return TrajectoryHeader(
        uuid,
        shape[0],
        shape[1],
        collected.max_episode_length,
        collected.model_weights_id,
        schema,
        collected.non_tensor,
    )


def trajectory_shape(trajectory: Any) -> tuple[int, ...]:
    """Return the shape that tells T and B.

    Raises:
        InvalidInputError: if nothing does, or a value is of a kind that is not kept.
    """
    return _first_shape(_collect(trajectory)[0])


def describe_trajectory(trajectory: Any) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Return what the manifest says of a trajectory: the shape with T and B, the tags.

    Raises:
        InvalidInputError: as `encode_trajectory`.
    """
    leaves, _ = _collect(trajectory)
    first = _first_shape(leaves)
    _, arrays = _arrays(leaves, *first[:2])
    return first, _tags(arrays, first[0])


def _arrays(
    leaves: Mapping[str, Tensor], num_steps: int, num_envs: int
) -> tuple[dict[str, FieldSpec], dict[str, FieldArray]]:
    schema: dict[str, FieldSpec] = {}
    arrays: dict[str, FieldArray] = {}
    for path, tensors in _paired(leaves).items():
        spec, array = _field_array(path, tensors, num_steps, num_envs)
        schema[path] = spec
        arrays[path] = array
    return schema, arrays


def _tags(arrays: Mapping[str, FieldArray], num_steps: int) -> dict[str, Any]:
    fields = {path: (array.parts[0], array.dtype) for path, array in arrays.items()}
    return summarize(fields, num_steps)


def _max_episode_length(trajectory: Any) -> int | None:
    value = getattr(trajectory, "max_episode_length", 0)
    if value is None:
        return None
    number = as_whole_number(value)
    if number is None or abs(number) >= 2**63:
        raise InvalidInputError(
            f"max_episode_length is {value!r:.80}; a whole number or None is needed"
        )
    return number


def _model_weights_id(trajectory: Any) -> str:
    value = getattr(trajectory, "model_weights_id", "")
    if not is_weights_id(value):
        raise InvalidInputError(
            f"model_weights_id is {value!r:.80}; a string of at most {MAX_WEIGHTS_ID} "
            "characters without '/' or half surrogate pairs is needed, since it is "
            "part of a file name"
        )
    return value


def _collect(trajectory: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split a trajectory into tensors by field path and a tree of other values."""
    leaves: dict[str, Tensor] = {}
    non_tensor: dict[str, Any] = {}
    for name in (*TENSOR_FIELDS, *_other_fields(trajectory)):
        value = getattr(trajectory, name, None)
        if value is not None:
            leaves[name] = _as_tensor(value, name)
    for name in DICT_FIELDS:
        value = getattr(trajectory, name, None)
        if value is not None:
            other = _collect_dict(value, name, name, leaves)
            if other is not None:
                non_tensor[name] = other
    return leaves, non_tensor


def _other_fields(trajectory: Any) -> list[str]:
    """Return the names of tensors that RLinf's trajectories do not have.

    Raises:
        InvalidInputError: naming a field that is neither a tensor nor empty.
    """
    found = []
    for name, value in fields_of(trajectory).items():
        is_empty = value is None or (isinstance(value, Mapping) and not value)
        if name in KNOWN_FIELDS or is_empty:
            continue
        is_free = is_own_name(name) and not hasattr(Trajectory, name)
        if not isinstance(value, torch.Tensor) or not is_free:
            raise InvalidInputError(
                f"field {name!r} of {type(trajectory).__name__} is a "
                f"{type(value).__name__}; of fields other than "
                f"{', '.join(sorted(KNOWN_FIELDS))}, tensors can be stored, and what "
                "is None or an empty dict"
            )
        found.append(name)
    return found


def _collect_dict(
    value: Any, label: str, path: str, leaves: dict[str, Tensor]
) -> dict[str, Any] | None:
    """Collect a nested dict; return its part that is no tensor, None if there is none.

    An empty dict is such a part: nothing else would remember it.
    """
    if not isinstance(value, Mapping):
        raise InvalidInputError(
            f"{label} is a {type(value).__name__}; a dict of tensors is needed"
        )
    other: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{label}[{key!r}]"
        child = f"{path}/{encode_key(key)}"
        if child.count("/") > MAX_DEPTH:
            raise InvalidInputError(
                f"{name:.80}... is nested too deep; at most {MAX_DEPTH} levels of "
                "dicts are allowed"
            )
        if isinstance(item, torch.Tensor | np.ndarray):
            leaves[child] = _as_tensor(item, name)
        elif isinstance(item, Mapping):
            rest = _collect_dict(item, name, child, leaves)
            if rest is not None:
                other[to_json_key(key)] = rest
        else:
            other[to_json_key(key)] = to_json(item, name)
    return other if other or not value else None


def _as_tensor(value: Any, name: str) -> Tensor:
    if type(value) is torch.Tensor and _is_kept(value):
        return value
    if isinstance(value, MaskedArray):
        raise InvalidInputError(
            f"{name} is a masked array; a plain array or a tensor is needed"
        )
    if isinstance(value, np.ndarray):
        if STORED_DTYPE.get(value.dtype.name) != value.dtype.name:
            raise InvalidInputError(
                f"{name} has dtype {value.dtype}; allowed are {', '.join(STORED_DTYPE)}"
            )
        native = np.asarray(value, value.dtype.newbyteorder("="), order="C")
        value = torch.from_numpy(native if native.flags.writeable else native.copy())
    if not isinstance(value, torch.Tensor):
        raise InvalidInputError(
            f"{name} is a {type(value).__name__}; a tensor is needed"
        )
    if not _is_kept(value):
        dtype = str(value.dtype).removeprefix("torch.")
        raise InvalidInputError(
            f"{name} is a tensor of dtype {dtype} and layout {value.layout} on "
            f"{value.device}; allowed are dense tensors with data, of at most "
            f"{MAX_DIMS} dimensions, of {', '.join(STORED_DTYPE)}"
        )
    return value


def _is_kept(tensor: Tensor) -> bool:
    is_dense = tensor.layout is torch.strided and not tensor.is_nested
    is_there = is_dense and not tensor.is_meta
    return is_there and tensor.dtype in _STORED and tensor.ndim <= MAX_DIMS


def _check_attributes(attributes: Mapping[str, Any]) -> None:
    try:
        # As they will be read: inside the group's metadata, one level deeper.
        parse_json(encode_group_metadata(attributes), where=METADATA_NAME)
    except (ValueError, RecursionError) as exc:
        raise InvalidInputError(
            f"the values that are no tensors cannot be stored: {exc}"
        ) from exc


def _first_shape(leaves: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return the shape that gives T and B: RLinf's order, then any other field."""
    preferred = ("prev_logprobs", "rewards")
    others = sorted(n for n in leaves if n not in EXTRA_ROWS and not is_nested(n))
    for name in (*preferred, *others):
        if name in leaves and leaves[name].ndim >= 2:
            shape = tuple(leaves[name].shape)
            if 0 in shape[:2]:
                raise InvalidInputError(
                    f"{name} has shape {shape}: a trajectory needs at least one step "
                    "and one environment"
                )
            return shape
    raise InvalidInputError(
        "the trajectory has no field that says T and B; prev_logprobs, rewards or "
        "another tensor [T, B, ...] is needed (fields with extra rows do not tell)"
    )


def _paired(leaves: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, ...]]:
    """Join current and next observations of one shape and dtype into `obs/*`."""
    paired: dict[str, tuple[Tensor, ...]] = {}
    for path, tensor in leaves.items():
        group, _, key = path.partition("/")
        other = leaves.get(f"{'next' if group == 'curr_obs' else 'curr'}_obs/{key}")
        if (
            group not in ("curr_obs", "next_obs")
            or other is None
            or other.shape != tensor.shape
            or other.dtype != tensor.dtype
            or tensor.ndim < 2
            or is_nested(path)
        ):
            paired[path] = (tensor,)
        elif group == "curr_obs":
            paired[f"obs/{key}"] = (tensor, other)
    return paired


def _field_array(
    path: str, tensors: tuple[Tensor, ...], num_steps: int, num_envs: int
) -> tuple[FieldSpec, FieldArray]:
    tensor = tensors[0]
    dtype = str(tensor.dtype).removeprefix("torch.")
    shape = tuple(tensor.shape)
    if tensor.ndim < 2 or is_nested(path):
        spec = FieldSpec(dtype, (), "whole")
        return spec, FieldArray((to_stored(tensor),), dtype)
    rows = EXTRA_ROWS.get(path, "step")
    extra = shape[0] - num_steps
    is_cut_by_epoch = rows != "step" and extra > 0
    if (
        shape[1] != num_envs
        or extra < 0
        or (is_cut_by_epoch and num_steps % extra != 0)
    ):
        allowed = f"[{num_steps}, {num_envs}, ...]"
        if rows == "step":
            allowed += ", or with more rows, of which the first are drawn,"
        else:
            allowed += (
                f", or {num_steps} + E rows with one extra row at the {rows} of each "
                f"of E rollout epochs, E a divisor of {num_steps},"
            )
        raise InvalidInputError(f"{path} has shape {list(shape)}; {allowed} is needed")
    spec = FieldSpec(dtype, shape[2:], rows)
    if spec.row_bytes > MAX_CHUNK_BYTES:
        raise InvalidInputError(
            f"{path} has samples of {spec.row_bytes} bytes; at most "
            f"{MAX_CHUNK_BYTES} are allowed"
        )
    if max(spec.shape, default=0) >= 2**31:
        raise InvalidInputError(
            f"{path} has shape {list(shape)}; less than 2**31 is allowed for each "
            "dimension of a sample"
        )
    time_name = time_dimension(rows, shape[0], num_steps)
    parts = tuple(to_stored(part) for part in tensors)
    return spec, FieldArray(parts, dtype, time_name)


def to_stored(tensor: Tensor) -> AnyArray:
    """View a tensor as the stored dtype, copied only if it is not dense on the CPU."""
    is_plain = tensor.is_cpu and tensor.is_contiguous()
    if not is_plain or tensor.requires_grad or tensor.is_conj() or tensor.is_neg():
        tensor = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    stored = _STORED[tensor.dtype]
    if stored is not tensor.dtype:
        tensor = tensor.view(stored)
    array: AnyArray = tensor.numpy()
    return array


def flatten_encoded(trajectory: Any) -> dict[str, Tensor]:
    """Return the sampled fields of a trajectory that is in no buffer.

    Returns:
        Batch field name -> tensor [T * B, ...], see `flatten_trajectory`.

    Raises:
        InvalidInputError: as `encode_trajectory`.
    """
    encoded = encode_trajectory(trajectory, uuid="0" * 32, codec="none")
    archive = TrajectoryArchive(encoded.data, name="trajectory")
    dtypes = {f.name: f.spec.dtype for f in batch_fields(archive.header.schema)}
    flat = flatten_trajectory(archive)
    return {name: to_tensor(array, dtypes[name]) for name, array in flat.items()}
