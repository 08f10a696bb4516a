"""The scripts in `toolkits/`: they run from anywhere, and lie in no wheel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

SCRIPTS = sorted((ROOT / "toolkits" / "replay_buffer").glob("[a-z]*.py"))


def test_there_are_the_four_of_rlinf() -> None:
    assert [script.stem for script in SCRIPTS] == [
        "merge_or_split_replay_buffer",
        "sample_replay_buffer",
        "visualize",
        "visualize_headless",
    ]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_runs_where_no_package_toolkits_is_found(script: Path) -> None:
    code = (
        "import runpy, sys\n"
        "sys.modules['toolkits'] = None\n"  # as if it were not there
        f"sys.argv = [{script.name!r}, '--help']\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"sage: {script.name}" in done.stdout
