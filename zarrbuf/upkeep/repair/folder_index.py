"""Folders of RLinf's whose two JSON files are torn, misspelt or wrong: the index anew.

The files of trajectories say what there is; the old index says in what order. Nothing
is deleted: JSON files that are replaced are kept beside.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from zarrbuf.archive.spec import is_weights_id
from zarrbuf.archive.zarr_json import parse_json
from zarrbuf.common.arguments import as_whole_number
from zarrbuf.common.jobs import Progress
from zarrbuf.common.uuids import new_uuid
from zarrbuf.errors import FormatError, StorageError, ZarrbufError
from zarrbuf.manifest.rows import UNKNOWN_SCHEMA, Row
from zarrbuf.rlinf.files import read_trajectory_file, replace_file
from zarrbuf.rlinf.index import (
    FILE_FORMATS,
    INDEX_NAME,
    MAX_NUMBER,
    METADATA_NAME,
    OLD_INDEX_NAME,
    FileFormat,
    RlinfIndex,
    encode_index,
    index_entry,
    list_files,
    read_index,
    weights_id_of,
)
from zarrbuf.trajectory.encoding import trajectory_shape
from zarrbuf.trajectory.trajectory import Trajectory

_DEFAULT_SEED: Final = 1234


@dataclass
class Rescue:
    """What a folder really holds.

    Attributes:
        index: that of the files that can be read.
        problems: what is wrong with the files and the old index, a sentence each.
        orphans: names of files that stay and are in no index.
    """

    index: RlinfIndex
    problems: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)


def rescue_folder(folder: Path, progress: Progress | None = None) -> Rescue:
    """Read every file of a folder and make the index that it should have.

    Args:
        folder: of RLinf's.
        progress: called with (files read, files in all).

    Raises:
        StorageError: if the folder cannot be listed.
    """
    problems: list[str] = []
    metadata = _read_json(folder / METADATA_NAME, problems)
    old = _read_index(folder, problems)
    files = list_files(folder)
    beyond = [number for number in files if number >= MAX_NUMBER - 1]
    for number in beyond:
        problems.append(
            f"{folder / files[number][0]}: its id is beyond 62 bits (left out)"
        )
    formats = [name.rpartition(".")[2] for names in files.values() for name in names]
    wanted = metadata.get("trajectory_format")
    if wanted not in FILE_FORMATS:
        wanted = max(FILE_FORMATS, key=formats.count)
    file_format: FileFormat = "pkl" if wanted == "pkl" else "pt"
    index = RlinfIndex(
        file_format,
        seed=_seed(metadata),
        generator=_state(metadata, "generator"),
        more_generator=_state(metadata, "more_generator"),
    )
    rescue = Rescue(index, problems)
    for number in beyond:
        rescue.orphans += files.pop(number)
    order = [number for number in old if number in files]
    order += sorted(files.keys() - old.keys())
    problems += [
        f"{folder / INDEX_NAME}: lists trajectory {number}, whose file is not there"
        for number in old
        if number not in files
    ]
    for done, number in enumerate(order, 1):
        _take_in(rescue, folder, number, files[number], old.get(number))
        if progress is not None:
            progress(done, len(order))
    # What a run let go of has no file either: it leaves the list and stays counted.
    size, total_samples = index.counts
    index.size = max(size, _count(metadata, "size"))
    index.total_samples = max(total_samples, _count(metadata, "total_samples"))
    index.counter = max(
        [_count(metadata, "trajectory_counter"), *(number + 1 for number in files)]
    )
    if not problems:
        problems += _refused(folder)
    return rescue


def _refused(folder: Path) -> list[str]:
    """Say what of the JSON files whoever opens the folder would not take."""
    try:
        read_index(folder)
    except ZarrbufError as exc:
        return [str(exc)]
    return []


def _read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    """Return a JSON object, an empty one if it is torn; then it is a problem."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        problems.append(f"{path} is missing")
        return {}
    except (OSError, ValueError, RecursionError) as exc:
        problems.append(f"{path}: torn or damaged: {exc}")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path}: no object")
        return {}
    return value


def _read_index(folder: Path, problems: list[str]) -> dict[int, Mapping[str, Any]]:
    """Return the entries of the old index, in order of its list."""
    path = folder / INDEX_NAME
    if not path.exists() and (folder / OLD_INDEX_NAME).exists():
        path = folder / OLD_INDEX_NAME
        problems.append(f"{path}: the name of the index is misspelt")
    value = _read_json(path, problems)
    ids, entries = value.get("trajectory_id_list"), value.get("trajectory_index")
    if not isinstance(ids, list) or not isinstance(entries, dict):
        if value:
            problems.append(
                f"{path}: trajectory_index or trajectory_id_list is missing"
            )
        ids, entries = [], entries if isinstance(entries, dict) else {}
    found: dict[int, Mapping[str, Any]] = {}
    for number in ids:
        entry = entries.get(str(number))
        if type(number) is not int or not 0 <= number < MAX_NUMBER:
            problems.append(f"{path}: {number!r:.40} is no trajectory id")
        else:
            found.setdefault(number, entry if isinstance(entry, dict) else {})
    return found


