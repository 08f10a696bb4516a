"""Pins: a buffer keeps what others name, though it no longer lists it.

Owns when a pin is needed and which version it is of. A pin says who asked for it: uuid
and URL of the buffer that names the trajectories.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from zarrbuf.common.uuids import new_uuid
from zarrbuf.errors import (
    CommitUnknownError,
    ConflictError,
    InvalidInputError,
    StorageError,
    ZarrbufError,
)
from zarrbuf.manifest.actions import Action
from zarrbuf.manifest.commit_log import CommitLog, open_log
from zarrbuf.manifest.rows import Rows
from zarrbuf.manifest.snapshot import Snapshot
from zarrbuf.storage.resolve import StorageOptions
from zarrbuf.stores.logged import ChosenRows
from zarrbuf.stores.opening import open_log_store


@contextmanager
def pinned(
    parts: Sequence[ChosenRows], *, by: str, is_absent: Callable[[], bool]
) -> Iterator[None]:
    """Have the buffers that own some rows keep them; not if the block fails.

    Args:
        parts: the rows.
        by: uuid and URL of the buffer that will name them.
        is_absent: whether that buffer surely lists nothing; asked when the block
            failed, since a commit may land though its answer is lost.

    Raises:
        StorageError: if a buffer cannot be written.
        ConflictError: if a row was taken off its list meanwhile.
    """
    made: list[tuple[CommitLog, str, int]] = []
    try:
        for part in parts:
            for number in np.unique(part.rows.column("base")).tolist():
                mine = part.rows.take(
                    np.flatnonzero(part.rows.column("base") == number)
                )
                log, versions, is_kept = _owner(part, number)
                for version in versions:
                    made.append((log, _pin(log, version, by=by), version))
                if not is_kept:
                    _check_listed(mine, log)
        yield
    except BaseException as exc:
        if not isinstance(exc, CommitUnknownError) and is_absent():
            for log, pin, version in made:
                with suppress(ZarrbufError):
                    _write(log, "unpin", pin, version, by)
        raise


def _owner(part: ChosenRows, number: int) -> tuple[CommitLog, list[int], bool]:
    """Return the log of the owner of a base, the versions to pin, if they are already.

    What a buffer that is merged again names, its owner keeps for it.
    """
    log = part.store.log
    if number == 0:
        return log, [part.snapshot.version], False
    owner = open_log(part.store.home_of(number))
    pins = owner.snapshot.pins.values()
    versions = {p["version"] for p in pins if str(p["by"]).startswith(log.uuid)}
    return owner, sorted(versions or {owner.snapshot.version}), bool(versions)


def _pin(log: CommitLog, version: int, *, by: str) -> str:
    pin = new_uuid()
    try:
        _write(log, "pin", pin, version, by)
    except StorageError as exc:
        raise StorageError(
            f"{log.storage.url} cannot be told to keep what is referenced ({exc}); "
            "copy it, or go without (pin=False, --no-pin) if nobody ever removes from "
            "it"
        ) from exc
    return pin


def _write(log: CommitLog, action: str, pin: str, version: int, by: str) -> None:
    one: dict[str, Any] = {"action": action, "pin": pin, "version": version, "by": by}
    log.commit(lambda now: [one], op=action)


def _check_listed(rows: Rows, log: CommitLog) -> None:
    """Check that rows are listed still: so no vacuum has seen them as free."""
    gone = np.setdiff1d(rows.fixed["uuid"], log.snapshot.rows.fixed["uuid"])
    if len(gone):
        raise ConflictError(
            f"{log.storage.url} took {len(gone)} of the trajectories off its list, and "
            "keeps them for nobody; try again, or copy them"
        )


def unpin(
    buffer: Any, by: str, *, storage_options: StorageOptions | None = None
) -> list[str]:
    """Let go of what a buffer keeps for another one, which is gone.

    Args:
        buffer: path, URL or open buffer.
        by: uuid or URL of the other one, as `read_history` shows it.
        storage_options: for object stores, see `TrajectoryReplayBuffer`.

    Returns:
        Who had asked for each pin that was let go.

    Raises:
        InvalidInputError: if there is no such pin, or it is a folder of RLinf's.
        NotFoundError: if there is no buffer.
        StorageError: if the storage failed.
    """
    store = open_log_store(buffer, storage_options, what="unpin")
    gone: list[str] = []

    def build(now: Snapshot) -> list[Action]:
        found = {
            pin: one
            for pin, one in now.pins.items()
            if by in str(one["by"]).split(" ", 1)
        }
        gone[:] = [str(one["by"]) for one in found.values()]
        if not found:
            known = sorted({str(one["by"]) for one in now.pins.values()})
            raise InvalidInputError(
                f"{store.url} keeps nothing for {by!r:.200}; it does for: "
                f"{', '.join(known) or 'nobody'}"
            )
        return [{"action": "unpin", "pin": p, **one} for p, one in found.items()]

    store.log.commit(build, op="unpin")
    return gone
