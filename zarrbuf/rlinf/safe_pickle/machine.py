"""A stack machine over the data opcodes of pickle, with budgets that end it early.

Owns the opcodes, the framing, the memo and what a pickle may spend. It imports no
name that a pickle mentions and sets no attribute: the opcodes that would do so do
not exist here. A pickle may call only the `Call` objects of the table it is run
with. Must not know torch, files or trajectories; errors state the rule only, the
caller adds the file's name.
"""

from __future__ import annotations

import abc
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NoReturn

from zarrbuf.errors import FormatError

GlobalTable = Mapping[tuple[str, str], object]

_STOP: Final = ord(".")
_MAX_LINE_BYTES: Final = 128  # GLOBAL's two lines; the longest allowed name has 50
_CALL_NODES: Final = 50  # a call costs some 10 us, as much as this many opcodes


@dataclass(frozen=True, slots=True)
class PickleLimits:
    """Budgets of one file; the work done for it is bounded by them and its size.

    Attributes:
        max_nodes: opcodes run, in nested pickles too, plus values in the result
            counted along every path to them.
        max_depth: containers inside one another.
        max_memo: memo entries of one pickle.
        max_text_bytes: a string of the result, as UTF-8.
        max_bytes: tensor bytes made out of one file, whatever its size.
        spare_bytes: tensor bytes allowed beyond twice the file's size (expanded
            tensors take more room in memory than in the file).
    """

    max_nodes: int = 200_000
    max_depth: int = 32
    max_memo: int = 50_000
    max_text_bytes: int = 1 << 20
    max_bytes: int = 1 << 36
    spare_bytes: int = 1 << 26


@dataclass(frozen=True, slots=True)
class LongText:
    """A string too long for a name: undecoded, of use to `_codecs.encode` only."""

    utf8: memoryview


class Job:
    """What is left of the budgets while one file is parsed."""

    __slots__ = ("_bytes", "_nodes", "limits")

    def __init__(self, limits: PickleLimits, num_bytes: int) -> None:
        """Start with the whole budget of a file of `num_bytes` bytes."""
        self.limits = limits
        self._nodes = limits.max_nodes
        self._bytes = min(limits.max_bytes, 2 * num_bytes + limits.spare_bytes)

    def spend_nodes(self, count: int) -> None:
        """Take opcodes or values off the budget; FormatError when it is used up."""
        self._nodes -= count
        if self._nodes < 0:
            raise FormatError(
                f"more than {self.limits.max_nodes} opcodes and values are not allowed"
            )

    def spend_bytes(self, count: int) -> None:
        """Take memory off the budget before it is used; FormatError if too much."""
        self._bytes -= count
        if self._bytes < 0:
            raise FormatError(
                "the tensors take more memory than a file of this size may ask for"
            )

    def load(
        self,
        data: memoryview,
        start: int,
        *,
        table: GlobalTable,
        persistent_load: Callable[[object], object] | None,
    ) -> tuple[object, int]:
        """Run one pickle.

        Args:
            data: bytes that hold it, perhaps with more behind it.
            start: its first byte.
            table: the (module, name) pairs it may mention, exactly, and their values.
            persistent_load: what BINPERSID calls; None forbids that opcode.

        Returns:
            Its value and the position after its STOP.

        Raises:
            FormatError: if it holds any other opcode or name, or outruns a budget.
        """
        machine = _Machine(self, data, start, table, persistent_load)
        return machine.run(), machine.position


class Call(abc.ABC):
    """What REDUCE may call: no state, no attribute, no dict, so nothing to rewrite."""

    __slots__ = ()

    @abc.abstractmethod
    def __call__(self, job: Job, args: tuple[object, ...]) -> object:
        """Check `args`, of any type and number, and spend before using memory."""


class Fixed(abc.ABC):
    """What BUILD may be told of: it is what it is, and the state has to be its own."""

    __slots__ = ()

    @abc.abstractmethod
    def check_state(self, state: object) -> None:
        """Raise FormatError unless `state`, of any type, is the one it has."""


def decode_utf8(utf8: memoryview) -> str:
    """Decode strictly: lone surrogates are refused too."""
    try:
        return str(utf8, "utf-8")
    except UnicodeDecodeError as exc:
        raise FormatError("a string is not valid UTF-8") from exc


