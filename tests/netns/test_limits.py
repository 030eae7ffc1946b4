"""`lb run` with less of something than it needs: one line with the way out, and nothing is left behind."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from lbrun import program
from pair import CONFIG, Pair, running_pair

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with running_pair() as made:
        yield made


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("--nofile=16", "Too many open files: raise the limit of open files (`ulimit -n`"),
        ("--fsize=1000000", "this process may write 1000000: raise that (`ulimit -f`"),
    ],
    ids=["files", "sizes"],
)
def test_start_with_a_low_limit_exits_with_the_way_out(
    pair: Pair, state: Path, tmp_path: Path, limit: str, message: str
) -> None:
    if shutil.which("prlimit") is None:
        pytest.skip("the command prlimit (util-linux) is not installed")
    config = tmp_path / "lb.toml"
    config.write_text(CONFIG)
    config.chmod(0o600)
    command = program("run", "-c", str(config), "--control", str(tmp_path / "lb.sock"), "--state", str(state))
    done = subprocess.run(
        ["ip", "netns", "exec", pair.near, "prlimit", limit, *command],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.returncode in (1, 4)
    assert not (tmp_path / "lb.sock").exists()
