"""Any order of additions, merges, splits, removals and vacuums, with crashes between.

A plain model says what each buffer lists. After every step a fresh reader opens every
buffer and reads every archive that is listed: nothing that is named is ever missing.
A crash is the end of all calls of storages, clean-up included, until the next step.
"""

from __future__ import annotations

import functools
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from support.clock import put_forward
from support.numbered import numbered

from zarrbuf import merge, prune, remove, split, vacuum
from zarrbuf.common.uuids import new_uuid
from zarrbuf.errors import NotFoundError
from zarrbuf.storage.local import LocalStorage
from zarrbuf.storage.object_store import ObjectStorage
from zarrbuf.storage.resolve import open_storage
from zarrbuf.stores.contract import NewTrajectory
from zarrbuf.stores.logged import LogStore
from zarrbuf.trajectory.encoding import encode_trajectory

CALLS = ("create", "delete", "create_all", "link_from", "read", "read_existing")
Listed = list[int]


class CrashError(BaseException):
    """The process is gone."""


class Power:
    """Lets so many calls of storages happen, and none after that."""

    def __init__(self) -> None:
        self.left: int | None = None

    def use(self) -> None:
        if self.left is None:
            return
        if self.left <= 0:
            raise CrashError
        self.left -= 1


POWER = Power()


