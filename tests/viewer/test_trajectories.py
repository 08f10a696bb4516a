"""Single frames of stored trajectories: equal to what was stored, and no more read."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.paths import DATA
from support.remote import Asked, memory_url, save
from support.viewed import archive_of, recorded, save_recorded

import zarrbuf
from zarrbuf import Trajectory
from zarrbuf.errors import (
    EmptyBufferError,
    FormatError,
    NotFoundError,
    StorageError,
    TrajectoryNotFoundError,
)
from zarrbuf.viewer.cursor import Place
from zarrbuf.viewer.scene import SceneReader, Wish
from zarrbuf.viewer.session import Viewing
from zarrbuf.viewer.trajectories import Playback, open_playback
from zarrbuf.viewer.trajectory_reader import Recording

FOLDER = DATA / "rlinf_pt" / "rank_0"


def test_single_samples_and_series_are_what_was_stored(tmp_path: Path) -> None:
    made = save_recorded(tmp_path / "a", (5, 3), (2, 1))
    playback = open_playback(tmp_path / "a")
    assert len(playback) == 2
    for position, one in enumerate(made):
        recording = playback.recording(position)
        assert recording.cameras == ["extra_view_images", "main_images"]
        assert recording.vectors == ["states"]
        for step in range(recording.num_steps):
            for env in range(recording.num_envs):
                for stage, group in enumerate((one.curr_obs, one.next_obs)):
                    for name, values in group.items():
                        found = recording.observation(
                            name, stage=stage, step=step, env=env
                        )
                        assert np.array_equal(found, values[step, env].numpy())
        for env in range(recording.num_envs):
            rewards, dones = one.rewards, one.dones
            assert rewards is not None
            assert dones is not None
            found = recording.series("rewards", env=env)
            assert np.array_equal(found, rewards[:, env].numpy())
            assert np.array_equal(
                recording.series("dones", env=env), dones[1:, env].numpy()
            )


def test_extra_rows_and_dtypes_that_numpy_lacks(tmp_path: Path) -> None:
    """Values have their extra row at the end of each epoch; noise is bfloat16."""
    playback = open_playback(FOLDER)
    with zarrbuf.TrajectoryReplayBuffer() as buffer:
        buffer.load_checkpoint(str(FOLDER))
        whole = buffer.load_trajectory(0)
    recording = playback.recording(0)
    noise = whole.forward_inputs["noise"]
    assert noise.dtype == torch.bfloat16
    found = recording.series("forward_inputs/noise", env=1)
    assert found.dtype == np.float32
    assert np.array_equal(found, noise[:, 1].float().numpy())
    assert whole.dones is not None
    extra = len(whole.dones) - recording.num_steps
    assert extra > 0
    epochs = whole.dones.reshape(extra, -1, *whole.dones.shape[1:])[:, 1:]
    expected = epochs.reshape(recording.num_steps, *whole.dones.shape[1:])[:, 1]
    assert np.array_equal(recording.series("dones", env=1), expected.numpy())


def test_small_and_split_fields_are_found_in_their_chunks(tmp_path: Path) -> None:
    """Images below 4 KiB share chunks, which are split along time above 1 MiB."""
    num_steps = 700
    images = torch.randint(0, 256, (num_steps, 2, 30, 30, 1), dtype=torch.uint8)
    one = Trajectory(
        rewards=torch.zeros(num_steps, 2, 1),
        curr_obs={"side_images": images},
        next_obs={"side_images": images.flip(0)},
    )
    save(str(tmp_path / "a"), None, [one])
    playback = open_playback(tmp_path / "a")
    recording = playback.recording(0)
    for step in (0, 1, 349, 350, 699):
        found = recording.observation("side_images", stage=1, step=step, env=1)
        assert np.array_equal(found, images.flip(0)[step, 1].numpy())
    assert playback.stats.chunks_read < 5


def test_a_move_reads_the_frames_that_it_shows_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On an object store, what is read ahead included; each frame is stored once."""
    url = memory_url()
    made = recorded(300, 1)
    del made.curr_obs["extra_view_images"], made.next_obs["extra_view_images"]
    save(url, None, [made])
    playback = open_playback(url)
    scenes = SceneReader(playback)
    scenes.read(Wish(Place(0, 100)))
    asked = Asked(monkeypatch)
    for step in range(101, 201):
        scene = scenes.read(Wish(Place(0, step)))
        scenes.read_ahead([Wish(Place(0, step + 1)), Wish(Place(0, step + 2))])
        for stage, panel in enumerate(scene.panels[0]):
            group = (made.curr_obs, made.next_obs)[stage]
            assert panel.picture is not None
            assert np.array_equal(panel.picture, group["main_images"][step, 0].numpy())
    scenes.close()
    # Noise cannot be made smaller: 100 new frames of 4,800 bytes.
    assert 100 * 4800 <= asked.num_bytes <= 1.2 * 100 * 4800
    assert playback.stats.chunks_read < 120
    assert playback.stats.bytes_read <= 1.2 * 110 * 4800 + 20_000


