"""Object stores: a real S3 server on loopback, and what goes wrong on the way to it."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from support.s3 import S3

from zarrbuf.errors import (
    FormatError,
    InvalidInputError,
    NotFoundError,
    StorageError,
)
from zarrbuf.manifest.commit_log import open_log
from zarrbuf.storage.contract import Outcome, Range, Storage
from zarrbuf.storage.requests import (
    Fault,
    ObjectClient,
    Request,
    RequestError,
    fault_of,
)
from zarrbuf.storage.resolve import open_storage

CLIENTS = ("s3fs", "obstore")
NAME = "manifest/00000000000000000001.json"
PASSING = ("500", "503", "409", "reset", "lost", "cut")


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def methods(log: list[dict[str, Any]]) -> Counter[str]:
    return Counter(entry["method"] for entry in log)


# Requests.


def test_each_operation_is_one_request(s3: S3, client: str) -> None:
    storage = s3.storage(client=client)

    def asked(work: Callable[[], object]) -> dict[str, int]:
        s3.log()
        work()
        return dict(methods(s3.log()))

    assert asked(lambda: storage.create(NAME, b"one")) == {"PUT": 1}
    assert asked(lambda: storage.create(NAME, b"two")) == {"PUT": 1}
    assert asked(lambda: storage.ensure("a/b", b"0123456789")) == {"PUT": 1}
    assert asked(lambda: storage.read("a/b")) == {"GET": 1}
    assert asked(lambda: storage.read_existing([NAME, "none"])) == {"GET": 2}
    ranges = [Range("a/b", 0, 3), Range("a/b", 7, 10)]
    assert asked(lambda: storage.read_ranges(ranges)) == {"GET": 2}
    assert sum(asked(lambda: storage.delete("a/b")).values()) == 1
    assert asked(lambda: storage.ensure_all({f"{n}": b"x" for n in range(5)})) == {
        "PUT": 5
    }


def test_many_ranges_come_back_in_order(s3: S3, client: str) -> None:
    storage = s3.storage(client=client)
    data = uuid.uuid4().bytes * 1000
    storage.ensure_all({"a": data, "b": data[::-1]})
    ranges = [Range("ab"[n % 2], 13 * n, 13 * n + 1 + n) for n in range(150)]
    contents = {"a": data, "b": data[::-1]}
    expected = [contents[name][start:stop] for name, start, stop in ranges]
    assert storage.read_ranges(ranges) == expected


def test_large_objects_are_written_in_parts_and_read_whole(s3: S3, client: str) -> None:
    storage = s3.storage(client=client)
    data = bytes(range(256)) * (110 << 12)  # 110 MiB
    storage.ensure("large", data)
    # obstore sends what is created exclusively as one.
    assert len(s3.log()) == 1 if client == "obstore" else len(s3.log()) > 3
    assert storage.read("large") == data


# Faults that pass.


@pytest.mark.parametrize("fault", PASSING)
def test_reads_and_writes_are_tried_again(s3: S3, client: str, fault: str) -> None:
    storage = s3.storage(client=client)
    s3.plan({"fault": fault, "times": 2, "method": "PUT"})
    storage.ensure("a", b"0123456789")
    s3.plan({"fault": fault, "times": 2, "method": "GET"})
    assert storage.read("a") == b"0123456789"
    s3.plan({"fault": fault, "times": 1, "method": "GET"})
    assert storage.read_ranges([Range("a", 2, 5)]) == [b"234"]
    s3.plan({"fault": fault, "times": 1, "method": "GET"})
    assert storage.list_names("") == ["a"]


@pytest.mark.parametrize("fault", PASSING)
def test_a_creation_without_an_answer_is_not_told_to_have_failed(
    s3: S3, client: str, fault: str
) -> None:
    storage = s3.storage(client=client)
    s3.plan({"fault": fault, "times": 1, "method": "PUT"})
    outcome = storage.create(NAME, b"mine")
    there = storage.read_existing([NAME])[0]
    # The clients' own HTTP may ask again where a connection was closed.
    is_there = fault in ("lost", "cut") or methods(s3.log())["PUT"] > 1
    assert there == (b"mine" if is_there else None)
    if fault in ("reset", "lost", "cut"):
        allowed = {Outcome.UNKNOWN, Outcome.EXISTS, Outcome.CREATED}
        assert outcome in (allowed if is_there else {Outcome.UNKNOWN})
    else:
        assert outcome is Outcome.UNKNOWN


@pytest.mark.parametrize("fault", ["412", "412-bare"])
def test_a_taken_name_is_told_with_and_without_the_condition(
    s3: S3, client: str, fault: str
) -> None:
    storage = s3.storage(client=client)
    s3.plan({"fault": fault, "times": 1, "method": "PUT"})
    assert storage.create(NAME, b"mine") is Outcome.EXISTS


@pytest.mark.parametrize("fault", ["cut", "short"])
def test_a_range_that_is_cut_short_is_asked_for_again(
    s3: S3, client: str, fault: str
) -> None:
    storage = s3.storage(client=client)
    storage.ensure("a", bytes(range(200)))
    s3.plan({"fault": fault, "times": 1, "method": "GET"})
    assert storage.read_ranges([Range("a", 10, 110)]) == [bytes(range(10, 110))]


def test_a_server_that_ignores_ranges_is_understood(s3: S3, client: str) -> None:
    storage = s3.storage(client=client)
    storage.ensure("a", bytes(range(200)))
    s3.plan({"fault": "ignore-range", "method": "GET"})
    if client == "obstore":  # it takes the answer for an error, which is as good
        with pytest.raises(StorageError):
            open_storage(s3.url(), s3.options(client, deadline_s=1)).read_ranges(
                [Range("a", 10, 110)]
            )
        return
    assert storage.read_ranges([Range("a", 10, 110)]) == [bytes(range(10, 110))]


# What does not pass.


def test_an_object_shorter_than_its_range_is_no_object_of_ours(
    s3: S3, client: str
) -> None:
    storage = s3.storage(client=client)
    storage.ensure("a", b"0123456789")
    for start, stop in ((5, 11), (10, 12), (50, 60)):
        with pytest.raises(FormatError, match=f"has 10 bytes; {stop} are expected"):
            storage.read_ranges([Range("a", 0, 1), Range("a", start, stop)])


def test_a_missing_object_is_not_found_at_once(s3: S3, client: str) -> None:
    storage = s3.storage(client=client)
    with pytest.raises(NotFoundError, match=f"{s3.url()}/none does not exist"):
        storage.read("none")
    with pytest.raises(NotFoundError, match="none does not exist"):
        storage.read_ranges([Range("none", 0, 1)])
    assert methods(s3.log())["GET"] == 2


def test_a_missing_bucket_is_named(s3: S3, client: str) -> None:
    storage = open_storage("s3://no-such-bucket-here/x", s3.options(client))
    with pytest.raises(StorageError, match=r"no-such-bucket-here.*bucket"):
        storage.create(NAME, b"x")
    with pytest.raises(StorageError, match=r"no-such-bucket-here.*bucket"):
        storage.ensure("a", b"x")
    with pytest.raises(NotFoundError, match="bucket"):
        storage.read("a")
    with pytest.raises(NotFoundError, match=r"holds no zarrbuf buffer.*bucket"):
        open_log(storage)


@pytest.mark.parametrize("status", ["403", "400"])
def test_what_asking_again_does_not_change_is_told_at_once(
    s3: S3, client: str, status: str
) -> None:
    storage = s3.storage(client=client)
    s3.plan({"fault": status})
    works: list[Callable[[], object]] = [
        lambda: storage.read("a"),
        lambda: storage.create(NAME, b"x"),
        lambda: storage.ensure("a", b"x"),
        lambda: storage.list_names(""),
        lambda: storage.read_ranges([Range("a", 0, 1)]),
    ]
    for work in works:
        s3.log()
        with pytest.raises(StorageError) as caught:
            work()
        assert len(s3.log()) == 1
        assert s3.url() in str(caught.value)
        assert "by the proxy" in str(caught.value)
        assert "test-secret" not in str(caught.value)


@pytest.mark.parametrize("fault", ["503", "hang", "reset"])
def test_a_store_that_fails_for_good_is_given_up_in_time(
    s3: S3, client: str, fault: str
) -> None:
    storage = s3.storage(client=client, deadline_s=1.5)
    s3.plan({"fault": fault})
    for work in (lambda: storage.read("a"), lambda: storage.ensure("a", b"x")):
        started = time.monotonic()
        with pytest.raises(StorageError, match=f"cannot (read|write) {s3.url()}/a: "):
            work()
        assert 0.5 < time.monotonic() - started < 10
    assert storage.create(NAME, b"x") is Outcome.UNKNOWN


def test_an_endpoint_where_nobody_listens_is_named(client: str) -> None:
    options = {
        "endpoint_url": "http://127.0.0.1:9",
        "key": "k",
        "secret": "hidden",
        "region": "us-east-1",
        "client": client,
        "deadline_s": 1,
    }
    storage = open_storage("s3://bucket/x", options)
    with pytest.raises(StorageError, match="cannot read s3://bucket/x/a: ") as caught:
        storage.read("a")
    assert "hidden" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_credentials_are_told_at_once(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    options = s3.options("s3fs")
    del options["key"], options["secret"]
    with pytest.raises(StorageError, match="credentials"):
        open_storage(s3.url(), options).read("a")


# Exclusive creation.


def test_a_store_that_takes_a_name_twice_is_found_out(s3: S3, client: str) -> None:
    storage = s3.storage(client=client)
    storage.check_create()
    assert storage.list_names("tmp") == []
    s3.plan({"fault": "ignore-condition", "method": "PUT"})
    with pytest.raises(StorageError, match=r"takes a name twice.*commit=single"):
        storage.check_create()
    assert storage.list_names("tmp") == []


def test_one_writer_may_do_without_exclusive_creation(s3: S3, client: str) -> None:
    storage = s3.storage(client=client, commit="single")
    s3.plan({"fault": "ignore-condition", "method": "PUT"})
    storage.check_create()
    assert storage.commit_method == "single"
    assert storage.create(NAME, b"one") is Outcome.CREATED
    assert storage.create(NAME, b"two") is Outcome.EXISTS
    assert storage.read(NAME) == b"one"


# Options.


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"client": "boto"}, "client is 'boto'.*s3fs, obstore"),
        ({"client": "gcsfs"}, "client is 'gcsfs'"),
        ({"commit": "lock"}, "commit is 'lock'.*'single'"),
        ({"deadline_s": "soon"}, "deadline_s is 'soon'"),
        ({"deadline_s": 0}, "deadline_s is 0"),
        ({"deadline_s": "nan"}, "deadline_s is 'nan'"),
    ],
)
def test_other_options_are_refused_by_name(options: dict[str, Any], rule: str) -> None:
    with pytest.raises(InvalidInputError, match=rule):
        open_storage("s3://bucket/x", options)


def test_options_of_stores_are_refused_for_web_servers() -> None:
    with pytest.raises(InvalidInputError, match="key, secret are not for https://"):
        open_storage("https://host/x", {"secret": "x", "key": "y"})


def test_a_client_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidInputError, match=r"pip install 'zarrbuf\[s3\]'"):
        open_storage("s3://bucket/x")
    with pytest.raises(InvalidInputError, match=r"pip install 'zarrbuf\[obstore\]'"):
        open_storage("s3://bucket/x", {"client": "obstore"})
    with pytest.raises(InvalidInputError, match=r"pip install 'zarrbuf\[http\]'"):
        open_storage("https://host/x")


def test_an_option_that_a_client_does_not_know_is_one_line(s3: S3, client: str) -> None:
    storage = open_storage(s3.url(), s3.options(client, no_such_option="x"))
    with pytest.raises(StorageError, match="no_such_option") as caught:
        storage.read("a")
    assert "\n" not in str(caught.value)


# Errors, without a server.


class NamedError(Exception):
    """An error of a library that may not be installed, known by its name."""


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (FileExistsError("x"), Fault.EXISTS),
        (OSError(22, "Precondition Failed"), Fault.EXISTS),
        (FileNotFoundError("x"), Fault.MISSING),
        (PermissionError("x"), Fault.REFUSED),
        (OSError(22, "The bucket name is malformed"), Fault.REFUSED),
        (OSError(22, "The requested range is not satisfiable"), Fault.SHORT),
        (OSError(5, "x"), Fault.FAILED),
        (TimeoutError(), Fault.FAILED),
        (ConnectionResetError(), Fault.FAILED),
        (ValueError("Invalid endpoint"), Fault.REFUSED),
        (type("NoCredentialsError", (NamedError,), {})("x"), Fault.REFUSED),
        (type("AlreadyExistsError", (NamedError,), {})("x"), Fault.EXISTS),
        (NamedError("Server returned status code: 404 Not Found"), Fault.MISSING),
        (NamedError("Server returned status code: 403 Forbidden"), Fault.REFUSED),
        (NamedError("Server returned status code: 429 Slow"), Fault.FAILED),
        (NamedError("Server returned status code: 503 Slow"), Fault.FAILED),
        (NamedError("Server returned status code: 412 No"), Fault.EXISTS),
    ],
)
def test_errors_are_told_apart(error: Exception, fault: Fault) -> None:
    assert fault_of(error) is fault


def test_a_request_that_cannot_be_made_fails_alone() -> None:
    client = ObjectClient("memory", {}, client=None, deadline_s=1)
    folder = f"/requests-{uuid.uuid4().hex}"
    done = client.run(
        [
            Request("write", f"{folder}/a", data=b"123"),
            Request("read", f"{folder}/none"),
            Request("read", f"{folder}/a", 0, 9),
            Request("read", f"{folder}/a", 1, 3),
        ]
    )
    assert isinstance(done[1], RequestError)
    assert isinstance(done[2], RequestError)
    assert (done[1].fault, done[2].fault) == (Fault.MISSING, Fault.SHORT)
    assert done[3] == b"23"


def test_the_contract_holds_for_both_clients_at_once(s3: S3) -> None:
    one, other = (s3.storage(client=client) for client in CLIENTS)
    assert one.create(NAME, b"one") is Outcome.CREATED
    assert other.create(NAME, b"other") is Outcome.EXISTS
    assert other.read(NAME) == b"one"


def test_listing_sees_what_others_wrote_meanwhile(s3: S3, client: str) -> None:
    one, other = s3.storage(client=client), s3.storage(client="s3fs")
    assert one.list_names("manifest") == []
    other.ensure(NAME, b"x")
    assert one.list_names("manifest") == [NAME.rpartition("/")[2]]
    assert one.list_names("") == ["manifest"]
    assert one.list_names("mani") == []
    assert one.list_names(NAME) == []


def names_of(storage: Storage) -> list[str]:
    return storage.list_names("many")


def test_more_than_a_page_is_listed(s3: S3, client: str) -> None:
    storage = s3.storage(client=client)
    storage.ensure_all({f"many/{n:05d}": b"" for n in range(1100)})
    assert names_of(storage) == [f"{n:05d}" for n in range(1100)]
