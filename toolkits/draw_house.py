"""Draw the wings of the package and what passes between them, from the real imports.

    python -m toolkits.draw_house            print the picture, in Mermaid
    python -m toolkits.draw_house --write    put it into docs/architecture.md

An arrow goes from a wing to one that it imports; it is named after what is imported
along it most: classes, where there are any. Arrows that follow from others (a -> b -> c
says a -> c) are left out. A test compares the picture in the document with this one.
"""

from __future__ import annotations

import argparse
import ast
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent
PACKAGE: Final = ROOT / "zarrbuf"
DOCUMENT: Final = ROOT / "docs" / "architecture.md"
BEGIN: Final = "<!-- house: drawn by toolkits/draw_house.py -->"
END: Final = "<!-- house: end -->"
_LEFT_OUT: Final = ("errors", "common", "schemas")
"""Everything may use these; their arrows would say nothing."""
_ALIASES: Final = ("AnyArray", "FileFormat", "IntArray", "Schema")
"""Types that are no classes."""
_NAMES_AN_ARROW: Final = 2

Arrows = Mapping[tuple[str, str], Counter[str]]


def find_arrows(package: Path) -> Arrows:
    """Return the arrows between wings: who imports whom -> names, how often."""
    homes = _public_homes(package)
    found: dict[tuple[str, str], Counter[str]] = {}
    for path in sorted(package.rglob("*.py")):
        wing = path.relative_to(package).parts[0]
        if wing.endswith(".py") or wing in _LEFT_OUT:
            continue
        for module, name in _names_used(ast.parse(path.read_text()), package, homes):
            other = module.split(".")[1]
            if other not in (wing, *_LEFT_OUT):
                found.setdefault((wing, other), Counter())[name] += 1
    return {arrow: _classes_first(names) for arrow, names in found.items()}


def _names_used(
    tree: ast.Module, package: Path, homes: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield the module and the name of all that a module has from the package.

    Args:
        tree: of the module.
        package: its folder.
        homes: public name -> module, for those who say `package.name`.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            if node.module.startswith(f"{package.name}."):
                yield from ((node.module, one.name) for one in node.names)
        elif (
            isinstance(node, ast.Attribute)
            and node.attr in homes
            and ast.unparse(node.value) == package.name
        ):
            yield homes[node.attr], node.attr


def _public_homes(package: Path) -> dict[str, str]:
    """Return public names -> modules, as the package's own file imports them."""
    tree = ast.parse((package / "__init__.py").read_text())
    return {
        one.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for one in node.names
        if node.module.startswith(f"{package.name}.")
    }


def _classes_first(names: Counter[str]) -> Counter[str]:
    """Return the names of classes alone, where there are any."""
    classes = Counter({n: count for n, count in names.items() if _is_class(n)})
    return classes or Counter({n: c for n, c in names.items() if not n.isupper()})


def _is_class(name: str) -> bool:
    return name[0].isupper() and not name.isupper() and name not in _ALIASES


def reduced(arrows: Arrows) -> list[tuple[str, str]]:
    """Return the arrows that do not follow from others, in order of their names."""
    below: dict[str, set[str]] = {}
    for start, end in arrows:
        below.setdefault(start, set()).add(end)

    def reaches(start: str, end: str) -> bool:
        return any(one == end or reaches(one, end) for one in below.get(start, ()))

    return sorted(
        (start, end)
        for start, end in arrows
        if not any(reaches(one, end) for one in below[start] - {end})
    )


def subject_of(package: Path, wing: str) -> str:
    """Return the first sentence of a wing's docstring."""
    tree = ast.parse((package / wing / "__init__.py").read_text())
    said = (ast.get_docstring(tree) or "").partition("\n")[0].rstrip(".")
    return said.replace("<->", "↔").replace("`", "")


def draw(package: Path = PACKAGE) -> str:
    """Return the picture: Mermaid between the markers of the document."""
    arrows = find_arrows(package)
    wings = sorted({wing for arrow in arrows for wing in arrow})
    lines = ["```mermaid", "flowchart TD"]
    for wing in wings:
        lines.append(f'    {wing}["<b>{wing}</b><br/>{subject_of(package, wing)}"]')
    for start, end in reduced(arrows):
        names = sorted(arrows[start, end].items(), key=lambda one: (-one[1], one[0]))
        shown = ", ".join(name for name, _ in names[:_NAMES_AN_ARROW])
        label = f'|"{shown}"|' if shown else ""
        lines.append(f"    {start} -->{label} {end}")
    return "\n".join([BEGIN, *lines, "```", END])


def replace(text: str, picture: str) -> str:
    """Return a document with another picture between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + picture + after


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the picture, or write it into the document."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write it there")
    if parser.parse_args(arguments).write:
        DOCUMENT.write_text(replace(DOCUMENT.read_text(), draw()))
    else:
        print(draw())


if __name__ == "__main__":
    main()
