"""The two JSON files of RLinf's folders, and the names of the files beside them.

Torch-free, so that listing a folder is quick. What is in the trajectory files is the
business of `files`. Local paths only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from zarrbuf.archive.spec import is_weights_id
from zarrbuf.archive.zarr_json import parse_json
from zarrbuf.common.arguments import as_whole_number
from zarrbuf.errors import FormatError, InvalidInputError, NotFoundError, StorageError
from zarrbuf.manifest.rows import MAX_SAMPLES, UNKNOWN_SCHEMA, Row

FileFormat = Literal["pt", "pkl"]
FILE_FORMATS: Final = ("pt", "pkl")
METADATA_NAME: Final = "metadata.json"
INDEX_NAME: Final = "trajectory_index.json"
OLD_INDEX_NAME: Final = "trajector_index.json"
MAX_NUMBER: Final = 2**62
_FILE_NAME: Final = re.compile(r"trajectory_(\d+)_(.*)\.(pt|pkl)")


@dataclass
class RlinfIndex:
    """What the two JSON files of a folder say.

    Attributes:
        file_format: "pt" or "pkl".
        seed: seed of the generator; None if it is not told.
        counter: id of the next trajectory.
        rows: one a trajectory whose file is there, in order of the list.
        names: trajectory id -> file name, of these.
        evicted: trajectories of the list whose files are not there: RLinf lists what it
            has let go of.
        order: all ids of the list, those of evicted ones too.
        size: trajectories ever in the buffer; None for those of the list.
        total_samples: of these.
        generator: state of the generator, if zarrbuf wrote the folder.
        more_generator: that of the second one.
    """

    file_format: FileFormat
    seed: int | None = 1234
    counter: int = 0
    rows: list[Row] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    evicted: list[Row] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    size: int | None = None
    total_samples: int | None = None
    generator: str | None = None
    more_generator: str | None = None

    @property
    def counts(self) -> tuple[int, int]:
        """Trajectories ever in the buffer, and their samples."""
        listed = [*self.rows, *self.evicted]
        samples = sum(row.num_samples for row in listed)
        size = len(listed) if self.size is None else self.size
        return size, samples if self.total_samples is None else self.total_samples

    def append(self, row: Row, name: str) -> None:
        """Add a trajectory, and count it."""
        size, total_samples = self.counts
        self.size, self.total_samples = size + 1, total_samples + row.num_samples
        self.rows.append(row)
        self.order.append(row.trajectory_id)
        self.names[row.trajectory_id] = name

    def replace(self, rows: Sequence[Row], names: Mapping[int, str]) -> None:
        """List other trajectories; what was counted stays."""
        self.rows, self.names, self.evicted = list(rows), dict(names), []
        self.order = [row.trajectory_id for row in rows]


def trajectory_name(trajectory_id: int, model_weights_id: str, suffix: str) -> str:
    """Return the name a person knows a trajectory by."""
    return f"trajectory_{trajectory_id}_{model_weights_id}.{suffix}"


def is_rlinf_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a local folder looks like one of RLinf's replay buffers."""
    names = (METADATA_NAME, INDEX_NAME, OLD_INDEX_NAME)
    return any(os.path.isfile(os.path.join(path, name)) for name in names)


def check_no_version(folder: str | os.PathLike[str], version: int | None) -> None:
    """Refuse a version of a folder of RLinf's, which has none.

    Raises:
        InvalidInputError: if one is asked for.
    """
    if version is not None:
        raise InvalidInputError(
            f"version is {version}; {os.fspath(folder)} is a folder of RLinf's, which "
            "keeps no versions"
        )


