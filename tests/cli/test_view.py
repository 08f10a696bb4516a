"""`zarrbuf view` and RLinf's two scripts, as a user types them."""

from __future__ import annotations

import asyncio
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
from support.remote import save
from support.viewed import archive_of, colours, save_recorded

import zarrbuf
from zarrbuf import Trajectory
from zarrbuf.cli import main as cli
from zarrbuf.cli.rlinf_scripts import visualize, visualize_headless
from zarrbuf.errors import InvalidInputError

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
    assert done.stdout.splitlines() == [
        f"Loaded replay buffer from {buffer}",
        "Total trajectories: 2",
        "Total samples: 15",
        "Camera view: main_images",
        "Trajectory IDs: [0, 1]",
        f"saved to {tmp_path / 'x.png'}",
    ]
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (2100, 1200)


def test_ten_ids_are_told(tmp_path: Path) -> None:
    save_recorded(tmp_path / "a", *[(1, 1)] * 12)
    image = ("--save-image", "--no-display", "--output", tmp_path / "x.png")
    lines = run(tmp_path / "a", *image, "--camera", "wrist_images").stdout.splitlines()
    assert "Total trajectories: 12" in lines
    assert "Camera view: wrist_images" in lines
    assert "Trajectory IDs: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]..." in lines


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
        visualize([*given, "--save_image", "--no_display"])
    assert left.value.code == 0
    assert "has no wrist_images: showing main_images" in capsys.readouterr().out
    assert (tmp_path / "replay_buffer_viz.png").exists()
    with pytest.raises(SystemExit) as left:
        visualize([*given, "--no_display"])
    assert left.value.code == 2
    assert "--no_display requires --save_image" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(SystemExit) as left:
        visualize_headless([*given, "--output", "y.png"])
    assert left.value.code == 0
    assert (tmp_path / "y.png").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{none}"], 1, "holds no replay buffer"),
        (["{buffer}"], 2, "no display for a window here; use --web"),
        (["{buffer}", "--camera", "side"], 2, "extra_view_images, main_images"),
        (["{buffer}", "--trajectory", "9"], 1, "the nearest are 0, 1"),
        (["{buffer}", "--step", "6"], 2, "whole number from 0 to 5"),
        (["{buffer}", "--env", "2"], 2, "whole number from 0 to 1"),
        (["{buffer}", "--web", "--headless"], 2, "exclude each other"),
        (["{buffer}", "--no-display"], 2, "needs --save-image"),
        (["{buffer}", "--port", "1"], 2, "--port is for --web"),
        (["{buffer}", "--json"], 2, "--json is for --export"),
        (["{buffer}", "--fps", "5"], 2, "--fps is for --export"),
        (["{buffer}", "--export", "x.gif", "--step", "1"], 2, "--step is for looking"),
        (["{buffer}", "--headless", "--output", "x.v1"], 2, "ends in .v1; allowed are"),
        (["{buffer}", "--headless", "--output", "s3://b/x.png"], 2, "is a URL"),
        (["{buffer}", "--headless", "--output", "/dev/null"], 2, "is no file"),
        (["{buffer}", "--headless", "--output", "{none}/x.png"], 1, "cannot be writ"),
        (["{buffer}", "--web", "--port", "70000"], 2, "whole number from 0 to 65535"),
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


