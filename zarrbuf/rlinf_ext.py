"""RLinf's own workers with our classes: `export RLINF_EXT_MODULE=zarrbuf.rlinf_ext`.

RLinf imports the module that this variable names in every worker, after the workers'
own modules, and calls its `register`. `ZARRBUF_FORMAT=zarr` (or "pt", "pkl") is the
format of every buffer then, whatever the worker's code asks for; without it buffers are
written as RLinf would write them. `ZARRBUF_SHADOW=100` runs RLinf's buffer beside ours
for the first 100 batches and compares them, see `zarrbuf.shadow`.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
import threading
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final

from zarrbuf.errors import InvalidInputError, NotFoundError
from zarrbuf.replay.buffer import TrajectoryReplayBuffer
from zarrbuf.replay.rlinf_classes import import_homes
from zarrbuf.replay.shadow import shadow
from zarrbuf.stores.opening import FORMATS
from zarrbuf.training.datasets import PreloadReplayBufferDataset, ReplayBufferDataset

__all__ = [
    "FORMAT_VARIABLE",
    "SHADOW_VARIABLE",
    "RlinfReplayBuffer",
    "register",
    "unregister",
]

FORMAT_VARIABLE: Final = "ZARRBUF_FORMAT"
SHADOW_VARIABLE: Final = "ZARRBUF_SHADOW"
_PACKAGE: Final = "rlinf"
_LOG: Final = logging.getLogger("zarrbuf")
_LOCK: Final = threading.Lock()
_SIGNATURE: Final = inspect.signature(TrajectoryReplayBuffer)
_swapped: dict[type, type] = {}
"""Class of RLinf's -> ours that stands in its place."""


class RlinfReplayBuffer(TrajectoryReplayBuffer):
    """The buffer that RLinf's code makes: its default format is RLinf's, "pt".

    `ZARRBUF_FORMAT` goes before what the code asks for, which is "pt" in every worker.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Take the arguments of `TrajectoryReplayBuffer`."""
        given = _SIGNATURE.bind(*arguments, **named)
        asked = given.arguments.get("trajectory_format")
        given.arguments["trajectory_format"] = _chosen_format() or asked or "pt"
        super().__init__(*given.args, **given.kwargs)


_CLASSES: Final[Mapping[str, type]] = {
    "TrajectoryReplayBuffer": RlinfReplayBuffer,
    "ReplayBufferDataset": ReplayBufferDataset,
    "PreloadReplayBufferDataset": PreloadReplayBufferDataset,
}


def register() -> None:
    """Put zarrbuf's buffer and datasets in the place of RLinf's, in this process.

    In every module of RLinf that is loaded and in those that are loaded later. Asked
    again, it does nothing. The log says once what was done.

    Raises:
        InvalidInputError: if `ZARRBUF_FORMAT` is none of the formats, or
            `ZARRBUF_SHADOW` no number.
        NotFoundError: if there is no RLinf here, or one of another layout.
    """
    with _LOCK:
        if _swapped:
            return
        trajectory_format = _chosen_format()
        num_shadowed = _chosen_draws()
        homes = _import_homes()
        for home in homes:
            for name, ours in _CLASSES.items():
                theirs = getattr(home, name, None)
                if theirs is not None:
                    _swapped[theirs] = ours
                    if num_shadowed and issubclass(ours, RlinfReplayBuffer):
                        _swapped[theirs] = shadow(theirs, draws=num_shadowed, ours=ours)
        _replace(_swapped)
        _LOG.warning(  # a level that RLinf's workers show
            "zarrbuf stands in for %s of %s; format: %s",
            ", ".join(theirs.__name__ for theirs in _swapped),
            homes[0].__name__,
            trajectory_format or "what RLinf asks for",
        )


def unregister() -> None:
    """Put RLinf's classes back; what was made of ours goes on working."""
    with _LOCK:
        _replace({ours: theirs for theirs, ours in _swapped.items()})
        _swapped.clear()


def _chosen_format() -> str | None:
    """Return the format that the environment asks for; None without one."""
    value = os.environ.get(FORMAT_VARIABLE, "")
    if value and value not in FORMATS:
        raise InvalidInputError(
            f"{FORMAT_VARIABLE} is {value!r:.40}; allowed are {', '.join(FORMATS)}"
        )
    return value or None


def _chosen_draws() -> int:
    """Return how many batches the environment asks to compare; 0 for none."""
    value = os.environ.get(SHADOW_VARIABLE, "")
    if value and not (value.isascii() and value.isdecimal()):
        raise InvalidInputError(
            f"{SHADOW_VARIABLE} is {value!r:.40}; allowed is a number of batches"
        )
    return int(value or 0)


def _import_homes() -> list[ModuleType]:
    """Import the modules that define the classes: a worker may need them later."""
    try:
        return import_homes()
    except NotFoundError as exc:
        raise NotFoundError(
            f"{__name__} is for RLinf's workers (RLINF_EXT_MODULE={__name__}); {exc}. "
            "Elsewhere import the classes from zarrbuf"
        ) from exc


def _replace(classes: Mapping[type, type]) -> None:
    """Rebind the names of classes in all modules of RLinf's that are loaded."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != _PACKAGE or module is None:
            continue
        for attribute, value in list(vars(module).items()):
            if isinstance(value, type) and value in classes:
                setattr(module, attribute, classes[value])
