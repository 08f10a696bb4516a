"""Curves and episodes of one environment."""

from __future__ import annotations

import numpy as np

from zarrbuf.viewer.curves import MAX_LINES, make_curves


def test_returns_begin_anew_with_each_episode() -> None:
    rewards = np.array([[1.0], [2.0], [3.0], [4.0], [5.0]])
    dones = np.array([[False], [True], [False], [False], [False]])
    found = make_curves({"rewards": rewards, "dones": dones}, 5)
    by_name = {one.name: one.values[:, 0].tolist() for one in found.curves}
    assert by_name["reward"] == [1, 2, 3, 4, 5]
    assert by_name["return"] == [1, 3, 3, 7, 12]
    facts = [(e.start, e.stop, e.total, e.is_over) for e in found.episodes]
    assert facts == [(0, 2, 3.0, True), (2, 5, 12.0, False)]
    assert [found.episode_at(step) for step in range(5)] == [0, 0, 1, 1, 1]


def test_an_episode_that_ends_with_the_trajectory_is_over() -> None:
    found = make_curves({"terminations": np.array([[0], [1]])}, 2)
    assert [(e.start, e.stop, e.is_over) for e in found.episodes] == [(0, 2, True)]
    assert found.flags["terminations"].tolist() == [False, True]
    assert found.curves == ()


def test_rewards_of_chunks_are_summed_and_values_averaged() -> None:
    fields = {
        "rewards": np.array([[1.0, 2.0], [3.0, 4.0]], np.float16),
        "prev_values": np.array([[1.0, 3.0], [5.0, 7.0]]),
    }
    found = {
        one.name: one.values[:, 0].tolist() for one in make_curves(fields, 2).curves
    }
    assert found["reward"] == [3, 7]
    assert found["value"] == [2, 6]


def test_dimensions_are_lines_up_to_a_bound() -> None:
    actions = np.arange(3 * 5 * 8).reshape(3, 5, 8)
    (curve,) = make_curves({"actions": actions}, 3).curves
    assert curve.values.shape == (3, MAX_LINES)
    assert curve.num_left_out == 40 - MAX_LINES
    assert curve.values[1].tolist() == list(range(40, 40 + MAX_LINES))
    states = np.ones((3, 2))
    (other,) = make_curves({"states": states}, 3).curves
    assert (other.name, other.values.shape) == ("states", (3, 2))


def test_interventions_are_stretches() -> None:
    flags = np.array([1, 1, 0, 1, 0, 1])[:, None]
    found = make_curves({"intervene_flags": flags}, 6)
    assert found.intervened == ((0, 2), (3, 4), (5, 6))
    assert make_curves({}, 6).intervened == ()


def test_nothing_to_draw_is_one_episode_without_a_return() -> None:
    found = make_curves({}, 4, problems=("rewards are damaged",))
    assert [(e.start, e.stop, e.total) for e in found.episodes] == [(0, 4, None)]
    assert found.problems == ("rewards are damaged",)
