"""The JSON Schemas of everything that a buffer keeps as JSON: commits, checkpoints, ...

They are for programs in other languages and for tests of theirs: nothing here reads a
buffer by them. `docs/format.md` says the rest.
"""

from __future__ import annotations

import json
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

from zarrbuf.errors import InvalidInputError

__all__ = ["list_schemas", "read_schema"]

_SUFFIX: Final = ".schema.json"


def list_schemas() -> list[str]:
    """Return the names of the schemas, sorted: "checkpoint", "commit", ..."""
    names = (entry.name for entry in _folder().iterdir())
    return sorted(n.removesuffix(_SUFFIX) for n in names if n.endswith(_SUFFIX))


def read_schema(name: str) -> dict[str, Any]:
    """Return a schema as JSON values (JSON Schema, draft 2020-12).

    Args:
        name: one of `list_schemas`.

    Raises:
        InvalidInputError: if there is no such schema, naming those that there are.
    """
    known = list_schemas()
    if name not in known:
        raise InvalidInputError(
            f"there is no schema {name!r}; allowed are {', '.join(known)}"
        )
    schema: dict[str, Any] = json.loads((_folder() / f"{name}{_SUFFIX}").read_text())
    return schema


def _folder() -> Traversable:
    """Return where the schemas lie: in the installed package, or in the checkout."""
    installed = files("zarrbuf") / "schema_files"
    if installed.is_dir():
        return installed
    return Path(__file__).parent.parent / "schemas"
