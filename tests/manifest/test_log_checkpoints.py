"""Checkpoints save time only: without them, or broken, the log says the same."""

from __future__ import annotations

import dataclasses
import json
import random
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import support.trajectories
from hypothesis import given, settings
from hypothesis import strategies as st
from support.trajectories import MemoryStorage

from zarrbuf.archive.group import Archive
from zarrbuf.archive.spec import FieldSpec
from zarrbuf.common.uuids import new_uuid
from zarrbuf.errors import (
    FormatError,
    NotFoundError,
    StorageError,
    UnsupportedVersionError,
)
from zarrbuf.manifest import commit_log as commits
from zarrbuf.manifest import log_checkpoints as checkpoints
from zarrbuf.manifest.actions import Action, SegmentRef, seal, sha256_hex
from zarrbuf.manifest.commit_log import CommitLog, open_log, open_or_create_log
from zarrbuf.manifest.layout import checkpoint_path
from zarrbuf.manifest.log_checkpoints import (
    damaged_checkpoints,
    encode_checkpoint,
    parse_checkpoint,
    read_segment,
    write_checkpoint,
    write_segments,
)
from zarrbuf.manifest.rows import Row, Rows
from zarrbuf.manifest.segments import parse_segment
from zarrbuf.manifest.snapshot import Snapshot, schema_id
from zarrbuf.storage.contract import Outcome

INTERVAL = 4
PER_LEVEL = 3
FIELDS = {"rewards": FieldSpec("float32", (1,), "step")}
SCHEMA_ID = schema_id(FIELDS)


@pytest.fixture(autouse=True)
def small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "CHECKPOINT_INTERVAL", INTERVAL)
    monkeypatch.setattr(checkpoints, "SEGMENTS_PER_LEVEL", PER_LEVEL)


class CountingStorage(MemoryStorage):
    """Remembers what was asked of it, and fails where it is told to."""

    def __init__(self) -> None:
        super().__init__(f"memory://checkpoints-{uuid.uuid4().hex}")
        self.reads: list[str] = []
        self.created: dict[str, bytes] = {}
        self.answer: Callable[[str], Outcome | None] = lambda name: None

    def read(self, name: str, *, max_bytes: int | None = None) -> bytes:
        self.reads.append(name)
        return super().read(name, max_bytes=max_bytes)

    def create(self, name: str, data: bytes) -> Outcome:
        answer = self.answer(name)
        if answer is not None:
            return answer
        self.created[name] = data
        return super().create(name, data)


def nothing(storage: MemoryStorage) -> Snapshot:
    """Return what a log says before its first commit."""
    digest = sha256_hex(storage.read("zarrbuf.json"))
    return Snapshot(version=0, tip=digest, root=digest)


def make_row(trajectory_id: int) -> Row:
    return support.trajectories.make_row(
        trajectory_id,
        model_weights_id=f"w{trajectory_id}",
        num_steps=trajectory_id % 5 + 1,
        schema=SCHEMA_ID,
        tags={"n": trajectory_id} if trajectory_id % 3 else {},
    )


def start(storage: MemoryStorage) -> CommitLog:
    """Create a buffer whose one schema is declared, at version 2."""
    log = open_or_create_log(storage, config={"seed": 1})
    log.commit(lambda now: [now.meta_action(schemas={SCHEMA_ID: FIELDS})], op="meta")
    return log


def add(log: CommitLog, count: int = 1) -> None:
    def build(now: Snapshot) -> list[Action]:
        first = now.next_trajectory_id
        return [make_row(n).to_action() for n in range(first, first + count)]

    log.commit(build, op="add")


def remove(log: CommitLog, *ids: int) -> None:
    log.commit(
        lambda now: [{"action": "remove", "ids": list(ids), "reason": "t"}], op="remove"
    )


def facts(snapshot: Snapshot) -> dict[str, Any]:
    """Everything a snapshot says, free of how its rows came into memory."""
    rows = snapshot.rows
    names = [field.name for field in dataclasses.fields(snapshot)]
    hidden = ("table", "live", "segments")
    return {
        "rows": [rows.row(n) for n in range(len(rows))],
        **{name: getattr(snapshot, name) for name in names if name not in hidden},
    }


def replayed(storage: MemoryStorage, **when: int) -> dict[str, Any]:
    """Say what the commits alone say."""
    return facts(open_log(without_checkpoints(storage), **when).snapshot)


def without_checkpoints(storage: MemoryStorage) -> MemoryStorage:
    """Copy the log and nothing else."""
    copy = MemoryStorage(f"memory://replay-{uuid.uuid4().hex}")
    for name in ["zarrbuf.json", *names_in(storage, "manifest")]:
        copy.create(name, MemoryStorage.read(storage, name))
    return copy


