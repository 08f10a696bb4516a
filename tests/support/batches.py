"""What a batch must be: the slow, obvious way, and how batches are compared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from support.trajectories import assert_same_value, stored

from zarrbuf.trajectory.trajectory import Trajectory

Tensor = torch.Tensor
Path = tuple[str, ...]
START_ROWS = ("dones", "terminations", "truncations")
_SECONDS: WeakKeyDictionary[torch.Generator, torch.Generator] = WeakKeyDictionary()


def flatten(trajectory: Trajectory) -> dict[Path, Tensor]:
    """Return every sampled field as rows `t * B + b`, by a loop over steps."""
    lead = _lead(trajectory)
    flat: dict[Path, Tensor] = {}

    def visit(value: Any, path: Path) -> None:
        if isinstance(value, dict) and len(path) < 2:  # nothing nested is drawn
            for key, item in value.items():
                visit(item, (*path, key))
        elif isinstance(value, Tensor) and value.ndim >= 2:
            flat[path] = _rows(value, path, *lead)

    visit(vars(trajectory), ())
    return flat


def _rows(value: Tensor, path: Path, num_steps: int, num_envs: int) -> Tensor:
    extra = len(value) - num_steps
    rows = []
    for step in range(num_steps):
        row = step  # rows behind the steps are not drawn
        if extra and path[0] in (*START_ROWS, "prev_values"):
            epoch = step // (num_steps // extra)
            row = step + epoch + (1 if path[0] in START_ROWS else 0)
        rows += [value[row, env] for env in range(num_envs)]
    return torch.stack(rows)


def draw(
    trajectories: Sequence[Trajectory],
    count: int,
    generator: torch.Generator,
    second: torch.Generator | None = None,
) -> dict[Path, Tensor]:
    """Draw a batch as RLinf does, from trajectories in memory.

    What RLinf does not give, the rows above all that there are, comes from `second`:
    by default the one that goes with the seed of `generator`, and goes on with it.
    """
    flats = [flatten(trajectory) for trajectory in trajectories]
    names = set.intersection(*(set(flat) for flat in flats))
    total = sum(num_samples(trajectory) for trajectory in trajectories)
    samples = torch.randint(0, total, (min(count, total),), generator=generator)
    if count > total:
        if second is None:
            second = _second(generator)
        more = torch.randint(0, total, (count - total,), generator=second)
        samples = torch.cat([samples, more])
    return {name: torch.cat([flat[name] for flat in flats])[samples] for name in names}


def _second(generator: torch.Generator) -> torch.Generator:
    """Return the generator that goes on beside this one."""
    if generator not in _SECONDS:
        seed = (generator.initial_seed() + 0x7A617272) % 2**63
        _SECONDS[generator] = torch.Generator().manual_seed(seed)
    return _SECONDS[generator]


def num_samples(trajectory: Trajectory) -> int:
    """Return the samples of a trajectory, `T * B`."""
    num_steps, num_envs = _lead(trajectory)
    return num_steps * num_envs


def _lead(trajectory: Trajectory) -> tuple[int, int]:
    """Return T and B, which the first of these fields has."""
    for value in (trajectory.prev_logprobs, trajectory.rewards, trajectory.actions):
        if value is not None:
            return value.shape[0], value.shape[1]
    raise AssertionError("no field that says T and B")


def leaves(batch: Mapping[str, Any], path: Path = ()) -> dict[Path, Tensor]:
    """Return the tensors of a nested batch by path."""
    found: dict[Path, Tensor] = {}
    for key, value in batch.items():
        name = (*path, key)
        if isinstance(value, Mapping):
            found |= leaves(value, name)
        else:
            found[name] = value
    return found


def assert_same_batch(
    batch: Mapping[str, Any], expected: Mapping[Path, Tensor]
) -> None:
    """Assert that a nested batch has exactly the expected tensors, bit for bit."""
    assert_same_value(leaves(batch), dict(expected), "batch")


def generator(seed: int) -> torch.Generator:
    """Return a generator at `seed`."""
    made = torch.Generator()
    made.manual_seed(seed)
    return made


def assert_golden(batch: Mapping[str, Any], golden: Mapping[str, Any]) -> None:
    """Assert that a batch has the shapes, dtypes and SHA-256 that RLinf's had."""
    assert set(batch) == set(golden)
    for name, expected in golden.items():
        if "sha256" not in expected:
            assert_golden(batch[name], expected)
            continue
        tensor = batch[name]
        found = {
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype),
            "sha256": hashlib.sha256(stored(tensor).tobytes()).hexdigest(),
        }
        assert found == expected, name
