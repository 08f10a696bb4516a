"""Part `remote`: the first batch from a buffer on an object store, nothing known yet.

A small S3 server (`object_server`, a process of its own) answers every request after
30 ms. Each round opens the buffer anew, with each client. RLinf has no
object stores: its way here is to download every file, one after the other, and to load
it whole.
"""

from __future__ import annotations

import io
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.contenders.from_files import WholeFiles, Zarrbuf
from benchmarks.data import DataSet
from benchmarks.measures.object_server import BUCKET
from benchmarks.measures.rounds import store_all
from benchmarks.options import BATCH_SIZE, Options, say
from benchmarks.tables import markdown
from benchmarks.tables.markdown import Target, mb, ms
from benchmarks.timing import Times, timed
from zarrbuf import TrajectoryReplayBuffer
from zarrbuf.storage.resolve import open_storage

LATENCY_S: Final = 0.03
CLIENTS: Final = ("s3fs", "obstore")
WHOLE: Final = "every `.pt` file downloaded and loaded whole (RLinf's way)"
MAX_OPENING_BYTES: Final = 128 << 10


@dataclass
class Found:
    """What was measured.

    Attributes:
        times: seconds, by what was done.
        requests: requests, by what was done.
        num_bytes: bytes that the server sent, by what was done.
        needed: stored bytes of the chunks of each first batch.
        archives: archives opened for each first batch.
    """

    times: Times = field(default_factory=Times)
    requests: dict[str, list[int]] = field(default_factory=dict)
    num_bytes: dict[str, list[int]] = field(default_factory=dict)
    needed: list[int] = field(default_factory=list)
    archives: list[int] = field(default_factory=list)


class Server:
    """The object server, running."""

    def __init__(self, port: int) -> None:
        """Use the one that listens on `port`."""
        self.port = port

    def options(self, client: str) -> dict[str, Any]:
        """Return storage options for it."""
        return {
            "endpoint_url": f"http://127.0.0.1:{self.port}",
            "key": "key",
            "secret": "secret",
            "region": "us-east-1",
            "client": client,
        }

    def count(self) -> Mapping[str, int]:
        """Return requests and bytes since the last call."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_count") as answer:
            found: dict[str, int] = json.loads(answer.read())
            return found


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Run the object server over a folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    module = "benchmarks.measures.object_server"
    command = [sys.executable, "-m", module, str(port), str(folder), str(LATENCY_S)]
    process = subprocess.Popen(command, env=dict(os.environ))
    try:
        server = Server(port)
        for _ in range(200):
            try:
                server.count()
                break
            except OSError:
                time.sleep(0.05)
        yield server
    finally:
        process.kill()
        process.wait()


def run(options: Options) -> list[str]:
    """Measure and return the figures as Markdown."""
    data = DataSet(options.few(40, 2), options.few(64, 16))
    found = Found()
    needed = 1.3 * data.num_samples * data.sample_bytes
    with options.folder(needed_bytes=needed) as folder:
        (folder / "bucket").mkdir()
        contenders = [
            Zarrbuf(folder / "bucket" / "zarrbuf", data),
            WholeFiles(folder / "bucket" / "files", data),
        ]
        store_all(contenders, data)
        for one in contenders:
            one.close()
        say(f"stored {data.content}")
        with serving(folder / "bucket") as server:
            for number in range(options.num_rounds(7)):
                times = {}
                for client in CLIENTS:
                    times.update(one_round(server, client, found, number))
                found.times.rounds.append(times)
            say("drew from the buffer")
            names = sorted(
                path.name for path in (folder / "bucket" / "files").iterdir()
            )
            found.times.rounds.append({WHOLE: whole_files(server, names, found)})
    return render(data, found)


def one_round(server: Server, client: str, found: Found, seed: int) -> dict[str, float]:
    """Open the buffer with one client, draw a batch, and the same one again."""
    times: dict[str, float] = {}

    def note(name: str, seconds: float) -> None:
        counted = server.count()
        times[f"{client}: {name}"] = seconds
        found.requests.setdefault(f"{client}: {name}", []).append(counted["requests"])
        found.num_bytes.setdefault(f"{client}: {name}", []).append(counted["bytes"])

    buffer = TrajectoryReplayBuffer(
        sample_window_size=0,
        cache_size=0,
        prefetch_batches=0,
        storage_options=server.options(client),
    )
    server.count()
    note("open", timed(lambda: buffer.load_checkpoint(f"s3://{BUCKET}/zarrbuf"))[0])
    buffer.manual_seed(seed)
    note("first batch", timed(lambda: buffer.sample(BATCH_SIZE))[0])
    stats = buffer.get_stats(detailed=True)
    found.needed.append(int(stats["bytes_read"]))
    found.archives.append(int(stats["archives_opened"]))
    buffer.manual_seed(seed)
    note("the same batch again", timed(lambda: buffer.sample(BATCH_SIZE))[0])
    note("another batch", timed(lambda: buffer.sample(BATCH_SIZE))[0])
    buffer.close()
    return times


def whole_files(server: Server, names: list[str], found: Found) -> float:
    """Download every file and load it; seconds."""
    storage = open_storage(f"s3://{BUCKET}/files", server.options("obstore"))

    def load() -> None:
        for name in names:
            torch.load(io.BytesIO(storage.read(name)), weights_only=True)

    server.count()
    seconds, _ = timed(load)
    counted = server.count()
    found.requests[WHOLE] = [counted["requests"]]
    found.num_bytes[WHOLE] = [counted["bytes"]]
    return seconds


def render(data: DataSet, found: Found) -> list[str]:
    """Return the figures as Markdown."""
    limits = {"s3fs": 1.5, "obstore": 1.0}
    targets = [
        Target(
            f"first `sample({BATCH_SIZE})`, {client}, {LATENCY_S * 1e3:g} ms a request",
            limits[client],
            found.times.median(f"{client}: first batch"),
            unit=" s",
        )
        for client in CLIENTS
    ]
    pairs = [
        (sent - opened * MAX_OPENING_BYTES) / need
        for client in CLIENTS
        for sent, need, opened in zip(
            found.num_bytes[f"{client}: first batch"],
            found.needed[CLIENTS.index(client) :: len(CLIENTS)],
            found.archives[CLIENTS.index(client) :: len(CLIENTS)],
            strict=True,
        )
    ]
    targets.append(
        Target(
            "bytes fetched, less 128 KiB for each archive opened / chunks drawn",
            1.5,
            max(pairs),
        )
    )
    again = [found.requests[f"{client}: the same batch again"] for client in CLIENTS]
    most = max(max(one) for one in again)
    targets.append(Target("requests of the same batch again", 0, most))
    rows = []
    for name in found.times.names:
        first, third = found.times.spread(name)
        rows.append(
            (
                name,
                ms(found.times.median(name)),
                f"{ms(first)} to {ms(third)}",
                f"{statistics.median(found.requests[name]):,.0f}",
                mb(statistics.median(found.num_bytes[name])),
            )
        )
    head = ("what", "median ms", "quartiles", "requests", "MB")
    return [
        markdown.targets(targets),
        f"{data.content}; the chunks of a batch of {BATCH_SIZE} take "
        f"{mb(statistics.median(found.needed))} MB:",
        markdown.table(head, rows),
    ]
