"""Part `batches`: 40 trajectories at 128 px, stored and sampled by everyone.

What a batch costs beside TorchRL, whole files, other Zarr libraries and memory; what
storing a trajectory costs beside `torch.save`; how small it gets; what is left over
whatever the size.
"""

from __future__ import annotations

import os
import statistics
import warnings
from pathlib import Path
from typing import Final

import zarr
from zarr.storage import MemoryStore

from benchmarks.contenders.contract import Contender
from benchmarks.contenders.from_files import (
    WITH_OUT,
    TorchrlMemmap,
    WholeFiles,
    Zarrbuf,
    ZarrbufReader,
    ZarrbufZstd,
)
from benchmarks.contenders.in_memory import (
    CopiedIn,
    Memory,
    MemoryFresh,
    MemoryFreshHuge,
    MemoryReused,
)
from benchmarks.contenders.readers import Tensorstore, ZarrPython
from benchmarks.data import DataSet, num_bytes
from benchmarks.measures.rounds import check_equal, draw_rounds, in_turn
from benchmarks.options import BATCH_SIZE, Options, say
from benchmarks.tables.batches import Results, render
from benchmarks.timing import timed
from zarrbuf import Trajectory, TrajectoryReplayBuffer
from zarrbuf.common.uuids import new_uuid
from zarrbuf.stores.opening import open_store
from zarrbuf.trajectory.encoding import EncodedTrajectory, encode_trajectory

HELD: Final = "zarrbuf, every batch held"


def run(options: Options) -> list[str]:
    """Measure and return the figures as Markdown."""
    steps = options.few(64, 16)
    data = DataSet(options.few(40, 3), num_steps=steps)
    count = options.few(BATCH_SIZE, 32)
    results = Results(data)
    needed = 2.5 * data.num_samples * data.sample_bytes
    with options.folder(needed_bytes=needed) as folder:
        contenders, memory = make_contenders(folder, data)
        write_all(contenders, results)
        for one in contenders:
            one.open()
        some = [one for one in contenders if not isinstance(one, CopiedIn)]
        check_equal(some, memory, count)
        results.drawn = draw_rounds(
            some,
            count,
            rounds=options.num_rounds(30),
            rare_rounds=options.few(5, 1),
        )
        for one in contenders:
            one.close()
        measure_overheads(folder, results, repeats=options.few(30, 3))
    return render(results, with_out=WITH_OUT)


def make_contenders(folder: Path, data: DataSet) -> tuple[list[Contender], Memory]:
    """Make all contenders, zarrbuf first; readers of its archives come after it."""
    zarrbuf = Zarrbuf(folder / "zarrbuf", data)
    memory = Memory(folder / "memory", data)
    contenders: list[Contender] = [
        zarrbuf,
        ZarrbufReader(zarrbuf, WITH_OUT, reuse=True),
        ZarrbufReader(zarrbuf, HELD, hold=True),
        ZarrbufZstd(folder / "zstd", data),
        TorchrlMemmap(folder / "torchrl", data),
        WholeFiles(folder / "whole", data),
        CopiedIn(folder / "copied", data),
        memory,
        MemoryReused(memory),
        MemoryFresh(memory),
        MemoryFreshHuge(memory),
        Tensorstore(zarrbuf),
        ZarrPython(zarrbuf),
    ]
    return contenders, memory


def write_all(contenders: list[Contender], results: Results) -> None:
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
    os.sync()
    say(f"stored {results.data.num_trajectories} trajectories")
    for one in writers:
        if one.disk_bytes():
            results.disk[one.name] = one.disk_bytes()
        if type(one) is Zarrbuf:
            results.add_seconds = one.add_seconds
        if isinstance(one, WholeFiles):
            results.sync_seconds = one.sync_seconds


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
    say("measured the costs that do not depend on size")


def _encode(trajectory: Trajectory) -> EncodedTrajectory:
    return encode_trajectory(trajectory, uuid=new_uuid(), codec="lz4")


def _add(buffer: TrajectoryReplayBuffer, trajectory: Trajectory) -> None:
    buffer.add_trajectories([trajectory])
    buffer.flush()
