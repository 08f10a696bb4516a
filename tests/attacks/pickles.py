"""Hostile pickles: `ATTACKS` maps a name to a builder of bytes.

Each must end in `FormatError`. A builder gets a shell command that leaves a trace
if it ever runs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from attacks.pickle_parts import (
    ENCODE,
    HOOKS,
    LIE,
    LOAD,
    ORDERED,
    REBUILD,
    Builder,
    call,
    dict_of,
    fixed,
    frame,
    list_of,
    name,
    number,
    numbers,
    numpy_dtype,
    proto,
    raw_bytes,
    stack_name,
    storage,
    storage_id,
    stored,
    system_call,
    tensor,
    text,
    tuple_of,
    value,
)
from attacks.pickle_tensors import torch_attacks


def _opcode_attacks() -> Iterator[tuple[str, Builder]]:
    posix = name("posix", "system")
    yield "reduce_system", lambda c: value(system_call(c))
    yield (
        "reduce_system_protocol_2",
        lambda c: proto(dict_of(a=system_call(c)), 2),
    )
    yield (
        "reduce_system_stack_global",
        lambda c: value(call(stack_name("os", "system"), text(c))),
    )
    yield "inst", lambda c: value(b"(" + text(c) + b"iposix\nsystem\n")
    yield "obj", lambda c: value(b"(" + posix + text(c) + b"o")
    yield "newobj", lambda c: value(posix + tuple_of(text(c)) + b"\x81")
    yield "newobj_ex", lambda c: value(posix + tuple_of(text(c)) + b"}\x92")
    yield "obj_of_allowed", fixed(value(b"(" + ORDERED + b"o"))
    yield "newobj_of_allowed", fixed(value(ORDERED + b")\x81"))
    yield "newobj_ex_of_allowed", fixed(value(ORDERED + b")}\x92"))
    yield "ext1", fixed(value(b"\x82\x01"))
    yield "ext2", fixed(value(b"\x83\x01\x00"))
    yield "ext4", fixed(value(b"\x84\x01\x00\x00\x00"))
    yield "persid", fixed(value(b"P1\n"))
    yield "binpersid_outside_torch", fixed(value(storage_id(kind=b"N")))
    yield (
        "build_kwdefaults",
        lambda c: value(
            LOAD
            + tuple_of(b"N", dict_of(__kwdefaults__=dict_of(a=text(c))))
            + b"b"
            + tuple_of(raw_bytes(proto(system_call(c))))
            + b"R"
        ),
    )
    yield "build_globals", fixed(value(REBUILD + dict_of(__globals__=b"}") + b"b"))
    yield "build_on_tensor", fixed(value(tensor() + dict_of(data=b"N") + b"b"))
    yield "build_on_dict", lambda c: value(dict_of() + dict_of(a=text(c)) + b"b")


def _data_opcode_attacks() -> Iterator[tuple[str, Builder]]:
    yield "empty_set", fixed(value(b"\x8f"))
    yield "additems", fixed(value(b"](K\x01\x90"))
    yield "frozenset", fixed(value(b"(K\x01\x91"))
    yield "bytearray8", fixed(value(b"\x96" + struct.pack("<Q", 1) + b"x"))
    yield "next_buffer", fixed(value(b"\x97"))
    yield "readonly_buffer", fixed(value(b"N\x98"))
    yield "text_int", fixed(value(b"I1\n"))
    yield "text_long", fixed(value(b"L1L\n"))
    yield "text_float", fixed(value(b"F1.0\n"))
    yield "text_string", fixed(value(b"S'a'\n"))
    yield "text_unicode", fixed(value(b"Va\n"))
    yield "text_memo", fixed(value(b"Np0\ng0\n"))
    yield "binary_string", fixed(value(b"U\x01a"))
    yield "pop", fixed(value(b"NN0"))
    yield "pop_mark", fixed(value(b"N(1"))
    yield "dup", fixed(value(b"N2"))
    yield "list_from_mark", fixed(value(b"(l"))
    yield "dict_from_mark", fixed(value(b"(d"))
    yield "second_proto", fixed(value(b"\x80\x04N"))
    yield "unknown_opcode", fixed(value(b"\xff"))


def _name_attacks() -> Iterator[tuple[str, Builder]]:
    utils = "torch._utils"
    dotted = "_rebuild_tensor_v2.__globals__"
    yield "dotted_stack_global", fixed(value(stack_name(utils, dotted)))
    yield "dotted_global", fixed(value(name(utils, dotted)))
    yield "dotted_module", fixed(value(stack_name("torch", "_utils._rebuild_tensor")))
    yield "dotted_codecs", fixed(value(stack_name("_codecs", "encode.__self__")))
    yield "builtins_getattr", fixed(value(name("builtins", "getattr")))
    yield (
        "builtins_exec",
        lambda c: value(
            call(name("builtins", "exec"), text(f"import os; os.system({c!r})"))
        ),
    )
    yield (
        "getattr_of_allowed",
        lambda c: value(
            call(
                call(name("builtins", "getattr"), REBUILD, text("__globals__")),
                text(c),
            )
        ),
    )
    yield (
        "copyreg_reconstructor",
        fixed(value(name("copyreg", "_reconstructor"))),
    )
    yield "python2_builtin", fixed(value(name("__builtin__", "eval")))
    yield "torch_load", fixed(value(name("torch", "load")))
    yield "import_this", fixed(value(name("this", "s")))
    yield "case_differs", fixed(value(name("Torch._utils", "_rebuild_tensor_v2")))
    yield "trailing_space", fixed(value(name("torch._utils ", "_rebuild_tensor_v2")))
    yield "storage_type_outside", fixed(value(name("torch", "FloatStorage")))
    yield "name_never_ends", fixed(value(b"c" + b"a" * 300))
    yield "name_not_utf8", fixed(value(b"c\xff\xfe\nx\n"))
    yield "name_is_a_list", fixed(value(text("torch") + b"]\x93"))
    yield "module_is_a_number", fixed(value(b"K\x01" + text("x") + b"\x93"))
    yield "escape_in_name", fixed(value(stack_name("\x1b[2J", "\x1b]0;x\x07")))


def _call_attacks() -> Iterator[tuple[str, Builder]]:
    args = tuple_of(text("a"))
    yield "call_a_string", fixed(value(text("a") + args + b"R"))
    yield "call_a_dict", fixed(value(b"}" + args + b"R"))
    yield "call_a_dtype", fixed(value(name("torch", "uint16") + args + b"R"))
    yield "call_a_storage", fixed(value(stored() + args + b"R"))
    yield "call_a_tensor", fixed(value(tensor() + args + b"R"))
    yield "args_are_a_list", fixed(value(ORDERED + b"]R"))
    yield "args_are_none", fixed(value(ORDERED + b"NR"))
    yield (
        "ordered_dict_with_args",
        fixed(value(call(ORDERED, list_of(tuple_of(text("a"), b"N"))))),
    )
    for codec in ("rot13", "zlib", "hex", "utf-8", "unicode_escape", "LATIN1", ""):
        data = value(call(ENCODE, text("abc"), text(codec)))
        yield f"encode_{codec or 'empty'}", fixed(data)
    yield "encode_default_codec", fixed(value(call(ENCODE, text("abc"))))
    yield (
        "encode_with_errors",
        fixed(value(call(ENCODE, text("abc"), text("latin1"), text("ignore")))),
    )
    yield (
        "encode_beyond_255",
        fixed(value(call(ENCODE, text("\u20ac"), text("latin1")))),
    )
    yield (
        "encode_bytes",
        fixed(value(call(ENCODE, raw_bytes(b"abc"), text("latin1")))),
    )
    yield "load_text", fixed(value(call(LOAD, text("abc"))))
    yield "load_nothing", fixed(value(call(LOAD)))
    yield "load_two", fixed(value(call(LOAD, raw_bytes(b""), raw_bytes(b""))))
    yield "load_empty", fixed(value(call(LOAD, raw_bytes(b""))))


def _laughs(open_: bytes, close: bytes) -> bytes:
    """Ten references to ten references to ... : 10**9 values in 300 bytes."""
    layers = [b"]q\x00"]
    for level in range(1, 10):
        refs = b"h" + bytes([level - 1])
        layers.append(open_ + refs * 10 + close + b"q" + bytes([level]))
    return list_of(*layers)


def _many_expands() -> bytes:
    """Small tensors of 32 MiB each, out of one storage of 16 bytes."""
    first = tensor(
        source=stored() + b"q\x01",
        size=numbers(1 << 23) + b"q\x02",
        stride=numbers(0) + b"q\x03",
    )
    more = call(REBUILD, b"h\x01", number(0), b"h\x02", b"h\x03", b"\x89", HOOKS)
    return value(list_of(first, more * 50))


def _many_encodes() -> bytes:
    text_once = text("a" * (1 << 20)) + b"q\x01"
    again = call(ENCODE, b"h\x01", text("latin1"))
    return value(list_of(text_once, again * 2000))


def _many_loads() -> bytes:
    """One payload parsed again and again through the memo."""
    first = LOAD + b"q\x01" + raw_bytes(storage()) + b"\x85q\x02R"
    return value(list_of(first, b"h\x01h\x02R" * 50_000))


def _budget_attacks() -> Iterator[tuple[str, Builder]]:
    yield "laughs_lists", lambda _c: value(_laughs(b"](", b"e"))
    yield "laughs_tuples", lambda _c: value(_laughs(b"(", b"t"))
    yield "deep_lists", lambda _c: value(b"]" * 50_000 + b"a" * 49_999)
    yield "deep_tuples", lambda _c: value(b")" + b"\x85" * 190_000)
    yield "deep_marks", lambda _c: value(b"(" * 99_000 + b"t" * 99_000)
    yield "deep_dicts", lambda _c: value((b"}K\x01") * 40_000 + b"N" + b"s" * 40_000)
    yield "too_many_marks", lambda _c: value(b"(" * 2_000_000)
    yield "too_many_nodes", lambda _c: value(list_of(b"N" * 2_000_000))
    yield "too_many_dicts", lambda _c: value(list_of(b"}" * 2_000_000))
    yield "too_many_memos", lambda _c: value(list_of(b"]\x94" * 200_000))
    yield "many_expands", lambda _c: _many_expands()
    yield "many_encodes", lambda _c: _many_encodes()
    yield "many_loads", lambda _c: _many_loads()
    yield "list_in_itself", fixed(value(b"]q\x00h\x00a"))
    yield "list_twice_in_itself", fixed(value(b"]q\x00(h\x00h\x00e"))
    yield "dict_in_itself", fixed(proto(b"}q\x00" + text("a") + b"h\x00s"))
    yield "tuple_in_its_list", fixed(value(b"]q\x00h\x00\x85a"))
    yield "memo_index_huge", fixed(value(b"Nr\xff\xff\xff\xff"))
    yield "memo_unset", fixed(value(b"h\x05"))
    yield "memo_unset_long", fixed(value(b"j\xff\xff\xff\xff"))
    yield "memo_of_nothing", fixed(proto(b"q\x00N"))
    yield "memo_of_mark", fixed(value(b"(q\x00t"))
    yield "text_too_long", lambda _c: value(text("a" * ((1 << 20) + 1)))
    colliding = b"".join(number(i * ((1 << 61) - 1)) + b"N" for i in range(20_000))
    yield "colliding_int_keys", fixed(value(b"}(" + colliding + b"u"))


def _length_attacks() -> Iterator[tuple[str, Builder]]:
    huge = struct.pack("<Q", LIE)
    full = b"\xff" * 8
    for label, opcode in (
        ("binbytes8", b"\x8e"),
        ("binunicode8", b"\x8d"),
        ("frame", b"\x95"),
    ):
        yield f"{label}_huge", fixed(proto(opcode + huge + b"N"))
        yield f"{label}_all_ones", fixed(proto(opcode + full + b"N"))
    yield "binbytes_huge", fixed(value(b"B\xff\xff\xff\xff"))
    yield "binunicode_huge", fixed(value(b"X\xff\xff\xff\xff"))
    yield "short_binbytes_long", fixed(proto(b"C\xffN"))
    yield "long1_long", fixed(proto(b"\x8a\xffN"))
    yield "long4_huge", fixed(value(b"\x8b\xff\xff\xff\x7f"))
    yield "long4_negative", fixed(value(b"\x8b\xff\xff\xff\xff"))
    yield "long4_small", fixed(value(b"\x8b\x01\x00\x00\x00\x05"))
    yield "frame_in_frame", fixed(proto(frame(frame(b"}") + b"."))[:-1])
    yield "frame_cuts_argument", fixed(proto(b"\x95" + struct.pack("<Q", 1) + b"K\x01"))
    yield "frame_beyond_stop", fixed(proto(frame(b"}.}"))[:-1])
    yield "text_not_utf8", fixed(value(b"X\x02\x00\x00\x00\xc3\x28"))
    yield "text_surrogate", fixed(value(text("\ud800")))


def _shape_attacks() -> Iterator[tuple[str, Builder]]:
    yield "empty_file", fixed(b"")
    yield "only_proto", fixed(b"\x80\x04")
    yield "only_stop", fixed(proto(b""))
    yield "protocol_0", fixed(b"(dp0\n.")
    yield "protocol_1", fixed(b"}q\x00.")
    yield "protocol_6", fixed(proto(b"}", 6))
    yield "trailing_byte", fixed(proto(b"}") + b"\x00")
    yield "trailing_pickle", lambda c: proto(b"}") + value(system_call(c))
    yield "two_values", fixed(proto(b"}}"))
    yield "open_mark", fixed(proto(b"(}"))
    for label, body in (
        ("list", b"]"),
        ("tuple", b")"),
        ("none", b"N"),
        ("int", b"K\x01"),
        ("text", text("a")),
        ("tensor", tensor()),
        ("function", REBUILD),
    ):
        yield f"top_level_{label}", fixed(proto(body))


def _dict_attacks() -> Iterator[tuple[str, Builder]]:
    for label, key in (
        ("none", b"N"),
        ("bool", b"\x88"),
        ("float", b"G" + bytes(8)),
        ("tuple", b")"),
        ("list", b"]"),
        ("bytes", raw_bytes(b"a")),
        ("function", ORDERED),
        ("tensor", tensor()),
        ("large_int", number(1 << 40)),
    ):
        yield f"key_{label}", fixed(value(b"}" + key + b"Ns"))
    yield "top_level_key_int", fixed(proto(b"}K\x01Ns"))
    yield "key_twice", fixed(proto(b"}(" + (text("a") + b"N") * 2 + b"u"))
    yield "key_twice_setitem", fixed(proto(b"}" + (text("a") + b"Ns") * 2))
    yield "key_without_value", fixed(proto(b"}(" + text("a") + b"u"))
    yield "items_of_a_list", fixed(value(b"](" + text("a") + b"Nu"))
    yield "append_to_a_tuple", fixed(value(b")Na"))
    yield "appends_to_a_dict", fixed(value(b"}(Ne"))
    for label, body in (
        ("long_bytes", raw_bytes(bytes((1 << 20) + 1))),
        ("numpy_dtype", numpy_dtype()),
        ("storage", stored()),
        ("function", REBUILD),
        ("dtype", name("torch", "uint16")),
    ):
        yield f"leaf_{label}", fixed(value(body))
        yield f"leaf_{label}_in_list", fixed(value(list_of(body)))
    for opcode in b"aesut\x85\x86\x87Rqr\x94Q\x93":
        yield f"empty_stack_0x{opcode:02x}", fixed(proto(bytes([opcode]) + b"\x00" * 4))


def _numpy_attacks() -> Iterator[tuple[str, Builder]]:
    scalar = name("numpy._core.multiarray", "scalar")
    four = raw_bytes(bytes(4))
    for label, code in (
        ("object", "O"),
        ("void", "V4"),
        ("text", "U1"),
        ("sub", "2f4"),
    ):
        kind = numpy_dtype(text(code))
        yield f"numpy_{label}", fixed(value(call(scalar, kind, four)))
    state = [number(3), text("<"), b"N", b"N", b"N", number(-1), number(-1), number(0)]
    for place, other in (
        (0, number(4)),
        (0, b"\x88"),
        (1, text(">")),
        (1, b"N"),
        (2, tuple_of(numpy_dtype(), tuple_of(number(LIE)))),
        (3, tuple_of(text("a"))),
        (4, dict_of(a=b"N")),
        (5, number(LIE)),
        (7, number(1)),
    ):
        changed = tuple_of(*state[:place], other, *state[place + 1 :])
        kind = numpy_dtype() + changed + b"b"
        yield (
            f"numpy_state_{place}_{len(other)}",
            fixed(value(call(scalar, kind, four))),
        )
    yield "numpy_state_short", fixed(value(numpy_dtype() + tuple_of(*state[:7]) + b"b"))
    yield "numpy_state_no_tuple", fixed(value(numpy_dtype() + b"Nb"))
    for label, arguments in (
        ("short", (numpy_dtype(), raw_bytes(bytes(3)))),
        ("long", (numpy_dtype(), raw_bytes(bytes(8)))),
        ("text", (numpy_dtype(), text("abcd"))),
        ("torch_dtype", (name("torch", "uint16"), raw_bytes(bytes(2)))),
        ("nothing", ()),
        ("more", (numpy_dtype(), four, four)),
    ):
        yield f"numpy_scalar_{label}", fixed(value(call(scalar, *arguments)))
    some_bytes = call(name("__builtin__", "bytes"), number(LIE))
    yield "bytes_of_a_number", fixed(value(some_bytes))
    yield "numpy_dtype_alone", fixed(value(call(name("numpy", "dtype"), text("f4"))))
    yield "numpy_ndarray", fixed(value(call(name("numpy", "ndarray"), numbers(LIE))))
    for label, target in (
        ("dict", b"}"),
        ("scalar", call(scalar, numpy_dtype(), four)),
    ):
        yield f"build_{label}", fixed(value(target + tuple_of(*state) + b"b"))


def _table() -> dict[str, Builder]:
    table: dict[str, Builder] = {}
    for attacks in (
        _opcode_attacks(),
        _data_opcode_attacks(),
        _name_attacks(),
        _call_attacks(),
        _numpy_attacks(),
        torch_attacks(),
        _budget_attacks(),
        _length_attacks(),
        _shape_attacks(),
        _dict_attacks(),
    ):
        for label, builder in attacks:
            if label in table:
                raise ValueError(f"two attacks are called {label}")
            table[label] = builder
    return table


ATTACKS = _table()
