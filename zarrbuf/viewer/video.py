"""Pictures as an mp4 file, by FFmpeg as PyAV brings it (the extra `[video]`).

H.264 in yuv420p, which every player and browser shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Final

import av
import numpy as np

from zarrbuf.viewer.images import Picture

_QUALITY: Final = {"crf": "18"}


def write_mp4(path: str, pictures: Iterable[Picture], *, fps: float) -> None:
    """Write a clip of pictures that are all of the size of the first.

    Odd sides lose their last row or column: the encoder halves colours.

    Args:
        path: where.
        pictures: at least one, [H, W, 3].
        fps: pictures a second.

    Raises:
        OSError: if it cannot be written.
    """
    try:
        _encode(path, pictures, Fraction(fps).limit_denominator(1000))
    except av.FFmpegError as exc:
        raise OSError(f"FFmpeg: {exc}") from exc


def _encode(path: str, pictures: Iterable[Picture], rate: Fraction) -> None:
    with av.open(path, "w", format="mp4") as container:
        stream = None
        for picture in pictures:
            height, width = (max(2, n - n % 2) for n in picture.shape[:2])
            even = np.ascontiguousarray(picture[:height, :width])
            if stream is None:
                stream = container.add_stream("libx264", rate=rate, options=_QUALITY)
                stream.width, stream.height = width, height
                stream.pix_fmt = "yuv420p"
            for packet in stream.encode(av.VideoFrame.from_ndarray(even, "rgb24")):
                container.mux(packet)
        if stream is not None:
            for packet in stream.encode():
                container.mux(packet)
