"""RLinf's `.pt` and `.pkl` files <-> trajectories, with nothing in them run.

Owns their content, their checksums and the state of a generator as text. Local
paths only.
"""

from __future__ import annotations

import base64
import functools
import importlib
import io
import os
import pickle
import struct
import threading
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from zarrbuf.common.uuids import new_uuid
from zarrbuf.errors import FormatError, NotFoundError, StorageError
from zarrbuf.rlinf.index import FileFormat
from zarrbuf.rlinf.safe_pickle.allowlist import parse_pickle
from zarrbuf.trajectory.plain_values import NUMPY_SCALARS
from zarrbuf.trajectory.trajectory import KNOWN_FIELDS, Trajectory, make_trajectory

_SPARE_BYTES: Final = 64 << 20
_PLAIN_LOCK: Final = threading.Lock()
_SCALAR: Final = importlib.import_module("numpy._core.multiarray").scalar


def _no_bytes() -> bytes:
    """Stand for `bytes`, which protocol 2 calls for b""; an argument is an error."""
    return b""


_PLAIN_NAMES: Final[list[Any]] = [
    (_no_bytes, "builtins.bytes"),
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),  # NumPy 1
    np.dtype,
    *{type(np.dtype(one)) for one in NUMPY_SCALARS},
]
"""What a `.pt` file with NumPy numbers or b"" mentions."""


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
    if not isinstance(value, dict):
        raise FormatError(
            f"{file}: not a trajectory of RLinf: it holds a {type(value).__name__}"
        )
    odd = [name for name, one in value.items() if not _may_be_field(name, one)]
    if odd:
        raise FormatError(
            f"{file}: not a trajectory of RLinf; unknown fields: "
            f"{sorted(map(str, odd))}"
        )
    empty = {n for n, one in value.items() if n not in KNOWN_FIELDS and _is_empty(one)}
    return make_trajectory({n: one for n, one in value.items() if n not in empty})


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, dict) and not value)


def _may_be_field(name: object, value: object) -> bool:
    """Whether it is one of RLinf's fields, or a tensor or nothing of another name."""
    if name in KNOWN_FIELDS:
        return True
    is_known_kind = isinstance(value, torch.Tensor) or _is_empty(value)
    return isinstance(name, str) and is_known_kind


def _read_pt(file: Path) -> Any:
    """Load a `.pt` file after checking the CRC-32 of every record in it.

    `weights_only` is safe from torch 2.10 on (CVE-2025-32434, CVE-2026-24747), which
    is why the project asks for it.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            if any(record.compress_type for record in archive.infolist()):
                raise FormatError(
                    f"{file}: no file of torch, its records are compressed"
                )
            damaged = archive.testzip()
    except FormatError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        OverflowError,
    ) as exc:
        raise FormatError(f"{file}: cut short, damaged or no .pt file: {exc}") from exc
    if damaged is not None:
        raise FormatError(f"{file}: damaged, CRC-32 of record {damaged!r} is wrong")
    try:
        value = _load_plain(file)
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
    allowed = 2 * file.stat().st_size + _SPARE_BYTES
    if _claimed_bytes(value) > allowed:
        raise FormatError(
            f"{file}: its tensors claim more than {allowed} bytes, twice the file and "
            "64 MiB; a view repeats a small storage"
        )
    return value


def _load_plain(file: Path) -> Any:
    """Load tensors and plain values; of NumPy numbers and b"" torch has to be told.

    It is told for the whole process, so only while such a file is read.
    """
    load = functools.partial(
        torch.load, file, weights_only=True, mmap=True, map_location="cpu"
    )
    try:
        return load()
    except pickle.UnpicklingError:
        with _PLAIN_LOCK, torch.serialization.safe_globals(_PLAIN_NAMES):
            return load()


def _claimed_bytes(value: Any) -> int:
    """Return the bytes that the tensors of a tree take once they are dense."""
    total, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, list | tuple):
            waiting += item
        elif isinstance(item, torch.Tensor):
            total += item.numel() * item.element_size()
    return total


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


def stage_file(path: Path, data: bytes) -> Path:
    """Write a file durably beside the place where it shall be.

    Returns:
        Its temporary path, for `os.replace`.

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
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as exc:
        raise StorageError(f"cannot write {path}: {exc.strerror}") from exc
    return temporary


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old bytes or the new ones, never a part.

    Raises:
        StorageError: if the storage failed; nothing is left behind.
    """
    publish_files([(stage_file(path, data), path)])


def publish_files(staged: Sequence[tuple[Path, Path]]) -> None:
    """Give staged files their names; those there before are replaced.

    Raises:
        StorageError: if the storage failed; staged files are taken away.
    """
    try:
        for temporary, path in staged:
            os.replace(temporary, path)
    except OSError as exc:
        discard_files(staged)
        raise StorageError(f"cannot write {path}: {exc.strerror}") from exc


def discard_files(staged: Sequence[tuple[Path, Path]]) -> None:
    """Take staged files away."""
    for temporary, _ in staged:
        temporary.unlink(missing_ok=True)
