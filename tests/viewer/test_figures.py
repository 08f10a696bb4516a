"""Figures: the drawn pixels are the stored ones."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from support.remote import save
from support.viewed import SIDE, archive_of, recorded, save_recorded

import zarrbuf
from zarrbuf import Trajectory
from zarrbuf.errors import (
    InvalidInputError,
    StorageError,
    TrajectoryNotFoundError,
)
from zarrbuf.viewer.cursor import Place
from zarrbuf.viewer.figures import Screen, plot_scene, save_figure
from zarrbuf.viewer.images import GAP
from zarrbuf.viewer.scene import Scene, SceneReader, Wish
from zarrbuf.viewer.trajectories import open_playback


def drawn(figure: Figure, number: int, shape: tuple[int, ...]) -> Any:
    """Return the pixels drawn in the middle of each image pixel of some axes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    axes = [one for one in figure.axes if one.images][number]
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    places = np.stack([columns.ravel(), rows.ravel()], axis=1)
    x, y = axes.transData.transform(places).T
    height = pixels.shape[0]
    found = pixels[height - 1 - np.floor(y).astype(int), np.floor(x).astype(int)]
    return found.reshape(*shape[:2], 3)


def blocks(trajectory: Trajectory) -> Trajectory:
    """Give frames 8 x 8 fields of one colour, which no interpolation changes inside."""
    for group in (trajectory.curr_obs, trajectory.next_obs):
        small = group["main_images"][:, :, ::8, ::8]
        large = small.repeat_interleave(8, 2).repeat_interleave(8, 3)
        group["main_images"] = large.contiguous()
    return trajectory


def test_both_frames_are_drawn_as_they_were_stored(tmp_path: Path) -> None:
    made = blocks(recorded(4, 2))
    save(str(tmp_path / "a"), None, [made])
    figure = zarrbuf.plot_step(tmp_path / "a", 0, step=1, env=1)
    for number, group in enumerate((made.curr_obs, made.next_obs)):
        frame = group["main_images"][1, 1].numpy()
        found = drawn(figure, number, frame.shape)[4::8, 4::8]
        assert np.array_equal(found, frame[4::8, 4::8])


def scene_of(path: Path, **wish: Any) -> Scene:
    reader = SceneReader(open_playback(path))
    try:
        return reader.read(Wish(**wish))
    finally:
        reader.close()


def test_the_heading_tells_what_the_title_of_rlinf_tells(tmp_path: Path) -> None:
    save_recorded(tmp_path / "a", (6, 2), (6, 2))
    scene = scene_of(tmp_path / "a", place=Place(1, 3, 1))
    assert scene.heading == (
        "Trajectory ID 1 (#1/1) | Step 3/5 | Env 1/1",
        "Reward: 4.0000 | Done: True | Episode 1/2: steps 0 to 3, return 10",
        "Action: [3.000 -3.000]",
    )
    scene = scene_of(tmp_path / "a", place=Place(0, 2, 0))
    assert "Done: False | Intervention | Episode 1/2" in scene.heading[1]


def test_done_is_told_where_only_terminations_are_stored(tmp_path: Path) -> None:
    ends = torch.tensor([False, False, True, False]).reshape(4, 1, 1)
    made = Trajectory(
        actions=torch.full((4, 1, 1000), -123.456),
        rewards=torch.zeros(4, 1, 1),
        terminations=torch.cat([ends[:1] & False, ends]),
    )
    save(str(tmp_path / "a"), None, [made])
    scene = scene_of(tmp_path / "a", place=Place(0, 2))
    assert scene.heading[1].startswith("Reward: 0.0000 | Done: True | Termination | ")
    assert scene.heading[2].startswith("Action: [-123.456 ")
    scene = scene_of(tmp_path / "a", place=Place(0, 1))
    assert scene.heading[1].startswith("Reward: 0.0000 | Done: False | Episode 1/2")


def test_all_cameras_and_all_environments(tmp_path: Path) -> None:
    (made,) = save_recorded(tmp_path / "a", (3, 5))
    scene = scene_of(tmp_path / "a", place=Place(0, 1, 2), layout="cameras")
    titles = [panel.title for pair in scene.panels for panel in pair]
    assert titles == [
        "current observation: extra_view_images",
        "next observation: extra_view_images",
        "current observation: main_images",
        "next observation: main_images",
    ]
    views = scene.panels[0][1].picture
    assert views is not None
    expected = made.next_obs["extra_view_images"][1, 2]
    assert np.array_equal(views[:, :SIDE], expected[0].numpy())
    assert np.array_equal(views[:, SIDE + GAP :], expected[1].numpy())
    scene = scene_of(tmp_path / "a", place=Place(0, 1, 2), layout="envs")
    ((left, right),) = scene.panels
    assert left.envs == right.envs == (0, 1, 2, 3, 4)
    assert left.picture is not None
    for env in range(5):
        row, column = divmod(env, 3)
        top, at = row * (SIDE + GAP), column * (SIDE + GAP)
        tile = left.picture[top : top + SIDE, at : at + SIDE]
        assert np.array_equal(tile, made.curr_obs["main_images"][1, env].numpy())
    figure = plot_scene(scene)
    labels = [text.get_text() for text in figure.axes[1].texts if text.get_text()]
    assert labels == ["0", "1", "2", "3", "4"]


