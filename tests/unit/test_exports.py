"""The public names: what `__all__` lists is there, sorted, and nothing heavy is imported for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lb
from lb import errors

PRIMITIVES = {"checksum", "checksum_update", "flow_hash", "parse"}


def test_all_is_sorted_and_matches_lazy_names() -> None:
    """`__all__` is exactly what can be looked up, sorted."""
    assert sorted(lb.__all__) == lb.__all__
    assert set(lb.__all__) == set(lb._MODULES) | PRIMITIVES | {"__version__"}
    assert set(lb.__all__) <= set(dir(lb))


@pytest.mark.parametrize("name", lb.__all__)
def test_all_every_name_importable(name: str) -> None:
    """Each public name resolves."""
    assert getattr(lb, name) is not None


def test_all_holds_every_error() -> None:
    """Every exception of the tree is public."""
    tree = {name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == "lb.errors"}
    assert tree <= set(lb.__all__)


def test_unknown_name_attribute_error() -> None:
    """A typo is an AttributeError, as of any module."""
    with pytest.raises(AttributeError, match="module 'lb' has no attribute 'Ballancer'"):
        _ = lb.Ballancer  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", ["lb", "lb.cli"])
def test_import_light_leaves_heavy_modules_out(module: str) -> None:
    """`lb --help` answers at once because nothing heavy is imported for it."""
    heavy = "{'pydantic', 'aiohttp', 'pyroute2', 'rich', 'textual', 'prometheus_client', 'lb._core'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
