"""One batch: its memory, and its tensors.

Memory is used again once nobody refers to it, or is given back by the caller. Fresh
memory costs as much as decoding into it: the system hands out zeroed pages one by one;
what a dropped batch leaves behind has been touched already. Owns the checks of memory
that somebody else made. Knows no archive.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from zarrbuf.archive.chunks import address_of
from zarrbuf.archive.spec import STORED_DTYPE, AnyArray, BatchField, decode_key
from zarrbuf.errors import InvalidInputError
from zarrbuf.trajectory.trajectory import Tensor, nest, to_tensor

Bytes = npt.NDArray[np.uint8]

KEPT_BATCHES: Final = 3
"""A consumer holds one batch and drops one; more are seldom dropped at once."""
MIN_KEPT_BYTES: Final = 64 << 10
"""Smaller arrays are left to the allocator, which keeps their pages anyway."""


class _Kept:
    """Arrays of one size for one field, until it is closed."""

    def __init__(self, max_arrays: int) -> None:
        self.arrays: deque[Bytes] = deque(maxlen=max_arrays)
        self._is_open = True

    def take_back(self, array: Bytes) -> None:
        if self._is_open:
            self.arrays.append(array)

    def close(self) -> None:
        self._is_open = False
        self.arrays.clear()


class BatchMemory:
    """Gives out arrays, and again what became of them when nothing refers to them.

    An array comes back only after the last tensor, array or view of it is gone,
    whoever holds it, so nobody sees his batch change. Safe between threads.
    """

    def __init__(
        self, *, max_batches: int = KEPT_BATCHES, pin_memory: bool = False
    ) -> None:
        """Keep what `max_batches` batches leave behind.

        Args:
            max_batches: arrays of one size that are kept per field of a batch.
            pin_memory: give out page-locked memory instead, which torch keeps and
                gives out again when the copies from it are done.
        """
        self._max_batches = max_batches
        self._pin_memory = pin_memory
        self._kept: dict[tuple[str, int], _Kept] = {}

    def clear(self) -> None:
        """Let go of what is kept."""
        for kept in list(self._kept.values()):
            kept.close()
        self._kept.clear()

    def empty(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> AnyArray:
        """Return an array, not initialised.

        Args:
            name: of the field; what comes back serves the field of that name.
            shape: of the array.
            dtype: of the array.
        """
        num_bytes = math.prod(shape) * dtype.itemsize
        if self._pin_memory and num_bytes:
            pinned = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
            return pinned.numpy().view(dtype).reshape(shape)
        if num_bytes < MIN_KEPT_BYTES:
            return np.empty(shape, dtype)
        return self._lend(name, num_bytes).view(dtype).reshape(shape)

    def _lend(self, name: str, num_bytes: int) -> Bytes:
        kept = self._kept.get((name, num_bytes))
        if kept is None:
            # Batches of another size: what the old ones left behind is of no use.
            for other in list(self._kept):
                if other[0] == name:
                    self._kept.pop(other, _Kept(0)).close()
            kept = self._kept[name, num_bytes] = _Kept(self._max_batches)
        try:
            memory: Any = kept.arrays.pop()
        except IndexError:
            memory = np.empty(num_bytes, np.uint8)
        # NumPy makes the owner the base of every view, so the loan has to be an
        # object of another kind for it to live as long as the last of them.
        loan: Any = (ctypes.c_uint8 * num_bytes).from_buffer(memory)
        ending = weakref.finalize(loan, kept.take_back, memory)
        ending.atexit = False
        lent: Bytes = np.frombuffer(loan, np.uint8)
        return lent


def can_pin() -> bool:
    """Whether page-locked memory would help a device that is there."""
    return torch.cuda.is_available()


def new_batch(
    fields: Sequence[BatchField], count: int, memory: BatchMemory
) -> tuple[dict[str, AnyArray], dict[str, Any]]:
    """Return a batch of `count` samples to be filled: its arrays, and its tensors.

    Returns:
        What `new_arrays` returns, and what `as_batch` makes of it.
    """
    arrays = new_arrays(fields, count, memory)
    return arrays, as_batch(fields, arrays)


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
