"""Whatever a trajectory holds can be looked at."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from support.remote import save

from zarrbuf import Trajectory
from zarrbuf.viewer.cursor import Place
from zarrbuf.viewer.figures import Screen
from zarrbuf.viewer.scene import SceneReader, Wish
from zarrbuf.viewer.trajectories import open_playback

DTYPES = (
    torch.uint8,
    torch.int64,
    torch.bool,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
)
SHAPES = st.one_of(
    st.lists(st.integers(0, 5), max_size=4).map(tuple),
    st.tuples(st.integers(7, 9), st.integers(7, 9)),
    st.tuples(st.integers(7, 9), st.integers(7, 9), st.integers(1, 5)),
    st.tuples(st.integers(1, 5), st.integers(7, 9), st.integers(7, 9)),
    st.tuples(*[st.integers(1, 9)] * 4),
)
NAMES = st.sampled_from(
    ["main_images", "states", "rewards", "a/b", "$x{", "\x1b[2J", "été", "dones", "a"]
)
FILLS = st.sampled_from([0.0, 1.0, -1.0, 300.0, 6e4, float("nan"), float("inf")])


@st.composite
def tensors(draw: Any, num_steps: int, num_envs: int) -> torch.Tensor:
    shape: Sequence[int] = draw(SHAPES)
    dtype = draw(st.sampled_from(DTYPES))
    fill = draw(FILLS)
    if dtype in (torch.uint8, torch.int64, torch.bool):
        fill = 1
    values = torch.zeros(num_steps, num_envs, *shape, dtype=dtype)
    values[num_steps // 2 :] = fill
    return values


@st.composite
def trajectories(draw: Any) -> Trajectory:
    num_steps, num_envs = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    some = tensors(num_steps, num_envs)
    fields = {
        name: draw(some)
        for name in ("actions", "rewards", "prev_values", "intervene_flags")
        if draw(st.booleans())
    }
    groups = [draw(st.dictionaries(NAMES, some, max_size=3)) for _ in range(2)]
    if not (set(fields) - {"prev_values"} or groups[0] or groups[1]):
        fields["rewards"] = torch.zeros(num_steps, num_envs, 1)  # says T and B
    return Trajectory(curr_obs=groups[0], next_obs=groups[1], **fields)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_scenes_of_any_schema_are_read_and_drawn(data: Any) -> None:
    made = data.draw(trajectories())
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "a")
        save(path, None, [made])
        playback = open_playback(path)
        scenes = SceneReader(playback)
        num_steps, num_envs = playback.shape(0)
        figure = Figure(figsize=(14, 8))
        canvas = FigureCanvasAgg(figure)
        screen = Screen(figure)
        for layout in ("camera", "cameras", "envs"):
            place = Place(0, num_steps - 1, num_envs - 1)
            scene = scenes.read(Wish(place, layout=layout))  # type: ignore[arg-type]
            assert scene.error == ""
            screen.show(scene)
            canvas.draw()
        scenes.close()
