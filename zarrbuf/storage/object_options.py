"""Storage options: a few names for all clients, translated for the one that is used.

Pure. Everything else is handed on as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

_SECRET: Final = re.compile("key|secret|token|password|credential|auth", re.IGNORECASE)
"""Names of options whose values no message shows."""
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


def secrets_of(options: Mapping[str, Any]) -> list[str]:
    """Return the values that no message may show, those of inner options too."""
    found: list[str] = []
    for name, value in options.items():
        if isinstance(value, Mapping):
            found += secrets_of(value)
        elif _SECRET.search(name) and not isinstance(value, bool):
            found.append(str(value))
    return found


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
