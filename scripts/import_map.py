"""
Draw who imports whom, layer by layer, from the code: `make map` writes docs/map-python.svg and docs/map-rust.svg.

The layers are those that ARCHITECTURE.md lists, top to bottom. A package, or a top-level module, is a box; an arrow
means that a file in the one imports a file in the other. `tests/unit/test_layers.py` uses the same functions to hold
that no arrow leads upwards, that no files import each other in a circle, and that the drawings are up to date.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURE = ROOT / "ARCHITECTURE.md"
# The heading in ARCHITECTURE.md above the layers of a language, and the drawing of it.
PYTHON_LAYERS, PYTHON_MAP = "### Layers of the Python package", ROOT / "docs" / "map-python.svg"
RUST_LAYERS, RUST_MAP = "### Layers of the Rust data path", ROOT / "docs" / "map-rust.svg"
PYTHON_ROOT, RUST_ROOT = ROOT / "python", ROOT / "rust" / "core" / "src"

# `crate::a::b`, or a tree of them, `super::{a, b::c}`.
RUST_PATH = re.compile(r"\b(crate|self|(?:super::)*super)::((?:[^;{}]|\{[^;]*?\})*?)(?=[;,()<>\s{}!]|$)")

# Compiled: imported like a module, but none of these files.
EXTENSION = "lb._core"

# Which modules each module imports; names are dotted (Python) or joined by "::" (Rust).
Imports: TypeAlias = Mapping[str, frozenset[str]]
Arrow: TypeAlias = tuple[str, str]


def python_imports(root: Path = PYTHON_ROOT) -> Imports:
    """Return the imports among the modules under a folder, those for type checkers and those in functions too."""
    files = {module_name(path.relative_to(root)): path for path in sorted(root.rglob("*.py"))}
    return {name: frozenset(_python_targets(path, files) - {name}) for name, path in files.items()}


def module_name(path: Path) -> str:
    """Return the dotted name of a module file, whose path starts at the folder of its top package."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _python_targets(path: Path, modules: Iterable[str]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} - {EXTENSION}
            # `from package import module` imports the module, `from module import name` the module itself.
            found |= inner & set(modules)
            if inner - set(modules):
                found.add(node.module)
    return found & set(modules)


def rust_imports(root: Path = RUST_ROOT) -> Imports:
    """Return who names whom among the modules of a crate by `crate::`, `super::` or `self::`; tests are left out."""
    files = {rust_name(path.relative_to(root)): path for path in sorted(root.rglob("*.rs")) if path.stem != "tests"}
    return {name: frozenset(_rust_targets(path, name, files) - {name}) for name, path in files.items()}


def rust_name(path: Path) -> str:
    """Return the path of a module, `flow::table`, from its file below `src`; that of the crate itself is `crate`."""
    parts = path.with_suffix("").parts
    parts = parts[:-1] if parts[-1] in ("mod", "lib") else parts
    return "::".join(parts) or "crate"


def _rust_targets(path: Path, name: str, modules: Iterable[str]) -> set[str]:
    text = re.sub(r"//.*", "", path.read_text())
    # Tests may look anywhere; by custom they are the last item of a file.
    text = re.split(r"#\[cfg\((?:test|all\(test)", text)[0]
    own = [] if name == "crate" else name.split("::")
    found = set()
    for start, rest in re.findall(
        r"\b(crate|self|(?:super::)*super)::((?:[^;{}]|\{[^;]*?\})*?)(?=[;,()<>\s{}!]|$)", text
    ):
        base = [] if start == "crate" else own[: len(own) - start.count("super")]
        for path_ in _rust_paths(rest):
            found.add(_deepest([*base, *path_], modules))
    # Items of a child that are handed on or used by its plain name.
    for child, rest in re.findall(r"\buse ([a-z_]\w*)((?:::[^;]+)?);", text):
        for path_ in _rust_paths(rest.removeprefix("::")):
            if "::".join([*own, child]) in modules:
                found.add(_deepest([*own, child, *path_], modules))
    return found - {"crate", ""}


def _rust_paths(text: str) -> Iterator[list[str]]:
    """Yield the paths of a use tree: `a::{b, c::d}` holds a::b and a::c::d."""
    text = text.strip()
    if "{" not in text:
        yield re.findall(r"\w+", text.split(" as ")[0])
        return
    head, _, tail = text.partition("{")
    depth, start, inner = 0, 0, tail.rstrip().removesuffix("}")
    for at, char in enumerate(inner + ","):
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            for path in _rust_paths(inner[start:at]):
                yield [*re.findall(r"\w+", head), *path]
            start = at + 1


