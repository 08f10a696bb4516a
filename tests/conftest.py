"""Servers that several tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from support.s3 import GCS, S3, serving_gcs, serving_s3

os.environ["MPLBACKEND"] = "agg"  # no window opens, whatever display there is
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # As a shell does to what it starts with `&`; the commands under test would, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def nothing_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have buffers in memory keep archives alone, small trajectories too."""
    monkeypatch.setattr("zarrbuf.replay.buffer.pack_trajectory", lambda *_, **__: None)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    with serving_s3() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3) -> S3:
    """An empty bucket and no faults."""
    return s3_server.fresh()


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[GCS]:
    with serving_gcs() as server:
        yield server


@pytest.fixture
def gcs(gcs_server: GCS) -> GCS:
    """An empty bucket and no faults."""
    return gcs_server.fresh()
