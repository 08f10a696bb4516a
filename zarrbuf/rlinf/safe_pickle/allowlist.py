"""RLinf's `.pkl` files, read with nothing in them able to run.

Owns the table of the eight functions a file may call and the check of what comes
out. Bytes are run by `machine`, tensors rebuilt by `torch_legacy`. Must not
know paths or trajectories, and must never fall back to the `pickle` module or to
`torch.load`: an allowlist over either still runs what a file brings along.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

import torch

from zarrbuf.errors import FormatError
from zarrbuf.rlinf.safe_pickle.machine import (
    Call,
    GlobalTable,
    Job,
    LongText,
    PickleLimits,
    decode_utf8,
)
from zarrbuf.rlinf.safe_pickle.numpy_scalars import NUMPY_CALLS
from zarrbuf.rlinf.safe_pickle.torch_legacy import (
    NEW_DTYPES,
    Storage,
    View,
    parse_storage,
    view_v2,
    view_v3,
)
from zarrbuf.trajectory.plain_values import NUMPY_SCALARS

DEFAULT_LIMITS: Final = PickleLimits()


def _materialise(job: Job, view: View) -> torch.Tensor:
    job.spend_bytes(view.num_bytes)
    return view.copy()


class _RebuildTensorV2(Call):
    __slots__ = ()

    def __call__(self, job: Job, args: tuple[object, ...]) -> object:
        return _materialise(job, view_v2(args))


class _RebuildTensorV3(Call):
    __slots__ = ()

    def __call__(self, job: Job, args: tuple[object, ...]) -> object:
        return _materialise(job, view_v3(args))


class _LoadFromBytes(Call):
    __slots__ = ()

    def __call__(self, job: Job, args: tuple[object, ...]) -> object:
        if len(args) != 1 or not isinstance(args[0], bytes | memoryview):
            raise FormatError("_load_from_bytes takes one bytes object")
        return parse_storage(memoryview(args[0]), load=job.load)


class _OrderedDict(Call):
    __slots__ = ()

    def __call__(self, job: Job, args: tuple[object, ...]) -> object:
        if args:
            raise FormatError("OrderedDict takes no arguments here")
        return {}  # dicts keep their order; the result knows one kind of mapping


class _Encode(Call):
    """Protocol 2 has no opcode for bytes; Python writes them as latin-1 text."""

    __slots__ = ()

    def __call__(self, job: Job, args: tuple[object, ...]) -> object:
        if len(args) != 2 or type(args[1]) is not str or args[1] != "latin1":
            raise FormatError('_codecs.encode takes a text and "latin1" here')
        text = args[0]
        if isinstance(text, LongText):
            job.spend_bytes(len(text.utf8))
            text = decode_utf8(text.utf8)
        elif type(text) is str:
            job.spend_bytes(len(text))
        else:
            raise FormatError('_codecs.encode takes a text and "latin1" here')
        try:
            data = text.encode("latin-1")
        except UnicodeEncodeError as exc:
            raise FormatError("a bytes object holds characters beyond 255") from exc
        return data if len(data) <= job.limits.max_text_bytes else memoryview(data)


class _NoBytes(Call):
    """Protocol 2 writes b"" as a call of `bytes`."""

    __slots__ = ()

    def __call__(self, job: Job, args: tuple[object, ...]) -> object:
        if args:
            raise FormatError("bytes takes no arguments here")
        return b""


_TABLE: Final[GlobalTable] = MappingProxyType(
    {
        **NEW_DTYPES,
        ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensorV2(),
        ("torch._utils", "_rebuild_tensor_v3"): _RebuildTensorV3(),
        ("torch.storage", "_load_from_bytes"): _LoadFromBytes(),
        ("collections", "OrderedDict"): _OrderedDict(),
        ("_codecs", "encode"): _Encode(),
        ("__builtin__", "bytes"): _NoBytes(),
        **NUMPY_CALLS,
    }
)


_LEAVES: Final = frozenset(
    {int, str, bytes, bool, float, type(None), torch.Tensor, *NUMPY_SCALARS}
)
_SHOWN_AS: Final = MappingProxyType({memoryview: "long bytes", Storage: "storage"})


def _children(value: object) -> list[object]:
    if type(value) is dict:
        return list(value.values())  # keys were checked when they were set
    if type(value) is list or type(value) is tuple:
        return list(value)
    if isinstance(value, LongText):
        raise FormatError("a string is longer than allowed")
    kind = _SHOWN_AS.get(type(value), type(value).__name__)
    raise FormatError(f"a value of type {kind} is not allowed in the result")


def _check_result(root: object, job: Job) -> None:
    """Walk every path to every value, so that cycles and bombs meet a budget."""
    pending = [(root, 0)]
    while pending:
        value, depth = pending.pop()
        if type(value) in _LEAVES:
            continue
        if depth >= job.limits.max_depth:
            raise FormatError(
                f"nested deeper than {job.limits.max_depth}, or contains itself"
            )
        children = _children(value)
        job.spend_nodes(len(children))
        pending.extend((child, depth + 1) for child in children)


def _parse(data: memoryview, limits: PickleLimits) -> dict[str, Any]:
    job = Job(limits, len(data))
    root, stop = job.load(data, 0, table=_TABLE, persistent_load=None)
    if stop != len(data):
        raise FormatError(f"{len(data) - stop} bytes follow the end of the pickle")
    if type(root) is not dict or any(type(key) is not str for key in root):
        raise FormatError("the top level is not a dict with string keys")
    _check_result(root, job)
    return root


def parse_pickle(
    data: bytes | memoryview, *, name: str, limits: PickleLimits = DEFAULT_LIMITS
) -> dict[str, Any]:
    """Parse one of RLinf's `.pkl` files. Pure (no I/O); nothing in `data` ever runs.

    Args:
        data: the whole file, a pickle of protocol 2 to 5.
        name: the file's name, for messages.
        limits: budgets; raise them for files that are large and trusted.

    Returns:
        The dict, of int, str, bytes, None, bool, float, NumPy numbers, list, tuple,
        dict and tensors.
        Tensors are contiguous CPU copies, detached, bit-identical to what was
        written; they own their memory and keep nothing of `data` alive. An
        OrderedDict comes back as a dict.

    Raises:
        FormatError: if `data` is anything else; names the file and the rule.
    """
    view = memoryview(data).cast("B")
    try:
        return _parse(view, limits)
    except FormatError as exc:
        raise FormatError(f"{name!r} is not a pickle zarrbuf reads: {exc}") from exc
