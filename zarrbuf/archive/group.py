"""One Zarr group of arrays <-> one stored `.zarr.zip`, torch-free.

Owns the order of members and the check that members and metadata agree. Knows
neither storage nor what the arrays mean.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from zarrbuf.archive.chunks import (
    Shard,
    Source,
    decode_chunk_into,
    encode_chunk,
    encode_rows_plainly,
)
from zarrbuf.archive.shards import (
    EncodeRows,
    check_coverage,
    decode_chunks,
    encode_shard,
    index_bytes,
    is_row_grid,
    parse_index,
)
from zarrbuf.archive.spec import AnyArray
from zarrbuf.archive.zarr_json import (
    CODECS,
    METADATA_NAME,
    ArrayInfo,
    CodecName,
    encode_array_metadata,
    encode_group_metadata,
    parse_node,
)
from zarrbuf.archive.zip_file import Member, encode_zip, parse_zip, read_member
from zarrbuf.errors import FormatError
from zarrbuf.storage.fetching import RemoteObject
from zarrbuf.storage.sparse import SparseObject

IntArray = npt.NDArray[np.int64]
_NODE_PATH: Final = re.compile(r"[A-Za-z0-9%_.-]+(/[A-Za-z0-9%_.-]+)*")
_BIG_ITEM: Final = 2**31 - 17  # BLOSC_MAX_BUFFERSIZE of c-blosc 1


@dataclass(frozen=True, slots=True)
class FieldArray:
    """One array on its way into an archive.

    Attributes:
        parts: C-contiguous arrays of the stored dtype: one, or for `obs/*` the
            current and the next observation, each `[T, B, ...]`.
        dtype: torch dtype name.
        time_name: name of the time dimension.
    """

    parts: tuple[AnyArray, ...]
    dtype: str
    time_name: str = "time"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the stored array."""
        shape = self.parts[0].shape
        return shape if len(self.parts) == 1 else (2, *shape)


def encode_archive(
    arrays: Mapping[str, FieldArray],
    attributes: Mapping[str, Any],
    *,
    codec: CodecName,
    encode_rows: EncodeRows = encode_rows_plainly,
) -> bytes:
    """Encode arrays as one archive; equal input gives equal bytes.

    Args:
        arrays: field path -> array. Two parts exactly where the path starts `obs/`.
        attributes: attributes of the root group, JSON values.
        codec: how chunks are compressed.
        encode_rows: compresses the rows of big fields.

    Returns:
        The bytes of the `.zarr.zip`.
    """
    big: list[tuple[str, list[bytes]]] = []
    small: list[tuple[str, list[bytes]]] = []
    metadata: dict[str, bytes] = {}
    for field in sorted(arrays):
        array = arrays[field]
        info = ArrayInfo(
            field, array.shape, array.dtype, codec, CODECS[codec], array.time_name
        )
        if not info.shape:
            info = ArrayInfo(field, (), array.dtype, "none", 0)
        metadata[info.metadata_name] = encode_array_metadata(info)
        for group in _parents(field):
            metadata[f"{group}/{METADATA_NAME}"] = encode_group_metadata({})
        if not info.is_empty:
            shard = _encode_member(array, info, encode_rows=encode_rows)
            (big if is_row_grid(info) else small).append((info.shard_name, shard))
    root = (METADATA_NAME, [encode_group_metadata(attributes)])
    return encode_zip(
        [*big, *small, *((name, [metadata[name]]) for name in sorted(metadata)), root]
    )


def _encode_member(
    array: FieldArray, info: ArrayInfo, *, encode_rows: EncodeRows
) -> list[bytes]:
    if not info.shape:
        return [encode_chunk(array.parts[0], "none", 0)]
    return encode_shard(array.parts, info, encode_rows=encode_rows)


def _parents(field: str) -> list[str]:
    parts = field.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]


def is_metadata(member: Member) -> bool:
    """Whether a member says what the others are."""
    return member.name == METADATA_NAME or member.name.endswith(f"/{METADATA_NAME}")


