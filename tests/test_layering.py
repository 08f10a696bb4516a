"""The plan of rooms: an import points only to a strictly lower rank."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import zarrbuf

PACKAGE = Path(zarrbuf.__file__).parent
RANKS = {
    "errors": 0,
    "base_urls": 1,
    "terminal": 1,
    "jobs": 1,
    "object_options": 1,
    "ranges": 1,
    "uuids": 1,
    "layout": 4,
    "background": 1,
    "object_faults": 1,
    "cache": 1,
    "stats": 1,
    "workers": 1,
    "mapping": 1,
    "arguments": 1,
    "format": 1,
    "sampling": 1,
    "zipindex": 1,
    "pickle_machine": 1,
    "torch_legacy": 1,
    "texts": 1,
    "printing": 1,
    "pictures": 2,
    "navigation": 2,
    "curves": 2,
    "summaries": 2,
    "object_client": 2,
    "sparse": 2,
    "disk_cache": 2,
    "blosc": 2,
    "memory": 2,
    "metadata": 2,
    "unpickle": 2,
    "growing": 2,
    "local_files": 2,
    "video": 3,
    "storage": 3,
    "chunks": 3,
    "rows": 3,
    "mixing": 3,
    "selection": 4,
    "expressions": 4,
    "local_storage": 4,
    "object_storage": 4,
    "fetching": 4,
    "root": 4,
    "shards": 4,
    "loops": 4,
    "log_format": 4,
    "rlinf_index": 4,
    "table": 4,
    "preloading": 4,
    "bases": 5,
    "locations": 5,
    "compiled": 5,
    "archive": 5,
    "manifest": 5,
    "parallel": 6,
    "segments": 6,
    "trajectory_archive": 6,
    "opened": 7,
    "reading": 7,
    "big_fields": 7,
    "small_fields": 7,
    "checkpoints": 7,
    "trajectory": 7,
    "recording": 8,
    "comparing": 8,
    "small_reader": 8,
    "batches": 8,
    "commits": 8,
    "encoding": 8,
    "rlinf_files": 8,
    "log_remains": 9,
    "destinations": 9,
    "folder_rescue": 9,
    "stores": 9,
    "reader": 9,
    "listing": 9,
    "draws": 10,
    "log_store": 10,
    "prefetching": 10,
    "memory_store": 10,
    "rlinf": 10,
    "views": 10,
    "writer": 10,
    "log_rescue": 11,
    "folder_curation": 11,
    "sampler": 11,
    "contents": 11,
    "opening": 11,
    "sources": 12,
    "rlinf_names": 12,
    "saving": 12,
    "datasets": 12,
    "playback": 13,
    "pins": 13,
    "vacuuming": 13,
    "history": 13,
    "conversion": 13,
    "verification": 13,
    "curation": 14,
    "repairing": 14,
    "headings": 14,
    "scenes": 15,
    "pruning": 15,
    "rewriting": 15,
    "retention": 15,
    "merging": 15,
    "viewing": 16,
    "drawing": 16,
    "buffer": 16,
    "visualize": 17,
    "prompt": 17,
    "window": 18,
    "clips": 18,
    "web": 19,
    "viewer": 19,
    "__init__": 20,
    "view_commands": 21,
    "curation_commands": 21,
    "upkeep_commands": 21,
    "conversion_commands": 21,
    "cli": 22,
}
COMMANDS = {
    "conversion_commands",
    "curation_commands",
    "upkeep_commands",
    "view_commands",
}
ONLY_IN = {
    "fsspec": {"object_client"},
    "matplotlib": {"drawing", "visualize", "viewer", "web", "window"},
    "tornado": {"web"},
    "av": {"video"},
    "PIL": {"clips"},
    "click": {"cli", "terminal", *COMMANDS},
    "tqdm": {"terminal"},
    "ctypes": {"blosc", "loops", "mapping", "memory"},
    "numcodecs": {"blosc"},
    "google_crc32c": {"chunks", "loops"},
    "llvmlite": {"loops"},
    "numba": {"loops"},
    "pickle": {"rlinf_files"},
    "jsonschema": set(),
    "zarr": set(),
}
TORCH_FREE = ("cli", "listing", "commits", "rlinf_index", "archive", "sampling")


def tree(name: str) -> ast.Module:
    """Return the syntax of one room."""
    return ast.parse((PACKAGE / f"{name}.py").read_text())


def imports(name: str) -> Iterator[str]:
    """Yield every module that a room imports, whole names."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            assert node.module is not None
            yield node.module


def rooms_used(name: str) -> set[str]:
    """Return the rooms that a room imports."""
    parts = (module.split(".") for module in imports(name))
    found = {p[1] if len(p) > 1 else "__init__" for p in parts if p[0] == "zarrbuf"}
    return found


def test_every_room_has_a_rank_and_the_published_plan_names_it() -> None:
    rooms = {path.stem for path in PACKAGE.glob("*.py")}
    assert rooms == set(RANKS)
    plan = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    for room, rank in RANKS.items():
        assert f"r{rank} {room}.py" in plan, room


@pytest.mark.parametrize("name", [name for name in RANKS if name != "__init__"])
def test_imports_point_down(name: str) -> None:
    for other in rooms_used(name):
        assert RANKS[other] < RANKS[name], f"{name} imports {other}"


@pytest.mark.parametrize("name", RANKS)
def test_imports_stand_at_the_top(name: str) -> None:
    for function in ast.walk(tree(name)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = [
                node
                for node in ast.walk(function)
                if isinstance(node, ast.Import | ast.ImportFrom)
            ]
            assert not inner, f"{name}: {function.name} imports"


@pytest.mark.parametrize("name", RANKS)
def test_libraries_stay_in_their_room(name: str) -> None:
    for module in imports(name):
        allowed = ONLY_IN.get(module.split(".")[0])
        assert allowed is None or name in allowed, f"{name} imports {module}"


@pytest.mark.parametrize("name", RANKS)
def test_nobody_prints(name: str) -> None:
    names = {node.id for node in ast.walk(tree(name)) if isinstance(node, ast.Name)}
    assert "print" not in names


@pytest.mark.parametrize("name", TORCH_FREE)
def test_listing_needs_no_torch(name: str) -> None:
    seen: set[str] = set()
    waiting = {name}
    while waiting:
        room = waiting.pop()
        seen.add(room)
        found = rooms_used(room) - {"__init__"}
        assert "torch" not in {m.split(".")[0] for m in imports(room)}, room
        waiting |= found - seen


@pytest.mark.parametrize("name", RANKS)
def test_rooms_and_functions_stay_small(name: str) -> None:
    text = (PACKAGE / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body
            if ast.get_docstring(node) is not None:
                body = body[1:]
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert lines <= 60, f"{name}.{node.name}: {lines} lines"


def test_importing_the_package_runs_nothing() -> None:
    assert "zarrbuf" in sys.modules
    used = rooms_used("__init__")
    typed = [
        node for node in tree("__init__").body if isinstance(node, ast.If)
    ]  # only `if TYPE_CHECKING`
    assert len(typed) == 1
    inside = {
        node.module.split(".")[1]
        for node in typed[0].body
        if isinstance(node, ast.ImportFrom) and node.module
    }
    assert used == inside
