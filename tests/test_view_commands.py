"""`zarrbuf view` and RLinf's two scripts, as a user types them."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from remote import save
from viewed import colours, save_recorded

from toolkits.replay_buffer import visualize, visualize_headless
from zarrbuf import cli

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)


@pytest.fixture
def buffer(tmp_path: Path) -> Path:
    save_recorded(tmp_path / "a", (6, 2), (3, 1))
    return tmp_path / "a"


def run(*arguments: Any, check: int = 0, text: str = "") -> Any:
    done = CliRunner().invoke(cli.main, ["view", *map(str, arguments)], input=text)
    assert done.exit_code == check, done.output
    return done


def test_one_image_is_written_without_a_display(buffer: Path, tmp_path: Path) -> None:
    done = run(buffer, "--save-image", "--no-display", "--output", tmp_path / "x.png")
    assert done.stdout == f"saved to {tmp_path / 'x.png'}\n"
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (2100, 1200)


def test_the_prompt_replaces_the_image(buffer: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.png"
    done = run(
        buffer, "--headless", "--output", output, "--step", 2, text="n\ninfo\nq\n"
    )
    assert "Step: 3/5" in done.stdout
    moved = output.read_bytes()
    run(buffer, "--headless", "--output", output, "--step", 3, text="q\n")
    assert output.read_bytes() == moved


def test_the_scripts_of_rlinf_have_its_flags(
    buffer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--replay_dir", str(buffer), "--camera", "wrist_images"]
    with pytest.raises(SystemExit) as left:
        visualize.main([*given, "--save_image", "--no_display"])
    assert left.value.code == 0
    assert "has no wrist_images: showing main_images" in capsys.readouterr().out
    assert (tmp_path / "replay_buffer_viz.png").exists()
    with pytest.raises(SystemExit) as left:
        visualize.main([*given, "--no_display"])
    assert left.value.code == 2
    assert "--no_display requires --save_image" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(SystemExit) as left:
        visualize_headless.main([*given, "--output", "y.png"])
    assert left.value.code == 0
    assert (tmp_path / "y.png").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{none}"], 1, "holds no replay buffer"),
        (["{buffer}"], 2, "no display for a window here; use --web"),
        (["{buffer}", "--camera", "side"], 2, "extra_view_images, main_images"),
        (["{buffer}", "--trajectory", "9"], 1, "the nearest are 0, 1"),
        (["{buffer}", "--step", "6"], 2, "there are 0 to 5"),
        (["{buffer}", "--env", "2"], 2, "there are 0 to 1"),
        (["{buffer}", "--web", "--headless"], 2, "exclude each other"),
        (["{buffer}", "--no-display"], 2, "needs --save-image"),
        (["{buffer}", "--port", "1"], 2, "--port is for --web"),
        (["{buffer}", "--web", "--port", "70000"], 2, "allowed are 0 to 65535"),
        (["{buffer}", "--export", "x.avi"], 2, ".mp4, .gif, .png"),
    ],
)
def test_bad_calls_end_in_one_line(
    buffer: Path, arguments: list[str], code: int, words: str
) -> None:
    places = {"buffer": buffer, "none": buffer.parent / "none"}
    given = [one.format(**places) for one in arguments]
    done = run(*given, check=code)
    assert words in done.stderr
    assert "Traceback" not in done.output


def test_a_port_that_is_taken_is_said(buffer: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(buffer, "--web", "--port", port, check=2)
        assert f"port {port} of 127.0.0.1 is taken; name another" in done.stderr


def test_clips_are_exported(buffer: Path, tmp_path: Path) -> None:
    done = run(buffer, "--export", tmp_path / "x.gif", "--trajectory", 1)
    assert "3 frames of trajectory_1_w.zarr" in done.stdout
    done = run(buffer, "--export", tmp_path / "x.png", "--json")
    assert '"num_frames": 6' in done.stdout


def test_a_package_that_is_missing_is_named(
    buffer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.delitem(sys.modules, "zarrbuf.video", raising=False)
    done = run(buffer, "--export", tmp_path / "x.mp4", check=1)
    assert "av is not installed; pip install 'zarrbuf[video]'" in done.stderr
    assert not (tmp_path / "x.mp4").exists()


@contextmanager
def served(path: Path, *more: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Serve a buffer in a process of its own; its URL."""
    command = [sys.executable, "-m", "zarrbuf.cli", "view", str(path), "--web"]
    with subprocess.Popen(
        [*command, "--port", "0", *more], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.search(r"http://127\.0\.0\.1:\d+/[\w-]{12}/\d+", line)
            assert match, line
            assert "ssh -N -L" in process.stdout.readline()
            yield match[0], process
        finally:
            process.kill()


def shown_colour(page: Page, path: Path) -> Any:
    """Return what the page shows in the middle of the current observation."""
    page.screenshot(path=path)
    box = page.locator("canvas").last.bounding_box()
    assert box is not None
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return pixels[int(box["y"] + 0.36 * box["height"]), int(box["x"] + 385)]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to show a page in")
def test_a_browser_shows_the_frames_and_answers_to_keys(tmp_path: Path) -> None:
    """The screenshot that is kept is `viewer.png` below `$ZARRBUF_ARTIFACTS`."""
    made = colours(12)
    made.rewards = torch.arange(12.0).reshape(12, 1, 1)
    save(str(tmp_path / "a"), None, [made])
    frames = made.curr_obs["main_images"][:, 0, 0, 0].numpy().astype(int)
    picture = Path(os.environ.get("ZARRBUF_ARTIFACTS", tmp_path)) / "viewer.png"
    with served(tmp_path / "a") as (url, process), sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=120_000
        )
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        page.goto(url)
        box = page.locator("canvas").last.bounding_box(timeout=60_000)
        assert box is not None

        def wait_for(step: int) -> None:
            deadline = time.monotonic() + 60
            while abs(shown_colour(page, picture) - frames[step]).max() > 3:
                assert time.monotonic() < deadline, f"step {step} is not shown"
                time.sleep(0.1)

        wait_for(0)
        page.mouse.click(box["x"] + 20, box["y"] + 200)  # the keys go to the picture
        for step in (1, 2, 3):
            page.keyboard.press("ArrowRight")
            wait_for(step)
        page.keyboard.press("p")
        wait_for(2)
        page.keyboard.press("End")
        wait_for(11)
        answer = page.goto(url.rsplit("/", 2)[0] + "/1")
        assert answer is not None
        assert answer.status == 404
        page.goto(url)
        wait_for(11)
        page.mouse.click(box["x"] + 20, box["y"] + 200)
        page.keyboard.press("q")
        assert process.wait(30) == 0
        browser.close()


def test_a_stopped_server_ends_quietly(buffer: Path) -> None:
    with served(buffer) as (url, process):
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        port = int(url.split(":")[2].split("/")[0])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
