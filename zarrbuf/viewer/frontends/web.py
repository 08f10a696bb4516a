"""The viewer in a browser: a page of our own around matplotlib's WebAgg.

Owns the server: bound to loopback, below a path that only its owner is told, since
others may work on the same machine.
"""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import matplotlib
import tornado.httpserver
import tornado.template
import tornado.web
import tornado.websocket
from matplotlib.backends.backend_webagg_core import (
    FigureCanvasWebAggCore,
    FigureManagerWebAgg,
    NavigationToolbar2WebAgg,
)
from matplotlib.figure import Figure

from zarrbuf.common.arguments import check_whole_number
from zarrbuf.common.printing import printable
from zarrbuf.errors import InvalidInputError, StorageError
from zarrbuf.viewer.figures import FIGURE_INCHES, SAVED_DPI
from zarrbuf.viewer.frontends.window import Window
from zarrbuf.viewer.session import Viewing

ADDRESS: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8988
"""That of matplotlib's WebAgg."""
_CANVAS: Final[Any] = FigureCanvasWebAggCore
_LIMITS: Final = {
    "width": (1, 8192),
    "height": (1, 8192),
    "device_pixel_ratio": (0.5, 4),
}
"""Of what a page says of itself."""
_PAGE: Final = tornado.template.Template(
    """\
<!DOCTYPE html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <title>{{ title }}</title>
  <link rel="icon" href="data:,">
  <link rel="stylesheet" href="static/css/boilerplate.css">
  <link rel="stylesheet" href="static/css/fbm.css">
  <link rel="stylesheet" href="static/css/mpl.css">
  <script src="mpl.js"></script>
</head>
<body style="margin: 4px">
  <div id="figure"></div>
  <p id="ended" style="position: fixed; top: 40%; width: 100%; text-align: center;
    font: bold 24px sans-serif" hidden>The viewer has ended.</p>
  <script>
    const root = document.getElementById("figure");
    const address = new URL("socket", location);
    address.protocol = location.protocol.replace("http", "ws");
    const webSocket = new WebSocket(address);
    const save = () => window.open("image.png", "_blank");
    const shown = new mpl.figure("1", webSocket, save, root);
    shown.header.textContent = document.title;
    shown.format_dropdown.style.display = "none";
    // The picture has the size of the page, not of its own frame.
    shown.canvas_div.style.resize = "none";
    shown.request_resize = () => shown.send_message("refresh", {});
    function fit() {
      const around = root.offsetHeight - shown.canvas_div.offsetHeight;
      shown.send_message("set_device_pixel_ratio", {device_pixel_ratio: shown.ratio});
      shown.send_message("resize", {
        width: Math.max(900, document.documentElement.clientWidth - 12),
        height: Math.max(640, window.innerHeight - around - 24)});
    }
    let waiting = 0;
    window.addEventListener("resize", () => {
      clearTimeout(waiting);
      waiting = setTimeout(fit, 200);
    });
    webSocket.addEventListener("open", fit);
    // All pages have the size, and the pixels, of the one that is used.
    window.addEventListener("focus", () => webSocket.readyState == 1 && fit());
    window.addEventListener("load", () => webSocket.readyState == 1 && fit());
    webSocket.addEventListener("close", () => {
      document.getElementById("ended").hidden = false;
      root.style.opacity = 0.4;
    });
  </script>
</body>
</html>
"""
)


class _Manager(FigureManagerWebAgg):
    _toolbar2_class: Any = NavigationToolbar2WebAgg


_MANAGER: Final[Any] = _Manager


def serve_viewer(
    viewing: Viewing,
    *,
    port: int,
    output: str | os.PathLike[str],
    save_each: bool,
    say: Callable[[str], None],
) -> None:
    """Serve a window to browsers on this machine, until q is pressed or it is stopped.

    Args:
        viewing: what is looked at; all browsers that are open show the same.
        port: of 127.0.0.1; 0 for any that is free.
        output: the image that `s` saves.
        save_each: write it at every move, too.
        say: says a line.

    Raises:
        InvalidInputError: if the port is taken or not allowed, or an event loop runs
            here, as in a notebook.
    """
    if _is_in_event_loop():
        raise InvalidInputError(
            "a page cannot be served from where an event loop runs, as in a notebook: "
            "run `zarrbuf view --web` in a terminal, or draw figures by plot_step"
        )
    with _listen(port) as listening, suppress(KeyboardInterrupt):
        asyncio.run(_serve(viewing, listening, output, save_each, say))


