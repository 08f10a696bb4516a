"""Whole buffers from one format to another, every tensor as it was.

Nothing is visible at the destination until all of it is durable: archives or files
first, then the one commit or index that names them. What a conversion wrote that failed
or was stopped is used by the same call made again.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from zarrbuf.archive.chunks import crc32c
from zarrbuf.archive.spec import Schema
from zarrbuf.archive.zarr_json import CodecName, check_codec
from zarrbuf.common.arguments import check_whole_number
from zarrbuf.common.jobs import Progress, run_jobs
from zarrbuf.common.thread_pool import default_num_threads
from zarrbuf.common.uuids import new_uuid
from zarrbuf.errors import (
    ConflictError,
    FormatError,
    InvalidInputError,
    StorageError,
)
from zarrbuf.manifest.actions import Action
from zarrbuf.manifest.changes import listing_actions
from zarrbuf.manifest.layout import DIRECTORIES, trajectory_path
from zarrbuf.manifest.rows import Row, Rows
from zarrbuf.manifest.snapshot import Snapshot
from zarrbuf.rlinf.files import encode_trajectory_file, read_trajectory_file
from zarrbuf.rlinf.index import (
    INDEX_NAME,
    METADATA_NAME,
    FileFormat,
    RlinfIndex,
    encode_index,
    trajectory_name,
)
from zarrbuf.storage.contract import Storage
from zarrbuf.storage.local import LocalStorage
from zarrbuf.storage.resolve import Location, StorageOptions, open_storage
from zarrbuf.stores.contract import NewTrajectory, TrajectoryStore, known_name
from zarrbuf.stores.opening import check_format, location_of, open_store
from zarrbuf.stores.staging import Created, check_empty, check_outside
from zarrbuf.trajectory.archived import TrajectoryArchive
from zarrbuf.trajectory.comparing import compare_trajectories
from zarrbuf.trajectory.encoding import (
    EncodedTrajectory,
    describe_trajectory,
    encode_trajectory,
)
from zarrbuf.trajectory.trajectory import Trajectory, decode_trajectory

_EXACT: Final = "bit-exact"


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        source: what was read.
        destination: what was written.
        source_format: "zarr", "pt" or "pkl".
        destination_format: "zarr", "pt" or "pkl".
        num_trajectories: trajectories converted.
        total_samples: samples in them.
        source_bytes: bytes of the archives or files read.
        destination_bytes: bytes of the archives or files written.
        fields: field path -> in how many trajectories it was read again and found
            bit-exact; empty if that was not asked for.
    """

    source: str
    destination: str
    source_format: str
    destination_format: str
    num_trajectories: int
    total_samples: int
    source_bytes: int
    destination_bytes: int
    fields: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def convert(
    source: Any,
    destination: Location,
    *,
    to: str = "zarr",
    codec: str = "lz4",
    version: int | None = None,
    verify: bool = False,
    num_threads: int | None = None,
    storage_options: StorageOptions | None = None,
    allow_bases: Sequence[Location] = (),
    progress: Progress | None = None,
) -> Conversion:
    """Convert a whole buffer: ids, seed and order are kept, what a file says too.

    Ids go on after the highest that is listed; the weights id is the one in the file.

    A call that failed or was stopped (killed, interrupted) goes on when it is made
    again: what it wrote stays at `destination`, and is listed by nobody until then.

    Args:
        source: a zarrbuf buffer or a folder of RLinf's: path, URL or open buffer.
        destination: where nothing is yet; a local path for "pt" and "pkl".
        to: "zarr", "pt" or "pkl".
        codec: "lz4", "zstd" or "none", for "zarr".
        version: convert the source as it was after that commit; None for now.
        verify: read each trajectory again from where it was written, and compare every
            tensor bit for bit.
        num_threads: trajectories under way at once; None for as many as there are
            processors, at most 4.
        storage_options: for object stores, see `TrajectoryReplayBuffer`.
        allow_bases: see `TrajectoryReplayBuffer`.
        progress: called with (trajectories done, trajectories in all).

    Raises:
        InvalidInputError: if an argument is not allowed or something is at
            `destination`.
        NotFoundError: if there is no buffer at `source`.
        FormatError: if the source is damaged.
        ConflictError: if somebody else made a buffer at `destination` meanwhile, which
            is not touched, or something with other bytes lies where this one writes.
        StorageError: if the storage failed, or what was read again differs.
    """
    check_format("to", to)
    known_codec = check_codec(codec)
    if num_threads is None:
        num_threads = default_num_threads()
    check_whole_number("num_threads", num_threads, minimum=1)
    location = location_of(source)
    source_storage = open_storage(location, storage_options, allow_bases=allow_bases)
    store = open_store(source_storage, version=version)
    storage = open_storage(destination, storage_options)
    if to != "zarr" and not isinstance(storage, LocalStorage):
        raise InvalidInputError(
            f"destination {storage.url!r} is not allowed for {to} files; they need a "
            "local path"
        )
    check_outside(storage, source_storage)
    rows = store.rows
    files: set[str] = set()
    if to != "zarr":
        files = {_file_name(rows.row(number), to) for number in range(len(rows))}
    uuid = check_empty(storage, files=files)
    created = Created(storage)
    if to == "zarr":
        created.claim(uuid)
    one = Converter(store, created, to=to, codec=known_codec, verify=verify)
    done = run_jobs(
        lambda number: one.convert(rows.row(number)),
        range(len(rows)),
        num_threads=num_threads,
        progress=progress,
    )
    if to == "zarr":
        _commit(store, created, done, codec=known_codec)
    else:
        _write_index(store, created, "pt" if to == "pt" else "pkl")
    fields: Counter[str] = Counter()
    for converted in done:
        fields.update(converted.fields)
    return Conversion(
        source=os.fspath(location),
        destination=os.fspath(destination),
        source_format=store.suffix,
        destination_format=to,
        num_trajectories=len(rows),
        total_samples=rows.total_samples,
        source_bytes=int(rows.column("size").sum()),
        destination_bytes=sum(converted.num_bytes for converted in done),
        fields=dict(sorted(fields.items())),
    )


