"""The `zarr.json` documents: Zarr takes them; nothing but them is taken."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from zarrbuf.archive.spec import STORED_DTYPE, is_nested
from zarrbuf.archive.zarr_json import (
    CODECS,
    MAX_METADATA_BYTES,
    ArrayInfo,
    check_codec,
    check_spec,
    encode_array_metadata,
    encode_group_metadata,
    encode_json,
    parse_json,
    parse_node,
    time_dimension,
)
from zarrbuf.errors import FormatError, InvalidInputError, UnsupportedVersionError


@st.composite
def infos(draw: st.DrawFn) -> ArrayInfo:
    """Draw what an array's metadata may say."""
    staged = draw(st.booleans())
    num_dims = draw(st.integers(2 if staged else 0, 5))
    sizes = st.lists(st.integers(0, 70), min_size=num_dims, max_size=num_dims)
    shape = (*[2] * staged, *draw(sizes))
    codec: Any = draw(st.sampled_from(sorted(CODECS))) if shape else "none"
    has_time = len(shape) >= (3 if staged else 2)
    field = draw(st.sampled_from(("obs/x",) if staged else ("x", "a/b", "a/b/c")))
    has_time = has_time and not is_nested(field)
    times = ("time", "time_and_starts", "time_and_ends", "time_and_rest")
    times = times if has_time else ("time",)
    return ArrayInfo(
        field,
        shape,
        draw(st.sampled_from(sorted(STORED_DTYPE))),
        codec,
        0 if codec == "none" else draw(st.integers(0, 9)),
        draw(st.sampled_from(times)),
    )


@settings(deadline=None)
@given(infos())
def test_metadata_come_back(info: ArrayInfo) -> None:
    assert parse_node(encode_array_metadata(info), info.field) == info


def test_zarr_takes_every_dtype_and_codec(tmp_path: Path) -> None:
    for number, (dtype, stored) in enumerate(STORED_DTYPE.items()):
        for codec, level in CODECS.items():
            name = check_codec(codec)
            info = ArrayInfo("obs/x", (2, 9, 3, 70, 60), dtype, name, level)
            folder = tmp_path / f"{number}{codec}"
            folder.mkdir()
            (folder / "zarr.json").write_bytes(encode_array_metadata(info))
            array: Any = zarr.open_array(folder, mode="r")
            assert array.shape == info.shape
            assert array.dtype == stored
            assert array.chunks == (1, 1, 1, 70, 60)
            assert array.shards == info.shape
            assert array.metadata.dimension_names[:3] == ("stage", "time", "env")
            kept = {"torch_dtype": dtype} if stored != dtype else {}
            assert dict(array.attrs) == kept


def test_compression_follows_the_dtype() -> None:
    def blosc(dtype: str, codec: Any) -> dict[str, Any]:
        sharding = ArrayInfo("x", (3, 2), dtype, codec, 5).to_json()["codecs"][0]
        inner = sharding["configuration"]["codecs"]
        assert [entry["name"] for entry in inner] == ["bytes", "blosc", "crc32c"]
        assert sharding["configuration"]["index_codecs"][-1] == {"name": "crc32c"}
        assert sharding["configuration"]["index_location"] == "end"
        configuration: dict[str, Any] = inner[1]["configuration"]
        return configuration

    one = blosc("float8_e5m2", "lz4")
    assert (one["cname"], one["shuffle"], one["typesize"]) == ("lz4", "noshuffle", 1)
    two = blosc("bfloat16", "zstd")
    assert (two["cname"], two["shuffle"], two["typesize"]) == ("zstd", "shuffle", 2)
    none = ArrayInfo("x", (3, 2), "uint8", "none", 0).to_json()["codecs"][0]
    names = [entry["name"] for entry in none["configuration"]["codecs"]]
    assert names == ["bytes", "crc32c"]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value inside a document."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, item in items:
        yield (*path, key)
        yield from _places(item, (*path, key))


BASE = ArrayInfo("obs/x", (2, 700, 3, 90), "bfloat16", "lz4", 5)
LEGAL = {"shape", "dimension_names", "clevel", "cname", "attributes"}
"""Where another value may be another array's metadata."""


