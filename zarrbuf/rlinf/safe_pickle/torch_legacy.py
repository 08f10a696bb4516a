"""Tensors the way torch puts them into a pickle: storages and views of them.

Owns the legacy layout of one storage (five small pickles, a count, raw bytes) and
the rebuilding of a tensor from storage, offset, size and stride, every number
checked before memory is touched. Runs no opcode: the loader of the small pickles is
handed in. Knows no file, no budget and no trajectory; errors here state the rule
only, the caller adds the file's name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import torch

from zarrbuf.errors import FormatError

GlobalTable = Mapping[tuple[str, str], object]
T = TypeVar("T")

_MAGIC: Final = 0x1950A86A20F9469CFC6C  # torch.serialization.MAGIC_NUMBER
_PROTOCOL: Final = 1001  # torch.serialization.PROTOCOL_VERSION
_MAX_DIMS: Final = 16
_MAX_BYTES: Final = 1 << 62  # keeps every product below within an int64


@dataclass(frozen=True, slots=True)
class StorageType:
    """What a storage's class name says; untyped storages have no dtype, only bytes."""

    dtype: torch.dtype | None
    itemsize: int


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage as the main pickle announces it, before its bytes are seen."""

    kind: StorageType
    key: str
    count: int


@dataclass(frozen=True, slots=True)
class Storage:
    """The raw bytes of one storage, still inside the file's buffer (never copied)."""

    dtype: torch.dtype | None
    data: memoryview


@dataclass(frozen=True, slots=True)
class NewDtype:
    """A dtype named beside an untyped storage, for `_rebuild_tensor_v3`."""

    dtype: torch.dtype


class LoadPickle(Protocol):
    """Runs one pickle of data opcodes; returns its value and where it stopped."""

    def __call__(
        self,
        data: memoryview,
        start: int,
        *,
        table: GlobalTable,
        persistent_load: Callable[[object], object] | None,
    ) -> tuple[object, int]:
        """Parse the pickle that starts at byte `start` of `data`."""


def _storage_types() -> GlobalTable:
    typed = {
        "BFloat16Storage": torch.bfloat16,
        "BoolStorage": torch.bool,
        "ByteStorage": torch.uint8,
        "CharStorage": torch.int8,
        "ComplexDoubleStorage": torch.complex128,
        "ComplexFloatStorage": torch.complex64,
        "DoubleStorage": torch.float64,
        "FloatStorage": torch.float32,
        "HalfStorage": torch.float16,
        "IntStorage": torch.int32,
        "LongStorage": torch.int64,
        "ShortStorage": torch.int16,
    }
    table: dict[tuple[str, str], object] = {
        ("torch", name): StorageType(dtype, dtype.itemsize)
        for name, dtype in typed.items()
    }
    table["torch.storage", "UntypedStorage"] = StorageType(None, 1)
    return MappingProxyType(table)


STORAGE_TYPES: Final = _storage_types()

# torch 2.13 writes these through `_rebuild_tensor_v3` (and cannot read them back
# from a plain pickle itself: its legacy loader asks UntypedStorage for a dtype).
NEW_DTYPES: Final[GlobalTable] = MappingProxyType(
    {
        ("torch", name): NewDtype(getattr(torch, name))
        for name in (
            "uint16",
            "uint32",
            "uint64",
            "float8_e4m3fn",
            "float8_e4m3fnuz",
            "float8_e5m2",
            "float8_e5m2fnuz",
            "float8_e8m0fnu",
        )
    }
)

# Values are moved as plain bits, so that no NaN payload is ever normalised.
_BITS: Final = MappingProxyType(
    {
        1: torch.uint8,
        2: torch.int16,
        4: torch.int32,
        8: torch.int64,
        16: torch.complex128,
    }
)
_EMPTY: Final[GlobalTable] = MappingProxyType({})


