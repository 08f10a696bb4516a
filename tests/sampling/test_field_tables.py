"""Small fields: kept or forgotten in between, a batch is what it would be without."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.batches import assert_same_batch, draw
from support.trajectories import make_trajectory

import zarrbuf.sampling.batch_reader
from zarrbuf import Trajectory, TrajectoryReplayBuffer
from zarrbuf.archive.spec import sorted_fields
from zarrbuf.errors import FormatError
from zarrbuf.sampling.batch_reader import gather_rows
from zarrbuf.sampling.batches import BatchMemory, new_arrays
from zarrbuf.sampling.field_tables import SmallTables, decode_small_fields
from zarrbuf.sampling.index_map import IndexMap, plan_batch
from zarrbuf.trajectory.archived import TrajectoryArchive
from zarrbuf.trajectory.encoding import encode_trajectory


@pytest.fixture(params=["loops", "no loops", "packed"], autouse=True)
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with the compiled loops and without, and with small ones packed."""
    if request.param != "packed":
        request.getfixturevalue("nothing_packed")
    if request.param == "no loops":
        monkeypatch.setattr(zarrbuf.sampling.batch_reader, "have_loops", lambda: False)


def made(seed: int, *, image_size: int, extra: bool) -> Trajectory:
    """Return a trajectory; some have one field more, which no batch has then."""
    trajectory = make_trajectory(
        1 + seed % 4, 1 + seed % 3, seed=seed, image_size=image_size, reset_every=1
    )
    trajectory.dones = trajectory.terminations = trajectory.truncations = None
    trajectory.prev_values = None
    if extra and seed % 2:
        trajectory.forward_inputs = {
            "extra": torch.zeros(1 + seed % 4, 1 + seed % 3, 2, dtype=torch.int64)
        }
    return trajectory


@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from((0, 200, 2000, 1 << 20)),
    st.integers(0, 4),
    st.sampled_from((2, 40)),
    st.booleans(),
    st.lists(st.sampled_from(("add", "sample", "sample", "clear")), max_size=14),
)
def test_what_is_kept_changes_no_batch(
    cache_bytes: int, window: int, image_size: int, extra: bool, doings: list[str]
) -> None:
    buffer = TrajectoryReplayBuffer(
        seed=3, cache_bytes=cache_bytes, sample_window_size=window
    )
    generator = torch.Generator().manual_seed(3)
    added: list[Trajectory] = []
    for number, doing in enumerate(["add", *doings, "sample"]):
        if doing == "add":
            added.append(made(number, image_size=image_size, extra=extra))
            buffer.add_trajectories(added[-1:])
        elif doing == "clear":
            buffer.clear_cache()
        else:
            batch = buffer.sample(1 + 7 * number)
            expected = draw(added[-window:], 1 + 7 * number, generator)
            assert_same_batch(batch, expected)
    assert buffer.get_stats(detailed=True)["cache_bytes"] <= cache_bytes


@pytest.mark.usefixtures("nothing_packed")
def test_a_cache_that_holds_nothing_keeps_nothing() -> None:
    buffer = TrajectoryReplayBuffer(enable_cache=False)
    buffer.add_trajectories([made(1, image_size=2, extra=False)])
    for _ in range(3):
        buffer.sample(5)
        assert buffer.get_stats(detailed=True)["last_small_fields_decoded"] == 1
        assert buffer.get_stats(detailed=True)["cache_bytes"] == 0


def archive_and_tables(num_steps: int) -> tuple[TrajectoryArchive, SmallTables]:
    """Return an archive of 2 steps and 2 environments, and tables for a list of it."""
    trajectory = made(1, image_size=2, extra=False)
    data = encode_trajectory(trajectory, uuid="0" * 32, codec="lz4").data
    archive = TrajectoryArchive(data, name="x")
    fields = [f for f in sorted_fields(archive.header.schema) if not f.spec.is_big]
    window = IndexMap.of(np.array([num_steps]), np.array([2]))
    return archive, SmallTables(window, fields, num_dropped=0)


def test_of_two_tables_of_one_trajectory_the_first_is_kept() -> None:
    archive, tables = archive_and_tables(num_steps=2)
    fields, index = tables.fields, tables.index
    first = decode_small_fields(archive)
    tables.put(0, first, name="x")
    other = decode_small_fields(archive)
    tables.put(0, other, name="x")
    other[:] = np.zeros((), other.dtype)  # what is not kept may become anything
    plan = plan_batch(np.arange(4), index)
    batch = new_arrays(fields, 4, BatchMemory())
    gather_rows(plan, tables, batch)
    for field in fields:
        assert batch[field.name].tobytes() == first[field.name].tobytes()


def test_a_table_of_another_length_than_the_list_says_is_refused() -> None:
    archive, tables = archive_and_tables(num_steps=3)
    with pytest.raises(FormatError, match="t_1: holds 4 samples; the list says 6"):
        tables.put(0, decode_small_fields(archive), name="t_1")
