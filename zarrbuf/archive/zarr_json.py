"""The `zarr.json` documents of an archive: written canonically, read strictly.

Pure. An array's document follows from five facts (shape, dtype, torch dtype, codec,
level), so reading is: take the facts, write the document anew, compare. Whatever
differs is refused, which keeps the list of codecs that a reader meets closed.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from zarrbuf.archive.spec import (
    SPEC,
    STORED_DTYPE,
    ChunkGrid,
    Rows,
    chunk_grid,
    is_nested,
    is_staged,
)
from zarrbuf.errors import FormatError, InvalidInputError, UnsupportedVersionError

CodecName = Literal["lz4", "zstd", "none"]
CODECS: Final[Mapping[str, int]] = {"lz4": 5, "zstd": 1, "none": 0}
"""Codec name -> compression level that is written."""
METADATA_NAME: Final = "zarr.json"
MAX_METADATA_BYTES: Final = 16 << 20
_MAX_DEPTH: Final = 64
_CRC32C: Final = {"name": "crc32c"}


def check_codec(codec: str) -> CodecName:
    """Return `codec` if it is one that can be written.

    Raises:
        InvalidInputError: otherwise, naming those that can.
    """
    if codec not in CODECS:
        raise InvalidInputError(
            f"codec {codec!r} is not known; allowed are {', '.join(CODECS)}"
        )
    return codec  # type: ignore[return-value]


@dataclass(frozen=True)
class ArrayInfo:
    """What an array's metadata says.

    Attributes:
        field: path of the array in the group.
        shape: shape of the array.
        dtype: torch dtype name; the stored dtype is `STORED_DTYPE[dtype]`.
        codec: "lz4", "zstd" or "none".
        level: compression level, 0 to 9.
        time_name: name of the time dimension.
    """

    field: str
    shape: tuple[int, ...]
    dtype: str
    codec: CodecName
    level: int
    time_name: str = "time"

    @functools.cached_property
    def stored(self) -> np.dtype[Any]:
        """The dtype of the stored array."""
        return np.dtype(STORED_DTYPE[self.dtype])

    @functools.cached_property
    def staged(self) -> bool:
        """Whether the first axis is the stage axis."""
        return is_staged(self.field)

    @functools.cached_property
    def grid(self) -> ChunkGrid:
        """How the array is cut; an array without dimensions is one chunk."""
        if not self.shape:
            return ChunkGrid((), ())
        return chunk_grid(self.shape, self.stored.itemsize, staged=self.staged)

    @functools.cached_property
    def chunk_bytes(self) -> int:
        """Bytes of one decoded chunk."""
        return int(np.prod(self.grid.inner, dtype=object)) * self.stored.itemsize

    @property
    def is_empty(self) -> bool:
        """Whether the array has no element, and so no shard."""
        return 0 in self.shape

    @property
    def shard_name(self) -> str:
        """Name of the member that holds the shard."""
        return "/".join([self.field, "c", *("0" for _ in self.shape)])

    @property
    def metadata_name(self) -> str:
        """Name of the member that holds the metadata."""
        return f"{self.field}/{METADATA_NAME}"

    def to_json(self) -> dict[str, Any]:
        """Return the array's `zarr.json`."""
        document: dict[str, Any] = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": STORED_DTYPE[self.dtype],
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": list(self.grid.outer)},
            },
            "chunk_key_encoding": {
                "name": "default",
                "configuration": {"separator": "/"},
            },
            "fill_value": _fill_value(self.stored),
            "codecs": self._codecs(),
            "attributes": {},
            "dimension_names": _dimension_names(self),
        }
        if STORED_DTYPE[self.dtype] != self.dtype:
            document["attributes"] = {"torch_dtype": self.dtype}
        return document

    def _codecs(self) -> list[dict[str, Any]]:
        # zarr-python 3.1 cannot shard an array without dimensions.
        if not self.shape:
            return [_bytes_codec(self.stored), _CRC32C]
        inner = [_bytes_codec(self.stored), *self._compressor(), _CRC32C]
        return [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": list(self.grid.inner),
                    "codecs": inner,
                    "index_codecs": [_bytes_codec(np.dtype("uint64")), _CRC32C],
                    "index_location": "end",
                },
            }
        ]

    def _compressor(self) -> list[dict[str, Any]]:
        if self.codec == "none":
            return []
        itemsize = self.stored.itemsize
        return [
            {
                "name": "blosc",
                "configuration": {
                    "cname": self.codec,
                    "clevel": self.level,
                    "shuffle": "noshuffle" if itemsize == 1 else "shuffle",
                    "typesize": itemsize,
                    "blocksize": 0,
                },
            }
        ]


