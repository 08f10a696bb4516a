"""The rows of a manifest: one as a value, many as NumPy columns.

Pure. A million rows are a few arrays, not a million objects. Rows are immutable:
`concat`, `take` and `slice` return new ones. Knows no commit and no storage.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from zarrbuf.archive.spec import is_weights_id
from zarrbuf.archive.zarr_json import encode_json
from zarrbuf.errors import FormatError
from zarrbuf.manifest.columns import TextColumn
from zarrbuf.manifest.layout import trajectory_path

IntArray = npt.NDArray[np.int64]
MAX_SEGMENT_ROWS: Final = 65_536
MAX_TAG_BYTES: Final = 1024
MAX_SAMPLES: Final = 2**40
"""Bound of `T * B`, so that sums over millions of rows stay in 64 bits."""
UNKNOWN_SCHEMA: Final = "0" * 16
"""Schema of a row that no list tells: its file was not opened yet."""

FIXED_DTYPE: Final = np.dtype(
    [
        ("uuid", "V16"),
        ("trajectory_id", "<i8"),
        ("T", "<i8"),
        ("B", "<i8"),
        ("num_samples", "<i8"),
        ("max_episode_length", "<i8"),
        ("base", "<i4"),
        ("size", "<i8"),
        ("crc", "<u4"),
        ("schema", "<u8"),
        ("version", "<i8"),
        ("ts", "<i8"),
    ]
)
NO_LENGTH: Final = -(2**63)
"""Stands in the column `max_episode_length` where it was not told."""
NUMBER_COLUMNS: Final = tuple(
    name for name in FIXED_DTYPE.names or () if name != "uuid"
)
COLUMN_BOUNDS: Final = {
    **dict.fromkeys(("trajectory_id", "base", "size", "version", "ts"), (0, 2**63)),
    **dict.fromkeys(("T", "B"), (1, 2**31)),
    "num_samples": (1, MAX_SAMPLES),
}
TEXT_COLUMNS: Final = ("model_weights_id", "shape", "tags")
# What stands in a row of a commit; `version` and `ts` follow from the commit.
_ADD_INTS: Final = (
    "trajectory_id",
    "T",
    "B",
    "num_samples",
    "max_episode_length",
    "base",
    "size",
    "crc",
)
_ADD_KEYS: Final = frozenset(
    {"action", "uuid", "model_weights_id", "shape", "path", "schema", *_ADD_INTS}
)


@dataclass(frozen=True)
class Row:
    """One row of the manifest, for those who want one only.

    Attributes:
        uuid: 32 hex digits.
        trajectory_id: the number a person knows it by.
        model_weights_id: the policy that drove it.
        num_steps: `T`.
        num_envs: `B`.
        shape: shape of the field that gave T and B.
        max_episode_length: steps; None if it was not told.
        size: bytes of the archive.
        crc: crc32c of the archive.
        schema: 16 hex digits, key of the manifest's schemas.
        base: 0 for an archive below this root.
        tags: flat values kept with the row.
        version: the commit that added it; 0 while it is not committed.
        ts: time of that commit, ms since 1970.
    """

    uuid: str
    trajectory_id: int
    model_weights_id: str
    num_steps: int
    num_envs: int
    shape: tuple[int, ...]
    max_episode_length: int | None
    size: int
    crc: int
    schema: str
    base: int = 0
    tags: dict[str, Any] = field(default_factory=dict)
    version: int = 0
    ts: int = 0

    @property
    def num_samples(self) -> int:
        """Samples in the trajectory, `T * B`."""
        return self.num_steps * self.num_envs

    @property
    def path(self) -> str:
        """Path of the archive below its root."""
        return trajectory_path(self.uuid)

    def to_action(self) -> dict[str, Any]:
        """Return the `add` action of a commit."""
        action: dict[str, Any] = {
            "action": "add",
            "uuid": self.uuid,
            "trajectory_id": self.trajectory_id,
            "model_weights_id": self.model_weights_id,
            "T": self.num_steps,
            "B": self.num_envs,
            "num_samples": self.num_samples,
            "shape": list(self.shape),
            "max_episode_length": self.max_episode_length,
            "base": self.base,
            "path": self.path,
            "size": self.size,
            "crc": self.crc,
            "schema": self.schema,
        }
        return {**action, "tags": self.tags} if self.tags else action


def parse_add(action: dict[str, Any], *, where: str) -> Row:
    """Check one `add` action.

    Raises:
        FormatError: naming the field that is wrong.
    """
    if set(action) - {"tags"} != _ADD_KEYS:
        odd = sorted((set(action) - {"tags"}) ^ _ADD_KEYS)
        raise FormatError(f"{where}: fields {odd!r:.200} are missing or not known")
    for name in _ADD_INTS:
        if name == "max_episode_length" and action[name] is None:
            continue
        if type(action[name]) is not int or not NO_LENGTH < action[name] < 2**63:
            raise FormatError(f"{where}: {name} is {action[name]!r:.80}")
    tags, shape = action.get("tags", {}), action["shape"]
    checks = {
        "uuid": _is_match(r"[0-9a-f]{32}", action["uuid"]),
        "schema": _is_match(r"[0-9a-f]{16}", action["schema"]),
        "model_weights_id": is_weights_id(action["model_weights_id"]),
        "shape": _is_shape(shape),
        "trajectory_id": action["trajectory_id"] >= 0,
        "T": 1 <= action["T"] < 2**31,
        "B": 1 <= action["B"] < 2**31,
        "num_samples": action["num_samples"] == action["T"] * action["B"]
        and action["num_samples"] < MAX_SAMPLES,
        "base": 0 <= action["base"] < 2**31,
        "size": action["size"] >= 0,
        "crc": 0 <= action["crc"] < 2**32,
        "tags": _are_tags(tags),
    }
    for name, is_right in checks.items():
        if not is_right:
            raise FormatError(f"{where}: {name} is {action.get(name)!r:.80}")
    if action["path"] != trajectory_path(action["uuid"]):
        raise FormatError(
            f"{where}: path is {action['path']!r:.80}, which is not that of "
            f"uuid {action['uuid']}"
        )
    return Row(
        uuid=action["uuid"],
        trajectory_id=action["trajectory_id"],
        model_weights_id=action["model_weights_id"],
        num_steps=action["T"],
        num_envs=action["B"],
        shape=tuple(shape),
        max_episode_length=action["max_episode_length"],
        size=action["size"],
        crc=action["crc"],
        schema=action["schema"],
        base=action["base"],
        tags=tags,
    )


def _length_as_number(length: int | None) -> int:
    return NO_LENGTH if length is None else length


def _number_as_length(number: int) -> int | None:
    return None if number == NO_LENGTH else number


def _is_match(pattern: str, value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _is_shape(shape: Any) -> bool:
    return (
        isinstance(shape, list)
        and len(shape) <= 32
        and all(type(n) is int and 0 <= n < 2**40 for n in shape)
    )


def _are_tags(tags: Any) -> bool:
    return (
        isinstance(tags, dict)
        and all(type(v) in (bool, int, float, str) or v is None for v in tags.values())
        and len(encode_json(tags)) <= MAX_TAG_BYTES
    )


@dataclass(frozen=True)
class Rows:
    """Rows of a manifest in order.

    Attributes:
        fixed: structured array [n] of the columns of fixed width.
        texts: the columns of strings.
    """

    fixed: npt.NDArray[np.void]
    texts: dict[str, TextColumn]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Rows:
        """Make columns of single rows."""
        fixed = np.zeros(len(rows), FIXED_DTYPE)
        for number, row in enumerate(rows):
            fixed[number] = (
                bytes.fromhex(row.uuid),
                row.trajectory_id,
                row.num_steps,
                row.num_envs,
                row.num_samples,
                _length_as_number(row.max_episode_length),
                row.base,
                row.size,
                row.crc,
                int(row.schema, 16),
                row.version,
                row.ts,
            )
        texts = {
            "model_weights_id": [row.model_weights_id for row in rows],
            "shape": [encode_json(list(row.shape)).decode() for row in rows],
            "tags": [
                encode_json(row.tags).decode() if row.tags else "" for row in rows
            ],
        }
        return cls(fixed, {name: TextColumn.of(text) for name, text in texts.items()})

    @classmethod
    def concat(cls, blocks: Sequence[Rows]) -> Rows:
        """Return the rows of one block after the other."""
        blocks = [block for block in blocks if len(block)] or [Rows.of([])]
        if len(blocks) == 1:
            return blocks[0]
        return cls(
            np.concatenate([block.fixed for block in blocks]),
            {n: TextColumn.concat([b.texts[n] for b in blocks]) for n in TEXT_COLUMNS},
        )

    def take(self, positions: IntArray) -> Rows:
        """Return the rows at int64 positions."""
        return Rows(
            self.fixed[positions], {n: t.take(positions) for n, t in self.texts.items()}
        )

    def slice(self, start: int, stop: int) -> Rows:
        """Return the rows from `start` to before `stop`, in the same memory."""
        return Rows(
            self.fixed[start:stop],
            {n: t.slice(start, stop) for n, t in self.texts.items()},
        )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.fixed)

    def column(self, name: str) -> IntArray:
        """Return one column of numbers, not to be written to."""
        column: IntArray = self.fixed[name]
        return column

    @property
    def trajectory_ids(self) -> IntArray:
        """The ids, in order of the rows."""
        return self.column("trajectory_id")

    @property
    def total_samples(self) -> int:
        """Samples in all rows."""
        return int(self.column("num_samples").sum())

    def uuid(self, position: int) -> str:
        """Return the uuid of one row."""
        return bytes(self.fixed["uuid"][position]).hex()

    def row(self, position: int) -> Row:
        """Return one row."""
        one = self.fixed[position]
        shape, tags = self._shape_and_tags(position)
        return Row(
            uuid=self.uuid(position),
            trajectory_id=int(one["trajectory_id"]),
            model_weights_id=self.texts["model_weights_id"].get(position),
            num_steps=int(one["T"]),
            num_envs=int(one["B"]),
            shape=tuple(shape),
            max_episode_length=_number_as_length(int(one["max_episode_length"])),
            size=int(one["size"]),
            crc=int(one["crc"]),
            schema=f"{int(one['schema']):016x}",
            base=int(one["base"]),
            tags=tags,
            version=int(one["version"]),
            ts=int(one["ts"]),
        )

    def _shape_and_tags(self, position: int) -> tuple[list[int], dict[str, Any]]:
        """Return what a row keeps as JSON; a segment may hold any text there."""
        texts = [self.texts[name].get(position) for name in ("shape", "tags")]
        try:
            shape, tags = json.loads(texts[0]), json.loads(texts[1] or "{}")
            is_right = _is_shape(shape) and _are_tags(tags)
        except (ValueError, RecursionError):
            is_right = False
        if not is_right:
            raise FormatError(f"shape and tags of a manifest row are {texts!r:.200}")
        return shape, tags

    def stamped(self, *, version: int, ts: int) -> Rows:
        """Return the rows as added by commit `version` at `ts`."""
        fixed = self.fixed.copy()
        fixed["version"] = version
        fixed["ts"] = ts
        return Rows(fixed, self.texts)