def test_what_was_read_ahead_is_not_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = memory_url()
    save(url, None, [recorded(8, 2), recorded(8, 2, seed=1)])
    scenes = SceneReader(open_playback(url))
    scenes.read(Wish(Place(1, 0)))
    scenes.read_ahead([Wish(Place(1, 1))])
    done = threading.Event()
    scenes._thread.submit(done.set)
    assert done.wait(30)
    asked = Asked(monkeypatch)
    scene = scenes.read(Wish(Place(1, 1)))
    assert scene.panels[0][0].picture is not None
    assert asked.rounds == []
    scenes.close()


def test_the_first_frame_takes_three_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = memory_url()
    save(url, None, [recorded(300, 1)])
    scenes = SceneReader(open_playback(url))
    asked = Asked(monkeypatch)
    scenes.read(Wish(Place(0, 0)))
    # Directory and metadata; the frames; the curves and their indexes.
    assert len(asked.rounds) == 3
    scenes.close()


class Opened:
    """Counts how often a playback opens a trajectory."""

    def __init__(self, playback: Playback, monkeypatch: pytest.MonkeyPatch) -> None:
        self.positions: list[int] = []
        real = playback._open

        def note(position: int) -> Recording:
            self.positions.append(position)
            time.sleep(0.05)  # so that another thread may ask meanwhile
            return real(position)

        monkeypatch.setattr(playback, "_open", note)


def test_a_trajectory_is_opened_once_whoever_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_recorded(tmp_path / "a", (2, 1), (2, 1))
    playback = open_playback(tmp_path / "a")
    opened = Opened(playback, monkeypatch)
    viewing = Viewing(playback, place=Place(0, 1))
    viewing.scene()  # reads the next trajectory ahead
    viewing.do("next")
    scene = viewing.scene()
    assert (scene.place, scene.is_broken) == (Place(1), False)
    assert opened.positions == [0, 1]
    viewing.close()


