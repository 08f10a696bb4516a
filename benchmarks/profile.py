"""`python -m benchmarks.profile`: where the time of a batch and of an append goes.

A batch is taken apart by doing ever more of the work of its image chunks, each stage a
loop of its own: what a stage adds is its cost. An append is profiled with one thread,
so that the profiler sees all of it. No figure here is for a table: see `run`.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import itertools
import logging
import pstats
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.data import DataSet
from zarrbuf import Trajectory, TrajectoryReplayBuffer
from zarrbuf.blosc import address_of, decompress_into
from zarrbuf.encoding import encode_trajectory
from zarrbuf.format import new_uuid
from zarrbuf.opening import open_store
from zarrbuf.reader import BatchReader, sorted_fields
from zarrbuf.sampling import ReadPlan, Window, plan_batch
from zarrbuf.shards import CRC_RESIDUE, Source, crc32c, decode_chunks_at
from zarrbuf.storage import LocalStorage
from zarrbuf.stores import LogStore, NewTrajectory
from zarrbuf.trajectory_archive import TrajectoryArchive

NUMCODECS = "blosc by numcodecs, beyond that"


@dataclass(frozen=True)
class Chunk:
    """One image chunk of a batch: where it lies and which row it fills."""

    source: Source
    start: int
    stop: int
    field: int
    row: int


class Bench:
    """A buffer on disk, and batches drawn from it stage by stage."""

    def __init__(self, folder: Path, count: int) -> None:
        """Open the buffer in `folder`; batches have `count` samples."""
        store = open_store(folder)
        rows = store.rows
        self.archives: list[TrajectoryArchive] = [
            store.open_archive(rows.row(number)) for number in range(len(rows))
        ]
        self.fields = sorted_fields(self.archives[0].header.schema)
        self.big = [field for field in self.fields if field.spec.is_big]
        self.small = [field for field in self.fields if not field.spec.is_big]
        self.window = Window.of(rows.column("T"), rows.column("B"))
        self.count = count
        self.generator = torch.Generator().manual_seed(1)
        self.reader = BatchReader(cache_bytes=256 << 20, archive_bytes=256 << 20)
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

    def look_up(self, plan: ReadPlan) -> list[Chunk]:
        """Find the image chunks of a plan; the data has no extra image rows."""
        chunks: list[Chunk] = []
        for group in plan.groups:
            archive = self.archives[group.position]
            size = archive.header.num_steps * archive.header.num_envs
            for number, field in enumerate(self.big):
                ranges = archive.chunk_ranges(field.field)
                ranges = ranges[group.flat + (field.stage or 0) * size]
                for (start, stop), row in zip(
                    ranges.tolist(), group.out.tolist(), strict=True
                ):
                    chunks.append(Chunk(archive.source, start, stop, number, row))
        return chunks

    def read(self, plan: ReadPlan, *, small_only: bool = False) -> Any:
        """Read a batch as the buffer does."""
        fields = self.small if small_only else self.fields
        return self.reader.read_batch(plan, fields, self.archives.__getitem__)


def slices(chunks: list[Chunk]) -> None:
    """Copy the stored bytes out of the mapped files."""
    for chunk in chunks:
        chunk.source[chunk.start : chunk.stop]


def checksums(chunks: list[Chunk]) -> None:
    """Do that, and check the bytes."""
    for chunk in chunks:
        assert crc32c(chunk.source[chunk.start : chunk.stop]) == CRC_RESIDUE


def through_numcodecs(chunks: list[Chunk], batch: list[npt.NDArray[np.uint8]]) -> None:
    """Do that, and decompress with numcodecs' Python function."""
    for chunk in chunks:
        body = chunk.source[chunk.start : chunk.stop]
        assert crc32c(body) == CRC_RESIDUE
        decompress_into(body[:-4], batch[chunk.field][chunk.row])


def decoded(chunks: list[Chunk], batch: list[npt.NDArray[np.uint8]]) -> None:
    """Do it as zarrbuf does: the C function, headers checked."""
    first = [address_of(field) for field in batch]
    size = batch[0][:1].nbytes
    for _, some in itertools.groupby(chunks, key=lambda chunk: id(chunk.source)):
        here = list(some)
        decode_chunks_at(
            here[0].source,
            [(chunk.start, chunk.stop) for chunk in here],
            [first[chunk.field] + chunk.row * size for chunk in here],
            size,
            codec="lz4",
            where="profile",
        )


