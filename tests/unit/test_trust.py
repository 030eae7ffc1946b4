"""Which files are believed, and which a broker opens (rule 21.4, trusted files)."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lb.config.template import write_template
from lb.control.api.listener import bind_socket
from lb.errors import LbError
from lb.lab.testbed import live
from lb.privileges import trust
from lb.privileges.broker import ENDED, Broker, open_allowed
from lb.privileges.trust import UntrustedFileError, find_fault

OWNERS = frozenset({0, os.geteuid()})
DEADLINE_S = 20.0
is_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: others cannot give files away")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file two directories below the test's own."""
    path = tmp_path / "etc" / "flowlb" / "lb.toml"
    path.parent.mkdir(parents=True)
    path.write_text('policy = "./mine.py:Mine"\n[x]\nlist = ["../other.py:X"]\n')
    path.chmod(0o644)
    (path.parent / "mine.py").write_text("mine")
    (path.parent / "other.txt").write_text("other")
    (path.parent.parent / "other.py").write_text("other")
    return path


def test_trusted_file_no_fault(file: Path) -> None:
    """Only the owner can write it, and the way to it; /tmp has the sticky bit."""
    assert find_fault(file, OWNERS) is None


@pytest.mark.parametrize("what", ["file", "directory", "directory above"])
@pytest.mark.parametrize("mode", [0o777, 0o707, 0o703])
def test_others_can_write_fault_with_its_command(file: Path, what: str, mode: int) -> None:
    """A user who can write a directory can replace a file in it."""
    target = {"file": file, "directory": file.parent, "directory above": file.parent.parent}[what]
    target.chmod(mode)
    fault = find_fault(file, OWNERS)
    assert fault is not None
    assert fault.message == f"{target} can be written by others (mode {mode:04o})"
    assert fault.fix == f"chmod go-w {target}"


def test_sticky_directory_no_fault(file: Path) -> None:
    """In a directory with the sticky bit no user replaces another's file."""
    file.parent.chmod(0o1777)
    assert find_fault(file, OWNERS) is None


@is_root
@pytest.mark.parametrize("what", ["file", "directory"])
def test_belongs_to_another_fault(file: Path, what: str) -> None:
    """The owner can change what is in it, whatever the mode says."""
    target = file if what == "file" else file.parent
    os.chown(target, 1234, -1)
    fault = find_fault(file, OWNERS)
    assert fault is not None
    assert fault.message == f"{target} belongs to user 1234, who decides what lb does"
    assert find_fault(file, OWNERS | {1234}) is None


@pytest.mark.parametrize("what", ["file", "directory"])
@pytest.mark.parametrize("group", [None, pytest.param(1234, marks=is_root)])
def test_group_can_write_fault(file: Path, what: str, group: int | None) -> None:
    """Rule 21.4, trusted files: the members of the group decide, root's own group and a user's private one included."""
    target = file if what == "file" else file.parent
    target.chmod(0o775)
    if group is not None:
        os.chown(target, -1, group)
    fault = find_fault(file, OWNERS)
    assert fault is not None
    assert str(fault) == f"{target} can be written by others (mode 0775): chmod g-w {target}"


def test_acl_names_another_user_fault(file: Path) -> None:
    """Rule 21.4, trusted files: `setfacl -m u:nobody:rw` shows in the bits of the group, which are the list's mask."""
    anyone = 0xFFFFFFFF
    # acl(5): the owner, user 65534, the group, the mask, others.
    entries = ((1, 6, anyone), (2, 6, 65534), (4, 0, anyone), (0x10, 6, anyone), (0x20, 0, anyone))
    rows = b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(file, "system.posix_acl_access", struct.pack("<I", 2) + rows)
    except OSError as error:
        pytest.skip(f"no access control lists here: {error.strerror}")
    fault = find_fault(file, OWNERS)
    assert fault is not None
    subprocess.run(fault.fix.split(), check=True)
    assert find_fault(file, OWNERS) is None


def test_several_faults_one_command_for_all(file: Path) -> None:
    """A umask of 002 makes every file and directory writable by its group: one command is enough."""
    for each in (file.parent.parent, file.parent, file):
        each.chmod(each.stat().st_mode | 0o020)
    fault = find_fault(file, OWNERS)
    assert fault is not None
    subprocess.run(fault.fix.split(), check=True)
    assert find_fault(file, OWNERS) is None