@dataclass(frozen=True)
class Converted:
    """One trajectory at its destination.

    Attributes:
        row: of the manifest; that of the source for files.
        schema: its fields; empty for files.
        num_bytes: what it takes.
        fields: names of those that were read again.
    """

    row: Row
    schema: Schema
    num_bytes: int
    fields: tuple[str, ...]


class Converter:
    """Converts one trajectory after the other, from several threads."""

    def __init__(
        self,
        store: TrajectoryStore,
        created: Created,
        *,
        to: str,
        codec: CodecName,
        verify: bool,
        doomed: Collection[str] = (),
    ) -> None:
        """Use `convert`.

        Args:
            store: where trajectories are read.
            created: what is written is added to it.
            to: "zarr", "pt" or "pkl".
            codec: for "zarr".
            verify: whether to compare what was written with what was read.
            doomed: paths there that a vacuum may delete: these are not used.
        """
        self._doomed = doomed
        self._store = store
        self._created = created
        self._to = to
        self._codec = codec
        self._verify = verify

    def convert(self, row: Row) -> Converted:
        """Convert one trajectory; raises what `zarrbuf.convert` does."""
        if self._to == "zarr":
            return self._to_archive(row)
        return self._to_file(row, "pt" if self._to == "pt" else "pkl")

    def _to_archive(self, row: Row) -> Converted:
        uuid = derived_uuid(row, self._codec)
        path = trajectory_path(uuid)
        if path in self._doomed:
            uuid = new_uuid()
            path = trajectory_path(uuid)
        encoded = read_encoded(self._created.storage, path)
        trajectory = None
        if encoded is not None:
            self._created.reuse(path)
        else:
            trajectory = self._store.read_trajectory(row)
            encoded = encode_trajectory(trajectory, uuid=uuid, codec=self._codec)
            self._created.create(path, encoded.data)
        fields = self._compare(
            row,
            trajectory,
            lambda: decode_trajectory(
                TrajectoryArchive(self._created.storage.read(path), name=path)
            ),
        )
        item = NewTrajectory.of(encoded, trajectory_id=row.trajectory_id)
        schema = encoded.header.schema
        return Converted(item.row, schema, len(encoded.data), fields)

    def _to_file(self, row: Row, file_format: FileFormat) -> Converted:
        name = _file_name(row, file_format)
        trajectory = self._store.read_trajectory(row)
        data = encode_trajectory_file(trajectory, file_format)
        path = self._created.storage.describe(name)
        try:
            self._created.create(name, data)
        except ConflictError:
            # A pickle of one trajectory has other bytes each time it is made.
            if not _holds(path, trajectory):
                raise
            self._created.reuse(name)
        fields = self._compare(row, trajectory, lambda: read_trajectory_file(path))
        num_bytes = len(self._created.storage.open_source(name))
        return Converted(row, {}, num_bytes, fields)

    def _compare(
        self,
        row: Row,
        before: Trajectory | None,
        read_again: Callable[[], Trajectory],
    ) -> tuple[str, ...]:
        """Compare what was written with the source; names of the fields."""
        if not self._verify:
            return ()
        if before is None:
            before = self._store.read_trajectory(row)
        found = compare_trajectories(before, read_again())
        wrong = [f"{name} is {how}" for name, how in found.items() if how != _EXACT]
        if wrong:
            raise StorageError(
                f"{known_name(row, self._store.suffix)}: what was written is not what "
                f"was read: {', '.join(wrong)}"
            )
        return tuple(found)