def touch(batch: list[npt.NDArray[np.uint8]]) -> None:
    """Touch every page of a batch."""
    for field in batch:
        field.reshape(-1)[::4096] = 0


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Return milliseconds and result."""
    started = time.perf_counter()
    result = call(*arguments)
    return (time.perf_counter() - started) * 1e3, result


def page_faults() -> int:
    """Return the minor page faults of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def one_batch(bench: Bench) -> dict[str, float]:
    """Take one batch apart; milliseconds by stage, each on top of the one before."""
    times: dict[str, float] = {}
    times["draw"], draws = timed(bench.draw)
    times["plan"], plan = timed(plan_batch, draws, bench.window)
    times["look up chunks"], chunks = timed(bench.look_up, plan)
    stages: list[tuple[str, Callable[[], Any]]] = [
        ("copy stored bytes out of the map", lambda: slices(chunks)),
        ("crc32c", lambda: checksums(chunks)),
        ("header checks and blosc", lambda: decoded(chunks, bench.used)),
        (
            NUMCODECS,
            lambda: through_numcodecs(chunks, bench.used),
        ),
    ]
    slices(chunks)  # the pages are mapped and in the caches for every stage alike
    before = 0.0
    for name, call in stages:
        total, _ = timed(call)
        times[name] = total - before
        before = total
    times["gather small fields"], _ = timed(lambda: bench.read(plan, small_only=True))
    parts = sum(times.values()) - times[NUMCODECS]
    faults = page_faults()
    whole, batch = timed(bench.read, plan)
    times["page faults of read_batch"] = page_faults() - faults
    del batch
    times["touch fresh pages"], _ = timed(lambda: touch(bench.fresh()))
    times["sum of the parts above"] = parts
    times["draw, plan and read_batch"] = times["draw"] + times["plan"] + whole
    return times


def profile_sampling(folder: Path, *, count: int, batches: int) -> None:
    """Print where the time of a batch goes."""
    bench = Bench(folder, count)
    for _ in range(5):
        one_batch(bench)
    every = [one_batch(bench) for _ in range(batches)]
    print(f"sample({count}), median ms of {batches} batches")
    for name in every[0]:
        value = median(times[name] for times in every)
        unit = "" if "faults" in name else " ms"
        print(f"  {name:34} {value:10,.2f}{unit}")
    with TrajectoryReplayBuffer(sample_window_size=0) as buffer:
        buffer.load_checkpoint(folder)
        totals, faults = [], []
        for _ in range(batches + 5):
            before = page_faults()
            totals.append(timed(buffer.sample, count)[0])
            faults.append(page_faults() - before)
    print(f"  {'TrajectoryReplayBuffer.sample':34} {median(totals[5:]):10,.2f} ms")
    print(f"  {'page faults of it':34} {median(faults[5:]):10,.2f}")


def store_all(folder: Path, trajectories: list[Trajectory], threads: int) -> None:
    """Encode and append, in the calling thread."""
    store = LogStore.open_or_create(LocalStorage(folder), seed=1, codec="lz4")
    for number, trajectory in enumerate(trajectories):
        encoded = encode_trajectory(
            trajectory, uuid=new_uuid(), codec="lz4", num_threads=threads
        )
        store.append([NewTrajectory.of(encoded, trajectory_id=number)])


def profile_adding(folder: Path, trajectories: list[Trajectory]) -> None:
    """Print where the time of an append goes."""
    count = len(trajectories)
    for threads in (1, 2, 4):
        times = []
        for trajectory in trajectories:
            times.append(
                timed(
                    lambda trajectory=trajectory, threads=threads: encode_trajectory(
                        trajectory, uuid=new_uuid(), codec="lz4", num_threads=threads
                    )
                )[0]
            )
        print(f"encode, {threads} threads: {median(times):.1f} ms")
    profiler = cProfile.Profile()
    profiler.enable()
    store_all(folder, trajectories, 1)
    profiler.disable()
    text = io.StringIO()
    stats = pstats.Stats(profiler, stream=text)
    stats.strip_dirs().sort_stats("tottime").print_stats(16)
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
