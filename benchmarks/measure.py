"""The measurements: every contender in turn, round after round, in one process.

Each round has an order of its own, so that neither a slow phase of the machine nor what
ran just before favours anyone. Ratios are taken within a round.
"""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import zarr
from zarr.storage import MemoryStore

from benchmarks.contenders import Contender, Memory, WholeFiles, Zarrbuf, flat_batch
from benchmarks.data import DataSet, Flat, num_bytes
from benchmarks.memory import Growth, in_fresh_process
from zarrbuf import Trajectory, TrajectoryReplayBuffer
from zarrbuf.encoding import EncodedTrajectory, encode_trajectory
from zarrbuf.format import new_uuid
from zarrbuf.opening import open_store

Say = Callable[[str], None]


@dataclass
class Times:
    """Seconds by contender and round; a round may leave some out."""

    rounds: list[dict[str, float]] = field(default_factory=list)

    def of(self, name: str) -> list[float]:
        """Return the times of one contender."""
        return [times[name] for times in self.rounds if name in times]

    def median(self, name: str) -> float:
        """Return the median time of one contender."""
        return statistics.median(self.of(name))

    def spread(self, name: str) -> tuple[float, float]:
        """Return the first and the third quartile of the times."""
        times = self.of(name)
        if len(times) < 2:
            return times[0], times[0]
        first, _, third = statistics.quantiles(times, n=4, method="inclusive")
        return first, third

    def ratio(self, name: str, other: str) -> float:
        """Return the median, over the rounds both ran in, of their times' ratio."""
        return statistics.median(
            times[name] / times[other]
            for times in self.rounds
            if name in times and other in times
        )


