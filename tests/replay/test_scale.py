"""What is done often costs the same, however many trajectories are listed.

Counts, not seconds: which memory is shared, how often storage is asked.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import support.trajectories
from support.trajectories import MemoryStorage, make_trajectory

from zarrbuf import TrajectoryReplayBuffer
from zarrbuf.archive.spec import FieldSpec
from zarrbuf.common.uuids import new_uuid
from zarrbuf.errors import ConflictError, StorageError
from zarrbuf.manifest.actions import Action
from zarrbuf.manifest.commit_log import CommitLog, open_log, open_or_create_log
from zarrbuf.manifest.log_checkpoints import write_checkpoint, write_segments
from zarrbuf.manifest.row_table import RowTable
from zarrbuf.manifest.rows import Row, Rows
from zarrbuf.manifest.snapshot import Snapshot, schema_id
from zarrbuf.replay.live_set import LiveSet
from zarrbuf.sampling.index_map import plan_batch
from zarrbuf.storage.contract import Outcome
from zarrbuf.stores import in_memory as memory_store_module
from zarrbuf.stores.contract import NewTrajectory
from zarrbuf.stores.in_memory import MemoryStore
from zarrbuf.stores.logged import LogStore
from zarrbuf.trajectory.encoding import encode_trajectory

FEW, MANY = 10, 200_000
FIELDS = {"rewards": FieldSpec("float32", (), "step")}
SCHEMA_ID = schema_id(FIELDS)


def make_row(trajectory_id: int) -> Row:
    return support.trajectories.make_row(trajectory_id, schema=SCHEMA_ID)


def make_rows(count: int) -> Rows:
    """Make rows whose archives are not there."""
    some = Rows.of([make_row(n) for n in range(16)]).take(np.arange(count) % 16)
    fixed = some.fixed.copy()
    fixed["trajectory_id"] = np.arange(count)
    fixed["uuid"] = np.frombuffer(np.random.default_rng(0).bytes(16 * count), "V16")
    return Rows(fixed, some.texts)


class AskedStorage(MemoryStorage):
    """Counts what is asked of it, and loses races where it is told to."""

    def __init__(self) -> None:
        super().__init__(f"memory://scale-{uuid.uuid4().hex}")
        self.asked: Counter[str] = Counter()
        self.is_taken = False

    def read(self, name: str, *, max_bytes: int | None = None) -> bytes:
        self.asked["read"] += 1
        return super().read(name, max_bytes=max_bytes)

    def create(self, name: str, data: bytes) -> Outcome:
        self.asked["create"] += 1
        if self.is_taken:
            return Outcome.EXISTS
        return super().create(name, data)

    def list_names(self, directory: str) -> list[str]:
        self.asked["list"] += 1
        return super().list_names(directory)

    def exists(self, name: str) -> bool:
        self.asked["exists"] += 1
        return super().exists(name)


def make_log(count: int) -> CommitLog:
    """Open a log of `count` rows, from a checkpoint."""
    storage = AskedStorage()
    log = open_or_create_log(storage, config={"seed": 1})
    refs = write_segments(storage, make_rows(count))

    def build(now: Snapshot) -> list[Action]:
        meta = now.meta_action(schemas={SCHEMA_ID: FIELDS})
        return [meta, *(ref.to_action() for ref in refs)]

    log.commit(build, op="add")
    write_checkpoint(storage, log.snapshot)
    log = open_log(storage)
    assert log.snapshot.table.num_live == count
    return log


@pytest.fixture(scope="module")
def many() -> CommitLog:
    return make_log(MANY)


def add(log: CommitLog, count: int = 1) -> None:
    def build(now: Snapshot) -> list[Action]:
        first = now.next_trajectory_id
        return [make_row(first + n).to_action() for n in range(count)]

    log.commit(build, op="add")


def memory_of(table: RowTable) -> list[Any]:
    """Return every array of a table that is as long as its rows."""
    texts = table.rows.texts.values()
    return [table.rows.fixed, table.live, table.ends, *(t.numbers for t in texts)]


def is_shared(a: RowTable, b: RowTable) -> bool:
    pairs = zip(memory_of(a), memory_of(b), strict=True)
    return all(np.shares_memory(first, second) for first, second in pairs)


# ---------------------------------------------------------------------------- the table


def test_appending_copies_nothing() -> None:
    first = table = RowTable.of(make_rows(MANY))
    for number in range(50):
        table = table.appended(Rows.of([make_row(MANY + number)]))
        assert is_shared(first, table)
    assert len(first) == MANY
    assert len(table) == MANY + 50
    assert [t.num_distinct for t in table.rows.texts.values()] == [1, 1, 1]


def test_appending_one_by_one_copies_a_few_times() -> None:
    table, copies = RowTable.empty(), 0
    for number in range(2000):
        longer = table.appended(Rows.of([make_row(number)]))
        copies += number > 0 and not is_shared(table, longer)
        table = longer
    assert copies <= 6


def test_appending_after_a_removal_copies_nothing() -> None:
    table = RowTable.of(make_rows(MANY)).removed(np.arange(5, MANY, 7))
    longer = table.appended(Rows.of([make_row(MANY)]))
    assert is_shared(table, longer)


# ------------------------------------------------------------------------------ the log


def asked(log: CommitLog, work: str) -> Counter[str]:
    storage = log.storage
    assert isinstance(storage, AskedStorage)
    storage.asked.clear()
    if work == "refresh":
        log.refresh()
    else:
        add(log)
    return +storage.asked


def test_storage_is_asked_as_often_at_many_rows_as_at_few(many: CommitLog) -> None:
    few = make_log(FEW)
    for work in ("refresh", "add", "add", "refresh"):
        assert asked(many, work) == asked(few, work)
    assert sum(asked(many, "refresh").values()) == 1


def test_a_commit_and_what_others_commit_copy_nothing(many: CommitLog) -> None:
    other = open_log(many.storage)
    table, others = many.snapshot.table, other.snapshot.table
    add(many, 3)
    other.refresh()
    add(other, 2)
    many.refresh()
    assert is_shared(table, many.snapshot.table)
    assert is_shared(others, other.snapshot.table)


def test_a_commit_that_was_lost_copies_nothing(many: CommitLog) -> None:
    table = many.snapshot.table
    storage = many.storage
    assert isinstance(storage, AskedStorage)
    other = open_log(storage)
    add(other)
    many_refresh = many.refresh
    # Its own commit comes second, again and again.
    many.refresh = lambda **how: many.snapshot  # type: ignore[method-assign]
    with pytest.raises(ConflictError, match="other writers were first"):
        many.commit(
            lambda now: [make_row(now.next_trajectory_id).to_action()],
            op="add",
            deadline_s=0.0,
        )
    many.refresh = many_refresh  # type: ignore[method-assign]
    assert many.snapshot.table is table
    many.refresh()
    assert is_shared(table, many.snapshot.table)
    newest = many.snapshot.rows.row(len(many.snapshot.rows) - 1)
    assert newest == other.snapshot.rows.row(len(other.snapshot.rows) - 1)


def test_a_checkpoint_copies_nothing_if_nothing_was_removed(many: CommitLog) -> None:
    add(many)
    sealed = write_checkpoint(many.storage, many.snapshot)
    assert sealed.table is many.snapshot.table


def test_rows_of_a_checkpoint_are_no_objects() -> None:
    """A row is some bytes of a few arrays."""
    sizes = []
    for count in (FEW, FEW, 70_000):  # the first lets go of what others left
        storage = make_log(count).storage
        gc.collect()
        before = sys.getallocatedblocks()
        log = open_log(storage)
        gc.collect()
        sizes.append(sys.getallocatedblocks() - before)
        assert log.snapshot.table.num_live == count
    assert sizes[2] - sizes[1] < 2000


def test_what_landed_before_a_failure_is_not_added_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many rows others appended between the two tries."""
    log = make_log(FEW)
    one = encode_trajectory(make_trajectory(1, 1), uuid=new_uuid(), codec="lz4")
    items = [NewTrajectory(make_row(0), one) for _ in range(1003)]
    monkeypatch.setattr(LogStore, "_write", lambda self, item: None)
    store, other = LogStore(log), open_log(log.storage)
    commit = CommitLog.commit
    tries: list[str] = []

    def fail(self: CommitLog, *args: Any, **options: Any) -> Any:
        tries.append(self.writer)
        if len(tries) == 2:
            raise StorageError("the disk is full")
        return commit(self, *args, **options)

    monkeypatch.setattr(CommitLog, "commit", fail)
    with pytest.raises(StorageError, match="could not be committed"):
        store.append(items)
    for _ in range(5):
        add(other, 1000)
    store.append(items)
    rows = store.rows
    assert len(rows) == FEW + 5000 + 1003
    assert {item.row.uuid for item in items} <= set(store.listed.uuids())
    assert len(set(store.listed.uuids())) == len(rows)
    assert rows.trajectory_ids.tolist() == list(range(len(rows)))
    store.append(items[:0])