def _holds(path: str, trajectory: Trajectory) -> bool:
    """Whether a file holds a trajectory, bit for bit."""
    try:
        found = compare_trajectories(trajectory, read_trajectory_file(path))
    except FormatError:
        return False
    return set(found.values()) <= {_EXACT}


def _file_name(row: Row, file_format: str) -> str:
    return trajectory_name(row.trajectory_id, row.model_weights_id, file_format)


def derived_uuid(row: Row, codec: CodecName) -> str:
    """Return the uuid of a trajectory encoded anew: the same for each try."""
    text = f"zarrbuf conversion of {row.uuid} to {codec}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_encoded(storage: Storage, path: str) -> EncodedTrajectory | None:
    """Return the archive that a stopped conversion wrote, None if there is none.

    Raises:
        FormatError: if it is damaged.
    """
    data = storage.read_existing([path])[0]
    if data is None:
        return None
    archive = TrajectoryArchive(data, name=storage.describe(path))
    archive.check()
    shape, tags = describe_trajectory(decode_trajectory(archive))
    return EncodedTrajectory(data, archive.header, shape, crc32c(data), tags)


def _commit(
    store: TrajectoryStore,
    created: Created,
    done: Sequence[Converted],
    *,
    codec: CodecName,
) -> None:
    schemas = {one.row.schema: one.schema for one in done}
    config = {"seed": store.seed, "codec": codec}
    created.commit(
        [
            Snapshot(0, "").meta_action(schemas=schemas, config=config),
            *listing_actions(Rows.of([one.row for one in done]), created.storage),
            *_state_actions(store.state),
        ],
        op="convert",
    )


def _state_actions(state: Mapping[str, Any] | None) -> list[Action]:
    return [] if state is None else [{"action": "state", "state": dict(state)}]


def _write_index(
    store: TrajectoryStore, created: Created, file_format: FileFormat
) -> None:
    portion, state = store.portion(0, 1, window_size=1), store.state or {}
    index = RlinfIndex(
        file_format,
        seed=store.seed,
        counter=portion.next_trajectory_id,
        size=portion.num_trajectories,
        total_samples=portion.total_samples,
        generator=state.get("generator"),
        more_generator=state.get("more_generator"),
    )
    rows = store.rows
    index.replace([rows.row(number) for number in range(len(rows))], {})
    metadata, entries = encode_index(index)
    created.check_there()
    created.create(INDEX_NAME, entries)
    created.create(METADATA_NAME, metadata)
    created.storage.delete_empty_directories(DIRECTORIES, keep_root=True)
