"""Checks of single arguments. Pure; each names the argument and what is allowed."""

from __future__ import annotations

import operator
from typing import SupportsIndex

from zarrbuf.errors import InvalidInputError


def check_whole_number(
    name: str, value: SupportsIndex | float, *, minimum: int = 0, maximum: int = 2**40
) -> int:
    """Return `value` as an int, if it is a whole number from `minimum` to `maximum`.

    A float that is whole is a number: configurations are full of them.

    Raises:
        InvalidInputError: otherwise.
    """
    number = as_whole_number(value)
    if number is None or not minimum <= number <= maximum:
        raise InvalidInputError(
            f"{name} is {value!r}; a whole number from {minimum} to {maximum} is needed"
        )
    return number


def check_interval(name: str, value: float | None) -> float | None:
    """Return seconds that are a number above 0, or None.

    Raises:
        InvalidInputError: for anything else, naming the argument.
    """
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < 1e9:
        raise InvalidInputError(f"{name} is {value!r}; seconds above 0 are needed")
    return float(value)


def check_seed(value: SupportsIndex | float) -> int:
    """Return `value` as an int, if torch's generators take it.

    Raises:
        InvalidInputError: otherwise.
    """
    number = as_whole_number(value)
    if number is None or not -(2**63) <= number < 2**64:
        raise InvalidInputError(
            f"seed is {value!r}; a whole number of 64 bits or None is needed"
        )
    return number


def as_whole_number(value: object) -> int | None:
    """Return a value as an int, if it is a whole number; a float may be one."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():  # NumPy's float64 is a float
        return int(value)
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
