"""The archives of a buffer written anew in its place, or copied out under their names.

Owns that a buffer lists all old archives or all new ones. How one trajectory is
encoded anew is the business of `convert`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from zarrbuf.archive.zarr_json import check_codec
from zarrbuf.common.arguments import check_whole_number
from zarrbuf.common.jobs import Progress, run_jobs
from zarrbuf.common.thread_pool import default_num_threads
from zarrbuf.curation.convert import Conversion, Converter
from zarrbuf.curation.of_buffers import read_archive
from zarrbuf.errors import ConflictError, InvalidInputError
from zarrbuf.manifest.actions import Action
from zarrbuf.manifest.changes import listing_actions
from zarrbuf.manifest.rows import Rows
from zarrbuf.manifest.snapshot import Snapshot
from zarrbuf.storage.contract import TMP_DIR
from zarrbuf.storage.local import LocalStorage
from zarrbuf.storage.resolve import Location, StorageOptions, open_storage
from zarrbuf.stores.contract import known_name
from zarrbuf.stores.logged import LogStore
from zarrbuf.stores.opening import location_of, open_log_store, open_store
from zarrbuf.stores.staging import Created, check_outside

_AT_ONCE: Final = 8


def recompress(
    buffer: Any,
    *,
    codec: str,
    verify: bool = False,
    num_threads: int | None = None,
    storage_options: StorageOptions | None = None,
    allow_bases: Sequence[Location] = (),
    progress: Progress | None = None,
) -> Conversion:
    """Write every trajectory of a buffer anew, and list the new archives instead.

    Ids, order and content stay. The old archives stay until a vacuum. A call that was
    stopped goes on when it is made again.

    Args:
        buffer: path, URL or open buffer.
        codec: "lz4", "zstd" or "none"; what is added later has it, too.
        verify: read each trajectory again and compare every tensor bit for bit.
        num_threads: trajectories under way at once; None for as many as there are
            processors, at most 4.
        storage_options: for object stores, see `TrajectoryReplayBuffer`.
        allow_bases: see `TrajectoryReplayBuffer`.
        progress: called with (trajectories done, trajectories in all).

    Raises:
        InvalidInputError: if an argument is not allowed, or it is a folder of RLinf's.
        NotFoundError: if there is no buffer, or an archive of it is missing.
        FormatError: if an archive is damaged; the buffer is as it was.
        ConflictError: if the list changed meanwhile; the same call goes on.
        StorageError: if the storage failed; the buffer is as it was.
    """
    known_codec = check_codec(codec)
    if num_threads is None:
        num_threads = default_num_threads()
    check_whole_number("num_threads", num_threads, minimum=1)
    store = open_log_store(
        buffer, storage_options, what="recompress", allow_bases=allow_bases
    )
    rows = store.rows
    created = Created(store.storage)
    converter = Converter(
        store,
        created,
        to="zarr",
        codec=known_codec,
        verify=verify,
        doomed=store.log.snapshot.doomed,
    )
    done = run_jobs(
        lambda number: converter.convert(rows.row(number)),
        range(len(rows)),
        num_threads=num_threads,
        progress=progress,
    )
    schemas = {one.row.schema: one.schema for one in done}
    anew = Rows.of([one.row for one in done])

    def build(now: Snapshot) -> list[Action]:
        created.check_there()
        if now.rows.fixed["uuid"].tolist() != rows.fixed["uuid"].tolist():
            raise ConflictError(
                f"{store.url} was changed meanwhile; call it again, it goes on"
            )
        config = {**now.config, "codec": known_codec}
        meta = now.meta_action(schemas={**now.schemas, **schemas}, config=config)
        ids = rows.trajectory_ids.tolist()
        gone = {"action": "remove", "ids": ids, "reason": "recompress"}
        return [meta, *([gone] if ids else []), *listing_actions(anew, store.storage)]

    store.log.commit(build, op="recompress")
    fields: Counter[str] = Counter()
    for one in done:
        fields.update(one.fields)
    return Conversion(
        source=store.url,
        destination=store.url,
        source_format="zarr",
        destination_format="zarr",
        num_trajectories=len(rows),
        total_samples=rows.total_samples,
        source_bytes=int(rows.column("size").sum()),
        destination_bytes=sum(one.num_bytes for one in done),
        fields=dict(sorted(fields.items())),
    )


def export(
    source: Any,
    directory: Location,
    *,
    version: int | None = None,
    storage_options: StorageOptions | None = None,
    allow_bases: Sequence[Location] = (),
    progress: Progress | None = None,
) -> list[str]:
    """Copy the archives of a buffer to a directory, under the names that `ls` shows.

    Each is a Zarr group in a zip that any Zarr reader opens; so ".zip" is appended. The
    directory is no buffer. Files that are there with the same bytes are left alone.

    Args:
        source: a zarrbuf buffer: path, URL or open buffer.
        directory: a local path, outside of the source.
        version: as it was after that commit; None for now.
        storage_options: for object stores, see `TrajectoryReplayBuffer`.
        allow_bases: see `TrajectoryReplayBuffer`.
        progress: called with (archives done, archives in all).

    Returns:
        The names, in the order of the list.

    Raises:
        InvalidInputError: if the directory is not local.
        ConflictError: if a name is there with other bytes.
        NotFoundError: if there is no buffer, or an archive of it is missing.
        FormatError: if an archive is damaged.
        StorageError: if the storage failed.
    """
    target = open_storage(directory)
    if not isinstance(target, LocalStorage):
        raise InvalidInputError(f"directory {target.url!r} is not a local path")
    location = location_of(source)
    storage = open_storage(location, storage_options, allow_bases=allow_bases)
    check_outside(target, storage)
    store = open_store(storage, version=version)
    if not isinstance(store, LogStore):
        raise InvalidInputError(
            f"{storage.url} is a folder of RLinf's: its files have their names already"
        )
    rows, created = store.rows, Created(target)

    def copy(number: int) -> str:
        row = rows.row(number)
        name = f"{known_name(row)}.zip"
        created.create(name, read_archive(row, store))
        return name

    names = run_jobs(copy, range(len(rows)), num_threads=_AT_ONCE, progress=progress)
    with suppress(OSError):  # not there, or another program's
        os.rmdir(target.root / TMP_DIR)
    return names