def time_dimension(rows: Rows, num_rows: int, num_steps: int) -> str:
    """Name the time axis; one with extra rows has a name, so a size, of its own."""
    if num_rows == num_steps:
        return "time"
    return "time_and_rest" if rows == "step" else f"time_and_{rows}s"


def _dimension_names(info: ArrayInfo) -> list[str]:
    """Name every axis; those of one field only after it, so that sizes may differ.

    A name left out would be one name for all (None) to tools such as xarray, which
    then refuse a group where such axes have different sizes.
    """
    ndim = len(info.shape)
    lead = ["stage"] * info.staged + [info.time_name, "env"]
    is_whole = ndim < len(lead) or is_nested(info.field)
    named = [] if is_whole else lead
    leaf = info.field.rpartition("/")[2]
    return [*named, *(f"{leaf}_{axis}" for axis in range(ndim - len(named)))]


def _bytes_codec(dtype: np.dtype[Any]) -> dict[str, Any]:
    if dtype.itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


def _fill_value(dtype: np.dtype[Any]) -> Any:
    return {"b": False, "f": 0.0, "c": [0.0, 0.0]}.get(dtype.kind, 0)


def encode_json(value: Any) -> bytes:
    """Encode a value as canonical JSON: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(
        value,
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
    ).encode()


def parse_json(data: bytes, *, where: str) -> dict[str, Any]:
    """Parse one JSON object as strictly as hostile input asks for.

    Args:
        data: the bytes, UTF-8.
        where: what they were read from, for the message.

    Raises:
        FormatError: for anything but one object without duplicate keys, NaN,
            numbers beyond 64 bits or nesting deeper than 64.
    """
    if len(data) > MAX_METADATA_BYTES:
        raise FormatError(
            f"{where}: {len(data)} bytes of JSON; at most "
            f"{MAX_METADATA_BYTES} are allowed"
        )
    _check_depth(data, where=where)
    try:
        value = _JSON.decode(data.decode())
        if _SURROGATE.search(data):
            encode_json(value)  # fails for half a surrogate pair
    except (ValueError, RecursionError) as exc:
        raise FormatError(f"{where}: no valid JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise FormatError(f"{where}: must be a JSON object, not {value!r:.40}")
    return value


def _check_depth(data: bytes, *, where: str) -> None:
    """Refuse deep nesting before the parser recurses."""
    if data.count(b"{") + data.count(b"[") <= _MAX_DEPTH:
        return
    codes = np.frombuffer(_JSON_STRING.sub(b"", data), np.uint8)
    steps = np.isin(codes, (0x5B, 0x7B)).astype(np.int64)
    steps -= np.isin(codes, (0x5D, 0x7D))
    if int(steps.cumsum().max(initial=0)) > _MAX_DEPTH:
        raise FormatError(f"{where}: JSON nested deeper than {_MAX_DEPTH}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object names a key twice")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not allowed")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:24]} is beyond a 64-bit float")
    return value


def _bounded_int(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (value := int(text)) < 2**64:
        raise ValueError(f"the number {text[:24]} is beyond 64 bits")
    return value


# A string that never ends runs to the end of the data: linear for any input.
_JSON_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_JSON: Final = json.JSONDecoder(
    object_pairs_hook=_unique_keys,
    parse_constant=_refuse_constant,
    parse_int=_bounded_int,
    parse_float=_finite_float,
)


@functools.lru_cache(maxsize=4096)
def encode_array_metadata(info: ArrayInfo) -> bytes:
    """Return the bytes of an array's `zarr.json`."""
    return encode_json(info.to_json())