def _mutants() -> Iterator[tuple[tuple[Any, ...], Any]]:
    document = BASE.to_json()
    strange: tuple[Any, ...] = (
        None,
        True,
        0,
        7,
        -1,
        1.0,
        "",
        "other",
        "gzip",
        [],
        {},
        [1],
        {"a": 1},
    )
    for path in _places(document):
        for value in strange:
            mutant = copy.deepcopy(document)
            parent = mutant
            for key in path[:-1]:
                parent = parent[key]
            if encode_json(parent[path[-1]]) == encode_json(value):
                continue
            parent[path[-1]] = value
            yield path, mutant
        mutant = copy.deepcopy(document)
        parent = mutant
        for key in path[:-1]:
            parent = parent[key]
        del parent[path[-1]]
        yield path, mutant


def test_any_changed_value_is_refused_or_says_what_it_means() -> None:
    num_refused = 0
    for path, mutant in _mutants():
        try:
            info = parse_node(encode_json(mutant), "obs/x")
        except FormatError:
            num_refused += 1
            continue
        without_blosc = path[-2:] == ("codecs", 1)
        assert LEGAL & set(path) or without_blosc, path
        assert isinstance(info, ArrayInfo)
        assert encode_json(info.to_json()) == encode_json(mutant)
    assert num_refused > 500


@pytest.mark.parametrize("value", [None, [], {}, "", 0, False])
def test_a_key_more_is_refused(value: Any) -> None:
    document = BASE.to_json()
    for parent in (document, document["codecs"][0], document["chunk_grid"]):
        parent["storage_transformers"] = value
        with pytest.raises(FormatError, match=r"obs/x/zarr\.json"):
            parse_node(encode_json(document), "obs/x")
        del parent["storage_transformers"]
    assert parse_node(encode_json(document), "obs/x") == BASE


@pytest.mark.parametrize(
    "codec",
    [
        {"name": "gzip", "configuration": {"level": 5}},
        {"name": "zstd", "configuration": {"level": 0, "checksum": False}},
        {"name": "transpose", "configuration": {"order": [0]}},
        {"name": "numcodecs.pickle", "configuration": {}},
        {"name": "vlen-utf8", "configuration": {}},
    ],
)
def test_the_list_of_codecs_is_closed(codec: dict[str, Any]) -> None:
    for position in range(4):
        document = BASE.to_json()
        document["codecs"][0]["configuration"]["codecs"].insert(position, codec)
        with pytest.raises(FormatError, match="codecs"):
            parse_node(encode_json(document), "obs/x")
        document["codecs"] = [codec]
        with pytest.raises(FormatError, match=r"zarr\.json"):
            parse_node(encode_json(document), "obs/x")


def test_blosc_compressors_other_than_lz4_and_zstd_are_refused() -> None:
    for name in ("blosclz", "lz4hc", "zlib", "snappy"):
        document = encode_array_metadata(BASE).replace(b'"lz4"', f'"{name}"'.encode())
        with pytest.raises(FormatError, match=r"zarr\.json"):
            parse_node(document, "obs/x")


@pytest.mark.parametrize(
    ("field", "shape"),
    [
        ("obs/x", [3]),
        ("obs/x", [2, 3]),
        ("x", [2**39] * 32),
        ("x", [1] * 33),
        ("x", [-1, 2]),
        ("x", [True, 2]),
        ("x", [2**40, 1]),
        ("x", {"0": 1}),
        ("x", "12"),
    ],
)
def test_hostile_shapes_are_refused(field: str, shape: Any) -> None:
    document = ArrayInfo("x", (3, 2), "uint8", "lz4", 5).to_json()
    document["shape"] = shape
    with pytest.raises(FormatError, match=r"zarr\.json"):
        parse_node(encode_json(document), field)


def test_the_metadata_of_one_field_are_not_those_of_another() -> None:
    with pytest.raises(FormatError, match=r"obs/x/zarr\.json"):
        parse_node(
            encode_array_metadata(ArrayInfo("x", (2, 3, 4), "int8", "lz4", 5)), "obs/x"
        )


