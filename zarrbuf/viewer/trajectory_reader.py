"""One stored trajectory to be looked at: single samples of its fields, and series.

Owns which chunks that takes, and which observations are images. Reads no other chunk.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from zarrbuf.archive.spec import (
    AnyArray,
    BatchField,
    batch_fields,
    decode_key,
    step_rows,
)
from zarrbuf.common.lru import LruCache
from zarrbuf.manifest.rows import IntArray, Row
from zarrbuf.storage.fetching import FetchCost, fetch
from zarrbuf.trajectory.archived import TrajectoryArchive
from zarrbuf.trajectory.trajectory import to_tensor
from zarrbuf.viewer.images import SHOWN_AS_STORED, ValueRange, image_size, is_image

ChunkKey = tuple[int, str, int]
_NUMBERS: Final = itertools.count()
"""Of recordings: a file may be replaced, and opened anew, under the same name."""
MAX_FETCHED_BYTES: Final = 256 << 20
"""What may be kept of one remote trajectory as it was fetched."""


@dataclass
class PlaybackStats:
    """What looking has cost so far.

    Attributes:
        chunks_read: chunks decoded.
        bytes_read: bytes of them as they are stored.
    """

    chunks_read: int = 0
    bytes_read: int = 0


class Recording:
    """One trajectory, opened; reads single samples of its fields. Safe between threads.

    Attributes:
        row: its row.
        name: the name people know it by.
        fields: name in a batch -> field; those without numbers are left out.
        cameras: names of the observations that are images.
        vectors: names of the observations that are not.
        ranges: camera -> the numbers it gave so far, for whoever shows them to widen;
            without cameras that are shown as they are stored.
    """

    def __init__(
        self,
        archive: TrajectoryArchive,
        row: Row,
        *,
        name: str,
        stats: PlaybackStats,
        kept: LruCache[ChunkKey, AnyArray],
    ) -> None:
        """Read what the archive says of itself.

        Args:
            archive: opened.
            row: its row.
            name: the name people know it by.
            stats: what reading costs is added.
            kept: decoded chunks: recording, field, first byte -> chunk.
        """
        self.row = row
        self.name = name
        self._archive = archive
        self._stats = stats
        self._kept = kept
        self._lock = threading.Lock()
        self._number = next(_NUMBERS)
        self.fields: dict[str, BatchField] = {}
        for one in batch_fields(archive.header.schema):
            if 0 not in one.spec.shape:
                plain = _plain(one.name)
                self.fields[one.name if plain in self.fields else plain] = one
        self.cameras: list[str] = []
        self.vectors: list[str] = []
        for name, one in sorted(self.fields.items()):
            group, _, observation = name.partition("/")
            if group == "curr_obs":
                kind = self.cameras if is_image(one.spec) else self.vectors
                kind.append(observation)
        self.ranges: dict[str, ValueRange] = {
            name: ValueRange()
            for name in self.cameras
            if self.fields[_observation(name, 0)].spec.dtype not in SHOWN_AS_STORED
        }

    @property
    def num_steps(self) -> int:
        """`T`."""
        return self.row.num_steps

    @property
    def num_envs(self) -> int:
        """`B`."""
        return self.row.num_envs

    def has(self, name: str, stage: int) -> bool:
        """Whether there is an observation `name` before (0) or after (1) steps.

        One after steps that is of another kind than that before is not meant.
        """
        found = self.fields.get(_observation(name, stage))
        return found is not None and is_image(found.spec) == (name in self.cameras)

    def image_size(self, camera: str, stage: int) -> tuple[int, int]:
        """Return height and width of the images of a camera."""
        return image_size(self.fields[_observation(camera, stage)].spec)

    def observation(self, name: str, *, stage: int, step: int, env: int) -> AnyArray:
        """Read one observation of one sample.

        Returns:
            Its numbers; of dtypes that NumPy lacks, as float32.

        Raises:
            FormatError: if the chunk is damaged.
            StorageError: if the storage failed.
        """
        return self.sample(_observation(name, stage), step=step, env=env)

    def sample(self, name: str, *, step: int, env: int) -> AnyArray:
        """Read one sample of a field, see `observation`."""
        field = self.fields[name]
        wanted = self._wanted(name, np.array([step]), env)
        archive = self._fetched([wanted])
        chunk = self._chunk(archive, field.field, int(wanted.chunks[0]))
        return _numbers(chunk[wanted.within(0)], field)

    def series(self, name: str, *, env: int) -> AnyArray:
        """Read a field for all steps of an environment: array [T, ...].

        Raises:
            FormatError: if a chunk is damaged.
            StorageError: if the storage failed.
        """
        field = self.fields[name]
        wanted = self._wanted(name, np.arange(self.num_steps), env)
        archive = self._fetched([wanted])
        out = np.empty((self.num_steps, *field.spec.shape), field.spec.stored)
        order = np.argsort(wanted.chunks, kind="stable")
        numbers, firsts = np.unique(wanted.chunks[order], return_index=True)
        for number, steps in zip(
            numbers.tolist(), np.split(order, firsts[1:]), strict=True
        ):
            chunk = self._chunk(archive, field.field, number)
            out[steps] = chunk[wanted.within(steps)]
        return _numbers(out, field)

    def fetch_samples(self, names: Iterable[str], *, steps: IntArray, env: int) -> None:
        """Fetch some steps of some fields, in one round.

        Raises:
            FormatError: if the index of a field is damaged.
            StorageError: if the storage failed.
        """
        self._fetched([self._wanted(name, steps, env) for name in names])

    def read_observations(
        self,
        names: Iterable[str],
        *,
        step: int,
        envs: Iterable[int],
        max_decoded_bytes: int,
    ) -> None:
        """Read observations before and after a step ahead: fetched in one round.

        Args:
            names: of observations.
            step: `t`.
            envs: `b` of each.
            max_decoded_bytes: if their chunks are larger than this together, none is
                decoded.

        Raises:
            FormatError: if a chunk is damaged.
            StorageError: if the storage failed.
        """
        found = [
            _observation(name, stage)
            for name in names
            for stage in (0, 1)
            if self.has(name, stage)
        ]
        steps = np.array([step])
        wanted = [self._wanted(name, steps, env) for env in envs for name in found]
        archive = self._fetched(wanted)
        chunks = {(one.field.field, int(one.chunks[0])) for one in wanted}
        sizes = (archive.arrays[field].chunk_bytes for field, _ in chunks)
        if sum(sizes) > max_decoded_bytes:
            return
        for field, number in sorted(chunks):
            self._chunk(archive, field, number)

    def _wanted(self, name: str, steps: IntArray, env: int) -> _Wanted:
        """Return in which chunks samples are, and where in the chunk each is."""
        field = self.fields[name]
        grid = self._archive.arrays[field.field].grid
        num_rows = self._archive.num_rows(field.field)
        rows = step_rows(field.spec.rows, num_rows, self.num_steps)[steps]
        places = [rows, np.full_like(rows, env)]
        if field.stage is not None:
            places.insert(0, np.full_like(rows, field.stage))
        inner, counts = grid.inner[: len(places)], grid.counts[: len(places)]
        cells = [place // size for place, size in zip(places, inner, strict=True)]
        numbers = np.ravel_multi_index(tuple(cells), counts).astype(np.int64)
        offsets = [place % size for place, size in zip(places, inner, strict=True)]
        return _Wanted(field, numbers, tuple(offsets))

    def _fetched(self, wanted: Sequence[_Wanted]) -> TrajectoryArchive:
        """Return the archive with some chunks there."""
        with self._lock:
            if self._archive.fetched_bytes > MAX_FETCHED_BYTES:
                self._archive = self._archive.emptied()
            archive = self._archive
        remote = archive.remote
        if remote is None:
            return archive
        cost = FetchCost()
        fields = {one.field.field for one in wanted}
        fetch(((remote, archive.index_range(field)) for field in sorted(fields)), cost)
        chunks = (archive.shard(one.field.field).ranges[one.chunks] for one in wanted)
        fetch(((remote, ranges) for ranges in chunks), cost)
        return archive

    def _chunk(self, archive: TrajectoryArchive, field: str, number: int) -> AnyArray:
        """Return a chunk decoded; to be read only."""
        shard, info = archive.shard(field), archive.arrays[field]
        start, stop = shard.ranges[number].tolist()
        key = (self._number, field, start)
        found = self._kept.get(key)
        if found is None:
            found = np.empty(info.grid.inner, info.stored)
            shard.decode_into(number, found)
            self._kept.put(key, found, cost=found.nbytes)
            with self._lock:
                self._stats.chunks_read += 1
                self._stats.bytes_read += stop - start
        return found


@dataclass(frozen=True)
class _Wanted:
    """Samples of one field: int64 [n] numbers of their chunks, and places in these."""

    field: BatchField
    chunks: IntArray
    offsets: tuple[IntArray, ...]

    def within(self, which: Any) -> tuple[Any, ...]:
        """Return what some of the samples, or one, are indexed by in their chunk."""
        return tuple(one[which] for one in self.offsets)


def _observation(name: str, stage: int) -> str:
    return f"{('curr_obs', 'next_obs')[stage]}/{name}"


def _plain(name: str) -> str:
    """Return the name of a field with its keys as the caller wrote them."""
    return "/".join(decode_key(part) for part in name.split("/"))


def _numbers(array: AnyArray, field: BatchField) -> AnyArray:
    """Return stored values as numbers that NumPy knows."""
    if field.spec.dtype == str(field.spec.stored):
        return array
    whole = np.ascontiguousarray(array)
    return to_tensor(whole, field.spec.dtype).float().numpy()
