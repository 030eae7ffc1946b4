"""The operator's commands, as a person types them: words, exit codes, nothing but data on stdout."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import CONFIG, ServedBalancer, serving

from lb.control.api.client import fetch


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedBalancer]:
    made = ServedBalancer(tmp_path, "python")
    with serving(made):
        yield made


def lb(control: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from lb.cli import main; main()", *arguments]
    settings = {**os.environ, "LB_CONTROL": str(control), "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=settings, check=False)


def test_commands_change_the_balancer(served: ServedBalancer) -> None:
    """Each command does what it says, in one line on stderr; a second time it says that nothing changed."""
    said = [
        lb(served.control, *command.split()).stderr
        for command in (
            "drain video/server2",
            "drain video/server2",
            "enable video/server2",
            "disable video/server2",
            "weight video/server1 5",
            "add video/server9 198.18.1.39 8039 --weight 2 --mac aa:aa:aa:00:00:39",
            "remove dns/ns1",
        )
    ]
    assert said == [
        "video/server2 is draining\n",
        "video/server2 was draining already\n",
        "video/server2 is active\n",
        "video/server2 is disabled\n",
        "video/server1 has weight 5\n",
        "video/server9 is added\n",
        "dns/ns1 is removed\n",
    ]
    now = {server.name: (server.weight, server.state) for server in served.controller.services()[0].servers}
    assert now == {"server1": (5, "active"), "server2": (1, "disabled"), "server9": (2, "active")}


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("drain vidoe/server2", 2, "lb: there is no service vidoe; did you mean video?\n"),
        (
            "weight video/sever1 3",
            2,
            "lb: there is no server video/sever1; did you mean video/server1 or video/server2?\n",
        ),
        ("enable server2", 2, "'server2' is not SERVICE/SERVER, such as video/server2"),
        ("weight video/server1 70000", 2, "less than or equal to 65535"),
        ("drain video/server1 --wait --timeout 60", 2, '"60" is not a duration'),
        ("add video/x 198.18.1.300 1", 2, "lb: server.address: \"198.18.1.300\" is not an IP address"),
        ("flows --client nobody", 2, "lb: client: 'nobody' is not an IP address\n"),
    ],
)  # fmt: skip
def test_wrong_use_exit_2_and_says_what_is_right(served: ServedBalancer, command: str, code: int, message: str) -> None:
    """Unknown names come with the nearest ones; nothing goes to stdout, nothing changes."""
    done = lb(served.control, *command.split())
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert served.controller.generation == 1


@pytest.mark.parametrize(
    "command", ["status", "flows", "drain a/b", "enable a/b", "disable a/b", "weight a/b 1", "remove a/b", "reload"]
)
def test_no_daemon_exit_5(tmp_path: Path, command: str) -> None:
    """Without a balancer, every command fails with one line."""
    done = lb(tmp_path / "lb.sock", *command.split())
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (5, "", 1)
    assert done.stderr.startswith(f"lb: no balancer answers on {tmp_path}/lb.sock: is `lb run` running?")


def test_drain_wait_ends_when_the_last_flow_does(served: ServedBalancer) -> None:
    """`--wait` returns 0 once there are no active flows."""
    name = served.open("198.18.1.21", 40000)
    with subprocess.Popen(
        [sys.executable, "-c", "from lb.cli import main; main()", "drain", f"video/{name}", "--wait"],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "LB_CONTROL": str(served.control)},
    ) as waiting:  # fmt: skip
        try:
            assert waiting.stderr is not None
            assert waiting.stderr.readline() == f"video/{name} is draining\n"
            assert waiting.poll() is None
            served.reset_flows(0)
            served.reset_flows(1)
            assert waiting.wait(20) == 0
            assert f"video/{name} has no active flows" in waiting.stderr.read()
        finally:
            waiting.kill()


def test_drain_wait_deadline_exit_1_says_how_many_are_left(served: ServedBalancer) -> None:
    """At the deadline the command ends with 1; the server stays drained."""
    name = served.open("198.18.1.21", 40000)
    done = lb(served.control, "drain", f"video/{name}", "--wait", "--timeout", "100ms")
    assert done.returncode == 1
    assert done.stderr.endswith(f"lb: video/{name} still has 1 active flow\n")
    assert fetch(served.control, "/server", service="video", server=name)["state"] == "draining"


def test_remove_reset_wait_is_over_at_once(served: ServedBalancer) -> None:
    """`--reset` cuts the flows: there is nothing to wait for."""
    name = served.open("198.18.1.21", 40000)
    done = lb(served.control, "remove", f"video/{name}", "--reset", "--wait")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, f"video/{name} has no active flows")


def test_reload_prints_the_diff_on_stdout(served: ServedBalancer) -> None:
    """The diff is data; that nothing changed is for people."""
    served.path.write_text(CONFIG.replace('policy = "maglev"', 'policy = "round-robin"'))
    dry = lb(served.control, "reload", "--dry-run")
    assert (dry.returncode, dry.stdout.splitlines()) == (
        0,
        [
            "~ service video: policy maglev -> round-robin",
            "service video: its flows are placed by counter, not by a hash: a client has no server of its own; "
            "existing flows stay",
        ],
    )
    done = lb(served.control, "reload")
    assert (done.stdout, done.stderr) == ("~ service video: policy maglev -> round-robin\n", "generation 2\n")
    again = lb(served.control, "reload")
    assert (again.stdout, again.stderr) == ("", "nothing changed\ngeneration 3\n")


def test_reload_broken_file_exit_3_with_its_place(served: ServedBalancer) -> None:
    """Rule 18.1, reloads and changes: file:line:column, the line and what is allowed; the old configuration stays."""
    served.path.write_text(CONFIG.replace("port = 9876", "prot = 9876"))
    done = lb(served.control, "reload")
    assert (done.returncode, done.stdout) == (3, "")
    assert f"{served.path}:6:1: service[0].prot: unknown key" in done.stderr
    assert 'did you mean "port"?' in done.stderr
    assert served.controller.generation == 1


def test_status_and_flows_in_three_forms(served: ServedBalancer) -> None:
    """Tables for people, JSON and CSV for programs."""
    name = served.open("198.18.1.21", 40000)
    table = lb(served.control, "status").stdout
    assert "service video  198.18.1.100:9876/tcp  policy maglev  active 1" in table
    rows = list(csv.DictReader(io.StringIO(lb(served.control, "status", "-o", "csv").stdout)))
    assert {row["server"]: row["active"] for row in rows} == {"server1": "0", "server2": "0", "ns1": "0", name: "1"}
    flows = json.loads(lb(served.control, "flows", "-o", "json", "--server", f"video/{name}").stdout)
    assert (flows["total"], flows["flows"][0]["client_port"]) == (1, 40000)
    assert lb(served.control, "flows", "--server", "ns1").stdout.splitlines()[-1] == "no flows of 0"


@pytest.mark.parametrize(
    ("name", "message"), [("video/nope", "video/nope"), ("nope", "nope"), ("film/ns1", "film/ns1")]
)
def test_flows_of_an_unknown_server_is_wrong_use(served: ServedBalancer, name: str, message: str) -> None:
    """An empty table would say that it has no flows."""
    done = lb(served.control, "flows", "--server", name)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"there is no server {message}" in done.stderr
