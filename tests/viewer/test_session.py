"""Looking through a buffer: commands, keys, words; on a canvas without a display."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.backend_bases import KeyEvent, MouseEvent, NavigationToolbar2
from matplotlib.figure import Figure
from PIL import Image
from support.remote import save
from support.viewed import SIDE, archive_of, recorded, save_recorded

import zarrbuf
from zarrbuf import Trajectory
from zarrbuf.errors import (
    InvalidInputError,
    NotFoundError,
    TrajectoryNotFoundError,
)
from zarrbuf.viewer.cursor import MOVES, Place
from zarrbuf.viewer.frontends.prompt import WORDS, Prompt
from zarrbuf.viewer.frontends.window import Window
from zarrbuf.viewer.images import GAP
from zarrbuf.viewer.session import KEYS, Viewing
from zarrbuf.viewer.trajectories import open_playback


@pytest.fixture
def buffer(tmp_path: Path) -> Path:
    """Trajectories of T = 6, 3, 30 and B = 2, 1, 2."""
    save_recorded(tmp_path / "a", (6, 2), (3, 1), (30, 2))
    return tmp_path / "a"


def viewing_of(path: Path, **more: Any) -> Viewing:
    return Viewing(open_playback(path), **more)


def place_of(viewing: Viewing) -> tuple[int, int, int]:
    return viewing.place.position, viewing.place.step, viewing.place.env


def test_commands_move_and_say_what_happened(buffer: Path) -> None:
    viewing = viewing_of(buffer)
    viewing.do("prev")
    assert viewing.message == "there is nothing further that way"
    viewing.do("end")
    viewing.do("next")
    assert place_of(viewing) == (1, 0, 0)
    assert viewing.message == "now in trajectory_1_w.zarr"
    viewing.go_to(step=99)
    assert place_of(viewing) == (1, 2, 0)
    viewing.go_to(env=99)
    assert place_of(viewing) == (1, 2, 0)
    viewing.jump(" 2 ")
    assert place_of(viewing) == (2, 0, 0)
    with pytest.raises(TrajectoryNotFoundError, match="nearest are 0, 1, 2"):
        viewing.jump("7")
    with pytest.raises(InvalidInputError, match="'x' is no trajectory id"):
        viewing.jump("x")
    assert place_of(viewing) == (2, 0, 0)
    viewing.close()


def test_cameras_and_layouts_are_chosen(buffer: Path) -> None:
    viewing = viewing_of(buffer)
    assert viewing.scene().panels[0][0].title.endswith("main_images")
    viewing.do("next_camera")
    assert viewing.camera == "extra_view_images"
    viewing.do("next_camera")
    assert viewing.camera == "main_images"
    viewing.do("cameras")
    assert len(viewing.scene().panels) == 2
    viewing.do("envs")
    assert viewing.scene().panels[0][0].envs == (0, 1)
    viewing.do("envs")
    assert viewing.layout == "camera"
    with pytest.raises(InvalidInputError, match="extra_view_images, main_images"):
        viewing.choose_camera("side")
    viewing.close()


def test_an_absent_camera_falls_back_with_one_message(buffer: Path) -> None:
    viewing = viewing_of(buffer, camera="wrist_images")
    scene = viewing.scene()
    assert scene.panels[0][0].title.endswith("main_images")
    assert "has no wrist_images: showing main_images" in viewing.message
    viewing.do("next")
    viewing.scene()
    assert viewing.message == ""
    viewing.close()
    with pytest.raises(InvalidInputError, match="has extra_view_images, main_images"):
        viewing_of(buffer, camera="side")


def test_info_tells_the_list_and_the_tags(buffer: Path) -> None:
    viewing = viewing_of(buffer, place=Place(2, 4, 1))
    text = "\n".join(viewing.info())
    for part in ("ID: 2 (#2/2)", "Step: 4/29", "1/1", "mean_return: ", "main_images"):
        assert part in text
    viewing.close()


class Shown:
    """A window on a canvas of files, and events as a desktop would send them."""

    def __init__(self, path: Path, tmp_path: Path, **more: Any) -> None:
        self.figure: Figure = plt.figure(figsize=(14, 8))
        self.said: list[str] = []
        self.has_left = False
        self.viewing = viewing_of(path)
        self.output = tmp_path / "viz.png"
        self.window = Window(
            self.figure,
            self.viewing,
            output=self.output,
            say=self.said.append,
            leave=self.leave,
            **more,
        )

    def leave(self) -> None:
        self.has_left = True

    def key(self, *names: str) -> None:
        canvas = self.figure.canvas
        for name in names:
            canvas.callbacks.process(
                "key_press_event", KeyEvent("key_press_event", canvas, name)
            )

    def click(self, axes: Any, x: float) -> None:
        canvas = self.figure.canvas
        canvas.draw()
        places = axes.transData.transform((x, sum(axes.get_ylim()) / 2))
        for name in ("button_press_event", "button_release_event"):
            canvas.callbacks.process(name, MouseEvent(name, canvas, *places, 1))

    @property
    def heading(self) -> str:
        return self.figure.axes[0].texts[0].get_text()


@pytest.fixture
def shown(buffer: Path, tmp_path: Path) -> Any:
    found = Shown(buffer, tmp_path)
    yield found
    found.viewing.close()
    plt.close(found.figure)


def test_every_key_does_what_it_does_at_the_prompt() -> None:
    """And all commands have both; those of RLinf are named by its own words."""
    for commands in (KEYS.values(), WORDS.values()):
        assert set(commands) == {*MOVES, "next_camera", "cameras", "envs", "refresh"}
    for key, word in (
        ("right", "next"),
        ("left", "prev"),
        ("up", "nexttraj"),
        ("down", "prevtraj"),
        ("b", "nextbatch"),
        ("v", "prevbatch"),
        ("pagedown", "nn"),
        ("pageup", "pp"),
    ):
        assert KEYS[key] == WORDS[word]
    for name in set(KEYS) & set(WORDS):
        assert KEYS[name] == WORDS[name]


def test_keys_move_the_window(shown: Shown) -> None:
    shown.key("right", "n", "right")
    assert place_of(shown.viewing) == (0, 3, 0)
    assert "Step 3/5" in shown.heading
    shown.key("left", "p", "b", "v", "b")
    assert place_of(shown.viewing) == (0, 1, 1)
    shown.key("up")
    assert place_of(shown.viewing) == (1, 0, 0)
    shown.key("end", "right", "pagedown")
    assert place_of(shown.viewing) == (2, 10, 0)
    shown.key("home", "down", "down")
    assert place_of(shown.viewing) == (0, 0, 0)
    assert not shown.has_left
    shown.key("f5", "l", "k", "f")  # matplotlib's own, and none
    assert shown.figure.axes[0].get_xscale() == "linear"
    shown.key("escape")
    assert shown.has_left


def test_drawn_frames_follow_the_keys(shown: Shown) -> None:
    made = recorded(6, 2)
    for step in range(4):
        images = [one.images[0] for one in shown.figure.axes if one.images]
        for image, group in zip(images, (made.curr_obs, made.next_obs), strict=True):
            expected = group["main_images"][step, 0].numpy()
            assert np.array_equal(image.get_array(), expected)
        shown.key("right")


def test_a_click_on_a_curve_jumps_to_the_step(shown: Shown) -> None:
    axes = shown.window._screen.curve_axes[1]
    shown.click(axes, 4.3)
    assert place_of(shown.viewing) == (0, 4, 0)
    pictures = next(one for one in shown.figure.axes if one.images)
    shown.click(pictures, 2)
    assert place_of(shown.viewing) == (0, 4, 0)
    shown.key("g")
    grid = next(one for one in shown.figure.axes if one.images)
    shown.click(grid, SIDE + GAP + 3)
    assert place_of(shown.viewing) == (0, 4, 1)
    shown.click(next(one for one in shown.figure.axes if one.images), 3)
    assert place_of(shown.viewing) == (0, 4, 0)


def test_the_text_box_takes_the_keys_it_needs(shown: Shown) -> None:
    box = shown.window._box
    shown.click(box.ax, 0.5)
    shown.key("n", "backspace", "2", "enter")
    assert place_of(shown.viewing) == (2, 0, 0)
    shown.click(box.ax, 0.5)
    shown.key("0", "escape", "right", "left")
    assert not shown.has_left
    assert place_of(shown.viewing) == (2, 0, 0)
    shown.click(box.ax, 0.5)
    shown.key("0")
    shown.click(shown.figure.axes[0], 0.5)  # is left without having entered
    assert place_of(shown.viewing) == (2, 0, 0)
    shown.click(box.ax, 0.5)
    shown.key("backspace", "enter", "right", "left")
    assert place_of(shown.viewing) == (2, 0, 0)
    shown.click(box.ax, 0.5)
    shown.key("9", "9", "enter")
    assert "trajectory 99 is not listed; the nearest are 0, 1, 2" in shown.heading
    assert shown.said[-1].startswith("trajectory 99 is not listed")
    shown.key("right")
    assert place_of(shown.viewing) == (2, 1, 0)


def test_s_saves_and_every_move_if_told_to(
    shown: Shown, buffer: Path, tmp_path: Path
) -> None:
    assert not shown.output.exists()
    shown.key("s")
    with Image.open(shown.output) as image:
        assert image.size == (2100, 1200)
    assert f"saved to {shown.output}" in shown.heading
    each = Shown(buffer, tmp_path, save_each=True)
    before = each.output.read_bytes()
    each.key("right")
    assert each.output.read_bytes() != before
    each.output.unlink()
    each.output.mkdir()
    each.key("s")
    assert "is no file; name one, or a new one" in each.heading
    each.viewing.close()
    plt.close(each.figure)


def test_saving_does_not_touch_what_the_window_shows(shown: Shown) -> None:
    """The image has other pixels; the window draws over what it had before."""

    def pictures() -> Any:
        canvas: Any = shown.figure.canvas
        pixels = np.asarray(canvas.buffer_rgba()).copy()
        assert pixels.shape == (800, 1400, 4)
        return pixels[100:700]  # what is said stands above, the text box below

    shown.key("right")
    before = pictures()
    canvas = shown.figure.canvas
    shown.key("s", "right", "left")
    assert shown.figure.canvas is canvas
    assert np.array_equal(pictures(), before)
    shown.key("g", "s", "g")
    assert np.array_equal(pictures(), before)


def test_a_damaged_trajectory_is_passed_through(buffer: Path, tmp_path: Path) -> None:
    archive_of(buffer, 1).write_bytes(b"no archive")
    found = Shown(buffer, tmp_path)
    found.key("up")
    assert "cannot be read" in found.heading
    found.key("c", "a", "g", "right", "right", "right")
    assert place_of(found.viewing) == (2, 0, 0)
    assert "cannot be read" not in found.heading
    found.viewing.close()
    plt.close(found.figure)


def run_prompt(path: Path, text: str) -> tuple[Viewing, list[str], int]:
    """Type some lines; what was said, and how often it was shown."""
    viewing, said, shows = viewing_of(path), [], []

    def show() -> None:
        shows.append(viewing.scene().place)

    prompt = Prompt(viewing, show=show, say=said.append, stdin=io.StringIO(text))
    prompt.stdout = io.StringIO()
    prompt.cmdloop()
    viewing.close()
    return viewing, said, len(shows)


@pytest.mark.parametrize(
    ("lines", "place"),
    [
        ("n\nnext\np\n", (0, 1, 0)),
        ("n\n\n\n", (0, 3, 0)),
        ("nn\nN\nprev\n", (0, 5, 1)),
        ("nt\nnexttraj\npt\n", (1, 0, 0)),
        ("nb\nnextbatch\n", (0, 0, 1)),
        ("nb\npb\n", (0, 0, 0)),
        ("end\nhome\nend\n", (0, 5, 0)),
        ("j 2\nstep 7\n", (2, 7, 0)),
        ("j 2\nstep -7\n", (2, 0, 0)),
        ("j 2\nq\nn\n", (2, 0, 0)),
        ("j 2", (2, 0, 0)),
    ],
)
def test_words_move_as_they_do_at_rlinf(
    buffer: Path, lines: str, place: tuple[int, int, int]
) -> None:
    viewing, _, _ = run_prompt(buffer, lines)
    assert place_of(viewing) == place


def test_what_the_prompt_cannot_do_is_said_and_it_goes_on(buffer: Path) -> None:
    viewing, said, shows = run_prompt(
        buffer,
        "j 9\nj\nfoo 1\nn 3\nstep x\nstep --5\nstep\ncamera side\ninfo\nhelp\n"
        f"step {'1' * 5000}\nenv two\nn\n",
    )
    assert shows == 1
    assert place_of(viewing) == (0, 1, 0)
    text = "\n".join(said)
    for part in (
        "Error: trajectory 9 is not listed; the nearest are 0, 1, 2",
        "Error: '' is no trajectory id",
        "Unknown command: foo 1",
        "Unknown command: n 3",
        "Error: step is 'x'; a whole number is needed",
        "Error: step is '--5'",
        "Error: step is ''",
        "Error: step is '1111",
        "Error: env is 'two'",
        "Error: camera is 'side'",
        "Step: 0/5",
        "nexttraj",
    ):
        assert part in text


def test_the_prompt_completes_words_cameras_and_ids(buffer: Path) -> None:
    viewing = viewing_of(buffer)
    prompt = Prompt(viewing, show=lambda: None, say=lambda line: None)
    assert prompt.completenames("next") == ["next", "nextbatch", "nexttraj"]
    assert prompt.completedefault("ma", "camera ma", 7, 9) == ["main_images"]
    assert prompt.completedefault("", "j ", 2, 2) == ["0", "1", "2"]
    assert prompt.completedefault("", "n ", 2, 2) == []
    viewing.close()


def test_trajectories_of_other_cameras_are_passed_through(tmp_path: Path) -> None:
    """Another camera is shown where there is none such, and the one wanted after it."""
    image = torch.zeros(2, 1, 40, 40, 3, dtype=torch.uint8)
    for names in (["a_images"], ["b_images"], ["a_images", "b_images"]):
        images = dict.fromkeys(names, image)
        one = Trajectory(rewards=torch.ones(2, 1, 1), curr_obs=images, next_obs=images)
        save(str(tmp_path / "x"), None, [one])
    viewing = viewing_of(tmp_path / "x", camera="a_images")
    messages = []
    for _ in range(6):
        scene = viewing.scene()
        messages.append((scene.camera, viewing.message))
        viewing.do("next")
    viewing.close()
    name = "trajectory_1_.zarr"
    assert messages == [
        ("a_images", ""),
        ("a_images", ""),
        (
            "b_images",
            f"now in {name} | {name} has no a_images: showing b_images (there are "
            "b_images)",
        ),
        ("b_images", ""),
        ("a_images", "now in trajectory_2_.zarr | camera a_images"),
        ("a_images", ""),
    ]
    with pytest.raises(InvalidInputError, match="has b_images"):
        viewing_of(tmp_path / "x", camera="a_images", place=Place(1))


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_camera_may_be_named_where_the_first_trajectory_is_damaged(
    buffer: Path, damage: Any
) -> None:
    damage(archive_of(buffer, 0))
    viewing = viewing_of(buffer, camera="extra_view_images")
    assert viewing.scene().is_broken
    viewing.do("next_trajectory")
    assert viewing.scene().camera == "extra_view_images"
    viewing.close()


def test_what_is_added_while_one_looks_is_found(buffer: Path) -> None:
    viewing = viewing_of(buffer, place=Place(2, 29, 1))
    save_recorded(buffer, (2, 1))
    for command in ("next_env", "end", "far_next"):
        viewing.do(command)
    assert len(viewing.playback) == 3
    viewing.do("next")
    assert place_of(viewing) == (3, 0, 0)
    save_recorded(buffer, (2, 1))
    viewing.jump("4")
    assert place_of(viewing) == (4, 0, 0)
    save_recorded(buffer, (2, 1))
    zarrbuf.remove(buffer, "0,2")
    viewing.do("refresh")
    assert viewing.message == "there are 4 trajectories now"
    assert viewing.playback.name(viewing.place.position) == "trajectory_4_w.zarr"
    assert viewing.scene().place == Place(2)
    zarrbuf.remove(buffer, "4")
    viewing.do("refresh")
    assert viewing.playback.name(viewing.place.position) == "trajectory_5_w.zarr"
    shutil.rmtree(buffer)
    with pytest.raises(NotFoundError):
        viewing.do("next_trajectory")
    assert len(viewing.playback) == 3
    viewing.close()


def test_a_list_that_is_the_same_keeps_what_is_open(buffer: Path) -> None:
    viewing = viewing_of(buffer, place=Place(2, 29, 1))
    curves = viewing.scene().curves
    viewing.do("next")
    assert viewing.message == "there is nothing further that way"
    assert viewing.scene().curves is curves
    viewing.do("refresh")
    assert viewing.scene().curves is not curves
    viewing.close()


def test_a_buffer_that_was_made_anew_may_be_smaller(buffer: Path) -> None:
    viewing = viewing_of(buffer, place=Place(0, 5, 1))
    shutil.rmtree(buffer)
    save_recorded(buffer, (2, 1))
    viewing.do("refresh")
    assert viewing.scene().place == Place(0, 1, 0)
    viewing.close()


def test_the_prompt_shows_where_it_is_if_that_changed_with_an_error(
    buffer: Path,
) -> None:
    viewing = viewing_of(buffer, place=Place(2))
    shown: list[str] = []

    def show() -> None:
        shown.append(viewing.scene().heading[0])

    lines = io.StringIO("j 77\nj 77\nq\n")
    prompt = Prompt(viewing, show=show, say=lambda line: None, stdin=lines)
    zarrbuf.remove(buffer, "2")
    prompt.cmdloop()
    viewing.close()
    assert [line.split(" (")[0] for line in shown] == ["Trajectory ID 1"]


def test_a_drag_of_a_tool_is_no_click(shown: Shown) -> None:
    canvas: Any = shown.figure.canvas
    canvas.toolbar = NavigationToolbar2(canvas)
    canvas.toolbar.mode = "zoom rect"
    shown.click(shown.window._screen.curve_axes[1], 4.3)
    assert place_of(shown.viewing) == (0, 0, 0)
    canvas.toolbar.mode = ""
    shown.click(shown.window._screen.curve_axes[1], 4.3)
    assert place_of(shown.viewing) == (0, 4, 0)


def test_damage_is_told_to_who_reads_words(buffer: Path) -> None:
    archive_of(buffer, 1).unlink()
    said: list[str] = []
    viewing = viewing_of(buffer)
    viewing.scene()
    viewing.tell(said.append)
    viewing.do("next_trajectory")
    viewing.scene()
    viewing.tell(said.append)
    viewing.do("next_trajectory")
    viewing.scene()
    viewing.tell(said.append)
    viewing.close()
    assert len(said) == 3
    assert said[0] == "now in trajectory_1_w.zarr"
    assert said[1].endswith(".zarr.zip) is missing")
    assert said[2] == "now in trajectory_2_w.zarr"
