"""Buffers behind a web server: read, never written."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.batches import assert_same_batch, draw, generator
from support.remote import loaded, save, with_cameras

from zarrbuf import TrajectoryReplayBuffer, list_buffer, verify
from zarrbuf.errors import NotFoundError, StorageError
from zarrbuf.storage.contract import Outcome
from zarrbuf.storage.resolve import open_storage


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; ranges too, unless it was told to ignore them."""

    asked: list[tuple[str, str | None]]
    ignores_ranges = False

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.asked.append((self.path, asked))
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", asked or "")
        path = Path(self.translate_path(self.path))
        if match is None or self.ignores_ranges or not path.is_file():
            super().do_GET()
            return
        data = path.read_bytes()
        part = data[int(match[1]) : int(match[2]) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {match[1]}-{match[2]}/{len(data)}")
        self.end_headers()
        self.wfile.write(part)

    def log_request(self, *_: Any) -> None:
        pass

    log_error = log_request


@pytest.fixture(params=["ranges", "no ranges"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Any]]:
    handler: Any = type(
        "OneHandler",
        (Handler,),
        {"asked": [], "ignores_ranges": request.param == "no ranges"},
    )
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0),
        lambda *arguments: handler(*arguments, directory=str(tmp_path)),
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_buffer_is_read_from_a_web_server(
    site: tuple[str, Any], tmp_path: Path
) -> None:
    url, handler = site
    trajectories = with_cameras(3, num_steps=30)
    save(str(tmp_path / "run"), None, trajectories)
    buffer = loaded(f"{url}/run")
    buffer.manual_seed(4)
    handler.asked.clear()
    assert_same_batch(buffer.sample(9), draw(trajectories, 9, generator(4)))
    assert all(asked is not None for _, asked in handler.asked)
    assert len(list_buffer(f"{url}/run").rows) == 3
    assert verify(f"{url}/run").is_sound


def test_nothing_is_written_to_a_web_server(site: tuple[str, Any]) -> None:
    url, _ = site
    storage = open_storage(f"{url}/run", {"deadline_s": 2})
    for write in (
        lambda: storage.create("a", b"x"),
        lambda: storage.ensure("a", b"x"),
        lambda: TrajectoryReplayBuffer(auto_save=True, auto_save_path=f"{url}/run"),
    ):
        with pytest.raises(StorageError, match=r"http://127\.0\.0\.1.*only read"):
            assert write() is not Outcome.CREATED


def test_what_is_not_there_is_named(site: tuple[str, Any]) -> None:
    url, _ = site
    with pytest.raises(NotFoundError, match=f"{url}/none"):
        loaded(f"{url}/none")
