"""The layers of ARCHITECTURE.md: imports run downwards, never in a circle, and the drawings show what is there."""

from __future__ import annotations

import ast
import re

import pytest

import import_map

PYTHON, RUST = import_map.python_imports(), import_map.rust_imports()
TEXT = import_map.ARCHITECTURE.read_text()
READABLE, READABLE_USERS = "lb.backends.python.", {"lb.explain.placement", "lb.testing"}
TOURS = ("### One frame", "### One change of the configuration")


@pytest.mark.parametrize("imports", [PYTHON, RUST], ids=["python", "rust"])
def test_modules_never_import_each_other_in_a_circle(imports: import_map.Imports) -> None:
    assert len(imports) > 50
    assert import_map.circles(imports) == []


@pytest.mark.parametrize(("imports", "separator"), [(PYTHON, "."), (RUST, "::")], ids=["python", "rust"])
def test_packages_inside_a_package_never_import_each_other_in_a_circle(
    imports: import_map.Imports, separator: str
) -> None:
    packages = {name.rsplit(separator, 1)[0] for name in imports if separator in name} - {"lb"}
    assert len(packages) > 8
    for package in packages:
        assert import_map.circles(import_map.inside(imports, package, separator)) == [], package


MAPS = pytest.mark.parametrize("made", [import_map.python_map, import_map.rust_map], ids=["python", "rust"])


@MAPS
def test_arrows_between_layers_lead_downwards(made: object) -> None:
    """A package imports those of lower layers, none of its own layer and none above."""
    arrows, rows = made()  # type: ignore[operator]
    level = {name: number for number, row in enumerate(rows) for name in row}
    wrong = sorted(f"{one} -> {two}" for one, two in arrows if level[one] >= level[two])
    assert wrong == []


@pytest.mark.parametrize(
    ("imports", "room", "made"),
    [(PYTHON, import_map.python_room, import_map.python_map), (RUST, import_map.rust_room, import_map.rust_map)],
    ids=["python", "rust"],
)
def test_every_package_is_in_one_layer(imports: import_map.Imports, room: object, made: object) -> None:
    listed = [name for row in made()[1] for name in row]  # type: ignore[operator]
    there = {room(module) for module in imports} - {"lb", "crate"}  # type: ignore[operator]
    assert sorted(listed) == sorted(there)


@pytest.mark.parametrize(
    ("made", "path"),
    [(import_map.python_map, import_map.PYTHON_MAP), (import_map.rust_map, import_map.RUST_MAP)],
    ids=["python", "rust"],
)
def test_drawing_shows_the_arrows_of_the_code(made: object, path: object) -> None:
    """`make map` draws anew."""
    assert import_map.drawn(path.read_text()) == made()[0]  # type: ignore[attr-defined, operator]


def test_lab_is_imported_by_commands_alone_and_lazily() -> None:
    """Who balances loads nothing of the lab: an import of it stands inside the function of a command."""
    users = {name for name, others in PYTHON.items() if any(import_map.python_room(each) == "lab" for each in others)}
    assert {import_map.python_room(name) for name in users} <= {"cli", "lab"}
    for name in users:
        if import_map.python_room(name) == "cli":
            path = import_map.PYTHON_ROOT / f"{name.replace('.', '/')}.py"
            path = path if path.exists() else path.with_suffix("") / "__init__.py"
            top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
            assert not [node.module for node in top if (node.module or "").startswith("lb.lab")], name


def test_python_data_path_is_imported_by_backends_alone() -> None:
    """Others use the contract, or `lb.packet`; ARCHITECTURE.md says why the exceptions are some."""
    users = {name for name, others in PYTHON.items() if any(f"{each}.".startswith(READABLE) for each in others)}
    assert {name for name in users if import_map.python_room(name) != "backends"} == READABLE_USERS


def test_public_names_of_the_package_are_imported_by_none_of_its_modules() -> None:
    """`lb` itself is above all layers: it hands on names of theirs, and modules import these where they are."""
    assert [name for name, others in PYTHON.items() if "lb" in others] == []
    assert "lb.model.version" in PYTHON["lb.control.telemetry.sampler"]


@pytest.mark.parametrize("heading", TOURS)
def test_tour_names_files_and_functions_that_are_there(heading: str) -> None:
    """Each stop of a tour is a row: what happens, the file, and names that are defined in it."""
    rows = re.findall(r"^\| [^|]+ \| `([^`|]+)` \| ((?:`\w+`(?:, )?)+) \|", section(heading), re.MULTILINE)
    assert len(rows) >= 8
    for file, names in rows:
        text = (import_map.ROOT / file).read_text()
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"\b(?:fn|def|class|struct|enum|trait) {name}\b", text), f"{file}: no {name}"


def section(heading: str) -> str:
    """Return the text below a heading, up to the next one."""
    return TEXT.split(f"\n{heading}\n")[1].split("\n#")[0]


def test_paths_in_architecture_are_there() -> None:
    """Each path in backticks that names a file or folder of the tree leads to one."""
    paths = re.findall(r"`((?:rust|python|docs|tests|benches|scripts|docker)/[\w./-]+)`", TEXT)
    assert paths
    assert [path for path in paths if not (import_map.ROOT / path).exists()] == []


def test_circles_of_three_are_found() -> None:
    found = import_map.circles({"a": frozenset({"b"}), "b": frozenset({"c"}), "c": frozenset({"a"}), "d": frozenset()})
    assert found == [["a", "b", "c"]]


def test_rust_paths_of_a_use_tree_are_told_apart() -> None:
    paths = list(import_map._rust_paths("flow::{table::{Entry, Table}, tcp}"))
    assert paths == [["flow", "table", "Entry"], ["flow", "table", "Table"], ["flow", "tcp"]]
