"""`lb run --supervise`: a balancer that ends by itself is started again, one that was told to end is not."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.control import respawn

DEADLINE_S = 20.0
# A process that writes a line each time it becomes a balancer, says that it forwards, and does what it is told.
BALANCER = """
import os, signal, sys, time
from lb.control import respawn
from lb.control.telemetry.logs import start_logging
respawn.FIRST_PAUSE_S = 0.01
if "stranger" in sys.argv:
    respawn.LEFT_S = 0.0
if "stops" in sys.argv:
    respawn.PROGRAM = "import os, signal; os.kill(os.getppid(), signal.SIGTERM)"
start_logging()
respawner = respawn.Respawner("alone" not in sys.argv)
ready_fd = respawner.supervise()
if respawner.takes_over:
    print("takes over", flush=True)
    if "fails" in sys.argv:
        sys.exit(3)
    if "stopped" in sys.argv:
        before = int(open(sys.argv[1]).read().split()[-1])
        os.kill(before, signal.SIGTERM)
        while os.path.exists(f"/proc/{before}"):
            time.sleep(0.001)
        sys.exit(1)
    if "stranger" in sys.argv:
        os.write(ready_fd, respawn.READY)
        os.kill(os.getpid(), signal.SIGKILL)
    if "dies" in sys.argv:
        os.write(ready_fd, respawn.READY)
        with open(sys.argv[1] + ".dies", "w") as file:
            file.write(f"{os.getpid()}")
        os.kill(int(open(sys.argv[1]).read().split()[-1]), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGKILL)
    os.kill(int(open(sys.argv[1]).read().split()[-1]), signal.SIGTERM)
def stop(number, _):
    sys.exit(0)
def reload(number, _):
    print("reloads", flush=True)
def end_replaced(number, _):
    # As slowly as it takes to see the other one dead.
    while "dies" in sys.argv and os.path.exists("/proc/" + open(sys.argv[1] + ".dies").read()):
        time.sleep(0.001)
    sys.exit(respawn.REPLACED)
signal.signal(signal.SIGUSR1, end_replaced)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGHUP, reload)
turn = len(open(sys.argv[1]).read().splitlines())
if "silent" not in sys.argv:
    os.write(ready_fd, respawn.READY)
    os.close(ready_fd)
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()}\\n")
for status in sys.argv[2:3]:
    if status != "-" and turn < 3:
        sys.exit(int(status))
while True:
    time.sleep(60)
"""


@contextlib.contextmanager
def supervised(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Run it; give the process that supervises, and the file with a line for each balancer."""
    turns = folder / "turns"
    turns.touch()
    command = [sys.executable, "-c", BALANCER, str(turns), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            yield child, turns
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait(DEADLINE_S)


def started(turns: Path, count: int) -> list[int]:
    """Wait until a number of balancers have been started; return their process ids."""
    end = time.monotonic() + DEADLINE_S
    while len(lines := turns.read_text().splitlines()) < count:
        assert time.monotonic() < end, lines
        time.sleep(0.01)
    return [int(line) for line in lines]


def gone(pid: int) -> None:
    """Wait until a process has ended and its end was noticed."""
    end = time.monotonic() + DEADLINE_S
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < end
        time.sleep(0.01)


def renew_in_vain(child: subprocess.Popen[str]) -> None:
    """Have it renewed, and wait until the new balancer has failed."""
    child.send_signal(signal.SIGUSR2)
    assert child.stderr is not None
    while "the running one goes on" not in child.stderr.readline():
        assert child.poll() is None


def test_renewal_runs_nothing_from_the_directory_where_it_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that supervises may be root, and the directory another user's."""
    (tmp_path / "lb").mkdir()
    (tmp_path / "lb" / "__init__.py").write_text("open('was-run', 'w')\n")
    monkeypatch.chdir(tmp_path)
    respawner = respawn.Respawner()
    respawner._child = os.getpid()
    programs: list[list[str]] = []
    monkeypatch.setattr(os, "execve", lambda _, arguments, __: programs.append(arguments))
    respawner._renew()
    assert programs
    assert not Path("was-run").exists()


def test_balancer_that_is_killed_is_started_again(tmp_path: Path) -> None:
    """As often as it takes, and at once as it did forward; the log names the signal."""
    with supervised(tmp_path) as (child, turns):
        for turn in range(1, 8):
            os.kill(started(turns, turn)[-1], signal.SIGKILL)
        started(turns, 8)
        child.terminate()
        _, errors = child.communicate(timeout=DEADLINE_S)
    assert child.returncode == 0
    assert errors.count("the balancer was ended by SIGKILL: started again in 0.01 s") == 7


def test_balancer_that_fails_is_started_again(tmp_path: Path) -> None:
    with supervised(tmp_path, "1") as (child, turns):
        started(turns, 4)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=DEADLINE_S)
    assert errors.count("the balancer ended with status 1") == 3


