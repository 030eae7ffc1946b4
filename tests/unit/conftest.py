"""Fixtures of the tests that need neither root nor a network."""

from __future__ import annotations

import importlib
import os

import pytest
from hypothesis import settings

# No example fails for having taken long: the machine has other things to do, and speed belongs in benches/.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

PURE_PYTHON = "FLOWLB_PURE_PYTHON_TESTS"


@pytest.fixture(params=["python", "rust"])
def backend(request: pytest.FixtureRequest) -> str:
    """Run a behaviour test on every backend. A missing extension fails it, unless it is left out on purpose."""
    name: str = request.param
    if name == "rust":
        try:
            importlib.import_module("lb.backends.rust")
        except Exception as missing:
            if os.environ.get(PURE_PYTHON) == "1":
                pytest.skip(f"{PURE_PYTHON}=1: the Rust extension is left out")
            pytest.fail(f"the Rust extension is not there ({missing}); install the package, or set {PURE_PYTHON}=1")
    return name
