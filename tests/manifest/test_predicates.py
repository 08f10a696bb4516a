"""Conditions hold for the rows for which Python says so, and point at what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.trajectories import make_row

from zarrbuf.errors import InvalidInputError
from zarrbuf.manifest.predicates import select_where
from zarrbuf.manifest.rows import Rows

TAGS: list[dict[str, Any]] = [
    {"mean_return": 1.5, "success_rate": 1, "task": "lift"},
    {"mean_return": -2, "success_rate": 0.25, "task": "pick"},
    {},
    {"mean_return": 0, "is_demo": True},
    {"mean_return": None, "is_demo": False, "task": "ü"},
]
ROWS = Rows.of(
    [
        make_row(n, num_steps=10 + n, tags=tags, model_weights_id=f"w_{n // 2}")
        for n, tags in enumerate(TAGS)
    ]
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mean_return > 0", [0]),
        ("mean_return <= 0", [1, 3]),
        ("not mean_return <= 0", [0, 2, 4]),
        ("mean_return != 0", [0, 1]),
        ("-1 < mean_return < 2", [0, 3]),
        ("T == 12 or success_rate == 1", [0, 2]),
        ("T >= 11 and T < 13", [1, 2]),
        ("T * 2 - 20 == 2", [1]),
        ("T % 2 == 0", [0, 2, 4]),
        ("1 / (T - 10) > 0.4", [0, 1, 2]),  # inf is a number
        ("trajectory_id in (1, 3, 77)", [1, 3]),
        ("trajectory_id not in [1, 3]", [0, 2, 4]),
        ("mean_return not in (0,)", [0, 1]),
        ("task == 'pick'", [1]),
        ("task != 'pick'", [0, 4]),
        ('task in ("lift", "ü")', [0, 4]),
        ("model_weights_id == 'w_1'", [2, 3]),
        ("model_weights_id < 'w_1'", [0, 1]),
        ("is_demo == True", [3]),
        ("is_demo == 0", [4]),
        ("(T > 10) == True", [1, 2, 3, 4]),
        ("True", [0, 1, 2, 3, 4]),
        ("  T > 13\n", [4]),
    ],
)
def test_a_condition_holds_where_it_should(text: str, expected: list[int]) -> None:
    assert select_where(ROWS, text).tolist() == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "1 to 4096 characters"),
        ("T = 3", r"at character 3, '= 3'"),
        ("T > > 3", r"invalid syntax at character 5, '> 3'"),
        ("T > 3 and (B", r"never closed at character 11, '\(B'"),
        ("T > 3 and", "at its end"),
        ("T", "a comparison is needed.* at character 1"),
        ("B > 1 and T + 1", "a comparison is needed.* at character 11"),
        ("T > 1 and size > yards", r"no row has 'yards'.*mean_return.*character 18"),
        ("task > 3", "a text is compared with a number at character 8"),
        ("T == 'x'", "a text is compared with a number at character 6"),
        ("task + 1 > 3", "a number is needed at character 1"),
        ("task == 'ü' and no_such == 1", "character 17, 'no_such"),
        ("T.real > 3", "this is not allowed at character 1"),
        ("__import__('os').system('x') == 0", "this is not allowed at character 1"),
        ("[T for T in (1,)] == 1", "this is not allowed"),
        ("(lambda: 1)() == 1", "this is not allowed"),
        ("T in range(3)", "a list such as"),
        ("T is 3", "'is' is not allowed"),
        ("T == 3j", "a number or a text is needed"),
        ("T == b'x'", "a number or a text is needed"),
        ("T ** 2 == 4", "this is not allowed"),
        ("1 / 0 == T", "division by zero"),
        ("T > 1; B > 1", "at character 6"),
        ("T\0 > 1", "null bytes"),
        ("(" * 3000 + "T" + ")" * 3000, "nested too deep|1 to 4096"),
        ("not " * 1000 + "T == 1", "nested too deep|too many nested"),
        ("T == 1 or " * 500, "1 to 4096"),
    ],
)
def test_what_is_not_allowed_is_pointed_at(text: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        select_where(ROWS, text)


def test_numbers_of_any_size_are_compared() -> None:
    assert select_where(ROWS, f"T < {10**30}").tolist() == [0, 1, 2, 3, 4]
    assert select_where(ROWS, f"T > {10**30}").tolist() == []
    assert select_where(ROWS, "T < 1e400").tolist() == [0, 1, 2, 3, 4]


def test_a_buffer_of_nothing_has_no_row_that_fits() -> None:
    assert select_where(Rows.of([]), "anything > 3").tolist() == []


NUMBER = st.sampled_from(["T", "trajectory_id", "mean_return", "1", "2.5", "-3"])
COMPARISON = st.builds(
    "{} {} {}".format,
    st.builds("({} {} {})".format, NUMBER, st.sampled_from(["+", "-", "*"]), NUMBER),
    st.sampled_from(["<", "<=", ">", ">=", "==", "!="]),
    NUMBER,
)
CONDITION = st.recursive(
    COMPARISON,
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or"]), inner)
        | st.builds("(not {})".format, inner)
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(CONDITION)
def test_conditions_say_what_python_says(text: str) -> None:
    """Of rows that have every value, where nothing is missing."""
    rows = Rows.of(
        [make_row(n, num_steps=n + 1, tags={"mean_return": n / 2}) for n in range(6)]
    )
    expected = [
        n
        for n in range(6)
        if eval(text, {"T": n + 1, "trajectory_id": n, "mean_return": n / 2})
    ]
    assert select_where(rows, text).tolist() == expected


def test_missing_is_not_a_number_either_way() -> None:
    rows = Rows.of([make_row(0, tags={"a": 1}), make_row(1)])
    for text in ("a < 5", "a == a", "a != 7", "a + 1 > 0", "a not in (3,)"):
        assert select_where(rows, text).tolist() == [0], text
