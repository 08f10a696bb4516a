"""Stored images as pictures that can be shown: bytes of red, green and blue.

Owns which observations are images and how numbers become colours. Pure; knows no file
and no figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from zarrbuf.format import AnyArray, FieldSpec

Picture = npt.NDArray[np.uint8]
"""[H, W, 3]."""

_CHANNELS: Final = (1, 3, 4)
_MIN_GREY_SIDE: Final = 8
_GREY_DTYPES: Final = ("bool", "uint8", "uint16")
GAP: Final = 2
"""Pixels between tiles."""
_TILE_GREY: Final = 255


def is_image(spec: FieldSpec) -> bool:
    """Whether samples of a field are images, or several views of one moment.

    Images are [H, W, C], [C, H, W] or, with numbers as cameras give them, [H, W];
    several views have one dimension more in front. C is 1, 3 or 4.
    """
    shape = spec.shape
    if 0 in shape:
        return False
    if len(shape) == 2:
        return spec.dtype in _GREY_DTYPES and min(shape) >= _MIN_GREY_SIDE
    return len(shape) in (3, 4) and (shape[-1] in _CHANNELS or shape[-3] in _CHANNELS)


def to_picture(image: AnyArray) -> Picture:
    """Return one sample of an image field as a picture; views stand side by side.

    Args:
        image: as `is_image` says. uint8 is shown as it is; bool as black and white,
            other integers by their highest 8 bits, floats in [0, 1] as shares of
            white, in [-1, 1] from black to white, up to 255 as they are, and beyond
            that from their least to their greatest. Not a number is black. RGBA is
            shown on white.
    """
    if image.ndim == 4:
        return beside([to_picture(view) for view in image])
    if image.ndim == 2:
        image = image[..., None]
    elif image.shape[-1] not in _CHANNELS:
        image = np.moveaxis(image, 0, -1)
    pixels = _to_bytes(image)
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


def _to_bytes(values: AnyArray) -> Picture:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind == "u":
        bits = 8 * values.dtype.itemsize - 8
        return np.right_shift(values, bits).astype(np.uint8)
    numbers = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    low, high = numbers.min().item(), numbers.max().item()
    if low >= 0 and high <= 1:
        numbers = numbers * 255
    elif low >= -1 and high <= 1:
        numbers = (numbers + 1) * 127.5
    elif low < 0 or high > 255:
        numbers = (numbers - low) * (255 / (high - low) if high > low else 0)
    return np.rint(numbers).astype(np.uint8)


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
