"""Faults that buffers on object stores had once."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import fsspec.asyn
import pytest
import torch
from support.batches import assert_same_batch, draw, generator
from support.remote import Asked, loaded, memory_url, save, with_cameras
from support.s3 import S3

from zarrbuf import Trajectory, TrajectoryReplayBuffer
from zarrbuf.errors import InvalidInputError, StorageError
from zarrbuf.storage.contract import Outcome, Range
from zarrbuf.storage.redaction import secrets_of
from zarrbuf.storage.requests import Fault, ObjectClient, Request, RequestError
from zarrbuf.storage.resolve import open_storage

CLIENTS = ("s3fs", "obstore")


def with_states(count: int, width: int = 250) -> list[Trajectory]:
    """Return trajectories of images and wide states, whose tables are large."""
    found = with_cameras(count, num_steps=30)
    for seed, one in enumerate(found):
        draws = generator(seed)
        assert one.curr_obs is not None
        one.curr_obs["states"] = torch.rand(30, 3, width, generator=draws)
    return found


@pytest.mark.parametrize("client", CLIENTS)
def test_no_buffer_is_made_where_creations_are_not_exclusive(
    s3: S3, client: str
) -> None:
    s3.plan({"fault": "ignore-condition", "method": "PUT"})
    with pytest.raises(StorageError, match="takes a name twice"):
        TrajectoryReplayBuffer(
            auto_save=True, auto_save_path=s3.url(), storage_options=s3.options(client)
        )
    assert s3.storage().list_names("") == []


def test_a_buffer_for_one_writer_is_written_by_one_who_says_so(s3: S3) -> None:
    single = s3.options(commit="single")
    save(s3.url(), single, with_cameras(1))
    save(s3.url(), single, with_cameras(1))
    assert len(loaded(s3.url(), s3.options())) == 2  # reading is for all
    with pytest.raises(InvalidInputError, match=r"say that you are it.*commit=single"):
        save(s3.url(), s3.options(), with_cameras(1))
    assert len(loaded(s3.url(), s3.options())) == 2


def test_a_store_that_never_answers_a_creation_is_not_trusted(s3: S3) -> None:
    s3.plan({"fault": "503", "method": "PUT"})
    with pytest.raises(StorageError, match="8 times it stayed unknown"):
        s3.storage().check_create()


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("fault", ["503", "lost", "reset"])
def test_a_buffer_is_made_through_faults_that_pass(
    s3: S3, client: str, fault: str
) -> None:
    s3.plan({"fault": fault, "method": "PUT", "share": 0.5, "times": 6})
    save(s3.url(), s3.options(client), with_cameras(2))
    s3.plan()
    assert len(loaded(s3.url(), s3.options(client))) == 2


@pytest.mark.parametrize("cache_bytes", [0, 60_000, 200_000, 1 << 24])
def test_tables_forgotten_within_a_batch_are_fetched_again(
    cache_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zarrbuf.sampling.field_tables.MIN_TABLE_BYTES", 1000)
    url, trajectories = memory_url(), with_states(5)
    save(url, None, trajectories)
    buffer = loaded(url, cache_bytes=cache_bytes)
    draws = generator(1234)
    for _ in range(6):
        assert_same_batch(buffer.sample(60), draw(trajectories, 60, draws))


def test_states_alone_are_kept_within_the_bound_and_fetched_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, trajectories = memory_url(), []
    for seed in range(6):
        states = torch.rand(200, 4, 250, generator=generator(seed))
        trajectories.append(
            Trajectory(
                actions=states[..., :2].clone(),
                rewards=states[..., :1].clone(),
                curr_obs={"states": states},
            )
        )
    save(url, None, trajectories)
    buffer = loaded(url, cache_bytes=1 << 20)
    draws = generator(1234)
    for _ in range(3):
        assert_same_batch(buffer.sample(50), draw(trajectories, 50, draws))
        assert buffer._reader.archives.num_bytes <= 1 << 20
    with loaded(url, prefetch_batches=1, cache_bytes=1 << 27) as ahead:
        asked = Asked(monkeypatch)
        ahead.sample(1)
        ahead.sample(1)
        ahead._prefetcher._thread.submit(lambda: None).result()
        before = len(asked.rounds)
        ahead.sample(1)
        assert ahead.get_stats(detailed=True)["last_requests"] == 0
        assert len(asked.rounds) >= before


END = """
import sys, time, json
from support.remote import with_cameras
from zarrbuf import TrajectoryReplayBuffer
url, options = json.loads(sys.argv[1])
buffer = TrajectoryReplayBuffer(
    auto_save=True, auto_save_path=url, storage_options=options
)
buffer.add_trajectories(with_cameras(1))
buffer.flush()
time.sleep(11)  # as long as aiohttp remembers a host
buffer.add_trajectories(with_cameras(20))
"""


@pytest.mark.long
def test_what_is_queued_when_a_script_ends_is_saved(s3: S3) -> None:
    options = s3.options("s3fs", endpoint_url=f"http://localhost:{s3.port}")
    import_path = {"PYTHONPATH": ":".join(sys.path)}
    arguments = json.dumps([s3.url(), options])
    command = [sys.executable, "-c", END, arguments]
    subprocess.run(command, check=True, env=import_path, timeout=200)
    assert len(loaded(s3.url(), s3.options())) == 21


def test_the_own_buffer_loaded_after_others_appended_lists_nothing_twice() -> None:
    url = memory_url()
    with TrajectoryReplayBuffer(auto_save=True, auto_save_path=url) as buffer:
        buffer.add_trajectories(with_cameras(1))
        buffer.flush()
        save(url, None, with_cameras(2))
        buffer.load_checkpoint(url)
        assert buffer._trajectory_id_list == [0, 1, 2]
        buffer.refresh()
        assert buffer._trajectory_id_list == [0, 1, 2]
        save(url, None, with_cameras(1))
        buffer.refresh()
        buffer.add_trajectories(with_cameras(1))
        buffer.flush()
        assert buffer._trajectory_id_list == [0, 1, 2, 3, 4]


def test_looking_for_news_leaves_errors_of_saving_to_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = memory_url()
    with TrajectoryReplayBuffer(
        auto_save=True, auto_save_path=url, refresh_interval_s=0.001
    ) as buffer:
        buffer.flush()
        with monkeypatch.context() as patch:
            patch.setattr(
                "zarrbuf.storage.object_store.ObjectStorage.create_all",
                lambda *_: (_ for _ in ()).throw(StorageError("no room")),
            )
            buffer.add_trajectories(with_cameras(1))
            threading.Event().wait(0.2)  # many looks
            with pytest.raises(StorageError, match="no room"):
                buffer.add_trajectories(with_cameras(1))


def test_a_batch_does_not_wait_for_what_has_not_begun() -> None:
    url, trajectories = memory_url(), with_cameras(3, num_steps=30)
    save(url, None, trajectories)
    gate = threading.Event()
    with loaded(url, prefetch_batches=2) as buffer:
        draws = generator(1234)
        buffer._prefetcher._thread.submit(gate.wait)
        for _ in range(5):
            assert_same_batch(buffer.sample(9), draw(trajectories, 9, draws))
        gate.set()


def test_requests_share_one_deadline(s3: S3) -> None:
    storage = s3.storage(deadline_s=1)
    s3.plan({"fault": "hang"})
    started = time.monotonic()
    assert storage.read_ranges([]) == []
    many = [Range("a", n, n + 1) for n in range(300)]
    with pytest.raises(StorageError):
        storage.read_ranges(many)
    assert time.monotonic() - started < 12


@pytest.mark.parametrize(
    "path",
    [
        "sftp://me:hunter2@host/x",
        "S3://AKIA:hunter2@bucket/x",
        "s3://AKIA:hunter2@bucket/x::y",
        "s3://AKIA:hunt/er2@bucket/x",
        "http://me:hunt/er2@host/x",
        "s3://[abc/x",
    ],
)
def test_no_message_about_a_url_shows_credentials(path: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        open_storage(path)
    assert "hunt" not in str(caught.value)


def test_credentials_in_options_are_not_shown() -> None:
    with pytest.raises(InvalidInputError, match="endpoint_url") as caught:
        open_storage("s3://b/x", {"endpoint_url": "http://me:hunter2@host"})
    assert "hunter2" not in str(caught.value)
    options = {
        "aws_secret_access_key": "one",
        "client_kwargs": {"aws_session_token": "two", "region_name": "r"},
        "headers": {"Authorization": "three"},
        "anon": False,
    }
    assert secrets_of(options) == ["one", "two", "three"]


@pytest.mark.parametrize("word", ["precondition", "not satisfiable", "404"])
def test_names_of_folders_are_no_answers(word: str) -> None:
    url = f"{memory_url()}/{word}-study"
    save(url, None, with_cameras(1))
    assert len(loaded(url)) == 1
    assert open_storage(url).read_existing(["none"]) == [None]


def test_whatever_ends_a_request_is_an_error_and_no_answer() -> None:
    class Panic(BaseException):
        pass

    class Broken:
        async_impl = True

        def __init__(self) -> None:
            self.loop = fsspec.asyn.get_loop()

        async def _pipe_file(self, *_: Any, **__: Any) -> None:
            raise Panic

    client = ObjectClient("memory", {}, client=None, deadline_s=1)
    client._file_systems[os.getpid()] = Broken()
    (done,) = client.run([Request("create", "a", data=b"x")], tries=1)
    assert isinstance(done, RequestError)
    assert done.fault is Fault.FAILED


def test_buffers_that_are_dropped_leave_no_thread() -> None:
    url = memory_url()
    save(url, None, with_cameras(2, num_steps=12))
    before = set(threading.enumerate())
    for _ in range(5):
        buffer = loaded(url, prefetch_batches=1, refresh_interval_s=0.01)
        for _ in range(3):
            buffer.sample(3)
        del buffer
    started = [
        one
        for one in set(threading.enumerate()) - before
        if one.name.startswith("zarrbuf-")
    ]
    assert {one.name for one in started} >= {"zarrbuf-prefetch", "zarrbuf-refresh"}
    gc.collect()
    for one in started:
        one.join(timeout=30)
        assert not one.is_alive(), one.name


def test_a_commit_that_is_refused_is_told_at_once(s3: S3, tmp_path: Path) -> None:
    options = s3.options("s3fs", deadline_s=30)
    with TrajectoryReplayBuffer(
        auto_save=True, auto_save_path=s3.url(), storage_options=options
    ) as buffer:
        s3.plan({"fault": "400", "part": "manifest/"})
        buffer.add_trajectories(with_cameras(1))
        started = time.monotonic()
        with pytest.raises(StorageError, match="ExpiredToken"):
            buffer.flush()
        assert time.monotonic() - started < 10
        s3.plan()
    assert len(loaded(s3.url(), options)) == 1
    assert s3.storage().create("x", b"") is Outcome.CREATED
