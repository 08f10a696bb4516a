"""`make demo`: the main job on a small real buffer that ships with the project.

Runs the commands as a user would type them, then draws a frame of what they wrote.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import zarrbuf

SOURCE = Path(__file__).parent.parent / "tests" / "data" / "rlinf_pt" / "rank_0"


def run(*arguments: str) -> None:
    """Print a command and run it; a failure ends the demo."""
    print(f"\n$ zarrbuf {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "zarrbuf.cli", *arguments], check=True)


def main(folder: str = "out/demo") -> None:
    """Convert, sample, verify, compare sizes, draw a frame; all below `folder`."""
    out = Path(folder)
    shutil.rmtree(out, ignore_errors=True)
    source, buffer = str(SOURCE), str(out / "buffer")
    run("convert", source, buffer)
    run("convert", source, str(out / "zstd"), "--codec", "zstd")
    run("ls", buffer)
    run("sample", "--load-path", buffer, "--num-chunks", "48")
    run("verify", buffer)
    print("\nbytes of the same trajectories")
    sizes = {
        "RLinf .pt files": _size(SOURCE, "*.pt"),
        "zarrbuf, lz4": _size(out / "buffer", "**/*.zarr.zip"),
        "zarrbuf, zstd": _size(out / "zstd", "**/*.zarr.zip"),
    }
    largest = max(sizes.values())
    for name, size in sizes.items():
        print(f"  {name:18} {size:>12,}   1/{largest / size:.1f}")
    picture = out / "frame.png"
    _draw(buffer, picture)
    print(f"\na frame of the buffer: {picture}")


def _size(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))


def _draw(path: str, picture: Path) -> None:
    figure = zarrbuf.plot_step(path, 0, step=8)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
