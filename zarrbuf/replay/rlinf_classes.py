"""Where RLinf keeps its own classes, in each of its versions.

Imports them by name where they are; zarrbuf needs none of them.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Final

from zarrbuf.errors import InvalidInputError, NotFoundError

_BUFFER: Final = "TrajectoryReplayBuffer"
_LAYOUTS: Final = (
    ("rlinf.data.storage.replay",),  # since v0.4
    ("rlinf.data.replay_buffer", "rlinf.data.embodied_buffer_dataset"),  # v0.2, v0.3
)
"""Modules that define the buffer and the datasets."""


def import_homes() -> list[ModuleType]:
    """Import the modules of RLinf's that define the buffer and its datasets.

    Raises:
        NotFoundError: if there is no RLinf here, or one of another layout.
        ModuleNotFoundError: if RLinf is here, and what it needs is not.
    """
    for names in _LAYOUTS:
        try:
            return [importlib.import_module(name) for name in names]
        except ModuleNotFoundError as exc:
            if not any(f"{name}.".startswith(f"{exc.name}.") for name in names):
                raise
    places = " or ".join(names[0] for names in _LAYOUTS)
    raise NotFoundError(f"in this program there is no {places}")


def find_buffer_class(given: type | str | None = None) -> type:
    """Return RLinf's replay buffer.

    Args:
        given: the class itself, or where it is as "module:name"; None for where RLinf
            keeps it.

    Raises:
        InvalidInputError: if `given` is neither.
        NotFoundError: if no class is there, or there is no RLinf.
        ModuleNotFoundError: if it is there, and what it needs is not.
    """
    if isinstance(given, type):
        return given
    if given is None:
        return _class_of(import_homes()[0], _BUFFER)
    module, colon, name = given.partition(":") if isinstance(given, str) else ("",) * 3
    if not all((module.strip("."), colon, name)) or module.startswith("."):
        raise InvalidInputError(
            f'{given!r:.80} is no class; allowed are a class and "module:name"'
        )
    try:
        return _class_of(importlib.import_module(module), name)
    except ModuleNotFoundError as exc:
        if not f"{module}.".startswith(f"{exc.name}."):
            raise
        raise NotFoundError(f"in this program there is no module {module}") from exc


def _class_of(module: ModuleType, name: str) -> type:
    found = getattr(module, name, None)
    if not isinstance(found, type):
        raise NotFoundError(f"{module.__name__} has no class {name}")
    return found
