"""
Rule 21.2, privileges, and rule 21.4, trusted files: the user that `lb run` runs as, the rights of threads and users'
code, the files it trusts.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from arms import CLIENTS, PORT, SERVER_PORT, VIPS, Arms, Run, answering, built_arms, connect_once, running
from lbrun import program
from pair import wait_until

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: others have nothing to give up"),
]

NET_ADMIN = 1 << 12
NOBODY = 65534
POLICY = """
from lb.policies.round_robin import RoundRobin

def tell(what):
    rows = [line for line in open("/proc/thread-self/status") if line.startswith(("Uid", "CapEff", "CapBnd"))]
    print(what, *rows, sep=" ", end="", flush=True)

tell("import")

class Mine:
    def plan(self, service, servers, measurements=None):
        tell("plan")
        return RoundRobin().plan(service, servers)
"""


@pytest.fixture(scope="module")
def arms() -> Iterator[Arms]:
    with built_arms(offloads=True) as made, answering(made, "server", SERVER_PORT):
        yield made


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that only root may read, in one that all may write (with the sticky bit)."""
    path = Path(tempfile.mkdtemp(prefix="flowlb-test-"))
    yield path
    shutil.rmtree(path)


def statuses(pid: int) -> list[dict[str, str]]:
    """Return what the kernel says about each thread of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        rows = (line.partition(":") for line in (task / "status").read_text().splitlines())
        found.append({name: value.strip() for name, _, value in rows})
    return found


def test_run_every_thread_and_policy_is_unprivileged(arms: Arms, folder: Path, backend: str) -> None:
    """Rule 21.2, privileges: user and capabilities are gone before a policy's module is imported, in every thread."""
    (folder / "mine.py").write_text(POLICY)
    (folder / "mine.py").chmod(0o600)
    policy = 'policy = "./mine.py:Mine"'
    with running(arms, folder, backend, visible=True, service=policy, mode=0o600) as run:
        assert connect_once(arms, CLIENTS[4], VIPS[4], PORT) == b"hi"
        assert subprocess.run([*program("reload"), "--control", str(run.control)], check=False).returncode == 0
        threads = statuses(run.process.pid)
        assert len(threads) > 1
        for status in threads:
            assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(NOBODY)}
            assert status["Groups"] == ""
            assert status["NoNewPrivs"] == "1"
            masks = [int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd")]
            assert masks == [NET_ADMIN] * 5
        told = run.text()
        for what in ("import", "plan"):
            seen = re.findall(rf"^{what} Uid:\t(\d+)\t.*\n CapEff:\t(\w+)\n CapBnd:\t(\w+)$", told, re.MULTILINE)
            assert seen, told
            assert {(int(uid), int(eff, 16), int(bnd, 16)) for uid, eff, bnd in seen} == {
                (NOBODY, NET_ADMIN, NET_ADMIN)
            }
        assert "runs as user nobody, with CAP_NET_ADMIN only" in told
    assert not run.control.exists()


@pytest.mark.skipif(shutil.which("nft") is None, reason="the command nft (nftables) is not installed")
def test_run_unprivileged_guard_is_repaired(arms: Arms, folder: Path, backend: str) -> None:
    """Rule 20.2, the host's kernel: nft has CAP_NET_ADMIN as a child of an unprivileged process."""
    with running(arms, folder, backend, visible=True) as run:
        made = arms.ruleset()
        assert "table inet flowlb_if" in made
        arms.run("host", "nft", "flush", "ruleset")
        wait_until(lambda: arms.ruleset() == made, "the table is back")
        assert "runs as user nobody" in run.text()
    assert arms.ruleset() == ""


def test_run_killed_leaves_no_socket(arms: Arms, folder: Path, backend: str) -> None:
    """The broker removes the control socket where the balancer itself may not, also after its death."""
    with running(arms, folder, backend, visible=True) as run:
        assert run.control.exists()
        run.end(signal.SIGKILL)
        wait_until(lambda: not run.control.exists(), "the socket is gone")


def test_run_broker_killed_is_told_at_once(arms: Arms, folder: Path, backend: str) -> None:
    """
    Rule 18.1, reloads and changes, and rule 21.4, trusted files: packets flow on, the status says that no reload is
    possible, a reload says what to do.
    """
    with running(arms, folder, backend, visible=True) as run:
        pid = run.process.pid
        (broker,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(broker), signal.SIGKILL)
        control = ("--control", str(run.control))
        wait_until(lambda: "background task broker failed" in run.text(), "it is noticed")
        status = subprocess.run([*program("status"), *control], capture_output=True, text=True, check=True).stdout
        assert "trouble: no reload is possible" in status
        told = subprocess.run([*program("reload"), *control], capture_output=True, text=True, check=False)
        assert (told.returncode, "restart `lb run`" in told.stderr) == (3, True)
        assert connect_once(arms, CLIENTS[4], VIPS[4], PORT) == b"hi"
        run.end(signal.SIGTERM)
        assert "could not be removed" in run.text()


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="the command setpriv (util-linux) is not installed")
def test_run_unprivileged_still_dies_with_its_parent(arms: Arms, folder: Path, backend: str) -> None:
    """The testbed's children ask for a signal at their parent's death; becoming another user must not forget that."""
    wrapper = ("sh", "-c", 'setpriv --pdeathsig TERM "$@" & wait', "sh")
    with running(arms, folder, backend, visible=True, wrapper=wrapper) as run:
        assert "runs as user nobody" in run.text()
        run.end(signal.SIGKILL)
        wait_until(lambda: "stopping" in run.text() and not run.control.exists(), "the balancer has ended")


