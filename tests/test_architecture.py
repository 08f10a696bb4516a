"""The published plan of the house is true: its picture, its wings, its places."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import house
from support.paths import ROOT
from test_layering import WINGS

import zarrbuf
from toolkits import draw_house

TEXT = (ROOT / "docs" / "architecture.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
SOURCES = house.read_sources(Path(zarrbuf.__file__).parent)


def test_the_picture_is_that_of_the_imports() -> None:
    picture = draw_house.draw()
    assert picture in TEXT, "python -m toolkits.draw_house --write"
    assert draw_house.replace(TEXT, picture) == TEXT
    for wing in WINGS:
        if wing not in ("errors", "common"):
            assert f'    {wing}["' in picture


def test_the_list_of_wings_is_the_one_that_is_checked() -> None:
    table = TEXT.partition("| wing | owns |")[2].partition("\n\n")[0]
    rows = [row.split("|") for row in table.splitlines()[2:]]
    assert [row[1].strip().strip("`") for row in rows] == list(WINGS)


@pytest.mark.parametrize("text", [TEXT, CONTRIBUTING], ids=["plan", "contributing"])
def test_every_place_that_is_named_is_there(text: str) -> None:
    """`wing/module`, `wing/`, `wing/module.function`, and files of the checkout."""
    named = re.findall(r"(?<![\w/.])([a-z_]+(?:/[\w.]+)*/[\w.]*)", text)
    assert len(named) > 8
    for place in named:
        wing = place.partition("/")[0]
        if wing not in WINGS:
            known = (ROOT / place).exists() or (ROOT / "docs" / place).exists()
            assert known or not (ROOT / wing).is_dir(), place
            continue
        module = place.removesuffix(".py").rstrip("/.").replace("/", ".")
        name = ""
        if module not in SOURCES:
            module, _, name = module.rpartition(".")
        assert module in SOURCES, place
        assert re.search(rf"\b(def|class) {name}\b", SOURCES[module]) or not name, place


def test_every_test_and_module_that_a_document_names_is_there() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    assert len(pages) > 10
    for page in pages:
        if page.name == "changelog.md":  # it tells old names, too
            continue
        named = re.findall(r"(?:tests|zarrbuf|toolkits)/[\w/]+\.py", page.read_text())
        missing = [name for name in named if not (ROOT / name).exists()]
        assert missing == [], page.name


def test_every_link_leads_somewhere() -> None:
    for folder, text in ((ROOT / "docs", TEXT), (ROOT, CONTRIBUTING)):
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (folder / target).exists(), target


def test_arrows_that_follow_from_others_are_left_out(tmp_path: Path) -> None:
    package = tmp_path / "zarrbuf"
    files = {
        "__init__.py": "from zarrbuf.low.a import run as run\n",
        "low/__init__.py": '"""What lies low <-> `a`.\n\nMore."""\n',
        "low/a.py": "class Able: ...\n\n\ndef run(): ...\n",
        "mid/__init__.py": '"""In between."""\n',
        "mid/b.py": (
            "from zarrbuf.low.a import Able, run\nfrom zarrbuf.errors import E\n"
        ),
        "top/__init__.py": '"""On top."""\n',
        "top/c.py": (
            "import zarrbuf\nfrom zarrbuf.mid.b import what\nx = zarrbuf.run\n"
        ),
    }
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    arrows = draw_house.find_arrows(package)
    assert arrows == {
        ("mid", "low"): {"Able": 1},
        ("top", "mid"): {"what": 1},
        ("top", "low"): {"run": 1},
    }
    assert draw_house.reduced(arrows) == [("mid", "low"), ("top", "mid")]
    picture = draw_house.draw(package)
    assert '    low["<b>low</b><br/>What lies low ↔ a"]' in picture
    assert '    mid -->|"Able"| low' in picture
    assert "top -->|" in picture
    assert "top --> low" not in picture
