"""Where the tests find what they read."""

from __future__ import annotations

from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parent.parent
DATA: Final = TESTS / "data"
"""Folders that RLinf wrote, and what it drew from them."""
FIXTURES: Final = TESTS / "fixtures"
"""Buffers that earlier versions of the program wrote; never made anew."""
ROOT: Final = TESTS.parent
"""The checkout."""
