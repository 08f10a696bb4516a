"""Draw one batch from a replay buffer, with the flags of RLinf's script.

The same as `zarrbuf sample`; only the options that RLinf's script has.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from zarrbuf.cli.main import main as zarrbuf_main


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `zarrbuf sample` with the given arguments, those of the process if None."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    zarrbuf_main(["sample", *given], prog_name="sample_replay_buffer.py")


if __name__ == "__main__":
    main()
