"""`TrajectoryReplayBuffer`: RLinf's buffer, over zarrbuf's stores.

The face, with no algorithm of its own: it checks arguments, guards its parts with one
lock and says what a view is made of. Stores keep trajectories, the reader makes
batches, the writer saves in the background.
"""

from __future__ import annotations

import logging
import operator
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, SupportsIndex

import numpy as np
import torch

from zarrbuf.errors import (
    EmptyBufferError,
    InvalidInputError,
    NotFoundError,
    TrajectoryNotFoundError,
)
from zarrbuf.format import ROOT_NAME, BatchField, new_uuid
from zarrbuf.metadata import check_codec
from zarrbuf.reader import BatchReader, sorted_fields
from zarrbuf.rlinf import RlinfStore
from zarrbuf.rlinf_files import encode_generator, restore_generator
from zarrbuf.rlinf_index import FILE_FORMATS, METADATA_NAME, FileFormat, is_rlinf_folder
from zarrbuf.rows import Rows
from zarrbuf.sampling import partition, plan_batch
from zarrbuf.saving import save_buffer, save_folder
from zarrbuf.storage import LocalStorage, open_storage
from zarrbuf.stores import LogStore, MemoryStore, NewTrajectory, TrajectoryStore
from zarrbuf.trajectory import (
    Trajectory,
    decode_trajectory,
    encode_trajectory,
    flatten_encoded,
    nest,
)
from zarrbuf.views import Part, View, check_fields, known_fields
from zarrbuf.writer import BackgroundWriter

_LOG: Final = logging.getLogger("zarrbuf")
FORMATS: Final = ("zarr", *FILE_FORMATS)
Path_ = str | os.PathLike[str]


