"""Clips and contact sheets: what is in the file is what was stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from support.remote import Asked, memory_url, save
from support.viewed import archive_of, colours, recorded, save_recorded

import zarrbuf
from zarrbuf import Trajectory, export_clip
from zarrbuf.errors import (
    FormatError,
    InvalidInputError,
    StorageError,
    TrajectoryNotFoundError,
)


@pytest.mark.parametrize("size", [(32, 48), (33, 47)])
def test_a_film_has_every_frame(tmp_path: Path, size: tuple[int, int]) -> None:
    made = colours(12, height=size[0], width=size[1])
    save(str(tmp_path / "a"), None, [made])
    done = export_clip(tmp_path / "a", tmp_path / "x.mp4", fps=5)
    assert (done.num_frames, done.cameras) == (12, ("main_images",))
    assert done.num_bytes == (tmp_path / "x.mp4").stat().st_size
    with av.open(str(tmp_path / "x.mp4")) as film:
        assert film.streams.video[0].average_rate == 5
        found = [one.to_ndarray(format="rgb24") for one in film.decode(video=0)]
    assert len(found) == 12
    assert found[0].shape == (size[0] // 2 * 2, size[1] // 2 * 2, 3)
    for step, frame in enumerate(found):
        expected = made.curr_obs["main_images"][step, 0, 0, 0].numpy().astype(int)
        assert abs(frame[10, 10].astype(int) - expected).max() < 12


def test_a_gif_has_every_frame(tmp_path: Path) -> None:
    made = colours(6)
    save(str(tmp_path / "a"), None, [made])
    export_clip(tmp_path / "a", tmp_path / "x.gif", fps=10)
    with Image.open(tmp_path / "x.gif") as clip:
        assert clip.n_frames == 6
        assert clip.info["duration"] == 100
        for step in range(6):
            clip.seek(step)
            frame = np.asarray(clip.convert("RGB"))
            expected = made.curr_obs["main_images"][step, 0, 0, 0].numpy()
            assert abs(frame[10, 10].astype(int) - expected).max() < 8


def test_a_sheet_shows_steps_evenly_and_all_cameras(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = save_recorded(tmp_path / "a", (3, 1), (90, 2))
    drawn: list[Any] = []

    def note(pictures: Any, labels: Any, *, title: str) -> Any:
        drawn.extend([pictures, labels, title])
        return zarrbuf.viewer.figures.plot_sheet(pictures, labels, title=title)

    monkeypatch.setattr("zarrbuf.viewer.export.plot_sheet", note)
    done = export_clip(tmp_path / "a", tmp_path / "x.png", trajectory_id=1, env=1)
    pictures, labels, title = drawn
    assert labels[:4] == ["step 0", "step 2", "step 5", "step 7"]
    assert labels[-1] == "step 89"
    assert done.num_frames == len(pictures) == len(labels) == 40
    assert done.cameras == ("extra_view_images", "main_images")
    assert "trajectory_1_w.zarr, env 1" in title
    frame = made[1].curr_obs["main_images"][5, 1].numpy()
    assert np.array_equal(pictures[2][:, -40:], frame)
    with Image.open(tmp_path / "x.png") as sheet:
        assert min(sheet.size) > 200


def test_frames_are_fetched_some_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = memory_url()
    save(url, None, [recorded(32, 1)])
    asked = Asked(monkeypatch)
    export_clip(url, tmp_path / "x.gif", camera="main_images")
    assert len(asked.rounds) <= 2 + 1 + 32 / 8


@pytest.mark.parametrize(
    ("name", "arguments", "error", "words"),
    [
        ("x.avi", {}, InvalidInputError, r"\.mp4, \.gif, \.png"),
        ("x", {}, InvalidInputError, "ends in 'nothing'"),
        ("x.gif", {"env": 1}, InvalidInputError, "env is 1; .* from 0 to 0"),
        ("x.gif", {"env": "0"}, InvalidInputError, "env is '0'"),
        ("x.gif", {"fps": 0.0}, InvalidInputError, "fps is 0.0; allowed are"),
        ("x.gif", {"fps": float("nan")}, InvalidInputError, "fps is nan"),
        ("x.gif", {"fps": "10"}, InvalidInputError, "fps is '10'"),
        ("x.gif", {"fps": 60}, InvalidInputError, "allowed are 0.1 to 50 for .gif"),
        ("x.gif", {"trajectory_id": "0"}, InvalidInputError, "a whole number"),
        ("a", {}, InvalidInputError, "ends in 'nothing'"),
        ("s3:/x.gif", {}, StorageError, "cannot be written"),
        ("x.gif", {"camera": "side"}, InvalidInputError, "there are main_images"),
        ("x.gif", {"trajectory_id": 5}, TrajectoryNotFoundError, "nearest are 0"),
        ("none/x.gif", {}, StorageError, "cannot be written"),
        ("none/x.mp4", {}, StorageError, "cannot be written"),
        ("none/x.png", {}, StorageError, "cannot be written"),
    ],
)
def test_what_is_not_allowed_is_one_clear_error(
    tmp_path: Path, name: str, arguments: Any, error: type[Exception], words: str
) -> None:
    save(str(tmp_path / "a"), None, [colours(2)])
    with pytest.raises(error, match=words):
        export_clip(tmp_path / "a", tmp_path / name, **arguments)
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("suffix", ["mp4", "gif", "png"])
def test_of_damaged_frames_no_file_is_left(tmp_path: Path, suffix: str) -> None:
    save_recorded(tmp_path / "a", (4, 1))
    path = archive_of(tmp_path / "a", 0)
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    (tmp_path / f"x.{suffix}").write_bytes(b"an older one")
    with pytest.raises(FormatError, match="damaged"):
        export_clip(tmp_path / "a", tmp_path / f"x.{suffix}")
    assert (tmp_path / f"x.{suffix}").read_bytes() == b"an older one"
    assert len(list(tmp_path.iterdir())) == 2


def test_states_alone_make_no_clip(tmp_path: Path) -> None:
    one = Trajectory(
        rewards=torch.ones(2, 1, 1), curr_obs={"states": torch.ones(2, 1, 3)}
    )
    save(str(tmp_path / "a"), None, [one])
    with pytest.raises(InvalidInputError, match="has no images; there are none"):
        export_clip(tmp_path / "a", tmp_path / "x.gif")


@pytest.mark.parametrize(("suffix", "most"), [("mp4", 16384), ("gif", 65535)])
def test_pictures_that_an_encoder_cannot_take_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, most: int
) -> None:
    save(str(tmp_path / "a"), None, [colours(2)])
    wide = np.zeros((2, most + 2, 3), np.uint8)
    monkeypatch.setattr("zarrbuf.viewer.export.beside", lambda pictures: wide)
    with pytest.raises(InvalidInputError, match=f"at most {most} a side"):
        export_clip(tmp_path / "a", tmp_path / f"x.{suffix}")
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("fps", [0.5, 7.0, 50.0])
def test_a_gif_takes_as_long_as_its_steps(tmp_path: Path, fps: float) -> None:
    save(str(tmp_path / "a"), None, [colours(5)])
    export_clip(tmp_path / "a", tmp_path / "x.gif", fps=fps)
    with Image.open(tmp_path / "x.gif") as image:
        assert image.info["duration"] == pytest.approx(1000 / fps, abs=5)


def test_a_still_robot_is_one_picture_of_a_gif_for_all_its_steps(
    tmp_path: Path,
) -> None:
    image = torch.zeros(6, 1, 8, 8, 3, dtype=torch.uint8)
    made = Trajectory(curr_obs={"eye": image}, next_obs={"eye": image})
    save(str(tmp_path / "a"), None, [made])
    done = export_clip(tmp_path / "a", tmp_path / "x.gif")
    assert done.num_frames == 6
    with Image.open(tmp_path / "x.gif") as shown:
        assert shown.info["duration"] == 600


def test_what_the_encoder_says_reaches_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(str(tmp_path / "a"), None, [colours(2)])

    def fail(*arguments: Any, **options: Any) -> Any:
        raise av.FFmpegError(-5, "it is broken")

    monkeypatch.setattr("av.open", fail)
    with pytest.raises(StorageError, match="it is broken"):
        export_clip(tmp_path / "a", tmp_path / "x.mp4")


def test_a_clip_has_one_scale_and_is_the_same_again(tmp_path: Path) -> None:
    depths = torch.arange(1.0, 7.0).reshape(6, 1, 1, 1).repeat(1, 1, 16, 16)
    depths[..., :8] = 2.0
    made = Trajectory(curr_obs={"depth": depths}, next_obs={"depth": depths})
    save(str(tmp_path / "a"), None, [made])
    found = []
    for number in range(2):
        export_clip(tmp_path / "a", tmp_path / f"{number}.gif")
        found.append((tmp_path / f"{number}.gif").read_bytes())
    assert found[0] == found[1]
    with Image.open(tmp_path / "0.gif") as clip:
        greys = []
        for frame in range(6):
            clip.seek(frame)
            greys.append(np.asarray(clip.convert("RGB"))[3, [3, 12], 0].tolist())
    assert greys == [[51, 51 * number] for number in range(6)]
