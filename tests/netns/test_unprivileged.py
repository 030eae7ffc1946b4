"""
Rule 21.2, privileges, and rule 21.4, trusted files: commands that root calls and that read a configuration run its
policies without any rights, and not at all where others decide what is in it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from arms import VISIBLE
from lbrun import CODE
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from lb.capture.pcap import PcapWriter

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: others have nothing to give up"),
]

CONFIG = """
[[interface]]
name = "lo"
mac = "aa:aa:aa:00:00:01"
addresses = ["198.18.1.1/24"]
[[service]]
name = "web"
address = "198.18.1.100"
port = 80
policy = "./mine.py:Mine"
  [[service.server]]
  name = "s"
  address = "198.18.1.31"
  port = 7000
  mac = "aa:aa:aa:00:00:31"
"""
POLICY = """
import sys
from lb.policies.round_robin import RoundRobin

def tell(what):
    rows = [line.strip() for line in open("/proc/thread-self/status") if line.startswith(("Uid", "CapPrm", "CapBnd"))]
    print(what, *rows, sep="|", file=sys.stderr, flush=True)

tell("import")

class Mine:
    def plan(self, service, servers, measurements=None):
        tell("plan")
        return RoundRobin().plan(service, servers, measurements)
"""
EXPERIMENT = """
title = "t"
policies = ["./mine.py:Mine"]
baseline = "./mine.py:Mine"
[[load]]
name = "one"
lines = "0 198.18.1.100 9876 100 0 1"
"""
WEIGHTS = """
from pathlib import Path
from lb.lab.loadgen.lines import parse
from lb.lab.loadgen.target_weights import of_config
print(of_config(Path("lb.toml"), parse("0 198.18.1.100 80 100 0 1", "x").lines[0]))
"""
READ_EXPERIMENT = """
from pathlib import Path
from lb.lab.experiment.file import read
print(read(Path("experiment.toml"))[0].title)
"""
LIVE = """
from pathlib import Path
from lb.config.unprivileged import load
print(load(Path("lb.toml")).services[0].name)
"""
COMMANDS = {
    "check": (CODE, "check", "lb.toml"),
    "explain": (CODE, "explain", "203.0.113.7:4000", "198.18.1.100:80", "-c", "lb.toml"),
    "replay": (CODE, "replay", "in.pcap", "-c", "lb.toml", "--write", "out.pcap"),
    "doctor": (CODE, "doctor", "--no-probe", "-c", "lb.toml"),
    "policy check": (CODE, "policy", "check", "mine.py:Mine", "--flows", "100", "--share-error", "0"),
    "experiment": (READ_EXPERIMENT,),
    "loadgen": (WEIGHTS,),
    "run --testbed": (LIVE,),
}
READING = ("check", "explain", "replay", "loadgen", "run --testbed")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that only root may read."""
    path = Path(tempfile.mkdtemp(prefix="flowlb-test-"))
    for name, text in (("lb.toml", CONFIG), ("mine.py", POLICY), ("experiment.toml", EXPERIMENT)):
        (path / name).write_text(text)
    with PcapWriter(path / "in.pcap") as writer:
        tcp = IP(src="203.0.113.7", dst="198.18.1.100") / TCP(sport=4000, dport=80, flags="S")
        writer.write(0, bytes(Ether(src="aa:aa:aa:00:00:21", dst="aa:aa:aa:00:00:01") / tcp))
    for each in path.iterdir():
        each.chmod(0o600)
    yield path
    shutil.rmtree(path)