def _exact(value: object, kind: type[T], what: str) -> T:
    """Narrow to exactly `kind`: a bool is no int, a subclass is not its base."""
    if type(value) is not kind:
        raise FormatError(
            f"{what} is of type {type(value).__name__}; {kind.__name__} is required"
        )
    return value


def _count(value: object, what: str) -> int:
    number = _exact(value, int, what)
    if not 0 <= number < _MAX_BYTES:
        raise FormatError(f"{what} is negative or beyond 2**62")
    return number


def _counts(value: object, what: str) -> tuple[int, ...]:
    numbers = _exact(value, tuple, what)
    if len(numbers) > _MAX_DIMS:
        raise FormatError(
            f"{what} has {len(numbers)} dimensions; at most {_MAX_DIMS} are allowed"
        )
    return tuple(_count(number, what) for number in numbers)


def _storage_ref(saved_id: object) -> StorageRef:
    """Check what BINPERSID names: ("storage", type, key, location, count, None)."""
    parts = _exact(saved_id, tuple, "persistent id")
    if len(parts) != 6 or type(parts[0]) is not str or parts[0] != "storage":
        raise FormatError("a persistent id names something other than a storage")
    if parts[5] is not None:
        raise FormatError("storage views are not allowed; torch stopped writing them")
    _exact(parts[3], str, "storage location")  # ignored: everything comes back on CPU
    kind = _exact(parts[1], StorageType, "storage type")
    key = _exact(parts[2], str, "storage key")
    return StorageRef(kind, key, _count(parts[4], "storage size"))


def _check_system(value: object) -> None:
    system = _exact(value, dict, "torch system info")
    if system.get("little_endian") is not True:
        raise FormatError("the storage was not written on a little-endian machine")


def _check_int(value: object, wanted: int, what: str) -> None:
    if _exact(value, int, what) != wanted:
        raise FormatError(f"{what} is not {wanted}")


def _check_keys(value: object, key: str) -> None:
    keys = _exact(value, list, "list of storage keys")
    if len(keys) != 1 or _exact(keys[0], str, "storage key") != key:
        raise FormatError("the storage keys are not exactly the one storage announced")


def _raw_bytes(payload: memoryview, start: int, ref: StorageRef) -> memoryview:
    """Check the count and the exact length of the bytes that end the payload."""
    header, raw = payload[start : start + 8], payload[start + 8 :]
    if len(header) < 8 or int.from_bytes(header, "little") != ref.count:
        raise FormatError(f"the storage's own count is not {ref.count} as announced")
    if len(raw) != ref.count * ref.kind.itemsize:
        raise FormatError(
            f"the storage holds {len(raw)} bytes; {ref.count} elements of "
            f"{ref.kind.itemsize} bytes were announced"
        )
    return raw


def parse_storage(payload: memoryview, *, load: LoadPickle) -> Storage:
    """Parse one storage in torch's legacy layout. Pure; copies nothing.

    The layout (`torch.serialization._legacy_save`): pickles of the magic number, the
    protocol, the system info, the storage, the list of its key; then the number of
    elements as int64 and the raw bytes, with nothing after them.

    Args:
        payload: the bytes given to `_load_from_bytes`.
        load: runs one of the small pickles.

    Returns:
        The storage; its data is a part of `payload`.

    Raises:
        FormatError: if anything differs from what torch writes for one storage.
    """

    def plain(start: int) -> tuple[object, int]:
        return load(payload, start, table=_EMPTY, persistent_load=None)

    magic, stop = plain(0)
    _check_int(magic, _MAGIC, "torch's magic number")
    protocol, stop = plain(stop)
    _check_int(protocol, _PROTOCOL, "torch's protocol")
    system, stop = plain(stop)
    _check_system(system)
    main, stop = load(payload, stop, table=STORAGE_TYPES, persistent_load=_storage_ref)
    ref = _exact(main, StorageRef, "content of a storage")
    keys, stop = plain(stop)
    _check_keys(keys, ref.key)
    return Storage(ref.kind.dtype, _raw_bytes(payload, stop, ref))