# ------------------------------------------------------------------------ what is drawn


def make_live_set(log: CommitLog, window_size: int) -> LiveSet:
    reader = TrajectoryReplayBuffer()._reader
    return LiveSet(
        LogStore(log), reader, window_size=window_size, max_queue_bytes=1 << 20
    )


@pytest.mark.parametrize("window_size", [0, 100])
def test_a_window_after_an_add_lies_where_the_one_before_it_lay(
    many: CommitLog, window_size: int
) -> None:
    live = make_live_set(many, window_size)
    drawn = live.drawn()
    add(open_log(many.storage))
    live.refresh()
    newer = live.drawn()
    assert newer is not drawn
    assert np.shares_memory(drawn.index.spans[0].ends, newer.index.spans[0].ends)
    assert len(newer) == (window_size or len(drawn) + 1)
    total = newer.index.total_samples
    plan = plan_batch(np.array([0, total - 1]), newer.index)
    last = newer.row(plan.groups[-1].position)
    assert last.trajectory_id == many.snapshot.next_trajectory_id - 1


def test_refreshing_without_news_changes_nothing(many: CommitLog) -> None:
    live = make_live_set(many, 0)
    drawn = live.drawn()
    storage = many.storage
    assert isinstance(storage, AskedStorage)
    storage.asked.clear()
    live.refresh()
    assert sum(storage.asked.values()) == 1
    assert live.drawn() is drawn


