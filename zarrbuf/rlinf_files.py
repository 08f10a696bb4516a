"""RLinf's `.pt` and `.pkl` files <-> trajectories, with nothing in them run.

Owns their content, their checksums and the state of a generator as text. Local
paths only.
"""

from __future__ import annotations

import base64
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from zarrbuf.errors import FormatError, NotFoundError, StorageError
from zarrbuf.format import DICT_FIELDS, TENSOR_FIELDS, new_uuid
from zarrbuf.rlinf_index import FileFormat
from zarrbuf.trajectory import Trajectory
from zarrbuf.unpickle import parse_pickle


def read_trajectory_file(path: str | os.PathLike[str]) -> Trajectory:
    """Read one `.pt` or `.pkl` file; nothing in it can run.

    Raises:
        NotFoundError: if it is missing.
        FormatError: if it is damaged, holds anything but tensors and plain values, or
            a field that a trajectory does not have.
    """
    file = Path(path)
    try:
        if not file.is_file():
            raise NotFoundError(f"{file} does not exist")
        if file.suffix == ".pkl":
            value: Any = parse_pickle(file.read_bytes(), name=str(file))
        else:
            value = _read_pt(file)
    except NotFoundError:
        raise
    except OSError as exc:
        raise StorageError(f"cannot read {file}: {exc.strerror or exc}") from exc
    allowed = {"max_episode_length", "model_weights_id", *TENSOR_FIELDS, *DICT_FIELDS}
    if not isinstance(value, dict) or not set(value) <= allowed:
        odd = sorted(map(str, set(value) - allowed)) if isinstance(value, dict) else ""
        raise FormatError(f"{file}: not a trajectory of RLinf; unknown fields: {odd}")
    return Trajectory(**value)


def _read_pt(file: Path) -> Any:
    """Load a `.pt` file after checking the CRC-32 of every record in it.

    `weights_only` is safe from torch 2.10 on (CVE-2025-32434, CVE-2026-24747), which
    is why the project asks for it.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as exc:
        raise FormatError(f"{file}: cut short, damaged or no .pt file: {exc}") from exc
    if damaged is not None:
        raise FormatError(f"{file}: damaged, CRC-32 of record {damaged!r} is wrong")
    try:
        return torch.load(file, weights_only=True, mmap=True, map_location="cpu")
    except (
        pickle.UnpicklingError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        EOFError,
    ) as exc:
        reason = str(exc).strip().partition("\n")[0]
        raise FormatError(
            f"{file}: not a file of tensors and plain values: {reason:.300}"
        ) from exc


def encode_trajectory_file(trajectory: Trajectory, file_format: FileFormat) -> bytes:
    """Return the bytes of a file that RLinf loads: a dict of what is not None."""
    value = {name: item for name, item in vars(trajectory).items() if item is not None}
    buffer = io.BytesIO()
    if file_format == "pt":
        torch.save(value, buffer)
    else:
        pickle.dump(value, buffer, protocol=4)
    return buffer.getvalue()


def encode_generator(generator: torch.Generator) -> str:
    """Return the state of a generator as text."""
    return base64.b64encode(generator.get_state().numpy().tobytes()).decode()


def restore_generator(generator: torch.Generator, state: Any, *, where: str) -> None:
    """Set the state of a generator from its text.

    Raises:
        FormatError: if the text is no such state.
    """
    try:
        data = base64.b64decode(state, validate=True)
        generator.set_state(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    except (TypeError, ValueError, RuntimeError) as exc:
        raise FormatError(f"{where}: no state of a random generator") from exc


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old bytes or the new ones, never a part.

    Raises:
        StorageError: if the storage failed; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{new_uuid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as exc:
        raise StorageError(f"cannot write {path}: {exc.strerror}") from exc
