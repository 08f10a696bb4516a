"""What is installed: the package alone, with its types and its schemas."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.paths import ROOT

import zarrbuf
from zarrbuf import schemas
from zarrbuf.errors import InvalidInputError

FILES = {path.name: path for path in (ROOT / "schemas").glob("*.json")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that this checkout builds."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


def test_the_wheel_holds_zarrbuf_only(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"zarrbuf", f"zarrbuf-{zarrbuf.__version__}.dist-info"}
    assert "zarrbuf/py.typed" in names
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "zarrbuf").rglob("*.py")}
    assert modules <= set(names)


def test_the_wheel_hands_out_the_schemas(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import json, zarrbuf\n"
        "s = zarrbuf.schemas  # nobody imported it\n"
        "print(json.dumps({n: s.read_schema(n) for n in s.list_schemas()}))\n"
        "print(s.__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(tmp_path)},
    )
    found, place = done.stdout.splitlines()
    assert place == str(tmp_path / "zarrbuf" / "schemas.py")
    assert json.loads(found) == {
        name.removesuffix(".schema.json"): json.loads(path.read_text())
        for name, path in FILES.items()
    }


def test_a_checkout_hands_out_the_schemas_that_are_edited() -> None:
    assert schemas.list_schemas() == sorted(n.partition(".")[0] for n in FILES)
    assert len(schemas.list_schemas()) == 5
    for name in schemas.list_schemas():
        edited = json.loads(FILES[f"{name}.schema.json"].read_text())
        assert schemas.read_schema(name) == edited
    with pytest.raises(InvalidInputError, match=r"no schema '\.\./x'; allowed are"):
        schemas.read_schema("../x")


def test_public_names_are_what_they_were() -> None:
    """Names may be added; these stay."""
    assert set(zarrbuf.__all__) >= {
        "PreloadReplayBufferDataset",
        "ReplayBufferDataset",
        "Trajectory",
        "TrajectoryReplayBuffer",
        "__version__",
        "convert",
        "export",
        "export_clip",
        "list_buffer",
        "merge",
        "open_playback",
        "plot_step",
        "prune",
        "read_history",
        "recompress",
        "remove",
        "repair",
        "replay_buffer_collate_fn",
        "row_json",
        "split",
        "unpin",
        "vacuum",
        "verify",
        "view",
    }
    assert dir(zarrbuf) == sorted(zarrbuf.__all__)
    for name in zarrbuf.__all__:
        assert getattr(zarrbuf, name) is not None


@pytest.mark.parametrize("name", ["buffer", "merging", "commits", "format"])
def test_an_old_path_is_pythons_own_error(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=f"No module named 'zarrbuf.{name}'"):
        importlib.import_module(f"zarrbuf.{name}")


def test_the_metadata_name_what_is_tested_and_where_to_go(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("/METADATA"))
        lines = archive.read(name).decode().splitlines()
    for version in ("3.11", "3.12", "3.13"):
        assert f"Classifier: Programming Language :: Python :: {version}" in lines
    assert "Requires-Python: >=3.11" in lines
    urls = [line.split(", ")[0] for line in lines if line.startswith("Project-URL:")]
    assert {"Project-URL: Changelog", "Project-URL: Documentation"} <= set(urls)


def test_the_command_tells_its_version() -> None:
    command = [sys.executable, "-m", "zarrbuf.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"zarrbuf, version {zarrbuf.__version__}\n"