def encode_group_metadata(attributes: Mapping[str, Any]) -> bytes:
    """Return the bytes of a group's `zarr.json`."""
    return encode_json(
        {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}
    )


def _parse_group(document: dict[str, Any], where: str) -> dict[str, Any]:
    attributes = document.get("attributes")
    if (
        set(document) != {"zarr_format", "node_type", "attributes"}
        or document["zarr_format"] != 3
        or document["node_type"] != "group"
        or not isinstance(attributes, dict)
    ):
        raise FormatError(f"{where}: not the metadata of a Zarr v3 group")
    return attributes


def parse_node(data: bytes, path: str) -> ArrayInfo | dict[str, Any]:
    """Read the `zarr.json` of the array or group at `path`.

    Args:
        data: the bytes of the member.
        path: path of the node in the archive, "" for the root.

    Returns:
        What an array's metadata says, or the attributes of a group.

    Raises:
        FormatError: if the document is not one that the format prescribes.
    """
    # Trajectories of one schema and shape share these bytes: 14 documents take
    # 1.5 ms to check and nothing to find again.
    return _parse_node_cached(data, path) if path else _parse_node(data, path)


def _parse_node(data: bytes, path: str) -> ArrayInfo | dict[str, Any]:
    where = f"{path}/{METADATA_NAME}" if path else METADATA_NAME
    document = parse_json(data, where=where)
    if document.get("node_type") == "array":
        return _parse_array(document, path, where)
    return _parse_group(document, where)


_parse_node_cached = functools.lru_cache(maxsize=4096)(_parse_node)


def _parse_array(document: dict[str, Any], field: str, where: str) -> ArrayInfo:
    try:
        info = _array_facts(document, field)
        expected = info.to_json()
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as exc:
        raise FormatError(f"{where}: not the metadata of a zarrbuf array") from exc
    for key in sorted(set(document) | set(expected)):
        found = document.get(key)
        if key not in expected or encode_json(found) != encode_json(expected.get(key)):
            raise FormatError(
                f"{where}: {key} is {found!r:.300}; "
                f"the format prescribes {expected.get(key)!r:.300}"
            )
    return info


def _array_facts(document: dict[str, Any], field: str) -> ArrayInfo:
    shape = document["shape"]
    if len(shape) > 32 or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise ValueError("shape")
    dtype = document["attributes"].get("torch_dtype", document["data_type"])
    names = document["dimension_names"]
    position = 1 if is_staged(field) else 0
    is_whole = len(names) < position + 2 or is_nested(field)
    time_name = "time" if is_whole else names[position]
    if dtype not in STORED_DTYPE or time_name not in _TIME_NAMES:
        raise ValueError("dtype or dimension")
    codec, level = _codec_facts(document["codecs"])
    return ArrayInfo(field, tuple(shape), dtype, codec, level, time_name)


_TIME_NAMES: Final = ("time", "time_and_starts", "time_and_ends", "time_and_rest")


def _codec_facts(codecs: list[dict[str, Any]]) -> tuple[CodecName, int]:
    if codecs[0]["name"] != "sharding_indexed":
        return "none", 0
    inner = codecs[0]["configuration"]["codecs"]
    if inner[1]["name"] != "blosc":
        return "none", 0
    name, level = (inner[1]["configuration"][key] for key in ("cname", "clevel"))
    if name not in ("lz4", "zstd") or type(level) is not int or not 0 <= level <= 9:
        raise ValueError("codec")
    return name, level


def check_spec(value: Any, *, where: str) -> None:
    """Check a `spec` number.

    Raises:
        UnsupportedVersionError: if it is newer than this program.
        FormatError: if it is no spec number.
    """
    if type(value) is not int or value < 1:
        raise FormatError(f"{where}: spec is {value!r:.40}, a whole number from 1")
    if value > SPEC:
        raise UnsupportedVersionError(
            f"{where}: spec {value} is newer than this program, which reads up to "
            f"{SPEC}; update zarrbuf"
        )