def test_run_user_that_is_not_there_exit_4(arms: Arms, folder: Path, backend: str) -> None:
    """A user that was asked for is not replaced by another."""
    run = Run(arms, folder, backend, options=("--user", "no-such-user"))
    assert run.process.wait(20) == 4
    assert run.text() == "lb: --user no-such-user: there is no such user: `useradd --system no-such-user`\n"
    assert not run.control.exists()


def test_run_user_root_keeps_no_more_capabilities(arms: Arms, folder: Path, backend: str) -> None:
    """Who wants to stay root is told what that means, and has CAP_NET_ADMIN only."""
    with running(arms, folder, backend, options=("--user", "root")) as run:
        assert (
            "WARNING --user root: what runs in this process, policies included, can change root's files" in run.text()
        )
        for status in statuses(run.process.pid):
            assert [int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")] == [NET_ADMIN] * 3
            assert status["NoNewPrivs"] == "1"


def test_run_in_user_namespace_stays_its_root(arms: Arms, folder: Path, backend: str) -> None:
    """Where there is one user only, that one stays, without capabilities."""
    network = "".join(
        f"ip link add {name} type veth peer name far{name}; ip link set {name} up; ip addr add {address} dev {name}; "
        for name, address in (("eth0", "203.0.113.1/24"), ("eth1", "10.0.0.1/24"))
    )
    wrapper = ("unshare", "-Urn", "sh", "-c", f'set -e; {network} exec "$@"', "sh")
    with running(arms, folder, backend, wrapper=wrapper) as run:
        pid = run.process.pid
        assert "stays root of this user namespace, with CAP_NET_ADMIN only" in run.text()
        for status in statuses(pid):
            assert int(status["CapEff"], 16) == NET_ADMIN


@pytest.mark.parametrize("what", ["configuration", "policy", "directory"])
def test_run_files_others_can_write_refused(arms: Arms, folder: Path, backend: str, what: str) -> None:
    """Rule 21.4, trusted files: exit 3, and the command that helps, at start and before the file is believed."""
    (folder / "mine.py").write_text(POLICY)
    run = Run(arms, folder, backend, service='policy = "./mine.py:Mine"', start=False)
    target = {"configuration": run.config, "policy": folder / "mine.py", "directory": folder}[what]
    target.chmod(0o777)
    run.start()
    assert run.process.wait(20) == 3
    assert f"{target} can be written by others (mode 0777): chmod go-w {target}" in run.text()
    assert "import" not in run.text()


def test_run_policy_made_writable_reload_refused(arms: Arms, folder: Path, backend: str) -> None:
    """Rule 21.4, trusted files, and rule 18.1, reloads and changes: also at a reload, which changes nothing then."""
    (folder / "mine.py").write_text(POLICY)
    (folder / "mine.py").chmod(0o600)
    with running(arms, folder, backend, visible=True, service='policy = "./mine.py:Mine"') as run:
        (folder / "mine.py").chmod(0o602)
        done = subprocess.run(
            [*program("reload"), "--control", str(run.control)], check=False, capture_output=True, text=True
        )
        assert done.returncode == 3
        assert f"chmod go-w {folder}/mine.py" in done.stderr
        assert connect_once(arms, CLIENTS[4], VIPS[4], PORT) == b"hi"