def names_in(storage: MemoryStorage, directory: str) -> list[str]:
    return [f"{directory}/{name}" for name in storage.list_names(directory)]


def overwrite(storage: MemoryStorage, name: str, data: bytes) -> None:
    storage.delete(name)
    assert MemoryStorage.create(storage, name, data) is Outcome.CREATED


def random_history(storage: MemoryStorage, seed: int, commits_wanted: int) -> CommitLog:
    """Adds, removals, state and pins at random."""
    draw = random.Random(seed)
    log = start(storage)
    while log.snapshot.version < commits_wanted:
        ids = log.snapshot.rows.trajectory_ids.tolist()
        kind = draw.choice(["add", "add", "add", "remove", "other"])
        if kind == "add":
            add(log, draw.randint(1, 3))
        elif kind == "remove" and ids:
            remove(log, *draw.sample(ids, draw.randint(1, min(3, len(ids)))))
        else:
            state = {"action": "state", "state": {"n": draw.randint(0, 9)}}
            pin = {"action": "pin", "pin": new_uuid(), "version": 1, "by": "t"}
            config = log.snapshot.meta_action(config={"seed": draw.randint(0, 9)})
            log.commit(lambda now, a=(state, pin, config): a, op="other")  # type: ignore[misc]
    return log


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32), st.integers(3, 45))
def test_opening_with_and_without_checkpoints_is_the_same(
    seed: int, length: int
) -> None:
    storage = CountingStorage()
    log = random_history(storage, seed, length)
    opened = open_log(storage).snapshot
    assert facts(opened) == facts(log.snapshot) == replayed(storage)
    assert len(names_in(storage, "checkpoint")) == log.snapshot.version // INTERVAL
    assert damaged_checkpoints(storage, nothing(storage)) == []


@pytest.mark.parametrize("seed", range(2))
def test_time_travel_is_replay(seed: int) -> None:
    storage = CountingStorage()
    log = random_history(storage, seed, 22)
    plain = without_checkpoints(storage)
    times = []
    for version in range(log.snapshot.version + 1):
        then = open_log(storage, version=version).snapshot
        assert then.version == version
        assert facts(then) == facts(open_log(plain, version=version).snapshot)
        times.append(then.ts)
    assert times == sorted(set(times))
    for version, ts in enumerate(times):
        then = open_log(storage, at_ms=ts).snapshot
        assert then.version == version
        assert facts(then) == facts(open_log(plain, at_ms=ts).snapshot)
        if version and times[version - 1] < ts - 1:
            assert open_log(storage, at_ms=ts - 1).snapshot.version == version - 1
    assert open_log(storage, at_ms=times[-1] + 10**9).snapshot.version == version
    assert open_log(storage, at_ms=times[1] - 1).snapshot.version == 0


def test_each_row_is_written_at_most_three_times() -> None:
    storage = CountingStorage()
    log = start(storage)
    rounds = PER_LEVEL**3 + PER_LEVEL**2
    while log.snapshot.version < INTERVAL * rounds:
        add(log)
    written: Counter[str] = Counter()
    refs = [
        SegmentRef.parse(value, where="x")
        for name in names_in(storage, "checkpoint")
        for value in json.loads(storage.read(name).splitlines()[0])["segments"]
    ]
    for name, data in storage.created.items():
        if name.startswith("segment/"):
            attributes = Archive(data, name=name).attributes
            num_rows = attributes["zarrbuf_segment"]["rows"]
            rows = parse_segment(data, num_rows=num_rows, name=name)
            written.update(rows.uuid(n) for n in range(len(rows)))
    listed = log.snapshot.rows
    assert set(written) == {listed.uuid(n) for n in range(len(listed))}
    assert max(written.values()) == 3
    assert {ref.level for ref in refs} == {0, 1, 2}
    assert len(log.snapshot.segments) <= rounds // PER_LEVEL**2 + 2 * PER_LEVEL
    assert facts(open_log(storage).snapshot) == replayed(storage)


def test_opening_reads_few_objects() -> None:
    storage = CountingStorage()
    log = start(storage)
    while log.snapshot.version < 12 * INTERVAL:
        add(log)
    storage.reads.clear()
    opened = open_log(storage)
    assert opened.snapshot.version == 12 * INTERVAL
    kinds = Counter(name.partition("/")[0] for name in storage.reads)
    assert kinds == {
        "zarrbuf.json": 1,
        "checkpoint": 1,
        "segment": len(opened.snapshot.segments),
        # The commit that the checkpoint ends in; the first window, which is not there.
        "manifest": 1 + 8,
    }