def test_link_is_judged_by_both_ends(file: Path, tmp_path: Path) -> None:
    """A link in a directory that others can write may lead elsewhere tomorrow."""
    (tmp_path / "open").mkdir()
    link = tmp_path / "open" / "lb.toml"
    link.symlink_to(file)
    assert find_fault(link, OWNERS) is None
    link.parent.chmod(0o777)
    fault = find_fault(link, OWNERS)
    assert fault is not None
    assert str(link.parent) in fault.message


@is_root
@pytest.mark.parametrize("where", ["first", "middle"])
def test_link_of_another_user_fault(file: Path, where: str) -> None:
    """
    Rule 21.4, trusted files: in a directory with the sticky bit a link's owner may replace it, the first or one on the
    way.
    """
    shared = file.parent / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    theirs = shared / "theirs"
    theirs.symlink_to(file)
    os.lchown(theirs, 1234, 1234)
    ours = file.parent / "ours"
    ours.symlink_to("shared/theirs")
    fault = find_fault(theirs if where == "first" else ours, OWNERS)
    assert fault is not None
    assert fault.message == f"the symbolic link {theirs} belongs to user 1234, who decides what lb does"
    subprocess.run(fault.fix.split(), check=True)
    assert find_fault(ours, OWNERS) is None


@is_root
@pytest.mark.parametrize("link", ["{theirs}/next", "shared/../theirs/./next", "{theirs}/../theirs/up/lb.toml"])
def test_link_through_a_directory_of_another_user_fault(file: Path, link: str) -> None:
    """Rule 21.4, trusted files: what a link leads through counts, not only where it begins and ends."""
    theirs = file.parent / "theirs"
    theirs.mkdir()
    (file.parent / "shared").mkdir()
    (theirs / "next").symlink_to("../lb.toml")
    (theirs / "up").symlink_to("..")
    os.chown(theirs, 1234, -1)
    ours = file.parent / "ours"
    ours.symlink_to(link.format(theirs=theirs))
    assert ours.read_bytes() == file.read_bytes()
    fault = find_fault(ours, OWNERS)
    assert fault is not None
    assert fault.message == f"{theirs} belongs to user 1234, who decides what lb does"


def test_links_in_a_circle_are_an_error(file: Path) -> None:
    """As the kernel has it."""
    one, other = file.parent / "one", file.parent / "other"
    one.symlink_to(other)
    other.symlink_to(one)
    with pytest.raises(OSError, match="Too many levels"):
        find_fault(one, OWNERS)


@pytest.mark.parametrize("link", ["lb.toml", "a/../lb.toml", "./a//b/../../lb.toml", "a/back/../../lb.toml", "{file}"])
def test_link_is_followed_as_the_kernel_does(file: Path, link: str) -> None:
    """Where a link leads is what counts: `..` is the parent of where the link before it led."""
    (file.parent / "a" / "b").mkdir(parents=True)
    (file.parent / "a" / "back").symlink_to("../a/b")
    ours = file.parent / "ours"
    ours.symlink_to(link.format(file=file))
    assert ours.read_bytes() == file.read_bytes()
    file.chmod(0o666)
    fault = find_fault(ours, OWNERS)
    assert fault is not None
    assert fault.fix == f"chmod go-w {file}"


def test_sudo_caller_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """`sudo lb run`: the files of the user who called; a process that is not root judges nothing."""
    trust.trusted_owners.cache_clear()
    monkeypatch.setenv("SUDO_UID", "1234")
    try:
        owners = trust.trusted_owners()
        assert owners is None if os.geteuid() != 0 else owners is not None and {0, 1234} <= owners
    finally:
        trust.trusted_owners.cache_clear()


@pytest.mark.parametrize("name", ["lb.toml", "mine.py", "../other.py"])
def test_broker_opens_what_the_configuration_names(file: Path, name: str) -> None:
    """The configuration itself, and the policies in it."""
    descriptor = open_allowed(file, file.parent / name)
    assert os.read(descriptor, 100) == (file.parent / name).read_bytes()
    os.close(descriptor)


@pytest.mark.parametrize("name", ["other.txt", "/etc/passwd", "../../../../../etc/passwd", "mine.py/../other.txt"])
def test_broker_opens_nothing_else(file: Path, name: str) -> None:
    """A process that was taken over must not read root's files through it."""
    with pytest.raises(UntrustedFileError, match="is not named in"):
        open_allowed(file, file.parent / name)