def _count(metadata: Mapping[str, Any], name: str) -> int:
    """Return a number of the old metadata, 0 if there is none that can be."""
    value = as_whole_number(metadata.get(name))
    return value if value is not None and 0 <= value < MAX_NUMBER else 0


def _state(metadata: Mapping[str, Any], name: str) -> str | None:
    """Return where a run's draws had come to, as `zarrbuf` keeps it."""
    extra = metadata.get("zarrbuf")
    found = extra.get(name) if isinstance(extra, dict) else None
    return found if isinstance(found, str) else None


def _seed(metadata: Mapping[str, Any]) -> int | None:
    """Return the seed of the old metadata; RLinf's if it cannot be read."""
    if metadata and metadata.get("seed") is None:
        return None  # it had none
    seed = as_whole_number(metadata.get("seed"))
    return seed if seed is not None and abs(seed) < MAX_NUMBER else _DEFAULT_SEED


def _take_in(
    rescue: Rescue,
    folder: Path,
    number: int,
    names: list[str],
    entry: Mapping[str, Any] | None,
) -> None:
    """Add the file of one trajectory to the index, if it can be read."""
    index = rescue.index
    right = [name for name in names if name.endswith(f".{index.file_format}")]
    weights_id = (entry or {}).get("model_weights_id")
    wrong = [name for name in names if name not in right]
    rescue.orphans += wrong
    rescue.problems += [
        f"{folder / name}: the folder holds {index.file_format} files (left out)"
        for name in wrong
    ]
    right.sort(key=lambda name: weights_id_of(name) != weights_id)
    found = _first_readable(rescue, folder, right)
    if found is None:
        return
    chosen, trajectory = found
    shape, path = trajectory_shape(trajectory), folder / chosen
    # Of several files, the index has to name the one that can be read.
    if not is_weights_id(weights_id) or len(names) > 1:
        weights_id = weights_id_of(chosen)
    row = Row(
        uuid=new_uuid(),
        trajectory_id=number,
        model_weights_id=weights_id,
        num_steps=shape[0],
        num_envs=shape[1],
        shape=shape,
        max_episode_length=trajectory.max_episode_length,
        size=path.stat().st_size,
        crc=0,
        schema=UNKNOWN_SCHEMA,
    )
    if entry is None:
        rescue.problems.append(f"{path}: is not in the index")
    elif not _agrees(entry, row):
        rescue.problems.append(
            f"{folder / INDEX_NAME}: entry {number} is not what {chosen} holds"
        )
        if list(shape[:2]) == list(entry.get("shape", ()))[:2]:
            row = dataclasses.replace(row, shape=shape)
    else:
        row = dataclasses.replace(row, shape=tuple(entry["shape"]))
    index.append(row, chosen)


def _first_readable(
    rescue: Rescue, folder: Path, names: list[str]
) -> tuple[str, Trajectory] | None:
    """Return the first file of a trajectory that can be read; others are orphans."""
    found: tuple[str, Trajectory] | None = None
    for name in names:
        if found is not None:
            problem = f"{folder / name}: {found[0]} is taken instead (left out)"
        else:
            try:
                trajectory = read_trajectory_file(folder / name)
                trajectory_shape(trajectory)
            except ZarrbufError as exc:
                text = str(exc)
                text = text if name in text else f"{folder / name}: {text}"
                problem = f"{text} (left out)"
            else:
                found = name, trajectory
                continue
        rescue.problems.append(problem)
        rescue.orphans.append(name)
    return found


def _agrees(entry: Mapping[str, Any], row: Row) -> bool:
    """Whether an old entry says what its file holds; of the shape T and B only."""
    expected = index_entry(row)
    shape = entry.get("shape")
    return (
        isinstance(shape, list)
        and shape[:2] == [row.num_steps, row.num_envs]
        and all(entry.get(n) == v for n, v in expected.items() if n != "shape")
    )


def needs_writing(folder: Path, rescue: Rescue) -> bool:
    """Whether the two JSON files of a folder are not what they should be."""
    for name, data in zip(
        (METADATA_NAME, INDEX_NAME), encode_index(rescue.index), strict=True
    ):
        try:
            found = parse_json((folder / name).read_bytes(), where=name)
            if found != json.loads(data):
                return True
        except (OSError, FormatError):
            return True
    return False


def write_rescued(folder: Path, rescue: Rescue) -> list[str]:
    """Write the two JSON files of a folder, those that were there kept beside.

    Returns:
        Names of the files kept.

    Raises:
        StorageError: if the storage failed.
    """
    metadata, entries = encode_index(rescue.index)
    kept = []
    for name, data in ((INDEX_NAME, entries), (METADATA_NAME, metadata)):
        path = folder / name
        if path.is_dir():
            raise StorageError(f"{path} is a directory; move it away and call again")
        if path.exists() and path.read_bytes() != data:
            aside = folder / f"{name}.{new_uuid()[:8]}.damaged"
            replace_file(aside, path.read_bytes())
            kept.append(aside.name)
        replace_file(path, data)
    return kept
