"""Values that are no tensors, as JSON and back, each as it was.

Owns how the JSON in a trajectory's attributes stands for what JSON has no word for. A
dict with one key that starts with `$` stands for such a value; a key of the caller's
that starts with `$` has one more.

    {"$float": "nan"}            nan, inf, -inf
    {"$bytes": "<base64>"}
    {"$tuple": [...]}
    {"$numpy": ["<f4", "<base64>"]}    a NumPy scalar, little-endian
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from zarrbuf.errors import InvalidInputError

NUMPY_SCALARS: Final = (
    *(np.bool_, np.int8, np.int16, np.int32, np.int64),
    *(np.uint8, np.uint16, np.uint32, np.uint64),
    *(np.float16, np.float32, np.float64, np.complex64, np.complex128),
)
"""NumPy scalars that can be stored."""
ALLOWED: Final = (
    "None, bool, str, bytes, float, 64-bit int, NumPy numbers, and lists, tuples and "
    "dicts of these"
)
_MARK: Final = "$"
_ODD_FLOATS: Final = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_NUMPY_DTYPES: Final = {np.dtype(one).newbyteorder("<").str for one in NUMPY_SCALARS}


def to_json(value: Any, name: str) -> Any:
    """Return a value as JSON.

    Args:
        value: of the allowed kinds, nested as deep as Python can follow.
        name: of the value, for errors.

    Raises:
        InvalidInputError: naming what is of another kind, and what is allowed.
    """
    try:
        return _to_json(value, name)
    except RecursionError as exc:
        raise InvalidInputError(
            f"{name} is nested too deep or holds itself; it cannot be stored"
        ) from exc


def to_json_key(key: str) -> str:
    """Return a key of the caller's as it stands in the JSON."""
    return f"{_MARK}{key}" if key.startswith(_MARK) else key


def from_json(value: Any) -> Any:
    """Return what `to_json` was given, sharing nothing with the JSON.

    Raises:
        ValueError: if it is not what `to_json` makes.
    """
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((key, item),) = value.items()
        if re.match(r"\$(?!\$)", key):
            return _from_marked(key, item)
    return {_from_json_key(key): from_json(item) for key, item in value.items()}


def _to_json(value: Any, name: str) -> Any:
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int and -(2**63) <= value < 2**64:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"$float": str(value)}
    if type(value) is bytes:
        return {"$bytes": _to_text(value)}
    if type(value) in NUMPY_SCALARS:
        little = np.asarray(value, value.dtype.newbyteorder("<"))
        return {"$numpy": [little.dtype.str, _to_text(little.tobytes())]}
    if type(value) in (list, tuple):
        items = [_to_json(item, f"{name}[{n}]") for n, item in enumerate(value)]
        return items if type(value) is list else {"$tuple": items}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {
            to_json_key(key): _to_json(item, f"{name}[{key!r}]")
            for key, item in value.items()
        }
    raise InvalidInputError(
        f"{name} is {value!r:.60} ({type(value).__name__}), which cannot be stored; "
        f"allowed are tensors, {ALLOWED}"
    )


def _from_marked(key: str, item: Any) -> Any:
    if key == "$float" and isinstance(item, str) and item in _ODD_FLOATS:
        return _ODD_FLOATS[item]
    if key == "$bytes":
        return _to_bytes(item)
    if key == "$tuple" and isinstance(item, list):
        return tuple(map(from_json, item))
    if key == "$numpy" and isinstance(item, list) and len(item) == 2:
        name, text = item
        data = _to_bytes(text)
        if str(name) in _NUMPY_DTYPES and len(data) == np.dtype(name).itemsize:
            native = np.frombuffer(data, name).astype(np.dtype(name).newbyteorder("="))
            return native[0]
    raise ValueError(f"a value that is no tensor has the form {{{key!r:.40}: ...}}")


def _from_json_key(key: str) -> str:
    if not key.startswith(_MARK):
        return key
    if not key.startswith(2 * _MARK):
        raise ValueError(f"a dict of plain values has the key {key!r:.40}")
    return key[len(_MARK) :]


def _to_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _to_bytes(text: Any) -> bytes:
    if not isinstance(text, str):
        raise ValueError(f"bytes are written as {text!r:.40}, which is no base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise ValueError(f"bytes are written as {text!r:.40}, no base64") from exc