def test_removed_rows_inside_segments_are_ranges_and_go_when_merged() -> None:
    storage = CountingStorage()
    log = start(storage)
    add(log, 10)
    add(log, 10)  # version 4: a segment of 20 rows
    (first,) = log.snapshot.segments
    assert (first.rows, first.removed) == (20, ())
    for ids in ((0, 1, 2), (7,), (8, 19), (3,)):
        remove(log, *ids)  # version 8: a checkpoint with the segment as it was
    (ref,) = log.snapshot.segments
    assert ref == dataclasses.replace(first, removed=((0, 4), (7, 9), (19, 20)))
    root = json.loads(storage.read(names_in(storage, "checkpoint")[-1]).splitlines()[0])
    assert root["segments"][0]["removed"] == [[0, 4], [7, 9], [19, 20]]
    assert (root["rows"], root["next_trajectory_id"]) == (13, 20)
    assert facts(open_log(storage).snapshot) == replayed(storage)
    for _ in range(8):
        add(log)  # version 16: the third segment, all three are merged
    (merged,) = log.snapshot.segments
    assert (merged.rows, merged.removed, merged.level) == (21, (), 1)
    assert facts(open_log(storage).snapshot) == replayed(storage)


def test_all_rows_removed_is_an_empty_buffer_whose_ids_go_on() -> None:
    storage = CountingStorage()
    log = start(storage)
    add(log, 3)
    remove(log, 0, 1, 2)
    assert log.snapshot.segments == ()
    for _ in range(INTERVAL * PER_LEVEL):
        add(log)
    remove(log, *range(3, 3 + INTERVAL * PER_LEVEL))
    while log.snapshot.version % INTERVAL:
        log.commit(lambda now: [{"action": "state", "state": {}}], op="state")
    opened = open_log(storage).snapshot
    assert len(opened.rows) == 0
    assert opened.next_trajectory_id == 3 + INTERVAL * PER_LEVEL
    assert facts(opened) == replayed(storage)


# ---------------------------------------------------------------------------- damage


@pytest.fixture
def written() -> tuple[CountingStorage, dict[str, Any]]:
    """A log of 22 versions whose checkpoints are at 4, 8, 12, 16 and 20."""
    storage = CountingStorage()
    log = start(storage)
    while log.snapshot.version < 22:
        add(log)
        if log.snapshot.version == 10:
            remove(log, 2, 3)
    return storage, replayed(storage)


def flip(data: bytes) -> bytes:
    return data[:50] + bytes([data[50] ^ 4]) + data[51:]


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda data: None,
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "flipped": flip,
    "longer": lambda data: data + b"\n",
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("directory", ["checkpoint", "segment"])
@pytest.mark.parametrize("which", ["newest", "all"])
def test_a_broken_checkpoint_is_skipped(
    written: tuple[CountingStorage, dict[str, Any]],
    directory: str,
    damage: str,
    which: str,
) -> None:
    storage, expected = written
    names = names_in(storage, directory)
    if which == "newest":
        newest = open_log(storage).snapshot.segments[-1].path
        names = [newest] if directory == "segment" else names[-1:]
    for name in names:
        data = DAMAGES[damage](MemoryStorage.read(storage, name))
        storage.delete(name)
        if data is not None:
            MemoryStorage.create(storage, name, data)
    assert facts(open_log(storage).snapshot) == expected
    assert facts(open_log(storage, version=9).snapshot) == replayed(storage, version=9)
    if directory == "segment" or damage != "missing":
        found = damaged_checkpoints(storage, nothing(storage))
        assert found
        assert all(directory in why for _, why in found)


def test_the_log_goes_on_after_its_checkpoints_broke(
    written: tuple[CountingStorage, dict[str, Any]],
) -> None:
    storage, _ = written
    for name in names_in(storage, "checkpoint"):
        overwrite(storage, name, flip(MemoryStorage.read(storage, name)))
    log = open_log(storage)
    add(log)
    add(log)  # version 24 writes a good one
    storage.reads.clear()
    assert facts(open_log(storage).snapshot) == replayed(storage)
    assert not any(name.endswith(f"{20:020d}.json") for name in storage.reads)


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": 99},
        {"samples": 1},
        {"version": 19},
        {"next_trajectory_id": 5},
        {"segments": []},
        {"tip": "x"},
        {"ts": -1},
        {"schemas": {"00" * 8: {}}},
        {"pins": {"x": 1}},
        {"bases": [1]},
        {"zarrbuf_checkpoint": 2},
        {"extra": 1},
    ],
    ids=str,
)
def test_a_sealed_checkpoint_that_lies_is_skipped(
    written: tuple[CountingStorage, dict[str, Any]], changes: dict[str, Any]
) -> None:
    storage, expected = written
    (name,) = [n for n in names_in(storage, "checkpoint") if f"{20:020d}" in n]
    root = json.loads(MemoryStorage.read(storage, name).splitlines()[0])
    overwrite(storage, name, seal([{**root, **changes}], actions=0))
    storage.reads.clear()
    assert facts(open_log(storage).snapshot) == expected
    assert f"checkpoint/{16:020d}" in " ".join(storage.reads), "the one before it"


