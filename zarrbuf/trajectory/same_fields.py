"""Fields of several trajectories: of one dtype and shape, or refused by name. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from zarrbuf.archive.spec import BatchField, FieldSpec, Schema, sorted_fields
from zarrbuf.errors import InvalidInputError


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
        if other is not None and _kind(other) != _kind(one):
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


def _kind(field: BatchField) -> tuple[str, tuple[int, ...]]:
    """Return what has to be the same: where extra rows stand need not be."""
    return field.spec.dtype, field.spec.shape


def _describe(spec: FieldSpec) -> str:
    return f"{spec.dtype} {list(spec.shape)} a sample"
