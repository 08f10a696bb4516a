"""Which storage a path or URL names, and the options it is opened with.

Owns what a URL may look like: no chains, no credentials, no queries.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

from zarrbuf.errors import InvalidInputError
from zarrbuf.storage.block_cache import DiskCache
from zarrbuf.storage.contract import Storage
from zarrbuf.storage.file_systems import PROTOCOLS
from zarrbuf.storage.local import LocalStorage
from zarrbuf.storage.object_store import ObjectStorage, root_of
from zarrbuf.storage.redaction import secrets_of
from zarrbuf.storage.requests import ObjectClient

Location = str | os.PathLike[str]
StorageOptions = Mapping[str, Any]
_STORE_OPTIONS: Final = {"endpoint_url", "key", "secret", "token", "region", "anon"}
DEADLINE_S: Final = 60.0
"""Seconds after which a request to a store is given up, if nobody says otherwise."""


def open_storage(
    path: Location,
    options: StorageOptions | None = None,
    *,
    range_cache: DiskCache | None = None,
    allow_bases: Sequence[Location] = (),
) -> Storage:
    """Return the storage that a path names. Asks nothing of it yet.

    Args:
        path: a local path, or a URL: `file://`, `s3://`, `gs://`, `memory://`, and
            `http://` and `https://`, which are only read.
        options: for object stores: `endpoint_url`, `key`, `secret`, `token`, `anon`,
            `region`; `client` ("s3fs" or "obstore"), `deadline_s`, `commit` ("single"
            for a store without exclusive creation and one writer); whatever else the
            client's file system knows.
        range_cache: where what is fetched of an object store is kept.
        allow_bases: paths and URLs of buffers, or of what they lie below, that the
            manifest may name; those beside it and in its own bucket it may anyway.

    Raises:
        InvalidInputError: for an empty path, a chained URL, another scheme, or a client
            that is not installed.
    """
    storage = _open(_checked_text(path), options, range_cache)
    if isinstance(allow_bases, str | os.PathLike):
        raise InvalidInputError(
            f"allow_bases is {allow_bases!r}; a list of paths and URLs is needed"
        )
    storage.allow_bases = tuple(map(_absolute, allow_bases))
    return storage


def _absolute(path: Location) -> str:
    text = _checked_text(path)
    return text if "://" in text else os.path.abspath(text)


def _open(
    text: str, options: StorageOptions | None, range_cache: DiskCache | None
) -> Storage:
    shown = _without_credentials(text)
    scheme = text.partition("://")[0] if "://" in text else ""
    if scheme == "":
        return LocalStorage(text)
    if scheme == "file":
        local = text[len("file://") :].removeprefix("localhost")
        if not local.startswith("/"):
            raise InvalidInputError(
                f"path {text!r} is not allowed: file:///absolute/path is needed"
            )
        return LocalStorage(unquote(local))
    if scheme not in PROTOCOLS:
        raise InvalidInputError(
            f"path {shown!r} has scheme {scheme!r}; allowed are local paths, file://, "
            + ", ".join(f"{name}://" for name in PROTOCOLS)
        )
    storage = _open_objects(text, scheme, dict(options or {}))
    storage.range_cache = range_cache
    return storage


def _checked_text(path: Location) -> str:
    if not isinstance(path, str | os.PathLike):
        raise InvalidInputError(f"path {path!r} is not allowed: a string is needed")
    text = os.fspath(path)
    if not isinstance(text, str) or not text or "\0" in unquote(text):
        raise InvalidInputError(f"path {text!r} is not allowed: a name is needed")
    if "::" in text:
        shown = _without_credentials(text)
        raise InvalidInputError(f"path {shown!r} is not allowed: URLs are not chained")
    return text


def _open_objects(text: str, scheme: str, options: dict[str, Any]) -> ObjectStorage:
    shown = _without_credentials(text)
    parts = _split(text)
    host, _, port = parts.netloc.partition(":")
    # A secret may hold a "/": then what stands before it looks like a host and a port.
    is_odd = port and (scheme not in ("http", "https") or not port.isdecimal())
    if "@" in parts.netloc or is_odd or parts.query or parts.fragment:
        raise InvalidInputError(
            f"path {shown!r} came with credentials, a query or a fragment; give "
            "credentials as storage options or by the environment"
        )
    if "@" in str(options.get("endpoint_url", "")):
        raise InvalidInputError(
            "storage option endpoint_url came with credentials; give them as key and "
            "secret or by the environment"
        )
    if not host or any(part in (".", "..") for part in parts.path.split("/")):
        raise InvalidInputError(
            f"path {text!r} is not allowed: {scheme}://bucket/folder is needed"
        )
    if scheme in ("http", "https") and _STORE_OPTIONS & set(options):
        names = ", ".join(sorted(_STORE_OPTIONS & set(options)))
        raise InvalidInputError(f"storage options {names} are not for {scheme}://")
    client = options.pop("client", None)
    commit = options.pop("commit", None)
    if commit not in (None, "single"):
        raise InvalidInputError(
            f"storage option commit is {commit!r}; allowed is 'single'"
        )
    deadline_s = _seconds("deadline_s", options.pop("deadline_s", DEADLINE_S))
    return ObjectStorage(
        text,
        ObjectClient(scheme, options, client=client, deadline_s=deadline_s),
        root=root_of(text, scheme),
        secrets=secrets_of(options),
        is_single=commit == "single",
    )


def _without_credentials(text: str) -> str:
    """Return a URL less all that stands before its last "@"."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        return text
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0].partition('#')[0]}"


def _split(text: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError as exc:
        raise InvalidInputError(f"path {text!r} is no URL: {exc}") from exc


def _seconds(name: str, value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 < seconds < 86_400:
        raise InvalidInputError(
            f"storage option {name} is {value!r}; a number of seconds is needed"
        )
    return seconds