@dataclass
class Results:
    """What was measured on one data set.

    Attributes:
        data: the data set.
        batch_size: samples drawn at once.
        raw_bytes: bytes of all tensors.
        write: seconds to store a trajectory; a round is a trajectory.
        sample: seconds to draw a batch.
        faults: minor page faults of each batch, by contender.
        disk: bytes stored by each contender that writes.
        add_seconds: how long `add_trajectories` held its caller.
        sync_seconds: what fsync of each `.pt` file took.
        figures: single figures by name, seconds.
        sampling: memory of a process that draws `memory_batches` batches.
        memory_batches: batches it drew.
        keeping: memory of a process that keeps all trajectories but two.
    """

    data: DataSet
    batch_size: int
    raw_bytes: int = 0
    write: Times = field(default_factory=Times)
    sample: Times = field(default_factory=Times)
    faults: dict[str, list[int]] = field(default_factory=dict)
    disk: dict[str, int] = field(default_factory=dict)
    add_seconds: list[float] = field(default_factory=list)
    sync_seconds: list[float] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    sampling: Growth | None = None
    memory_batches: int = 0
    keeping: Growth | None = None


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Return the seconds a call takes, and its result."""
    started = time.perf_counter()
    result = call(*arguments)
    return time.perf_counter() - started, result


def in_turn(contenders: Sequence[Contender], number: int) -> list[Contender]:
    """Return the contenders in the order of round `number`.

    Shuffled: nobody always runs after the same other, whose threads may linger.
    """
    return random.Random(number).sample(contenders, len(contenders))


def write_all(contenders: Sequence[Contender], results: Results, say: Say) -> None:
    """Store every trajectory with every contender that stores anything.

    Between two of them everything is brought to the disk, so that nobody waits for
    what another has left in the page cache.
    """
    writers = [one for one in contenders if one.writes]
    for number, trajectory in enumerate(results.data):
        results.raw_bytes += num_bytes(trajectory)
        times: dict[str, float] = {}
        for one in in_turn(writers, number):
            os.sync()
            times[one.name], _ = timed(one.add, trajectory)
            one.settle()
        results.write.rounds.append(times)
        say(f"stored trajectory {number + 1} of {results.data.num_trajectories}")
    os.sync()
    results.disk = {one.name: one.disk_bytes() for one in writers}
    for one in writers:
        if type(one) is Zarrbuf:
            results.add_seconds = one.add_seconds
        if isinstance(one, WholeFiles):
            results.sync_seconds = one.sync_seconds


def check_equal(contenders: Sequence[Contender], count: int, say: Say) -> None:
    """Check that all return the same bytes for the same draws; also a warm-up.

    Raises:
        AssertionError: naming who differs and in which field.
    """
    (truth,) = (one for one in contenders if isinstance(one, Memory))
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
        say(f"same bytes: {one.name}")


def sample_all(
    contenders: Sequence[Contender],
    results: Results,
    say: Say,
    *,
    rounds: int,
    rare_rounds: int,
) -> None:
    """Draw one batch a round with everyone; rare ones in a few rounds only."""
    gc.collect()
    gc.freeze()  # a collection of all libraries' objects would empty the caches
    rare_at = {n * rounds // rare_rounds for n in range(rare_rounds)}
    for number in range(rounds):
        times: dict[str, float] = {}
        gc.collect()
        for one in in_turn(contenders, number):
            if one.rare and number not in rare_at:
                continue
            one.seed(1000 + number)
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            times[one.name], batch = timed(one.sample, results.batch_size)
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
            results.faults.setdefault(one.name, []).append(faults)
            del batch
        results.sample.rounds.append(times)
        say(f"drew batch {number + 1} of {rounds}")


def open_archives(folder: Path) -> int:
    """Open a buffer, all its archives and the indexes of their images."""
    store = open_store(folder)
    rows = store.rows
    for number in range(len(rows)):
        archive = store.open_archive(rows.row(number))
        for name, spec in archive.header.schema.items():
            if spec.is_big:
                archive.chunk_ranges(name)
    return len(rows)


def tiny_trajectory() -> Trajectory:
    """Return a trajectory with all fields of the data, but of a few bytes each."""
    (one,) = DataSet(1, num_steps=1, num_envs=1)
    for observations in (one.curr_obs, one.next_obs):
        for name in ("main_images", "wrist_images"):
            observations[name] = observations[name][..., :1, :1, :].clone()
    return one


def create_group(trajectory: Trajectory) -> None:
    """Make the group and arrays of a trajectory in memory, with zarr-python."""
    encoded = _encode(trajectory)
    group = zarr.create_group(store=MemoryStore())
    for name, spec in encoded.header.schema.items():
        shape = (*((2,) if name.startswith("obs/") else ()), 1, 1, *spec.shape)
        group.create_array(
            name, shape=shape, shards=shape, chunks=shape, dtype=spec.stored.name
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "not part of the specification"
        zarr.consolidate_metadata(group.store)


def measure_overheads(folder: Path, results: Results, *, repeats: int) -> None:
    """Measure opening, and what a trajectory costs whatever its size."""
    opened = [timed(open_archives, folder / "zarrbuf")[0] for _ in range(10)]
    tiny = tiny_trajectory()
    encoded, created, added = [], [], []
    with TrajectoryReplayBuffer(
        auto_save=True, auto_save_path=folder / "tiny"
    ) as buffer:
        for _ in range(repeats):
            encoded.append(timed(_encode, tiny)[0])
            created.append(timed(create_group, tiny)[0])
            added.append(timed(_add, buffer, tiny)[0])
    results.figures = {
        "open": statistics.median(opened),
        "metadata": statistics.median(encoded),
        "metadata with zarr-python": statistics.median(created),
        "smallest append": statistics.median(added),
    }


def _encode(trajectory: Trajectory) -> EncodedTrajectory:
    return encode_trajectory(trajectory, uuid=new_uuid(), codec="lz4")


def _add(buffer: TrajectoryReplayBuffer, trajectory: Trajectory) -> None:
    buffer.add_trajectories([trajectory])
    buffer.flush()


def measure_memory(folder: Path, results: Results, *, batches: int) -> None:
    """Measure the memory of fresh processes."""
    results.memory_batches = batches
    results.sampling = in_fresh_process(
        "sample", str(folder / "zarrbuf"), str(results.batch_size), str(batches)
    )
    results.keeping = in_fresh_process("keep", json.dumps(asdict(results.data)))
