"""What a run is asked for, as every part of it sees it."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BATCH_SIZE: Final = 256
NOISE: Final = 2.0
"""Standard deviation of the camera noise, in grey levels."""
_STARTED: Final = time.monotonic()


@dataclass(frozen=True)
class Options:
    """What a run is asked for.

    Attributes:
        quick: a smoke test: little data, few rounds, figures that mean nothing.
        rounds: batches drawn by each contender, None for what the part thinks right.
        work_dir: where data is stored; None for the system's temporary directory.
    """

    quick: bool = False
    rounds: int | None = None
    work_dir: Path | None = None

    def num_rounds(self, usual: int) -> int:
        """Return how many batches each contender draws."""
        return self.rounds or (2 if self.quick else usual)

    def few(self, usual: int, quick: int) -> int:
        """Return a number of things: the usual one, or that of a smoke test."""
        return quick if self.quick else usual

    @contextmanager
    def folder(self, *, needed_bytes: float) -> Iterator[Path]:
        """Give a folder that is deleted afterwards.

        Args:
            needed_bytes: leave at once, not after minutes, if there is less room.

        Raises:
            OSError: if there is less room.
        """
        with tempfile.TemporaryDirectory(
            prefix="zarrbuf-bench-", dir=self.work_dir, ignore_cleanup_errors=True
        ) as name:
            free = shutil.disk_usage(name).free
            if free < needed_bytes:
                raise OSError(
                    f"{Path(name).parent} has {free / 1e9:.1f} GB free; "
                    f"{needed_bytes / 1e9:.1f} GB are needed, name another folder "
                    "with --work-dir"
                )
            yield Path(name)


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"[{time.monotonic() - _STARTED:6.1f} s] {text}", flush=True)
