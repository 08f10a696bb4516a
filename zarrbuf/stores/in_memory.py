"""Trajectories in memory: of buffers that save nothing, or that are not saved yet.

Small ones are rows of blocks, as they are; others are archives. Forgets its oldest
trajectories as fast as it takes in new ones, and what was frozen before keeps them.
Knows no window and no thread.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Mapping, Sequence
from typing import Final, TypeGuard

import numpy as np

from zarrbuf.archive.spec import AnyArray, Schema
from zarrbuf.archive.zarr_json import CodecName
from zarrbuf.errors import NotFoundError
from zarrbuf.manifest.columns import GrowingArray
from zarrbuf.manifest.row_table import RowTable, Stretch
from zarrbuf.manifest.rows import IntArray, Row, Rows
from zarrbuf.manifest.snapshot import schema_id
from zarrbuf.stores.contract import NewTrajectory, TrajectoryStore, known_name
from zarrbuf.trajectory.archived import TrajectoryArchive
from zarrbuf.trajectory.encoding import (
    EncodedTrajectory,
    encode_trajectory,
)
from zarrbuf.trajectory.packing import (
    Block,
    InBlock,
    Layout,
    PackedRows,
    PackedTrajectory,
)
from zarrbuf.trajectory.trajectory import Trajectory

_MIN_FORGOTTEN: Final = 64
_MAX_UNLISTED: Final = 256
_PLACE: Final = np.dtype([("block", np.int64), ("start", np.int64)])
_NOWHERE: Final = -1


class MemoryStore(TrajectoryStore):
    """Trajectories in memory."""

    def __init__(self, *, codec: CodecName = "lz4") -> None:
        """Make an empty store.

        Args:
            codec: how chunks of archives are compressed that are made of blocks.
        """
        self._codec = codec
        self._items: dict[str, NewTrajectory | InBlock] = {}
        self._next_id = 0
        self._num_cut = 0  # rows that were before the table's first one
        self._num_blocks = 0  # made so far
        self._start_anew()

    def _start_anew(self) -> None:
        self._table = RowTable.empty()
        self._start = 0  # rows before it are forgotten
        # These follow the table's last row.
        self._unlisted: list[tuple[Row, NewTrajectory | InBlock]] = []
        self._places = GrowingArray.empty(_PLACE)  # one a row of the table
        self._blocks: Mapping[int, Block] = {}  # another one after each change
        self._numbers: dict[Block, int] = {}
        # By the identity of the fields, which the block keeps: their hash takes long.
        self._filling: dict[int, Block] = {}
        self._last: Block | None = None
        self._frozen: weakref.WeakSet[FrozenMemory] = weakref.WeakSet()

    @property
    def listed(self) -> Stretch:  # noqa: D102
        self._list_all()
        return Stretch(self._table, self._start, len(self._table))

    def __len__(self) -> int:
        """Return the number of rows listed."""
        return len(self._table) - self._start + len(self._unlisted)

    @property
    def next_trajectory_id(self) -> int:  # noqa: D102
        return self._next_id

    def keeps(self, uuid: str) -> bool:  # noqa: D102
        return isinstance(self._items.get(uuid), NewTrajectory)

    def schema(self, row: Row) -> Schema:  # noqa: D102
        item = self._item(row)
        if isinstance(item, InBlock):
            return item.layout.schema
        return item.encoded.header.schema

    def makes_archives(self, uuid: str) -> bool:  # noqa: D102
        return isinstance(self._items.get(uuid), InBlock)

    def encoded(self, row: Row) -> EncodedTrajectory:  # noqa: D102
        item = self._item(row)
        if isinstance(item, NewTrajectory):
            return item.encoded
        return encode_trajectory(item.unpack(), uuid=row.uuid, codec=self._codec)

    def open_archive(self, row: Row) -> TrajectoryArchive:  # noqa: D102
        return TrajectoryArchive(self.encoded(row).data, name=known_name(row))

    def read_trajectory(self, row: Row) -> Trajectory:  # noqa: D102
        item = self._item(row)
        if isinstance(item, InBlock):
            return item.unpack()
        return super().read_trajectory(row)

    def packed_rows(self, numbers: IntArray) -> PackedRows | None:  # noqa: D102
        if not self._blocks:
            return None
        places = self._places.values[numbers]
        distinct, which = np.unique(places["block"], return_inverse=True)
        num_nowhere = int(np.searchsorted(distinct, 0))
        blocks = [self._blocks[n] for n in distinct[num_nowhere:].tolist()]
        return PackedRows(blocks, which.reshape(-1) - num_nowhere, places["start"])

    def _item(self, row: Row) -> NewTrajectory | InBlock:
        item = self._items.get(row.uuid)
        if item is None:
            raise NotFoundError(f"{known_name(row)} is no longer in memory")
        return item

    def append(self, items: Sequence[NewTrajectory]) -> list[str]:  # noqa: D102
        self._items.update({item.row.uuid: item for item in items})
        self._unlisted += [(item.row, item) for item in items]
        self._list_all()
        return [item.row.uuid for item in items]

    def take(
        self,
        trajectories: Sequence[EncodedTrajectory | PackedTrajectory],
        *,
        trajectory_id: int,
    ) -> None:
        """Add trajectories with the ids from `trajectory_id` on, all or none."""
        taken: list[tuple[Row, NewTrajectory | InBlock]] = []
        try:
            for number, one in enumerate(trajectories, trajectory_id):
                if isinstance(one, EncodedTrajectory):
                    new = NewTrajectory.of(one, trajectory_id=number)
                    taken.append((new.row, new))
                else:
                    row = _row_of(one, number)
                    taken.append((row, self._block_for(one.layout).take(one)))
        except BaseException:
            for _, item in taken:
                self._leave_block(item)
            raise
        self._items.update({row.uuid: item for row, item in taken})
        self._unlisted += taken
        self._next_id = max(self._next_id, trajectory_id + len(taken))
        if len(self._unlisted) >= _MAX_UNLISTED:
            self._list_all()

    def _block_for(self, layout: Layout) -> Block:
        """Return a block with room for a trajectory."""
        before, block = self._last, self._filling.get(id(layout.fields))
        if block is None or not block.has_room(layout):
            full, block = block, Block.after(block, layout)
            self._filling[id(layout.fields)] = block
            self._blocks = {**self._blocks, self._num_blocks: block}
            self._numbers[block] = self._num_blocks
            self._num_blocks += 1
            self._forget_if_empty(full)
        self._last = block
        if before is not block:
            self._forget_if_empty(before)
        return block

    def _forget_if_empty(self, block: Block | None) -> None:
        """Forget a block that nothing lies in, but that which was filled last."""
        if block is None or block.num_kept or block is self._last:
            return
        number = self._numbers.pop(block, None)
        if number is None:
            return
        self._blocks = {n: one for n, one in self._blocks.items() if n != number}
        if self._filling.get(id(block.fields)) is block:
            del self._filling[id(block.fields)]

    def _list_all(self) -> None:
        """List what was taken and is not listed: it costs less for many at once."""
        if not self._unlisted:
            return
        places = [
            (self._numbers[item.block], item.start)
            if isinstance(item, InBlock)
            else (_NOWHERE, 0)
            for _, item in self._unlisted
        ]
        self._extend([row for row, _ in self._unlisted], np.array(places, _PLACE))
        self._unlisted = []

    def _extend(self, rows: Sequence[Row], places: AnyArray) -> None:
        table = self._table.appended(Rows.of(rows))
        self._places = self._places.extended(places)
        self._table = table
        self._next_id = max([self._next_id, *(row.trajectory_id + 1 for row in rows)])

    @property
    def mark(self) -> int:  # noqa: D102
        return self._num_cut + len(self._table) + len(self._unlisted)

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
        if stop > len(self._table):
            self._list_all()
        uuids = [self._table.rows.uuid(n) for n in range(self._start, stop)]
        dropped = {uuid: self._items[uuid] for uuid in uuids}
        # The items are shared, and another thread may look for one: so a copy has it
        # before it is gone here.
        for copy in self._frozen:
            copy.kept.update(dropped)
        for uuid in uuids:
            self._leave_block(self._items.pop(uuid))
        self._start = stop
        if stop > max(_MIN_FORGOTTEN, len(self._table) // 2):
            self._table = RowTable.of(self.listed.rows)
            places = self._places.values[stop:]
            self._places = GrowingArray.empty(_PLACE).extended(places)
            self._num_cut += stop
            self._start = 0
        return uuids

    def _leave_block(self, item: NewTrajectory | InBlock) -> None:
        if isinstance(item, InBlock):
            item.block.num_kept -= 1
            self._forget_if_empty(item.block)

    def discard(self, uuids: Collection[str]) -> None:
        """Forget some trajectories, those that are here; quick for the oldest."""
        here = {uuid for uuid in uuids if uuid in self._items}
        oldest = range(self._start, self._start + len(here))
        if all(self._table.rows.uuid(position) in here for position in oldest):
            self.drop_first(len(here))
            return
        kept = self.without(here)
        self._forget_all()
        self.append([item for item in kept._items.values() if _is_archive(item)])

    def without(self, uuids: Collection[str]) -> MemoryStore:
        """Return a store of the archives that are here less some."""
        store, gone = MemoryStore(codec=self._codec), set(uuids)
        kept = [item for uuid, item in self._items.items() if uuid not in gone]
        store.append([item for item in kept if _is_archive(item)])
        return store

    def _forget_all(self) -> None:
        self._num_cut = self.mark
        self._items = {}  # another one: frozen copies keep theirs
        self._start_anew()

    def remove_all(self, *, reason: str) -> None:  # noqa: D102
        self._forget_all()


class FrozenMemory(MemoryStore):
    """What a store in memory held at some time; is not appended to.

    Attributes:
        kept: uuid -> what the store has forgotten since.
    """

    def __init__(self, store: MemoryStore) -> None:
        """Hold what `store` holds now."""
        super().__init__(codec=store._codec)
        store._list_all()
        self._items, self._table = store._items, store._table
        self._places, self._blocks = store._places, store._blocks
        self._start, self._num_cut = store._start, store._num_cut
        self._next_id = store._next_id
        self.kept: dict[str, NewTrajectory | InBlock] = {}

    def _item(self, row: Row) -> NewTrajectory | InBlock:
        # Looked for in this order, since items go from the one to the other.
        return (
            self._items.get(row.uuid) or self.kept.get(row.uuid) or super()._item(row)
        )

    def frozen(self) -> MemoryStore:  # noqa: D102
        return self


def _is_archive(item: NewTrajectory | InBlock) -> TypeGuard[NewTrajectory]:
    return isinstance(item, NewTrajectory)


def _row_of(one: PackedTrajectory, trajectory_id: int) -> Row:
    """Return the row of a trajectory that is no archive yet."""
    layout = one.layout
    return Row(
        uuid=one.uuid,
        trajectory_id=trajectory_id,
        model_weights_id=one.model_weights_id,
        num_steps=layout.num_steps,
        num_envs=layout.num_envs,
        shape=layout.shape,
        max_episode_length=one.max_episode_length,
        size=0,
        crc=0,
        schema=_schema_id_of(layout),
    )


_SCHEMA_IDS: Final[weakref.WeakKeyDictionary[Layout, str]] = weakref.WeakKeyDictionary()


def _schema_id_of(layout: Layout) -> str:
    found = _SCHEMA_IDS.get(layout)
    if found is None:
        found = _SCHEMA_IDS[layout] = schema_id(layout.schema)
    return found
