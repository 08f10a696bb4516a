"""The clock of every storage, put forward."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from zarrbuf.storage.contract import Storage
from zarrbuf.storage.local import LocalStorage

HOUR_MS = 3_600_000


def put_forward(patch: pytest.MonkeyPatch, hours: Callable[[], float]) -> None:
    """Have storages say that it is later than it is; files keep their times."""
    for kind in (Storage, LocalStorage):

        def now_ms(self: Storage, real: Callable[..., int] = kind.now_ms) -> int:
            return real(self) + int(HOUR_MS * hours())

        patch.setattr(kind, "now_ms", now_ms)
