"""The identity of a buffer, `zarrbuf.json`: created once, never changed."""

from __future__ import annotations

import random
import re
import time
from contextlib import suppress
from typing import Any, Final

from zarrbuf.archive.zarr_json import (
    MAX_METADATA_BYTES,
    check_spec,
    encode_json,
    parse_json,
)
from zarrbuf.common.uuids import new_uuid
from zarrbuf.errors import (
    ConflictError,
    FormatError,
    StorageError,
    UnsupportedVersionError,
)
from zarrbuf.manifest.layout import ROOT_NAME
from zarrbuf.storage.contract import Outcome, Storage

_COMMIT_METHODS: Final = ("link", "if-none-match", "generation", "lock", "single")


def encode_root(storage: Storage, *, uuid: str | None = None) -> bytes:
    """Return the bytes of a fresh `zarrbuf.json`; `uuid` is a fresh one if None."""
    return encode_json(
        {
            "format": "zarrbuf",
            "spec": 1,
            "uuid": uuid or new_uuid(),
            "created_ms": time.time_ns() // 1_000_000,
            "commit": storage.commit_method,
            "features": [],
        }
    )


def parse_root(data: bytes, *, where: str) -> dict[str, Any]:
    """Check and return `zarrbuf.json`.

    Raises:
        FormatError: if it is malformed.
        UnsupportedVersionError: if it is of a newer spec or asks for unknown features.
    """
    root = parse_json(data, where=where)
    if root.get("format") != "zarrbuf":
        raise FormatError(f"{where}: format is {root.get('format')!r:.40}")
    check_spec(root.get("spec"), where=where)
    fields = {"uuid": str, "created_ms": int, "commit": str, "features": list}
    for name, kind in fields.items():
        if type(root.get(name)) is not kind:
            raise FormatError(f"{where}: {name} is {root.get(name)!r:.80}")
    if (
        set(root) != {"format", "spec", *fields}
        or not re.fullmatch(r"[0-9a-f]{32}", root["uuid"])
        or root["created_ms"] < 0
    ):
        raise FormatError(f"{where}: not the identity of a buffer: {root!r:.200}")
    if root["features"] or root["commit"] not in _COMMIT_METHODS:
        raise UnsupportedVersionError(
            f"{where}: features {root['features']!r:.80} and commit method "
            f"{root['commit']!r:.40} are not all known here; update zarrbuf"
        )
    return root


def read_root(storage: Storage) -> bytes:
    """Read `zarrbuf.json`.

    Raises:
        NotFoundError: if it is not there.
        FormatError: if it is larger than any can be.
    """
    return storage.read(ROOT_NAME, max_bytes=MAX_METADATA_BYTES)


def find_root(storage: Storage) -> bytes | None:
    """Return `zarrbuf.json`, None if it is not there; raises what `read_root` does."""
    return storage.read_existing([ROOT_NAME], max_bytes=MAX_METADATA_BYTES)[0]


def create_root(storage: Storage, root: bytes) -> None:
    """Create `zarrbuf.json`; its uuid tells one of ours from somebody else's.

    Raises:
        ConflictError: if there is one already.
        StorageError: if it could not be created.
    """
    deadline = time.monotonic() + storage.deadline_s
    while storage.create(ROOT_NAME, root) is not Outcome.CREATED:
        there = find_root(storage)
        if there == root:  # an answer was lost
            with suppress(StorageError):
                storage.settle(ROOT_NAME)
                return
        elif there is not None:
            raise ConflictError(
                f"{storage.url} holds a buffer already; open it instead"
            )
        if time.monotonic() > deadline:
            raise StorageError(f"{storage.describe(ROOT_NAME)} could not be created")
        time.sleep(random.uniform(0.01, 0.1))