def _deepest(path: list[str], modules: Iterable[str]) -> str:
    """Return the innermost module on a path: what follows it is an item of that module."""
    known = set(modules)
    for length in range(len(path), 0, -1):
        if "::".join(path[:length]) in known:
            return "::".join(path[:length])
    return "crate"


def circles(imports: Imports) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or by way of others (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(imports.get(module, ())):
            if other not in index:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == index[module]:
            group = [stack.pop()]
            while group[-1] != module:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for module in imports:
        if module not in index:
            visit(module)
    return found


def inside(imports: Imports, package: str, separator: str) -> Imports:
    """Return who imports whom among what stands directly in a package: its modules, and its packages each as one."""
    start = package + separator

    def child(module: str) -> str | None:
        return module.removeprefix(start).split(separator)[0] if module.startswith(start) else None

    found: dict[str, set[str]] = {}
    for module, others in imports.items():
        if one := child(module):
            found.setdefault(one, set()).update(two for other in others if (two := child(other)) and two != one)
    return {name: frozenset(others) for name, others in found.items()}


def layers(heading: str, text: str | None = None) -> list[list[str]]:
    """Return the layers listed below a heading of ARCHITECTURE.md, top to bottom, each with its packages."""
    section = (ARCHITECTURE.read_text() if text is None else text).split(f"\n{heading}\n")[1]
    rows = re.findall(r"^\d+\. ((?:`[\w:]+`(?:, )?)+)", section.split("\n#")[0], re.MULTILINE)
    return [re.findall(r"`([\w:]+)`", row) for row in rows]


def python_room(module: str) -> str:
    """Return the package or top-level module below `lb` that a module is in; `lb` for the package's own file."""
    parts = module.split(".")
    room = parts[1] if len(parts) > 1 else parts[0]
    return "cli" if room == "__main__" else room


def rust_room(module: str) -> str:
    """Return the top-level module that a module is in."""
    return module.split("::")[0]


def arrows(imports: Imports, room: Mapping[str, str]) -> frozenset[Arrow]:
    """Return who imports whom among rooms; `room` says which room each module is in, one without has no arrows."""
    pairs = ((room.get(module), room.get(other)) for module, others in imports.items() for other in others)
    return frozenset((one, two) for one, two in pairs if one is not None and two is not None and one != two)


def drawing(found: Iterable[Arrow], rows: list[list[str]]) -> str:
    """Return a graph in the DOT language: a row for each layer, the highest at the top."""
    lines = ["digraph map {", "rankdir=TB; nodesep=0.35; ranksep=0.55; newrank=true; bgcolor=white;"]
    lines.append(
        'node [shape=box, style="rounded,filled", fillcolor="#eef3fb", color="#5b7bb0", fontname="sans-serif"];'
    )
    lines.append('edge [color="#8a94a6", arrowsize=0.6, penwidth=0.8];')
    for number, row in enumerate(rows):
        lines.append(f'layer{number} [label="", shape=none, style="", width=0, height=0];')
        names = " ".join(f'"{name}";' for name in row)
        lines.append(f"{{rank=same; layer{number}; {names}}}")
    chain = " -> ".join(f"layer{number}" for number in range(len(rows)))
    lines.append(f"{chain} [style=invis];")
    lines += [f'"{one}" -> "{two}";' for one, two in sorted(found)]
    return "\n".join([*lines, "}"]) + "\n"


def drawn(svg: str) -> frozenset[Arrow]:
    """Return the arrows in a drawing, as graphviz notes them in titles."""
    titles = re.findall(r"<title>([\w:]+)&#45;&gt;([\w:]+)</title>", svg.replace("&#58;", ":"))
    return frozenset((one, two) for one, two in titles if not one.startswith("layer"))


def python_map() -> tuple[frozenset[Arrow], list[list[str]]]:
    """Return the arrows among the rooms of the Python package, and its layers."""
    imports = python_imports()
    return arrows(imports, {module: python_room(module) for module in imports if module != "lb"}), layers(PYTHON_LAYERS)


def rust_map() -> tuple[frozenset[Arrow], list[list[str]]]:
    """Return the arrows among the modules of the Rust data path, and its layers."""
    imports = rust_imports()
    return arrows(imports, {module: rust_room(module) for module in imports if module != "crate"}), layers(RUST_LAYERS)


def main() -> None:
    """Write both drawings with graphviz."""
    for (found, rows), path in ((python_map(), PYTHON_MAP), (rust_map(), RUST_MAP)):
        try:
            subprocess.run(["dot", "-Tsvg", "-o", str(path)], input=drawing(found, rows), text=True, check=True)
        except FileNotFoundError:
            sys.exit("the command dot is not installed: apt-get install graphviz")
        print(f"{path.relative_to(ROOT)}: {len(found)} arrows, {len(rows)} layers")


if __name__ == "__main__":
    main()
