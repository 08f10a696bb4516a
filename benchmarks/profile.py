"""`python -m benchmarks.profile`: where the time of a batch and of an append goes.

A batch is taken apart by doing ever more of the work of its image chunks, each stage a
loop of its own: what a stage adds is its cost. Then the buffer says itself what its
batches took. An append is profiled with one thread, so that the profiler sees all of
it. No figure here is for a table: see `run`.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import logging
import pstats
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.data import DataSet
from benchmarks.timing import page_faults, timed
from zarrbuf import Trajectory, TrajectoryReplayBuffer
from zarrbuf.archive import chunks
from zarrbuf.archive import decode as decode_module
from zarrbuf.archive.chunks import ChunkReads, crc32c
from zarrbuf.archive.decode import have_loops
from zarrbuf.archive.spec import sorted_fields
from zarrbuf.common.thread_pool import Workers
from zarrbuf.common.uuids import new_uuid
from zarrbuf.sampling.index_map import IndexMap, ReadPlan, plan_batch
from zarrbuf.storage.local import LocalStorage
from zarrbuf.stores.contract import NewTrajectory
from zarrbuf.stores.logged import LogStore
from zarrbuf.stores.opening import open_store
from zarrbuf.trajectory.archived import TrajectoryArchive
from zarrbuf.trajectory.encoding import encode_trajectory

THREADS = (1, 2, 4)
STATS = ("plan_seconds", "read_seconds", "decode_seconds", "gather_seconds")


class Bench:
    """A buffer on disk, and batches drawn from it stage by stage."""

    def __init__(self, folder: Path, count: int) -> None:
        """Open the buffer in `folder`; batches have `count` samples."""
        store = open_store(folder)
        rows = store.rows
        self.archives: list[TrajectoryArchive] = [
            store.open_archive(rows.row(number)) for number in range(len(rows))
        ]
        fields = sorted_fields(self.archives[0].header.schema)
        self.big = [field for field in fields if field.spec.is_big]
        self.window = IndexMap.of(rows.column("T"), rows.column("B"))
        self.count = count
        self.generator = torch.Generator().manual_seed(1)
        self.used = self.fresh()

    def draw(self) -> npt.NDArray[np.int64]:
        """Draw the samples of a batch."""
        draws: npt.NDArray[np.int64] = torch.randint(
            0, self.window.total_samples, (self.count,), generator=self.generator
        ).numpy()
        return draws

    def fresh(self) -> list[npt.NDArray[np.uint8]]:
        """Return memory for the images of a batch, not touched yet."""
        return [
            np.empty((self.count, field.spec.row_bytes), np.uint8) for field in self.big
        ]

    def look_up(self, plan: ReadPlan) -> list[ChunkReads]:
        """Find the image chunks of a plan; the data has no extra image rows."""
        archives = [self.archives[position] for position in plan.positions.tolist()]
        counts, flat, rows = plan.counts, plan.flat, plan.rows
        sizes = [one.header.num_steps * one.header.num_envs for one in archives]
        following = np.repeat(sizes, counts)
        return [
            ChunkReads(
                [archive.shard(field.field) for archive in archives],
                counts,
                flat + following * (field.stage or 0),
                out,
                rows,
                field.spec.row_bytes,
            )
            for field, out in zip(self.big, self.used, strict=True)
        ]


def stored(reads: Sequence[ChunkReads]) -> list[bytes]:
    """Copy the stored bytes out of the mapped files."""
    found = []
    for one in reads:
        parts = np.split(one.chunks, np.cumsum(one.counts)[:-1])
        for shard, numbers in zip(one.shards, parts, strict=True):
            for start, stop in shard.ranges[numbers].tolist():
                found.append(bytes(shard.source[start:stop]))
    return found


def checksums(reads: Sequence[ChunkReads]) -> None:
    """Do that, and check the bytes."""
    for body in stored(reads):
        crc32c(body)


def touch(batch: list[npt.NDArray[np.uint8]]) -> None:
    """Touch every page of a batch."""
    for field in batch:
        field.reshape(-1)[::4096] = 0


def one_batch(bench: Bench, workers: dict[int, Workers]) -> dict[str, float]:
    """Take one batch apart; milliseconds by stage."""
    times: dict[str, float] = {}

    def stage(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        seconds, result = timed(call, *arguments)
        times[name] = seconds * 1e3
        return result

    draws = stage("draw", bench.draw)
    plan = stage("plan", plan_batch, draws, bench.window)
    reads = stage("look up chunks", bench.look_up, plan)
    stored(reads)  # the pages are mapped and in the caches for every stage alike
    stage("copy stored bytes", stored, reads)
    stage("that and crc32c", checksums, reads)
    stage("decode in a Python loop", chunks.decode_reads_plainly, reads)
    if have_loops():
        for number, some in workers.items():
            name = f"decode in the compiled loop, {number} threads"
            stage(name, decode_module.decode_reads, reads, some)
    faults = page_faults()
    stage("touch fresh pages", lambda: touch(bench.fresh()))
    times["page faults of that"] = page_faults() - faults
    return times


def show(title: str, every: Sequence[dict[str, float]]) -> None:
    """Print medians."""
    print(title)
    for name in every[0]:
        value = median(times[name] for times in every)
        print(f"  {name:40} {value:10,.2f}{'' if 'faults' in name else ' ms'}")


def profile_sampling(folder: Path, *, count: int, batches: int) -> None:
    """Print where the time of a batch goes."""
    bench = Bench(folder, count)
    workers = {number: Workers(number) for number in THREADS}
    for _ in range(5):
        one_batch(bench, workers)
    every = [one_batch(bench, workers) for _ in range(batches)]
    show(f"the images of {count} samples, medians of {batches} batches", every)
    for some in workers.values():
        some.close()
    for number in THREADS:
        profile_buffer(folder, number, count=count, batches=batches)


def profile_buffer(folder: Path, threads: int, *, count: int, batches: int) -> None:
    """Print what a buffer says that its batches took, filled again or not."""
    with TrajectoryReplayBuffer(sample_window_size=0, num_threads=threads) as buffer:
        buffer.load_checkpoint(folder)
        batch = buffer.sample(count)
        for out in (None, batch):
            every = []
            for _ in range(batches + 5):
                faults = page_faults()
                seconds, _ = timed(lambda out=out: buffer.sample(count, out=out))
                stats = buffer.get_stats(detailed=True)
                every.append(
                    {name: stats[f"last_{name}"] * 1e3 for name in STATS}
                    | {"all": seconds * 1e3, "page faults": page_faults() - faults}
                )
            call = f"sample({count}{', out=batch' if out else ''})"
            show(f"{call}, {threads} threads", every[5:])


def store_all(folder: Path, trajectories: list[Trajectory]) -> None:
    """Encode and append, in the calling thread."""
    store = LogStore.open_or_create(LocalStorage(folder), seed=1, codec="lz4")
    for number, trajectory in enumerate(trajectories):
        encoded = encode_trajectory(trajectory, uuid=new_uuid(), codec="lz4")
        store.append([NewTrajectory.of(encoded, trajectory_id=number)])


def profile_adding(folder: Path, trajectories: list[Trajectory]) -> None:
    """Print where the time of an append goes."""
    for number in THREADS:
        workers = Workers(number)
        times = [
            timed(
                lambda one=one, workers=workers: encode_trajectory(
                    one, uuid=new_uuid(), codec="lz4", workers=workers
                )
            )[0]
            for one in trajectories * 2
        ]
        workers.close()
        print(f"encode, {number} threads: {median(times) * 1e3:.1f} ms")
    profiler = cProfile.Profile()
    profiler.enable()
    store_all(folder, trajectories)
    profiler.disable()
    text = io.StringIO()
    stats = pstats.Stats(profiler, stream=text)
    stats.strip_dirs().sort_stats("tottime").print_stats(16)
    count = len(trajectories)
    print(f"encode with one thread and append, {count} trajectories together")
    print("\n".join(line for line in text.getvalue().splitlines() if line.strip()))


def main() -> None:
    """Write a few trajectories and print both profiles."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile")
    parser.add_argument("--trajectories", type=int, default=8, metavar="N")
    parser.add_argument("--batches", type=int, default=20, metavar="N")
    parser.add_argument("--count", type=int, default=256, metavar="N")
    parser.add_argument("--noise", type=float, default=0.0, metavar="SIGMA")
    parser.add_argument("--work-dir", type=Path, metavar="DIR")
    options = parser.parse_args()
    logging.basicConfig()
    with tempfile.TemporaryDirectory(
        prefix="zarrbuf-profile-", dir=options.work_dir
    ) as name:
        folder = Path(name) / "buffer"
        data = DataSet(options.trajectories, noise=options.noise)
        with TrajectoryReplayBuffer(auto_save=True, auto_save_path=folder) as buffer:
            for trajectory in data:
                buffer.add_trajectories([trajectory])
        profile_sampling(folder, count=options.count, batches=options.batches)
        print()
        few = list(DataSet(min(4, options.trajectories), noise=options.noise))
        profile_adding(Path(name) / "again", few)


if __name__ == "__main__":
    main()
