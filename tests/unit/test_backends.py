"""The choice of a backend: nothing slow in silence, every refusal with a way out."""

from __future__ import annotations

import builtins
import importlib
import logging
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import lb.backends
from lb.errors import BackendError


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pretend that lb._core is not installed, as after FLOWLB_PURE=1."""
    real: Any = builtins.__import__

    def refuse(name: str, *arguments: Any, **named: Any) -> ModuleType:
        if name == "lb._core":
            raise ModuleNotFoundError("No module named 'lb._core'", name=name)
        module: ModuleType = real(name, *arguments, **named)
        return module

    monkeypatch.delitem(sys.modules, "lb.backends.rust", raising=False)
    monkeypatch.delitem(sys.modules, "lb._core", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    yield
    sys.modules.pop("lb.backends.rust", None)


@pytest.mark.usefixtures("no_extension")
def test_load_rust_without_extension_names_both_ways_out() -> None:
    with pytest.raises(BackendError) as raised:
        lb.backends.load("rust")
    assert "pip install ." in str(raised.value)
    assert "--backend python" in str(raised.value)


@pytest.mark.usefixtures("no_extension")
def test_load_auto_without_extension_warns_and_takes_python(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert lb.backends.load("auto").NAME == "python"
    assert "slower" in caplog.text


def test_load_auto_with_extension_takes_rust(caplog: pytest.LogCaptureFixture) -> None:
    assert (lb.backends.load("auto").NAME, caplog.text) == ("rust", "")


@pytest.mark.parametrize(("name", "message"), [("ebpf", "not in this version"), ("katran", "choose one of auto")])
def test_load_backend_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        lb.backends.load(name)


@pytest.mark.parametrize("name", ["rust", "python"])
def test_backend_module_has_what_the_contract_names(name: str) -> None:
    module = importlib.import_module(f"lb.backends.{name}")
    wanted = {"NAME", "DataPath", "Result", "parse", "checksum", "checksum_update", "flow_hash", "source_hash"}
    assert wanted <= set(module.__all__)
    assert all(hasattr(module, attribute) for attribute in module.__all__)
