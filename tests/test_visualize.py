"""Figures: the drawn frames are the stored pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import make_trajectory

from zarrbuf.errors import InvalidInputError
from zarrbuf.visualize import cameras, plot_step


def test_both_frames_are_the_stored_pixels() -> None:
    trajectory = make_trajectory(4, 2)
    figure = plot_step(
        trajectory, step=1, env=1, camera="main_images", title="trajectory 7"
    )
    left, right = (axes.images[0].get_array() for axes in figure.axes)
    assert np.array_equal(left, trajectory.curr_obs["main_images"][1, 1].numpy())
    assert np.array_equal(right, trajectory.next_obs["main_images"][1, 1].numpy())
    title = figure.get_suptitle()
    assert "trajectory 7" in title
    assert "step 1, environment 1" in title
    assert trajectory.rewards is not None
    assert f"reward {float(trajectory.rewards[1, 1]):.3g}" in title


def test_several_views_stand_side_by_side() -> None:
    trajectory = make_trajectory(2, 1)
    views = torch.randint(0, 255, (2, 1, 3, 8, 6, 3), dtype=torch.uint8)
    trajectory.curr_obs = {"extra_view_images": views}
    trajectory.next_obs = {}
    assert cameras(trajectory) == ["extra_view_images"]
    figure = plot_step(trajectory, step=1, camera="extra_view_images")
    drawn = figure.axes[0].images[0].get_array()
    assert drawn is not None
    assert drawn.shape == (8, 18, 3)
    assert np.array_equal(drawn[:, 6:12], views[1, 0, 1].numpy())
    assert not figure.axes[1].images


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"step": 0, "camera": "side"}, "camera is 'side'; there are main_images"),
        ({"step": 4, "camera": "main_images"}, r"steps \[0, 4\)"),
        ({"step": 0, "env": -1, "camera": "main_images"}, r"environments \[0, 2\)"),
    ],
)
def test_what_is_not_there_is_said(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        plot_step(make_trajectory(4, 2), **arguments)  # type: ignore[arg-type]
