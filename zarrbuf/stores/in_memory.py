"""Archives in memory: of buffers that save nothing, or that are not saved yet.

Forgets its oldest trajectories as fast as it takes in new ones, and what was frozen
before keeps them. Knows no window and no thread.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Sequence
from typing import Final

from zarrbuf.archive.spec import Schema
from zarrbuf.errors import NotFoundError
from zarrbuf.manifest.row_table import RowTable, Stretch
from zarrbuf.manifest.rows import Row, Rows
from zarrbuf.stores.contract import NewTrajectory, TrajectoryStore, known_name
from zarrbuf.trajectory.archived import TrajectoryArchive

_MIN_FORGOTTEN: Final = 64


class MemoryStore(TrajectoryStore):
    """Archives in memory."""

    def __init__(self) -> None:
        """Make an empty store."""
        self._items: dict[str, NewTrajectory] = {}
        self._table = RowTable.empty()
        self._start = 0  # rows before it are forgotten
        self._num_cut = 0  # rows that were before the table's first one
        self._next_id = 0
        self._frozen: weakref.WeakSet[FrozenMemory] = weakref.WeakSet()

    @property
    def listed(self) -> Stretch:  # noqa: D102
        return Stretch(self._table, self._start, len(self._table))

    @property
    def next_trajectory_id(self) -> int:  # noqa: D102
        return self._next_id

    def keeps(self, uuid: str) -> bool:  # noqa: D102
        return uuid in self._items

    def schema(self, row: Row) -> Schema:  # noqa: D102
        return self._item(row).encoded.header.schema

    def open_archive(self, row: Row) -> TrajectoryArchive:  # noqa: D102
        return TrajectoryArchive(self._item(row).encoded.data, name=known_name(row))

    def _item(self, row: Row) -> NewTrajectory:
        item = self._items.get(row.uuid)
        if item is None:
            raise NotFoundError(f"{known_name(row)} is no longer in memory")
        return item

    def append(self, items: Sequence[NewTrajectory]) -> None:  # noqa: D102
        self._items.update({item.row.uuid: item for item in items})
        self._table = self._table.appended(Rows.of([item.row for item in items]))
        self._next_id = max(
            [self._next_id, *(item.row.trajectory_id + 1 for item in items)]
        )

    @property
    def mark(self) -> int:  # noqa: D102
        return self._num_cut + len(self._table)

    def after(self, listed: Stretch, mark: int) -> Stretch:  # noqa: D102
        start = min(max(listed.start, mark - self._num_cut), listed.stop)
        return Stretch(listed.table, start, listed.stop)

    def frozen(self) -> MemoryStore:  # noqa: D102
        copy = FrozenMemory(self)
        self._frozen.add(copy)
        return copy

    def drop_first(self, count: int) -> list[str]:
        """Forget the oldest `count` trajectories; frozen copies keep them.

        Returns:
            Their uuids.
        """
        stop = self._start + count
        uuids = [self._table.rows.uuid(n) for n in range(self._start, stop)]
        dropped = {uuid: self._items[uuid] for uuid in uuids}
        # The items are shared, and another thread may look for one: so a copy has it
        # before it is gone here.
        for copy in self._frozen:
            copy.kept.update(dropped)
        for uuid in uuids:
            del self._items[uuid]
        self._start = stop
        if stop > max(_MIN_FORGOTTEN, len(self._table) // 2):
            self._table = RowTable.of(self.listed.rows)
            self._num_cut += stop
            self._start = 0
        return uuids

    def discard(self, uuids: Collection[str]) -> None:
        """Forget some trajectories, those that are here; quick for the oldest."""
        here = {uuid for uuid in uuids if uuid in self._items}
        oldest = range(self._start, self._start + len(here))
        if all(self._table.rows.uuid(position) in here for position in oldest):
            self.drop_first(len(here))
            return
        kept = self.without(here)
        self._start_anew()
        self.append(list(kept._items.values()))

    def without(self, uuids: Collection[str]) -> MemoryStore:
        """Return a store of what is here less some trajectories."""
        store, gone = MemoryStore(), set(uuids)
        store.append([i for uuid, i in self._items.items() if uuid not in gone])
        return store

    def _start_anew(self) -> None:
        self._num_cut = self.mark
        self._items = {}  # another one: frozen copies keep theirs
        self._table = RowTable.empty()
        self._start = 0
        self._frozen = weakref.WeakSet()

    def remove_all(self, *, reason: str) -> None:  # noqa: D102
        self._start_anew()


class FrozenMemory(MemoryStore):
    """What a store in memory held at some time; is not appended to.

    Attributes:
        kept: uuid -> what the store has forgotten since.
    """

    def __init__(self, store: MemoryStore) -> None:
        """Hold what `store` holds now."""
        super().__init__()
        self._items, self._table = store._items, store._table
        self._start, self._num_cut = store._start, store._num_cut
        self._next_id = store._next_id
        self.kept: dict[str, NewTrajectory] = {}

    def _item(self, row: Row) -> NewTrajectory:
        # Looked for in this order, since items go from the one to the other.
        return (
            self._items.get(row.uuid) or self.kept.get(row.uuid) or super()._item(row)
        )

    def frozen(self) -> MemoryStore:  # noqa: D102
        return self
