"""An HTTP proxy that loses, delays, cuts and forges answers, in a process of its own.

`python fault_proxy.py PORT UPSTREAM_PORT`. What it does to requests is set by JSON at
`PUT /_plan`: {"latency_s": 0.03, "rules": [{"method": "PUT", "part": "manifest/",
"fault": "lost", "times": 2, "share": 0.5}]}. The first rule that fits is used, `times`
times. `GET /_log` tells what was asked for, `DELETE /_log` forgets it.

The servers behind it lack what zarrbuf relies on: of two conditional PUTs at once, the
one for S3 takes both; the one for GCS ignores `ifGenerationMatch`. So creations of one
name take turns here, and for GCS the condition is looked after here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from typing import Any
from urllib.parse import quote

import aiohttp
from aiohttp import web

BODIES = {
    500: "InternalError",
    503: "SlowDown",
    409: "ConditionalRequestConflict",
    403: "AccessDenied",
    400: "ExpiredToken",
}
NO_LOCK = contextlib.nullcontext()
HOP = {"transfer-encoding", "connection", "content-encoding", "keep-alive", "server"}


def error(status: int, code: str, extra: str = "") -> web.Response:
    message = f"<Message>{code} by the proxy</Message>"
    text = f"<Error><Code>{code}</Code>{message}{extra}</Error>"
    return web.Response(status=status, text=text, content_type="application/xml")


def gcs_object(request: web.Request, body: bytes) -> str:
    """Return where the object lies that a request of GCS's JSON API creates."""
    about = body.split(b"\n\n")[1].partition(b"\n--")[0]  # the first part: JSON
    name = request.query.get("name") or json.loads(about)["name"]
    path = request.path.removeprefix("/upload")
    return f"{path}/{quote(name, safe='')}"


class Proxy:
    """Hands requests on to one server, but for what it was told to do to them."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.latency_s = 0.0
        self.rules: list[dict[str, Any]] = []
        self.log: list[dict[str, Any]] = []
        self.draw = random.Random(7)
        self.turns: dict[str, asyncio.Lock] = {}
        self.session: aiohttp.ClientSession | None = None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path in ("/_plan", "/_log"):
            return await self.control(request)
        body = await request.read()
        rule = self.rule(request)
        entry = {
            "method": request.method,
            "path": request.path,
            "range": request.headers.get("Range"),
            "sent": len(body),
            "received": 0,
            "fault": rule,
        }
        self.log.append(entry)
        await asyncio.sleep(self.latency_s)
        if rule is not None and (early := await self.refuse(request, rule)):
            return early
        headers = dict(request.headers)
        if rule == "ignore-condition":
            headers.pop("If-None-Match", None)
        key = request.path if "If-None-Match" in headers else ""
        if request.query.get("ifGenerationMatch") == "0":
            key = gcs_object(request, body)
        async with self.turns.setdefault(key, asyncio.Lock()) if key else NO_LOCK:
            if "/storage/v1/" in key and await self.is_there(key):
                return web.json_response({"error": {"code": 412}}, status=412)
            status, found, data = await self.hand_on(request, headers, body)
        entry["received"] = len(data)
        if rule == "lost":
            assert request.transport is not None
            request.transport.close()
        if rule == "short":  # a whole answer, of half the bytes
            data = data[: len(data) // 2]
        if rule == "cut":  # half an answer
            return await self.cut(request, status, found, data)
        if rule == "ignore-range" and request.headers.get("Range"):
            headers.pop("Range")
            status, found, data = await self.hand_on(request, headers, b"")
        return web.Response(status=status, headers=found, body=data)

    async def is_there(self, path: str) -> bool:
        assert self.session is not None
        async with self.session.get(f"{self.upstream}{path}") as answer:
            return answer.status == 200

    async def cut(
        self, request: web.Request, status: int, headers: dict[str, str], data: bytes
    ) -> web.StreamResponse:
        headers["Content-Length"] = str(len(data))
        answer = web.StreamResponse(status=status, headers=headers)
        await answer.prepare(request)
        await answer.write(data[: len(data) // 2])
        assert request.transport is not None
        request.transport.close()
        return answer

    async def hand_on(
        self, request: web.Request, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        assert self.session is not None
        async with self.session.request(
            request.method,
            f"{self.upstream}{request.raw_path}",
            headers=headers,
            data=body or None,
            skip_auto_headers=("Content-Type",),
        ) as answer:
            data = await answer.read()
            found = {k: v for k, v in answer.headers.items() if k.lower() not in HOP}
            if request.method != "HEAD":
                found.pop("Content-Length", None)
            return answer.status, found, data

    async def refuse(self, request: web.Request, rule: str) -> web.Response | None:
        if rule == "reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response(status=500)
        if rule == "hang":
            await asyncio.sleep(600)
        if rule.startswith("slow:"):
            await asyncio.sleep(float(rule.partition(":")[2]))
        if rule == "412":
            return error(
                412, "PreconditionFailed", "<Condition>If-None-Match</Condition>"
            )
        if rule == "412-bare":
            return web.Response(status=412)
        if rule.isdigit():
            if "/storage/v1/" in request.path:
                about = {"code": int(rule), "message": "by the proxy"}
                return web.json_response({"error": about}, status=int(rule))
            return error(int(rule), BODIES.get(int(rule), "Strange"))
        return None

    def rule(self, request: web.Request) -> str | None:
        for rule in self.rules:
            if (
                rule["times"] <= 0
                or rule.get("method", request.method) != request.method
            ):
                continue
            if rule.get("part", "") not in request.path:
                continue
            if rule.get("share", 1.0) < self.draw.random():
                continue
            rule["times"] -= 1
            fault: str = rule["fault"]
            return fault
        return None

    async def control(self, request: web.Request) -> web.Response:
        if request.method == "PUT":
            plan = await request.json()
            self.latency_s = plan.get("latency_s", 0.0)
            self.rules = plan.get("rules", [])
        elif request.method == "DELETE":
            self.log.clear()
        return web.json_response(self.log)


async def main(port: int, upstream_port: int) -> None:
    proxy = Proxy(f"http://127.0.0.1:{upstream_port}")
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", proxy.answer)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, auto_decompress=False
    ) as proxy.session:
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
