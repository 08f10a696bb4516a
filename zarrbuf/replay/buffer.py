"""`TrajectoryReplayBuffer`: RLinf's buffer, over zarrbuf's stores.

The face, with no algorithm of its own: it checks arguments and joins its parts. The
live set knows what it holds, stores keep trajectories, the sampler draws batches, the
write queue saves in the background.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence
from typing import Any, Final

import torch

from zarrbuf.archive.zarr_json import check_codec
from zarrbuf.common.arguments import check_interval, check_whole_number
from zarrbuf.common.background import Repeater
from zarrbuf.common.thread_pool import Workers, default_num_threads
from zarrbuf.common.uuids import new_uuid
from zarrbuf.manifest.selection import partition
from zarrbuf.replay.live_set import LiveSet
from zarrbuf.replay.rlinf_names import RlinfNames
from zarrbuf.replay.run_checkpoint import save_rows
from zarrbuf.sampling.batch_reader import BatchReader
from zarrbuf.sampling.batches import BatchMemory, can_pin
from zarrbuf.sampling.draws import Draws
from zarrbuf.sampling.prefetch import Prefetcher
from zarrbuf.sampling.sampler import Sampler
from zarrbuf.storage.block_cache import DiskCache
from zarrbuf.storage.resolve import Location, StorageOptions, open_storage
from zarrbuf.stores.contract import TrajectoryStore
from zarrbuf.stores.in_memory import MemoryStore
from zarrbuf.stores.opening import (
    check_format,
    default_path,
    format_at,
    open_or_create_store,
    open_store,
)
from zarrbuf.trajectory.encoding import EncodedTrajectory, encode_trajectory
from zarrbuf.trajectory.packing import PackedTrajectory, pack_trajectory
from zarrbuf.upkeep.retention import retain

_LOG: Final = logging.getLogger("zarrbuf")


class TrajectoryReplayBuffer(RlinfNames):
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
        auto_save_path: Location = "",
        trajectory_format: str | None = None,
        *,
        codec: str = "lz4",
        cache_bytes: int = 256 << 20,
        max_queue_bytes: int = 256 << 20,
        num_threads: int | None = None,
        pin_memory: bool = False,
        storage_options: StorageOptions | None = None,
        cache_dir: Location | None = None,
        cache_dir_bytes: int = 10 << 30,
        prefetch_batches: int = 2,
        refresh_interval_s: float | None = None,
        allow_bases: Sequence[Location] = (),
        retention: int | None = None,
    ) -> None:
        """Make a buffer, or continue the one at `auto_save_path`.

        Args:
            seed: seed of the draws; None for a random one.
            enable_cache: keep small fields (states, actions, rewards) decoded.
            cache_size: the newest so many trajectories on an object store are fetched
                whole in the background, as far as half of `cache_bytes` goes.
            sample_window_size: trajectories drawn from, the newest; 0 for all.
            auto_save: save every trajectory in the background; without, the window
                is kept in memory, compressed but for trajectories of at most 64 KiB
                without images.
            auto_save_path: where, a local path or a URL (`s3://`, `gs://`, `memory://`,
                `file://`); else where `zarrbuf.stores.opening.default_path` says.
            trajectory_format: "zarr", or "pt" or "pkl" for folders that RLinf loads;
                None for what lies at `auto_save_path`, and "zarr" where nothing does.
            codec: "lz4", "zstd" (smaller, slower) or "none".
            cache_bytes: bound of the decoded small fields, and as much again for
                chunks fetched from object stores and archives made from `pt` and
                `pkl` files.
            max_queue_bytes: encoded bytes that may wait to be saved;
                `add_trajectories` waits beyond.
            num_threads: threads that compress and decode, the caller's included; None
                for as many as there are processors, at most 4. They gain nothing
                where the extra `fast` is not installed.
            pin_memory: give batches page-locked memory, for asynchronous copies to a
                CUDA device; without one there is no effect, as in torch's DataLoader.
            storage_options: for URLs here, in `load_checkpoint` and `save_checkpoint`;
                see `zarrbuf.storage.resolve.open_storage`.
            cache_dir: local directory where what is fetched from object stores is kept,
                for this run and the next ones, and for other processes; it may be
                deleted at any time. None to keep it in memory alone.
            cache_dir_bytes: room that it may take on disk.
            prefetch_batches: batches whose chunks are fetched from object stores before
                they are drawn, once two of one size were. It changes no draw.
            refresh_interval_s: seconds between looks for what other processes appended,
                in the background; None for `refresh` alone. Its errors reach the next
                `sample`.
            allow_bases: where a buffer that names trajectories of others may point
                to, besides what lies beside it and in its bucket.
            retention: keep the newest so many trajectories on disk, at least the
                window; older ones leave the list, and an hour later their archives go.
                None to keep all.

        Raises:
            InvalidInputError: if an argument is not allowed.
            FormatError: if what lies at `auto_save_path` is damaged.
            StorageError: if the storage failed.
        """
        if trajectory_format is not None:
            check_format("trajectory_format", trajectory_format)
        self._codec = check_codec(codec)
        if num_threads is None:
            num_threads = default_num_threads()
        self._workers = Workers(
            check_whole_number("num_threads", num_threads, minimum=1)
        )
        self.seed = seed
        self.enable_cache = enable_cache
        self.auto_save = auto_save
        self.logger = _LOG
        self._draws = Draws(seed)
        cache_dir_bytes = check_whole_number("cache_dir_bytes", cache_dir_bytes)
        cache = cache_dir and DiskCache(cache_dir, max_bytes=cache_dir_bytes)
        self._open_storage = functools.partial(
            open_storage,
            options=storage_options,
            range_cache=cache or None,
            allow_bases=allow_bases,
        )
        cache_size = check_whole_number("cache_size", cache_size)
        cache_bytes = check_whole_number("cache_bytes", cache_bytes)
        window_size = check_whole_number("sample_window_size", sample_window_size)
        max_queue_bytes = check_whole_number("max_queue_bytes", max_queue_bytes)
        self._reader = BatchReader(
            cache_bytes=cache_bytes if enable_cache else 0,
            archive_bytes=cache_bytes,
            workers=self._workers,
        )
        self._memory = BatchMemory(pin_memory=pin_memory and can_pin())
        self._prefetcher = Prefetcher(
            self._reader,
            depth=check_whole_number("prefetch_batches", prefetch_batches),
            num_newest=cache_size if enable_cache else 0,
        )
        self._sampler = Sampler(self._reader, self._memory, self._prefetcher)
        interval_s = check_interval("refresh_interval_s", refresh_interval_s)
        self.auto_save_path: Location | None = None
        if auto_save:
            is_told = bool(os.fspath(auto_save_path))
            self.auto_save_path = auto_save_path if is_told else default_path()
        store = self._own_store(trajectory_format)
        self.trajectory_format = trajectory_format or store.suffix
        self._live = LiveSet(
            store,
            self._reader,
            window_size=window_size,
            max_queue_bytes=max_queue_bytes,
            max_at_hand=cache_size * enable_cache if auto_save else window_size or None,
            after_save=retain(store, retention, window_size=window_size),
        )
        self._refreshing = (
            None
            if interval_s is None
            else Repeater(self._live.look, interval_s=interval_s)
        )

    def manual_seed(self, seed: int | None) -> None:
        """Start the draws anew from a seed; None for a random one."""
        self._draws.start(seed)

    def _own_store(self, trajectory_format: str | None) -> TrajectoryStore:
        if self.auto_save_path is None:
            return MemoryStore(codec=self._codec)
        storage = self._open_storage(self.auto_save_path)
        return open_or_create_store(
            storage,
            trajectory_format=trajectory_format or format_at(storage) or "zarr",
            seed=self.seed,
            codec=self._codec,
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
        self._live.writer.raise_error()
        self._live.add([self._encode(one) for one in trajectories])

    def _encode(self, trajectory: Any) -> EncodedTrajectory | PackedTrajectory:
        uuid = new_uuid()
        if self._live.is_in_memory:
            packed = pack_trajectory(trajectory, uuid=uuid)
            if packed is not None:
                return packed
        return encode_trajectory(
            trajectory, uuid=uuid, codec=self._codec, workers=self._workers
        )

    def flush(self) -> None:
        """Wait until every trajectory added so far is durable.

        Raises:
            StorageError: if saving failed, naming the trajectory; it stays queued, and
                the next `flush` tries again.
        """
        self._live.writer.flush()

    def refresh(self) -> None:
        """Take in trajectories that other processes appended to the same buffer.

        Also to the one that was loaded, unless only a part of it was. Whole commits
        only.

        Raises:
            StorageError: if the storage failed; what was known stays.
        """
        self._live.refresh()

    @property
    def url(self) -> str | None:
        """Where all trajectories lie; None if some are in memory or loaded."""
        return self._live.url

    # --- what there is ----------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of trajectories ever added or loaded, as RLinf's does."""
        return self._live.size

    @property
    def size(self) -> int:
        """Trajectories ever added or loaded, those that left the window too."""
        return self._live.size

    @property
    def total_samples(self) -> int:
        """Samples of all trajectories ever added or loaded."""
        return self._live.total_samples

    @property
    def window_trajectories(self) -> int:
        """Trajectories that are drawn from."""
        return len(self._live.drawn())

    @property
    def window_samples(self) -> int:
        """Samples that are drawn from."""
        return self._live.drawn().total_samples

    @property
    def sample_window_size(self) -> int:
        """Trajectories in the window, the newest; 0 for all. Can be set.

        Without `auto_save`, trajectories that left an earlier window are gone.
        """
        return self._live.window_size

    @sample_window_size.setter
    def sample_window_size(self, value: int) -> None:
        self._live.window_size = check_whole_number("sample_window_size", value)

    @property
    def random_generator(self) -> torch.Generator:
        """The generator of the draws, which moves as RLinf's does."""
        return self._draws.generator

    def is_ready(self, min_size: int) -> bool:
        """Whether at least `min_size` trajectories were ever added or loaded."""
        return self._live.size >= min_size

    async def is_ready_async(self, min_size: int) -> bool:
        """Return `is_ready(min_size)`, for callers that await it."""
        return self.is_ready(min_size)

    def get_stats(self, *, detailed: bool = False) -> dict[str, float]:
        """Return numbers, with the same keys in every process.

        RLinf's three, with RLinf's numbers: `num_trajectories` and `total_samples` ever
        added or loaded; `cache_size`, the newest trajectories that it would keep.

        Args:
            detailed: return more: `window_trajectories` and `window_samples`, what is
                drawn from; `cache_trajectories`, whose small fields are kept decoded,
                and `cache_bytes`, their bytes; `num_queued`, not saved yet; what
                sampling has cost since the buffer was made, see
                `zarrbuf.sampling.stats.ReadStats`, and as `last_...` what the last call
                has.
        """
        stats: dict[str, float] = {
            "num_trajectories": self._live.size,
            "total_samples": self._live.total_samples,
            "cache_size": self._live.num_at_hand,
        }
        if not detailed:
            return stats
        drawn = self._live.drawn()
        return {
            **stats,
            "window_trajectories": len(drawn),
            "window_samples": drawn.total_samples,
            "cache_trajectories": self._reader.small.num_cached,
            "cache_bytes": self._reader.small.cached_bytes,
            "num_queued": self._live.writer.num_queued,
            **self._reader.stats.numbers(),
        }

    # --- drawing ----------------------------------------------------------------

    def sample(self, num_chunks: int = 0, out: Any = None) -> dict[str, Any]:
        """Draw transitions, uniformly and with replacement, from the window.

        For one seed and window the draws are RLinf's: `torch.randint` over the
        samples of the window, numbered in order, on a generator of its own. Where more
        are asked for than the window holds, RLinf returns as many as it holds; here
        these come first, and the rest is drawn by a second generator, so that every
        later batch is still RLinf's.

        Args:
            num_chunks: how many; RLinf calls one transition a chunk here.
            out: a batch of an earlier call with the same number, filled again and
                returned. What it holds after an error is not defined.

        Returns:
            Nested dict of CPU tensors `[num_chunks, ...]`, writable. It has the fields
            that every trajectory of the window has. The memory of a batch that
            nothing refers to any more is used again.

        Raises:
            InvalidInputError: if `num_chunks` is not a whole number from 1 to 2**24,
                or `out` not such a batch; 0 or less is an AssertionError too, which is
                what RLinf raises.
            EmptyBufferError: if there is nothing to draw from.
            FormatError: if a chunk that is drawn is damaged.
        """
        if self._refreshing is not None:
            self._refreshing.raise_error()
        return self._sampler.sample(num_chunks, self._live.window, self._draws, out)

    sample_chunks = sample

    # --- checkpoints ------------------------------------------------------------

    def save_checkpoint(self, save_path: Location) -> None:
        """Save the window, the ids, the counts and the state of the draws.

        In the buffer's own format, or that of what was loaded; raises what
        `run_checkpoint.save_rows` does.

        Args:
            save_path: where; a checkpoint of the same format may be there.
        """
        storage = self._open_storage(save_path)
        with self._live.saved_rows() as (rows, own):
            save_rows(
                rows,
                storage,
                own=own,
                trajectory_format=self.trajectory_format,
                opened=self._reader.archives,
                seed=self.seed,
                codec=self._codec,
                state={
                    **self._draws.state,
                    "trajectory_counter": self._live.next_trajectory_id,
                    "size": self._live.size,
                    "total_samples": self._live.total_samples,
                },
            )

    def load_checkpoint(
        self,
        load_path: Location,
        is_distributed: bool = False,
        local_rank: int = 0,
        world_size: int = 1,
        *,
        version: int | None = None,
    ) -> None:
        """Replace what the buffer holds by a checkpoint, or a part of it.

        Any buffer of zarrbuf's or folder of RLinf's is a checkpoint; its files tell
        which it is. Draws go on where the checkpoint was saved; without a saved state
        they start at its seed, and without a seed they stay as they are. Its seed and
        its format are what the next `save_checkpoint` records.

        Args:
            load_path: a zarrbuf buffer, path or URL, or a folder of RLinf's.
            is_distributed: take the part of `local_rank` only.
            local_rank: in [0, world_size).
            world_size: number of parts; contiguous, the first ones get one more.
            version: load it as it was after that commit; None for now.

        Raises:
            NotFoundError: if neither is there, or a file of its window is missing.
            FormatError: if it is damaged.
            InvalidInputError: if the rank is not allowed.
        """
        self._live.writer.flush()
        if not is_distributed:
            local_rank, world_size = 0, 1
        partition(0, local_rank, world_size)  # refuses a rank before all else
        store = open_store(self._open_storage(load_path), version=version)
        self._live.load(store, rank=local_rank, world_size=world_size)
        self._draws.carry_on(store, where=os.fspath(load_path))
        self.trajectory_format = store.suffix
        if store.seed is not None:
            self.seed = store.seed

    # --- end --------------------------------------------------------------------

    def clear(self) -> None:
        """Forget all trajectories. Saved archives stay on disk, off the list."""
        self._live.clear()

    def clear_cache(self) -> None:
        """Forget what is kept decoded and open; nothing else changes."""
        self._live.num_at_hand = 0
        self._reader.clear()
        self._memory.clear()

    def close(self, wait: bool = True) -> None:
        """Save what is queued and stop the background thread. Safe twice.

        Raises:
            StorageError: if saving failed.
        """
        if self._refreshing is not None:
            self._refreshing.close()
        self._prefetcher.close()
        self._live.writer.close(wait=wait)
        self.clear_cache()
        self._workers.close()

    def __repr__(self) -> str:
        """Return how much is drawn from, of what shape, and where it is."""
        return (
            f"{type(self).__name__}({self._live.describe()}, {self.trajectory_format})"
        )

    def __enter__(self) -> TrajectoryReplayBuffer:
        """Return the buffer; leaving the block closes it."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the buffer."""
        self.close()
