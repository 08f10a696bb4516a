"""A folder of an object store as a storage: S3 and the like, HTTP to read, memory.

Owns what the answers of requests mean for a name: read, created, taken, unclear. Knows
no library; the requests, and when they are tried again, are `requests`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, NoReturn

from zarrbuf.common.uuids import new_uuid
from zarrbuf.errors import NotFoundError, StorageError, StorageRefusedError
from zarrbuf.storage.contract import (
    TMP_DIR,
    Outcome,
    Range,
    Storage,
    checked_name,
    large_object,
    short_object,
)
from zarrbuf.storage.redaction import RedactedError, redacted
from zarrbuf.storage.requests import Fault, ObjectClient, Request, RequestError

_COMMIT_METHODS: Final = {"s3": "if-none-match", "gs": "generation", "memory": "lock"}
_SHORT_TRIES: Final = 3
_PROBES: Final = 8
_PIECE_BYTES: Final = 8 << 20


class ObjectStorage(Storage):
    """A folder of a store that is reached by requests."""

    is_remote: ClassVar[bool] = True

    def __init__(
        self,
        url: str,
        client: ObjectClient,
        *,
        root: str,
        secrets: Sequence[str] = (),
        is_single: bool = False,
    ) -> None:
        """Use the folder that `url` names, which need not exist yet.

        Args:
            url: as messages show it.
            client: does the requests.
            root: what the client calls the folder, `bucket/key`.
            secrets: what no message may show.
            is_single: whether the caller says that nobody else writes, so that a store
                without exclusive creation will do.
        """
        self.url = url.rstrip("/")
        self._client = client
        self.deadline_s = client.deadline_s
        self._root = root.rstrip("/")
        self._secrets = list(secrets)
        self._is_single = is_single
        method = _COMMIT_METHODS.get(client.protocol, "single")
        self.commit_method = "single" if is_single else method

    def sibling(self, url: str) -> ObjectStorage:  # noqa: D102
        found = ObjectStorage(
            url,
            self._client,
            root=root_of(url, self._client.protocol),
            secrets=self._secrets,
            is_single=self._is_single,
        )
        found.range_cache = self.range_cache
        return found

    def _path(self, name: str) -> str:
        return f"{self._root}/{checked_name(name)}" if name else self._root

    def _run(self, requests: Sequence[Request], *, tries: int | None = None) -> Any:
        return self._client.run(requests, tries=tries)

    def _one(self, verb: str, name: str, data: bytes = b"") -> Any:
        """Do one request for an object; what it gave, or its RequestError."""
        return self._run([Request(verb, self._path(name), data=data)])[0]

    def read(self, name: str, *, max_bytes: int | None = None) -> bytes:  # noqa: D102
        (found,) = self._read_whole([name], max_bytes)
        if isinstance(found, RequestError):
            self._raise(found, "read", name)
        data: bytes = found
        return data

    def _read_whole(self, names: Sequence[str], max_bytes: int | None) -> list[Any]:
        """Read objects; for each its bytes, or its RequestError."""
        stop = None if max_bytes is None else max_bytes + 1
        found = self._run([Request("read", self._path(n), stop=stop) for n in names])
        for name, one in zip(names, found, strict=True):
            is_whole = max_bytes is not None and not isinstance(one, RequestError)
            if is_whole and len(one) > (max_bytes or 0):
                raise large_object(self.describe(name), max_bytes or 0)
        return list(found)

    def open_source(self, name: str) -> memoryview:  # noqa: D102
        size = self._one("size", name)
        if isinstance(size, RequestError):
            self._raise(size, "read", name)
        starts = range(0, size, _PIECE_BYTES)
        pieces = [Range(name, at, min(at + _PIECE_BYTES, size)) for at in starts]
        return memoryview(b"".join(self.read_ranges(pieces)))

    def read_existing(  # noqa: D102
        self, names: Sequence[str], *, max_bytes: int | None = None
    ) -> list[bytes | None]:
        found = self._read_whole(names, max_bytes)
        for position, name in enumerate(names):
            failed = found[position]
            if isinstance(failed, RequestError):
                if failed.fault is not Fault.MISSING:
                    self._raise(failed, "read", name)
                found[position] = None
        answers: list[bytes | None] = found
        return answers

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:  # noqa: D102
        requests = [
            Request("read", self._path(n), start, stop) for n, start, stop in ranges
        ]
        found = self._run(requests)
        for _ in range(_SHORT_TRIES):
            short = [n for n, one in enumerate(found) if _is(one, Fault.SHORT)]
            if not short:
                break
            # Either the object is shorter, or an answer was cut off.
            self._check_sizes([ranges[number] for number in short])
            again = self._run([requests[number] for number in short])
            for number, answer in zip(short, again, strict=True):
                found[number] = answer
        for one, answer in zip(ranges, found, strict=True):
            if isinstance(answer, RequestError):
                self._raise(answer, "read", one.name)
        answers: list[bytes] = found
        return answers

    def _check_sizes(self, ranges: Sequence[Range]) -> None:
        stops = {one.name: one.stop for one in sorted(ranges, key=lambda r: r.stop)}
        sizes = self._run([Request("size", self._path(name)) for name in stops])
        for (name, stop), size in zip(stops.items(), sizes, strict=True):
            if isinstance(size, RequestError):
                self._raise(size, "read", name)
            if size is not None and size < stop:
                raise short_object(self.describe(name), size, stop)

    def _check_writable(self, name: str) -> None:
        if self._client.protocol in ("http", "https"):
            raise StorageError(
                f"cannot write {self.describe(name)}: web servers are only read"
            )

    @property
    def place(self) -> tuple[object, ...]:  # noqa: D102
        return (self._client.protocol, self._client.endpoint, self._root)

    def create(self, name: str, data: bytes) -> Outcome:  # noqa: D102
        return self._create({name: data})[0]

    def create_all(self, objects: Mapping[str, bytes]) -> list[Outcome]:  # noqa: D102
        return self._create(objects)

    def _create(self, objects: Mapping[str, bytes]) -> list[Outcome]:
        for name in objects:
            self._check_writable(name)
        if self._is_single:
            return self._create_alone(objects)
        # One try: who repeats it has to look first whether this one landed.
        requests = [
            Request("create", self._path(name), data=data)
            for name, data in objects.items()
        ]
        done = self._run(requests, tries=1)
        return [
            self._outcome(name, one) for name, one in zip(objects, done, strict=True)
        ]

    def _outcome(self, name: str, done: Any) -> Outcome:
        if not isinstance(done, RequestError):
            return Outcome.CREATED
        if done.fault is Fault.EXISTS:
            return Outcome.EXISTS
        if done.fault is Fault.FAILED:
            return Outcome.UNKNOWN
        self._raise(done, "create", name)

    def _create_alone(self, objects: Mapping[str, bytes]) -> list[Outcome]:
        """Create as the only writer there is, on a store that would overwrite."""
        there = self.read_existing(list(objects))
        missing = {
            name: data
            for (name, data), found in zip(objects.items(), there, strict=True)
            if found is None
        }
        requests = [
            Request("write", self._path(name), data=data)
            for name, data in missing.items()
        ]
        for name, done in zip(missing, self._run(requests), strict=True):
            if isinstance(done, RequestError):
                self._raise(done, "write", name)
        return [
            Outcome.CREATED if name in missing else Outcome.EXISTS for name in objects
        ]

    def check_create(self) -> None:  # noqa: D102
        if self._is_single:
            return
        probe = f"{TMP_DIR}/{new_uuid()}"
        is_there = False
        for _ in range(_PROBES):
            outcome = self.create(probe, b"probe")
            if outcome is Outcome.EXISTS or (is_there and outcome is Outcome.CREATED):
                break
            is_there = self.read_existing([probe])[0] is not None
        self.delete(probe)
        if outcome is Outcome.UNKNOWN:
            raise StorageError(
                f"{self.url}: {_PROBES} times it stayed unknown whether {probe} was "
                "created; try again"
            )
        if outcome is not Outcome.EXISTS:
            raise StorageError(
                f"{self.url}: this store takes a name twice, so that two writers would "
                "lose commits; if there is only one, ever, say so by the storage "
                "option commit=single"
            )

    def link_from(self, other: Storage, name: str) -> bool:  # noqa: D102
        return False

    def list_names(self, directory: str) -> list[str]:  # noqa: D102
        found = self._one("list", directory)
        if isinstance(found, RequestError):
            if found.fault is Fault.MISSING:
                return []
            self._raise(found, "list", directory)
        parts = [path.rstrip("/").rpartition("/") for path in found]
        parent = self._path(directory).strip("/")
        return sorted({name for above, _, name in parts if above.strip("/") == parent})

    def list_times(self, directories: Sequence[str]) -> dict[str, int]:  # noqa: D102
        answers = self._run(
            [Request("list-times", self._path(one)) for one in directories]
        )
        found: dict[str, int] = {}
        for directory, answer in zip(directories, answers, strict=True):
            if isinstance(answer, RequestError):
                if answer.fault is not Fault.MISSING:
                    self._raise(answer, "list", directory)
                continue
            parent = self._path(directory).strip("/")
            for path, written_ms in answer:
                above, _, name = path.rpartition("/")
                if above.strip("/") == parent:
                    found[f"{directory}/{name}"] = written_ms
        return found

    def exists(self, name: str) -> bool:  # noqa: D102
        found = self._one("size", name)
        if isinstance(found, RequestError):
            if found.fault is Fault.MISSING:
                return False
            self._raise(found, "look for", name)
        return True

    def delete(self, name: str) -> None:  # noqa: D102
        self._check_writable(name)
        done = self._one("delete", name)
        if isinstance(done, RequestError) and done.fault is not Fault.MISSING:
            self._raise(done, "delete", name)

    def _raise(self, failed: RequestError, verb: str, name: str) -> NoReturn:
        where, cause = self.describe(name), failed.cause
        said = str(cause).partition("\n\nDebug source")[0]  # what obstore adds
        name_of = type(cause).__name__
        text = redacted(" ".join(f"{name_of}: {said}".split()), self._secrets)
        # Not from the error itself: a traceback would show all that it says.
        shown = RedactedError(redacted(f"{name_of}: {cause}", self._secrets))
        if failed.fault is Fault.MISSING and verb == "read":
            raise NotFoundError(f"{where} does not exist ({text:.500})") from shown
        if isinstance(cause, TimeoutError):
            text = "no answer in time"
        kind = StorageRefusedError if failed.fault is Fault.REFUSED else StorageError
        raise kind(f"cannot {verb} {where}: {text:.500}") from shown


def root_of(url: str, protocol: str) -> str:
    """Return what fsspec calls a folder."""
    if protocol in ("http", "https"):
        return url
    path = url[len(protocol) + len("://") :].strip("/")
    return f"/{path}" if protocol == "memory" else path


def _is(answer: Any, fault: Fault) -> bool:
    return isinstance(answer, RequestError) and answer.fault is fault
