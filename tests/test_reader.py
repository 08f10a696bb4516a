"""Bounds of what the reader keeps, and whole decoding against single chunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import make_trajectory, stored
from hypothesis import given
from hypothesis import strategies as st

from zarrbuf.encoding import encode_trajectory
from zarrbuf.errors import FormatError
from zarrbuf.reader import BatchReader, LruCache, decode_small_fields, sorted_fields
from zarrbuf.sampling import Window, plan_batch
from zarrbuf.trajectory import Trajectory, flatten_trajectory
from zarrbuf.trajectory_archive import TrajectoryArchive


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=40),
    st.integers(0, 8),
    st.integers(1, 4),
)
def test_the_cache_keeps_what_was_used_last_within_its_bounds(
    puts: list[tuple[int, int]], max_cost: int, max_items: int
) -> None:
    cache: LruCache[int] = LruCache(max_cost=max_cost, max_items=max_items)
    model: dict[str, int] = {}
    for number, (key, cost) in enumerate(puts):
        name = str(key)
        model.pop(name, None)
        if cost <= max_cost:
            model[name] = cost
        while sum(model.values()) > max_cost or len(model) > max_items:
            del model[next(iter(model))]
        cache.put(name, number, cost=cost)
        used = str((key + 1) % 6)
        assert (cache.get(used) is not None) == (used in model)
        if used in model:
            model[used] = model.pop(used)
        assert cache.cost == sum(model.values()) <= max_cost
        assert len(cache) == len(model) <= max_items
    for key in range(6):
        assert (cache.get(str(key)) is None) == (str(key) not in model)


def test_discarding_and_clearing_give_the_room_back() -> None:
    cache: LruCache[str] = LruCache(max_cost=10, max_items=5)
    cache.put("a", "x", cost=4)
    cache.put("b", "y", cost=5)
    cache.discard("a")
    cache.discard("never there")
    assert (cache.cost, cache.get("a"), cache.get("b")) == (5, None, "y")
    cache.clear()
    assert (cache.cost, len(cache)) == (0, 0)


@given(
    st.integers(1, 3),
    st.sampled_from((1, 2, 4)),
    st.lists(st.integers(0, 10**6), max_size=30),
    st.sampled_from((2, 40)),
)
def test_single_chunks_are_what_the_whole_array_holds(
    num_envs: int, num_epochs: int, picks: list[int], image_size: int
) -> None:
    trajectory = make_trajectory(
        4, num_envs, extra_epochs=num_epochs, image_size=image_size
    )
    encoded = encode_trajectory(trajectory, uuid="0" * 32, codec="lz4")
    archive = TrajectoryArchive(encoded.data, name="x")
    flat = flatten_trajectory(archive)
    window = Window.of(np.array([4]), np.array([num_envs]))
    draws = np.array(picks, np.int64) % window.total_samples
    reader = BatchReader(cache_bytes=1 << 20, archive_bytes=0)
    fields = sorted_fields(archive.header.schema)
    batch = reader.read_batch(plan_batch(draws, window), fields, lambda _: archive)
    assert set(batch) == set(flat)
    for field in fields:
        expected = flat[field.name][draws]
        assert stored(batch[field.name]).tobytes() == expected.tobytes()
    table = decode_small_fields(archive)
    small = {field.name for field in fields if not field.spec.is_big}
    assert set(table.dtype.names or ()) == small


def test_fields_without_elements_are_drawn_too() -> None:
    trajectory = Trajectory(actions=torch.zeros(2, 1, 0))
    encoded = encode_trajectory(trajectory, uuid="0" * 32, codec="lz4")
    archive = TrajectoryArchive(encoded.data, name="x")
    reader = BatchReader(cache_bytes=1 << 20, archive_bytes=0)
    plan = plan_batch(np.array([1, 0, 1]), Window.of(np.array([2]), np.array([1])))
    fields = sorted_fields(archive.header.schema)
    batch = reader.read_batch(plan, fields, lambda _: archive)
    assert batch["actions"].shape == (3, 0)


def test_big_fields_with_extra_rows_are_trimmed_too() -> None:
    trajectory = make_trajectory(4, 2, image_size=2)
    trajectory.prev_values = torch.arange(6 * 2 * 2000.0).reshape(6, 2, 2000)
    encoded = encode_trajectory(trajectory, uuid="0" * 32, codec="lz4")
    archive = TrajectoryArchive(encoded.data, name="x")
    fields = [f for f in sorted_fields(archive.header.schema) if f.spec.is_big]
    assert [field.name for field in fields] == ["prev_values"]
    draws = np.arange(8)
    window = Window.of(np.array([4]), np.array([2]))
    reader = BatchReader(cache_bytes=0, archive_bytes=0)
    batch = reader.read_batch(plan_batch(draws, window), fields, lambda _: archive)
    kept = trajectory.prev_values[[0, 1, 3, 4]].reshape(8, 2000)
    assert torch.equal(batch["prev_values"], kept)


def test_a_damaged_chunk_is_found_when_it_is_drawn_and_not_before() -> None:
    encoded = encode_trajectory(make_trajectory(4, 1), uuid="0" * 32, codec="lz4")
    sound = TrajectoryArchive(encoded.data, name="x")
    start, stop = sound.chunk_ranges("obs/main_images")[2].tolist()
    data = bytearray(encoded.data)
    data[(start + stop) // 2] ^= 1
    archive = TrajectoryArchive(bytes(data), name="trajectory_5_w")
    window = Window.of(np.array([4]), np.array([1]))
    fields = sorted_fields(archive.header.schema)
    reader = BatchReader(cache_bytes=0, archive_bytes=0)
    plan = plan_batch(np.array([0, 3]), window)
    reader.read_batch(plan, fields, lambda _: archive)
    plan = plan_batch(np.array([2]), window)
    with pytest.raises(FormatError, match=r"trajectory_5_w: field 'obs/main_images'"):
        reader.read_batch(plan, fields, lambda _: archive)


def test_samples_of_another_size_never_reach_the_memory_of_a_batch() -> None:
    small, large = (
        TrajectoryArchive(
            encode_trajectory(
                make_trajectory(2, 1, image_size=size), uuid="0" * 32, codec="lz4"
            ).data,
            name=f"trajectory_{size}_w",
        )
        for size in (40, 50)
    )
    fields = [f for f in sorted_fields(small.header.schema) if f.spec.is_big]
    reader = BatchReader(cache_bytes=0, archive_bytes=0)
    plan = plan_batch(np.array([0, 1]), Window.of(np.array([2]), np.array([1])))
    with pytest.raises(FormatError, match=r"trajectory_50_w: .*7500 bytes a sample"):
        reader.read_batch(plan, fields, lambda _: large)
