"""Conditions on rows of the manifest, written as text: `mean_return > 3 and T == 64`.

Pure: Python's own grammar parses them, and only comparisons, arithmetic and logic are
evaluated, over columns at once. What a row has no value for is in no comparison true.
"""

from __future__ import annotations

import ast
import functools
import json
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from zarrbuf.archive.spec import AnyArray
from zarrbuf.errors import InvalidInputError
from zarrbuf.manifest.rows import NO_LENGTH, IntArray, Rows

MAX_TEXT: Final = 4096
COLUMNS: Final = (
    "trajectory_id",
    "T",
    "B",
    "num_samples",
    "max_episode_length",
    "size",
    "version",
    "ts",
)
_TEXT_COLUMN: Final = "model_weights_id"
_COMPARE: Final[Mapping[type[ast.AST], Callable[[Any, Any], Any]]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ARITHMETIC: Final[Mapping[type[ast.AST], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}
BoolArray = npt.NDArray[np.bool_]


def select_where(rows: Rows, text: str) -> IntArray:
    """Return the positions of the rows for which a condition holds.

    Args:
        rows: all.
        text: names of columns (`trajectory_id`, `T`, `B`, `num_samples`, `size` in
            bytes, `model_weights_id`, `version`, `ts`, `max_episode_length`) and of
            tags, numbers, texts in quotes, `< <= > >= == != in`, `+ - * / %`,
            `and or not` and parentheses.

    Raises:
        InvalidInputError: pointing at what is not allowed.
    """
    condition = _Condition(rows, text)
    held = condition.evaluate()
    positions: IntArray = np.flatnonzero(held)
    return positions


class _Condition:
    """One condition over some rows."""

    def __init__(self, rows: Rows, text: str) -> None:
        self._rows = rows
        self._text = text
        if not text.strip() or len(text) > MAX_TEXT or "\n" in text.strip():
            raise InvalidInputError(
                f"condition {text!r:.80} is not allowed: one line of 1 to {MAX_TEXT} "
                "characters is needed"
            )

    @functools.cached_property
    def _tags(self) -> Tags:
        return Tags(self._rows)

    def evaluate(self) -> BoolArray:
        """Return for each row whether the condition holds."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd spelling, as 1if
                tree = ast.parse(self._text.strip(), mode="eval")
            return self._truth(tree.body)
        except SyntaxError as exc:
            end = len(self._text.strip())
            place = exc.offset - 1 if exc.offset else end
            raise self._error(exc.msg, place) from None
        except (RecursionError, MemoryError):
            raise self._error("nested too deep", 0) from None
        except ValueError as exc:
            if isinstance(exc, InvalidInputError):
                raise
            raise self._error(str(exc), 0) from None

    def _error(self, what: str, column: int) -> InvalidInputError:
        text = self._text.strip()
        shown, place = text[max(0, column) : column + 30], column + 1
        where = f"at character {place}, {shown!r}" if shown else "at its end"
        return InvalidInputError(f"condition {text!r:.200}: {what} {where}")

    def _wrong(self, node: ast.AST, what: str) -> InvalidInputError:
        # In bytes of UTF-8, of the only line.
        line = self._text.strip().encode()
        offset = getattr(node, "col_offset", 0)
        return self._error(what, len(line[:offset].decode(errors="replace")))

    def _truth(self, node: ast.expr) -> BoolArray:
        """Evaluate what has to be true or false for each row."""
        if isinstance(node, ast.BoolOp):
            parts = [self._truth(value) for value in node.values]
            is_and = isinstance(node.op, ast.And)
            join = np.logical_and if is_and else np.logical_or
            found: BoolArray = functools.reduce(join, parts)
            return found
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self._truth(node.operand)
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        value = self._value(node)
        if isinstance(value, bool):
            return np.full(len(self._rows), value)
        if isinstance(value, np.ndarray) and value.dtype == np.bool_:
            return value
        raise self._wrong(node, "a comparison is needed, such as T == 64,")

    def _comparison(self, node: ast.Compare) -> BoolArray:
        if len(node.ops) > 1 and any(
            isinstance(o, ast.In | ast.NotIn) for o in node.ops
        ):
            raise self._wrong(node, "'in' stands alone; join comparisons by 'and',")
        held = np.ones(len(self._rows), np.bool_)
        left = self._value(node.left)
        for op, right_node in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, ast.In | ast.NotIn):
                if not isinstance(right_node, ast.Tuple | ast.List):
                    raise self._wrong(right_node, "a list such as (1, 2) is needed")
                items = [self._value(item) for item in right_node.elts]
                found = np.zeros(len(self._rows), np.bool_)
                for item in items:
                    found |= self._compare(operator.eq, left, item, right_node)
                if isinstance(op, ast.NotIn):
                    found = ~found & _is_there(left, len(self._rows))
                held &= found
                continue
            if type(op) not in _COMPARE:
                raise self._wrong(node, "'is' is not allowed; write == or !=,")
            right = self._value(right_node)
            held &= self._compare(_COMPARE[type(op)], left, right, right_node)
            left = right
        return held

    def _compare(
        self, compare: Callable[[Any, Any], Any], left: Any, right: Any, node: ast.expr
    ) -> BoolArray:
        size = len(self._rows)
        if _is_text(left) != _is_text(right):
            raise self._wrong(node, "a text is compared with a number")
        held: BoolArray = np.zeros(size, np.bool_)
        there = _is_there(left, size) & _is_there(right, size)
        some = np.flatnonzero(there)
        a, b = (v[some] if isinstance(v, np.ndarray) else v for v in (left, right))
        try:
            held[some] = compare(a, b)
        except OverflowError:
            raise self._wrong(node, "a number is too large") from None
        return held

    def _value(self, node: ast.expr) -> Any:
        """Evaluate a number or text, one or one a row."""
        if isinstance(node, ast.Constant):
            if type(node.value) in (bool, int, float, str):
                return node.value
            raise self._wrong(node, "a number or a text is needed")
        if isinstance(node, ast.Name):
            return self._column(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            value = self._number(node.operand)
            return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            return self._arithmetic(node)
        if isinstance(node, ast.BoolOp | ast.Compare) or (
            isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)
        ):
            return self._truth(node)
        raise self._wrong(node, "this is not allowed")

    def _arithmetic(self, node: ast.BinOp) -> Any:
        left, right = self._number(node.left), self._number(node.right)
        with np.errstate(all="ignore"):
            try:
                value = _ARITHMETIC[type(node.op)](left, right)
            except (ZeroDivisionError, OverflowError) as exc:
                raise self._wrong(node, str(exc)) from None
        return value

    def _number(self, node: ast.expr) -> Any:
        value = self._value(node)
        if _is_text(value):
            raise self._wrong(node, "a number is needed")
        # As floats: a difference of two whole numbers may leave 64 bits.
        if isinstance(value, np.ndarray):
            return value.astype(float)
        try:
            return float(value)
        except OverflowError:
            raise self._wrong(node, "a number is too large") from None

    def _column(self, node: ast.Name) -> AnyArray:
        name = node.id
        if name == "max_episode_length":
            lengths = self._rows.column(name)
            return np.where(lengths == NO_LENGTH, np.nan, lengths)
        if name in COLUMNS:
            return self._rows.column(name)
        if name == _TEXT_COLUMN:
            return _texts(self._rows)
        tags = self._tags
        found = tags.column(name)
        if found is None and len(self._rows):
            known = ", ".join([*COLUMNS, _TEXT_COLUMN, *tags.names])
            raise self._wrong(node, f"no row has {name!r}; known are {known};")
        return np.zeros(0) if found is None else found


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, np.ndarray) and value.dtype == object
    )


def _is_there(value: Any, size: int) -> BoolArray:
    """Return for which rows there is a value."""
    if not isinstance(value, np.ndarray):
        return np.full(size, value == value)
    if value.dtype == object:
        return np.array([one is not None for one in value], np.bool_)
    return ~np.isnan(value) if value.dtype.kind == "f" else np.ones(size, np.bool_)


def _texts(rows: Rows) -> AnyArray:
    text = rows.texts[_TEXT_COLUMN]
    some, inverse = np.unique(text.numbers, return_inverse=True)
    distinct = [blob.decode(errors="replace") for blob in text.blobs(some)]
    found: AnyArray = np.array(distinct, object)[inverse]
    return found


class Tags:
    """The tags of some rows, parsed once."""

    def __init__(self, rows: Rows) -> None:
        """Parse each distinct text of tags; one that is none has no tag."""
        text = rows.texts["tags"]
        some, self._inverse = np.unique(text.numbers, return_inverse=True)
        self._parsed = _parse(text.blobs(some))

    @property
    def names(self) -> list[str]:
        """The names of all tags that a row has."""
        return sorted({name for tags in self._parsed for name in tags})

    def column(self, name: str) -> AnyArray | None:
        """Return the values of a tag: float64 with NaN, or texts with None, for none.

        Returns:
            [n], or None if no row has it. A tag that is a text in one row is one in
            all; numbers are none there.
        """
        values = [tags.get(name) for tags in self._parsed]
        kinds = set(map(type, values))
        if str in kinds:
            texts = [value if isinstance(value, str) else None for value in values]
            column: AnyArray = np.array(texts, object)
        elif kinds & {bool, int, float}:
            column = np.array([_number(value) for value in values])
        else:
            return None
        found: AnyArray = column[self._inverse]
        return found


def _number(value: Any) -> float:
    """Return a tag as a number, NaN if it is none; a segment may hold anything."""
    if type(value) is float:
        return value
    try:
        return float(value) if type(value) in (int, bool) else np.nan
    except OverflowError:
        return np.nan


def _parse(blobs: Sequence[bytes]) -> list[dict[str, Any]]:
    """Return the tags in each text: in one go, or one by one if one is malformed."""
    try:
        joined = b",".join(blob or b"{}" for blob in blobs)
        values = json.loads(b"[" + joined + b"]")
    except (ValueError, RecursionError):
        values = []
    if len(values) != len(blobs):
        values = [_parse_one(blob) for blob in blobs]
    return [value if isinstance(value, dict) else {} for value in values]


def _parse_one(blob: bytes) -> Any:
    try:
        return json.loads(blob or b"{}")
    except (ValueError, RecursionError):
        return None
