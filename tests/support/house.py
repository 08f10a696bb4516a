"""The rules of the house, as functions from source texts to what breaks them.

Every rule takes modules by name, such as "storage.local" (without the package's own
name; "" is its `__init__.py`), and their texts, so that wrong ones can be made up.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

PACKAGE = "zarrbuf"
MAX_LINES = 700
MAX_FUNCTION_LINES = 60

Sources = Mapping[str, str]


def read_sources(folder: Path) -> dict[str, str]:
    """Return the text of every module below the folder of the package, by name."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path.read_text()
    return found


def imports(name: str, text: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the whole name of every module that a module imports.

    Those too that it has loaded by name, `importlib.import_module("...")`.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno} imports relatively"
            assert node.module is not None
            yield node.lineno, node.module
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            loaded = node.args[0]
            if isinstance(loaded, ast.Constant):
                yield node.lineno, str(loaded.value)


def own_imports(name: str, text: str) -> dict[str, int]:
    """Return the modules of the package that a module imports, and the line of each."""
    found = {}
    for line, module in imports(name, text):
        package, _, inner = module.partition(".")
        if package == PACKAGE:
            found.setdefault(inner, line)
    return found


def wing_of(name: str) -> str:
    """Return the wing of a module; one that lies flat is its own."""
    return name.partition(".")[0]


def against_the_order(sources: Sources, wings: Sequence[str]) -> list[str]:
    """Arrows from a wing to one below it in the list, or to none that is in it."""
    rank = {wing: number for number, wing in enumerate(wings)}
    found = []
    for name, text in sources.items():
        if wing_of(name) not in rank:
            continue
        for other, line in own_imports(name, text).items():
            if not other and wing_of(name) == "cli":
                continue  # commands call what Python calls, by its public names
            is_package = any(name.startswith(f"{other}.") for name in sources)
            if other not in sources or not other or is_package:
                rule = "an import names a module"
            elif wing_of(other) not in rank:
                rule = f"{wing_of(other)} is no wing"
            elif rank[wing_of(other)] > rank[wing_of(name)]:
                rule = f"{wing_of(name)} stands above {wing_of(other)}"
            else:
                continue
            found.append(f"{name}:{line} -> {other or PACKAGE}: {rule}")
    return found


def circles(sources: Sources) -> list[str]:
    """Circles of imports, each once, as the arrows that make it."""
    graph = {name: sorted(own_imports(name, sources[name])) for name in sources if name}
    found: list[str] = []
    done: set[str] = set()

    def follow(name: str, path: list[str]) -> None:
        if name in path:
            circle = [*path[path.index(name) :], name]
            found.append(f"{' -> '.join(circle)}: imports make no circle")
            return
        if name in done:
            return
        for other in graph.get(name, ()):
            follow(other, [*path, name])
        done.add(name)

    for name in graph:
        follow(name, [])
    return found


def inner_imports(sources: Sources) -> list[str]:
    """Imports that stand in a function or a class."""
    found = []
    for name, text in sources.items():
        tree = ast.parse(text)
        at_top = list(tree.body)
        for statement in tree.body:
            if isinstance(statement, ast.If):  # `if TYPE_CHECKING`
                at_top += statement.body
        for node in ast.walk(tree):
            is_import = isinstance(node, ast.Import | ast.ImportFrom)
            if is_import and node not in at_top:
                found.append(f"{name}:{node.lineno}: imports stand at the top")
    return found


def out_of_place(
    sources: Sources, allowed_in: Mapping[str, Collection[str]]
) -> list[str]:
    """Libraries that are imported elsewhere than in their wings or modules."""
    found = []
    for name, text in sources.items():
        for line, module in imports(name, text):
            library = module.partition(".")[0]
            places = allowed_in.get(library)
            if places is None or name in places or wing_of(name) in places:
                continue
            allowed = ", ".join(places) or "no module"
            found.append(f"{name}:{line} -> {library}: it is for {allowed}")
    return found


def prints(sources: Sources, *, allowed_in: str) -> list[str]:
    """Calls of `print` outside of a wing."""
    found = []
    for name, text in sources.items():
        if wing_of(name) == allowed_in:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Name) and node.id == "print":
                found.append(f"{name}:{node.lineno}: only {allowed_in} prints")
    return found


def reached(sources: Sources, start: str) -> dict[str, str]:
    """Return all modules that importing one loads, each with one that imports it."""
    found = {start: start}
    waiting = [start]
    while waiting:
        name = waiting.pop()
        for other in own_imports(name, sources[name]):
            if other and other not in found:
                found[other] = name
                waiting.append(other)
    return found


def loads_library(sources: Sources, start: str, library: str) -> list[str]:
    """Modules loaded with one that import a library it has to go without."""
    found = []
    for name, by in reached(sources, start).items():
        for line, module in imports(name, sources[name]):
            if module.partition(".")[0] == library:
                rule = f"{start} goes without it"
                found.append(f"{name}:{line} -> {library}: {rule} ({by} imports it)")
    return found


def too_long(sources: Sources, *, max_lines: int = MAX_LINES) -> list[str]:
    """Modules and functions that are longer than is allowed."""
    found = []
    for name, text in sources.items():
        count = len(text.splitlines())
        if count > max_lines:
            found.append(f"{name}: {count} lines; at most {max_lines}")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            body = node.body
            if ast.get_docstring(node) is not None:
                body = body[1:]
            lines = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
            if lines > MAX_FUNCTION_LINES:
                found.append(f"{name}:{node.lineno}: {node.name} has {lines} lines")
    return found
