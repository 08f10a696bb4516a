"""Times as files and commits tell them, for people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

_MAX_MS: Final = 253_402_300_799_000
"""The end of the year 9999: a clock may say anything."""


def to_datetime(ms: int) -> datetime:
    """Return a time in ms since 1970; the nearest that there is a text for."""
    return datetime.fromtimestamp(min(max(ms, 0), _MAX_MS) / 1000, UTC)
