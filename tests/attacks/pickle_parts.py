"""Pickles assembled opcode by opcode, valid unless a part is replaced.

`tensor` and `storage` build what torch writes; an attack changes one thing in them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import torch

Builder = Callable[[str], bytes]

MAGIC = 0x1950A86A20F9469CFC6C
LIE = 1 << 40  # a length that no file here has


def proto(body: bytes, version: int = 4) -> bytes:
    """A whole pickle around `body`."""
    return b"\x80" + bytes([version]) + body + b"."


def text(value: str) -> bytes:
    """BINUNICODE."""
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    """LONG1."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def raw_bytes(value: bytes) -> bytes:
    """BINBYTES."""
    return b"B" + struct.pack("<I", len(value)) + value


def name(module: str, attribute: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{attribute}\n".encode()


def stack_name(module: str, attribute: str) -> bytes:
    """STACK_GLOBAL."""
    return text(module) + text(attribute) + b"\x93"


def tuple_of(*parts: bytes) -> bytes:
    """MARK, the parts, TUPLE."""
    return b"(" + b"".join(parts) + b"t"


def list_of(*parts: bytes) -> bytes:
    """EMPTY_LIST, MARK, the parts, APPENDS."""
    return b"](" + b"".join(parts) + b"e"


def dict_of(**parts: bytes) -> bytes:
    """EMPTY_DICT, MARK, the pairs, SETITEMS."""
    pairs = b"".join(text(key) + value for key, value in parts.items())
    return b"}(" + pairs + b"u"


def call(function: bytes, *args: bytes) -> bytes:
    """REDUCE."""
    return function + tuple_of(*args) + b"R"


def numbers(*values: int) -> bytes:
    """A tuple of ints."""
    return tuple_of(*(number(value) for value in values))


def numpy_dtype(code: bytes | None = None) -> bytes:
    """What NumPy writes of the dtype of a float32, without its state."""
    return call(name("numpy", "dtype"), code or text("f4"), b"\x89", b"\x88")


def value(body: bytes) -> bytes:
    """A whole pickle of {"a": body}."""
    return proto(dict_of(a=body))


REBUILD = name("torch._utils", "_rebuild_tensor_v2")
LOAD = name("torch.storage", "_load_from_bytes")
ORDERED = name("collections", "OrderedDict")
ENCODE = name("_codecs", "encode")
HOOKS = call(ORDERED)
SYSTEM_INFO = proto(
    dict_of(protocol_version=number(1001), little_endian=b"\x88", type_sizes=dict_of()),
    2,
)


def storage_id(
    *,
    tag: bytes | None = None,
    kind: bytes | None = None,
    key: bytes | None = None,
    location: bytes | None = None,
    count: bytes | None = None,
    view: bytes = b"N",
) -> bytes:
    """The persistent id of a storage of four float32, with BINPERSID."""
    return (
        tuple_of(
            tag or text("storage"),
            kind or name("torch", "FloatStorage"),
            key or text("7"),
            location or text("cpu"),
            count or number(4),
            view,
        )
        + b"Q"
    )


def storage(
    *,
    magic: bytes | None = None,
    protocol: bytes | None = None,
    system: bytes = SYSTEM_INFO,
    main: bytes | None = None,
    keys: bytes | None = None,
    count: int = 4,
    data: bytes = bytes(range(16)),
) -> bytes:
    """A storage of four float32 in torch's legacy layout."""
    return (
        (magic or proto(number(MAGIC), 2))
        + (protocol or proto(number(1001), 2))
        + system
        + proto(main or storage_id(), 2)
        + (keys or proto(list_of(text("7")), 2))
        + struct.pack("<q", count)
        + data
    )


def stored(**changes: object) -> bytes:
    """A call of `_load_from_bytes` on `storage(**changes)`."""
    return call(LOAD, raw_bytes(storage(**changes)))  # type: ignore[arg-type]


def tensor(
    *,
    source: bytes | None = None,
    offset: bytes | None = None,
    size: bytes | None = None,
    stride: bytes | None = None,
    grad: bytes = b"\x89",
    hooks: bytes | None = None,
    more: bytes = b"",
) -> bytes:
    """A call of `_rebuild_tensor_v2` that makes a float32 tensor [2, 2]."""
    return call(
        REBUILD,
        source or stored(),
        offset or number(0),
        size or numbers(2, 2),
        stride or numbers(2, 1),
        grad,
        hooks or HOOKS,
        more,
    )


def fixed(data: bytes) -> Builder:
    """An attack that runs no command."""
    return lambda _command: data


def system_call(command: str) -> bytes:
    """os.system(command), the pickle everybody knows."""
    return call(name("posix", "system"), text(command))


def frame(body: bytes) -> bytes:
    return b"\x95" + struct.pack("<Q", len(body)) + body


def small() -> dict[str, Any]:
    """A small dict of every kind of value that a file may hold."""
    return {
        "max_episode_length": 7,
        "model_weights_id": "w_3",
        "flags": [True, False, None, -1, 1.5, (1, 2), ()],
        "rewards": torch.arange(6, dtype=torch.float32).reshape(2, 3).t(),
        "curr_obs": {"main_images": torch.arange(8, dtype=torch.uint8)},
    }
