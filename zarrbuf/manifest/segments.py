"""Segments: rows of the manifest as columns in an archive, readable as Zarr.

Pure; the sha256 of a segment is checked by who reads its bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from zarrbuf.archive.group import Archive, FieldArray, encode_archive
from zarrbuf.archive.spec import AnyArray
from zarrbuf.archive.zarr_json import check_spec, encode_json
from zarrbuf.errors import FormatError
from zarrbuf.manifest.columns import TextColumn
from zarrbuf.manifest.rows import (
    COLUMN_BOUNDS,
    FIXED_DTYPE,
    MAX_SEGMENT_ROWS,
    NUMBER_COLUMNS,
    TEXT_COLUMNS,
    Rows,
)

_BLOCK_ROWS: Final = 2048
MAX_TEXT_BYTES: Final = 1024
"""Of one string: a weights id of 200 characters, a shape, tags."""
MAX_SEGMENT_BYTES: Final = 256 << 20


def encode_segment(rows: Rows) -> bytes:
    """Encode rows as a segment, an archive of one-dimensional arrays."""
    arrays: dict[str, AnyArray] = {name: rows.column(name) for name in NUMBER_COLUMNS}
    arrays["uuid"] = np.frombuffer(rows.fixed["uuid"].tobytes(), np.uint8)
    for name, text in rows.texts.items():
        arrays[f"{name}.offsets"], arrays[f"{name}.bytes"] = text.pack()
    fields = {
        name: FieldArray((np.ascontiguousarray(array),), array.dtype.name)
        for name, array in arrays.items()
    }
    return encode_archive(fields, _segment_attributes(len(rows)), codec="zstd")


def _segment_attributes(num_rows: int) -> dict[str, Any]:
    return {"zarrbuf_segment": {"spec": 1, "rows": num_rows}}


def parse_segment(data: bytes, *, num_rows: int, name: str) -> Rows:
    """Read a segment.

    Args:
        data: the archive; its sha256 has been checked.
        num_rows: rows it must have.
        name: name of the file, for messages.

    Raises:
        FormatError: if it is not a segment of that many rows.
    """
    archive = Archive(data, name=name)
    attributes = archive.attributes
    if isinstance(attributes.get("zarrbuf_segment"), dict):
        check_spec(attributes["zarrbuf_segment"].get("spec"), where=name)
    if encode_json(attributes) != encode_json(_segment_attributes(num_rows)):
        raise FormatError(f"{name}: its attributes are {attributes!r:.200}")
    found = {field: (info.shape, info.dtype) for field, info in archive.arrays.items()}
    expected: dict[str, tuple[tuple[int, ...], str]] = {
        column: ((num_rows,), FIXED_DTYPE[column].name) for column in NUMBER_COLUMNS
    }
    expected["uuid"] = ((16 * num_rows,), "uint8")
    for text in TEXT_COLUMNS:
        expected[f"{text}.offsets"] = ((num_rows + 1,), "int64")
        expected[f"{text}.bytes"] = found.get(f"{text}.bytes", ((), ""))
        shape, _ = expected[f"{text}.bytes"]
        if math.prod(shape) > num_rows * MAX_TEXT_BYTES:
            raise FormatError(
                f"{name}: column {text!r} has {math.prod(shape)} bytes; a string has "
                f"at most {MAX_TEXT_BYTES}"
            )
    if num_rows > MAX_SEGMENT_ROWS or found != expected:
        raise FormatError(f"{name}: not a segment of {num_rows} manifest rows")
    columns = {column: archive.read_array(column) for column in NUMBER_COLUMNS}
    texts = {text: _read_text(archive, text) for text in TEXT_COLUMNS}
    if (columns["num_samples"] != columns["T"] * columns["B"]).any():
        raise FormatError(f"{name}: num_samples is not T * B in every row")
    for column, (low, high) in COLUMN_BOUNDS.items():
        values = columns[column]
        if not low <= values.min(initial=low) <= values.max(initial=low) < high:
            raise FormatError(f"{name}: column {column!r} is out of range")
    if np.isin(texts["model_weights_id"].data, (0, ord("/"))).any():
        raise FormatError(f"{name}: a model_weights_id holds '/' or NUL")
    columns["uuid"] = archive.read_array("uuid").view("V16")
    return Rows(_interleave(columns, num_rows), texts)


def _interleave(columns: Mapping[str, AnyArray], num_rows: int) -> AnyArray:
    """Return columns as one structured array [num_rows]."""
    fixed = np.empty(num_rows, FIXED_DTYPE)
    # A few rows at a time, which stay in the processor's cache meanwhile.
    for start in range(0, num_rows, _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        for name, column in columns.items():
            fixed[name][block] = column[block]
    return fixed


def _read_text(archive: Archive, name: str) -> TextColumn:
    offsets = archive.read_array(f"{name}.offsets")
    data = archive.read_array(f"{name}.bytes")
    if (
        data.dtype != np.uint8
        or data.ndim != 1
        or offsets[0] != 0
        or offsets[-1] != len(data)
        or (np.diff(offsets) < 0).any()
    ):
        raise FormatError(f"{archive.name}: column {name!r} is no column of strings")
    return TextColumn.unpack(offsets, data)
