"""Draws to positions, against loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zarrbuf.errors import InvalidInputError
from zarrbuf.manifest.selection import partition
from zarrbuf.sampling.index_map import IndexMap, ReadPlan, plan_batch, window_start

shapes = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 4)), min_size=1)


def assert_groups(plan: ReadPlan) -> None:
    expected = np.repeat(np.arange(len(plan.positions)), plan.counts)
    assert plan.group_of.tolist() == expected.tolist()
    assert len(plan.flat) == len(plan.rows) == len(expected)


@given(shapes, st.lists(st.floats(0, 1, exclude_max=True)))
def test_every_draw_is_planned_once_and_where_a_loop_finds_it(
    lead: list[tuple[int, int]], fractions: list[float]
) -> None:
    window = IndexMap.of(
        np.array([steps for steps, _ in lead]), np.array([envs for _, envs in lead])
    )
    where = [
        (position, sample)
        for position, (steps, envs) in enumerate(lead)
        for sample in range(steps * envs)
    ]
    assert window.total_samples == len(where)
    draws = np.array([int(f * len(where)) for f in fractions], np.int64)
    plan = plan_batch(draws, window)
    found = {}
    for group in plan.groups:
        for row, sample in zip(group.out.tolist(), group.flat.tolist(), strict=True):
            assert row not in found
            found[row] = (group.position, sample)
    assert found == {row: where[draw] for row, draw in enumerate(draws.tolist())}
    unordered = plan_batch(draws, window, in_place_order=False)
    for one in (plan, unordered, unordered.by_position()):
        assert_groups(one)
        middle = len(one.positions) // 2
        for part in (one.part(0, middle), one.part(middle, len(one.positions))):
            assert_groups(part)
    assert len(plan.rows) == len(draws)


@given(shapes, st.integers(0, 2**32 - 1))
def test_samples_of_a_group_come_in_the_order_of_the_file(
    lead: list[tuple[int, int]], seed: int
) -> None:
    window = IndexMap.of(np.array([n for n, _ in lead]), np.array([n for _, n in lead]))
    draws = np.random.default_rng(seed).integers(0, window.total_samples, 50)
    plan = plan_batch(draws, window)
    positions = [group.position for group in plan.groups]
    assert positions == sorted(set(positions))
    for group in plan.groups:
        envs = lead[group.position][1]
        keys = [(sample % envs, sample // envs) for sample in group.flat.tolist()]
        assert keys == sorted(keys)


@pytest.mark.parametrize("draws", [[-1], [0, 12], [10**12]])
def test_draws_outside_the_window_are_refused(draws: list[int]) -> None:
    window = IndexMap.of(np.array([3, 2]), np.array([2, 3]))
    with pytest.raises(InvalidInputError, match=r"\[0, 12\) are in the window"):
        plan_batch(np.array(draws), window)


@given(st.integers(0, 50), st.integers(1, 12))
def test_parts_are_contiguous_and_the_first_get_one_more(
    num_items: int, world_size: int
) -> None:
    parts = [partition(num_items, rank, world_size) for rank in range(world_size)]
    assert [n for part in parts for n in range(*part)] == list(range(num_items))
    sizes = [stop - start for start, stop in parts]
    extra = num_items % world_size
    low = num_items // world_size
    assert sizes == [low + 1] * extra + [low] * (world_size - extra)


@pytest.mark.parametrize(("rank", "world"), [(-1, 2), (2, 2), (0, 0)])
def test_ranks_outside_the_world_are_refused(rank: int, world: int) -> None:
    with pytest.raises(InvalidInputError, match=f"local_rank is {rank}"):
        partition(5, rank, world)


def test_a_window_is_the_newest_and_zero_means_all() -> None:
    assert [window_start(10, size) for size in (0, 3, 10, 11)] == [0, 7, 0, 0]


@given(shapes, st.integers(0, 2**32 - 1), st.integers(0, 40))
def test_out_of_order_the_samples_are_the_same(
    lead: list[tuple[int, int]], seed: int, count: int
) -> None:
    window = IndexMap.of(np.array([n for n, _ in lead]), np.array([n for _, n in lead]))
    draws = np.random.default_rng(seed).integers(0, window.total_samples, count)
    found = [
        {
            row: (group.position, sample)
            for group in plan_batch(draws, window, in_place_order=in_order).groups
            for row, sample in zip(group.out.tolist(), group.flat.tolist(), strict=True)
        }
        for in_order in (True, False)
    ]
    assert found[0] == found[1]


@given(shapes, st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(0, 9))
def test_parts_of_a_plan_are_its_groups(
    lead: list[tuple[int, int]], seed: int, count: int, size: int
) -> None:
    window = IndexMap.of(np.array([n for n, _ in lead]), np.array([n for _, n in lead]))
    draws = np.random.default_rng(seed).integers(0, window.total_samples, count)
    plan = plan_batch(draws, window)
    size = 1 + size % len(plan.positions)
    parts = [
        plan.part(start, min(start + size, len(plan.positions)))
        for start in range(0, len(plan.positions), size)
    ]
    together = [group for part in parts for group in part.groups]
    assert [(g.position, g.out.tolist(), g.flat.tolist()) for g in together] == [
        (g.position, g.out.tolist(), g.flat.tolist()) for g in plan.groups
    ]
