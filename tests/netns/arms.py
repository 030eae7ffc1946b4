"""
Three namespaces in a row: a client, a balancer's host with two interfaces, a server. The host has no default route and
no route that covers the VIPs or the client's far address, IPv4 and IPv6.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from lbrun import LbRun, until_the_end
from pair import DEADLINE_S

from lb.lab.testbed import ethtool, isolation

VISIBLE = Path(__file__).with_name("visible.py")
ETH_P_ALL, SOL_PACKET, PACKET_IGNORE_OUTGOING = 3, 263, 23
PORT, SERVER_PORT, OTHER_PORT = 80, 8080, 9090
VIPS = {4: "198.18.1.100", 6: "2001:db8:ff::100"}
CLIENTS = {4: "203.0.113.7", 6: "2001:db8:1::7"}
# The balancer's host has no route to these.
FAR_CLIENTS = {4: "192.0.2.7", 6: "2001:db8:c::7"}
SERVERS = {4: "10.0.0.11", 6: "2001:db8:a::11"}
_ADDRESSES = {
    "client": {"eth0": ("203.0.113.7/24", "2001:db8:1::7/64", "192.0.2.7/32", "2001:db8:c::7/128")},
    "host": {"eth0": ("203.0.113.1/24", "2001:db8:1::1/64"), "eth1": ("10.0.0.1/24", "2001:db8:a::1/64")},
    "server": {"eth0": ("10.0.0.11/24", "2001:db8:a::11/64")},
}
_GATEWAYS = {"client": ("203.0.113.1", "2001:db8:1::1"), "server": ("10.0.0.1", "2001:db8:a::1")}
_numbers = itertools.count()


class Arms:
    """The network. `names`: of the namespaces, by host."""

    def __init__(self, *, offloads: bool) -> None:
        start = f"t{os.getpid()}a{next(_numbers)}"
        self.names = {host: f"{start}{host}" for host in _ADDRESSES}
        self.offloads = offloads

    def build(self) -> None:
        isolation.prepare_names()
        for host, name in self.names.items():
            isolation.create_namespace(name)
            self.ip(host, "link set lo up")
        names = self.names
        self.ip("client", f"link add eth0 type veth peer name eth0 netns {names['host']}")
        self.ip("host", f"link add eth1 type veth peer name eth0 netns {names['server']}")
        self.forward(on=False)
        for host, interfaces in _ADDRESSES.items():
            for interface, addresses in interfaces.items():
                self.ip(host, f"link set {interface} up")
                for address in addresses:
                    self.ip(host, f"addr add {address} dev {interface}" + (" nodad" if ":" in address else ""))
                if not self.offloads:
                    with isolation.inside(self.names[host]):
                        ethtool.set_offloads(interface, False)
        for host, gateways in _GATEWAYS.items():
            for gateway in gateways:
                self.ip(host, f"route add default via {gateway}")

    def remove(self) -> None:
        for name in self.names.values():
            isolation.remove_namespace(name)

    def ip(self, host: str, command: str) -> None:
        subprocess.run(
            ["ip", "-n", self.names[host], *command.split()], check=True, capture_output=True, timeout=DEADLINE_S
        )

    def run(self, host: str, *command: str) -> str:
        whole = ["ip", "netns", "exec", self.names[host], *command]
        return subprocess.run(whole, check=True, capture_output=True, text=True, timeout=DEADLINE_S).stdout

    def forward(self, *, on: bool) -> None:
        """Switch forwarding of the host's kernel, both families. New namespaces take it over from the machine."""
        with isolation.inside(self.names["host"]):
            for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
                (Path("/proc/sys/net") / path).write_text("1" if on else "0")

    def socket(self, host: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
        with isolation.inside(self.names[host]):
            return socket.socket(family, kind, protocol)

    def ruleset(self) -> str:
        return self.run("host", "nft", "list", "ruleset")


@contextmanager
def built_arms(*, offloads: bool) -> Iterator[Arms]:
    """Build the network for the block. Skip where namespaces cannot be made."""
    if shutil.which("ip") is None:
        pytest.skip("the command ip (iproute2) is not installed")
    if not isolation.has_capabilities():
        pytest.skip("making network namespaces needs CAP_NET_ADMIN and CAP_SYS_ADMIN")
    arms = Arms(offloads=offloads)
    try:
        arms.build()
        yield arms
    finally:
        arms.remove()


def family_of(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


@contextmanager
def answering(arms: Arms, host: str, port: int, kind: int = socket.SOCK_STREAM) -> Iterator[None]:
    """Have a host say "hi" to everyone who connects, in both families."""
    with ExitStack() as stack:
        stop = threading.Event()
        for version in (4, 6):
            listener = stack.enter_context(arms.socket(host, family_of(version), kind))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if version == 6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(("0.0.0.0" if version == 4 else "::", port))
            listener.settimeout(0.1)
            listener.listen(64)
            thread = threading.Thread(target=_serve, args=(listener, stop))
            thread.start()
            stack.callback(thread.join, DEADLINE_S)
        stack.callback(stop.set)
        yield


def _serve(listener: socket.socket, stop: threading.Event) -> None:
    while not stop.is_set():
        with suppress(TimeoutError):
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"hi")


def connect_once(arms: Arms, source: str, target: str, port: int) -> bytes:
    """Connect from the client and return what is said. Raise OSError when that does not work."""
    with arms.socket("client", family_of(6 if ":" in target else 4), socket.SOCK_STREAM) as client:
        client.settimeout(DEADLINE_S)
        client.bind((source, 0))
        client.connect((target, port))
        return client.recv(2)


class IcmpErrors:
    """Counts the ICMP errors and the packets to a VIP that come in at a host."""

    def __init__(self, arms: Arms, host: str) -> None:
        self._socket = arms.socket(host, socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self._socket.setblocking(False)
        self._socket.bind(("eth0", ETH_P_ALL))

    def take(self) -> tuple[int, int]:
        """Return (ICMP errors, packets to a VIP) that have come so far, and end."""
        errors = copies = 0
        vips = {socket.inet_pton(family_of(version), vip) for version, vip in VIPS.items()}
        with suppress(BlockingIOError):
            while frame := self._socket.recv(1 << 17):
                kind = struct.unpack_from("!H", frame, 12)[0]
                if kind == 0x0800:
                    errors += frame[23] == 1 and frame[14 + 4 * (frame[14] & 15)] in (3, 5, 11, 12)
                    copies += frame[30:34] in vips
                elif kind == 0x86DD:
                    # Redirects (137) are no errors, but as unwanted.
                    errors += frame[20] == 58 and (frame[54] < 128 or frame[54] == 137)
                    copies += frame[38:54] in vips
        self._socket.close()
        return errors, copies


def configuration(more: str, interfaces: Sequence[str], service: str) -> str:
    text = more + "".join(f'[[interface]]\nname = "{name}"\n' for name in interfaces)
    for version in (4, 6):
        text += f'[[service]]\nname = "web{version}"\naddress = "{VIPS[version]}"\nport = {PORT}\n{service}\n'
        text += f'  [[service.server]]\n  name = "s"\n  address = "{SERVERS[version]}"\n  port = {SERVER_PORT}\n'
    return text


class Run(LbRun):
    """
    An `lb run` on the balancer's host.

    Args:
        more: the configuration begins with it. interfaces: in the configuration's order. service: more lines of each
            service. mode: of the configuration's file.
        environment: variables besides the test's own.
        options: of the command line.
        wrapper: a command that runs it, as a program.
        visible: whether every user may read Python and the package there, whatever this machine says.
        start: whether to start it at once.
    """

    def __init__(
        self,
        arms: Arms,
        folder: Path,
        backend: str,
        more: str = "",
        *,
        interfaces: Sequence[str] = ("eth0", "eth1"),
        service: str = "",
        mode: int = 0o644,
        environment: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        wrapper: Sequence[str] | None = None,
        visible: bool = False,
        start: bool = True,
    ) -> None:
        config = folder / "lb.toml"
        config.write_text(configuration(more, interfaces, service))
        config.chmod(mode)
        if visible:
            wrapper = [*(wrapper or ()), sys.executable, str(VISIBLE)]
        super().__init__(
            arms.names["host"],
            folder,
            ["--backend", backend, *options],
            wrapper=wrapper,
            environment={**os.environ, **(environment or {})},
            start=start,
        )


@contextmanager
def running(*arguments: Any, **options: Any) -> Iterator[Run]:
    """Run a balancer for the block; the arguments are those of `Run`."""
    with until_the_end(Run(*arguments, **options)) as run:
        yield run
