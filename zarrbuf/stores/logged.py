"""Archives on a storage, listed by the commit log beside them, as a store.

Owns the order of an append: archives first, then the commit that lists them. Knows no
window, no batch and no thread.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zarrbuf.archive.spec import Schema
from zarrbuf.archive.zarr_json import CodecName, check_codec
from zarrbuf.common.uuids import new_uuid
from zarrbuf.errors import (
    CommitUnknownError,
    FormatError,
    NotFoundError,
    StorageError,
    VacuumedError,
    ZarrbufError,
)
from zarrbuf.manifest.actions import MAX_ADDS, Action
from zarrbuf.manifest.changes import build_adds, build_removal_of_all
from zarrbuf.manifest.commit_log import CommitLog, open_log, open_or_create_log
from zarrbuf.manifest.layout import TRAJECTORY_DIR, TRAJECTORY_PATH
from zarrbuf.manifest.other_buffers import Bases
from zarrbuf.manifest.row_table import Stretch
from zarrbuf.manifest.rows import IntArray, Row, Rows
from zarrbuf.manifest.snapshot import Snapshot, schema_id
from zarrbuf.storage.contract import Storage
from zarrbuf.storage.fetching import FetchCost, RemoteObject, fetch_in_steps
from zarrbuf.storage.sparse import SparseObject
from zarrbuf.stores.contract import NewTrajectory, TrajectoryStore, known_name
from zarrbuf.trajectory.archived import TrajectoryArchive
from zarrbuf.trajectory.encoding import renamed


def check_row(row: Row, archive: TrajectoryArchive) -> None:
    """Check that an archive is the one that a row of the manifest names.

    Raises:
        FormatError: if uuid, T, B, schema or size differ.
    """
    header = archive.header
    pairs = {
        "uuid": (header.uuid, row.uuid),
        "T": (header.num_steps, row.num_steps),
        "B": (header.num_envs, row.num_envs),
        "model_weights_id": (header.model_weights_id, row.model_weights_id),
        "max_episode_length": (header.max_episode_length, row.max_episode_length),
        "schema": (schema_id(header.schema), row.schema),
        "size": (len(archive.source), row.size),
    }
    for name, (found, expected) in pairs.items():
        if found != expected:
            raise FormatError(
                f"{archive.name}: {name} is {found!r:.80} in the archive and "
                f"{expected!r:.80} in the manifest"
            )


def list_archives(storage: Storage) -> dict[str, int]:
    """Return all archives below a root, listed or not: path -> ms since 1970.

    The times are those of writing. Files of other names are nobody's business.
    """
    directories = [
        f"{TRAJECTORY_DIR}/{name}"
        for name in storage.list_names(TRAJECTORY_DIR)
        if len(name) == 2
    ]
    found = storage.list_times(directories)
    return {
        path: written
        for path, written in found.items()
        if TRAJECTORY_PATH.fullmatch(path)
    }


class LogStore(TrajectoryStore):
    """Archives on a storage, listed by the commit log beside them.

    Attributes:
        storage: where it lies.
        log: its log.
    """

    def __init__(self, log: CommitLog) -> None:
        """Use an opened log."""
        self.log = log
        self.storage: Storage = log.storage
        self.is_remote = self.storage.is_remote
        self._bases = Bases(self.storage)
        self._unclear_since: int | None = None
        self._renamed: dict[str, NewTrajectory] = {}  # by the uuid they came with
        self._is_past = False

    @classmethod
    def open(cls, storage: Storage, *, version: int | None = None) -> LogStore:
        """Open an existing buffer, or it as it was after a commit: then it stays so.

        Raises:
            NotFoundError: if there is no buffer, or no such version.
        """
        store = cls(open_log(storage, version=version))
        store._is_past = version is not None
        return store

    @classmethod
    def open_or_create(
        cls, storage: Storage, *, seed: int | None, codec: CodecName
    ) -> LogStore:
        """Open the buffer that is there, or make one."""
        config = {"seed": seed, "codec": codec}
        return cls(open_or_create_log(storage, config=config))

    @property
    def url(self) -> str:  # noqa: D102
        return self.storage.url

    @property
    def listed(self) -> Stretch:  # noqa: D102
        return self.log.snapshot.table.listed

    @property
    def mark(self) -> int:  # noqa: D102
        return self.log.snapshot.version

    def after(self, listed: Stretch, mark: int) -> Stretch:  # noqa: D102
        return listed.since(mark)

    @property
    def next_trajectory_id(self) -> int:  # noqa: D102
        return self.log.snapshot.next_trajectory_id

    @property
    def state(self) -> Mapping[str, Any] | None:  # noqa: D102
        return self.log.snapshot.state

    @property
    def seed(self) -> int | None:  # noqa: D102
        seed = self.log.snapshot.config.get("seed")
        return seed if type(seed) is int else None

    @property
    def codec(self) -> CodecName:
        """How archives that are written here are compressed."""
        return check_codec(self.log.snapshot.config.get("codec", "lz4"))

    def is_same(self, other: TrajectoryStore) -> bool:  # noqa: D102
        if not isinstance(other, LogStore) or other.log.uuid != self.log.uuid:
            return False
        return other.storage.place == self.storage.place  # a copy has its uuid, too

    def refresh(self) -> None:  # noqa: D102
        if not self._is_past:
            self.log.refresh()
            if self._unclear_since is None:
                self.log.forget_vacuums()

    def schema(self, row: Row) -> Schema:  # noqa: D102
        return self.log.snapshot.schemas[row.schema]

    def open_archive(self, row: Row) -> TrajectoryArchive:  # noqa: D102
        try:
            source = self.home(row).open_source(row.path)
        except NotFoundError as exc:
            raise NotFoundError(f"{self._name(row)} is missing") from exc
        archive = TrajectoryArchive(source, name=self._name(row))
        check_row(row, archive)
        return archive

    def home(self, row: Row) -> Storage:
        """Return where the archive of a row lies, in this buffer or a base.

        Raises:
            UntrustedBaseError: if it lies where this buffer may not point.
            NotFoundError: if the base is gone.
            FormatError: if the base is another buffer than was named.
        """
        return self.home_of(row.base)

    def home_of(self, base: int) -> Storage:
        """Return where the archives of a base lie; raises what `home` does."""
        return self._bases.storage_of(base, self.log.snapshot.bases)

    def _name(self, row: Row) -> str:
        return f"{known_name(row)} ({self.home(row).describe(row.path)})"

    def open_archives(  # noqa: D102
        self, rows: Sequence[Row], cost: FetchCost
    ) -> list[TrajectoryArchive]:
        if not self.storage.is_remote:
            return super().open_archives(rows, cost)
        remotes = [self._remote(row) for row in rows]
        jobs = [
            (
                remote,
                functools.partial(TrajectoryArchive.open_sparse, name=self._name(row)),
            )
            for row, remote in zip(rows, remotes, strict=True)
        ]
        try:
            archives = fetch_in_steps(jobs, cost)
        except NotFoundError as exc:
            names = [self._name(row) for row in rows if row.path in str(exc)]
            raise NotFoundError(f"{', '.join(names)} is missing") from exc
        for row, remote, archive in zip(rows, remotes, archives, strict=True):
            archive.remote = remote
            check_row(row, archive)
        return archives

    def forget_fetched(self, row: Row) -> None:  # noqa: D102
        cache = self.home(row).range_cache
        if self.storage.is_remote and cache is not None:
            cache.drop(self._remote(row).key)

    def _remote(self, row: Row) -> RemoteObject:
        data = SparseObject(row.size, name=self._name(row))
        return RemoteObject(self.home(row), row.path, data)

    def append(self, items: Sequence[NewTrajectory]) -> list[str]:  # noqa: D102
        if self._unclear_since is None:
            self._unclear_since = self.log.snapshot.version
            self.log.forget_vacuums()
        # What a try before this one wrote under another name may be listed by now.
        named = [self._renamed.get(item.row.uuid, item) for item in items]
        self._write(named)
        listed: list[str] = []
        for start in range(0, len(named), MAX_ADDS):
            some = named[start : start + MAX_ADDS]
            while True:
                try:
                    self._commit(some, self._unclear_since)
                    break
                except VacuumedError as exc:
                    some = self._write_anew(some, exc.uuids)
            listed += [item.row.uuid for item in some]
        self._unclear_since = None
        self._renamed = {}
        return listed

    def _write_anew(
        self, items: Sequence[NewTrajectory], doomed: Collection[str]
    ) -> list[NewTrajectory]:
        """Write under other names what a vacuum may delete."""
        anew: list[NewTrajectory] = []
        origins = {one.row.uuid: uuid for uuid, one in self._renamed.items()}
        for item in items:
            if item.row.uuid in doomed:
                encoded = renamed(item.encoded.data, uuid=new_uuid(), codec=self.codec)
                made = NewTrajectory.of(encoded, trajectory_id=item.row.trajectory_id)
                self._renamed[origins.get(item.row.uuid, item.row.uuid)] = made
                anew.append(made)
            else:
                anew.append(item)
        self._write([item for item in anew if item not in items])
        return anew

    def _write(self, items: Sequence[NewTrajectory]) -> None:
        names = ", ".join(known_name(item.row) for item in items)
        try:
            self.storage.ensure_all({i.row.path: i.encoded.data for i in items})
        except ZarrbufError as exc:
            raise StorageError(f"{names:.200} could not be saved: {exc}") from exc

    def _commit(self, items: Sequence[NewTrajectory], since: int) -> None:
        rows = [item.row for item in items]
        schemas = {i.row.schema: i.encoded.header.schema for i in items}

        def build(now: Snapshot) -> Sequence[Action]:
            return build_adds(now, rows, schemas, since=since)

        what = f"{known_name(items[0].row)} and {len(items) - 1} more"
        try:
            self.log.commit(build, op="add")
        except VacuumedError:
            raise
        except CommitUnknownError as exc:
            message = f"{what} may or may not be committed: {exc}"
            raise CommitUnknownError(message, exc.txn, exc.version) from exc
        except ZarrbufError as exc:
            raise type(exc)(f"{what} could not be committed: {exc}") from exc

    def remove_all(self, *, reason: str) -> None:  # noqa: D102
        self.log.commit(lambda now: build_removal_of_all(now, reason), op=reason)


@dataclass(frozen=True)
class ChosenRows:
    """Rows of one buffer, chosen from what it listed at one time.

    Attributes:
        store: the buffer.
        snapshot: what it listed.
        rows: the rows.
    """

    store: LogStore
    snapshot: Snapshot
    rows: Rows

    @classmethod
    def of(cls, store: LogStore, positions: IntArray | None = None) -> ChosenRows:
        """Choose rows by their positions in the list; None for all."""
        snapshot = store.log.snapshot
        rows = snapshot.rows
        return cls(store, snapshot, rows if positions is None else rows.take(positions))
