"""Numbers of any kind as pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zarrbuf.archive.spec import FieldSpec
from zarrbuf.viewer.images import (
    GAP,
    ValueRange,
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
        ((8, 9, 4), "float32", (8, 9)),
        ((3, 8, 9), "bfloat16", (8, 9)),
        ((1, 8, 9), "float32", (8, 9)),
        ((4, 4, 4), "float32", None),
        ((7, 9, 3), "float64", None),
        ((5, 4, 4), "float32", None),
        ((2, 4, 4, 3), "float32", None),
        ((8, 9, 3), "complex64", None),
        ((2, 6, 9, 3), "uint8", (6, 9)),
        ((2, 3, 6, 9), "uint8", (6, 9)),
        ((8, 9), "uint8", (8, 9)),
        ((7, 9), "uint8", None),
        ((8, 9), "float32", (8, 9)),
        ((8, 9), "int64", (8, 9)),
        ((8, 9), "complex64", None),
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


GREY = [
    ("bool", [0, 1, 1], [0, 255, 255]),
    ("uint16", [0, 255, 65535], [0, 1, 255]),
    ("uint16", [0, 100, 200], [0, 128, 255]),
    ("int8", [-128, 0, 127], [0, 128, 255]),
    ("float32", [0.0, 0.5, 1.0], [0, 128, 255]),
    ("float32", [0.0, 0.5, 1.04], [0, 128, 255]),
    ("float32", [-0.04, 0.5, 1.0], [0, 128, 255]),
    ("float32", [-1.0, 0.0, 1.0], [0, 128, 255]),
    ("float32", [-1.02, 0.0, 1.04], [0, 128, 255]),
    ("float32", [0.0, 2.0, 4.0], [0, 128, 255]),
    ("float32", [0.0, 500.0, 1000.0], [0, 128, 255]),
    ("float32", [-4.0, 0.0, 4.0], [0, 128, 255]),
    ("float32", [0.0, np.nan, 1.0], [0, 0, 255]),
    ("float32", [-1.0, np.nan, 1.0], [0, 0, 255]),
    ("float32", [500.0, np.nan, 1000.0], [0, 0, 255]),
    ("float32", [0.0, np.inf, 1.0], [0, 255, 255]),
    ("float32", [-np.inf, 0.0, 1.0], [0, 0, 255]),
    ("float32", [-3e38, 0.0, 3e38], [0, 128, 255]),
    ("float32", [7.0, 7.0, 7.0], [0, 0, 0]),
    ("float32", [np.nan, np.nan, np.nan], [0, 0, 0]),
]
COLOURS = [
    ("uint16", [0, 4, 200], [0, 4, 200]),
    ("uint16", [0, 2000, 4000], [0, 128, 255]),
    ("uint64", [0, 4, 255], [0, 4, 255]),
    ("int64", [3, 4, 250], [3, 4, 250]),
    ("float32", [0.0, 0.5, 1.0], [0, 128, 255]),
    ("float32", [0.0, 17.0, 254.6], [0, 17, 255]),
    ("float32", [-2.0, 17.0, 260.0], [0, 17, 255]),
    ("float32", [-2.0, 0.0, 2.5], [0, 113, 255]),
    ("float32", [7.0, 7.0, 7.0], [7, 7, 7]),
    ("float32", [-7.0, -7.0, -7.0], [0, 0, 0]),
]


@pytest.mark.parametrize(
    ("dtype", "values", "expected", "num_channels"),
    [(*case, 1) for case in GREY] + [(*case, 3) for case in COLOURS],
)
def test_other_numbers_are_scaled_by_their_range(
    dtype: str, values: list[float], expected: list[int], num_channels: int
) -> None:
    image = np.array(values, dtype).reshape(1, 3, 1).repeat(num_channels, -1)
    shown = to_picture(image)
    assert shown.shape == (1, 3, 3)
    assert shown[0, :, 0].tolist() == expected


def test_the_images_of_a_camera_have_one_scale() -> None:
    seen = ValueRange()
    bright = np.array([[-1.0], [1.0]])[None]
    dark = np.array([[0.0], [0.5]])[None]
    seen.widen(bright)
    seen.widen(dark)
    assert to_picture(dark, seen)[0, :, 0].tolist() == [128, 191]
    assert to_picture(dark)[0, :, 0].tolist() == [0, 128]


def test_views_and_cameras_stand_side_by_side() -> None:
    views = DRAWS.integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    drawn = to_picture(views)
    assert drawn.shape == (4, 3 * 5 + 2 * GAP, 3)
    for number, view in enumerate(views):
        left = number * (5 + GAP)
        assert np.array_equal(drawn[:, left : left + 5], view)
    many = DRAWS.integers(0, 256, (5, 4, 5, 3), dtype=np.uint8)
    assert np.array_equal(to_picture(many), tile(list(many), num_columns=3))
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
