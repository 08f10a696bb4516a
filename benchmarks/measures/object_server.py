"""A small S3 server over a local folder, with a latency: run as a process of its own.

`python -m benchmarks.measures.object_server PORT FOLDER LATENCY_S`. Answers GET (ranges
too), HEAD and the listing of a folder, each after the latency, many at once, as a real
store does. The server that the tests use takes 6 ms of processor for a request, so that
figures made with it would be its own. `GET /_count` tells requests and bytes since the
last time.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "bench"
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class Server(asyncio.Protocol):
    """One connection; `counts` is shared by all."""

    counts = {"requests": 0, "bytes": 0}  # noqa: RUF012
    folder = Path()
    latency_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep where answers go."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.pending = b""

    def data_received(self, data: bytes) -> None:
        """Answer every whole request in what has come."""
        self.pending += data
        while (stop := self.pending.find(b"\r\n\r\n")) >= 0:
            head = self.pending[:stop].decode("latin1")
            self.pending = self.pending[stop + 4 :]
            line, *fields = head.split("\r\n")
            headers = {k.lower(): v for k, v in (f.split(": ", 1) for f in fields)}
            method, target, _ = line.split(" ")
            answer = self.answer(method, target, headers)
            loop = asyncio.get_running_loop()
            loop.call_later(self.latency_s, self.transport.write, answer)

    def answer(self, method: str, target: str, headers: dict[str, str]) -> bytes:
        """Return the bytes of an answer."""
        url = urlsplit(target)
        if url.path == "/_count":
            found = json.dumps(self.counts).encode()
            self.counts.update(requests=0, bytes=0)
            return respond("200 OK", found)
        self.counts["requests"] += 1
        key = unquote(url.path).strip("/").removeprefix(BUCKET).strip("/")
        if not key:
            return respond("200 OK", self.listing(parse_qs(url.query)))
        path = self.folder / key
        if not path.is_file():
            return respond("404 Not Found", b"<Error><Code>NoSuchKey</Code></Error>")
        size = path.stat().st_size
        match = _RANGE.fullmatch(headers.get("range", ""))
        start = int(match[1]) if match else 0
        stop = min(size, int(match[2]) + 1 if match and match[2] else size)
        if method == "HEAD":
            return respond("200 OK", b"", f"Content-Length: {size}\r\n")
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(stop - start)
        self.counts["bytes"] += len(data)
        if match is None:
            return respond("200 OK", data)
        place = f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n"
        return respond("206 Partial Content", data, place)

    def listing(self, query: dict[str, list[str]]) -> bytes:
        """Return what lies in a folder, as S3 lists it."""
        prefix = query.get("prefix", [""])[0]
        folder = self.folder / prefix
        names = sorted(folder.iterdir()) if folder.is_dir() else []
        items = "".join(
            f"<CommonPrefixes><Prefix>{prefix}{p.name}/</Prefix></CommonPrefixes>"
            if p.is_dir()
            else f"<Contents><Key>{prefix}{p.name}</Key><Size>{p.stat().st_size}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for p in names
        )
        return (
            f"<ListBucketResult><Name>{BUCKET}</Name><Prefix>{prefix}</Prefix>"
            f"<KeyCount>{len(names)}</KeyCount><IsTruncated>false</IsTruncated>{items}"
            "</ListBucketResult>"
        ).encode()


def respond(status: str, data: bytes, more: str = "") -> bytes:
    """Return the bytes of an HTTP answer."""
    length = "" if "Content-Length" in more else f"Content-Length: {len(data)}\r\n"
    head = (
        f"HTTP/1.1 {status}\r\n{length}{more}"
        'ETag: "x"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n'
    )
    return head.encode() + data


async def main(port: int, folder: Path, latency_s: float) -> None:
    """Serve until killed."""
    Server.folder, Server.latency_s = folder, latency_s
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, "127.0.0.1", port, backlog=512)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])))
