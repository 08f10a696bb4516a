"""One batch: its memory, fresh or given back by the caller, and its tensors.

Owns the checks of memory that somebody else made. Knows no archive.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from zarrbuf.archive.chunks import address_of
from zarrbuf.archive.spec import STORED_DTYPE, AnyArray, BatchField, decode_key
from zarrbuf.errors import InvalidInputError
from zarrbuf.sampling.batch_memory import BatchMemory
from zarrbuf.trajectory.trajectory import Tensor, nest, to_tensor


def new_arrays(
    fields: Sequence[BatchField], count: int, memory: BatchMemory
) -> dict[str, AnyArray]:
    """Return memory for a batch of `count` samples.

    Returns:
        Field name -> array [count, ...] of the stored dtype, not initialised.
    """
    return {
        field.name: memory.empty(
            field.name, (count, *field.spec.shape), field.spec.stored
        )
        for field in fields
    }


def as_batch(
    fields: Sequence[BatchField], arrays: Mapping[str, AnyArray]
) -> dict[str, Any]:
    """Return arrays as a nested dict of tensors of the dtypes that were added."""
    dtypes = {field.name: field.spec.dtype for field in fields}
    return nest({name: to_tensor(arrays[name], dtypes[name]) for name in dtypes})


def arrays_of(
    out: Any, fields: Sequence[BatchField], count: int
) -> dict[str, AnyArray]:
    """Return the memory of a batch that is given back to be filled again.

    Args:
        out: nested dict of tensors [count, ...], as `sample(count)` returns it.
        fields: what the batch will hold.
        count: samples.

    Returns:
        Field name -> array [count, ...] of the stored dtype, of the same memory.

    Raises:
        InvalidInputError: naming the tensor that is missing, too many or not of the
            right dtype, shape or place.
    """
    if not isinstance(out, Mapping):
        raise InvalidInputError(
            f"out is a {type(out).__name__}; a batch of an earlier `sample` is needed"
        )
    leaves = dict(_leaves(out, ""))
    arrays: dict[str, AnyArray] = {}
    for field in fields:
        label = _label(field.name)
        if label not in leaves:
            raise InvalidInputError(
                f"out{label} is missing; a batch drawn without `out` has all fields"
            )
        shape = (count, *field.spec.shape)
        tensor = _checked(leaves.pop(label), f"out{label}", field.spec.dtype, shape)
        arrays[field.name] = _stored(tensor, field.spec.dtype)
    _check_apart(arrays)
    for label in leaves:
        raise InvalidInputError(
            f"out{label} is not a field that every trajectory of the window has; "
            "take it away"
        )
    return arrays


def _check_apart(arrays: Mapping[str, AnyArray]) -> None:
    """Refuse fields that share memory: one would hold the values of the other."""
    places = sorted(
        (address_of(array), array.nbytes, name)
        for name, array in arrays.items()
        if array.nbytes
    )
    for (start, size, name), (following, _, other) in itertools.pairwise(places):
        if following < start + size:
            raise InvalidInputError(
                f"out{_label(name)} and out{_label(other)} share memory"
            )


def _leaves(tree: Mapping[Any, Any], prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        label = f"{prefix}[{key!r}]"
        if isinstance(value, Mapping):
            found += _leaves(value, label)
        else:
            found.append((label, value))
    return found


def _label(name: str) -> str:
    return "".join(f"[{decode_key(part)!r}]" for part in name.split("/"))


def _checked(value: Any, label: str, dtype: str, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(value, torch.Tensor):
        raise InvalidInputError(
            f"{label} is a {type(value).__name__}; a tensor is needed"
        )
    found = str(value.dtype).removeprefix("torch.")
    if found != dtype or tuple(value.shape) != shape:
        raise InvalidInputError(
            f"{label} is {found} {list(value.shape)}; {dtype} {list(shape)} is needed"
        )
    if (
        value.device.type != "cpu"
        or value.layout != torch.strided
        or not value.is_contiguous()
        or value.requires_grad
        or value.is_conj()
        or value.is_neg()
    ):
        raise InvalidInputError(
            f"{label} is a tensor on {value.device} with strides "
            f"{value.stride() if value.layout == torch.strided else value.layout}, "
            f"requires_grad={value.requires_grad}; a dense one on the CPU, contiguous "
            "and without gradient, is needed"
        )
    return value


def _stored(tensor: Tensor, dtype: str) -> AnyArray:
    stored = STORED_DTYPE[dtype]
    plain = tensor if stored == dtype else tensor.view(getattr(torch, stored))
    array: AnyArray = plain.numpy()
    return array
