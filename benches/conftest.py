"""
What the benches share: both backends, and a summary of how much faster rust is than python.

A bench that runs on both belongs to a group; the summary divides the medians of a group's two members. Numbers hold
for the machine that printed them and are never compared across machines.
"""

from __future__ import annotations

import importlib
import os
import platform
import time
from collections import defaultdict
from types import ModuleType
from typing import Any

import pytest

LOAD_AT_START = os.getloadavg()[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Let every bench count the CPU time of its thread.

    Nothing measured here waits, so on a quiet machine that is the time that passes. On a busy one python's rounds, a
    hundred times as long as rust's, would be interrupted far more often, and the ratio would flatter rust.
    """
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=time.thread_time))


@pytest.fixture(params=["rust", "python"])
def module(request: pytest.FixtureRequest, benchmark: Any) -> ModuleType:
    """Return a backend's module, and note its name beside the figures. A missing one fails."""
    benchmark.extra_info["backend"] = request.param
    return importlib.import_module(f"lb.backends.{request.param}")


def build_profile() -> str:
    """Return how the extension was built."""
    return str(importlib.import_module("lb._core").BUILD_PROFILE)


@pytest.hookimpl
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Record what the figures depend on, and leave out the machine's name."""
    machine_info.pop("node", None)
    machine_info.update(build_profile=build_profile(), load_at_start=LOAD_AT_START, cores=os.cpu_count())


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the ratio of each group."""
    session = getattr(config, "_benchmarksession", None)
    medians: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for bench in session.benchmarks if session else ():
        medians[bench.group][bench.extra_info["backend"]] = bench.stats.median
    complete = {group: found for group, found in medians.items() if {"python", "rust"} <= set(found)}
    if not complete:
        return
    terminalreporter.section("rust against python")
    machine = f"{platform.machine()}, Python {platform.python_version()}, extension built as {build_profile()}"
    terminalreporter.line(f"{machine}, load at start {LOAD_AT_START:.2f}")
    for group, found in complete.items():
        terminalreporter.line(f"{group}: rust is {found['python'] / found['rust']:.1f} times as fast as python")