class Archive:
    """An archive opened for reading; immutable, safe to share between threads.

    Attributes:
        name: name of the file, for messages.
        source: its bytes, mapped or in memory.
        attributes: attributes of the root group.
        arrays: field path -> what its metadata says.
        memory_bytes: what its bytes take that are held in memory, not mapped.
        remote: where those of its bytes are that are not in `source` yet; None if all
            are.
    """

    remote: RemoteObject | None = None

    def __init__(self, source: Source, *, name: str, is_whole: bool = True) -> None:
        """Read the directory and all metadata, and check that they agree.

        Args:
            source: its bytes.
            name: name of the file, for messages.
            is_whole: whether all bytes are there; else only directory and metadata.

        Raises:
            FormatError: naming file, member and rule.
        """
        self.name = name
        self.source = source
        owner = source.obj if isinstance(source, memoryview) else source
        self.memory_bytes = len(source) if isinstance(owner, bytes) else 0
        self._shards: dict[str, Shard] = {}
        view = memoryview(source)
        self.members = parse_zip(view, name=name, is_whole=is_whole)
        self.arrays: dict[str, ArrayInfo] = {}
        groups: dict[str, dict[str, Any]] = {}
        for member in self.members.values():
            if is_metadata(member):
                path = member.name[: -len(METADATA_NAME)].rstrip("/")
                self._add_node(path, member, view, groups)
        if "" not in groups:
            raise FormatError(f"{name}: the root {METADATA_NAME} is missing")
        self.attributes = groups.pop("")
        self._check_members(groups)

    def _add_node(
        self,
        path: str,
        member: Member,
        view: memoryview,
        groups: dict[str, dict[str, Any]],
    ) -> None:
        data = read_member(view, member, name=self.name)
        if path and not _NODE_PATH.fullmatch(path):
            raise FormatError(f"{self.name}: {path!r:.80} is no name of an array")
        try:
            node = parse_node(data, path)
        except FormatError as exc:
            raise FormatError(f"{self.name}: {exc}") from exc
        if isinstance(node, ArrayInfo):
            self.arrays[path] = node
        else:
            groups[path] = node

    def _check_members(self, groups: Mapping[str, Mapping[str, Any]]) -> None:
        needed = {group for field in self.arrays for group in _parents(field)}
        if set(groups) != needed or any(groups.values()):
            raise FormatError(
                f"{self.name}: its groups {sorted(groups)!r:.200} are not the parents "
                f"of its arrays {sorted(needed)!r:.200}, or carry attributes"
            )
        expected = {METADATA_NAME, *(f"{group}/{METADATA_NAME}" for group in groups)}
        for info in self.arrays.values():
            expected.add(info.metadata_name)
            if not info.is_empty:
                expected.add(info.shard_name)
        for member in sorted(expected ^ set(self.members)):
            fault = "is missing" if member in expected else "is described by nothing"
            raise FormatError(f"{self.name}: member {member!r:.200} {fault}")

    def shard(self, field: str) -> Shard:
        """Return where the chunks of a field lie, in C order of the chunk grid.

        Raises:
            FormatError: if the shard index is damaged.
        """
        shard = self._shards.get(field)
        if shard is None:
            shard = self._shards[field] = self._open_shard(self.arrays[field])
        return shard

    def _open_shard(self, info: ArrayInfo) -> Shard:
        member = self.members[info.shard_name]
        where = self._where(info.field)
        if info.chunk_bytes > _BIG_ITEM and info.codec != "none":
            raise FormatError(
                f"{where}: a chunk of {info.chunk_bytes} bytes; blosc holds at most "
                f"{_BIG_ITEM}"
            )
        count = info.grid.num_chunks
        ranges = parse_index(self.source, member.start, member.stop, count, where=where)
        return Shard(self.source, ranges, info.chunk_bytes, info.codec, where)

    def emptied(self) -> Self:
        """Return this archive, opened, with nothing of its chunks there any more."""
        assert self.remote is not None
        data = SparseObject(self.remote.data.num_bytes, name=self.name)
        copied = copy.copy(self)
        copied.remote = dataclasses.replace(self.remote, data=data)
        copied.source = data.view
        copied._shards = {
            field: dataclasses.replace(shard, source=data.view)
            for field, shard in self._shards.items()
        }
        return copied

    def member_range(self, field: str) -> IntArray:
        """Return where all of a field lies, int64 [1, 2]; empty if it has no bytes."""
        info = self.arrays[field]
        if info.is_empty:
            return np.zeros((1, 2), np.int64)
        member = self.members[info.shard_name]
        return np.array([[member.start, member.stop]])

    def index_range(self, field: str) -> IntArray:
        """Return where the index of a field's shard lies, int64 [1, 2].

        At the end of the member, if the member is as large as the metadata says;
        opening the shard finds out whether it is.
        """
        start, stop = self.member_range(field)[0].tolist()
        num_bytes = index_bytes(self.arrays[field].grid.num_chunks)
        return np.array([[max(start, stop - num_bytes), stop]])

    def chunk_ranges(self, field: str) -> IntArray:
        """Return `shard(field).ranges`: int64 [num_chunks, 2], start and stop."""
        return self.shard(field).ranges

    def _where(self, field: str) -> str:
        return f"{self.name}: field {field!r}"

    def read_array(self, field: str) -> AnyArray:
        """Read a whole array, every chunk checked.

        Raises:
            FormatError: if a chunk is damaged.
        """
        info = self.arrays[field]
        if info.is_empty:
            return np.empty(info.shape, info.stored)
        if not info.shape:
            return self._read_scalar(info)
        return decode_chunks(self.shard(field), info)

    def _read_scalar(self, info: ArrayInfo) -> AnyArray:
        member = self.members[info.shard_name]
        out = np.empty((), info.stored)
        decode_chunk_into(
            self.source,
            member.start,
            member.stop,
            out,
            codec="none",
            where=self._where(info.field),
        )
        return out

    def check(self) -> int:
        """Read everything: every member, index and chunk.

        Returns:
            Number of chunks stored.

        Raises:
            FormatError: naming what is damaged.
        """
        view = memoryview(self.source)
        for member in self.members.values():
            read_member(view, member, name=self.name)
        num_chunks = 0
        for field, info in self.arrays.items():
            if not info.shape:
                self.read_array(field)
            elif not info.is_empty:
                num_chunks += self._check_shard(info)
        return num_chunks

    def _check_shard(self, info: ArrayInfo) -> int:
        """Decode each stored chunk of a field once, in the memory of one chunk."""
        member = self.members[info.shard_name]
        shard = self.shard(info.field)
        check_coverage(shard.ranges, member.start, member.stop, where=shard.where)
        block = np.empty(info.grid.inner, info.stored)
        _, chunks = np.unique(shard.ranges, axis=0, return_index=True)
        for chunk in chunks.tolist():
            shard.decode_into(chunk, block)
        return len(chunks)
