"""The command line: exit codes, streams, no tracebacks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from lb.capture.pcap import PcapWriter

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
  mac = "aa:aa:aa:00:00:31"
"""
COMMANDS = ("run", "check", "status", "replay", "init", "config", "testbed", "bench", "loadgen", "experiment")


def lb(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from lb.cli import main; main()", *map(str, arguments)]
    settings = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=settings, check=False)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "lb.toml").write_text(CONFIG)
    return tmp_path / "lb.toml"


def test_help_lists_every_command() -> None:
    """`lb --help` and `lb` alone say what there is, on stdout."""
    done = lb("--help")
    assert done.returncode == 0
    assert all(re.search(rf"^  {name} ", done.stdout, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [("weight", "video/server1", "\u0661\u0662"), ("flows", "--limit=\u0665"), ("flows", "--offset", "-\u0661")],
)
def test_number_in_digits_of_another_script_is_wrong_usage(arguments: tuple[str, ...]) -> None:
    """Python reads such digits as numbers; no other program would."""
    done = lb(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"lb: {arguments[-1]}: write numbers with the digits 0 to 9\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command: str) -> None:
    """Every command explains itself."""
    done = lb(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: lb {command} ")


def test_version_on_stdout() -> None:
    """`lb --version` is data."""
    done = lb("--version")
    assert done.returncode == 0
    assert re.fullmatch(r"lb \S+\n", done.stdout)


def test_check_valid_config_exit_0(config: Path) -> None:
    """A valid file is counted on stdout."""
    done = lb("check", config)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{config}: ok: 1 service, 1 server\n", "")


def test_check_invalid_config_exit_3_with_all_errors(config: Path) -> None:
    """Errors are for people: on stderr, all of them, with line, caret and hint."""
    config.write_text(CONFIG.replace("9876", "0").replace("weigth", "").replace("  port", "  prot"))
    done = lb("check", config)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        f"{config}:6:8: service[0].port: 0 is not in 1..65535\n"
        "    6 | port = 0\n"
        "      |        ^\n"
        f'{config}:7:3: service[0].server[0]: required key "port" is missing\n'
        "    7 |   [[service.server]]\n"
        "      |   ^\n"
        f"{config}:10:3: service[0].server[0].prot: unknown key\n"
        "   10 |   prot = 7000\n"
        "      |   ^\n"
        '  hint: did you mean "port"?\n'
    )


def test_check_warning_on_stderr_exit_0(config: Path) -> None:
    """A doubtful value is mentioned, and no error."""
    config.write_text('[flows]\nudp = "30s"\n' + CONFIG)
    done = lb("check", config)
    assert done.returncode == 0
    assert done.stderr.startswith(f"{config}:2:7: warning: flows.udp")


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "/nonexistent/lb.toml"),
        ("check",),
        ("run", "-c", "/nonexistent/lb.toml"),
        ("replay", "/nonexistent/in.pcap", "-c", "/nonexistent/lb.toml"),
        ("status", "-o", "xml"),
        ("fly",),
        ("--fly",),
    ],
    ids=" ".join,
)
def test_usage_mistake_exit_2(arguments: tuple[str, ...]) -> None:
    """What is typed wrong, or names no file, is a usage error."""
    done = lb(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: lb" in done.stderr
    assert "Traceback" not in done.stderr


def test_init_template_passes_check_and_is_not_overwritten(tmp_path: Path) -> None:
    """`lb init` writes what `lb check` accepts, once."""
    path = tmp_path / "new.toml"
    assert lb("init", path).returncode == 0
    assert lb("check", path).returncode == 0
    path.write_text("mine")
    refused = lb("init", path)
    assert (refused.returncode, refused.stderr) == (1, f"lb: {path} already exists: --force overwrites it\n")
    assert path.read_text() == "mine"
    assert lb("init", path, "--force").returncode == 0
    assert path.read_text() != "mine"


def test_config_schema_is_json() -> None:
    """The schema is data that a program can read."""
    assert json.loads(lb("config", "schema").stdout)["title"] == "flowlb configuration"


def test_status_without_daemon_exit_5(tmp_path: Path) -> None:
    """No balancer: one line, and how to look elsewhere."""
    path = tmp_path / "none.sock"
    expected = f"lb: no balancer answers on {path}: is `lb run` running? (--control names another socket)\n"
    for done in (lb("status", "--control", path), lb("status", LB_CONTROL=str(path))):
        assert (done.returncode, done.stdout, done.stderr) == (5, "", expected)


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    with PcapWriter(tmp_path / "in.pcap") as writer:
        for number in range(3):
            tcp = IP(src="198.18.1.21", dst="198.18.1.100") / TCP(sport=1000 + number, dport=9876)
            writer.write(number, bytes(Ether(src="aa:aa:aa:00:00:21", dst="aa:aa:aa:00:00:01") / tcp))
    return tmp_path / "in.pcap"


INTERFACE = ("--mac", "aa:aa:aa:00:00:01", "--address", "198.18.1.1/24", "--backend", "python")


def test_replay_capture_table_json_and_pcap(config: Path, capture: Path, tmp_path: Path) -> None:
    """One line per packet on stdout, a summary on stderr, frames in a file."""
    table = lb("replay", capture, "-c", config, *INTERFACE, "--write", tmp_path / "out.pcap")
    assert (table.returncode, len(table.stdout.splitlines())) == (0, 4)
    assert table.stderr == "3 packets by backend python: 3 forward\n"
    assert (tmp_path / "out.pcap").stat().st_size > 3 * 54
    rows = [
        json.loads(line) for line in lb("replay", capture, "-c", config, *INTERFACE, "-o", "json").stdout.splitlines()
    ]
    assert [(row["packet"], row["verdict"], row["server"]) for row in rows] == [
        (number, "forward", "server1") for number in (1, 2, 3)
    ]


def test_replay_trouble_one_line_and_exit_code(config: Path, capture: Path) -> None:
    """A damaged capture is a run-time failure, a missing fact a configuration error."""
    without_mac = lb("replay", capture, "-c", config, "--backend", "python")
    assert (without_mac.returncode, without_mac.stderr.count("\n")) == (3, 1)
    capture.write_bytes(capture.read_bytes() + bytes(8) + b"\xff" * 8)
    damaged = lb("replay", capture, "-c", config, *INTERFACE)
    assert (damaged.returncode, len(damaged.stdout.splitlines())) == (1, 4)
    counts, trouble = damaged.stderr.splitlines()
    assert counts == "3 packets by backend python: 3 forward"
    assert trouble.startswith(f"lb: {capture}: at byte ")


def test_replay_cut_capture_warns_and_exits_0(config: Path, capture: Path) -> None:
    """A capture that ends inside a packet keeps its rows and its summary; one of no packet at all too."""
    data = capture.read_bytes()
    for length, rows in ((len(data) - 1, 3), (30, 1)):
        capture.write_bytes(data[:length])
        done = lb("replay", capture, "-c", config, *INTERFACE)
        assert (done.returncode, len(done.stdout.splitlines())) == (0, rows)
        counts, warning = done.stderr.splitlines()
        assert counts.startswith(f"{rows - 1} packets by backend python: ")
        assert warning.startswith(f"warning: {capture}: at byte ")


@pytest.mark.parametrize(
    ("option", "value"), [("--mac", "aa:bb"), ("--address", "198.18.1.1"), ("--mtu", "20"), ("--interface", "eth9")]
)
def test_replay_wrong_fact_exit_2(config: Path, capture: Path, option: str, value: str) -> None:
    """A wrong value of an option is wrong usage, and the option is named."""
    done = lb("replay", capture, "-c", config, option, value)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"Invalid value: {option}: " in done.stderr


@pytest.mark.parametrize("command", [("up",), ("down",), ("status",), ("exec", "router", "true")], ids=" ".join)
def test_testbed_wrong_prefix_exit_2(command: tuple[str, ...]) -> None:
    """A prefix that cannot start a name is wrong usage."""
    done = lb("testbed", command[0], "--prefix", "../x", *command[1:])
    assert (done.returncode, done.stdout) == (2, "")
    assert "prefix '../x': up to 16 of" in done.stderr


def test_run_testbed_wrong_prefix_exit_2() -> None:
    """The environment's prefix is held to the same."""
    assert lb("run", "--testbed", LB_TESTBED_PREFIX="../x").returncode == 2


def test_run_unknown_interface_exit_4(config: Path) -> None:
    """An interface that is not there: one line that names those that are."""
    config.write_text(CONFIG.replace("eth0", "nosuch0"))
    done = lb("run", "-c", config, "--backend", "python")
    assert done.returncode == 4
    assert done.stderr.startswith("lb: there is no interface 'nosuch0' here; there are: ")
    assert done.stderr.count("\n") == 1


def test_run_invalid_config_exit_3(config: Path) -> None:
    """`lb run` checks as `lb check` does."""
    config.write_text(CONFIG.replace("9876", "0"))
    assert lb("run", "-c", config).returncode == 3


@pytest.mark.parametrize("command", [("run",), ("run", "--testbed"), ("replay", "lb.toml")])
@pytest.mark.parametrize("backend", ["ebpf", "fast"])
def test_unknown_backend_exit_2(config: Path, command: tuple[str, ...], backend: str) -> None:
    """A backend that this version does not have is wrong usage, told before anything is built."""
    done = lb(*command, "-c", config, "--backend", backend)
    assert done.returncode == 2
    assert f"'{backend}' is not one of 'auto', 'rust', 'python'" in done.stderr


@pytest.mark.parametrize("command", [("run",), ("run", "--testbed"), ("check",)])
@pytest.mark.parametrize(("name", "fault"), [("none.toml", "does not exist"), (".", "is a directory")])
def test_configuration_not_a_file_exit_2(tmp_path: Path, command: tuple[str, ...], name: str, fault: str) -> None:
    """A path that names no file is wrong usage, whichever command it is for."""
    option = [] if command == ("check",) else ["-c"]
    done = lb(*command, *option, tmp_path / name)
    assert (done.returncode, done.stderr.count(fault)) == (2, 1)


@pytest.mark.parametrize("command", [("check", "{config}"), ("config", "schema"), ("testbed", "status"), ("--help",)])
def test_full_output_one_line_exit_1(config: Path, command: tuple[str, ...]) -> None:
    """Output that cannot be written is one line on stderr, not a traceback."""
    code = "from lb.cli import main; main()"
    arguments = [part.format(config=config) for part in command]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], stdout=full, stderr=subprocess.PIPE, timeout=60, check=False
        )
    way_out = b"make room on the file system, or make it larger"
    assert (done.returncode, done.stderr) == (1, b"lb: [Errno 28] No space left on device: %s\n" % way_out)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("MemoryError()", "lb: not enough memory: raise the limit of memory (`ulimit -v`"),
        ("OSError(24, 'Too many open files')", "lb: [Errno 24] Too many open files: raise the limit of open files"),
        (
            "OSError(122, 'Quota exceeded')",
            "lb: [Errno 122] Quota exceeded: make room on the file system, or raise the quota",
        ),
        ("OSError(5, 'Input/output error')", "lb: [Errno 5] Input/output error\n"),
    ],
)
def test_want_of_something_is_told_with_the_way_out(error: str, said: str) -> None:
    code = f"import lb.cli\ndef app(**_): raise {error}\nlb.cli.app = app\nlb.cli.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.startswith(said)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_name_beyond_the_locale_is_shown_escaped(config: Path) -> None:
    """A file name that the locale cannot show fails nothing."""
    path = config.with_name("lb-\u00fc.toml")
    path.write_text(config.read_text())
    done = lb("check", path, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(".toml: ok: 1 service, 1 server\n")


def test_debug_option_shows_traceback(tmp_path: Path) -> None:
    """Only `--debug` shows where an error came from."""
    done = lb("--debug", "status", "--control", tmp_path / "none.sock")
    assert done.returncode == 5
    assert done.stderr.startswith("Traceback")


def test_broken_pipe_quiet(config: Path, capture: Path) -> None:
    """`lb replay ... | head -1` ends without a word about the pipe."""
    code = "from lb.cli import main; main()"
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-c", code, "replay", str(capture), "-c", str(config), *INTERFACE]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(write_end)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert done.returncode != 0


def test_interrupt_while_modules_load_quiet() -> None:
    """Ctrl-C before it is handled ends the process, without a traceback."""
    code = """\
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "lb.cli":
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
from lb.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")
