"""Real object stores on loopback, and the faults in front of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zarrbuf.storage.contract import Storage
from zarrbuf.storage.resolve import open_storage

PROXY = Path(__file__).with_name("fault_proxy.py")
CREDENTIALS = {"key": "test-key", "secret": "test-secret", "region": "us-east-1"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def ask(port: int, path: str, method: str = "GET", data: Any = None) -> Any:
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        data=body,
        method=method,
        headers={} if body is None else {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        text = answer.read()
    return json.loads(text) if text.startswith((b"[", b"{")) else text


@dataclass(frozen=True)
class S3:
    """A bucket of its own, behind the proxy.

    Attributes:
        port: of the proxy.
        direct_port: of the server itself.
        bucket: its name.
    """

    port: int
    direct_port: int
    bucket: str

    def url(self, folder: str = "buffer") -> str:
        return f"s3://{self.bucket}/{folder}"

    def options(self, client: str = "s3fs", **more: Any) -> dict[str, Any]:
        endpoint = f"http://127.0.0.1:{self.port}"
        return {**CREDENTIALS, "endpoint_url": endpoint, "client": client, **more}

    def storage(
        self, folder: str = "buffer", client: str = "s3fs", **more: Any
    ) -> Storage:
        return open_storage(self.url(folder), self.options(client, **more))

    def plan(self, *rules: dict[str, Any], latency_s: float = 0.0) -> None:
        """Tell the proxy what to do from now on; nothing by default."""
        filled = [{"times": 10**9, **rule} for rule in rules]
        ask(self.port, "/_plan", "PUT", {"rules": filled, "latency_s": latency_s})

    def log(self) -> list[dict[str, Any]]:
        """Return what was asked for since the last call."""
        found: list[dict[str, Any]] = ask(self.port, "/_log")
        ask(self.port, "/_log", "DELETE")
        return found

    def fresh(self) -> S3:
        """Return the same server with a new bucket and no faults."""
        bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        ask(self.direct_port, f"/{bucket}", "PUT")
        found = S3(self.port, self.direct_port, bucket)
        found.plan()
        found.log()
        return found


@dataclass(frozen=True)
class GCS:
    """A bucket of an emulator of GCS, behind the proxy."""

    port: int
    direct_port: int
    bucket: str

    def url(self, folder: str = "buffer") -> str:
        return f"gs://{self.bucket}/{folder}"

    def options(self, **more: Any) -> dict[str, Any]:
        endpoint = f"http://127.0.0.1:{self.port}"
        return {"endpoint_url": endpoint, "anon": True, "client": "gcsfs", **more}

    def storage(self, **more: Any) -> Storage:
        return open_storage(self.url(), self.options(**more))

    def plan(self, *rules: dict[str, Any]) -> None:
        S3(self.port, self.direct_port, "").plan(*rules)

    def fresh(self) -> GCS:
        """Return the same server with a new bucket and no faults."""
        bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        ask(self.direct_port, "/storage/v1/b", "POST", {"name": bucket})
        found = GCS(self.port, self.direct_port, bucket)
        found.plan()
        return found


@contextmanager
def serving_s3() -> Iterator[S3]:
    """Run moto's server and the proxy until the block ends."""
    with serving("-m", "moto.server", "-H", "127.0.0.1", "-p") as (front, direct):
        yield S3(front, direct, "")


@contextmanager
def serving_gcs() -> Iterator[GCS]:
    """Run an emulator of GCS and the proxy until the block ends."""
    command = ("-m", "gcp_storage_emulator", "start", "--host=127.0.0.1")
    with serving(*command, "--in-memory", "--port") as (front, direct):
        yield GCS(front, direct, "")


@contextmanager
def serving(*command: str) -> Iterator[tuple[int, int]]:
    """Run a server that is told its port last, and the proxy; their ports."""
    direct, front = free_port(), free_port()
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(
        [sys.executable, *command, str(direct)], env=environment, **quiet
    )
    proxy = subprocess.Popen(
        [sys.executable, str(PROXY), str(front), str(direct)], env=environment, **quiet
    )
    try:
        for port in (direct, front):
            wait_for(port, server, proxy)
        yield front, direct
    finally:
        for process in (server, proxy):
            process.kill()
            process.wait()


def wait_for(port: int, *processes: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert all(process.poll() is None for process in processes), "a server ended"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"nothing answers on port {port}")
