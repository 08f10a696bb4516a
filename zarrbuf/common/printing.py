"""Text that comes from files of others, made safe to show. Pure."""

from __future__ import annotations


def printable(text: str) -> str:
    """Escape what a terminal would obey: names come from files of others."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
