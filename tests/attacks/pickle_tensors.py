"""Attacks on torch's part of a pickle: the storage's layout and the rebuilt view."""

from __future__ import annotations

import io
from collections.abc import Iterator

import torch
from attacks.pickle_parts import (
    HOOKS,
    LIE,
    LOAD,
    MAGIC,
    REBUILD,
    Builder,
    call,
    dict_of,
    fixed,
    list_of,
    name,
    number,
    numbers,
    proto,
    raw_bytes,
    storage,
    storage_id,
    stored,
    system_call,
    tensor,
    text,
    tuple_of,
    value,
)


def changed_tensor(**changes: bytes) -> Builder:
    """An attack that is `tensor` with one thing changed."""
    return lambda _command: value(tensor(**changes))


def changed_storage(**changes: object) -> Builder:
    """An attack that is `tensor` over a storage with one thing changed."""
    return lambda _command: value(tensor(source=stored(**changes)))


def _new_layout() -> bytes:
    file = io.BytesIO()
    torch.save(torch.zeros(2), file)
    return file.getvalue()


def _layout_attacks() -> Iterator[tuple[str, Builder]]:
    nested = call(LOAD, raw_bytes(storage()))
    yield "nested_load_from_bytes", changed_storage(main=nested)
    yield (
        "nested_load_in_magic",
        changed_storage(magic=proto(nested, 2)),
    )
    for part in ("magic", "protocol", "system", "keys"):
        yield (
            f"system_call_in_{part}",
            lambda c, part=part: changed_storage(**{part: proto(system_call(c))})(c),
        )
    yield "system_call_in_main", lambda c: changed_storage(main=system_call(c))(c)
    yield (
        "system_call_in_storage_type",
        lambda c: changed_storage(main=storage_id(kind=system_call(c)))(c),
    )
    yield "zip_layout", lambda _c: value(call(LOAD, raw_bytes(_new_layout())))
    yield "storage_magic", changed_storage(magic=proto(number(MAGIC + 1), 2))
    yield "storage_magic_text", changed_storage(magic=proto(text("x"), 2))
    yield "storage_protocol", changed_storage(protocol=proto(number(1002), 2))
    yield "storage_protocol_true", changed_storage(protocol=proto(b"\x88", 2))
    yield (
        "storage_big_endian",
        changed_storage(system=proto(dict_of(little_endian=b"\x89"), 2)),
    )
    yield "storage_no_endian", changed_storage(system=proto(b"}", 2))
    yield "storage_system_list", changed_storage(system=proto(b"]", 2))


def _id_attacks() -> Iterator[tuple[str, Builder]]:
    yield "storage_is_a_dict", changed_storage(main=dict_of(a=storage_id()))
    yield "storage_is_none", changed_storage(main=b"N")
    yield (
        "storage_view",
        changed_storage(
            main=storage_id(view=tuple_of(text("8"), number(0), number(2)))
        ),
    )
    yield (
        "storage_view_outside",
        changed_storage(
            main=storage_id(view=tuple_of(text("8"), number(-9), number(LIE)))
        ),
    )
    yield "storage_tag_module", changed_storage(main=storage_id(tag=text("module")))
    yield "storage_tag_bytes", changed_storage(main=storage_id(tag=raw_bytes(b"s")))
    yield "storage_key_int", changed_storage(main=storage_id(key=number(7)))
    yield "storage_location_int", changed_storage(main=storage_id(location=b"N"))
    yield "storage_kind_text", changed_storage(main=storage_id(kind=text("Float")))
    for kind in ("QInt8Storage", "Storage", "FloatTensor"):
        part = storage_id(kind=name("torch", kind))
        yield f"storage_kind_{kind}", changed_storage(main=part)
    yield "storage_id_short", changed_storage(main=tuple_of(text("storage")) + b"Q")
    yield "storage_id_text", changed_storage(main=text("storage") + b"Q")