@contextmanager
def wired() -> Iterator[None]:
    """Have every call of a storage use power, before and after it is done."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in (LocalStorage, ObjectStorage):
            for name in CALLS:
                patch.setattr(kind, name, _wire(getattr(kind, name)))
        yield


def _wire(call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        POWER.use()
        found = call(*args, **kwargs)
        POWER.use()
        return found

    return wrapped


class Curation(RuleBasedStateMachine):
    """Buffers beside each other, and the plain lists of what they hold."""

    mode_names = ("reference", "reference", "copy", "move")
    hours = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.root = self.make_root()
        self.model: dict[str, list[Listed]] = {}
        """Buffer -> what it may list: one list, or two after a crash."""
        self.next_name = 0
        self.next_number = 0
        self.patch = pytest.MonkeyPatch()
        put_forward(self.patch, lambda: self.hours)
        self.wires = wired()
        self.wires.__enter__()

    def make_root(self) -> str:
        return f"memory://model-{uuid.uuid4().hex}/x"

    def teardown(self) -> None:
        POWER.left = None
        self.wires.__exit__(None, None, None)
        self.patch.undo()

    # Helpers.

    def url(self, name: str) -> str:
        return f"{self.root}/{name}"

    def fresh_name(self) -> str:
        self.next_name += 1
        return f"b{self.next_name}"

    def settle(self, name: str) -> Listed:
        """Look which of the lists that are possible it is; there is one from now on."""
        found = self.read(name)
        assert found in self.model[name], (name, found, self.model[name])
        self.model[name] = [found]
        return found

    def read(self, name: str) -> Listed:
        """Open a buffer anew and read every trajectory that it lists."""
        try:
            store = LogStore.open(open_storage(self.url(name)))
        except NotFoundError:
            return []
        rows = store.rows
        found = []
        for position in range(len(rows)):
            archive = store.open_archive(rows.row(position))
            archive.check()
            rewards = store.read_trajectory(rows.row(position)).rewards
            assert rewards is not None
            found.append(int(rewards[0, 0]))
        return found

    def attempt(
        self, power: int | None, work: Callable[[], Any], after: dict[str, Listed]
    ) -> None:
        """Do some work that changes buffers, or crash in it."""
        POWER.left = power
        try:
            work()
        except CrashError:
            for name, listed in after.items():
                before = self.model.get(name, [[]])
                self.model[name] = [*before, listed]
        else:
            self.model.update({name: [listed] for name, listed in after.items()})
        finally:
            POWER.left = None

    def exists(self, name: str) -> bool:
        return open_storage(self.url(name)).exists("zarrbuf.json")

    def pick(self, data: st.DataObject) -> str | None:
        names = [name for name in self.model if self.settle(name)]
        return data.draw(st.sampled_from(names)) if names else None

    # Steps. The power is drawn so that many of them are crashes.

    power = st.none() | st.none() | st.integers(0, 60)

    @rule(data=st.data(), count=st.integers(1, 3), power=power)
    def add(self, data: st.DataObject, count: int, power: int | None) -> None:
        names = [*self.model, self.fresh_name()]
        name = data.draw(st.sampled_from(names))
        before = self.settle(name) if name in self.model else []
        numbers = range(self.next_number, self.next_number + count)
        self.next_number += count

        def work() -> None:
            storage = open_storage(self.url(name))
            store = LogStore.open_or_create(storage, seed=1, codec="lz4")
            items = []
            for trajectory in numbered(numbers[0], count):
                encoded = encode_trajectory(trajectory, uuid=new_uuid(), codec="lz4")
                items.append(NewTrajectory.of(encoded, trajectory_id=0))
            store.append(items)

        self.attempt(power, work, {name: [*before, *numbers]})

    @rule(data=st.data(), power=power)
    def merge_some(self, data: st.DataObject, power: int | None) -> None:
        names = [name for name in self.model if self.settle(name)]
        if not names:
            return
        sources = data.draw(
            st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)
        )
        mode = data.draw(st.sampled_from(self.mode_names))
        target = self.fresh_name()
        parts = []
        for order, name in enumerate(sources):
            store = LogStore.open(open_storage(self.url(name)))
            ids = store.rows.trajectory_ids.tolist()
            listed = self.model[name][0]
            parts += [(n, order, v) for n, v in zip(ids, listed, strict=True)]
        after = {target: [number for _, _, number in sorted(parts)]}
        if mode == "move":
            after.update({name: [] for name in sources})
        urls = [self.url(name) for name in sources]
        self.attempt(power, lambda: merge(urls, self.url(target), mode=mode), after)

    @rule(data=st.data(), power=power)
    def split_one(self, data: st.DataObject, power: int | None) -> None:
        name = self.pick(data)
        if name is None:
            return
        listed = self.model[name][0]
        count = data.draw(st.integers(1, len(listed)))
        mode = data.draw(st.sampled_from(self.mode_names))
        target = self.fresh_name()
        after = {target: listed[:count]}
        if mode == "move":
            after[name] = listed[count:]
        source, destination = self.url(name), self.url(target)
        self.attempt(
            power, lambda: split(source, [destination], count=count, mode=mode), after
        )

    @rule(data=st.data(), power=power)
    def remove_some(self, data: st.DataObject, power: int | None) -> None:
        name = self.pick(data)
        if name is None:
            return
        listed = self.model[name][0]
        ids = LogStore.open(open_storage(self.url(name))).rows.trajectory_ids.tolist()
        gone = data.draw(st.sets(st.sampled_from(ids), min_size=1))
        left = [n for i, n in zip(ids, listed, strict=True) if i not in gone]
        self.attempt(power, lambda: remove(self.url(name), sorted(gone)), {name: left})

    @rule(data=st.data(), keep=st.integers(1, 4), power=power)
    def prune_one(self, data: st.DataObject, keep: int, power: int | None) -> None:
        name = self.pick(data)
        if name is None:
            return
        left = self.model[name][0][-keep:]
        self.attempt(
            power, lambda: prune(self.url(name), keep_newest=keep), {name: left}
        )

    @rule(waits=st.booleans(), power=power)
    def vacuum_all(self, waits: bool, power: int | None) -> None:
        """Perhaps so late that no grace protects what is there."""
        self.hours += 48 * waits
        for name in self.model:
            if self.settle(name) is not None and self.exists(name):
                work = functools.partial(vacuum, self.url(name), delete=True)
                self.attempt(power, work, {})

    @invariant()
    def nothing_that_is_named_is_missing(self) -> None:
        for name in self.model:
            self.settle(name)


class LocalCuration(Curation):
    """The same in directories, where files may be linked."""

    mode_names = ("reference", "reference", "hardlink", "copy", "move")

    def make_root(self) -> str:
        self.directory = tempfile.TemporaryDirectory()
        return str(Path(self.directory.name) / "x")

    def teardown(self) -> None:
        super().teardown()
        self.directory.cleanup()


QUICK = settings(
    max_examples=10,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestCuration = Curation.TestCase
TestCuration.settings = QUICK
TestLocalCuration = LocalCuration.TestCase
TestLocalCuration.settings = QUICK


@pytest.mark.long
@pytest.mark.parametrize("kind", [Curation, LocalCuration])
def test_many_orders(kind: type[Curation]) -> None:
    many = settings(QUICK, max_examples=150, stateful_step_count=40)
    run_state_machine_as_test(kind, settings=many)