@dataclass(frozen=True, slots=True)
class View:
    """A strided view whose every element is known to lie inside its storage."""

    data: memoryview
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the contiguous copy."""
        return math.prod(self.size) * self.dtype.itemsize

    def copy(self) -> torch.Tensor:
        """Copy out a contiguous CPU tensor that owns its memory."""
        bits = torch.empty(self.size, dtype=_BITS[self.dtype.itemsize], device="cpu")
        if bits.numel():
            target = bits.numpy()
            np.copyto(target, self._source(target.dtype))
        return bits.view(self.dtype)

    def _source(self, bits: np.dtype[Any]) -> np.ndarray[Any, Any]:
        # The stride of an axis of length 1 is never used, and may be any number.
        strides = [
            step * bits.itemsize if length > 1 else 0
            for length, step in zip(self.size, self.stride, strict=True)
        ]
        start = self.offset * bits.itemsize
        return np.ndarray(self.size, bits, self.data, start, strides)


def _check_inside(view: View) -> None:
    spans = zip(view.size, view.stride, strict=True)
    last = view.offset + sum((length - 1) * step for length, step in spans)
    if (last + 1) * view.dtype.itemsize > len(view.data):
        raise FormatError(
            f"a tensor's last element {last} lies outside its storage of "
            f"{len(view.data) // view.dtype.itemsize}"
        )


def _view(parts: tuple[object, ...], dtype: torch.dtype, data: memoryview) -> View:
    """Check what both rebuild functions share: (offset, size, stride, grad, hooks)."""
    view = View(
        data,
        dtype,
        _count(parts[0], "storage offset"),
        _counts(parts[1], "tensor size"),
        _counts(parts[2], "tensor stride"),
    )
    _exact(parts[3], bool, "requires_grad")  # ignored: data comes back detached
    if _exact(parts[4], dict, "backward hooks"):
        raise FormatError("a tensor with backward hooks is not allowed")
    if len(view.size) != len(view.stride):
        raise FormatError("a tensor's size and stride differ in length")
    if math.prod(max(n, 1) for n in view.size) * dtype.itemsize > _MAX_BYTES:
        raise FormatError("a tensor's size is beyond 2**62 bytes")
    # Nothing of an empty tensor is read; torch leaves any offset in one.
    if 0 not in view.size:
        _check_inside(view)
    return view


def view_v2(args: tuple[object, ...]) -> View:
    """Check the arguments of `torch._utils._rebuild_tensor_v2`.

    Args:
        args: (storage, offset, size, stride, requires_grad, backward_hooks), offset
            and stride in elements.

    Returns:
        The view, bounds checked, nothing copied yet.

    Raises:
        FormatError: if an argument has another type, or the view leaves its storage.
    """
    if len(args) != 6:
        raise FormatError("_rebuild_tensor_v2 takes 6 arguments here, no metadata")
    storage = _exact(args[0], Storage, "storage")
    if storage.dtype is None:
        raise FormatError("_rebuild_tensor_v2 needs a typed storage")
    return _view(args[1:], storage.dtype, storage.data)


def view_v3(args: tuple[object, ...]) -> View:
    """Check the arguments of `torch._utils._rebuild_tensor_v3`.

    Args:
        args: as for `view_v2` over an untyped storage, then the dtype; offset and
            stride in elements of that dtype.

    Returns:
        The view, bounds checked, nothing copied yet.

    Raises:
        FormatError: if an argument has another type, or the view leaves its storage.
    """
    if len(args) != 7:
        raise FormatError("_rebuild_tensor_v3 takes 7 arguments here, no metadata")
    storage = _exact(args[0], Storage, "storage")
    if storage.dtype is not None:
        raise FormatError("_rebuild_tensor_v3 needs an untyped storage")
    dtype = _exact(args[6], NewDtype, "tensor dtype").dtype
    return _view(args[1:6], dtype, storage.data)
