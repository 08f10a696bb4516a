"""The plan of the house: which wing may know which, and which library is whose."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path

import pytest
from support import house

import zarrbuf

SOURCES = house.read_sources(Path(zarrbuf.__file__).parent)
WINGS = (
    "errors",
    "common",
    "storage",
    "archive",
    "trajectory",
    "manifest",
    "rlinf",
    "stores",
    "sampling",
    "curation",
    "upkeep",
    "replay",
    "training",
    "viewer",
    "cli",
)
"""A wing imports from itself and from those before it."""
FLAT = {"errors", "schemas", "rlinf_ext", "replay_buffer", ""}
"""What lies beside the wings: what a user names in full."""
ORDER = (*WINGS[:-1], "rlinf_ext", WINGS[-1], "replay_buffer")
WITH_TORCH = WINGS[WINGS.index("trajectory") :]
LIBRARIES = {
    "fsspec": ["storage"],
    "matplotlib": ["viewer"],
    "tornado": ["viewer"],
    "av": ["viewer"],
    "PIL": ["viewer"],
    "click": ["cli"],
    "tqdm": ["cli", "common.jobs"],
    "torch": WITH_TORCH,
    "numcodecs": ["archive"],
    "google_crc32c": ["archive"],
    "numba": ["archive"],
    "llvmlite": ["archive"],
    "ctypes": ["storage.mmap", "archive", "sampling.batches"],
    "pickle": ["rlinf.files"],
    "jsonschema": [],
    "zarr": [],
}
TORCH_FREE = (
    "cli.main",
    "stores.listing",
    "manifest.commit_log",
    "rlinf.index",
    "archive.group",
    "sampling.index_map",
)
LONG = 400
"""Lines from which a module should be looked at: has its subject ended before?"""


def test_every_module_lies_in_a_wing() -> None:
    assert {house.wing_of(name) for name in SOURCES} == {*WINGS, *FLAT}
    assert {name for name in SOURCES if "." not in name} <= {*WINGS, *FLAT}


def test_imports_point_up_the_list() -> None:
    assert house.against_the_order(SOURCES, ORDER) == []


def test_imports_make_no_circle() -> None:
    assert house.circles(SOURCES) == []


def test_imports_stand_at_the_top() -> None:
    assert house.inner_imports(SOURCES) == []


def test_libraries_stay_in_their_wing() -> None:
    assert house.out_of_place(SOURCES, LIBRARIES) == []


def test_only_commands_print() -> None:
    assert house.prints(SOURCES, allowed_in="cli") == []


@pytest.mark.parametrize("name", TORCH_FREE)
def test_listing_needs_no_torch(name: str) -> None:
    assert house.loads_library(SOURCES, name, "torch") == []


def test_modules_and_functions_end_where_their_subject_does() -> None:
    assert house.too_long(SOURCES) == []
    for one in house.too_long(SOURCES, max_lines=LONG):
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.warn(one, stacklevel=1)


def test_wings_say_what_they_own_and_hand_on_nothing() -> None:
    packages = {name.rpartition(".")[0] for name in SOURCES} - {""}
    for name in packages:
        tree = ast.parse(SOURCES[name])
        said = ast.get_docstring(tree) or ""
        assert len(tree.body) == 1, f"{name}/__init__.py holds more than its docstring"
        for word in ("Owns", "Begin with"):
            assert word in said, f"{name}/__init__.py does not say {word!r}"


def test_importing_the_package_runs_nothing() -> None:
    body = ast.parse(SOURCES[""]).body
    (typed,) = [node for node in body if isinstance(node, ast.If)]
    inside = {
        node.module for node in typed.body if isinstance(node, ast.ImportFrom)
    }  # only under `if TYPE_CHECKING`
    used = house.own_imports("", SOURCES[""])
    loaded_by_name = {"zarrbuf.schemas"}
    assert inside | loaded_by_name == {f"zarrbuf.{name}" for name in used}


class TestTheTest:
    """A wrong import of each kind is refused, with its arrow and the rule."""

    def test_an_arrow_down_the_list(self) -> None:
        sources = {"low.a": "from zarrbuf.high.b import c", "high.b": "c = 1"}
        assert house.against_the_order(sources, ("low", "high")) == [
            "low.a:1 -> high.b: low stands above high"
        ]
        assert house.against_the_order(sources, ("high", "low")) == []

    def test_an_arrow_to_no_wing(self) -> None:
        sources = {"low.a": "import zarrbuf.other.b", "other.b": ""}
        assert house.against_the_order(sources, ("low",)) == [
            "low.a:1 -> other.b: other is no wing"
        ]

    def test_an_arrow_to_a_package(self) -> None:
        sources = {"low.a": "import os\nfrom zarrbuf import high", "high": ""}
        assert house.against_the_order(sources, ("high", "low", "cli")) == [
            "low.a:2 -> zarrbuf: an import names a module"
        ]

    def test_an_arrow_to_a_module_by_way_of_its_package(self) -> None:
        sources = {"low": "", "low.a": "from zarrbuf.low import b", "low.b": ""}
        assert house.against_the_order(sources, ("low",)) == [
            "low.a:1 -> low: an import names a module"
        ]

    def test_an_arrow_to_what_is_loaded_by_name(self) -> None:
        text = 'import importlib\nx = importlib.import_module("zarrbuf.high.b")\n'
        sources = {"low.a": text, "high.b": ""}
        assert house.against_the_order(sources, ("low", "high")) == [
            "low.a:2 -> high.b: low stands above high"
        ]

    def test_commands_import_the_package(self) -> None:
        assert house.against_the_order({"cli.a": "import zarrbuf"}, ("cli",)) == []

    def test_a_circle(self) -> None:
        sources = {
            "low.a": "import zarrbuf.low.b",
            "low.b": "from zarrbuf.low.c import d",
            "low.c": "from zarrbuf.low.a import e",
        }
        assert house.circles(sources) == [
            "low.a -> low.b -> low.c -> low.a: imports make no circle"
        ]
        assert house.circles({**sources, "low.c": "import os"}) == []

    @pytest.mark.parametrize(
        "text",
        ["def f():\n    import os\n", "class A:\n    from zarrbuf.low import b\n"],
    )
    def test_an_import_inside(self, text: str) -> None:
        found = house.inner_imports({"low.a": text})
        assert found == ["low.a:2: imports stand at the top"]

    def test_an_import_for_types_alone(self) -> None:
        assert house.inner_imports({"": "if TYPE_CHECKING:\n    import os\n"}) == []

    def test_a_library_out_of_place(self) -> None:
        text = "from torch.utils import data"
        found = house.out_of_place({"low.a": text}, {"torch": ["high", "mid.b"]})
        assert found == ["low.a:1 -> torch: it is for high, mid.b"]
        for name in ("high.c", "mid.b"):
            assert house.out_of_place({name: text}, {"torch": ["high", "mid.b"]}) == []

    def test_a_library_behind_others(self) -> None:
        sources = {"a.b": "import zarrbuf.a.c", "a.c": "import os\nimport torch"}
        assert house.loads_library(sources, "a.b", "torch") == [
            "a.c:2 -> torch: a.b goes without it (a.b imports it)"
        ]
        assert house.loads_library({"a.b": "import os"}, "a.b", "torch") == []

    def test_a_print(self) -> None:
        assert house.prints({"low.a": "print(1)"}, allowed_in="cli") == [
            "low.a:1: only cli prints"
        ]
        assert house.prints({"cli.a": "print(1)"}, allowed_in="cli") == []

    def test_too_many_lines(self) -> None:
        text = "def f():\n" + "    x = 1\n" * 61
        assert house.too_long({"low.a": text}, max_lines=61) == [
            "low.a: 62 lines; at most 61",
            "low.a:1: f has 61 lines",
        ]
        assert house.too_long({"low.a": "x = 1\n" * 700}) == []