@pytest.mark.parametrize(("arguments", "status"), [(("0",), 0), (("3", "silent"), 3)], ids=["done", "never-forwarded"])
def test_balancer_that_is_done_or_never_forwarded_is_not_started_again(
    tmp_path: Path, arguments: tuple[str, ...], status: int
) -> None:
    """What keeps the first one from starting, a configuration with a mistake, does so the second time, too."""
    with supervised(tmp_path, *arguments) as (child, turns):
        assert child.wait(DEADLINE_S) == status
        assert len(started(turns, 1)) == 1


def test_balancer_is_told_to_stop_when_the_one_above_it_is_gone(tmp_path: Path) -> None:
    with supervised(tmp_path) as (child, turns):
        (balancer,) = started(turns, 1)
        child.kill()
        end = time.monotonic() + DEADLINE_S
        while Path(f"/proc/{balancer}").exists() and " Z " not in Path(f"/proc/{balancer}/stat").read_text():
            assert time.monotonic() < end
            time.sleep(0.01)


def test_renewed_balancer_takes_over_and_the_one_above_stays(tmp_path: Path) -> None:
    """As often as it takes; by the same process id, and without a word of a crash."""
    with supervised(tmp_path) as (child, turns):
        for turn in range(1, 4):
            before = started(turns, turn)[-1]
            child.send_signal(signal.SIGUSR2)
            after = started(turns, turn + 1)[-1]
            assert before != after
            gone(before)
            assert child.poll() is None
        os.kill(started(turns, 4)[-1], signal.SIGKILL)
        started(turns, 5)
        child.terminate()
        out, errors = child.communicate(timeout=DEADLINE_S)
    assert child.returncode == 0
    assert out.count("takes over") == 3
    assert errors.count("started again") == 1


def test_renewed_balancer_that_fails_leaves_the_running_one(tmp_path: Path) -> None:
    """It is supervised as before: killed, it is started again."""
    with supervised(tmp_path, "-", "fails") as (child, turns):
        (before,) = started(turns, 1)
        renew_in_vain(child)
        os.kill(before, 0)
        child.send_signal(signal.SIGHUP)
        assert child.stdout is not None
        assert [child.stdout.readline() for _ in range(2)] == ["takes over\n", "reloads\n"]
        os.kill(before, signal.SIGKILL)
        started(turns, 2)
        child.terminate()
        assert child.wait(DEADLINE_S) == 0


def test_renewed_balancer_that_dies_once_the_running_one_ends_is_started_again(tmp_path: Path) -> None:
    """The running one has left its flows already: its end is no stop."""
    with supervised(tmp_path, "-", "dies") as (child, turns):
        (before,) = started(turns, 1)
        child.send_signal(signal.SIGUSR2)
        assert started(turns, 2)[-1] != before
        child.terminate()
        _, errors = child.communicate(timeout=DEADLINE_S)
    assert child.returncode == 0
    assert errors.count("the new balancer was ended by SIGKILL") == 1
    assert errors.count("started again") == 1