class TrajectoryReplayBuffer:
    """A replay buffer of trajectories on disk, sampled without loading whole files.

    A drop-in for RLinf's class of the same name. Trajectories have shape
    `[T, B, ...]`; a batch has shape `[n, ...]`, one transition a row.
    """

    def __init__(
        self,
        seed: int | None = 1234,
        enable_cache: bool = True,
        cache_size: int = 5,
        sample_window_size: int = 100,
        auto_save: bool = False,
        auto_save_path: Path_ = "",
        trajectory_format: str = "zarr",
        *,
        codec: str = "lz4",
        cache_bytes: int = 256 << 20,
        max_queue_bytes: int = 256 << 20,
        num_threads: int | None = None,
    ) -> None:
        """Make a buffer, or continue the one at `auto_save_path`.

        Args:
            seed: seed of the draws; None for a random one.
            enable_cache: keep small fields (states, actions, rewards) decoded.
            cache_size: accepted for RLinf's sake; what is kept is bounded by
                `cache_bytes`.
            sample_window_size: trajectories drawn from, the newest; 0 for all.
            auto_save: save every trajectory in the background; without, the window
                is kept in memory, compressed.
            auto_save_path: where, a local path, `file://` or `memory://`; by default
                `$ZARRBUF_LOG_DIR` (or `logs`) + `/replay_buffer/rank_{RANK or 0}`.
            trajectory_format: "zarr", or "pt" or "pkl" for folders that RLinf loads.
            codec: "lz4", "zstd" (smaller, slower) or "none".
            cache_bytes: bound of the decoded small fields, and as much again for
                archives made from `pt` and `pkl` files.
            max_queue_bytes: encoded bytes that may wait to be saved;
                `add_trajectories` waits beyond.
            num_threads: threads that compress; by default one per core, at most 4.

        Raises:
            InvalidInputError: if an argument is not allowed.
            FormatError: if what lies at `auto_save_path` is damaged.
            StorageError: if the storage failed.
        """
        if trajectory_format not in FORMATS:
            raise InvalidInputError(
                f"trajectory_format is {trajectory_format!r}; allowed are "
                f"{', '.join(FORMATS)}"
            )
        self._codec = check_codec(codec)
        self._window_size = _whole("sample_window_size", sample_window_size)
        self._cache_size = _whole("cache_size", cache_size)
        cache_bytes = _whole("cache_bytes", cache_bytes)
        self._max_queue_bytes = _whole("max_queue_bytes", max_queue_bytes)
        self._num_threads = num_threads
        self._format = trajectory_format
        self._seed = seed
        self._generator = torch.Generator()
        self.manual_seed(seed)
        self._lock = threading.RLock()
        self._store_lock = threading.Lock()
        self._reader = BatchReader(
            cache_bytes=cache_bytes if enable_cache else 0, archive_bytes=cache_bytes
        )
        self._store = self._open_store(auto_save, auto_save_path)
        self._skip = 0
        self._loaded: Part | None = None
        self._pending: tuple[NewTrajectory, ...] = ()
        self._writer = BackgroundWriter(
            self._save, max_queue_bytes=self._max_queue_bytes
        )
        self._auto_save = auto_save
        self._next_id = self._store.next_trajectory_id
        self._num_ever = len(self._store.rows)
        self._current: View | None = None
        self._known: dict[str, BatchField] | None = None

    def manual_seed(self, seed: int | None) -> None:
        """Start the draws anew from a seed; None for a random one."""
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def _open_store(self, auto_save: bool, path: Path_) -> TrajectoryStore:
        if not auto_save:
            return MemoryStore()
        if not os.fspath(path):
            log_dir = os.environ.get("ZARRBUF_LOG_DIR", "logs")
            rank = os.environ.get("RANK", "0")
            path = os.path.join(log_dir, "replay_buffer", f"rank_{rank}")
            _LOG.info("trajectories are saved below %s", os.path.abspath(path))
        if self._format == "zarr":
            storage = open_storage(path)
            if isinstance(storage, LocalStorage) and is_rlinf_folder(storage.root):
                raise InvalidInputError(
                    f"auto_save_path {path} holds files of RLinf's; choose another "
                    "folder, or convert it with `zarrbuf convert`"
                )
            return LogStore.open_or_create(storage, seed=self._seed, codec=self._codec)
        folder = _local_folder(path)
        if (folder / ROOT_NAME).exists():
            raise InvalidInputError(
                f"auto_save_path {path} holds a zarrbuf buffer; trajectory_format "
                f"is {self._format!r}, choose another folder"
            )
        return RlinfStore.open_or_create(
            folder, seed=self._seed, file_format=_file_format(self._format)
        )

    # --- adding -----------------------------------------------------------------

    def add_trajectories(self, trajectories: Sequence[Any]) -> None:
        """Add trajectories; they can be drawn, and their tensors reused, at once.

        All are added or none. With `auto_save` they are saved in the background, in
        order; `flush` waits for that.

        Args:
            trajectories: objects with the fields of `Trajectory`.

        Raises:
            InvalidInputError: naming the field that cannot be stored, or that has
                another dtype or shape than in the trajectories before.
            StorageError: if saving an earlier trajectory failed; it stays queued, and
                these are not added.
        """
        self._writer.raise_error()
        encoded = [
            encode_trajectory(
                trajectory,
                uuid=new_uuid(),
                codec=self._codec,
                num_threads=self._num_threads,
            )
            for trajectory in trajectories
        ]
        with self._lock:
            known = dict(self._known_fields())
            for number, one in enumerate(encoded):
                fields = sorted_fields(one.header.schema)
                check_fields(fields, known, name=f"trajectories[{number}]")
                known.update({field.name: field for field in fields})
            items = [
                NewTrajectory.of(one, trajectory_id=self._next_id + number)
                for number, one in enumerate(encoded)
            ]
            self._known = known
            self._next_id += len(items)
            self._num_ever += len(items)
            self._current = None
            if isinstance(self._store, MemoryStore):
                self._keep_in_memory(self._store, items)
                return
            self._pending += tuple(items)
        self._writer.submit(items)

    def _keep_in_memory(
        self, store: MemoryStore, items: Sequence[NewTrajectory]
    ) -> None:
        store.append(items)
        if self._window_size and len(store.rows) > self._window_size:
            store.drop_first(len(store.rows) - self._window_size)

    def _save(self, items: Sequence[NewTrajectory]) -> None:
        """Save queued trajectories; runs in the writer's thread."""
        with self._store_lock:
            self._store.append(items)
        saved = {item.row.uuid for item in items}
        with self._lock:
            self._pending = tuple(p for p in self._pending if p.row.uuid not in saved)
            self._next_id = max(self._next_id, self._store.next_trajectory_id)
            self._current = None
        for uuid in saved:
            self._reader.forget_archive(uuid)

    def _known_fields(self) -> dict[str, BatchField]:
        if self._known is None:
            self._known = known_fields(self._parts())
        return self._known

    def flush(self) -> None:
        """Wait until every trajectory added so far is durable.

        Raises:
            StorageError: if saving failed, naming the trajectory; it stays queued, and
                the next `flush` tries again.
        """
        self._writer.flush()

    def refresh(self) -> None:
        """Take in trajectories that other processes appended to the same buffer."""
        self.flush()
        with self._store_lock:
            self._store.refresh()
        with self._lock:
            self._num_ever = max(self._num_ever, len(self._store.rows))
            self._next_id = max(self._next_id, self._store.next_trajectory_id)
            self._current = self._known = None

    # --- what there is ----------------------------------------------------------

    def _parts(self) -> list[Part]:
        """Return all rows that are listed, in order, with their stores."""
        parts: list[Part] = [] if self._loaded is None else [self._loaded]
        rows = self._store.rows
        if self._skip:
            rows = rows.take(np.arange(min(self._skip, len(rows)), len(rows)))
        parts.append((self._store, rows))
        if self._pending:
            listed = set(rows.fixed["uuid"][-len(self._pending) :].tolist())
            queued = MemoryStore()
            queued.append(
                [p for p in self._pending if bytes.fromhex(p.row.uuid) not in listed]
            )
            parts.append((queued, queued.rows))
        return parts

    def _view(self) -> View:
        with self._lock:
            if self._current is None:
                self._current = View.of(
                    self._parts(), sample_window_size=self._window_size
                )
            return self._current

    def __len__(self) -> int:
        """Return the number of trajectories that are drawn from."""
        return len(self._view().rows)

    @property
    def size(self) -> int:
        """Trajectories that are drawn from."""
        return len(self)

    @property
    def total_samples(self) -> int:
        """Samples that are drawn from."""
        return self._view().window.total_samples

    def is_ready(self, min_size: int) -> bool:
        """Whether at least `min_size` trajectories were ever added or loaded."""
        return self._num_ever >= min_size

    async def is_ready_async(self, min_size: int) -> bool:
        """Return `is_ready(min_size)`, for callers that await it."""
        return self.is_ready(min_size)

    def get_stats(self) -> dict[str, float]:
        """Return numbers, with the same keys in every process.

        `num_trajectories`, `total_samples`: what is drawn from. `cache_size`:
        trajectories whose small fields are kept decoded. `cache_bytes`: their bytes.
        `num_queued`: trajectories not saved yet. The rest counts since the buffer was
        made, see `ReadStats`.
        """
        view = self._view()
        return {
            "num_trajectories": len(view.rows),
            "total_samples": view.window.total_samples,
            "cache_size": self._reader.num_cached,
            "cache_bytes": self._reader.cached_bytes,
            "num_queued": self._writer.num_queued,
            "num_trajectories_ever": self._num_ever,
            **vars(self._reader.stats),
        }

    # --- drawing ----------------------------------------------------------------

    def sample(self, num_chunks: int) -> dict[str, Any]:
        """Draw transitions, uniformly and with replacement, from the window.

        For one seed and window the draws are RLinf's: `torch.randint` over the
        samples of the window, numbered in order, on a generator of its own.

        Args:
            num_chunks: how many; RLinf calls one transition a chunk here.

        Returns:
            Nested dict of CPU tensors `[num_chunks, ...]`, writable. It has the fields
            that every trajectory of the window has.

        Raises:
            InvalidInputError: if `num_chunks` is not a positive whole number.
            EmptyBufferError: if there is nothing to draw from.
            FormatError: if a chunk that is drawn is damaged.
        """
        count = _whole("num_chunks", num_chunks, minimum=1)
        with self._lock:
            view = self._view()
            if not view.window.total_samples:
                raise EmptyBufferError(
                    "the buffer holds no trajectory; add or load some before sampling"
                )
            draws = torch.randint(
                0, view.window.total_samples, (count,), generator=self._generator
            )
        plan = plan_batch(draws.numpy(), view.window)
        batch = self._reader.read_batch(
            plan, view.fields, lambda position: view.archive(position, self._reader)
        )
        return nest(batch)

    def sample_chunks(self, num_chunks: int) -> dict[str, Any]:
        """Draw transitions; see `sample`."""
        return self.sample(num_chunks)

    # --- single trajectories ----------------------------------------------------

    def load_trajectory(self, trajectory_id: int) -> Trajectory:
        """Read one whole trajectory that the buffer lists, window or not.

        Raises:
            TrajectoryNotFoundError: if the buffer lists no such id.
            FormatError: if it is damaged.
        """
        with self._lock:
            parts = self._parts()
        for store, rows in reversed(parts):
            found = np.flatnonzero(rows.trajectory_ids == trajectory_id)
            if len(found):
                return decode_trajectory(
                    self._reader.archive(rows, int(found[-1]), store)
                )
        ids = [n for _, rows in parts for n in rows.trajectory_ids.tolist()]
        known = f"{min(ids)} to {max(ids)}" if ids else "none"
        raise TrajectoryNotFoundError(
            f"no trajectory {trajectory_id!r}; the ids there are: {known}"
        )

    def _load_trajectory(
        self, trajectory_id: int, model_weights_id: str | None = None
    ) -> Trajectory:
        return self.load_trajectory(trajectory_id)

    @staticmethod
    def flatten_trajectory(trajectory: Any) -> dict[str, Any]:
        """Return the transitions of a trajectory as a batch.

        Returns:
            Nested dict of tensors `[T * B, ...]`; row `t * B + b` is environment b at
            step t, extra rows trimmed.
        """
        return nest(flatten_encoded(trajectory))

    _flatten_trajectory = flatten_trajectory

    @property
    def _trajectory_id_list(self) -> list[int]:
        with self._lock:
            return [n for _, r in self._parts() for n in r.trajectory_ids.tolist()]

    @property
    def _trajectory_index(self) -> dict[int, dict[str, Any]]:
        with self._lock:
            rows = Rows.concat([rows for _, rows in self._parts()])
        return {
            row.trajectory_id: {
                "num_samples": row.num_samples,
                "trajectory_id": row.trajectory_id,
                "max_episode_length": row.max_episode_length,
                "shape": row.shape,
                "model_weights_id": row.model_weights_id,
            }
            for row in map(rows.row, range(len(rows)))
        }

    # --- checkpoints ------------------------------------------------------------

    def save_checkpoint(self, path: Path_) -> None:
        """Save the window, the ids and the state of the draws at `path`.

        In the buffer's own format. What lies there already is not written again.

        Raises:
            InvalidInputError: if something of another format is there.
            StorageError: if saving failed; an earlier checkpoint there stays whole.
        """
        self._writer.flush()
        with self._lock:
            view = self._view()
            generator = encode_generator(self._generator)
            next_id = self._next_id
        if self._format == "zarr":
            save_buffer(
                view,
                path,
                reader=self._reader,
                seed=self._seed,
                codec=self._codec,
                state={"generator": generator, "trajectory_counter": next_id},
            )
            return
        save_folder(
            view,
            _local_folder(path),
            reader=self._reader,
            seed=self._seed,
            file_format=_file_format(self._format),
            next_trajectory_id=next_id,
            generator=generator,
        )

    def load_checkpoint(
        self,
        load_path: Path_,
        is_distributed: bool = False,
        local_rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Replace what the buffer holds by a checkpoint, or a part of it.

        Any buffer or folder of RLinf's is a checkpoint; which one it is is seen from
        its files. Draws go on where the checkpoint was saved; without a saved state
        they start at its seed.

        Args:
            load_path: a zarrbuf buffer or a folder of RLinf's.
            is_distributed: take the part of `local_rank` only.
            local_rank: in [0, world_size).
            world_size: number of parts; contiguous, the first ones get one more.

        Raises:
            NotFoundError: if neither is there, or a file of it is missing.
            FormatError: if it is damaged.
            InvalidInputError: if the rank is not allowed.
        """
        self._writer.flush()
        store = open_store(load_path)
        rows = store.rows
        if is_distributed:
            start, stop = partition(len(rows), local_rank, world_size)
            rows = rows.take(np.arange(start, stop))
        with self._lock:
            self._restore_draws(store, where=os.fspath(load_path))
            if isinstance(self._store, MemoryStore):
                self._store.remove_all(reason="load")
            self._skip = len(self._store.rows)
            self._loaded = (store, rows)
            self._num_ever = len(rows)
            self._next_id = int(rows.trajectory_ids.max(initial=-1)) + 1
            self._current = self._known = None
            self._reader.clear()

    def _restore_draws(self, store: TrajectoryStore, *, where: str) -> None:
        state = store.state or {}
        if "generator" in state:
            restore_generator(self._generator, state["generator"], where=where)
        elif store.seed is not None:
            self._generator.manual_seed(store.seed)

    # --- end --------------------------------------------------------------------

    def clear(self) -> None:
        """Forget all trajectories. Saved archives stay on disk, off the list."""
        self._writer.flush()
        with self._store_lock:
            self._store.remove_all(reason="clear")
        with self._lock:
            self._skip = 0
            self._loaded = None
            self._pending = ()
            self._num_ever = 0
            self._current = self._known = None
            self._reader.clear()

    def clear_cache(self) -> None:
        """Forget what is kept decoded and open; nothing else changes."""
        self._reader.clear()

    def close(self, wait: bool = True) -> None:
        """Save what is queued and stop the background thread. Safe twice.

        Raises:
            StorageError: if saving failed.
        """
        self._writer.close(wait=wait)
        self._reader.clear()

    def __enter__(self) -> TrajectoryReplayBuffer:
        """Return the buffer; leaving the block closes it."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the buffer."""
        self.close()


def open_store(path: Path_) -> TrajectoryStore:
    """Open the buffer or RLinf folder at a path, whichever it is.

    Raises:
        NotFoundError: if neither is there.
        FormatError: if it is damaged.
    """
    storage = open_storage(path)
    if isinstance(storage, LocalStorage) and is_rlinf_folder(storage.root):
        return RlinfStore.open(storage.root)
    if not storage.exists(ROOT_NAME):
        raise NotFoundError(
            f"{storage.url} holds no replay buffer: neither {ROOT_NAME} nor RLinf's "
            f"{METADATA_NAME} is there"
        )
    return LogStore.open(storage)


def _local_folder(path: Path_) -> Path:
    storage = open_storage(path)
    if not isinstance(storage, LocalStorage):
        raise InvalidInputError(
            f"path {os.fspath(path)!r} is not allowed for pt and pkl files; they need "
            "a local path"
        )
    return storage.root


def _file_format(name: str) -> FileFormat:
    return "pt" if name == "pt" else "pkl"


def _whole(name: str, value: SupportsIndex, *, minimum: int = 0) -> int:
    """Return `value` as an int, if it is a whole number of at least `minimum`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < minimum:
        raise InvalidInputError(
            f"{name} is {value!r}; a whole number of at least {minimum} is needed"
        )
    return number