def test_groups_keep_attributes_and_nothing_else() -> None:
    attributes = {"a": [1, "ü", None], "zarrbuf": {"x": 1.5}}
    data = encode_group_metadata(attributes)
    assert parse_node(data, "g") == attributes
    assert parse_node(data, "") == attributes
    document = json.loads(data)
    changes: tuple[dict[str, Any], ...] = (
        {"zarr_format": 2},
        {"node_type": "other"},
        {"attributes": []},
        {"attributes": None},
        {"consolidated_metadata": None},
    )
    for change in changes:
        with pytest.raises(FormatError, match=r"g/zarr\.json"):
            parse_node(encode_json({**document, **change}), "g")
    for key in document:
        less = {name: value for name, value in document.items() if name != key}
        with pytest.raises(FormatError, match=r"zarr\.json"):
            parse_node(encode_json(less), "")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b"{} {}",
        b"{}x",
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":-1e999}',
        b'{"a":18446744073709551616}',
        b'{"a":-9223372036854775809}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":"\xff"}',
        b'{"a":"\\ud800"}',
        b'{"\\udfff":1}',
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
        b'{"a":' + b"[" * 64 + b"]" * 64 + b"}",
        b'{"a":' * 5000,
        b"[" * 100_000,
        b" " * (MAX_METADATA_BYTES + 1),
    ],
    ids=lambda data: repr(data[:24]),
)
def test_json_that_is_not_strict_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"^there: "):
        parse_json(data, where="there")


def test_json_up_to_the_limits_is_read() -> None:
    deep = b'{"a":' + b"[" * 63 + b"]" * 63 + b"}"
    assert encode_json(parse_json(deep, where="x")) == deep
    numbers = {"low": -(2**63), "high": 2**64 - 1, "tiny": 5e-324, "minus": -0.0}
    found = parse_json(encode_json(numbers), where="x")
    assert found == numbers
    assert math.copysign(1, found["minus"]) == -1
    brackets = {"a": '[{\\"' * 100, 'b\\"[': ["]" * 100]}
    assert parse_json(encode_json(brackets), where="x") == brackets
    pair = b'{"a":"\\ud83d\\ude00\\u0000"}'
    assert parse_json(pair, where="x") == {"a": "\U0001f600\0"}


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 65 + b'"' + b'\\"' * 1_000_000,
        b"[" * 65 + b'"' * 1_000_001,
        b"[" * 65 + b'"' + b"\\" * 1_000_001,
    ],
    ids=["escaped quotes", "quotes", "backslashes"],
)
def test_the_depth_of_strings_without_end_is_found_in_one_pass(data: bytes) -> None:
    # Quadratic time would take hours here.
    with pytest.raises(FormatError, match="deeper than 64"):
        parse_json(data, where="x")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_json_comes_back_and_is_canonical(value: dict[str, Any]) -> None:
    data = encode_json(value)
    assert encode_json(parse_json(data, where="x")) == data
    assert json.loads(data) == value
    turned = dict(reversed(value.items()))
    assert encode_json(turned) == data


@settings(deadline=None)
@given(st.binary(max_size=60) | st.text('{}[]":,\\0eE.-u').map(str.encode))
def test_any_bytes_give_an_object_or_a_format_error(data: bytes) -> None:
    try:
        value = parse_json(data, where="x")
    except FormatError:
        return
    assert json.loads(data) == value


@pytest.mark.parametrize("value", [0, -1, True, None, "1", 1.0, []])
def test_a_spec_is_a_whole_number(value: Any) -> None:
    with pytest.raises(FormatError, match="there: spec") as caught:
        check_spec(value, where="there")
    assert not isinstance(caught.value, UnsupportedVersionError)


def test_a_newer_spec_is_refused_by_name() -> None:
    check_spec(1, where="x")
    with pytest.raises(UnsupportedVersionError, match=r"there: spec 2 .* update"):
        check_spec(2, where="there")


def test_codecs_are_named_in_the_error() -> None:
    assert [check_codec(name) for name in CODECS] == ["lz4", "zstd", "none"]
    with pytest.raises(InvalidInputError, match=r"'gzip'.*lz4, zstd, none"):
        check_codec("gzip")


def test_a_time_axis_with_extra_rows_has_a_name_of_its_own() -> None:
    assert time_dimension("start", 4, 4) == "time"
    assert time_dimension("start", 5, 4) == "time_and_starts"
    assert time_dimension("end", 6, 4) == "time_and_ends"
    assert time_dimension("step", 4, 4) == "time"
    assert time_dimension("step", 6, 4) == "time_and_rest"