def test_renewal_during_which_it_is_told_to_stop_stops(tmp_path: Path) -> None:
    """The signal comes while the program is tried that would be the next one."""
    with supervised(tmp_path, "-", "stops") as (child, turns):
        (balancer,) = started(turns, 1)
        child.send_signal(signal.SIGUSR2)
        _, errors = child.communicate(timeout=DEADLINE_S)
        assert started(turns, 1) == [balancer]
    assert child.returncode == 0
    assert "another one takes over" not in errors


def test_balancer_that_is_stopped_while_a_renewed_one_gets_ready_stays_stopped(tmp_path: Path) -> None:
    """`lb stop` is for both."""
    with supervised(tmp_path, "-", "stopped") as (child, turns):
        (balancer,) = started(turns, 1)
        child.send_signal(signal.SIGUSR2)
        assert child.wait(DEADLINE_S) == 0
        assert started(turns, 1) == [balancer]


def test_balancer_that_a_stranger_took_over_from_after_a_renewal_that_failed_is_not_started_again(
    tmp_path: Path,
) -> None:
    """The renewed one had come as far as to forward: but that was long before."""
    with supervised(tmp_path, "-", "stranger") as (child, turns):
        (balancer,) = started(turns, 1)
        renew_in_vain(child)
        os.kill(balancer, signal.SIGUSR1)
        assert child.wait(DEADLINE_S) == 0
        assert started(turns, 1) == [balancer]


@pytest.mark.parametrize("renewed", [False, True], ids=["first", "after-one-that-failed"])
def test_balancer_that_anothers_balancer_took_over_from_is_not_started_again(tmp_path: Path, renewed: bool) -> None:
    with supervised(tmp_path, "-", "fails") as (child, turns):
        (balancer,) = started(turns, 1)
        if renewed:
            renew_in_vain(child)
        os.kill(balancer, signal.SIGUSR1)
        assert child.wait(DEADLINE_S) == 0
        assert started(turns, 1) == [balancer]


def test_balancer_without_a_state_directory_is_not_renewed(tmp_path: Path) -> None:
    with supervised(tmp_path, "-", "alone") as (child, turns):
        started(turns, 1)
        child.send_signal(signal.SIGUSR2)
        assert child.stderr is not None
        assert "only with --state" in child.stderr.readline()
        child.terminate()
        assert child.wait(DEADLINE_S) == 0
        assert len(started(turns, 1)) == 1


def test_process_that_is_told_of_a_strangers_balancer_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It believes only in children of its own."""
    for told in ("1", str(os.getppid()), "x", "-1", "9" * 30, ""):
        monkeypatch.setenv(respawn.RUNNING, told)
        assert not respawn.Respawner().takes_over
        assert respawn.RUNNING not in os.environ


def test_fork_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory, no process id: the machine has just killed a balancer."""
    answers = iter([OSError(errno.ENOMEM, "no memory"), BlockingIOError(errno.EAGAIN, "no id"), 7])

    def fork() -> int:
        if isinstance(answer := next(answers), OSError):
            raise answer
        return answer

    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.setattr(respawn, "FIRST_PAUSE_S", 0.0)
    assert respawn.Respawner()._fork() == 7
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_ends_are_described_and_become_exit_codes() -> None:
    assert [respawn.describe(status) for status in (3, -9, -40)] == [
        "ended with status 3",
        "was ended by SIGKILL",
        "was ended by signal 40",
    ]
    assert [respawn.exit_code(status, told=True) for status in (0, 1, -15, -2, -9)] == [0, 1, 0, 0, 137]
    assert [respawn.exit_code(status, told=False) for status in (0, 1, -15)] == [0, 1, 143]


def test_signals_are_handed_on(tmp_path: Path) -> None:
    with supervised(tmp_path) as (child, turns):
        started(turns, 1)
        child.send_signal(signal.SIGHUP)
        assert child.stdout is not None
        assert child.stdout.readline() == "reloads\n"
        child.terminate()
        assert child.wait(DEADLINE_S) == 0
    assert len(started(turns, 1)) == 1
