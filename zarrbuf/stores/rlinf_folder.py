"""A folder of RLinf's files as a store, so that it is sampled like any other.

A file is read and encoded in memory when it is first touched; the reader keeps the
archive within its bound. The files themselves are the business of `rlinf.files`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from zarrbuf.archive.spec import Schema
from zarrbuf.errors import (
    FormatError,
    InvalidInputError,
    NotFoundError,
    StorageError,
)
from zarrbuf.manifest.row_table import RowTable, Stretch
from zarrbuf.manifest.rows import Row, Rows
from zarrbuf.manifest.selection import partition
from zarrbuf.rlinf.files import (
    encode_trajectory_file,
    read_trajectory_file,
    replace_file,
)
from zarrbuf.rlinf.index import (
    INDEX_NAME,
    METADATA_NAME,
    FileFormat,
    RlinfIndex,
    encode_index,
    is_rlinf_folder,
    list_files,
    missing_files,
    read_index,
    trajectory_name,
)
from zarrbuf.stores.contract import NewTrajectory, Portion, TrajectoryStore
from zarrbuf.trajectory.archived import TrajectoryArchive
from zarrbuf.trajectory.encoding import encode_trajectory, trajectory_shape
from zarrbuf.trajectory.trajectory import Trajectory, decode_trajectory

_LOG: Final = logging.getLogger("zarrbuf")


class RlinfStore(TrajectoryStore):
    """A folder of RLinf's files.

    One process appends to a folder at a time, as with RLinf. The two JSON files are
    replaced as a whole, after the trajectories they name are durable.

    Attributes:
        folder: where it lies.
        index: what its JSON files say.
    """

    def __init__(self, path: str | os.PathLike[str], index: RlinfIndex) -> None:
        """Use `open` or `open_or_create` instead."""
        self.folder = Path(path)
        self.index = index
        self.suffix = index.file_format
        self._schemas: dict[str, Schema] = {}
        self._table = RowTable.of(Rows.of(index.rows))
        # By uuid, never forgotten: windows go on reading what was taken off the list.
        self._paths = {
            row.uuid: self.folder / index.names[row.trajectory_id] for row in index.rows
        }

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RlinfStore:
        """Open an existing folder.

        Raises:
            NotFoundError: if it is no folder of RLinf's, or a file is missing.
            FormatError: if its JSON files are damaged.
        """
        if not is_rlinf_folder(path):
            raise NotFoundError(f"{path} holds no replay buffer of RLinf")
        return cls(path, read_index(path))

    @classmethod
    def open_or_create(
        cls, path: str | os.PathLike[str], *, seed: int | None, file_format: FileFormat
    ) -> RlinfStore:
        """Open the folder that is there, or make one of `file_format`.

        Raises:
            InvalidInputError: if the folder holds the other format.
        """
        if is_rlinf_folder(path):
            store = cls.open(path)
            if store.suffix != file_format:
                raise InvalidInputError(
                    f"{path} holds {store.suffix} files; trajectory_format is "
                    f"{file_format!r}, use another folder or convert it first"
                )
            return store
        store = cls(path, RlinfIndex(file_format, seed=1234 if seed is None else seed))
        # Files whose index was lost keep their names: new ids go on after them.
        lost = list_files(store.folder)
        store.index.counter = max((number + 1 for number in lost), default=0)
        store.write_index()
        return store

    @property
    def url(self) -> str:  # noqa: D102
        return str(self.folder)

    @property
    def listed(self) -> Stretch:  # noqa: D102
        return self._table.listed

    def is_same(self, other: TrajectoryStore) -> bool:  # noqa: D102
        if not isinstance(other, RlinfStore):
            return False
        return other.folder.resolve() == self.folder.resolve()

    @property
    def next_trajectory_id(self) -> int:  # noqa: D102
        return self.index.counter

    @property
    def state(self) -> Mapping[str, Any] | None:  # noqa: D102
        index = self.index
        size, total_samples = index.counts
        state: dict[str, Any] = {}
        if index.generator is not None:
            state["generator"] = index.generator
        if index.more_generator is not None:
            state["more_generator"] = index.more_generator
        if not state and size == len(index.rows):
            return None
        counts = {"size": size, "total_samples": total_samples}
        return {**state, "trajectory_counter": index.counter, **counts}

    def portion(  # noqa: D102
        self, rank: int, world_size: int, *, window_size: int
    ) -> Portion:
        order = self.index.order
        start, stop = partition(len(order), rank, world_size)
        absent = {row.trajectory_id: row for row in self.index.evicted}
        window = order[max(start, stop - window_size) if window_size else start : stop]
        missing = [absent[number] for number in window if number in absent]
        if missing:
            raise missing_files(missing, self.folder)
        gone = np.cumsum([0, *(number in absent for number in order)]).tolist()
        whole = self.listed
        listed = whole.part(start - gone[start], stop - gone[stop])
        if gone[stop] > gone[start]:
            _LOG.warning(
                "%s: %d of %d trajectories were evicted before it was saved; they are "
                "counted and not drawn",
                *(self.folder, gone[stop] - gone[start], stop - start),
            )
        if world_size == 1:
            return Portion(listed, *self.index.counts, self.index.counter)
        samples = sum(absent[n].num_samples for n in order[start:stop] if n in absent)
        total = listed.total_samples + samples
        next_id = max(order[start:stop], default=-1) + 1
        return Portion(listed, stop - start, total, next_id)

    @property
    def seed(self) -> int | None:  # noqa: D102
        return self.index.seed

    def known_schema(self, row: Row) -> Schema | None:  # noqa: D102
        return self._schemas.get(row.uuid)

    def schema(self, row: Row) -> Schema:  # noqa: D102
        if row.uuid not in self._schemas:
            self.open_archive(row)
        return self._schemas[row.uuid]

    def path_of(self, row: Row) -> Path:
        """Return the file of a trajectory."""
        return self._paths[row.uuid]

    def read_trajectory(self, row: Row) -> Trajectory:  # noqa: D102
        path = self.path_of(row)
        trajectory = read_trajectory_file(path)
        try:
            shape = trajectory_shape(trajectory)[:2]
        except InvalidInputError as exc:
            raise FormatError(f"{path}: {exc}") from exc
        if shape != (row.num_steps, row.num_envs):
            raise FormatError(
                f"{path}: holds T={shape[0]}, B={shape[1]}; the index says "
                f"T={row.num_steps}, B={row.num_envs}"
            )
        return trajectory

    def open_archive(self, row: Row) -> TrajectoryArchive:
        """Read the file of a row and encode it in memory.

        Raises:
            NotFoundError: if the file is missing.
            FormatError: if it is damaged or of another shape than the index says.
        """
        path = self.path_of(row)
        trajectory = self.read_trajectory(row)
        try:
            encoded = encode_trajectory(trajectory, uuid=row.uuid, codec="lz4")
        except InvalidInputError as exc:
            raise FormatError(f"{path}: {exc}") from exc
        header = encoded.header
        if self._schemas.setdefault(row.uuid, header.schema) != header.schema:
            raise FormatError(f"{path}: was replaced by another one since it was read")
        return TrajectoryArchive(encoded.data, name=str(path))

    def append(self, items: Sequence[NewTrajectory]) -> list[str]:  # noqa: D102
        for item in items:
            if item.row.uuid not in self._paths:
                self._append_one(item)
        self.write_index()
        return [item.row.uuid for item in items]

    def _append_one(self, item: NewTrajectory) -> None:
        file_format: FileFormat = self.index.file_format
        number = max(item.row.trajectory_id, self.index.counter)
        row = dataclasses.replace(item.row, trajectory_id=number)
        name = trajectory_name(number, row.model_weights_id, file_format)
        archive = TrajectoryArchive(item.encoded.data, name=name)
        data = encode_trajectory_file(decode_trajectory(archive), file_format)
        replace_file(self.folder / name, data)
        self._schemas[row.uuid] = item.encoded.header.schema
        self._paths[row.uuid] = self.folder / name
        self._table = self._table.appended(Rows.of([row]))
        self.index.append(row, name)
        self.index.counter = number + 1

    def write_index(self) -> None:
        """Replace the two JSON files; the index first, the metadata last.

        Raises:
            StorageError: if the storage failed; the old ones are as they were.
        """
        metadata, index = encode_index(self.index)
        replace_file(self.folder / INDEX_NAME, index)
        replace_file(self.folder / METADATA_NAME, metadata)

    def remove_all(self, *, reason: str) -> None:
        """Take every row off the index; the files stay where they are."""
        index = self.index
        self.index = RlinfIndex(index.file_format, index.seed, index.counter)
        self._table = RowTable.empty()
        self.write_index()

    def remove(self, trajectory_ids: Sequence[int]) -> None:
        """Take trajectories off the index, then delete their files.

        Raises:
            StorageError: if the storage failed; files without an index entry may stay.
        """
        wanted = {number: self.index.names[number] for number in trajectory_ids}
        self.index = read_index(self.folder)  # another process may have appended
        names = self.index.names
        gone = {n: name for n, name in wanted.items() if names.get(n) == name}
        rows = [row for row in self.index.rows if row.trajectory_id not in gone]
        left = {number: name for number, name in names.items() if number not in gone}
        self.index.replace(rows, left)
        self._table = RowTable.of(Rows.of(self.index.rows))
        self.write_index()
        for name in gone.values():
            try:
                (self.folder / name).unlink(missing_ok=True)
            except OSError as exc:
                raise StorageError(
                    f"cannot delete {self.folder / name}: {exc.strerror}"
                ) from exc
