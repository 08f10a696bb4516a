"""What a buffer samples from right now: the newest rows of some stores.

A view is immutable; adding, loading and clearing make a new one. Owns the window
across stores and which fields its batches have. Knows no thread and no file.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from zarrbuf.errors import InvalidInputError
from zarrbuf.format import BatchField, FieldSpec, Schema
from zarrbuf.reader import BatchReader, sorted_fields
from zarrbuf.rows import UNKNOWN_SCHEMA, IntArray, Rows
from zarrbuf.sampling import Window, window_start
from zarrbuf.stores import TrajectoryStore, known_name
from zarrbuf.trajectory_archive import TrajectoryArchive

_LOG: Final = logging.getLogger("zarrbuf")
Part = tuple[TrajectoryStore, Rows]


@dataclass(frozen=True)
class View:
    """The trajectories of the window, each with the store it is in.

    Attributes:
        rows: rows of the window, in order.
        stores: the stores.
        store_of: int64 [len(rows)], position of each row's store in `stores`.
    """

    rows: Rows
    stores: tuple[TrajectoryStore, ...]
    store_of: IntArray

    @classmethod
    def of(cls, parts: Sequence[Part], *, sample_window_size: int) -> View:
        """Make the view of the newest rows of `parts`, one after the other.

        Args:
            parts: stores with those of their rows that are listed.
            sample_window_size: trajectories in the window, 0 for all.
        """
        total = sum(len(rows) for _, rows in parts)
        skip = window_start(total, sample_window_size)
        blocks, owners = [], []
        for number, (_, rows) in enumerate(parts):
            kept = np.arange(min(skip, len(rows)), len(rows))
            skip -= min(skip, len(rows))
            blocks.append(rows.take(kept) if len(kept) < len(rows) else rows)
            owners.append(np.full(len(kept), number, np.int64))
        store_of = np.concatenate([np.zeros(0, np.int64), *owners])
        return cls(Rows.concat(blocks), tuple(store for store, _ in parts), store_of)

    @functools.cached_property
    def window(self) -> Window:
        """The samples of the window, numbered."""
        return Window.of(self.rows.column("T"), self.rows.column("B"))

    def store(self, position: int) -> TrajectoryStore:
        """Return the store of one row."""
        return self.stores[int(self.store_of[position])]

    def archive(self, position: int, reader: BatchReader) -> TrajectoryArchive:
        """Return the archive of one row."""
        return reader.archive(self.rows, position, self.store(position))

    def fields(self, reader: BatchReader) -> list[BatchField]:
        """Return the fields that every trajectory of the window has, by name.

        Args:
            reader: opens archives whose schema no list tells.

        Raises:
            InvalidInputError: if two trajectories have a field of one name, but of
                different dtype or shape.
        """
        if "_fields" not in self.__dict__:
            self.__dict__["_fields"] = self._common_fields(reader)
        found: list[BatchField] = self.__dict__["_fields"]
        return found

    def _common_fields(self, reader: BatchReader) -> list[BatchField]:
        known: dict[str, BatchField] = {}
        common: set[str] | None = None
        for position in self._one_of_each_schema():
            row = self.rows.row(position)
            if row.schema == UNKNOWN_SCHEMA:
                schema = self.archive(position, reader).header.schema
            else:
                schema = self.store(position).schema(row)
            fields = sorted_fields(schema)
            check_fields(fields, known, name=known_name(row))
            known.update({field.name: field for field in fields})
            names = {field.name for field in fields}
            common = names if common is None else common & names
        _warn_left_out(frozenset(set(known) - (common or set())))
        return [known[name] for name in sorted(common or ())]

    def _one_of_each_schema(self) -> list[int]:
        """Return one row per store and schema; every row whose schema is not known."""
        schemas = self.rows.fixed["schema"]
        pairs = np.empty(len(self.rows), [("store", "<i8"), ("schema", "<u8")])
        pairs["store"], pairs["schema"] = self.store_of, schemas
        _, first = np.unique(pairs, return_index=True)
        return sorted({*first.tolist(), *np.flatnonzero(schemas == 0).tolist()})


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
    for field in fields:
        other = known.get(field.name)
        if other is not None and other.spec != field.spec:
            raise InvalidInputError(
                f"{name}: field {field.name!r} is {_describe(field.spec)}; in the "
                f"trajectories before it is {_describe(other.spec)}"
            )


def _describe(spec: FieldSpec) -> str:
    return f"{spec.dtype} {list(spec.shape)} a sample"


def known_fields(parts: Sequence[Part]) -> dict[str, BatchField]:
    """Return every batch field that the trajectories of some stores have.

    Of rows whose file was not opened yet, the newest stands for all.
    """
    known: dict[str, BatchField] = {}
    for store, rows in parts:
        _, first = np.unique(rows.fixed["schema"][::-1], return_index=True)
        for position in (len(rows) - 1 - first).tolist():
            schema: Schema = store.schema(rows.row(position))
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
