"""Look through a replay buffer, with the flags and keys of RLinf's visualizer.

The same as `zarrbuf view`, which has more options.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from zarrbuf.cli.main import main as zarrbuf_main


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options that both of RLinf's scripts have."""
    parser.add_argument("--replay_dir", required=True, help="path or URL of a buffer")
    parser.add_argument(
        "--camera",
        default="main_images",
        help="main_images, wrist_images, extra_view_images or another (default: "
        "main_images)",
    )
    parser.add_argument(
        "--output",
        default="replay_buffer_viz.png",
        help="image file (default: replay_buffer_viz.png)",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `zarrbuf view` with the given arguments, those of the process if None."""
    parser = argparse.ArgumentParser(prog="visualize.py", description=__doc__)
    add_common(parser)
    parser.add_argument(
        "--save_image", action="store_true", help="write the image at every move"
    )
    parser.add_argument(
        "--no_display", action="store_true", help="no window; needs --save_image"
    )
    given = parser.parse_args(arguments)
    if given.no_display and not given.save_image:
        parser.error("--no_display requires --save_image to be enabled")
    flags = [
        *(["--save-image"] if given.save_image else []),
        *(["--no-display"] if given.no_display else []),
    ]
    zarrbuf_main(
        [
            "view",
            f"--camera={given.camera}",
            f"--output={given.output}",
            *flags,
            "--",
            given.replay_dir,
        ],
        prog_name="visualize.py",
    )


if __name__ == "__main__":
    main()