def test_trajectories_without_images_show_states_and_curves(tmp_path: Path) -> None:
    states = torch.arange(24, dtype=torch.float32).reshape(4, 2, 3)
    one = Trajectory(
        rewards=torch.ones(4, 2, 1),
        curr_obs={"states": states},
        next_obs={"states": states + 1},
    )
    save(str(tmp_path / "a"), None, [one])
    scene = scene_of(tmp_path / "a", place=Place(0, 2, 1))
    ((left, right),) = scene.panels
    assert left.values is not None
    assert right.values is not None
    assert left.values.tolist() == states[2, 1].tolist()
    assert right.values.tolist() == (states[2, 1] + 1).tolist()
    assert [one.name for one in scene.curves.curves] == ["reward", "return", "states"]
    figure = plot_scene(scene)
    heights = [bar.get_height() for bar in figure.axes[1].patches]
    assert heights == states[2, 1].tolist()


def test_curves_have_a_cursor_boundaries_and_interventions(tmp_path: Path) -> None:
    save_recorded(tmp_path / "a", (8, 1))
    scene = scene_of(tmp_path / "a", place=Place(0, 5))
    figure = Figure()
    screen = Screen(figure)
    screen.show(scene)
    texts = [[text.get_text() for text in axes.texts] for axes in screen.curve_axes]
    assert texts == [["reward"], ["return", "6", "22"], ["actions"]]
    for axes in screen.curve_axes:
        cursor = axes.lines[-1]
        assert list(cursor.get_xdata()) == [5, 5]
        spans, ends = axes.collections
        (box,) = (path.get_extents() for path in spans.get_paths())
        assert (box.x0, box.x1) == (1.5, 2.5)
        assert [path.vertices[0, 0] for path in ends.get_paths()] == [3.5, 7.5]
    rewards = screen.curve_axes[0].lines[0].get_ydata()
    assert rewards.tolist() == list(range(8))


def test_showing_the_next_scene_equals_a_new_figure(tmp_path: Path) -> None:
    """By drawing over what stays, as a window does; also after a change of layout."""
    save_recorded(tmp_path / "a", (6, 2), (5, 3))
    reader = SceneReader(open_playback(tmp_path / "a"))
    figure = Figure(figsize=(14, 8))
    canvas = FigureCanvasAgg(figure)
    canvas.blit = lambda bbox=None: None  # type: ignore[attr-defined]
    canvas.draw_idle = canvas.draw  # type: ignore[method-assign]
    screen = Screen(figure)
    for place, layout in (
        (Place(0, 0), "camera"),
        (Place(0, 1), "camera"),
        (Place(0, 2, 1), "camera"),
        (Place(0, 2, 1), "envs"),
        (Place(1, 3, 2), "envs"),
        (Place(1, 4, 2), "cameras"),
        (Place(1, 0, 2), "cameras"),
    ):
        scene = reader.read(Wish(place, layout=layout))  # type: ignore[arg-type]
        screen.show(scene)
        screen.redraw()
        fresh = FigureCanvasAgg(plot_scene(scene))
        fresh.draw()
        here, there = (np.asarray(one.buffer_rgba()) for one in (canvas, fresh))
        # A cursor that is drawn last lies over the frame of its axes.
        differ = (here != there).any(axis=-1)
        assert differ.sum() < 100, (place, layout)
    reader.close()


@pytest.mark.parametrize("layout", ["camera", "envs"])
def test_a_damaged_frame_is_marked_and_the_rest_is_shown(
    tmp_path: Path, layout: Any
) -> None:
    save_recorded(tmp_path / "a", (4, 2))
    path = archive_of(tmp_path / "a", 0)
    recording = open_playback(tmp_path / "a").recording(0)
    shard = recording._archive.shard("obs/main_images")
    start = int(shard.ranges[2 * 2, 0])  # current frame of step 2, environment 0
    data = bytearray(path.read_bytes())
    data[start + 10] ^= 1
    path.write_bytes(data)
    scene = scene_of(tmp_path / "a", place=Place(0, 2), layout=layout)
    ((left, right),) = scene.panels
    assert "main_images" in left.error
    assert right.error == ""
    assert left.picture is not None
    assert (left.picture[0, 0] == (200, 30, 30)).all()
    figure = plot_scene(scene)
    shown = [text.get_text() for text in figure.axes[1].texts if text.get_visible()]
    assert any("damaged" in text for text in shown)
    assert scene_of(tmp_path / "a", place=Place(0, 3)).panels[0][0].error == ""


