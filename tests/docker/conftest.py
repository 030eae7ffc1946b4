"""
Fixtures of the tests in Docker: one build, nine containers with a prefix and addresses of their own, gone afterwards.

Skipped where no engine answers, or where it may not be used; setup.sh says why. The image stays, as a cache does:
`./setup.sh down --image` removes it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from containers import BUILD_DEADLINE_S, Containers, setup


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.docker)
            item.add_marker(pytest.mark.timeout(BUILD_DEADLINE_S))


@pytest.fixture(scope="session")
def engine() -> list[str]:
    """Skip without an engine. Gives the options that the base image needs here."""
    answer = setup("status")
    if answer.returncode:
        pytest.skip(answer.stderr.strip())
    can_make_base = shutil.which("mmdebstrap") is not None and os.geteuid() == 0
    has_base = subprocess.run(["docker", "image", "inspect", "debian:trixie-slim"], capture_output=True, check=False)
    return [] if has_base.returncode == 0 or not can_make_base else ["--base-from-packages"]


@pytest.fixture(scope="session")
def containers(engine: list[str]) -> Iterator[Containers]:
    """Give the nine containers."""
    made = Containers(f"t{os.getpid()}-", f"198.18.{100 + os.getpid() % 100}")
    try:
        answer = setup(*engine, *made.options)
        assert answer.returncode == 0, answer.stderr[-2000:]
        yield made
    finally:
        made.remove()


@pytest.fixture
def second(containers: Containers) -> Iterator[Containers]:
    """Give the names of a second testbed that is not up; whatever a test makes of it is removed."""
    names = Containers(f"s{os.getpid()}-", f"198.18.{200 + os.getpid() % 50}")
    try:
        yield names
    finally:
        names.remove()
