"""Look through a replay buffer at a prompt, with the words of RLinf's script.

The same as `zarrbuf view --headless`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from toolkits.replay_buffer.visualize import add_common
from zarrbuf.cli.main import main as zarrbuf_main


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `zarrbuf view --headless` with the given arguments."""
    parser = argparse.ArgumentParser(prog="visualize_headless.py", description=__doc__)
    add_common(parser)
    given = parser.parse_args(arguments)
    zarrbuf_main(
        [
            "view",
            "--headless",
            f"--camera={given.camera}",
            f"--output={given.output}",
            "--",
            given.replay_dir,
        ],
        prog_name="visualize_headless.py",
    )


if __name__ == "__main__":
    main()
