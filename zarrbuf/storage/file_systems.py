"""File systems of fsspec: which library reaches a store, and how it is set up.

Owns what a user may choose and what it is called: the client of a protocol, and storage
options, a few names for all clients, translated for the one that is used. Everything
else in the options is handed on as it is. Sends no request.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping
from typing import Any, Final

import fsspec
import fsspec.asyn

from zarrbuf.errors import InvalidInputError

_CLIENTS: Final = {
    "s3": ("s3fs", "obstore"),
    "gs": ("gcsfs", "obstore"),
    "http": ("aiohttp",),
    "https": ("aiohttp",),
    "memory": ("fsspec",),
}
_EXTRAS: Final = {"s3": "s3", "gs": "gs", "http": "http", "https": "http"}
PROTOCOLS: Final = tuple(_CLIENTS)
_NAMES: Final[Mapping[str, Mapping[str, str]]] = {
    "obstore": {
        "endpoint_url": "endpoint",
        "key": "access_key_id",
        "secret": "secret_access_key",
        "token": "session_token",
        "anon": "skip_signature",
    },
}
_CONNECT_S: Final = 10
_READ_S: Final = 60
_used_obstore_in: set[int] = set()


def choose_client(protocol: str, wanted: str | None) -> str:
    """Return the library that reaches a protocol: the one wanted, or one there is.

    Raises:
        InvalidInputError: if it is not there, saying what to install.
    """
    known = _CLIENTS[protocol]
    if wanted is not None and wanted not in known:
        raise InvalidInputError(
            f"storage option client is {wanted!r}; for {protocol}:// there are "
            f"{', '.join(known)}"
        )
    for name in known if wanted is None else (wanted,):
        if importlib.util.find_spec(name) is not None:
            return name
    extra = "obstore" if wanted == "obstore" else _EXTRAS[protocol]
    raise InvalidInputError(
        f"{protocol}:// needs {wanted or ' or '.join(known)}, which is not installed; "
        f"pip install 'zarrbuf[{extra}]'"
    )


def make_file_system(protocol: str, client: str, options: Mapping[str, Any]) -> Any:
    """Make a file system that nobody else shares; raises what its library raises."""
    if client == "obstore" and _used_obstore_in - {os.getpid()}:
        # Its threads are those of the parent: a request would wait for ever.
        if importlib.util.find_spec("s3fs") is None or protocol != "s3":
            raise RuntimeError(
                "obstore does not work in a process forked from one that used it; "
                "start workers by forkserver or spawn, or install zarrbuf[s3]"
            )
        client = "s3fs"
    translated = translate_options(protocol, client, options)
    if client == "obstore":
        _used_obstore_in.add(os.getpid())
        store = importlib.import_module("obstore.fsspec").FsspecStore
        return store(protocol, skip_instance_cache=True, **translated)
    if client == "gcsfs":
        # What gcsfs registers asks by gRPC how a bucket is laid out, which neither
        # survives a fork nor knows other endpoints; objects are all that we use.
        store = importlib.import_module("gcsfs.core").GCSFileSystem
        return store(skip_instance_cache=True, **translated)
    made: Any = fsspec.filesystem(protocol, skip_instance_cache=True, **translated)
    if client == "s3fs":
        made.retries = 1  # the retries, and the deadline over them, are ours
    return made


def translate_options(
    protocol: str, client: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a client's file system is made with.

    Args:
        protocol: "s3", "gs", "http", "https" or "memory".
        client: the library, "s3fs".
        options: `endpoint_url`, `key`, `secret`, `token`, `anon`, `region`, and
            whatever the library knows by itself.
    """
    names = _NAMES.get(client, {})
    found = {names.get(name, name): value for name, value in options.items()}
    if client == "s3fs":
        return _for_s3fs(found)
    if client == "obstore":
        return _for_obstore(found)
    if client == "gcsfs" and found.pop("anon", False):
        found["token"] = "anon"
    if protocol in ("http", "https", "gs"):
        found.setdefault("use_listings_cache", False)
    return found


def _for_s3fs(options: dict[str, Any]) -> dict[str, Any]:
    region = options.pop("region", None)
    if region is not None:
        kwargs = options.get("client_kwargs", {})
        options["client_kwargs"] = {"region_name": region, **kwargs}
    config = {
        "connect_timeout": _CONNECT_S,
        "read_timeout": _READ_S,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "max_pool_connections": 64,
        # Every byte of ours has a checksum, which is checked where it is used; these
        # cost 0.5 ms a request, and stores that are like S3 may not know them.
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
        "parameter_validation": False,
        "user_agent": "zarrbuf",
    }
    options["config_kwargs"] = {**config, **options.get("config_kwargs", {})}
    options.setdefault("use_listings_cache", False)
    return options


def _for_obstore(options: dict[str, Any]) -> dict[str, Any]:
    client = {"connect_timeout": f"{_CONNECT_S}s", "timeout": f"{_READ_S}s"}
    if str(options.get("endpoint", "")).startswith("http://"):
        client["allow_http"] = "true"
    options["client_options"] = {**client, **options.get("client_options", {})}
    options.setdefault("retry_config", {"max_retries": 0})
    return options