class _Machine:
    """One pickle being run: a stack, its marks and a memo, none of them shared."""

    __slots__ = (
        "_data",
        "_frame_stop",
        "_job",
        "_limit",
        "_marks",
        "_memo",
        "_persistent_load",
        "_stack",
        "_table",
        "position",
    )

    def __init__(
        self,
        job: Job,
        data: memoryview,
        start: int,
        table: GlobalTable,
        persistent_load: Callable[[object], object] | None,
    ) -> None:
        self._job = job
        self._data = data
        self._table = table
        self._persistent_load = persistent_load
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, object] = {}
        self._frame_stop: int | None = None
        self._limit = len(data)  # where the open frame ends, or the data
        self.position = start

    def run(self) -> object:
        """Run to STOP; `position` is then the byte after it."""
        header = self.take(2)
        if header[0] != 0x80 or not 2 <= header[1] <= 5:
            self.refuse("not a pickle of protocol 2 to 5")
        while True:
            opcode = self.next_opcode()
            self._job.spend_nodes(1)
            if opcode == _STOP:
                return self.finish()
            action = _ACTIONS.get(opcode)
            if action is None:
                self.refuse(f"opcode 0x{opcode:02x} is not allowed")
            action(self)

    def refuse(self, rule: str) -> NoReturn:
        raise FormatError(f"{rule} (near byte {self.position} of its pickle)")

    def finish(self) -> object:
        if self._marks or len(self._stack) != 1:
            self.refuse("a pickle must leave exactly one value")
        if self._frame_stop not in (None, self.position):
            self.refuse("a pickle ends inside a frame")
        return self._stack[0]

    def take(self, count: int) -> memoryview:
        """Take bytes as a view; a length that lies never becomes an allocation."""
        start, stop = self.position, self.position + count
        if stop > self._limit:
            self.refuse("cut short, or a length reaches beyond its frame")
        self.position = stop
        return self._data[start:stop]

    def unsigned(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def signed(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little", signed=True)

    def float64(self) -> float:
        number: float = struct.unpack(">d", self.take(8))[0]
        return number

    def text(self, width: int) -> str | LongText:
        utf8 = self.take(self.unsigned(width))
        if len(utf8) > self._job.limits.max_text_bytes:
            return LongText(utf8)
        return decode_utf8(utf8)

    def bytes_(self, width: int) -> bytes | memoryview:
        """Take a bytes object; a long one stays a view, of use to storages only."""
        data = self.take(self.unsigned(width))
        return data if len(data) > self._job.limits.max_text_bytes else bytes(data)

    def open_frame(self) -> None:
        length = self.unsigned(8)
        if self._frame_stop is not None or length > self._limit - self.position:
            self.refuse("a frame overlaps another or reaches beyond the data")
        self._frame_stop = self._limit = self.position + length

    def next_opcode(self) -> int:
        if self.position == self._frame_stop:
            self._frame_stop = None
            self._limit = len(self._data)
        if self.position >= self._limit:
            self.refuse("cut short")
        self.position += 1
        return self._data[self.position - 1]

    def push(self, value: object) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        if not self._stack:
            self.refuse("an opcode finds the stack empty")
        return self._stack.pop()

    def top(self) -> Any:
        if not self._stack:
            self.refuse("an opcode finds the stack empty")
        return self._stack[-1]

    def mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def pop_marked(self) -> list[Any]:
        if not self._marks:
            self.refuse("an opcode finds no mark")
        items, self._stack = self._stack, self._marks.pop()
        return items

    def push_tuple(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def put(self, index: int) -> None:
        if index >= self._job.limits.max_memo:
            self.refuse(f"a memo index is not below {self._job.limits.max_memo}")
        self._memo[index] = self.top()

    def get(self, index: int) -> None:
        if index not in self._memo:
            self.refuse("a memo index is read before it is written")
        self.push(self._memo[index])

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is not list:
            self.refuse("appending to something other than a list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is not dict or len(items) % 2:
            self.refuse("setting items of something other than a dict, or half a pair")
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.check_key(key)
            if key in target:
                self.refuse("a dict has a key twice")
            target[key] = value

    def check_key(self, key: object) -> None:
        # Bounded, because ints hash to themselves: keys that differ by 2**61 - 1 all
        # collide and would make filling a dict take quadratic time.
        if type(key) is not str and not (
            type(key) is int and -(1 << 31) <= key < 1 << 31
        ):
            self.refuse("a dict key is not a string or an int of 32 bits")

    def line(self) -> str:
        window = bytes(self._data[self.position : self.position + _MAX_LINE_BYTES])
        length = window.find(b"\n")
        if length < 0:
            self.refuse("a global's name does not end")
        return decode_utf8(self.take(length + 1)[:-1])

    def find_global(self, module: object, name: object) -> None:
        if type(module) is not str or type(name) is not str:
            self.refuse("a global is not named by two strings")
        found = self._table.get((module, name))
        if found is None:
            self.refuse(f"global {module[:80]!a} {name[:80]!a} is not allowed")
        self.push(found)

    def push_named_global(self) -> None:
        name, module = self.pop(), self.pop()
        self.find_global(module, name)

    def reduce(self) -> None:
        args, call = self.pop(), self.pop()
        if not isinstance(call, Call) or type(args) is not tuple:
            self.refuse("REDUCE on something other than an allowed function")
        self._job.spend_nodes(_CALL_NODES)
        self.push(call(self._job, args))

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if not isinstance(target, Fixed):
            self.refuse("BUILD on something other than a NumPy dtype")
        target.check_state(state)

    def push_persistent(self) -> None:
        if self._persistent_load is None:
            self.refuse("persistent ids are allowed in torch's storages only")
        self.push(self._persistent_load(self.pop()))


# Data opcodes only; BUILD compares and sets nothing. Left out for good: whatever
# imports, instantiates or sets state (INST, OBJ, NEWOBJ, NEWOBJ_EX, EXT1, EXT2, EXT4,
# PERSID), and what RLinf's files have no use for (sets, text-mode numbers, LONG4, POP,
# DUP, out-of-band buffers).
_ACTIONS: Final[Mapping[int, Callable[[_Machine], None]]] = MappingProxyType(
    {
        0x95: _Machine.open_frame,
        ord("N"): lambda m: m.push(None),
        0x88: lambda m: m.push(True),
        0x89: lambda m: m.push(False),
        ord("K"): lambda m: m.push(m.unsigned(1)),
        ord("M"): lambda m: m.push(m.unsigned(2)),
        ord("J"): lambda m: m.push(m.signed(4)),
        0x8A: lambda m: m.push(m.signed(m.unsigned(1))),  # LONG1
        ord("G"): lambda m: m.push(m.float64()),
        0x8C: lambda m: m.push(m.text(1)),  # SHORT_BINUNICODE
        ord("X"): lambda m: m.push(m.text(4)),
        0x8D: lambda m: m.push(m.text(8)),  # BINUNICODE8
        ord("C"): lambda m: m.push(m.bytes_(1)),
        ord("B"): lambda m: m.push(m.bytes_(4)),
        0x8E: lambda m: m.push(m.bytes_(8)),  # BINBYTES8
        ord("("): _Machine.mark,
        ord(")"): lambda m: m.push(()),
        ord("]"): lambda m: m.push([]),
        ord("}"): lambda m: m.push({}),
        ord("t"): lambda m: m.push(tuple(m.pop_marked())),
        0x85: lambda m: m.push_tuple(1),
        0x86: lambda m: m.push_tuple(2),
        0x87: lambda m: m.push_tuple(3),
        ord("a"): lambda m: m.append([m.pop()]),
        ord("e"): lambda m: m.append(m.pop_marked()),
        ord("s"): lambda m: m.set_items([m.pop(), m.pop()][::-1]),
        ord("u"): lambda m: m.set_items(m.pop_marked()),
        ord("q"): lambda m: m.put(m.unsigned(1)),
        ord("r"): lambda m: m.put(m.unsigned(4)),
        0x94: lambda m: m.put(len(m._memo)),  # MEMOIZE
        ord("h"): lambda m: m.get(m.unsigned(1)),
        ord("j"): lambda m: m.get(m.unsigned(4)),
        ord("c"): lambda m: m.find_global(m.line(), m.line()),
        0x93: _Machine.push_named_global,
        ord("R"): _Machine.reduce,
        ord("b"): _Machine.build,
        ord("Q"): _Machine.push_persistent,
    }
)
