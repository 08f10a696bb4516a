"""Which modules of the package a call enters, and from where."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import zarrbuf

_FOLDER = str(Path(zarrbuf.__file__).parent) + "/"


@dataclass
class Walk:
    """What a call entered, in the thread that called.

    A module is entered by a call from another one, unless it waits for that one: what
    calls back has not been left. Calls by one visit of the same module are one visit,
    however many: a loop goes in and out again. A module that is called by two others,
    or by one that was left meanwhile, is visited twice.

    Attributes:
        visits: module, `sampling/window.py` -> the module that each visit came from.
    """

    visits: dict[str, list[str]] = field(default_factory=dict)
    _stack: list[tuple[str, int]] = field(default_factory=list)
    _known: dict[tuple[str, int], int] = field(default_factory=dict)

    def note(self, frame: FrameType, event: str, argument: Any) -> None:
        """Take in an event of `sys.setprofile`."""
        if not frame.f_code.co_filename.startswith(_FOLDER):
            return
        if event == "return":
            self._stack.pop()
        elif event == "call":
            module = frame.f_code.co_filename.removeprefix(_FOLDER)
            caller, visit = self._stack[-1] if self._stack else ("", 0)
            waiting = dict(self._stack)
            if module in waiting:
                visit = waiting[module]
            else:
                key = (module, visit)
                if key not in self._known:
                    self._known[key] = len(self._known) + 1
                    self.visits.setdefault(module, []).append(caller)
                visit = self._known[key]
            self._stack.append((module, visit))


def walk_of(call: Callable[[], object]) -> Walk:
    """Call something, and return what it entered."""
    walk = Walk()
    sys.setprofile(walk.note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return walk