def test_a_trajectory_that_is_gone_is_said_and_others_are_shown(tmp_path: Path) -> None:
    save_recorded(tmp_path / "a", (4, 2), (4, 2))
    archive_of(tmp_path / "a", 0).unlink()
    scene = scene_of(tmp_path / "a", place=Place(0, 2))
    assert "is missing" in scene.panels[0][0].error
    assert scene.heading[0].startswith("Trajectory ID 0")
    plot_scene(scene)
    assert scene_of(tmp_path / "a", place=Place(1, 2)).panels[0][0].error == ""


def test_damaged_rewards_are_said_and_frames_shown(tmp_path: Path) -> None:
    save_recorded(tmp_path / "a", (4, 1))
    path = archive_of(tmp_path / "a", 0)
    recording = open_playback(tmp_path / "a").recording(0)
    start = int(recording._archive.shard("rewards").ranges[0, 0])
    data = bytearray(path.read_bytes())
    data[start + 18] ^= 1
    path.write_bytes(data)
    scene = scene_of(tmp_path / "a", place=Place(0, 2))
    assert scene.panels[0][0].error == ""
    assert "rewards: cannot be read" in scene.heading[1]
    assert any("rewards" in line for line in scene.heading if "damaged" in line)
    assert "reward" not in [one.name for one in scene.curves.curves]


def test_large_images_are_scaled_for_the_screen_only(tmp_path: Path) -> None:
    image = torch.randint(0, 256, (1, 1, 1500, 2000, 3), dtype=torch.uint8)
    one = Trajectory(
        rewards=torch.ones(1, 1, 1),
        curr_obs={"main_images": image},
        next_obs={"main_images": image},
    )
    save(str(tmp_path / "a"), None, [one])
    scene = scene_of(tmp_path / "a", place=Place())
    picture = scene.panels[0][0].picture
    assert picture is not None
    assert np.array_equal(picture, image[0, 0].numpy())
    artist = plot_scene(scene).axes[1].images[0]
    shown = artist.get_array()
    assert shown is not None
    assert shown.shape == (750, 1000, 3)
    assert artist.get_extent() == [-0.5, 1999.5, 1499.5, -0.5]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"camera": "side"}, InvalidInputError, "extra_view_images, main_images"),
        ({"step": 4}, InvalidInputError, "a whole number from 0 to 3"),
        ({"env": -1}, InvalidInputError, "env is -1"),
        ({"layout": "all"}, InvalidInputError, "allowed are camera, cameras, envs"),
        ({"trajectory_id": 9}, TrajectoryNotFoundError, "the nearest are 0"),
    ],
)
def test_what_is_not_there_is_said(
    tmp_path: Path, arguments: Any, error: type[Exception], words: str
) -> None:
    save_recorded(tmp_path / "a", (4, 2))
    with pytest.raises(error, match=words):
        zarrbuf.plot_step(tmp_path / "a", **{"trajectory_id": 0, **arguments})


def test_an_image_file_is_replaced_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_recorded(tmp_path / "a", (2, 1))
    figure = plot_scene(scene_of(tmp_path / "a", place=Place()))
    path = tmp_path / "out" / "viz.png"
    path.parent.mkdir()
    save_figure(figure, path)
    with Image.open(path) as image:
        assert image.size == (2100, 1200)
    whole = path.read_bytes()
    real = FigureCanvasAgg.print_figure

    def torn(self: FigureCanvasAgg, name: str, **more: Any) -> None:
        real(self, name, **more)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FigureCanvasAgg, "print_figure", torn)
    with pytest.raises(StorageError, match=r"viz\.png: cannot be written"):
        save_figure(figure, path)
    assert path.read_bytes() == whole
    assert [one.name for one in path.parent.iterdir()] == ["viz.png"]
    with pytest.raises(StorageError):
        save_figure(figure, tmp_path / "none" / "viz.png")


