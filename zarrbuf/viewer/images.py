"""Stored images as pictures that can be shown: bytes of red, green and blue.

Owns which observations are images and how numbers become colours. Pure; knows no file
and no figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from zarrbuf.archive.spec import AnyArray, FieldSpec

Picture = npt.NDArray[np.uint8]
"""[H, W, 3]."""

_CHANNELS: Final = (1, 3, 4)
_MIN_SIDE: Final = 8
SHOWN_AS_STORED: Final = ("uint8", "bool")
_NOT_REAL: Final = ("complex64", "complex128")
GAP: Final = 2
"""Pixels between tiles."""
_TILE_GREY: Final = 255
_ROW_OF_VIEWS: Final = 3
_SLACK: Final = 0.05
"""How far beyond its usual range an image may be, as one that was resized is."""
_WHITE: Final = 255.0


def is_image(spec: FieldSpec) -> bool:
    """Whether samples of a field are images, or several views of one moment.

    Images are [H, W, C], [C, H, W] or [H, W]; several views have one dimension more in
    front. C is 1, 3 or 4. H and W are at least 8, as matrices of poses are smaller;
    colours of uint8 may be of any size.
    """
    shape = spec.shape
    if 0 in shape or spec.dtype in _NOT_REAL:
        return False
    if len(shape) == 2:
        return min(shape) >= _MIN_SIDE
    if len(shape) not in (3, 4) or not {shape[-1], shape[-3]} & set(_CHANNELS):
        return False
    return spec.dtype == "uint8" or min(image_size(spec)) >= _MIN_SIDE


@dataclass
class ValueRange:
    """The least and the greatest number that a camera was seen to give.

    One for all images of a camera, or each would have a brightness of its own.
    """

    low: float = math.inf
    high: float = -math.inf

    def widen(self, image: AnyArray) -> None:
        """Take in the numbers of an image; what is not finite is none."""
        if str(image.dtype) in SHOWN_AS_STORED:
            return
        finite = image[np.isfinite(image)]
        if finite.size:
            self.low = min(self.low, finite.min().item())
            self.high = max(self.high, finite.max().item())

    def ends(self, *, is_float: bool, is_grey: bool) -> tuple[float, float]:
        """Return the numbers that are black and white.

        Colours up to 255 are bytes by another dtype; one channel is as likely depth.
        """
        slack = _SLACK if is_float else 0.0
        if is_float and self.high <= 1 + slack:
            if self.low >= -slack:
                return 0.0, 1.0
            if self.low >= -1 - slack:
                return -1.0, 1.0
        is_bytes = self.low >= -slack * self.high and self.high <= _WHITE * (1 + slack)
        if is_bytes and not is_grey:
            return 0.0, _WHITE
        return self.low, self.high


def to_picture(image: AnyArray, seen: ValueRange | None = None) -> Picture:
    """Return one sample of an image field as a picture; views are tiles.

    Args:
        image: as `is_image` says. uint8 is shown as it is, bool as black and white.
            Floats in [0, 1] are shares of white, in [-1, 1] from black to white.
            Colours up to 255, of floats or integers, are shown as they are. All this
            with 5% of slack for floats. Anything else goes from its least to its
            greatest. Not a number is black. RGBA is shown on white.
        seen: of this camera; None for that of this image alone.
    """
    if seen is None:
        seen = ValueRange()
        seen.widen(image)
    if image.ndim == 4:
        views = [to_picture(view, seen) for view in image]
        if len(views) <= _ROW_OF_VIEWS:
            return beside(views)
        return tile(views, num_columns=square_columns(len(views)))
    if image.ndim == 2:
        image = image[..., None]
    elif image.shape[-1] not in _CHANNELS:
        image = np.moveaxis(image, 0, -1)
    pixels = _to_bytes(image, seen)
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    if pixels.shape[-1] == 4:
        pixels = _on_white(pixels)
    return np.ascontiguousarray(pixels)


def _on_white(pixels: Picture) -> Picture:
    colours = pixels[..., :3].astype(np.uint32)
    alpha = pixels[..., 3:].astype(np.uint32)
    mixed = (colours * alpha + 255 * (255 - alpha) + 127) // 255
    return mixed.astype(np.uint8)


def _to_bytes(values: AnyArray, seen: ValueRange) -> Picture:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    is_float, is_grey = values.dtype.kind == "f", values.shape[-1] == 1
    black, white = seen.ends(is_float=is_float, is_grey=is_grey)
    if not black < white:  # one number everywhere, or none
        return np.zeros(values.shape, np.uint8)
    # Halves first: the difference of two finite numbers need not be finite.
    shares = (values.astype(np.float64) / 2 - black / 2) / (white / 2 - black / 2)
    shown = np.nan_to_num(np.clip(shares, 0, 1), nan=0.0)
    return np.rint(shown * 255).astype(np.uint8)


def beside(pictures: Sequence[Picture]) -> Picture:
    """Lay pictures side by side, each as wide as it is, with white between them."""
    height = max(one.shape[0] for one in pictures)
    width = sum(one.shape[1] + GAP for one in pictures) - GAP
    strip = np.full((height, width, 3), _TILE_GREY, np.uint8)
    left = 0
    for one in pictures:
        strip[: one.shape[0], left : left + one.shape[1]] = one
        left += one.shape[1] + GAP
    return strip


def tile(pictures: Sequence[Picture], *, num_columns: int) -> Picture:
    """Lay pictures out in rows, with white between them, smaller ones at the top left.

    Args:
        pictures: at least one.
        num_columns: pictures a row.
    """
    height = max(one.shape[0] for one in pictures)
    width = max(one.shape[1] for one in pictures)
    num_rows = -(-len(pictures) // num_columns)
    shape = (
        num_rows * (height + GAP) - GAP,
        num_columns * (width + GAP) - GAP,
        3,
    )
    sheet = np.full(shape, _TILE_GREY, np.uint8)
    for number, one in enumerate(pictures):
        top, left = tile_corner(number, (height, width), num_columns=num_columns)
        sheet[top : top + one.shape[0], left : left + one.shape[1]] = one
    return sheet


def tile_corner(
    number: int, size: tuple[int, int], *, num_columns: int
) -> tuple[int, int]:
    """Return top and left of a tile; `size` is height and width of the largest."""
    row, column = divmod(number, num_columns)
    return row * (size[0] + GAP), column * (size[1] + GAP)


def square_columns(count: int) -> int:
    """Return how many columns make a grid of `count` tiles about square."""
    return max(1, math.ceil(math.sqrt(count)))


def shrink(picture: Picture, *, max_side: int) -> Picture:
    """Return a picture of at most `max_side` pixels a side, by means of blocks.

    A smaller one is returned as it is. The last rows and columns that fill no block are
    left out.
    """
    factor = -(-max(picture.shape[:2]) // max_side)
    factor = min(factor, *picture.shape[:2])
    if factor <= 1:
        return picture
    height, width = (n // factor for n in picture.shape[:2])
    cut = picture[: height * factor, : width * factor]
    blocks = cut.reshape(height, factor, width, factor, 3)
    means: AnyArray = blocks.mean(axis=(1, 3), dtype=np.float32)
    return np.rint(means).astype(np.uint8)


def broken_picture(height: int, width: int) -> Picture:
    """Return what is shown for an image that cannot be read: grey, crossed in red."""
    picture = np.full((height, width, 3), 60, np.uint8)
    down, across = np.linspace(0, 1, height), np.linspace(0, 1, width)
    cross = abs(down[:, None] - across[None, :]) <= 0.03
    picture[cross | cross[:, ::-1]] = (200, 30, 30)
    return picture


def image_size(spec: FieldSpec) -> tuple[int, int]:
    """Return height and width of one view of an image field."""
    shape = spec.shape[-3:]
    if len(shape) == 3:
        shape = shape[:2] if shape[-1] in _CHANNELS else shape[1:]
    return shape[0], shape[1]