def test_broker_opens_no_policy_named_by_an_untrusted_configuration(file: Path) -> None:
    """Nor a policy that others can write."""
    (file.parent / "mine.py").chmod(0o666)
    with pytest.raises(UntrustedFileError, match="can be written by others"):
        open_allowed(file, file.parent / "mine.py")
    (file.parent / "mine.py").chmod(0o644)
    file.chmod(0o666)
    with pytest.raises(UntrustedFileError, match="can be written by others"):
        open_allowed(file, file.parent / "mine.py")


@is_root
def test_broker_process_hands_files_over_and_removes_the_socket(file: Path, tmp_path: Path) -> None:
    """The whole way: open, refuse, remove at the end; what another process has put there stays."""
    control = tmp_path / "run" / "lb.sock"
    broker = Broker(file, control, bind_socket)
    broker.start()
    try:
        with trust.open_file(file) as opened:
            assert opened.read() == file.read_bytes()
        with pytest.raises(UntrustedFileError, match="is not named in"):
            trust.open_file(Path("/etc/shadow"))
        (file.parent / "mine.py").unlink()
        with pytest.raises(OSError, match="No such file"):
            trust.open_file(file.parent / "mine.py")
        with broker.bind() as listener, socket.socket(socket.AF_UNIX) as client:
            client.connect(str(control))
            assert stat.S_IMODE(control.stat().st_mode) == 0o660
            with pytest.raises(LbError, match="a balancer listens there already"):
                broker.bind()
            assert listener.getsockname() == str(control)
    finally:
        broker.stop()
    assert not control.exists()


@is_root
def test_broker_leaves_the_socket_of_another(file: Path, tmp_path: Path) -> None:
    """What another balancer has put in the place of ours stays."""
    control = tmp_path / "lb.sock"
    broker = Broker(file, control, bind_socket)
    broker.start()
    broker.bind().close()
    control.rename(tmp_path / "kept")
    control.write_text("another")
    broker.stop()
    assert control.exists()


def killed_broker(file: Path, control: Path) -> Broker:
    """Return a broker that has bound the control socket and was killed."""
    broker = Broker(file, control, bind_socket)
    broker.start()
    broker.bind().close()
    assert broker.end_fd is not None
    assert select.select([broker.end_fd], [], [], 0)[0] == []
    os.kill(broker._pid, signal.SIGKILL)
    assert select.select([broker.end_fd], [], [], DEADLINE_S)[0] == [broker.end_fd]
    return broker


@is_root
def test_broker_killed_is_told_and_its_socket_is_removed(file: Path, tmp_path: Path) -> None:
    """Its end is there to be seen; what was to be opened says what to do; the socket goes all the same."""
    control = tmp_path / "lb.sock"
    broker = killed_broker(file, control)
    for _ in range(2):
        with pytest.raises(OSError, match="restart `lb run`") as caught:
            trust.open_file(file)
        assert caught.value.strerror == ENDED
    assert control.exists()
    broker.stop()
    assert not control.exists()


@is_root
def test_broker_killed_socket_that_stays_is_told(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An unprivileged process may not remove it: then the log says so, and what belongs to another is no concern."""
    control = tmp_path / "lb.sock"
    broker = killed_broker(file, control)

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(Path, "unlink", refuse)
        broker.stop()
    assert f"{control} could not be removed: permission denied" in caplog.text
    caplog.clear()
    broker = killed_broker(file, control)
    control.rename(tmp_path / "kept")
    control.write_text("another")
    broker.stop()
    assert (control.exists(), caplog.text) == (True, "")


@pytest.fixture
def generous_umask() -> Iterator[None]:
    """A umask of 002, as users have it whose group is their own."""
    before = os.umask(0o002)
    yield
    os.umask(before)


def written_template(folder: Path) -> Path:
    write_template(folder / "lb.toml", overwrite=False)
    return folder / "lb.toml"


def copied_default(folder: Path) -> Path:
    (folder / "package").mkdir()
    package = folder / "package" / live.DEFAULT_CONFIG.name
    package.write_text(live.DEFAULT_CONFIG.read_text())
    return live.copy_config(package, folder)


@pytest.mark.parametrize("make", [written_template, copied_default])
@pytest.mark.usefixtures("generous_umask")
def test_configurations_of_our_own_are_trusted(make: Callable[[Path], Path], tmp_path: Path) -> None:
    """`lb init` then `sudo lb run`, and `lb run --testbed`, work whatever the umask."""
    assert find_fault(make(tmp_path), OWNERS) is None
