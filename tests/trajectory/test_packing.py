"""Small trajectories in blocks: back to the bit, and drawn as the slow way draws."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from support.trajectories import assert_same_value, trajectories

from zarrbuf import Trajectory
from zarrbuf.archive.spec import step_rows
from zarrbuf.errors import InvalidInputError
from zarrbuf.trajectory import packing
from zarrbuf.trajectory.archived import TrajectoryArchive
from zarrbuf.trajectory.encoding import encode_trajectory
from zarrbuf.trajectory.packing import Block, InBlock, pack_trajectory
from zarrbuf.trajectory.trajectory import fields_of, flatten_trajectory

UUID = "0" * 32


def one(**more: Any) -> Trajectory:
    """Return a transition."""
    return Trajectory(rewards=torch.rand(1, 1, 8), actions=torch.rand(1, 1, 7), **more)


def in_block(trajectory: Any, before: Any = None) -> InBlock:
    """Return a trajectory in a block, behind another one."""
    packed = pack_trajectory(trajectory, uuid=UUID)
    assert packed is not None
    block = Block(packed.layout.fields, 3 * packed.layout.num_rows + 100)
    if before is not None:
        first = pack_trajectory(before, uuid=UUID)
        assert first is not None
        block.take(first)
    return block.take(packed)


@settings(deadline=None, max_examples=150)
@given(trajectories())
def test_it_comes_back_to_the_bit_and_is_drawn_as_from_an_archive(given: Any) -> None:
    packed = pack_trajectory(given, uuid=UUID)
    encoded = encode_trajectory(given, uuid=UUID, codec="lz4")
    archive = TrajectoryArchive(encoded.data, name="x")
    if packed is None:
        return
    item = in_block(given, before=given)
    again = encode_trajectory(item.unpack(), uuid=UUID, codec="lz4")
    assert again.data == encoded.data
    assert packed.layout.schema == encoded.header.schema
    assert packed.num_samples == encoded.num_samples
    assert packed.layout.shape == encoded.shape
    assert [f.name for f in packed.fields] == [f.name for f in encoded.fields]
    for name, rows in flatten_trajectory(archive).items():
        assert item.table[name].tobytes() == rows.tobytes(), name


def test_a_trajectory_is_the_one_that_was_given() -> None:
    given = one(
        max_episode_length=None,
        model_weights_id="w_3",
        dones=torch.tensor([[False], [True]]),
        prev_values=torch.rand(2, 1, 1).to(torch.bfloat16),
        versions=torch.tensor(3.0),
        forward_inputs={"task": "pick", "a": {"b": torch.arange(3)}, "n": float("nan")},
        curr_obs={"states": torch.rand(1, 1, 0), "é": torch.rand(1, 1, 2)},
        next_obs={"states": torch.rand(1, 1, 0), "é": torch.rand(1, 1, 3)},
    )
    item = in_block(given, before=given)
    assert_same_value(fields_of(item.unpack()), fields_of(given), "trajectory")


def test_nothing_of_the_callers_memory_is_kept() -> None:
    given = one(dones=torch.zeros(2, 1, dtype=torch.bool))
    item = in_block(given)
    before = item.table.copy()
    assert given.rewards is not None
    assert given.dones is not None
    given.rewards.fill_(9)
    given.dones.fill_(True)
    assert item.table.tobytes() == before.tobytes()
    assert not item.unpack().dones.any()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.rand(2, 1, 1, 8).transpose(0, 3)[0].transpose(0, 2),
        torch.rand(1, 1, 8, requires_grad=True),
        torch.rand(1, 1, 8, dtype=torch.complex64).conj(),
        torch.rand(1, 1, 16)[..., ::2],
        torch.rand(1, 1, 1).expand(1, 1, 8),
    ],
)
def test_tensors_that_lie_otherwise_in_memory(tensor: torch.Tensor) -> None:
    given = one(forward_inputs={"x": tensor})
    found = in_block(given).unpack().forward_inputs["x"]
    assert torch.equal(found, tensor.detach().resolve_conj())


@pytest.mark.parametrize(
    "more",
    [
        {"forward_inputs": {"x": torch.zeros(1, 1, 17_000)}},  # above all bytes
        {"curr_obs": {"main_images": torch.zeros(1, 1, 64, 64, 3, dtype=torch.uint8)}},
    ],
)
def test_what_is_large_is_left_to_archives(more: dict[str, Any]) -> None:
    assert pack_trajectory(one(**more), uuid=UUID) is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"actions": torch.rand(2, 3, 1)}, "actions has shape"),
        ({"forward_inputs": {"x": {1, 2}}}, "set"),
        ({"forward_inputs": {"": 1}}, "key"),
        ({"model_weights_id": "a/b"}, "model_weights_id"),
        ({"model_weights_id": "a\ud800"}, "half surrogate pairs"),
        ({"actions": torch.zeros(1, 1, 0, 2**31)}, r"less than 2\*\*31"),
        ({"max_episode_length": "x"}, "max_episode_length"),
        ({"rewards": None, "actions": None}, "no field that says T and B"),
    ],
)
def test_bad_trajectories_are_refused_as_for_archives(
    more: dict[str, Any], message: str
) -> None:
    given = one()
    for name, value in more.items():
        setattr(given, name, value)
    errors = []
    for check in (
        lambda: pack_trajectory(given, uuid=UUID),
        lambda: encode_trajectory(given, uuid=UUID, codec="lz4"),
    ):
        with pytest.raises(InvalidInputError, match=message) as caught:
            check()
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def test_blocks_grow_and_are_never_much_larger_than_what_is_in_them() -> None:
    packed = pack_trajectory(one(), uuid=UUID)
    assert packed is not None
    block, sizes = None, []
    for _ in range(12):
        block = Block.after(block, packed.layout)
        sizes.append(block.table.nbytes)
    assert sizes[0] <= 4 << 10
    assert max(sizes) <= 1 << 20
    assert all(b <= 2 * a for a, b in itertools.pairwise(sizes))
    large = pack_trajectory(Trajectory(rewards=torch.rand(900, 1, 8)), uuid=UUID)
    assert large is not None
    assert len(Block.after(None, large.layout).table) == 900


def test_layouts_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_MAX_LAYOUTS", 5)
    packing._LAYOUTS.clear()
    for size in range(1, 40):
        rewards = torch.full((1, 1, size), float(size))
        item = in_block(Trajectory(rewards=rewards))
        assert np.array_equal(item.table["rewards"][0], rewards[0, 0].numpy())
        assert len(packing._LAYOUTS) <= 5


def test_a_layout_may_be_forgotten_by_another_thread_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Forgetful(dict[Any, Any]):
        """Has what it is asked for, and not a moment later."""

        def __contains__(self, key: object) -> bool:
            return True

    monkeypatch.setattr(packing, "_LAYOUTS", Forgetful())
    assert pack_trajectory(one(), uuid=UUID) is not None


@pytest.mark.parametrize("num_epochs", [1, 2, 6])
def test_extra_rows_are_split_off_as_the_slow_way_does(num_epochs: int) -> None:
    for rows in ("start", "end", "step"):
        extra = packing._Extra(rows, 6)  # type: ignore[arg-type]
        every = np.arange(6 + num_epochs)
        kept, rest = (every[some] for some in extra.split(len(every)))
        expected = step_rows(rows, len(every), 6)  # type: ignore[arg-type]
        assert kept.tolist() == expected.tolist()
        assert rest.tolist() == np.setdiff1d(every, expected).tolist()