def test_names_are_text_and_no_formulas(tmp_path: Path) -> None:
    name = r"$\wrong{$"
    images = torch.zeros(3, 1, 8, 8, 3, dtype=torch.uint8)
    made = Trajectory(
        rewards=torch.zeros(3, 1, 1),
        forward_inputs={name: torch.zeros(3, 1, 1)},
        curr_obs={name: images},
        next_obs={name: images},
    )
    save(str(tmp_path / "a"), None, [made])
    figure = zarrbuf.plot_step(tmp_path / "a", 0, camera=name)
    FigureCanvasAgg(figure).draw()
    titles = [axes.get_title() for axes in figure.axes]
    assert f"current observation: {name}" in titles
    out = tmp_path / "sheet.png"
    done = zarrbuf.export_clip(tmp_path / "a", out, camera=name)
    with Image.open(out) as sheet:
        assert done.num_frames == 3
        assert sheet.size[0] > 100


@pytest.mark.parametrize("count", [3, 5, 8, 13])
def test_pictures_of_many_cameras_are_as_large_as_fits(
    count: int, tmp_path: Path
) -> None:
    image = torch.zeros(3, 1, 16, 16, 3, dtype=torch.uint8)
    names = {f"a_camera_with_a_long_name_{n:02}": image for n in range(count)}
    made = Trajectory(rewards=torch.zeros(3, 1, 1), curr_obs=names, next_obs=names)
    save(str(tmp_path / "a"), None, [made])
    figure = zarrbuf.plot_step(tmp_path / "a", 0, layout="cameras")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 2 * count
    renderer = canvas.get_renderer()
    boxes = [axes.get_window_extent(renderer) for axes in shown]
    assert all(box.height > 60 and box.width > 60 for box in boxes)
    titles = [axes.title.get_window_extent(renderer) for axes in shown]
    for one, other in pairwise(titles):
        assert one.x1 <= other.x0 or one.y0 != other.y0


def test_all_curves_have_names_in_the_figure_and_more_are_said(tmp_path: Path) -> None:
    states = {f"a_long_name_of_a_state_{n}": torch.ones(5, 1, 40) for n in range(27)}
    made = Trajectory(rewards=torch.zeros(5, 1, 1), curr_obs=states, next_obs=states)
    save(str(tmp_path / "a"), None, [made])
    figure = zarrbuf.plot_step(tmp_path / "a", 0)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    names = [
        text
        for axes in figure.axes
        for text in axes.texts
        if text.get_text().endswith("(+24)")
    ]
    assert len(names) == 4
    for text in names:
        assert text.get_window_extent(canvas.get_renderer()).x0 > 0
    label = figure.axes[-1].get_xlabel()
    assert label == "step (23 more curves are not shown)"
    assert figure.axes[1].get_title().endswith("(the first 64 of 1080 numbers)")


@pytest.mark.parametrize("value", [1.7e308, -1.7e308, 5e-324, float("nan"), 3.4e38])
def test_numbers_of_any_size_are_drawn(value: float, tmp_path: Path) -> None:
    many = torch.full((4, 1, 2), value, dtype=torch.float64)
    made = Trajectory(rewards=many, curr_obs={"x": many}, next_obs={"x": many})
    save(str(tmp_path / "a"), None, [made])
    figure = zarrbuf.plot_step(tmp_path / "a", 0)
    FigureCanvasAgg(figure).draw()
    low, high = figure.axes[1].get_ylim()
    assert np.isfinite([low, high]).all()
    if value == 3.4e38:
        assert low <= value <= high


def test_of_very_many_environments_some_have_numbers_and_one_a_frame(
    tmp_path: Path,
) -> None:
    image = torch.zeros(2, 121, 16, 16, 3, dtype=torch.uint8)
    made = Trajectory(curr_obs={"eye": image}, next_obs={"eye": image})
    save(str(tmp_path / "a"), None, [made])
    scene = scene_of(tmp_path / "a", place=Place(0, 0, 60), layout="envs")
    axes = plot_scene(scene).axes[1]
    labels = [text.get_text() for text in axes.texts if text.get_text()]
    assert labels == [*map(str, range(0, 60, 11)), "60", *map(str, range(66, 121, 11))]
    (frame,) = axes.patches
    assert isinstance(frame, Rectangle)
    assert frame.get_xy() == (5 * 18 - 0.5, 5 * 18 - 0.5)


def test_many_episodes_and_interventions_are_few_artists(tmp_path: Path) -> None:
    flags = torch.ones(201, 1, 1, dtype=torch.bool)
    made = Trajectory(
        rewards=torch.zeros(200, 1, 1),
        dones=flags,
        intervene_flags=(torch.arange(200) % 2 == 0).reshape(200, 1, 1),
    )
    save(str(tmp_path / "a"), None, [made])
    figure = zarrbuf.plot_step(tmp_path / "a", 0, step=3)
    for axes in figure.axes[-2:]:
        spans, ends = axes.collections
        assert len(spans.get_paths()) == 100
        assert len(ends.get_paths()) == 200
        assert len(axes.lines) == 2