def read_index(path: str | os.PathLike[str]) -> RlinfIndex:
    """Read the two JSON files of a folder and find the file of each trajectory.

    Raises:
        NotFoundError: if a file that the index names is missing.
        FormatError: if a JSON file is missing, damaged or malformed.
    """
    folder = Path(path)
    metadata = _read_json(folder / METADATA_NAME)
    name = INDEX_NAME if os.path.exists(folder / INDEX_NAME) else OLD_INDEX_NAME
    index = _read_json(folder / name)
    file_format = metadata.get("trajectory_format", "pt")
    if file_format not in FILE_FORMATS:
        raise FormatError(
            f"{folder / METADATA_NAME}: trajectory_format is {file_format!r:.40}; "
            f"allowed are {', '.join(FILE_FORMATS)}"
        )
    entries, ids = index.get("trajectory_index"), index.get("trajectory_id_list")
    where = str(folder / name)
    if not isinstance(entries, dict) or not isinstance(ids, list):
        raise FormatError(f"{where}: trajectory_index or trajectory_id_list is missing")
    if len(set(map(str, ids))) != len(ids):
        raise FormatError(f"{where}: trajectory_id_list names an id twice")
    files = list_files(folder)
    where_metadata = str(folder / METADATA_NAME)
    found = RlinfIndex(file_format, seed=_seed(metadata, where=where_metadata))
    for number in ids:
        row = _parse_entry(number, entries, where=where)
        found.order.append(number)
        file = _find_file(files, row)
        if file is None:
            found.evicted.append(row)
            continue
        found.names[number] = file
        found.rows.append(_identify(row, folder / file))
    _check_newest(found, folder)
    next_id = max(found.order, default=-1) + 1
    found.counter = _integer(
        metadata, "trajectory_counter", next_id, where=where_metadata
    )
    if found.counter < next_id:
        raise FormatError(
            f"{where_metadata}: trajectory_counter is {found.counter}, and trajectory "
            f"{next_id - 1} is listed, which the next one would overwrite; zarrbuf "
            "repair mends it"
        )
    size, total_samples = found.counts
    found.size = max(size, _integer(metadata, "size", size, where=where_metadata))
    found.total_samples = max(
        total_samples,
        _integer(metadata, "total_samples", total_samples, where=where_metadata),
    )
    extra = metadata.get("zarrbuf")
    if isinstance(extra, dict):
        found.generator = extra.get("generator")
        found.more_generator = extra.get("more_generator")
    return found


def _seed(metadata: Mapping[str, Any], *, where: str) -> int | None:
    if metadata.get("seed") is None:
        return None
    return _integer(metadata, "seed", 0, where=where)


def _check_newest(index: RlinfIndex, folder: Path) -> None:
    """Refuse an index whose newest trajectory has no file: none evicts that.

    Raises:
        NotFoundError: naming the files that are missing.
    """
    absent = {row.trajectory_id: row for row in index.evicted}
    if index.order and index.order[-1] in absent:
        missing = list(itertools.takewhile(lambda n: n in absent, index.order[::-1]))
        raise missing_files([absent[number] for number in missing[::-1]], folder)


