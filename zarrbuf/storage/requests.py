"""Requests to a store: many at once, each until it is done or cannot be.

Owns how a request is sent by each of fsspec's file systems, when it is tried again, and
what an error of one means: absent, taken, refused, or worth another try. Knows paths
and bytes, no name of ours.
"""

from __future__ import annotations

import asyncio
import atexit
import enum
import errno
import os
import random
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import fsspec
import fsspec.asyn

from zarrbuf.common.background import EndingError, UnderWay
from zarrbuf.storage.file_systems import choose_client, make_file_system

MAX_REQUESTS: Final = 64
"""Requests under way at once. 600 ranges at 30 ms each, s3fs: 64 and 256 at once took
the same time, 10 at once twice as long."""
MIN_BYTES_PER_S: Final = 1 << 20
"""A transfer may take its deadline and, on top, as long as at this rate."""
_WRITTEN_KEYS: Final = ("LastModified", "last_modified", "updated", "created", "mtime")
"""What s3fs, obstore, gcsfs and fsspec's memory call the time of an object."""
_MAX_AT_ONCE: Final = 1 << 30
"""Bytes of an object that is sent as one; stores take five times as many."""
_GCS_PART: Final = 50 << 20
"""Bytes of a part of an object that gcsfs sends in several."""
_TRY_S: Final = 20.0
"""After so long without an answer a request is asked again, if the deadline allows."""
_MEMORY_LOCK: Final = threading.Lock()
# A child that is forked in the middle would wait for it for ever.
os.register_at_fork(
    before=_MEMORY_LOCK.acquire,
    after_in_parent=_MEMORY_LOCK.release,
    after_in_child=_MEMORY_LOCK.release,
)
_OBSTORE_UNDER_WAY: Final = UnderWay()
os.register_at_fork(after_in_child=_OBSTORE_UNDER_WAY.reset)
atexit.register(_OBSTORE_UNDER_WAY.end)


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        verb: "read", "size", "create" (exclusively), "write", "list", "list-times" or
            "delete".
        path: what fsspec calls a path, for s3 `bucket/key`.
        start: first byte of a range that is read; None for the whole object.
        stop: end of the range; of a whole object, where reading stops if it is longer.
        data: what is created or written.
    """

    verb: str
    path: str
    start: int | None = None
    stop: int | None = None
    data: bytes = b""

    @property
    def num_bytes(self) -> int:
        """Bytes that go over the wire, as far as is known; whole objects are small."""
        if self.start is None:
            return len(self.data)
        return (self.stop or 0) - self.start


class Fault(enum.Enum):
    """What a request came to, if not to what was asked for."""

    MISSING = "is not there"
    EXISTS = "is there already"
    SHORT = "ends before the range does"
    REFUSED = "will not be had by asking again"
    FAILED = "may pass"


class RequestError(Exception):
    """A request that failed for good: why, and the error behind it."""

    def __init__(self, fault: Fault, cause: BaseException) -> None:
        """Keep both."""
        super().__init__(fault, cause)
        self.fault = fault
        self.cause = cause


class ShortAnswerError(Exception):
    """Fewer bytes came than were asked for."""


class ObjectClient:
    """File systems of one protocol, one in each process.

    Attributes:
        protocol: fsspec's name of it.
        client: the library that reaches it.
        endpoint: where, if it was told.
        deadline_s: seconds after which a request is given up.
    """

    def __init__(
        self,
        protocol: str,
        options: Mapping[str, Any],
        *,
        client: str | None,
        deadline_s: float,
    ) -> None:
        """Connect to nothing yet.

        Args:
            protocol: fsspec's name of it, "s3".
            options: what the file system is made with.
            client: the library to use, None for one that is there.
            deadline_s: seconds after which a request is given up.

        Raises:
            InvalidInputError: if the library is not installed.
        """
        self.protocol = protocol
        self.client = choose_client(protocol, client)
        self._options = dict(options)
        self.endpoint = str(options.get("endpoint_url") or "")
        self.deadline_s = deadline_s
        self._file_systems: dict[int, Any] = {}

    def file_system(self) -> Any:
        """Return the file system of this process.

        Those of a parent are kept, since letting go of one would use its connections.
        """
        pid = os.getpid()
        found = self._file_systems.get(pid)
        if found is None:
            found = make_file_system(self.protocol, self.client, self._options)
            self._file_systems[pid] = found
        return found

    def run(
        self, requests: Sequence[Request], *, tries: int | None = None
    ) -> list[Any]:
        """Do requests at once, each again until it is done or cannot be.

        Args:
            requests: what is asked for, in any order.
            tries: how often each is tried, None for as often as the deadline allows.

        Returns:
            For each what it gave, or a RequestError.
        """
        if self.client != "obstore":
            return self._run(requests, tries)
        try:
            with _OBSTORE_UNDER_WAY:
                return self._run(requests, tries)
        except EndingError as exc:
            return [RequestError(Fault.REFUSED, exc)] * len(requests)

    def _run(self, requests: Sequence[Request], tries: int | None) -> list[Any]:
        try:
            fs = self.file_system()
        except Exception as exc:
            return [RequestError(Fault.REFUSED, exc)] * len(requests)
        if not getattr(fs, "async_impl", False):
            return [_send_now(fs, request) for request in requests]
        work = _run_all(fs, requests, self.deadline_s, tries)
        results: list[Any] = fsspec.asyn.sync(fs.loop, lambda: work)
        return results


def _send_now(fs: Any, request: Request) -> Any:
    """Do a request to fsspec's file system in memory, which never fails and waits."""
    try:
        with _MEMORY_LOCK:
            return _memory_answer(fs, request)
    except Exception as exc:
        return RequestError(fault_of(exc), exc)