def run(name: str, folder: Path, *, visible: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command as root, in the folder. `visible`: whether other users may read Python."""
    wrapper = [sys.executable, str(VISIBLE)] if visible else []
    enter = ["/bin/sh", "-c", f'cd {folder} && exec "$@"', "sh"]
    command = [*wrapper, *enter, sys.executable, "-c", *COMMANDS[name]]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def told(done: subprocess.CompletedProcess[str]) -> list[tuple[str, int, int, int]]:
    """Return what the policy told: what was called, its user, its capabilities and those it can get."""
    found = re.findall(r"^(\w+)\|Uid:\t(\d+).*\|CapPrm:\t(\w+)\|CapBnd:\t(\w+)$", done.stderr, re.MULTILINE)
    return [(what, int(uid), int(held, 16), int(bound, 16)) for what, uid, held, bound in found]


@pytest.mark.parametrize("name", COMMANDS)
def test_command_of_root_runs_policies_without_rights(folder: Path, name: str) -> None:
    """
    Rule 21.2, privileges: never as root, with no capability at all; files that only root may read are read all the
    same.
    """
    done = run(name, folder)
    assert done.returncode == (1 if name == "doctor" else 0), done.stderr
    calls = told(done)
    assert "import" in {what for what, *_ in calls}
    assert {(uid, held, bound) for _, uid, held, bound in calls} == {(65534, 0, 0)}
    assert "warning" not in done.stderr
    if name == "replay":
        assert (folder / "out.pcap").stat().st_size > 60
    if name == "loadgen":
        assert done.stdout == "{'s': 1.0}\n"


def test_command_of_root_python_is_hidden_still_has_no_rights(folder: Path) -> None:
    """Where the other user could not run Python it stays root, without a capability, and says so."""
    with_hidden = subprocess.run(
        [
            "/bin/sh",
            "-c",
            f'cd {folder} && exec "$@"',
            "sh",
            sys.executable,
            "-c",
            HIDDEN + CODE,
            *COMMANDS["check"][1:],
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert with_hidden.returncode == 0, with_hidden.stderr
    assert {(uid, held) for _, uid, held, _ in told(with_hidden)} == {(0, 0)}
    assert "warning: stays root, with no capabilities" in with_hidden.stderr


HIDDEN = "import lb.privileges.drop; lb.privileges.drop.why_not = lambda _: 'nobody cannot read Python'\n"


@pytest.mark.parametrize("name", READING)
def test_command_of_root_refuses_a_configuration_of_others(folder: Path, name: str) -> None:
    """Rule 21.4, trusted files: as `lb run` refuses it, before the policy that it names is run."""
    (folder / "lb.toml").chmod(0o666)
    done = run(name, folder, visible=False)
    assert done.returncode != 0
    assert f"lb.toml: refused: {folder}/lb.toml can be written by others (mode 0666): chmod go-w" in done.stderr
    assert told(done) == []
    if COMMANDS[name][0] == CODE:
        assert done.returncode == 3


def test_doctor_of_root_tells_of_a_configuration_of_others(folder: Path) -> None:
    """Rule 21.4, trusted files: among all that is wrong; the policy that it names is not run."""
    (folder / "lb.toml").chmod(0o666)
    done = run("doctor", folder, visible=False)
    assert done.returncode == 1
    assert f"{folder}/lb.toml can be written by others (mode 0666)" in done.stdout
    assert told(done) == []


@pytest.mark.parametrize("name", ["check", "explain", "policy check", "doctor", "experiment"])
def test_command_of_root_refuses_a_policy_of_others(folder: Path, name: str) -> None:
    """Rule 21.4, trusted files: a policy is a program."""
    (folder / "mine.py").chmod(0o620)
    done = run(name, folder, visible=False)
    assert done.returncode != 0
    assert "mine.py can be written by others (mode 0620): chmod g-w" in done.stderr + done.stdout
    assert told(done) == []


def test_command_of_root_without_policies_of_users_stays_as_it_is(folder: Path) -> None:
    """A configuration that runs no user's code changes nothing: what root writes is root's."""
    (folder / "lb.toml").write_text(CONFIG.replace('policy = "./mine.py:Mine"\n', ""))
    done = run("replay", folder, visible=False)
    assert (done.returncode, "warning" in done.stderr) == (0, False), done.stderr
    assert (folder / "out.pcap").stat().st_size > 60


@pytest.mark.parametrize(
    "code", ["import os; os._exit(3)", "raise SystemExit(4)", "import os; os.fork() or os._exit(0)"]
)
def test_policy_that_ends_its_process_is_one_line(folder: Path, code: str) -> None:
    """What a policy does to the process it runs in is not the command's own end."""
    (folder / "mine.py").write_text(code + "\n")
    done = run("doctor", folder, visible=False)
    assert done.returncode in (1, 3)
    assert "Traceback" not in done.stderr
