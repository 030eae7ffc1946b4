"""
Fixtures of the tests on real hosts.

One testbed per link mode and one balancer per backend serve all tests that do not need their own. Without root the test
process moves into a new user namespace. Names start with the process id, so no other testbed is touched.
"""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from realhosts import RunningBalancer, running_balancer, running_testbed

from lb.lab.testbed.lifecycle import Testbed

PURE_PYTHON = "FLOWLB_PURE_PYTHON_TESTS"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.netns)


@pytest.fixture(scope="session")
def unique() -> str:
    """Return a start of names that no other run uses."""
    return f"t{os.getpid()}"


@pytest.fixture(scope="session", params=["on", "off"], ids=["offloads-on", "offloads-off"])
def link_mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session", params=["rust", "python"])
def backend(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if name == "rust":
        try:
            importlib.import_module("lb.backends.rust")
        except Exception as missing:
            if os.environ.get(PURE_PYTHON) == "1":
                pytest.skip(f"{PURE_PYTHON}=1: the Rust extension is left out")
            pytest.fail(f"the Rust extension is not there ({missing}); install the package, or set {PURE_PYTHON}=1")
    return name


@pytest.fixture(scope="session")
def hosts(link_mode: str, unique: str) -> Iterator[Testbed]:
    """Give the one-segment testbed with its servers, in one link mode."""
    with running_testbed(f"{unique}{link_mode}-", offloads=link_mode == "on") as testbed:
        yield testbed


@pytest.fixture(scope="session")
def balancer(hosts: Testbed, backend: str) -> Iterator[RunningBalancer]:
    """Give a balancer that runs in the router of `hosts`."""
    with running_balancer(hosts, backend) as running:
        yield running


@pytest.fixture
def state() -> Iterator[Path]:
    """Give the path of a state directory that is not there."""
    folder = Path(tempfile.mkdtemp(prefix="flowlb-test-", dir="/dev/shm"))
    yield folder / "state"
    shutil.rmtree(folder)
