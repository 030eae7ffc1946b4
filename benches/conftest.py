"""
What the benches share: both backends, and a summary of how much faster rust is than python.

A bench that runs on both belongs to a group; the summary divides the medians of a group's two members. Numbers hold
for the machine that printed them and are never compared across machines.
"""

from __future__ import annotations

import importlib
import platform
from collections import defaultdict
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(params=["python", "rust"])
def module(request: pytest.FixtureRequest) -> ModuleType:
    """Return a backend's module. A missing one fails."""
    return importlib.import_module(f"lb.backends.{request.param}")


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the ratio of each group."""
    session = getattr(config, "_benchmarksession", None)
    medians: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for bench in session.benchmarks if session else ():
        medians[bench.group][bench.params["module"]] = bench.stats.median
    complete = {group: found for group, found in medians.items() if {"python", "rust"} <= set(found)}
    if not complete:
        return
    profile = importlib.import_module("lb._core").BUILD_PROFILE
    terminalreporter.section("rust against python")
    terminalreporter.line(f"{platform.machine()}, Python {platform.python_version()}, extension built as {profile}")
    for group, found in complete.items():
        terminalreporter.line(f"{group}: rust is {found['python'] / found['rust']:.0f} times as fast as python")