@pytest.mark.parametrize(
    ("package", "extra", "arguments"),
    [
        ("av", "video", ["--export", "x.mp4"]),
        ("PIL", "view", ["--export", "x.gif"]),
        ("matplotlib", "view", ["--headless"]),
        ("tornado", "view", ["--web"]),
    ],
)
def test_a_package_that_is_missing_is_named(
    buffer: Path, tmp_path: Path, package: str, extra: str, arguments: list[str]
) -> None:
    program = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from zarrbuf.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "view", str(buffer), *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(zarrbuf.__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    expected = f"zarrbuf: {package} is not installed; pip install 'zarrbuf[{extra}]'"
    assert done.stderr.strip() == expected
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


def test_one_image_of_a_damaged_trajectory_is_written_and_an_error(
    buffer: Path, tmp_path: Path
) -> None:
    archive_of(buffer, 0).write_bytes(b"no archive")
    output = tmp_path / "x.png"
    done = run(buffer, "--save-image", "--no-display", "--output", output, check=1)
    assert done.stdout.endswith(f"\nsaved to {output}\n")
    assert "not all of it could be read: " in done.stderr
    with Image.open(output) as image:
        assert image.size == (2100, 1200)


def test_all_that_comes_from_names_is_escaped(tmp_path: Path) -> None:
    name = "eye\x1b[2J"
    image = torch.zeros(2, 1, 8, 8, 3, dtype=torch.uint8)
    save(str(tmp_path / "a"), None, [Trajectory(curr_obs={name: image})])
    output = tmp_path / "x.png"
    done = run(
        tmp_path / "a", "--headless", "--output", output, text="info\ncamera x\nq\n"
    )
    assert "eye\\x1b[2J" in done.stdout
    assert "\x1b" not in done.output


def test_the_layout_may_be_chosen(buffer: Path, tmp_path: Path) -> None:
    sizes = set()
    for layout in ("camera", "cameras", "envs"):
        output = tmp_path / f"{layout}.png"
        run(
            buffer,
            *("--save-image", "--no-display", "--output", output, "--layout", layout),
        )
        sizes.add(output.read_bytes())
    assert len(sizes) == 3


@contextmanager
def served(path: Path, *more: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Serve a buffer in a process of its own; its URL."""
    command = [sys.executable, "-m", "zarrbuf.cli", "view", str(path), "--web"]
    with subprocess.Popen(
        [*command, "--port", "0", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.search(r"http://127\.0\.0\.1:\d+/[\w-]{12}/", line)
            assert match, line
            assert "ssh -N -L" in process.stdout.readline()
            yield match[0], process
        finally:
            process.kill()


BAD_MESSAGES = """
for (const text of ["{", "[]", "3", "{}", '{"type": "none"}', '{"type": 1}',
    '{"type": "resize"}', '{"type": "resize", "width": 1e9, "height": 1e9}',
    '{"type": "set_device_pixel_ratio", "device_pixel_ratio": 0}',
    '{"type": "key_press"}', '{"type": "button_press", "x": "a"}',
    '{"type": "toolbar_button", "name": "none"}']) {
  const one = new WebSocket(address);
  one.addEventListener("open", () => one.send(text));
}
"""


class Browser:
    """A page of the viewer, as large as the canvas makes it."""

    def __init__(self, page: Page, url: str, picture: Path) -> None:
        self.page = page
        self.picture = picture
        page.goto(url)
        page.locator("canvas").last.wait_for(timeout=60_000)

    @property
    def box(self) -> dict[str, float]:
        """Where the figure is on the page."""
        found = self.page.locator("canvas").last.bounding_box()
        assert found is not None
        return {**found}

    def place(self, across: float, up: float) -> tuple[float, float]:
        """Return where on the page a point of the figure is, in shares of it."""
        box = self.box
        x = box["x"] + across * box["width"]
        return x, box["y"] + (1 - up) * box["height"]

    def colour(self) -> Any:
        """Return what is shown in the middle of the current observation."""
        self.page.screenshot(path=self.picture, scale="css")
        x, y = self.place(0.28, 0.68)
        with Image.open(self.picture) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        return pixels[int(y), int(x)]

    def click(self, across: float, up: float) -> None:
        """Click on a point of the figure."""
        self.page.mouse.click(*self.place(across, up))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to show a page in")
def test_a_browser_shows_the_frames_and_answers_to_keys(tmp_path: Path) -> None:
    """The screenshot that is kept is `viewer.png` below `$ZARRBUF_ARTIFACTS`."""
    made = [colours(12), colours(3)]
    made[0].rewards = torch.arange(12.0).reshape(12, 1, 1)
    save(str(tmp_path / "a"), None, made)
    images = made[0].curr_obs["main_images"]
    frames = images[:, 0, 0, 0].numpy().astype(int)
    picture = Path(os.environ.get("ZARRBUF_ARTIFACTS", tmp_path)) / "viewer.png"
    with served(tmp_path / "a") as (url, process), sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=120_000
        )

        def open_page() -> Browser:
            page = chromium.new_page(viewport={"width": 1500, "height": 950})
            return Browser(page, url, picture)

        browser = open_page()
        keyboard = browser.page.keyboard

        def wait_for(step: int, shown: Browser = browser) -> None:
            deadline = time.monotonic() + 60
            while abs(shown.colour() - frames[step]).max() > 3:
                assert time.monotonic() < deadline, f"step {step} is not shown"
                time.sleep(0.1)

        wait_for(0)
        browser.click(0.02, 0.7)  # the keys go to the picture
        for step in (1, 2, 3):
            keyboard.press("ArrowRight")
            wait_for(step)
        keyboard.press("p")
        wait_for(2)
        keyboard.press("End")
        wait_for(11)
        # Reward from 0 to 11, between 0.045 and 0.99 of the figure.
        browser.click(0.045 + 0.945 * 8.5 / 12, 0.3)
        wait_for(8)
        browser.click(0.5, 0.05)
        keyboard.type("0")
        keyboard.press("Escape")
        keyboard.press("n")
        wait_for(9)
        browser.click(0.5, 0.05)
        keyboard.type("1")
        browser.click(0.02, 0.7)  # is not to enter it
        wait_for(9)
        browser.click(0.5, 0.05)
        keyboard.press("Backspace")
        keyboard.type("0")
        keyboard.press("Enter")
        wait_for(0)
        keyboard.press("n")
        wait_for(1)
        second = open_page()
        wait_for(1, second)
        browser.page.set_viewport_size({"width": 1000, "height": 800})
        deadline = time.monotonic() + 60
        while browser.box["width"] > 1000 or browser.box["height"] > 800:
            assert time.monotonic() < deadline, "the figure does not fit the page"
            time.sleep(0.1)
        wait_for(1)
        second.page.close()
        keyboard.press("n")
        wait_for(2)
        for elsewhere in (url.rsplit("/", 2)[0] + "/", f"{url}2", url[:-1]):
            answer = browser.page.request.get(elsewhere)
            assert answer.status == 404
        for button in ("Zoom", "Zoom", "Reset original view"):
            browser.page.locator(f"img[alt^='{button}']").click()
        browser.click(0.02, 0.7)
        keyboard.press("n")
        wait_for(3)
        keyboard.press("p")
        wait_for(2)
        other = chromium.new_page(
            viewport={"width": 1000, "height": 800}, device_scale_factor=2
        )
        wait_for(2, Browser(other, url, tmp_path / "doubled.png"))
        other.evaluate(BAD_MESSAGES)
        other.close()
        browser.page.bring_to_front()
        browser.page.evaluate("window.dispatchEvent(new Event('focus'))")
        wait_for(2)
        assert browser.page.evaluate(
            "document.documentElement.scrollHeight <= window.innerHeight"
        )
        answer = browser.page.request.get(f"{url}image.png")
        with Image.open(io.BytesIO(answer.body())) as image:
            assert image.format == "PNG"
        browser.page.reload()
        wait_for(2)
        browser.click(0.02, 0.7)
        keyboard.press("q")
        browser.page.get_by_text("The viewer has ended").wait_for(timeout=30_000)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
        chromium.close()


def test_a_page_cannot_be_served_from_an_event_loop(buffer: Path) -> None:
    async def serve() -> None:
        zarrbuf.view(buffer, "web", port=0)

    with pytest.raises(InvalidInputError, match="an event loop runs"):
        asyncio.run(serve())


def test_a_stopped_server_ends_quietly(buffer: Path) -> None:
    with served(buffer) as (url, process):
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        port = int(url.split(":")[2].split("/")[0])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
