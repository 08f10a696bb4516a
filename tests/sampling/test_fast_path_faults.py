"""Faults that the fast path had once: memory freed too early or kept too long."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from support.batches import assert_same_batch, draw, generator
from support.trajectories import make_trajectory

from zarrbuf import Trajectory, TrajectoryReplayBuffer
from zarrbuf.errors import FormatError
from zarrbuf.stores.logged import LogStore

WIDE = """
import torch
from zarrbuf import Trajectory, TrajectoryReplayBuffer
buffer = TrajectoryReplayBuffer(sample_window_size=0)
for seed in range(4):
    inputs = {f"x{n}": torch.full((8, 4, 1000), 10.0 * seed + n) for n in range(10)}
    buffer.add_trajectories(
        [Trajectory(rewards=torch.full((8, 4, 1), float(seed)), forward_inputs=inputs)]
    )
for _ in range(20):
    batch = buffer.sample(700)
    for n in range(10):
        x = batch["forward_inputs"][f"x{n}"]
        assert (x == 10 * batch["rewards"] + n).all()
"""


def test_wide_rows_are_gathered_through_memory_that_is_there() -> None:
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    subprocess.run([sys.executable, "-c", WIDE], check=True, env=environment)


def test_two_buffers_sampled_at_once_do_not_mix_their_rows() -> None:
    wrong: list[int] = []

    def sample(value: float) -> None:
        buffer = TrajectoryReplayBuffer(seed=int(value))
        fields = {f"x{n}": torch.full((64, 8, 50), value) for n in range(4)}
        buffer.add_trajectories(
            [Trajectory(rewards=torch.zeros(64, 8, 1), forward_inputs=fields)]
        )
        for number in range(60):
            batch = buffer.sample(2000)["forward_inputs"]
            if not all((x == value).all() for x in batch.values()):
                wrong.append(number)

    threads = [threading.Thread(target=sample, args=(v,)) for v in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_leaves_a_window_in_memory_is_let_go() -> None:
    buffer = TrajectoryReplayBuffer(sample_window_size=2)
    for seed in range(12):
        buffer.add_trajectories([make_trajectory(4, 2, seed=seed)])
        buffer.sample(64)
    assert len(buffer._reader.archives) <= 2


@pytest.mark.usefixtures("nothing_packed")
def test_tables_of_one_batch_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zarrbuf.sampling.field_tables.MIN_TABLE_BYTES", 1000)
    trajectories = [
        make_trajectory(4, 2, seed=n, image_size=size, reset_every=1)
        for n, size in enumerate((2,) * 9)
    ]
    buffer = TrajectoryReplayBuffer(seed=5, cache_bytes=0, sample_window_size=0)
    buffer.add_trajectories(trajectories)
    largest = 0
    reader = buffer._reader.small
    read = reader.read
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    def note(wanted, use):  # type: ignore[no-untyped-def]
        def used(plan, tables):  # type: ignore[no-untyped-def]
            nonlocal largest
            alive.add(tables)
            largest = max(largest, sum(one.num_bytes for one in alive))
            use(plan, tables)

        read(wanted, used)

    monkeypatch.setattr(reader, "read", note)
    draws = generator(5)
    for _ in range(3):
        assert_same_batch(buffer.sample(200), draw(trajectories, 200, draws))
    assert 500 < largest <= 1000
    assert reader._tables is None


def test_a_uuid_listed_again_with_another_shape_is_refused(tmp_path: Path) -> None:
    with TrajectoryReplayBuffer(auto_save=True, auto_save_path=tmp_path) as buffer:
        buffer.add_trajectories([make_trajectory(4, 1, image_size=2)])
    store = LogStore.open_or_create(
        buffer._live._store.storage,  # type: ignore[attr-defined]
        seed=1,
        codec="lz4",
    )
    action = store.rows.row(0).to_action()
    action |= {"trajectory_id": 7, "T": 1000, "num_samples": 1000, "shape": [1000, 1]}
    store.log.commit(lambda now: [action], op="add")
    reader = TrajectoryReplayBuffer(sample_window_size=0)
    reader.load_checkpoint(tmp_path)
    with pytest.raises(FormatError, match="T"):
        reader.sample(1000)


FORK = """
import os, sys, threading, time
import torch
from zarrbuf import Trajectory, TrajectoryReplayBuffer
buffer = TrajectoryReplayBuffer()
frames = torch.zeros(4, 1, 64, 64, 3, dtype=torch.uint8)
trajectory = Trajectory(rewards=torch.zeros(4, 1, 1), curr_obs={"main_images": frames})
thread = threading.Thread(target=lambda: buffer.add_trajectories([trajectory]))
thread.start()
time.sleep(float(sys.argv[1]))
child = os.fork()
if child == 0:
    again = TrajectoryReplayBuffer()
    again.add_trajectories([trajectory])
    again.sample(3)
    os._exit(0)
thread.join()
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("delay_s", [0.05, 0.2, 0.4])
def test_a_child_forked_while_another_thread_stores_goes_on(delay_s: float) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK, str(delay_s)]
    subprocess.run(command, check=True, timeout=120)


OUTSIDE = """
import numpy as np
from zarrbuf.archive.decode import scatter_rows
sources, rows = np.zeros(1, np.uint64), np.zeros(1, np.int64)
try:
    scatter_rows(sources, 8, [8], [np.zeros((1, 1))], rows)
except AssertionError as error:
    print(error)
"""


def test_addresses_are_checked_when_python_leaves_asserts_out() -> None:
    command = [sys.executable, "-O", "-c", OUTSIDE]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "outside its memory" in done.stdout


WITHOUT_COMPILER = """
import torch
from zarrbuf import Trajectory, TrajectoryReplayBuffer
from zarrbuf.archive.decode import have_loops
buffer = TrajectoryReplayBuffer()
steps = torch.arange(6.0).reshape(3, 2, 1)
frames = steps[..., None, None].to(torch.uint8).expand(3, 2, 40, 40, 3).contiguous()
trajectory = Trajectory(rewards=steps, curr_obs={"main_images": frames})
buffer.add_trajectories([trajectory])
batch = buffer.sample(50)
images = batch["curr_obs"]["main_images"]
assert (images == batch["rewards"][..., None, None]).all()
print(have_loops())
"""


def test_a_numba_that_is_told_not_to_compile_is_not_used() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
    )
    assert done.stdout == "False\n"