def _memory_answer(fs: Any, request: Request) -> Any:
    path = request.path
    match request.verb:
        case "read":
            data = fs.cat_file(path, start=request.start, end=request.stop)
            return _checked_range(request, data)
        case "size":
            return fs.size(path)
        case "list":
            return [name.rstrip("/") for name in fs.ls(path, detail=False)]
        case "list-times":
            return _times(fs.ls(path, detail=True))
        case "delete":
            return fs.rm_file(path)
        case "create" if fs.exists(path):
            raise FileExistsError(path)
    return fs.pipe_file(path, request.data)


def _times(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Return objects of a listing and when each was written, in ms since 1970."""
    now_ms = time.time_ns() // 1_000_000
    found = []
    for entry in entries:
        if entry.get("type") == "directory":
            continue
        written = [entry.get(name) for name in _WRITTEN_KEYS]
        known = [one for one in written if one is not None]
        written_ms = _ms(known[0]) if known else now_ms
        found.append((entry["name"], written_ms))
    return found


def _ms(written: Any) -> int:
    """Return a time in ms since 1970: file systems give dates, texts or seconds."""
    if isinstance(written, int | float):
        return int(written * 1000)
    if isinstance(written, str):
        written = datetime.fromisoformat(written)
    if written.tzinfo is None:
        written = written.replace(tzinfo=UTC)
    return int(written.timestamp() * 1000)


async def _run_all(
    fs: Any, requests: Sequence[Request], deadline_s: float, tries: int | None
) -> list[Any]:
    room = asyncio.Semaphore(MAX_REQUESTS)
    # They share one line: the last of them may have to wait for all the others.
    extra_s = sum(request.num_bytes for request in requests) / MIN_BYTES_PER_S
    extra_s += len(requests) // MAX_REQUESTS
    deadline = time.monotonic() + deadline_s + extra_s
    refused: list[RequestError] = []

    async def run(request: Request) -> Any:
        async with room:
            if refused:
                return refused[0]
            try:
                return await _run_one(fs, request, deadline, extra_s, tries)
            except RequestError as exc:
                if exc.fault is Fault.REFUSED:
                    refused.append(exc)
                return exc

    done = await asyncio.gather(*map(run, requests), return_exceptions=True)
    return [
        RequestError(Fault.FAILED, one)
        if isinstance(one, BaseException) and not isinstance(one, RequestError)
        else one
        for one in done
    ]


async def _run_one(
    fs: Any, request: Request, deadline: float, extra_s: float, tries: int | None
) -> Any:
    """Do one request, again after failures that may pass.

    Args:
        fs: the file system.
        request: what is asked for.
        deadline: when it is given up, on the monotonic clock.
        extra_s: what all that is under way may take besides.
        tries: how often it is tried, None for as often as there is time.

    Raises:
        RequestError: if it cannot be done, or not before the deadline.
    """
    number = 0
    while True:
        number += 1
        left_s = max(0.01, deadline - time.monotonic())
        try:
            return await asyncio.wait_for(
                _send(fs, request), min(left_s, _TRY_S + extra_s)
            )
        except Exception as exc:
            fault = fault_of(exc)
            pause_s = random.uniform(0.5, 1) * min(0.05 * 2**number, 2)
            is_late = time.monotonic() + pause_s >= deadline
            if fault is not Fault.FAILED or is_late or number == tries:
                raise RequestError(fault, exc) from exc
        await asyncio.sleep(pause_s)


async def _send(fs: Any, request: Request) -> Any:
    path = request.path
    match request.verb:
        case "read" if request.start is None:
            return await _read_whole(fs, path, request.stop)
        case "read":
            data = await fs._cat_file(path, start=request.start, end=request.stop)
            return _checked_range(request, data)
        case "size":
            return (await fs._info(path))["size"]
        case "list":
            names = await fs._ls(path, detail=False)
            return [name.rstrip("/") for name in names]
        case "list-times":
            return _times(await fs._ls(path, detail=True))
        case "delete":
            return await fs._rm_file(path)
        case "create" if hasattr(fs, "_construct_store"):
            return await _create_by_obstore(fs, request)
        case "create" if "gs" in fs.protocol:
            # As one request: so the condition is asked for when all bytes are there.
            size = min(len(request.data), _MAX_AT_ONCE) + 1
            options = {"mode": "create", "chunksize": max(_GCS_PART, size)}
            return await fs._pipe_file(path, request.data, **options)
        case "create":
            return await fs._pipe_file(path, request.data, mode="create")
    return await fs._pipe_file(path, request.data)


async def _create_by_obstore(fs: Any, request: Request) -> Any:
    """Create an object by obstore, whose file system would overwrite one."""
    bucket, key = fs._split_path(request.path)
    store = fs._construct_store(bucket)
    if len(request.data) <= _MAX_AT_ONCE:
        return await store.put_async(key, request.data, mode="create")
    # In parts it knows no condition. Names of objects so large are never made twice.
    try:
        await fs._info(request.path)
    except Exception as exc:
        if fault_of(exc) is not Fault.MISSING:
            raise
        return await fs._pipe_file(request.path, request.data)
    raise FileExistsError(request.path)


async def _read_whole(fs: Any, path: str, stop: int | None) -> Any:
    """Read an object from its start, and no further than `stop`."""
    if stop is None and not hasattr(fs, "_cat_file_concurrent"):
        return await fs._cat_file(path)
    # Without a range, s3fs asks for the size first, and then for pieces.
    try:
        return await fs._cat_file(path, start=0, end=stop)
    except Exception as exc:
        if fault_of(exc) is Fault.SHORT:  # not even a first byte
            return b""
        raise


def _checked_range(request: Request, data: bytes) -> bytes:
    if request.start is None or request.stop is None:
        return data
    num_bytes = request.stop - request.start
    if len(data) > num_bytes and len(data) >= request.stop:  # ranges are ignored
        return data[request.start : request.stop]
    if len(data) != num_bytes:
        raise ShortAnswerError(f"{len(data)} bytes came, {num_bytes} were asked for")
    return data


_REFUSED: Final = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "NoRegionError",
    "ParamValidationError",
    "PermissionDeniedError",
    "DefaultCredentialsError",
    "RefreshError",
    "UnauthenticatedError",
    "InvalidPathError",
    "UnknownConfigurationKeyError",
    "NotSupportedError",
    "NotImplementedError",
    "TypeError",
    "ValueError",
    "ImportError",
    "RuntimeError",
}
"""Names of errors, since the libraries that they come from may not be there."""
_STATUS: Final = re.compile(r"status code: (\d{3})\b")
_MAY_PASS: Final = (408, 409, 425, 429)


def fault_of(exc: BaseException) -> Fault:
    """Say what became of a request that ended in an error."""
    names = {kind.__name__ for kind in type(exc).__mro__}
    status = _status_of(exc)
    # Only of answers that say no more than a sentence: others name paths.
    is_sentence = isinstance(exc, OSError) and exc.errno == errno.EINVAL
    text = str(exc).lower().replace("-", "") if is_sentence else ""
    if status == 409:  # two conditions met on their way: neither may hold
        return Fault.FAILED
    if isinstance(exc, FileExistsError) or names & {"AlreadyExistsError"}:
        return Fault.EXISTS
    if "precondition" in text or status == 412:  # the body that says which is missing
        return Fault.EXISTS
    if isinstance(exc, FileNotFoundError) or status == 404:
        return Fault.MISSING
    is_short = isinstance(exc, ShortAnswerError) or status == 416
    if is_short or "not satisfiable" in text:
        return Fault.SHORT
    # Text that gcsfs puts before the path, and no other error of its.
    is_forbidden = isinstance(exc, PermissionError) or str(exc)[:11] == "Forbidden: "
    if is_forbidden or names & _REFUSED or is_sentence:
        return Fault.REFUSED
    if status is not None and 400 <= status < 500 and status not in _MAY_PASS:
        return Fault.REFUSED
    return Fault.FAILED


def _status_of(exc: BaseException) -> int | None:
    """Return the HTTP status that an error of aiohttp, gcsfs or obstore came with."""
    status = getattr(exc, "status", getattr(exc, "code", None))
    if isinstance(status, int):
        return status
    match = _STATUS.search(str(exc))
    return int(match[1]) if match else None