def _length_attacks() -> Iterator[tuple[str, Builder]]:
    yield "storage_keys_empty", changed_storage(keys=proto(b"]", 2))
    yield "storage_keys_other", changed_storage(keys=proto(list_of(text("8")), 2))
    yield "storage_keys_int", changed_storage(keys=proto(list_of(number(7)), 2))
    yield (
        "storage_keys_two",
        changed_storage(keys=proto(list_of(text("7"), text("7")), 2)),
    )
    yield "storage_keys_tuple", changed_storage(keys=proto(tuple_of(text("7")), 2))
    for count in (3, 5, -1, LIE, -(1 << 63)):
        yield f"storage_count_{count}", changed_storage(count=count)
        part = storage_id(count=number(count))
        yield f"storage_announced_{count}", changed_storage(main=part)
    yield (
        "storage_both_counts_lie",
        changed_storage(main=storage_id(count=number(LIE)), count=LIE),
    )
    yield "storage_count_true", changed_storage(main=storage_id(count=b"\x88"))
    yield "storage_data_short", changed_storage(data=bytes(15))
    yield "storage_data_none", changed_storage(data=b"")
    yield "storage_trailing", changed_storage(data=bytes(17))
    yield "storage_whole_twice", changed_storage(data=bytes(16) + storage())


def _tensor_attacks() -> Iterator[tuple[str, Builder]]:
    for offset in (1, 4, -1, LIE, 1 << 63, 1 << 200):
        yield f"offset_{offset}", changed_tensor(offset=number(offset))
    for size in ((3, 2), (-1, 2), (2, -2), (LIE, 1), (1 << 61, 8), (1 << 70, 2)):
        yield f"size_{size[0]}_{size[1]}", changed_tensor(size=numbers(*size))
    for stride in ((3, 1), (2, 2), (-2, 1), (LIE, 1), (1 << 63, 1)):
        yield f"stride_{stride[0]}", changed_tensor(stride=numbers(*stride))
    yield "offset_true", changed_tensor(offset=b"\x89")
    yield "offset_float", changed_tensor(offset=b"G" + bytes(8))
    yield "size_list", changed_tensor(size=list_of(number(2), number(2)))
    yield "size_of_text", changed_tensor(size=tuple_of(text("2"), text("2")))
    yield "size_of_bool", changed_tensor(size=tuple_of(b"\x88", b"\x88"))
    yield "size_longer", changed_tensor(size=numbers(2, 2, 1))
    yield "stride_longer", changed_tensor(stride=numbers(2, 1, 1))
    yield (
        "dims_17",
        changed_tensor(size=numbers(*[1] * 17), stride=numbers(*[1] * 17)),
    )
    yield (
        "zero_times_huge",
        changed_tensor(size=numbers(0, 1 << 61, 1 << 61), stride=numbers(0, 0, 0)),
    )
    yield (
        "expand_huge",
        changed_tensor(size=numbers(1 << 20, 1 << 20), stride=numbers(0, 0)),
    )
    yield (
        "expand_beyond_int64",
        changed_tensor(size=numbers(*[1 << 40] * 4), stride=numbers(*[0] * 4)),
    )
    yield "grad_int", changed_tensor(grad=number(0))
    yield "hooks_none", changed_tensor(hooks=b"N")
    yield "hooks_filled", changed_tensor(hooks=dict_of(a=b"N"))
    yield "metadata", changed_tensor(more=dict_of(conj=b"\x88"))
    yield "storage_text", changed_tensor(source=text("x"))
    yield "storage_bytes", changed_tensor(source=raw_bytes(bytes(16)))
    yield "storage_tensor", changed_tensor(source=tensor())
    yield "rebuild_nothing", fixed(value(call(REBUILD)))
    untyped = storage_id(kind=name("torch.storage", "UntypedStorage"), count=number(16))
    whole = stored(main=untyped, count=16)
    yield "untyped_in_v2", changed_tensor(source=whole)
    args = (number(0), numbers(2), numbers(1), b"\x89", HOOKS)
    v3 = name("torch._utils", "_rebuild_tensor_v3")
    uint16 = name("torch", "uint16")
    yield "typed_in_v3", fixed(value(call(v3, stored(), *args, uint16)))
    yield "v3_without_dtype", fixed(value(call(v3, whole, *args)))
    yield "v3_dtype_text", fixed(value(call(v3, whole, *args, text("uint16"))))
    yield (
        "v3_unknown_dtype",
        fixed(value(call(v3, whole, *args, name("torch", "bits8")))),
    )
    outside = (number(15), *args[1:])
    yield "v3_outside", fixed(value(call(v3, whole, *outside, uint16)))


def torch_attacks() -> Iterator[tuple[str, Builder]]:
    """All of this module."""
    yield from _layout_attacks()
    yield from _id_attacks()
    yield from _length_attacks()
    yield from _tensor_attacks()