def test_other_names_in_the_directory_are_no_checkpoints(
    written: tuple[CountingStorage, dict[str, Any]],
) -> None:
    storage, expected = written
    for name in ("x", "99.json", f"{99:020d}.json", f"{99:020d}.0123456g.json"):
        storage.create(f"checkpoint/{name}", b"junk")
    assert facts(open_log(storage).snapshot) == expected
    assert len(names_in(storage, "checkpoint")) == 5 + 4
    assert damaged_checkpoints(storage, nothing(storage)) == []


def test_a_checkpoint_of_the_future_is_skipped_until_its_commit_is_there(
    written: tuple[CountingStorage, dict[str, Any]],
) -> None:
    storage, _ = written
    assert open_log(storage, version=3).snapshot.version == 3
    with pytest.raises(NotFoundError, match="no version 23; the newest is 22"):
        open_log(storage, version=23)


@pytest.mark.parametrize("prefix", ["segment/", "checkpoint/"])
@pytest.mark.parametrize("fault", ["fails", "unknown"])
def test_a_checkpoint_that_cannot_be_written_costs_nothing(
    prefix: str, fault: str
) -> None:
    storage = CountingStorage()
    storage.deadline_s = 0.1
    log = start(storage)

    def answer(name: str) -> Outcome | None:
        if not name.startswith(prefix):
            return None
        if fault == "unknown":
            return Outcome.UNKNOWN
        raise StorageError("the disk is full")

    storage.answer = answer
    for _ in range(8):
        add(log)
    assert log.snapshot.version == 10
    assert names_in(storage, "checkpoint") == []
    storage.answer = lambda name: None
    assert facts(open_log(storage).snapshot) == facts(log.snapshot)
    add(log, 2)
    add(log, 2)
    assert len(names_in(storage, "checkpoint")) == 1
    storage.reads.clear()
    assert facts(open_log(storage).snapshot) == facts(log.snapshot) == replayed(storage)
    assert any(name.startswith("segment/") for name in storage.reads)


# ----------------------------------------------------------------------------- pieces


def test_segments_are_split_at_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "MAX_SEGMENT_ROWS", 4)
    storage = CountingStorage()
    rows = Rows.of([make_row(n) for n in range(10)])
    refs = write_segments(storage, rows, level=1)
    assert [(ref.rows, ref.level) for ref in refs] == [(4, 2), (4, 2), (2, 1)]
    again = Rows.concat([read_segment(storage, ref) for ref in refs])
    assert [again.row(n) for n in range(10)] == [rows.row(n) for n in range(10)]
    assert sum(ref.samples for ref in refs) == rows.total_samples
    assert write_segments(storage, Rows.of([])) == []


def test_a_segment_must_be_the_one_that_was_named() -> None:
    storage = CountingStorage()
    ref, other = (write_segments(storage, Rows.of([make_row(n)]))[0] for n in range(2))
    with pytest.raises(NotFoundError):
        read_segment(storage, dataclasses.replace(ref, path=f"segment/{'0' * 32}.zip"))
    for wrong in (
        dataclasses.replace(ref, path=other.path),
        dataclasses.replace(ref, sha256="00" * 32),
        dataclasses.replace(ref, size=ref.size + 1),
        dataclasses.replace(ref, rows=2),
        dataclasses.replace(ref, samples=ref.samples + 1),
    ):
        with pytest.raises(FormatError, match="segment/"):
            read_segment(storage, wrong)


def test_a_checkpoint_root_comes_back() -> None:
    storage = CountingStorage()
    log = start(storage)
    add(log, 3)
    sealed = write_checkpoint(storage, log.snapshot)
    assert facts(sealed) == facts(log.snapshot)
    root = parse_checkpoint(encode_checkpoint(sealed), version=3, where="x")
    assert root["segments"] == sealed.segments
    assert root["schemas"] == {SCHEMA_ID: FIELDS}
    assert (root["tip"], root["rows"]) == (log.snapshot.tip, 3)
    with pytest.raises(FormatError, match="not the checkpoint of version 4"):
        parse_checkpoint(encode_checkpoint(sealed), version=4, where="x")
    newer = seal([{"zarrbuf_checkpoint": 2}], actions=0)
    with pytest.raises(UnsupportedVersionError):
        parse_checkpoint(newer, version=3, where="x")


def test_two_checkpoints_of_one_version_have_two_names() -> None:
    assert checkpoint_path(7) != checkpoint_path(7)
    assert checkpoint_path(7).startswith(f"checkpoint/{7:020d}.")
