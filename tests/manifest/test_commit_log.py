"""The log: nothing acknowledged is lost, nothing is there twice, damage has a name."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import support.trajectories
from hypothesis import given, settings
from hypothesis import strategies as st
from support.trajectories import MemoryStorage

from zarrbuf.archive.spec import FieldSpec
from zarrbuf.errors import (
    CommitUnknownError,
    ConflictError,
    FormatError,
    InvalidInputError,
    NotFoundError,
    StorageError,
    UnsupportedVersionError,
)
from zarrbuf.manifest import commit_log as commits
from zarrbuf.manifest.actions import MAX_COMMIT_BYTES, Action, seal, sha256_hex
from zarrbuf.manifest.commit_log import (
    CommitLog,
    create_log,
    list_versions,
    open_log,
    open_or_create_log,
)
from zarrbuf.manifest.identity import encode_root, parse_root
from zarrbuf.manifest.layout import commit_path
from zarrbuf.manifest.rows import Row
from zarrbuf.manifest.snapshot import Snapshot, schema_id
from zarrbuf.storage.contract import Outcome, Storage
from zarrbuf.storage.local import LocalStorage
from zarrbuf.storage.resolve import open_storage

FIELDS = {"rewards": FieldSpec("float32", (1,), "step")}
SCHEMA_ID = schema_id(FIELDS)
PROCESSES = multiprocessing.get_context("fork")


def make_row(trajectory_id: int, name: str = "w") -> Row:
    return support.trajectories.make_row(
        trajectory_id, model_weights_id=name, schema=SCHEMA_ID
    )


def start(storage: Storage) -> CommitLog:
    """Create a buffer whose one schema is declared, at version 2."""
    log = open_or_create_log(storage, config={"seed": 1})
    log.commit(lambda now: [now.meta_action(schemas={SCHEMA_ID: FIELDS})], op="meta")
    return log


def add(log: CommitLog, name: str = "w", **options: Any) -> tuple[Snapshot, int]:
    def build(now: Snapshot) -> list[Action]:
        return [make_row(now.next_trajectory_id, name).to_action()]

    return log.commit(build, op="add", **options)


def names_of(snapshot: Snapshot) -> list[str]:
    rows = snapshot.rows
    return [rows.row(n).model_weights_id for n in range(len(rows))]


class ScriptedStorage(MemoryStorage):
    """Counts what is asked of it; creates commits as its script says."""

    def __init__(self, url: str | None = None) -> None:
        super().__init__(url or f"memory://commits-{uuid.uuid4().hex}")
        self.calls: list[tuple[str, str]] = []
        self.script: Callable[[str], str] = lambda name: "created"
        self.read_fails = 0

    def read(self, name: str, *, max_bytes: int | None = None) -> bytes:
        self.calls.append(("read", name))
        if self.read_fails and name.startswith("manifest/"):
            self.read_fails -= 1
            raise StorageError("the network is down")
        return super().read(name, max_bytes=max_bytes)

    def list_names(self, directory: str) -> list[str]:
        self.calls.append(("list", directory))
        return super().list_names(directory)

    def create(self, name: str, data: bytes) -> Outcome:
        self.calls.append(("create", name))
        step = self.script(name) if name.startswith("manifest/") else "created"
        if step == "fail before":
            raise StorageError("the connection was refused")
        if step == "unknown before":
            return Outcome.UNKNOWN
        outcome = super().create(name, data)
        if step == "fail after":
            raise StorageError("the connection was reset")
        if step == "unknown after":
            return Outcome.UNKNOWN
        return outcome


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(tmp_path / "buffer")
    return open_storage(f"memory://commits-{uuid.uuid4().hex}")


# ---------------------------------------------------------------------------- ordinary


def test_a_commit_is_seen_by_who_opens_and_who_refreshes(storage: Storage) -> None:
    log = start(storage)
    other = open_log(storage)
    snapshot, version = add(log, "first")
    assert (version, snapshot.version, len(snapshot.rows)) == (3, 3, 1)
    assert names_of(other.snapshot) == []
    assert (
        names_of(other.refresh()) == names_of(open_log(storage).snapshot) == ["first"]
    )
    assert other.refresh().tip == snapshot.tip == log.snapshot.tip
    assert snapshot.tip == sha256_hex(storage.read(commit_path(3)))
    assert list_versions(storage) == [1, 2, 3]
    assert other.uuid == log.uuid
    assert open_log(storage).snapshot.config == {"seed": 1}


def test_commits_name_the_one_before_and_time_goes_forward(storage: Storage) -> None:
    log = start(storage)
    for _ in range(5):
        add(log)
    prev, ts = sha256_hex(storage.read("zarrbuf.json")), 0
    txns = set()
    for version in list_versions(storage):
        data = storage.read(commit_path(version))
        header = json.loads(data.splitlines()[0])
        assert (header["version"], header["prev"]) == (version, prev)
        assert header["ts"] > ts
        prev, ts = sha256_hex(data), header["ts"]
        txns.add(header["txn"])
    assert len(txns) == 7


def test_a_clock_that_jumps_back_does_not_stop_the_log(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = start(storage)
    before = log.snapshot.ts
    monkeypatch.setattr(time, "time_ns", lambda: 5)
    assert add(log)[0].ts == before + 1
    assert add(log)[0].ts == before + 2
    assert open_log(storage).snapshot.ts == before + 2


def test_nothing_to_do_is_no_commit(storage: Storage) -> None:
    log = start(storage)
    snapshot, version = log.commit(lambda now: [], op="nothing")
    assert (snapshot.version, version) == (2, 2)
    assert list_versions(storage) == [1, 2]


def test_a_second_writer_numbers_anew(storage: Storage) -> None:
    one, two = start(storage), open_log(storage)
    add(one, "a")
    add(two, "b")
    add(one, "c")
    assert names_of(two.refresh()) == ["a", "b", "c"]
    assert two.snapshot.rows.trajectory_ids.tolist() == [0, 1, 2]


def test_a_lost_race_is_tried_again_with_new_numbers() -> None:
    storage = ScriptedStorage()
    log, rival = start(storage), open_log(storage)
    asked: list[int] = []

    def build(now: Snapshot) -> list[Action]:
        asked.append(now.next_trajectory_id)
        if len(asked) < 4:
            add(rival, f"rival {len(asked)}")
        return [make_row(now.next_trajectory_id, "mine").to_action()]

    snapshot, version = log.commit(build, op="add")
    assert asked == [0, 1, 2, 3]
    assert version == snapshot.version == 6
    assert names_of(snapshot) == ["rival 1", "rival 2", "rival 3", "mine"]


def test_a_race_that_is_always_lost_ends_at_the_deadline() -> None:
    storage = ScriptedStorage()
    log, rival = start(storage), open_log(storage)

    def build(now: Snapshot) -> list[Action]:
        add(rival, "rival")
        return [make_row(now.next_trajectory_id, "mine").to_action()]

    with pytest.raises(ConflictError, match="nothing was committed") as caught:
        log.commit(build, op="add", deadline_s=0.05)
    assert not isinstance(caught.value, CommitUnknownError)
    assert set(names_of(open_log(storage).snapshot)) == {"rival"}


def test_what_would_break_the_log_is_not_committed(storage: Storage) -> None:
    log = start(storage)
    add(log)
    remove = {"action": "remove", "ids": [7], "reason": ""}
    bad: list[list[Any]] = [
        [make_row(0).to_action()],
        [remove],
        [{**make_row(1).to_action(), "schema": "00" * 8}],
        [{**make_row(1).to_action(), "T": 0}],
        [{"action": "rename"}],
        [{"action": "state", "state": {"x": float("nan")}}],
        [{"action": "state", "state": {"x": object()}}],
        [{"action": "state", "state": {"x": 2**70}}],
        [{"action": "state", "state": {"x": "\ud800"}}],
        [{"action": "state", "state": {"x": "y" * MAX_COMMIT_BYTES}}],
    ]
    for actions in bad:
        with pytest.raises(InvalidInputError, match="nothing was committed"):
            log.commit(lambda now, a=actions: a, op="bad")  # type: ignore[misc]
        assert log.snapshot.version == 3
    assert list_versions(storage) == [1, 2, 3]
    assert len(open_log(storage).snapshot.rows) == 1
    assert add(log)[1] == 4


def test_refresh_with_nothing_new_reads_one_object() -> None:
    storage = ScriptedStorage()
    log = start(storage)
    for _ in range(20):
        add(log)
    other = open_log(storage)
    before = other.snapshot
    storage.calls.clear()
    assert other.refresh() is before
    assert storage.calls == [("read", commit_path(23))]


def test_a_commit_costs_one_read_and_one_creation() -> None:
    storage = ScriptedStorage()
    log = start(storage)
    for _ in range(20):
        add(log)
    storage.calls.clear()
    add(log)
    assert storage.calls == [("read", commit_path(23)), ("create", commit_path(23))]


def test_many_commits_are_read_in_growing_windows() -> None:
    storage = ScriptedStorage()
    log = start(storage)
    other = open_log(storage)
    for _ in range(40):
        add(log)
    storage.calls.clear()
    assert other.refresh().version == 42
    # 1, 2, 4, 8, 16 and 32 at once: less than twice what is there, and no listing.
    assert len(storage.calls) == 63
    assert {verb for verb, _ in storage.calls} == {"read"}
    assert other.snapshot.tip == log.snapshot.tip


def test_refresh_stops_where_it_is_told(storage: Storage) -> None:
    log = start(storage)
    other = open_log(storage)
    for _ in range(10):
        add(log)
    assert other.refresh(until=5).version == 5
    assert other.refresh(until=4).version == 5
    assert other.refresh(until=12, window=100).version == 12


def test_old_versions_stay_open(storage: Storage) -> None:
    log = start(storage)
    for number in range(5):
        add(log, str(number))
    for version in range(8):
        then = open_log(storage, version=version).snapshot
        assert then.version == version
        assert names_of(then) == [str(n) for n in range(version - 2)]
    for version in (8, 99):
        with pytest.raises(NotFoundError, match=f"no version {version}"):
            open_log(storage, version=version)
    with pytest.raises(InvalidInputError, match="version is -1"):
        open_log(storage, version=-1)


# ---------------------------------------------------------------- creation of a buffer


def config_of(**config: Any) -> Callable[[Snapshot], list[Action]]:
    return lambda now: [now.meta_action(config=config)]


def test_nothing_is_opened_where_nothing_is(storage: Storage) -> None:
    with pytest.raises(NotFoundError, match="holds no zarrbuf buffer"):
        open_log(storage)
    assert storage.list_names("") == []


def test_a_buffer_is_created_once(storage: Storage) -> None:
    log = create_log(storage, build=config_of(seed=1))
    with pytest.raises(ConflictError, match="open it instead"):
        create_log(storage, build=config_of(seed=2))
    again = open_or_create_log(storage, config={"seed": 3})
    assert again.uuid == log.uuid
    assert again.snapshot.config == {"seed": 1}
    assert list_versions(storage) == [1]


def test_an_answer_lost_at_creation_is_found_out() -> None:
    class Lossy(MemoryStorage):
        def create(self, name: str, data: bytes) -> Outcome:
            super().create(name, data)
            return Outcome.UNKNOWN

        def check_create(self) -> None:
            """Nothing is known of any creation, so this cannot be found out."""

    storage = Lossy(f"memory://commits-{uuid.uuid4().hex}")
    log = create_log(storage, build=config_of(seed=1))
    assert open_log(storage).uuid == log.uuid
    assert open_log(storage).snapshot.config == {"seed": 1}
    with pytest.raises(ConflictError):
        create_log(storage, build=config_of(seed=2))


def test_racing_creators_in_threads_end_in_one_buffer(storage: Storage) -> None:
    barrier = threading.Barrier(8)

    def race(number: int) -> str:
        barrier.wait()
        return open_or_create_log(storage, config={"seed": number}).uuid

    with ThreadPoolExecutor(8) as pool:
        uuids = set(pool.map(race, range(8)))
    assert uuids == {open_log(storage).uuid}
    assert list_versions(storage) == [1]


def create_in_process(path: str, barrier: Any, answers: Any) -> None:
    barrier.wait()
    answers.put(open_or_create_log(open_storage(path), config={}).uuid)


def test_racing_creators_in_processes_end_in_one_buffer(tmp_path: Path) -> None:
    for attempt in range(5):
        path = str(tmp_path / str(attempt))
        barrier, answers = PROCESSES.Barrier(4), PROCESSES.Queue()
        children = [
            PROCESSES.Process(target=create_in_process, args=(path, barrier, answers))
            for _ in range(4)
        ]
        for child in children:
            child.start()
        uuids = {answers.get(timeout=30) for _ in children}
        for child in children:
            child.join()
        assert uuids == {open_log(open_storage(path)).uuid}


def test_the_root_says_what_it_is(storage: Storage) -> None:
    root = parse_root(encode_root(storage), where="zarrbuf.json")
    assert root["commit"] == storage.commit_method
    assert (root["format"], root["spec"], root["features"]) == ("zarrbuf", 1, [])


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"spec": 2}, UnsupportedVersionError),
        ({"spec": 2, "new": "field"}, UnsupportedVersionError),
        ({"features": ["encryption"]}, UnsupportedVersionError),
        ({"commit": "telepathy"}, UnsupportedVersionError),
        ({"format": "zarr"}, FormatError),
        ({"new": "field"}, FormatError),
    ],
)
def test_a_root_of_another_kind_is_not_opened(
    changes: dict[str, Any], error: type[Exception]
) -> None:
    storage = ScriptedStorage()
    root = {**json.loads(encode_root(storage)), **changes}
    storage.create("zarrbuf.json", json.dumps(root).encode())
    with pytest.raises(error, match=r"zarrbuf\.json"):
        open_log(storage)


# ------------------------------------------------------------------------- lost answers


@pytest.mark.parametrize("step", ["fail after", "unknown after"])
def test_a_commit_whose_answer_was_lost_is_there_once(step: str) -> None:
    storage = ScriptedStorage()
    log = start(storage)
    storage.script = lambda name: step
    for number in range(5):
        assert add(log, str(number))[1] == 3 + number
    assert names_of(log.snapshot) == ["0", "1", "2", "3", "4"]
    assert names_of(open_log(storage).snapshot) == names_of(log.snapshot)


def test_a_refused_commit_is_a_storage_error_and_not_there() -> None:
    storage = ScriptedStorage()
    log = start(storage)
    storage.script = lambda name: "fail before"
    with pytest.raises(StorageError, match="connection was refused"):
        add(log)
    storage.script = lambda name: "created"
    assert list_versions(storage) == [1, 2]
    assert add(log)[1] == 3


def test_an_unclear_commit_is_tried_again_under_its_number() -> None:
    storage = ScriptedStorage()
    log = start(storage)
    steps = iter(["unknown before", "unknown before", "fail before", "created"])
    storage.script = lambda name: next(steps)
    assert add(log, "once")[1] == 3
    assert next(steps, None) is None
    assert names_of(open_log(storage).snapshot) == ["once"]
    assert [n for verb, n in storage.calls if verb == "create"][-4:] == (
        [commit_path(3)] * 4
    )


@pytest.mark.parametrize("step", ["unknown after", "fail after", "unknown before"])
def test_a_read_back_that_fails_decides_nothing(step: str) -> None:
    """It may have landed, so "surely not" would be a lie, and a retry a duplicate."""
    storage = ScriptedStorage()
    log = start(storage)
    steps = [step]

    def script(name: str) -> str:
        storage.read_fails = len(steps)
        return steps.pop() if steps else "created"

    storage.script = script
    assert add(log, "once")[1] == 3
    assert (steps, storage.read_fails) == ([], 0)
    assert names_of(open_log(storage).snapshot) == ["once"]


def test_what_stays_unknown_says_so_and_names_its_transaction() -> None:
    storage = ScriptedStorage()
    log = start(storage)
    storage.script = lambda name: "unknown before"
    with pytest.raises(
        CommitUnknownError, match=r"00003\.json.*txn [0-9a-f]{32}"
    ) as caught:
        add(log, deadline_s=0.05)
    unknown = pickle.loads(pickle.dumps(caught.value))
    assert (str(unknown), unknown.version) == (str(caught.value), 3)
    assert unknown.txn in str(unknown)
    storage.script = lambda name: "created"
    assert log.resolve(unknown) is None
    assert add(log)[1] == 3
    assert log.resolve(unknown) is None


def test_a_commit_that_landed_after_all_is_found_by_its_name() -> None:
    storage = ScriptedStorage()
    log = start(storage)

    def script(name: str) -> str:
        storage.read_fails = 10**9
        return "unknown after"

    storage.script = script
    with pytest.raises(CommitUnknownError) as caught:
        add(log, "once", deadline_s=0.05)
    storage.script = lambda name: "created"
    storage.read_fails = 0
    add(log, "rival")
    assert names_of(log.snapshot) == ["once", "rival"]
    assert log.resolve(caught.value) == 3


def test_a_lost_answer_while_a_rival_was_first_is_no_success() -> None:
    storage = ScriptedStorage()
    log, rival = start(storage), open_log(storage)
    fired: list[str] = []

    def script(name: str) -> str:
        if not fired:
            fired.append(name)
            add(rival, "rival")
            return "fail after"
        return "created"

    storage.script = script
    assert add(log, "mine")[1] == 4
    assert names_of(open_log(storage).snapshot) == ["rival", "mine"]


STEPS = ["created", "fail before", "fail after", "unknown before", "unknown after"]


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 2**32))
def test_random_faults_lose_nothing_and_double_nothing(seed: int) -> None:
    storage = ScriptedStorage()
    start(storage)
    draw = random.Random(seed)
    storage.script = lambda name: draw.choice(STEPS)
    acknowledged: list[str] = []
    refused: list[str] = []
    logs = [open_log(storage) for _ in range(3)]
    for number in range(15):
        log, name = draw.choice(logs), str(number)
        try:
            add(log, name)
            acknowledged.append(name)
        except StorageError:
            refused.append(name)
    found = names_of(open_log(storage).snapshot)
    assert found == acknowledged
    assert len(acknowledged) + len(refused) == 15
    assert open_log(storage).snapshot.rows.trajectory_ids.tolist() == list(
        range(len(found))
    )


def test_random_faults_under_racing_threads() -> None:
    storage = ScriptedStorage()
    start(storage)
    draw = random.Random(7)
    storage.script = lambda name: draw.choice(STEPS)

    def write(writer: int) -> list[str]:
        log = open_log(storage)
        done = []
        for number in range(12):
            name = f"{writer}-{number}"
            try:
                add(log, name)
            except StorageError:
                continue
            done.append(name)
        return done

    with ThreadPoolExecutor(4) as pool:
        acknowledged = [name for done in pool.map(write, range(4)) for name in done]
    snapshot = open_log(storage).snapshot
    assert Counter(names_of(snapshot)) == Counter(acknowledged)
    assert len(acknowledged) > 12
    assert snapshot.rows.trajectory_ids.tolist() == list(range(len(acknowledged)))


# ----------------------------------------------------------------- damaged and hostile


@pytest.fixture
def ten() -> tuple[Storage, dict[int, bytes]]:
    """A log of ten versions without checkpoints, and the bytes of its commits."""
    storage = ScriptedStorage()
    log = start(storage)
    while log.snapshot.version < 10:
        add(log)
    return storage, {n: storage.read(commit_path(n)) for n in list_versions(storage)}


def put(storage: Storage, version: int, data: bytes | None) -> None:
    storage.delete(commit_path(version))
    if data is not None:
        storage.create(commit_path(version), data)


@pytest.mark.parametrize("version", [1, 4, 9, 10])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:1],
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"\n",
        lambda data: bytes(len(data)),
        lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
        lambda data: data.replace(b'"ts":', b'"ts":1'),
    ],
    ids=["empty", "one byte", "no newline", "half", "longer", "zeros", "bit", "time"],
)
def test_a_damaged_commit_is_named(
    ten: tuple[Storage, dict[int, bytes]],
    version: int,
    damage: Callable[[bytes], bytes],
) -> None:
    storage, found = ten
    assert damage(found[version]) != found[version]
    put(storage, version, damage(found[version]))
    with pytest.raises(FormatError, match=f"{version:020d}.json"):
        open_log(storage)
    if version > 1:
        before = open_log(storage, version=version - 1)
        with pytest.raises(FormatError, match=f"{version:020d}.json"):
            before.refresh()
        with pytest.raises(FormatError, match=f"{version:020d}.json"):
            add(before)
    assert len(list_versions(storage)) == 10, "nothing was repaired or deleted"


@pytest.mark.parametrize("version", [1, 2, 5, 9])
def test_a_hole_is_named(ten: tuple[Storage, dict[int, bytes]], version: int) -> None:
    storage, _ = ten
    put(storage, version, None)
    with pytest.raises(FormatError, match=f"{version:020d}.json is missing"):
        open_log(storage)
    with pytest.raises(FormatError, match=f"{version:020d}.json is missing"):
        list_versions(storage)


def test_two_commits_changed_places(ten: tuple[Storage, dict[int, bytes]]) -> None:
    storage, found = ten
    put(storage, 5, found[6])
    put(storage, 6, found[5])
    with pytest.raises(FormatError, match=r"05\.json.*says it is version 6"):
        open_log(storage)


def test_a_commit_of_another_history_breaks_the_chain(
    ten: tuple[Storage, dict[int, bytes]],
) -> None:
    storage, found = ten
    header, *rest = [json.loads(line) for line in found[5].splitlines()[:-1]]
    put(storage, 5, seal([{**header, "op": "forged"}, *rest], actions=len(rest)))
    with pytest.raises(FormatError, match=r"06\.json: broken chain"):
        open_log(storage)
    put(storage, 5, seal([{**header, "prev": "00" * 32}, *rest], actions=len(rest)))
    with pytest.raises(FormatError, match=r"05\.json: broken chain"):
        open_log(storage)


def test_a_log_under_another_root_breaks_the_chain(
    ten: tuple[Storage, dict[int, bytes]],
) -> None:
    storage, _ = ten
    storage.delete("zarrbuf.json")
    storage.create("zarrbuf.json", encode_root(storage))
    with pytest.raises(FormatError, match=r"01\.json: broken chain"):
        open_log(storage)


def test_a_newer_commit_asks_for_an_update(
    ten: tuple[Storage, dict[int, bytes]],
) -> None:
    storage, found = ten
    header, *rest = [json.loads(line) for line in found[10].splitlines()[:-1]]
    put(storage, 10, seal([{**header, "zarrbuf": 2}, *rest], actions=len(rest)))
    with pytest.raises(UnsupportedVersionError, match=r"10\.json.*update zarrbuf"):
        open_log(storage)
    assert open_log(storage, version=9).snapshot.version == 9


def test_actions_that_contradict_what_stands_are_named(
    ten: tuple[Storage, dict[int, bytes]],
) -> None:
    storage, found = ten
    header = json.loads(found[10].splitlines()[0])
    for action, message in (
        (make_row(3).to_action(), "listed twice"),
        ({"action": "remove", "ids": [77], "reason": ""}, "not listed"),
        ({**make_row(9).to_action(), "schema": "00" * 8}, "not declared"),
    ):
        put(storage, 10, seal([header, action], actions=1))
        with pytest.raises(FormatError, match=f"commit 10.*{message}"):
            open_log(storage)


def test_a_commit_that_is_no_file_is_refused(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "buffer")
    start(storage)
    os.mkfifo(storage.root / commit_path(3))
    with pytest.raises(StorageError, match=r"03\.json"):
        open_log(storage)


def test_other_names_in_the_directory_are_no_commits(storage: Storage) -> None:
    log = start(storage)
    for name in ("3.json", f"{3:020d}.json.tmp", f"{3:021d}.json", "x"):
        storage.create(f"manifest/{name}", b"junk")
    add(log)
    assert list_versions(storage) == [1, 2, 3]
    assert open_log(storage).snapshot.version == 3


# ---------------------------------------------------------------------------- processes


def write_many(path: str, writer: int, count: int) -> None:
    log = open_log(open_storage(path))
    for number in range(count):
        add(log, f"{writer}-{number}")


def test_four_processes_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "buffer")
    storage = open_storage(path)
    start(storage)
    writers = [
        PROCESSES.Process(target=write_many, args=(path, n, 250)) for n in range(4)
    ]
    for writer in writers:
        writer.start()
    seen = open_log(storage)
    last = 0
    while any(writer.is_alive() for writer in writers):
        assert seen.refresh().version >= last
        last = seen.snapshot.version
        time.sleep(0.02)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    snapshot = open_log(storage).snapshot
    assert snapshot.version == 1002
    assert snapshot.rows.trajectory_ids.tolist() == list(range(1000))
    names = names_of(snapshot)
    assert set(names) == {f"{n}-{k}" for n in range(4) for k in range(250)}
    assert [n for n in names if n.startswith("2-")] == [f"2-{k}" for k in range(250)]
    assert list_versions(storage) == list(range(1, 1003))
    assert storage.list_names("tmp") == []
    assert len(storage.list_names("checkpoint")) == 3
    for name in storage.list_names("checkpoint"):
        storage.delete(f"checkpoint/{name}")
    assert names_of(open_log(storage).snapshot) == names


def write_until_killed(path: str, writer: int, diary: str) -> None:
    """Commit for ever; each name is written down once its commit is acknowledged."""
    log = open_log(open_storage(path))
    fd = os.open(diary, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    number = 0
    while True:
        add(log, f"{writer}-{number}")
        os.write(fd, f"{writer}-{number}\n".encode())
        number += 1


def test_killed_writers_leave_a_whole_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "CHECKPOINT_INTERVAL", 8)
    path, diary = str(tmp_path / "buffer"), tmp_path / "diary"
    storage = open_storage(path)
    start(storage)
    draw = random.Random(3)
    for kill in range(10):
        writers = [
            PROCESSES.Process(
                target=write_until_killed, args=(path, 2 * kill + n, str(diary))
            )
            for n in range(2)
        ]
        for writer in writers:
            writer.start()
        time.sleep(draw.uniform(0.02, 0.25))
        for writer in writers:
            assert writer.pid is not None
            os.kill(writer.pid, signal.SIGKILL)
            writer.join()
        snapshot = open_log(storage).snapshot  # would raise for a broken chain
        assert list_versions(storage) == list(range(1, snapshot.version + 1))
    lines = diary.read_text().split("\n")[:-1]
    found = Counter(names_of(snapshot))
    assert set(found.values()) == {1}
    assert set(lines) <= set(found), "acknowledged and lost"
    assert len(lines) > 10
    # A writer dies with at most one commit that landed and was not written down.
    assert len(found) - len(lines) <= 20
    assert snapshot.rows.trajectory_ids.tolist() == list(range(len(found)))
    assert add(open_log(storage), "after")[1] == snapshot.version + 1
