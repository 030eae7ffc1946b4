"""What is imported is declared: the import graph of the package and pyproject.toml agree, in both directions."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "python" / "lb"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What only the development of the package needs is no business of its users, whatever extra names it.
EXTRAS_OF_USERS = ("report",)


def imported(source: str) -> Iterator[str]:
    """Yield the top-level names that a module imports, wherever in it and whether or not only for types."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.module.partition(".")[0]


def foreign(paths: Iterator[Path]) -> dict[str, set[str]]:
    """Return the top-level modules that are neither ours nor Python's, and the files that import each."""
    found: dict[str, set[str]] = {}
    for path in paths:
        for name in imported(path.read_text()):
            if name not in sys.stdlib_module_names and name != "lb":
                found.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return found


def distribution_names(requirements: list[str]) -> set[str]:
    """Return the normalised names (PEP 503) of requirements."""
    names = (re.match(r"[A-Za-z0-9._-]+", requirement) for requirement in requirements)
    return {normalised(name.group()) for name in names if name}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def distributions_of(module: str) -> set[str]:
    return {normalised(name) for name in importlib.metadata.packages_distributions().get(module, [])}


OPTIONAL = {extra: distribution_names(PROJECT["optional-dependencies"][extra]) for extra in EXTRAS_OF_USERS}
DECLARED = distribution_names(PROJECT["dependencies"])


@pytest.mark.parametrize("module", sorted(foreign(PACKAGE.rglob("*.py"))))
def test_import_of_the_package_is_declared(module: str) -> None:
    """Nothing is imported that comes along only because a declared package happens to need it."""
    distributions = distributions_of(module)
    assert distributions, f"{module} is not installed"
    where = foreign(PACKAGE.rglob("*.py"))[module]
    assert distributions & (DECLARED | set().union(*OPTIONAL.values())), f"{module}, imported by {sorted(where)}"


def test_declared_dependency_is_imported() -> None:
    """Every declared dependency is used."""
    used = set().union(*(distributions_of(module) for module in foreign(PACKAGE.rglob("*.py"))))
    assert DECLARED | set().union(*OPTIONAL.values()) == used & (DECLARED | set().union(*OPTIONAL.values()))


def test_imported_sees_every_form_of_import() -> None:
    """The test above is worth as much as what it sees."""
    source = "import a.b, c as d\nfrom e.f import g\nfrom . import h\ndef i():\n    import j\n"
    assert sorted(imported(source)) == ["a", "c", "e", "j"]


def test_files_to_touch_exist() -> None:
    """CONTRIBUTING.md names no file that is gone or has moved."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Where to add")[2].partition("\n## ")[0]
    paths = re.findall(r"`((?:python|rust|docs|tests)/[\w./]+)`|\]\(([\w./]+)\)", text)
    assert len(paths) > 20
    assert [path for pair in paths if not (ROOT / (path := "".join(pair))).exists()] == []
