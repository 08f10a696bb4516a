"""Fresh names that nothing else has. Pure but for the randomness."""

from __future__ import annotations

import uuid


def new_uuid() -> str:
    """Return a fresh random uuid, 32 hex digits."""
    return uuid.uuid4().hex
