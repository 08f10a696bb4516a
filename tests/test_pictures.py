"""Numbers of any kind as pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zarrbuf.format import FieldSpec
from zarrbuf.pictures import (
    GAP,
    beside,
    broken_picture,
    image_size,
    is_image,
    shrink,
    square_columns,
    tile,
    tile_corner,
    to_picture,
)

DRAWS = np.random.default_rng(5)
IMAGE = DRAWS.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def spec(shape: tuple[int, ...], dtype: str = "uint8") -> FieldSpec:
    return FieldSpec(dtype, shape, "step")


@pytest.mark.parametrize(
    ("shape", "dtype", "size"),
    [
        ((6, 9, 3), "uint8", (6, 9)),
        ((6, 9, 4), "float32", (6, 9)),
        ((3, 6, 9), "bfloat16", (6, 9)),
        ((1, 6, 9), "float32", (6, 9)),
        ((2, 6, 9, 3), "uint8", (6, 9)),
        ((2, 3, 6, 9), "uint8", (6, 9)),
        ((8, 9), "uint8", (8, 9)),
        ((7, 9), "uint8", None),
        ((8, 9), "float32", None),
        ((9,), "uint8", None),
        ((), "uint8", None),
        ((6, 9, 5), "uint8", None),
        ((0, 9, 3), "uint8", None),
        ((2, 2, 6, 9, 3), "uint8", None),
    ],
)
def test_images_are_told_by_dtype_and_shape(
    shape: tuple[int, ...], dtype: str, size: Any
) -> None:
    assert is_image(spec(shape, dtype)) == (size is not None)
    if size is not None:
        assert image_size(spec(shape, dtype)) == size


def test_bytes_are_shown_as_they_are_whatever_the_order() -> None:
    assert np.array_equal(to_picture(IMAGE), IMAGE)
    assert np.array_equal(to_picture(np.moveaxis(IMAGE, -1, 0)), IMAGE)


def test_grey_and_rgba_become_colours() -> None:
    grey = IMAGE[..., 0]
    expected = np.stack([grey] * 3, axis=-1)
    for one in (grey, grey[..., None], grey[None]):
        assert np.array_equal(to_picture(one), expected)
    rgba = np.concatenate([IMAGE, np.full((6, 9, 1), 255, np.uint8)], axis=-1)
    assert np.array_equal(to_picture(rgba), IMAGE)
    rgba[..., 3] = 0
    assert (to_picture(rgba) == 255).all()
    rgba[..., 3] = 128
    half = to_picture(rgba).astype(float)
    assert abs(half - (IMAGE * (128 / 255) + 255 * (127 / 255))).max() <= 0.51


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 17.0, 254.6], [0, 17, 255]),
        ([0.0, 500.0, 1000.0], [0, 128, 255]),
        ([-4.0, 0.0, 4.0], [0, 128, 255]),
        ([0.0, np.nan, 1.0], [0, 0, 255]),
        ([0.0, np.inf, 1.0], [0, 0, 255]),
        ([7.0, 7.0, 7.0], [7, 7, 7]),
        ([-7.0, -7.0, -7.0], [0, 0, 0]),
    ],
)
def test_floats_are_scaled_by_their_range(
    values: list[float], expected: list[int]
) -> None:
    image = np.array(values, np.float32).reshape(1, 3, 1)
    assert to_picture(image)[0, :, 0].tolist() == expected


def test_other_integers_and_truth_values() -> None:
    flags = np.array([[[False], [True]]])
    assert to_picture(flags)[0, :, 0].tolist() == [0, 255]
    wide = np.array([[[0], [255], [65535]]], np.uint16)
    assert to_picture(wide)[0, :, 0].tolist() == [0, 0, 255]


def test_views_and_cameras_stand_side_by_side() -> None:
    views = DRAWS.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    drawn = to_picture(views)
    assert drawn.shape == (4, 3 * 5 + 2 * GAP, 3)
    for number, view in enumerate(views):
        left = number * (5 + GAP)
        assert np.array_equal(drawn[:, left : left + 5], view)
    both = beside([IMAGE, views[0]])
    assert both.shape == (6, 9 + GAP + 5, 3)
    assert np.array_equal(both[:4, 9 + GAP :], views[0])
    assert (both[4:, 9:] == 255).all()


@pytest.mark.parametrize("count", [1, 2, 4, 5, 12])
def test_tiles_are_where_their_corners_are_said_to_be(count: int) -> None:
    pictures = list(DRAWS.integers(0, 255, (count, 4, 5, 3), dtype=np.uint8))
    columns = square_columns(count)
    assert columns * columns >= count > (columns - 1) ** 2
    grid = tile(pictures, num_columns=columns)
    for number, one in enumerate(pictures):
        top, left = tile_corner(number, (4, 5), num_columns=columns)
        assert np.array_equal(grid[top : top + 4, left : left + 5], one)


def test_large_pictures_are_shrunk_by_means() -> None:
    large = np.repeat(np.repeat(IMAGE, 3, axis=0), 3, axis=1)
    assert np.array_equal(shrink(large, max_side=9), IMAGE)
    assert shrink(large, max_side=27) is large
    assert max(shrink(large, max_side=8).shape) <= 8
    assert shrink(np.zeros((1, 4000, 3), np.uint8), max_side=100).shape[0] == 1


def test_what_cannot_be_read_has_a_mark() -> None:
    broken = broken_picture(40, 60)
    assert broken.shape == (40, 60, 3)
    assert len(np.unique(broken.reshape(-1, 3), axis=0)) == 2
    assert (broken[0, 0] == broken[-1, -1]).all()
