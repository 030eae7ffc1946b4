"""setup.sh where there is no engine, or none that we may use: a line that says so, and an exit status."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[2] / "setup.sh"


def _run(*arguments: str, script: Path = SETUP, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, **environment}
    return subprocess.run([str(script), *arguments], capture_output=True, text=True, check=False, env=settings)


@pytest.fixture
def without_docker(tmp_path: Path) -> str:
    """Give a PATH with what the script itself needs, and no docker."""
    for name in ("bash", "dirname", "env", "sed", "tail", "cat", "id"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sideways"], "unknown argument 'sideways'"),
        (["--subnet", "10.0.0.0/8"], "--subnet 10.0.0.0/8: must look like 198.18.1.0/24"),
        (["--subnet", "300.18.1.0/24"], "--subnet 300.18.1.0/24: must look like 198.18.1.0/24"),
        (["--prefix", "-x"], "--prefix -x: a-z, 0-9 and '-' only"),
        (["--prefix"], "--prefix needs a value"),
        (["--ca", "/nowhere.pem"], "--ca /nowhere.pem: no such file"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_usage_is_refused(arguments: list[str], message: str) -> None:
    """One line says what is wrong; the exit status is 2."""
    answer = _run(*arguments)
    assert answer.returncode == 2
    (line,) = answer.stderr.splitlines()
    assert line.startswith(f"setup.sh: {message}")


@pytest.mark.parametrize("command", ["up", "down", "status"])
def test_missing_docker_is_told(without_docker: str, command: str) -> None:
    """Without Docker: how to get it, and what does without; exit status 1."""
    answer = _run(command, PATH=without_docker)
    assert answer.returncode == 1
    (line,) = answer.stderr.splitlines()
    assert "Docker is not installed" in line
    assert "lb testbed up" in line


@pytest.mark.skipif(shutil.which("docker") is None, reason="Docker's client is not installed")
def test_silent_engine_is_told() -> None:
    """When no engine answers: how to start it; exit status 5."""
    answer = _run("up", DOCKER_HOST="unix:///nonexistent/docker.sock")
    assert answer.returncode == 5
    (line,) = answer.stderr.splitlines()
    assert "the Docker engine does not answer: start it" in line


@pytest.mark.skipif(shutil.which("docker") is None, reason="Docker's client is not installed")
@pytest.mark.skipif(os.geteuid() != 0, reason="becoming a user without permission needs root")
def test_missing_permission_is_told(tmp_path: Path) -> None:
    """When the engine's socket is not ours to use: which group to join; exit status 4."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and "pytest" in str(folder):
            folder.chmod(0o755)
    script = Path(shutil.copy(SETUP, tmp_path))
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(tmp_path / "docker.sock"))
        engine.listen()
        (tmp_path / "docker.sock").chmod(0o600)
        settings = {**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/docker.sock", "SSL_CERT_FILE": "", "HOME": "/"}
        answer = subprocess.run(
            [str(script), "up"], capture_output=True, text=True, check=False, env=settings, user=65534, group=65534
        )
    assert answer.returncode == 4, answer.stderr
    (line,) = answer.stderr.splitlines()
    assert "no permission to use Docker" in line


def test_dry_run_prints_the_commands_and_needs_no_engine(without_docker: str) -> None:
    """Nine containers with two capabilities each, none privileged; nothing is run."""
    answer = _run("--dry-run", "--prefix", "x-", PATH=without_docker)
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.splitlines()
    launches = [line for line in lines if line.startswith("docker run ")]
    assert len(launches) == 9
    assert all("--cap-add NET_ADMIN --cap-add NET_RAW" in line for line in launches)
    assert "--privileged" not in answer.stdout
    assert "--name x-client5 --hostname client5 --network x-flowlb --ip 198.18.1.25" in launches[5]


def test_build_makes_the_image_and_launches_nothing(without_docker: str) -> None:
    answer = _run("build", "--dry-run", PATH=without_docker)
    assert answer.returncode == 0, answer.stderr
    assert [line for line in answer.stdout.splitlines() if line.startswith("docker build ")]
    assert not re.search(r"^docker (run|network) ", answer.stdout, re.MULTILINE)


def test_compose_file_describes_the_same_hosts() -> None:
    """compose.yaml has the names and addresses that setup.sh has."""
    hosts = re.search(r"^HOSTS=\((.*)\)$", SETUP.read_text(), re.MULTILINE)
    assert hosts is not None
    composed = (SETUP.parent / "compose.yaml").read_text()
    found = re.findall(r"hostname: (\w+)\n    networks: {testbed: {ipv4_address: 198\.18\.1\.(\d+)}}", composed)
    assert [f"{name}={number}" for name, number in found] == hosts[1].split()
