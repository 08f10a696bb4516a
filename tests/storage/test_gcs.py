"""Google's store, as an emulator of it has it: what is its own beside the contract.

The emulator ignores the condition that creations depend on; the proxy in front of it
looks after that. So these show what we ask for, and how we take the answers.
"""

from __future__ import annotations

import pytest
from support.remote import loaded, save, with_cameras
from support.s3 import GCS

from zarrbuf.errors import NotFoundError, StorageError, StorageRefusedError
from zarrbuf.storage.contract import Outcome, Range

NAME = "manifest/00000000000000000001.json"


def test_a_buffer_is_written_and_sampled(gcs: GCS) -> None:
    save(gcs.url(), gcs.options(), with_cameras(3))
    save(gcs.url(), gcs.options(), with_cameras(2))
    buffer = loaded(gcs.url(), gcs.options())
    assert len(buffer) == 5
    assert buffer.sample(7)["actions"].shape[0] == 7
    buffer.close()


@pytest.mark.parametrize("fault", ["503", "reset", "lost"])
def test_what_may_pass_is_asked_again(gcs: GCS, fault: str) -> None:
    storage = gcs.storage()
    gcs.plan({"fault": fault, "times": 1, "method": "POST"})
    storage.ensure("a", b"0123456789")
    gcs.plan({"fault": fault, "times": 1, "method": "GET"})
    assert storage.read_ranges([Range("a", 2, 5)]) == [b"234"]


@pytest.mark.parametrize("fault", ["503", "reset", "lost"])
def test_answers_that_are_lost_lose_no_trajectory_and_add_none_twice(
    gcs: GCS, fault: str
) -> None:
    save(gcs.url(), gcs.options(), with_cameras(1))
    gcs.plan({"fault": fault, "times": 2, "method": "POST"})
    save(gcs.url(), gcs.options(), with_cameras(1))
    assert len(loaded(gcs.url(), gcs.options())) == 2


def test_a_name_is_taken_once_whatever_becomes_of_the_answer(gcs: GCS) -> None:
    storage = gcs.storage()
    gcs.plan({"fault": "lost", "times": 1, "method": "POST"})
    assert storage.create(NAME, b"mine") in (Outcome.EXISTS, Outcome.UNKNOWN)
    assert storage.create(NAME, b"other") is Outcome.EXISTS
    assert storage.read(NAME) == b"mine"


def test_large_objects_are_written_and_read_whole(gcs: GCS) -> None:
    data = bytes(range(256)) * (52 << 12)  # 52 MiB; a part has 50
    storage = gcs.storage()
    storage.ensure("a", data)
    assert storage.read("a") == data


@pytest.mark.parametrize("status", ["401", "403"])
def test_who_may_not_is_told_at_once(gcs: GCS, status: str) -> None:
    storage = gcs.storage(deadline_s=30)
    gcs.plan({"fault": status})
    with pytest.raises(StorageError, match=rf"cannot read {gcs.url()}/a: ") as caught:
        storage.read("a")
    if status == "403":  # gcsfs itself asks again after a 401, with a new token
        assert isinstance(caught.value, StorageRefusedError)


def test_what_is_not_there_is_named(gcs: GCS) -> None:
    with pytest.raises(NotFoundError, match=f"{gcs.url()}/a does not exist"):
        gcs.storage().read("a")
    lost = GCS(gcs.port, gcs.direct_port, "no-such-bucket")
    with pytest.raises(NotFoundError, match="gs://no-such-bucket/buffer"):
        loaded(lost.url(), lost.options())
