"""Giving up capabilities, in processes of their own; and a configuration that others can write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lb.control.reload import load_config
from lb.errors import ConfigError

CONFIG = """\
[[interface]]
name = "eth0"
[[service]]
name = "echo"
address = "198.18.1.100"
port = 9876
  [[service.server]]
  name = "server1"
  address = "198.18.1.31"
  port = 7000
"""
SCRIPT = """
import subprocess, threading
from lb.privileges.drop import drop_privileges
drop_privileges()
def show(): print(open("/proc/thread-self/status").read())
show()
thread = threading.Thread(target=show); thread.start(); thread.join()
print(subprocess.check_output(["cat", "/proc/self/status"], text=True))
"""
NET_ADMIN = 1 << 12
is_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: others have no capabilities to give up")


def capabilities(status: str) -> dict[str, int]:
    rows = (line.split(":") for line in status.splitlines() if line.startswith(("Cap", "NoNewPrivs")))
    return {name: int(value, 16) for name, value in rows}


def test_drop_privileges_keeps_net_admin_alone() -> None:
    """Rule 21.2, privileges: what is left is CAP_NET_ADMIN, in threads and in programs that are started too."""
    before = capabilities(Path("/proc/self/status").read_text())
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    own, thread, child = (capabilities("Name:" + part) for part in done.stdout.split("Name:")[1:])
    for found in (own, thread, child):
        assert found["CapEff"] == found["CapPrm"] == before["CapPrm"] & NET_ADMIN
        assert found["CapInh"] & ~NET_ADMIN == found["CapAmb"] & ~NET_ADMIN == 0
        assert found["NoNewPrivs"] == 1
    if before["CapEff"] & 1 << 8:
        assert own["CapBnd"] == before["CapBnd"] & NET_ADMIN


@is_root
@pytest.mark.parametrize("mode", [0o602, 0o666, 0o646])
def test_config_others_can_write_refused_as_root(tmp_path: Path, mode: int) -> None:
    """Rule 21.4, trusted files: root does not do what others have written."""
    path = tmp_path / "lb.toml"
    path.write_text(CONFIG)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=rf"lb.toml can be written by others \(mode 0{mode:o}\): chmod go-w"):
        load_config(path)


@is_root
def test_config_a_group_can_write_refused_as_root(tmp_path: Path) -> None:
    """Rule 21.4, trusted files: a group is others too, and the command that changes it is named."""
    path = tmp_path / "lb.toml"
    path.write_text(CONFIG)
    path.chmod(0o664)
    with pytest.raises(ConfigError, match=rf"can be written by others \(mode 0664\): chmod g-w {path}"):
        load_config(path)


def test_config_only_its_owner_can_write_is_read(tmp_path: Path) -> None:
    """The ordinary case."""
    path = tmp_path / "lb.toml"
    path.write_text(CONFIG)
    path.chmod(0o644)
    assert load_config(path).services[0].name == "echo"


def test_config_that_is_not_there_says_so(tmp_path: Path) -> None:
    """A missing file is no question of modes."""
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config(tmp_path / "lb.toml")
