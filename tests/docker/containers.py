"""The engine's client, setup.sh, and a testbed of nine containers, for tests."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BUILD_DEADLINE_S = 2400


def docker(*arguments: str, **options: Any) -> str:
    """Run a command of the engine's client; return its output without the last newline."""
    settings: dict[str, Any] = {"check": True, "capture_output": True, "text": True, "timeout": 120, **options}
    return str(subprocess.run(["docker", *arguments], **settings).stdout).rstrip("\n")


def setup(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run setup.sh."""
    settings: dict[str, Any] = {"capture_output": True, "text": True, "timeout": BUILD_DEADLINE_S, **options}
    return subprocess.run([str(ROOT / "setup.sh"), *arguments], check=False, **settings)


@dataclass(frozen=True)
class Containers:
    """A testbed of nine containers. `network`: the first three octets of its addresses."""

    prefix: str
    network: str

    @property
    def options(self) -> tuple[str, ...]:
        """What tells setup.sh which testbed is meant."""
        return ("--prefix", self.prefix, "--subnet", f"{self.network}.0/24")

    @property
    def names(self) -> list[str]:
        """The names of its containers that exist, sorted."""
        return sorted(docker("ps", "--all", "--filter", f"name=^{self.prefix}", "--format", "{{.Names}}").split())

    @property
    def networks(self) -> list[str]:
        return docker("network", "ls", "--filter", f"name=^{self.prefix}", "--format", "{{.Name}}").split()

    def exec(self, host: str, *command: str, **options: Any) -> str:
        """Run a program in a host; return its output."""
        return docker("exec", self.prefix + host, *command, **options)

    def spawn(self, host: str, *command: str) -> subprocess.Popen[str]:
        """Start a program in a host, with its output on a pipe."""
        words = ["docker", "exec", self.prefix + host, *command]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def remove(self) -> None:
        """Remove whatever has its prefix."""
        if self.names:
            docker("rm", "--force", *self.names)
        if self.networks:
            docker("network", "rm", *self.networks)
