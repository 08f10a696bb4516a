"""Logs that were cut or mixed up behind a checkpoint; objects that are too large."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.numbered import contents, make
from support.paths import TESTS

from zarrbuf import convert, list_buffer, merge, repair, verify
from zarrbuf.archive.group import FieldArray, encode_archive
from zarrbuf.errors import FormatError
from zarrbuf.manifest.commit_log import open_log
from zarrbuf.manifest.layout import commit_path
from zarrbuf.manifest.log_checkpoints import write_checkpoint
from zarrbuf.manifest.rows import NUMBER_COLUMNS, TEXT_COLUMNS
from zarrbuf.manifest.segments import parse_segment
from zarrbuf.storage.resolve import open_storage


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A log of nine commits, with checkpoints after the sixth and the last."""
    path = tmp_path / "x"
    for number in range(8):
        make(path, number, 1)
        if number == 4:
            log = open_log(open_storage(path))
            write_checkpoint(log.storage, log.snapshot)
    log = open_log(open_storage(path))
    write_checkpoint(log.storage, log.snapshot)
    assert log.snapshot.version == 9
    return path


def test_a_flipped_digit_of_the_uuid_is_found_at_opening(source: Path) -> None:
    root = json.loads((source / "zarrbuf.json").read_text())
    root["uuid"] = ("1" if root["uuid"][0] == "0" else "0") + root["uuid"][1:]
    text = json.dumps(root, separators=(",", ":"), sort_keys=True)
    (source / "zarrbuf.json").write_text(text)
    with pytest.raises(FormatError, match="broken chain"):
        open_log(open_storage(source))
    assert not verify(source).is_sound


@pytest.mark.parametrize("gone", [range(5, 10), range(9, 10), range(1, 10)])
def test_a_log_whose_end_is_gone_is_found_at_opening(source: Path, gone: range) -> None:
    for number in gone:
        (source / commit_path(number)).unlink()
    with pytest.raises(FormatError, match=r"00009\.json is missing.*repair"):
        list_buffer(source)
    with pytest.raises(FormatError, match=r"00009\.json is missing.*repair"):
        make(source, 50, 1)
    assert not verify(source).is_sound
    assert not (source / commit_path(9)).exists()
    repair(source, apply=True)
    assert contents(source) == [(n, n) for n in range(8)]
    assert verify(source).is_sound
    make(source, 50, 1)
    assert len(contents(source)) == 9


def test_the_end_of_another_log_is_found_at_opening(source: Path) -> None:
    (source / commit_path(9)).write_bytes((source / commit_path(8)).read_bytes())
    with pytest.raises(FormatError, match=r"00009\.json is another one"):
        list_buffer(source)


def test_what_is_whole_is_opened_from_its_checkpoint(source: Path) -> None:
    for number in range(1, 6):
        (source / commit_path(number)).rename(source / f"{number}")
    assert contents(source) == [(n, n) for n in range(8)]


@pytest.mark.parametrize("name", ["zarrbuf.json", commit_path(9), commit_path(10)])
def test_a_sparse_object_takes_no_memory(source: Path, name: str) -> None:
    path = source / name
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(20 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FormatError, match="has more than the 16777216 bytes"):
        list_buffer(source)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_who_writes_beside_a_sparse_object_takes_no_memory(source: Path) -> None:
    """As a destination, as a source of bytes, and in a repair."""

    def sparse(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            file.truncate(20 << 30)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = "has more than the"
    sparse(source.parent / "target" / "zarrbuf.json")
    with pytest.raises(FormatError, match=said):
        convert(source, source.parent / "target")
    archive = source / list_buffer(source).rows.row(3).path
    sparse(archive)
    with pytest.raises(FormatError, match=said):
        merge([source], source.parent / "all", mode="copy")
    sparse(source / commit_path(7))
    with pytest.raises(FormatError, match=said):
        repair(source, apply=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


PEAK = """
import resource, sys
from zarrbuf.errors import FormatError
from zarrbuf.manifest.segments import parse_segment
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
try:
    parse_segment(open(sys.argv[1], "rb").read(), num_rows=2, name="seg")
except FormatError as exc:
    print(exc)
"""


def test_a_small_segment_of_huge_columns_is_refused_before_it_is_decoded(
    tmp_path: Path,
) -> None:
    columns = {
        name: np.ones(2, "int32" if name == "base" else "int64")
        for name in NUMBER_COLUMNS
    }
    columns["crc"] = np.ones(2, "uint32")
    columns["schema"] = np.ones(2, "uint64")
    arrays = {**columns, "uuid": np.zeros(32, np.uint8)}
    for text in TEXT_COLUMNS:
        arrays[f"{text}.offsets"] = np.array([0, 1 << 30, 1 << 30])
        arrays[f"{text}.bytes"] = np.zeros(1 << 30, np.uint8)
    fields = {n: FieldArray((one,), one.dtype.name) for n, one in arrays.items()}
    attributes = {"zarrbuf_segment": {"spec": 1, "rows": 2}}
    data = encode_archive(fields, attributes, codec="zstd")
    assert len(data) < 1 << 20
    with pytest.raises(FormatError, match="a string has at most 1024"):
        parse_segment(data, num_rows=2, name="seg")
    (tmp_path / "seg").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "seg"],
        capture_output=True,
        text=True,
        cwd=TESTS,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert "a string has at most 1024" in done.stdout, done.stderr
