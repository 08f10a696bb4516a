"""Modules run in fresh processes, whose last line of output is one JSON object."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

_ROOT: Final = Path(__file__).parents[2]


def run_module(name: str, *arguments: str) -> dict[str, Any]:
    """Run a module and return the object that it prints.

    Raises:
        CalledProcessError: if it fails; what it says of that is shown.
    """
    command = [sys.executable, "-m", name, *arguments]
    done = subprocess.run(
        command, cwd=_ROOT, check=True, text=True, stdout=subprocess.PIPE
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