def _is_in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _serve(
    viewing: Viewing,
    listening: socket.socket,
    output: str | os.PathLike[str],
    save_each: bool,
    say: Callable[[str], None],
) -> None:
    left = asyncio.Event()
    title = f"zarrbuf {printable(viewing.playback.url)}"
    figure = Figure(figsize=FIGURE_INCHES)
    manager = _MANAGER(_CANVAS(figure), 1)
    manager.set_window_title(title)
    window = Window(
        figure, viewing, output=output, save_each=save_each, say=say, leave=left.set
    )
    prefix = f"/{secrets.token_urlsafe(9)}/"
    server = tornado.httpserver.HTTPServer(_application(prefix, manager, title))
    server.add_socket(listening)
    port = listening.getsockname()[1]
    say(f"View it at http://{ADDRESS}:{port}{prefix}")
    say(
        "From another machine, first:  "
        f"ssh -N -L {port}:{ADDRESS}:{port} {socket.gethostname()}"
    )
    say("q there or Ctrl-C here ends it; if keys do nothing, click the picture once.")
    await left.wait()
    server.stop()
    await server.close_all_connections()
    del window  # till now: figures refer weakly to who listens


def _application(prefix: str, manager: Any, title: str) -> Any:
    with_manager = {"manager": manager}
    static = {"path": _MANAGER.get_static_file_path()}
    images = {"path": os.path.join(matplotlib.get_data_path(), "images")}
    return tornado.web.Application(
        [
            (prefix, _Page, {"title": title}),
            (f"{prefix}mpl.js", _Script),
            (f"{prefix}image.png", _Image, with_manager),
            (f"{prefix}socket", _Socket, with_manager),
            (f"{prefix}static/(.*)", tornado.web.StaticFileHandler, static),
            (f"{prefix}_images/(.*)", tornado.web.StaticFileHandler, images),
        ],
        log_function=lambda handler: None,  # not a line a request
    )


class _Page(tornado.web.RequestHandler):
    def initialize(self, title: str) -> None:
        self._title = title

    def get(self) -> None:
        self.finish(_PAGE.generate(title=self._title))


class _Script(tornado.web.RequestHandler):
    def get(self) -> None:
        self.set_header("Content-Type", "application/javascript")
        self.finish(_MANAGER.get_javascript())


class _Image(tornado.web.RequestHandler):
    def initialize(self, manager: Any) -> None:
        self._figure = manager.canvas.figure

    def get(self) -> None:
        image = io.BytesIO()
        self._figure.savefig(image, format="png", dpi=SAVED_DPI)
        self.set_header("Content-Type", "image/png")
        self.finish(image.getvalue())


class _Socket(tornado.websocket.WebSocketHandler):
    """One browser: its events go to the figure, and pictures of it come back."""

    def initialize(self, manager: Any) -> None:
        self._manager = manager

    def open(self) -> None:
        self._manager.add_web_socket(self)
        self.set_nodelay(True)

    def on_close(self) -> None:
        self._manager.remove_web_socket(self)

    def on_message(self, message: str | bytes) -> None:
        try:
            event = json.loads(message)
            self._check(event)
            if event["type"] != "supports_binary":  # as all of today do
                self._manager.handle_json(event)
            if event["type"] == "resize":  # all take the size that one asks for
                size = self._manager.canvas.figure.bbox.size
                self._manager.resize(*size, forward=True)
        except (KeyError, TypeError, ValueError) as exc:
            self.close(1008, f"{type(exc).__name__}")

    def _check(self, event: Any) -> None:
        for name, (low, high) in _LIMITS.items():
            if name in event and not low <= event[name] <= high:
                raise ValueError(name)

    def send_json(self, content: Any) -> None:
        self._send(json.dumps(content))

    def send_binary(self, blob: bytes) -> None:
        self._send(blob, binary=True)

    def _send(self, content: str | bytes, *, binary: bool = False) -> None:
        """Send something, unless the browser has just been closed."""
        with suppress(tornado.websocket.WebSocketClosedError):
            sent = self.write_message(content, binary=binary)
            sent.add_done_callback(lambda done: done.exception())


def _listen(port: int) -> socket.socket:
    port = check_whole_number("port", port, maximum=65535)
    try:
        listening = socket.create_server((ADDRESS, port))
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            raise InvalidInputError(
                f"port {port} of {ADDRESS} is taken; name another, or 0 for any"
            ) from exc
        if exc.errno == errno.EACCES:
            raise InvalidInputError(
                f"port {port} needs rights that you do not have; name one above 1023"
            ) from exc
        raise StorageError(f"port {port} of {ADDRESS}: {exc}") from exc
    listening.setblocking(False)
    return listening
