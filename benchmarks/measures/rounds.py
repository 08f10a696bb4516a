"""How everything is timed: every contender in turn, round after round, in one process.

Each round has an order of its own, so that neither a slow phase of the machine nor what
ran just before favours anyone. Ratios are taken within a round.
"""

from __future__ import annotations

import gc
import itertools
import random
from collections.abc import Sequence
from typing import Final

import torch

from benchmarks.contenders.contract import Contender, flat_batch
from benchmarks.data import DataSet, Flat, num_bytes
from benchmarks.options import say
from benchmarks.timing import Drawn, page_faults, timed

WARM_UP: Final = 3
"""Rounds before those that count: threads are started, memory finds its users."""
TOGETHER_BYTES: Final = 16 << 20
"""Bytes of small trajectories that are made and stored together."""


def in_turn(contenders: Sequence[Contender], number: int) -> list[Contender]:
    """Return the contenders in the order of round `number`.

    Shuffled: nobody always runs after the same other, whose threads may linger.
    """
    return random.Random(number).sample(contenders, len(contenders))


def store_all(contenders: Sequence[Contender], data: DataSet) -> int:
    """Store every trajectory with all who store anything, without timing it.

    Returns:
        Bytes of all tensors.
    """
    raw_bytes = 0
    made = iter(data)
    together = max(1, TOGETHER_BYTES // (data.samples_each * data.sample_bytes))
    while some := list(itertools.islice(made, together)):
        raw_bytes += sum(map(num_bytes, some))
        for one in contenders:
            if one.writes:
                one.add_many(some)
    for one in contenders:
        one.open()
    return raw_bytes


def check_equal(contenders: Sequence[Contender], truth: Contender, count: int) -> None:
    """Check that all return the same bytes for the same draws; also a warm-up.

    Args:
        contenders: who is checked.
        truth: who is right.
        count: samples of a batch.

    Raises:
        AssertionError: naming who differs and in which field.
    """
    expected_by_seed: dict[int, Flat] = {}
    for seed in (1, 2):
        truth.seed(seed)
        expected_by_seed[seed] = flat_batch(truth.sample(count))
    for one in contenders:
        for seed, expected in expected_by_seed.items():
            one.seed(seed)
            found = flat_batch(one.sample(count))
            if sorted(found) != sorted(expected):
                raise AssertionError(f"{one.name}: has the fields {sorted(found)}")
            for name, value in expected.items():
                same = found[name].dtype == value.dtype
                if not same or not torch.equal(found[name], value):
                    raise AssertionError(f"{one.name}: {name} differs")
    say(f"same bytes: {', '.join(one.name for one in contenders)}")


def draw_rounds(
    contenders: Sequence[Contender], count: int, *, rounds: int, rare_rounds: int = 1
) -> Drawn:
    """Draw one batch a round with everyone; rare ones in a few rounds only."""
    drawn = Drawn(count)
    gc.collect()
    gc.freeze()  # a collection of all libraries' objects would empty the caches
    rare_rounds = min(rare_rounds, rounds)
    rare_at = {n * rounds // rare_rounds for n in range(rare_rounds)}
    for number in range(-WARM_UP, rounds):
        times: dict[str, float] = {}
        gc.collect()
        for one in in_turn(contenders, number):
            if one.rare and number not in rare_at:
                continue
            one.seed(1000 + number)
            faults = page_faults()
            times[one.name], batch = timed(one.sample, count)
            if number >= 0:
                faults = page_faults() - faults
                drawn.faults.setdefault(one.name, []).append(faults)
            del batch
        if number >= 0:
            drawn.times.rounds.append(times)
    gc.unfreeze()
    say(f"drew {rounds} batches each")
    return drawn
