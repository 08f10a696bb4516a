"""Batches from archives: single chunks against whole decoding, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batches import leaves
from support.trajectories import make_trajectory, stored

from zarrbuf.archive.spec import AnyArray, BatchField, sorted_fields
from zarrbuf.common.thread_pool import Workers
from zarrbuf.errors import FormatError
from zarrbuf.sampling.batch_reader import BatchReader
from zarrbuf.sampling.batches import BatchMemory, as_batch, new_arrays
from zarrbuf.sampling.field_tables import decode_small_fields
from zarrbuf.sampling.index_map import IndexMap, IntArray, plan_batch
from zarrbuf.sampling.stats import ReadStats
from zarrbuf.storage.fetching import FetchCost
from zarrbuf.trajectory.archived import TrajectoryArchive
from zarrbuf.trajectory.encoding import encode_trajectory
from zarrbuf.trajectory.packing import PackedRows
from zarrbuf.trajectory.trajectory import Trajectory, flatten_trajectory


class Opened:
    """Trajectories that are open already."""

    def __init__(self, *archives: TrajectoryArchive) -> None:
        self._archives = archives
        headers = [archive.header for archive in archives]
        self.index = IndexMap.of(
            np.array([header.num_steps for header in headers]),
            np.array([header.num_envs for header in headers]),
        )
        self.is_remote = False
        self.asked_for: list[int] = []

    def uuids(self, positions: IntArray) -> list[str]:
        return [self._archives[position].header.uuid for position in positions.tolist()]

    def packed(self, positions: IntArray) -> Iterator[tuple[IntArray, PackedRows]]:
        return iter(())

    def archives(
        self, positions: IntArray, cost: FetchCost
    ) -> Iterator[TrajectoryArchive]:
        for position in positions.tolist():
            self.asked_for.append(position)
            yield self._archives[position]


def encoded(trajectory: Trajectory, uuid: str = "0" * 32) -> TrajectoryArchive:
    """Return the archive of a trajectory, opened."""
    data = encode_trajectory(trajectory, uuid=uuid, codec="lz4").data
    return TrajectoryArchive(data, name="x")


def new_reader(cache_bytes: int = 0, num_threads: int = 1) -> BatchReader:
    workers = Workers(num_threads)
    return BatchReader(cache_bytes=cache_bytes, archive_bytes=0, workers=workers)


def read(
    reader: BatchReader,
    draws: IntArray,
    window: IndexMap,
    fields: Sequence[BatchField],
    archive: TrajectoryArchive,
) -> dict[str, AnyArray]:
    """Return the arrays of a batch of samples of one trajectory."""
    memory = BatchMemory(max_batches=0, pin_memory=False)
    arrays = new_arrays(fields, len(draws), memory)
    for array in arrays.values():
        array.reshape(-1).view(np.uint8)[:] = 0xA5
    plan = plan_batch(draws, window)
    reader.read_batch(plan, arrays, fields, Opened(archive), ReadStats())
    return arrays


@settings(deadline=None)
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
    window = IndexMap.of(np.array([4]), np.array([num_envs]))
    draws = np.array(picks, np.int64) % window.total_samples
    reader = new_reader(1 << 20, num_threads=2)
    fields = sorted_fields(archive.header.schema)
    batch = read(reader, draws, window, fields, archive)
    assert set(batch) == set(flat)
    for field in fields:
        expected = flat[field.name][draws]
        assert batch[field.name].dtype == expected.dtype
        assert batch[field.name].shape == expected.shape
        assert batch[field.name].tobytes() == expected.tobytes()
    tensors = leaves(as_batch(fields, batch))
    assert {"/".join(path) for path in tensors} == set(flat)
    for path, tensor in tensors.items():
        assert stored(tensor).tobytes() == flat["/".join(path)][draws].tobytes()
    table = decode_small_fields(archive)
    small = {field.name for field in fields if not field.spec.is_big}
    assert set(table.dtype.names or ()) == small


def test_fields_without_elements_are_drawn_too() -> None:
    trajectory = Trajectory(actions=torch.zeros(2, 1, 0))
    encoded = encode_trajectory(trajectory, uuid="0" * 32, codec="lz4")
    archive = TrajectoryArchive(encoded.data, name="x")
    window = IndexMap.of(np.array([2]), np.array([1]))
    fields = sorted_fields(archive.header.schema)
    batch = read(new_reader(1 << 20), np.array([1, 0, 1]), window, fields, archive)
    assert as_batch(fields, batch)["actions"].shape == (3, 0)


def test_big_fields_with_extra_rows_are_trimmed_too() -> None:
    trajectory = make_trajectory(4, 2, image_size=2)
    trajectory.prev_values = torch.arange(6 * 2 * 2000.0).reshape(6, 2, 2000)
    encoded = encode_trajectory(trajectory, uuid="0" * 32, codec="lz4")
    archive = TrajectoryArchive(encoded.data, name="x")
    fields = [f for f in sorted_fields(archive.header.schema) if f.spec.is_big]
    assert [field.name for field in fields] == ["prev_values"]
    draws = np.arange(8)
    window = IndexMap.of(np.array([4]), np.array([2]))
    batch = as_batch(fields, read(new_reader(), draws, window, fields, archive))
    kept = trajectory.prev_values[[0, 1, 3, 4]].reshape(8, 2000)
    assert torch.equal(batch["prev_values"], kept)


def test_a_damaged_chunk_is_found_when_it_is_drawn_and_not_before() -> None:
    encoded = encode_trajectory(make_trajectory(4, 1), uuid="0" * 32, codec="lz4")
    sound = TrajectoryArchive(encoded.data, name="x")
    start, stop = sound.chunk_ranges("obs/main_images")[2].tolist()
    data = bytearray(encoded.data)
    data[(start + stop) // 2] ^= 1
    archive = TrajectoryArchive(bytes(data), name="trajectory_5_w")
    window = IndexMap.of(np.array([4]), np.array([1]))
    fields = sorted_fields(archive.header.schema)
    reader = new_reader()
    read(reader, np.array([0, 3]), window, fields, archive)
    with pytest.raises(FormatError, match=r"trajectory_5_w: field 'obs/main_images'"):
        read(reader, np.array([2]), window, fields, archive)


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
    window = IndexMap.of(np.array([2]), np.array([1]))
    arrays = {
        field.name: np.full((2, *field.spec.shape), 0xA5, field.spec.stored)
        for field in fields
    }
    plan = plan_batch(np.array([0, 1]), window)
    with pytest.raises(FormatError, match=r"trajectory_50_w: .*7500 bytes a sample"):
        new_reader().read_batch(plan, arrays, fields, Opened(large), ReadStats())
    assert all((array == 0xA5).all() for array in arrays.values())


@pytest.mark.parametrize("num_open", [1, 2, 3, 100])
@pytest.mark.parametrize("image_size", [2, 40])
def test_a_batch_may_come_from_more_trajectories_than_are_open_at_once(
    num_open: int, image_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zarrbuf.sampling.batch_reader.MAX_GROUPS", num_open)
    archives = [
        encoded(make_trajectory(4, 2, seed=n, image_size=image_size), f"{n:032x}")
        for n in range(5)
    ]
    flat = [flatten_trajectory(archive) for archive in archives]
    window = IndexMap.of(np.full(5, 4), np.full(5, 2))
    draws = np.random.default_rng(0).integers(0, 40, 60)
    fields = sorted_fields(archives[0].header.schema)
    arrays = new_arrays(fields, 60, BatchMemory(max_batches=0, pin_memory=False))
    opened = Opened(*archives)
    stats, plan = ReadStats(), plan_batch(draws, window)
    new_reader().read_batch(plan, arrays, fields, opened, stats)
    for field in fields:
        expected = np.concatenate([one[field.name] for one in flat])[draws]
        assert arrays[field.name].tobytes() == expected.tobytes(), field.name
    assert sorted(set(opened.asked_for)) == [0, 1, 2, 3, 4]
    assert stats.small_fields_decoded == 5
    num_big = sum(field.spec.is_big for field in fields)
    assert stats.chunks_read == 60 * num_big


def test_small_fields_that_are_kept_need_no_archive() -> None:
    archive = encoded(make_trajectory(4, 2, image_size=2))
    fields = sorted_fields(archive.header.schema)
    assert not any(field.spec.is_big for field in fields)
    plan = plan_batch(np.arange(8), IndexMap.of(np.array([4]), np.array([2])))
    memory = BatchMemory(max_batches=0, pin_memory=False)
    reader, opened = new_reader(1 << 20), Opened(archive)
    for _ in range(3):
        arrays = new_arrays(fields, 8, memory)
        reader.read_batch(plan, arrays, fields, opened, ReadStats())
    assert opened.asked_for == [0]