def missing_files(rows: Sequence[Row], folder: Path) -> NotFoundError:
    """Return the error for files that are needed and not there."""
    names = [f"trajectory_{row.trajectory_id}_{row.model_weights_id}" for row in rows]
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return NotFoundError(
        f"{folder}: the index lists {shown}, but no such file is there ({len(rows)} in "
        "all); zarrbuf repair makes an index of what is there"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return parse_json(path.read_bytes(), where=str(path))
    except FileNotFoundError as exc:
        raise NotFoundError(f"{path} is missing") from exc
    except OSError as exc:
        raise StorageError(f"cannot read {path}: {exc.strerror}") from exc


def _integer(
    value: Mapping[str, Any],
    key: str,
    default: int,
    *,
    where: str,
    limit: int = MAX_NUMBER,
) -> int:
    found = value.get(key, default)
    number = as_whole_number(found)
    if number is None or abs(number) >= limit:
        raise FormatError(f"{where}: {key} is {found!r:.40}, not a whole number")
    return number


def _identify(row: Row, path: Path) -> Row:
    """Give a row a uuid that is the same as long as its file is."""
    try:
        found = path.stat()
    except OSError as exc:
        raise NotFoundError(f"{path} cannot be read: {exc.strerror}") from exc
    identity = f"{path.absolute()}\0{found.st_size}\0{found.st_mtime_ns}"
    digest = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()
    return dataclasses.replace(row, uuid=digest[:32], size=found.st_size)


def _parse_entry(number: Any, entries: Mapping[str, Any], *, where: str) -> Row:
    entry = entries.get(str(number))
    if (
        type(number) is not int
        or not 0 <= number < MAX_NUMBER
        or not isinstance(entry, dict)
    ):
        raise FormatError(f"{where}: trajectory {number!r:.40} has no entry")
    shape = entry.get("shape")
    weights_id = entry.get("model_weights_id")
    if (
        not isinstance(shape, list)
        or len(shape) < 2
        or not all(type(n) is int and 0 < n < 2**31 for n in shape[:2])
        or not is_weights_id(weights_id)
        or entry.get("num_samples") != shape[0] * shape[1]
        or shape[0] * shape[1] >= MAX_SAMPLES
    ):
        raise FormatError(
            f"{where}: entry {number} is {entry!r:.200}; needed are shape [T, B, ...], "
            "num_samples = T * B and model_weights_id"
        )
    length = None
    if entry.get("max_episode_length", 0) is not None:
        here = f"{where}: entry {number}"
        length = _integer(entry, "max_episode_length", 0, where=here, limit=2**63)
    return Row(
        uuid="0" * 32,
        trajectory_id=number,
        model_weights_id=weights_id,
        num_steps=shape[0],
        num_envs=shape[1],
        shape=tuple(shape),
        max_episode_length=length,
        size=0,
        crc=0,
        schema=UNKNOWN_SCHEMA,
    )


def list_files(folder: Path) -> dict[int, list[str]]:
    """Return the names of trajectory files by id, the index not asked."""
    files: dict[int, list[str]] = {}
    try:
        found = sorted(os.listdir(folder))
    except FileNotFoundError:
        return files
    except OSError as exc:
        raise StorageError(f"cannot list {folder}: {exc.strerror}") from exc
    for name in found:
        match = _FILE_NAME.fullmatch(name)
        if match:
            files.setdefault(int(match[1]), []).append(name)
    return files


def weights_id_of(name: str) -> str:
    """Return the weights id in the name of a trajectory file, of `list_files`."""
    match = _FILE_NAME.fullmatch(name)
    return match[2] if match else ""


def _find_file(files: Mapping[int, list[str]], row: Row) -> str | None:
    """Return the file of a trajectory; its weights id may differ from the index."""
    names = files.get(row.trajectory_id, [])
    for suffix in FILE_FORMATS:
        name = trajectory_name(row.trajectory_id, row.model_weights_id, suffix)
        if name in names:
            return name
    return names[0] if names else None


def index_entry(row: Row) -> dict[str, Any]:
    """Return what RLinf's index says of one trajectory."""
    return {
        "num_samples": row.num_samples,
        "trajectory_id": row.trajectory_id,
        "max_episode_length": row.max_episode_length,
        "shape": list(row.shape),
        "model_weights_id": row.model_weights_id,
    }


def encode_index(index: RlinfIndex) -> tuple[bytes, bytes]:
    """Return `metadata.json` and `trajectory_index.json`."""
    size, total_samples = index.counts
    metadata: dict[str, Any] = {
        "trajectory_format": index.file_format,
        "size": size,
        "total_samples": total_samples,
        "trajectory_counter": index.counter,
    }
    if index.seed is not None:
        metadata["seed"] = index.seed
    states = {"generator": index.generator, "more_generator": index.more_generator}
    known = {name: state for name, state in states.items() if state is not None}
    if known:
        metadata["zarrbuf"] = known
    rows = {row.trajectory_id: row for row in [*index.rows, *index.evicted]}
    listing = {
        "trajectory_index": {str(n): index_entry(rows[n]) for n in index.order},
        "trajectory_id_list": index.order,
    }
    return json.dumps(metadata).encode(), json.dumps(listing).encode()
