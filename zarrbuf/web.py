"""The viewer in a browser: matplotlib's WebAgg pages, served to this machine alone.

Owns the server: bound to loopback, below a path that only its owner is told, since
others may work on the same machine.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import matplotlib.pyplot as plt
from matplotlib.backends.backend_webagg import WebAggApplication
from tornado.httpserver import HTTPServer

from zarrbuf.errors import InvalidInputError, StorageError
from zarrbuf.viewing import Viewing
from zarrbuf.visualize import FIGURE_INCHES
from zarrbuf.window import Window

ADDRESS: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8988
"""That of matplotlib's WebAgg."""


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
        InvalidInputError: if the port is taken or not allowed.
    """
    with _listen(port) as listening, suppress(KeyboardInterrupt):
        asyncio.run(_serve(viewing, listening, output, save_each, say))


async def _serve(
    viewing: Viewing,
    listening: socket.socket,
    output: str | os.PathLike[str],
    save_each: bool,
    say: Callable[[str], None],
) -> None:
    left = asyncio.Event()
    plt.switch_backend("webagg")
    figure = plt.figure(figsize=FIGURE_INCHES)
    manager: Any = figure.canvas.manager
    manager.set_window_title(f"zarrbuf {viewing.playback.url}")
    try:
        window = Window(
            figure,
            viewing,
            output=output,
            save_each=save_each,
            say=say,
            leave=left.set,
        )
        prefix = f"/{secrets.token_urlsafe(9)}"
        server = HTTPServer(_application(prefix))
        server.add_socket(listening)
        port = listening.getsockname()[1]
        say(f"View it at http://{ADDRESS}:{port}{prefix}/{figure.number}")
        say(
            "From another machine, first:  "
            f"ssh -N -L {port}:{ADDRESS}:{port} {socket.gethostname()}"
        )
        say("Click the picture once for the keys; q there or Ctrl-C here ends it.")
        await left.wait()
        server.stop()
        await server.close_all_connections()
        del window
    finally:
        plt.close(figure)


def _application(prefix: str) -> Any:
    application: Any = WebAggApplication
    made = application(url_prefix=prefix)
    made.settings["log_function"] = lambda handler: None  # not a line a request
    return made


def _listen(port: int) -> socket.socket:
    if not 0 <= port < 65536:
        raise InvalidInputError(f"port is {port}; allowed are 0 to 65535")
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
