"""What a buffer samples from right now: the newest rows of some stores.

A view is immutable; adding, loading and clearing make a new one, which costs the same
however many rows there are. Owns the window
across stores and which fields its batches have. Knows no thread and no file.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from zarrbuf.archive.spec import BatchField, FieldSpec, Schema
from zarrbuf.errors import InvalidInputError
from zarrbuf.manifest.row_table import Stretch
from zarrbuf.manifest.rows import UNKNOWN_SCHEMA, IntArray, Row, Rows
from zarrbuf.sampling.batch_reader import BatchReader
from zarrbuf.sampling.index_map import Span, Window, window_start
from zarrbuf.sampling.small_fields import sorted_fields
from zarrbuf.storage.fetching import FetchCost
from zarrbuf.stores.contract import TrajectoryStore, known_name
from zarrbuf.trajectory.archived import TrajectoryArchive

_LOG: Final = logging.getLogger("zarrbuf")
_UNKNOWN: Final = int(UNKNOWN_SCHEMA, 16)
_MAX_KNOWN: Final = 256
Part = tuple[TrajectoryStore, Stretch]
FieldsOfSchemas = dict[frozenset[int], list[BatchField]]


@dataclass(frozen=True)
class View:
    """The trajectories of the window, each with the store it is in.

    Positions count all rows of the parts, those too that were taken off the list.

    Attributes:
        parts: stores with the listed rows that are in the window.
        known: schemas -> fields of batches; views of one buffer share it.
    """

    parts: tuple[Part, ...]
    known: FieldsOfSchemas = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        parts: Sequence[Part],
        *,
        sample_window_size: int,
        known: FieldsOfSchemas | None = None,
    ) -> View:
        """Make the view of the newest rows of `parts`, one after the other.

        Args:
            parts: stores with those of their rows that are listed.
            sample_window_size: trajectories in the window, 0 for all.
            known: what other views found out about the fields of some schemas.
        """
        total = sum(len(listed) for _, listed in parts)
        wanted = total - window_start(total, sample_window_size)
        kept: list[Part] = []
        for store, listed in reversed(parts):
            newest = listed.newest(wanted)
            wanted -= len(newest)
            kept.append((store, newest))
        return cls(tuple(reversed(kept)), {} if known is None else known)

    def __len__(self) -> int:
        """Return the number of trajectories in the window."""
        return sum(len(listed) for _, listed in self.parts)

    @functools.cached_property
    def window(self) -> Window:
        """The samples of the window, numbered."""
        return Window.of_spans([_span(listed) for _, listed in self.parts])

    @functools.cached_property
    def positions(self) -> IntArray:
        """Positions of the trajectories in the window, in order."""
        pairs = zip(self.window.firsts, self.parts, strict=False)
        found = [
            first + listed.positions - listed.start for first, (_, listed) in pairs
        ]
        return np.concatenate([np.zeros(0, np.int64), *found])

    @property
    def is_remote(self) -> bool:
        """Whether any trajectory is on an object store."""
        return any(store.is_remote and len(listed) for store, listed in self.parts)

    def newest(self, count: int) -> IntArray:
        """Return positions of the newest trajectories, ascending, at most `count`."""
        return self.positions[len(self.positions) - min(count, len(self.positions)) :]

    def _locate(self, position: int) -> tuple[TrajectoryStore, Rows, int]:
        """Return the store of a trajectory, the rows it is in, and where."""
        number, offset = self.window.locate(position)
        store, listed = self.parts[number]
        return store, listed.table.rows, listed.start + offset

    def store(self, position: int) -> TrajectoryStore:
        """Return the store of one trajectory."""
        return self._locate(position)[0]

    def row(self, position: int) -> Row:
        """Return the row of one trajectory."""
        _, rows, number = self._locate(position)
        return rows.row(number)

    def uuids(self, positions: IntArray) -> list[str]:
        """Return the uuids of some trajectories, ascending positions."""
        found: list[str] = []
        for here, first, (_, listed) in self._by_part(positions):
            numbers = here - first + listed.start
            uuids = listed.table.rows.fixed["uuid"][numbers]
            found += [uuid.hex() for uuid in uuids.tolist()]
        return found

    def archives(
        self, positions: IntArray, reader: BatchReader, cost: FetchCost
    ) -> Iterator[TrajectoryArchive]:
        """Yield the archives of some trajectories, ascending positions.

        What is on object stores is opened at once; its chunks are not there yet.
        """
        for here, first, (store, listed) in self._by_part(positions):
            numbers = here - first + listed.start
            rows = listed.table.rows
            yield from reader.archives.several(rows, numbers, store, cost)

    def _by_part(self, positions: IntArray) -> Iterator[tuple[IntArray, int, Part]]:
        """Yield the ascending positions in each part, and its first position."""
        firsts = self.window.firsts
        cuts = np.searchsorted(positions, firsts)
        for number, part in enumerate(self.parts):
            here = positions[cuts[number] : cuts[number + 1]]
            yield here, int(firsts[number]), part

    def archive(self, position: int, reader: BatchReader) -> TrajectoryArchive:
        """Return the archive of one trajectory, with all of its bytes."""
        store, rows, number = self._locate(position)
        return reader.archives.whole(rows, number, store)

    def fields(self, reader: BatchReader) -> list[BatchField]:
        """Return the fields that every trajectory of the window has, by name.

        Args:
            reader: opens archives whose schema no list tells.

        Raises:
            InvalidInputError: if two trajectories have a field of one name, but of
                different dtype or shape.
        """
        if "_fields" not in self.__dict__:
            self.__dict__["_fields"] = self._fields_of_schemas(reader)
        found: list[BatchField] = self.__dict__["_fields"]
        return found

    def _fields_of_schemas(self, reader: BatchReader) -> list[BatchField]:
        key = frozenset(s for _, listed in self.parts for s in listed.schemas)
        if _UNKNOWN in key:  # says nothing about the fields
            return self._common_fields(reader)
        fields = self.known.get(key)
        if fields is None:
            fields = self._common_fields(reader)
            if len(self.known) >= _MAX_KNOWN:
                self.known.clear()
            self.known[key] = fields
        return fields

    def _common_fields(self, reader: BatchReader) -> list[BatchField]:
        known: dict[str, BatchField] = {}
        common: set[str] | None = None
        for position in self._some_of_each_schema():
            row = self.row(position)
            schema = self.store(position).known_schema(row)
            if schema is None:
                schema = self.archive(position, reader).header.schema
            fields = sorted_fields(schema)
            check_fields(fields, known, name=known_name(row))
            known.update({field.name: field for field in fields})
            names = {field.name for field in fields}
            common = names if common is None else common & names
        _warn_left_out(frozenset(set(known) - (common or set())))
        return [known[name] for name in sorted(common or ())]

    def _some_of_each_schema(self) -> list[int]:
        """Return one row per store and schema; every row whose schema is not known."""
        found: list[int] = []
        for first, (_, listed) in zip(self.window.firsts, self.parts, strict=False):
            positions = {*listed.schemas.values()}
            if _UNKNOWN in listed.schemas:
                every = listed.positions
                schemas = listed.table.rows.fixed["schema"][every]
                positions.update(every[schemas == _UNKNOWN].tolist())
            found += [int(first) + n - listed.start for n in sorted(positions)]
        return found


def _span(listed: Stretch) -> Span:
    """Return the samples of listed rows, in the memory of their table."""
    part, table = slice(listed.start, listed.stop), listed.table
    return Span(
        table.ends[part],
        table.samples_before(listed.start),
        table.rows.column("T")[part],
        table.rows.column("B")[part],
    )


def check_fields(
    fields: Sequence[BatchField], known: Mapping[str, BatchField], *, name: str
) -> None:
    """Check that fields have the dtype and shape they are known by.

    Args:
        fields: of one trajectory.
        known: batch field name -> field, of the others.
        name: name of the trajectory, for the message.

    Raises:
        InvalidInputError: naming the first that differs.
    """
    for one in fields:
        other = known.get(one.name)
        if other is not None and other.spec != one.spec:
            raise InvalidInputError(
                f"{name}: field {one.name!r} is {_describe(one.spec)}; in the "
                f"trajectories before it is {_describe(other.spec)}"
            )


def check_same_fields(schemas: Iterable[tuple[str, Schema]]) -> None:
    """Check that a field is the same in all of some schemas.

    Args:
        schemas: where each is from, for the message, and the schema.

    Raises:
        InvalidInputError: naming every field that differs, and where.
    """
    known: dict[str, BatchField] = {}
    problems: list[str] = []
    for name, schema in schemas:
        for one in sorted_fields(schema):
            try:
                check_fields([one], known, name=name)
            except InvalidInputError as exc:
                problems.append(str(exc))
            known.setdefault(one.name, one)
    if problems:
        raise InvalidInputError("; ".join(dict.fromkeys(problems)))


def _describe(spec: FieldSpec) -> str:
    return f"{spec.dtype} {list(spec.shape)} a sample"


def known_fields(parts: Sequence[Part]) -> dict[str, BatchField]:
    """Return every batch field that the trajectories of some stores have.

    Of rows whose file was not opened yet, the newest stands for all.
    """
    known: dict[str, BatchField] = {}
    for store, listed in parts:
        for position in sorted(listed.schemas.values()):
            schema: Schema = store.schema(listed.table.rows.row(position))
            known.update({field.name: field for field in sorted_fields(schema)})
    return known


@functools.lru_cache(maxsize=256)
def _warn_left_out(names: frozenset[str]) -> None:
    """Say once which fields batches do not have because a trajectory lacks them."""
    if names:
        _LOG.warning(
            "batches leave out %s: not every trajectory of the window has it",
            ", ".join(sorted(names)),
        )
