"""Servers that several tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from s3 import S3, serving


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    with serving() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3) -> S3:
    """An empty bucket and no faults."""
    return s3_server.fresh()