def test_one_that_cannot_be_opened_is_tried_once_a_scene(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_recorded(tmp_path / "a", (9, 1), (5, 1))
    archive_of(tmp_path / "a", 0).unlink()
    playback = open_playback(tmp_path / "a")
    opened = Opened(playback, monkeypatch)
    viewing = Viewing(playback, place=Place(0, 1))
    for _ in range(3):
        assert viewing.scene().is_broken
        viewing.do("next")
    viewing.close()
    assert opened.positions == [0, 0, 0]


def test_curves_come_back_after_an_error_that_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_recorded(tmp_path / "a", (5, 1))
    playback = open_playback(tmp_path / "a")
    scenes = SceneReader(playback)
    recording = playback.recording(0)
    real = recording.series

    def fail(name: str, *, env: int) -> Any:
        if name == "dones":
            raise StorageError("timed out")
        return real(name, env=env)

    monkeypatch.setattr(recording, "series", fail)
    scene = scenes.read(Wish(Place(0)))
    assert scene.heading[-1] == "cannot be read: timed out"
    monkeypatch.undo()
    scene = scenes.read(Wish(Place(0, 3)))
    assert scene.curves.problems == ()
    assert "Done: True" in scene.heading[1]
    assert scenes.read(Wish(Place(0, 4))).curves is scene.curves
    scenes.close()


def test_fields_without_numbers_are_as_if_they_were_not_there(tmp_path: Path) -> None:
    none = torch.zeros(3, 1, 0)
    made = Trajectory(
        actions=none,
        rewards=none,
        curr_obs={"states": torch.ones(3, 1, 2), "nothing": none},
        next_obs={"states": torch.ones(3, 1, 2), "nothing": none},
    )
    save(str(tmp_path / "a"), None, [made])
    playback = open_playback(tmp_path / "a")
    assert playback.recording(0).vectors == ["states"]
    scenes = SceneReader(playback)
    scene = scenes.read(Wish(Place(0, 1)))
    assert scene.panels[0][0].title == "current observation: states"
    assert [curve.name for curve in scene.curves.curves] == ["states"]
    scenes.close()


def test_a_next_observation_of_another_kind_is_none(tmp_path: Path) -> None:
    made = Trajectory(
        rewards=torch.zeros(3, 1, 1),
        curr_obs={"eye": torch.zeros(3, 1, 8, 8, 3), "arm": torch.zeros(3, 1, 2)},
        next_obs={"eye": torch.zeros(3, 1, 7), "arm": torch.zeros(3, 1, 8, 8, 3)},
    )
    save(str(tmp_path / "a"), None, [made])
    scenes = SceneReader(open_playback(tmp_path / "a"))
    panels = scenes.read(Wish(Place(0, 1), layout="cameras")).panels
    assert [[panel.title for panel in pair] for pair in panels] == [
        ["current observation: eye", "next observation: eye (none)"]
    ]
    scenes.close()


def test_observations_named_as_rewards_are_not_the_rewards(tmp_path: Path) -> None:
    """Meta-learners see the reward of the step before."""
    seen = torch.full((4, 1, 1), 99.0)
    made = Trajectory(
        rewards=torch.arange(4.0).reshape(4, 1, 1),
        dones=torch.zeros(5, 1, 1, dtype=torch.bool),
        curr_obs={"rewards": seen, "dones": seen},
        next_obs={"rewards": seen, "dones": seen},
    )
    save(str(tmp_path / "a"), None, [made])
    scenes = SceneReader(open_playback(tmp_path / "a"))
    scene = scenes.read(Wish(Place(0, 2)))
    assert scene.heading[1] == (
        "Reward: 2.0000 | Done: False | Episode 1/1: steps 0 to 3, return 6, not over"
    )
    names = [curve.name for curve in scene.curves.curves]
    assert names == ["reward", "return", "dones", "rewards"]
    scenes.close()


def test_a_grid_beyond_the_cache_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recorded(12, 9)
    save(str(tmp_path / "a"), None, [made])
    one_step = 9 * 40 * 40 * 3
    monkeypatch.setattr("zarrbuf.viewer.trajectories.CHUNK_CACHE_BYTES", one_step)
    monkeypatch.setattr("zarrbuf.viewer.scene._MAX_AHEAD_BYTES", one_step // 4)
    playback = open_playback(tmp_path / "a")
    viewing = Viewing(playback, place=Place(0, 3))
    viewing.layout = "envs"
    before = viewing.scene()
    assert before.panels[0][0].picture is not None
    first = playback.stats.chunks_read
    viewing.do("next")
    viewing.scene()
    viewing.close()
    # Two stages of nine environments, each decoded once, and none ahead.
    assert playback.stats.chunks_read - first <= 2 * 9 + 4


def test_what_was_fetched_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zarrbuf.viewer.trajectory_reader.MAX_FETCHED_BYTES", 20_000)
    url = memory_url()
    made = recorded(40, 1)
    save(url, None, [made])
    recording = open_playback(url).recording(0)
    for step in range(40):
        found = recording.observation("main_images", stage=0, step=step, env=0)
        assert np.array_equal(found, made.curr_obs["main_images"][step, 0].numpy())
        assert recording._archive.fetched_bytes < 60_000


def test_nearest_ids_are_named(tmp_path: Path) -> None:
    save_recorded(tmp_path / "a", *[(1, 1)] * 12)
    zarrbuf.remove(tmp_path / "a", "6")
    playback = open_playback(tmp_path / "a")
    assert playback.find(7) == 6
    with pytest.raises(TrajectoryNotFoundError, match=r"nearest are 4, 5, 7, 8$"):
        playback.find(6)
    with pytest.raises(TrajectoryNotFoundError, match=r"nearest are 8, 9, 10, 11$"):
        playback.find(2**70)


def test_nothing_to_look_at_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        open_playback(tmp_path / "none")
    save_recorded(tmp_path / "a", (1, 1))
    zarrbuf.remove(tmp_path / "a", "0")
    with pytest.raises(EmptyBufferError, match="lists no trajectory"):
        open_playback(tmp_path / "a")
    assert len(open_playback(tmp_path / "a", version=2)) == 1


def test_a_damaged_chunk_is_an_error_of_its_sample_alone(tmp_path: Path) -> None:
    (made,) = save_recorded(tmp_path / "a", (4, 1))
    path = archive_of(tmp_path / "a", 0)
    recording = open_playback(tmp_path / "a").recording(0)
    field = recording.fields["curr_obs/main_images"].field
    start = int(recording._archive.shard(field).ranges[2, 0])
    data = bytearray(path.read_bytes())
    data[start + 10] ^= 1
    path.write_bytes(data)
    recording = open_playback(tmp_path / "a").recording(0)
    with pytest.raises(FormatError, match="main_images"):
        recording.observation("main_images", stage=0, step=2, env=0)
    found = recording.observation("main_images", stage=0, step=1, env=0)
    assert np.array_equal(found, made.curr_obs["main_images"][1, 0].numpy())
