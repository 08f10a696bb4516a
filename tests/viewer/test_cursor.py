"""Moves among trajectories of different lengths, as RLinf's visualizer makes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zarrbuf.errors import InvalidInputError
from zarrbuf.viewer.cursor import MOVES, Place, check_place, neighbours


class Lengths(list[tuple[int, int]]):
    def shape(self, position: int) -> tuple[int, int]:
        return self[position]


THREE = Lengths([(3, 2), (1, 1), (20, 4)])


@pytest.mark.parametrize(
    ("start", "move", "end"),
    [
        ((0, 0, 1), "next", (0, 1, 1)),
        ((0, 2, 1), "next", (1, 0, 0)),
        ((2, 19, 3), "next", (2, 19, 3)),
        ((0, 1, 1), "prev", (0, 0, 1)),
        ((1, 0, 0), "prev", (0, 2, 1)),
        ((0, 0, 1), "prev", (0, 0, 1)),
        ((0, 1, 1), "next_trajectory", (1, 0, 0)),
        ((2, 5, 1), "next_trajectory", (2, 5, 1)),
        ((2, 5, 3), "prev_trajectory", (1, 0, 0)),
        ((0, 1, 1), "prev_trajectory", (0, 1, 1)),
        ((0, 1, 0), "next_env", (0, 1, 1)),
        ((0, 1, 1), "next_env", (0, 1, 1)),
        ((0, 1, 1), "prev_env", (0, 1, 0)),
        ((0, 1, 0), "prev_env", (0, 1, 0)),
        ((2, 3, 2), "far_next", (2, 13, 2)),
        ((2, 13, 2), "far_next", (2, 19, 2)),
        ((2, 13, 2), "far_prev", (2, 3, 2)),
        ((2, 3, 2), "far_prev", (2, 0, 2)),
        ((2, 3, 2), "home", (2, 0, 2)),
        ((2, 3, 2), "end", (2, 19, 2)),
    ],
)
def test_a_move_leads_where_it_should(
    start: tuple[int, int, int], move: str, end: tuple[int, int, int]
) -> None:
    assert MOVES[move](Place(*start), THREE) == Place(*end)


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=4),
    st.lists(st.sampled_from(sorted(MOVES)), max_size=30),
)
def test_no_move_leads_out(shapes: list[tuple[int, int]], moves: list[str]) -> None:
    lengths, place, before = Lengths(shapes), Place(), None
    for move in moves:
        after = MOVES[move](place, lengths)
        assert check_place(after, lengths) == after
        found = neighbours(after, before, lengths)
        assert after not in found
        assert len(found) <= 2
        place, before = after, place


def test_going_on_is_foreseen() -> None:
    there = neighbours(Place(0, 1), Place(0, 0), THREE)
    assert there == [Place(0, 2), Place(1, 0)]
    back = neighbours(Place(2, 5), Place(2, 6), THREE)
    assert back == [Place(2, 4), Place(2, 3)]
    assert neighbours(Place(2, 5), None, THREE) == [Place(2, 6), Place(2, 4)]


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (Place(0, 3), "step is 3; a whole number from 0 to 2"),
        (Place(0, -1), "step is -1"),
        (Place(0, 0, 2), "env is 2; a whole number from 0 to 1"),
    ],
)
def test_places_that_are_not_there_are_told(place: Place, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        check_place(place, THREE)