def test_no_step_takes_memory_for_all_rows(many: CommitLog) -> None:
    """Adding, saving, refreshing and drawing: nothing goes through all rows."""
    peaks = []
    for log in (make_log(FEW), many):
        live = make_live_set(log, 0)
        go_round(live)
        tracemalloc.start()
        for _ in range(3):
            go_round(live)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        live.writer.close()
    assert peaks[1] - peaks[0] < MANY // 2, "not a byte for each row"


def go_round(live: LiveSet) -> None:
    one = encode_trajectory(make_trajectory(2, 1), uuid=new_uuid(), codec="lz4")
    live.add([one])
    draw(live)
    live.writer.flush()
    live.refresh()
    draw(live)
    drawn = live.drawn()
    (store, listed) = drawn.parts[-1]
    assert store is live._store
    assert listed.table.rows.uuid(listed.stop - 1) == one.header.uuid


def draw(live: LiveSet) -> None:
    drawn = live.drawn()
    total = drawn.index.total_samples
    draws = np.random.default_rng(0).integers(0, total, 64)
    for group in plan_batch(draws, drawn.index).groups:
        drawn.store(group.position)
    assert [field.name for field in live.window().fields] == ["rewards"]


def test_a_window_in_memory_moves_on_without_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = encode_trajectory(make_trajectory(1, 1), uuid=new_uuid(), codec="lz4")
    tables: list[int] = []
    found = RowTable.of

    def counted(rows: Rows) -> RowTable:
        tables.append(len(rows))
        return found(rows)

    monkeypatch.setattr(memory_store_module.RowTable, "of", counted)
    store = MemoryStore()
    items = store._items

    def append(numbers: Sequence[int]) -> None:
        store.append([NewTrajectory(make_row(n), one) for n in numbers])

    append(range(2000))
    for number in range(2000, 8000):
        append([number])
        store.drop_first(1)
    assert store._items is items, "the archives are not copied to another dict"
    assert sum(tables) <= 2 * 6000, "a row is copied twice at most, on average"
    assert store.rows.trajectory_ids.tolist() == list(range(6000, 8000))


@pytest.mark.parametrize("is_removed", [False, True])
def test_a_buffer_over_many_rows_draws_and_appends(is_removed: bool) -> None:
    """A few archives, named by many rows."""
    path = f"memory://scale-{uuid.uuid4().hex}"
    with TrajectoryReplayBuffer(auto_save=True, auto_save_path=path) as buffer:
        buffer.add_trajectories([make_trajectory(n, 2, seed=n) for n in range(1, 5)])
    log = open_log(MemoryStorage(path))
    few = log.snapshot.rows
    more = few.take(np.arange(70_000) % len(few)).fixed.copy()
    more["trajectory_id"] = len(few) + np.arange(len(more))
    some = Rows(more, few.take(np.arange(70_000) % len(few)).texts)
    refs = write_segments(log.storage, some)
    log.commit(lambda now: [ref.to_action() for ref in refs], op="add")
    gone = log.snapshot.rows.trajectory_ids[3::5].tolist() if is_removed else []
    if gone:
        removal = {"action": "remove", "ids": gone, "reason": "test"}
        log.commit(lambda now: [removal], op="remove")
    write_checkpoint(log.storage, log.snapshot)
    with TrajectoryReplayBuffer(
        auto_save=True, auto_save_path=path, sample_window_size=0
    ) as buffer:
        assert len(buffer) == 70_004 - len(gone)
        batch = buffer.sample(64)
        assert batch["actions"].shape[0] == 64
        buffer.add_trajectories([make_trajectory(9, 2, seed=9)])
        assert len(buffer) == 70_005 - len(gone)
        assert buffer.load_trajectory(70_004).actions.shape[0] == 9
        assert len(buffer._trajectory_id_list) == len(buffer)
        before = buffer.total_samples
        buffer.flush()
        assert buffer.total_samples == before == log_samples(path)


def log_samples(path: str) -> int:
    """Add up the samples of the listed rows, row by row."""
    rows = open_log(MemoryStorage(path)).snapshot.rows
    return sum(t * b for t, b in zip(rows.column("T"), rows.column("B"), strict=True))
