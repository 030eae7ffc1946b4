"""
How each kind of act is done, and undone: to the links and hosts of a testbed, and to its balancer.

Belongs to the main thread: hosts are entered, and processes started, from there alone. An act that takes its time is
begun, and goes on by itself.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from lb.control.api.client import change
from lb.errors import ConfigError, RemoteError, TestbedError
from lb.lab.chaos.balancer import Balancer
from lb.lab.chaos.schedule import Act, Kind
from lb.lab.floods import Flood, Target
from lb.lab.testbed import build
from lb.lab.testbed.lifecycle import Testbed
from lb.lab.testbed.topology import ROUTER, VIP, Host

SERVICES = ("echo", "datagrams")
LOW_MTU = 1280
PAUSE_S = 0.2
# A client that speaks beside it. Below what saturates two cores, on which everything here runs.
FLOODER, FLOOD_PPS = "client5", 30_000
Undo = Callable[[], None]


class Stage:
    """
    Does acts.

    Args:
        testbed: where.
        balancer: in its router.
        config: path of its configuration.
    """

    def __init__(self, testbed: Testbed, balancer: Balancer, config: Path) -> None:
        self._testbed = testbed
        self._balancer = balancer
        self._config = config
        self._text = config.read_text()
        self._do: dict[Kind, Callable[[Act], Undo | None]] = {
            "server lost": self._lose_server,
            "server down": self._lose_server,
            "link flap": self._flap,
            "mtu lowered": self._lower_mtu,
            "neighbour changed": self._change_neighbour,
            "flood": self._flood,
            "drain": self._drain,
            "weight": self._weigh,
            "remove and add": self._remove,
            "reload": self._reload,
            "broken reload": self._reload_broken,
            "restart": self._restart,
            "take-over": self._take_over,
            "kill": self._kill,
            "pause": self._pause,
        }

    def begin(self, act: Act) -> Undo | None:
        """Begin an act; return what ends it, None: nothing need. Raise LbError or OSError when it cannot be done."""
        return self._do[act.kind](act)

    # The network.

    def _lose_server(self, act: Act) -> Undo:
        """Take the switch's end of its link down: frames to and from it vanish without a word."""
        return self._unplug(act.server)

    def _flap(self, act: Act) -> Undo:
        del act
        return self._unplug(ROUTER)

    def _unplug(self, host: str) -> Undo:
        build.set_link(self._testbed.prefix, host, up=False)
        return lambda: build.set_link(self._testbed.prefix, host, up=True)

    def _lower_mtu(self, act: Act) -> Undo:
        """Have the router's way to a server take smaller packets."""
        server = self._host(act.server)
        build.set_route_mtu(self._testbed.prefix, ROUTER, "eth0", server.address, LOW_MTU)
        return lambda: build.set_route_mtu(self._testbed.prefix, ROUTER, "eth0", server.address, None)

    def _change_neighbour(self, act: Act) -> Undo:
        """Give a server another MAC address: it says so at once, as a machine does that takes over an address."""
        server = self._host(act.server)
        before = server.interfaces[0].mac
        other = before.replace("aa:aa:aa", "aa:aa:bb", 1)
        self._give_mac(server, other)
        return lambda: self._give_mac(server, before)

    def _give_mac(self, server: Host, mac: str) -> None:
        build.set_mac(self._testbed.prefix, server.name, "eth0", mac)
        build.learn_neighbour(self._testbed.prefix, ROUTER, "eth0", server.address, mac)

    def _host(self, name: str) -> Host:
        return self._testbed.topology.host(name)

    def _flood(self, act: Act) -> Undo:
        """Have packets of one kind come from addresses drawn at random."""
        target = Target(VIP, self._balancer.server_port, self._balancer.server_port)
        flood = Flood(self._testbed, FLOODER, act.detail, target, FLOOD_PPS, act.seconds)
        flood.__enter__()
        return lambda: flood.__exit__(None, None, None)

    # The balancer's operator.

    def _drain(self, act: Act) -> Undo:
        return self._for_all(act.server, "/drain", "/enable")

    def _weigh(self, act: Act) -> Undo:
        return self._for_all(act.server, "/weight", "/weight", {"weight": int(act.detail)}, {"weight": 1})

    def _for_all(
        self,
        server: str,
        resource: str,
        back: str,
        more: dict[str, Any] | None = None,
        less: dict[str, Any] | None = None,
    ) -> Undo:
        for service in SERVICES:
            self._change(resource, {"service": service, "server": server, **(more or {})})

        def undo() -> None:
            for service in SERVICES:
                self._change(back, {"service": service, "server": server, **(less or {})})

        return undo

    def _remove(self, act: Act) -> Undo:
        for service in SERVICES:
            self._change("/remove", {"service": service, "server": act.server})
        host, port = self._host(act.server), self._balancer.server_port
        again = {"name": host.name, "address": str(host.address), "port": port}

        def undo() -> None:
            for service in SERVICES:
                self._change("/add", {"service": service, "server": again})

        return undo

    def _reload(self, act: Act) -> None:
        del act
        self._change("/reload", {})

    def _reload_broken(self, act: Act) -> None:
        """Have a file with a mistake read: it must be refused, and change nothing."""
        del act
        # One that starts has to read it whole.
        self._balancer.wait_answering()
        self._config.write_text(self._text.replace('policy = "round-robin"', 'policy = "no-such-policy"'))
        try:
            self._change("/reload", {})
        except RemoteError as error:
            if error.exit_code == ConfigError.exit_code:
                return
            raise
        finally:
            self._config.write_text(self._text)
        raise TestbedError("a configuration with a mistake was taken")

    def _change(self, resource: str, parameters: dict[str, Any]) -> None:
        self._balancer.wait_answering()
        change(self._balancer.control, resource, parameters)

    # The balancer's process.

    def _restart(self, act: Act) -> None:
        del act
        self._balancer.restart()

    def _take_over(self, act: Act) -> Undo:
        del act
        return self._balancer.begin_take_over()

    def _kill(self, act: Act) -> Undo:
        """End its process as a crash does; the one that supervises it starts another."""
        del act
        pid = self._balancer.pid()
        os.kill(pid, signal.SIGKILL)
        return lambda: self._balancer.wait_other_than(pid)

    def _pause(self, act: Act) -> None:
        """Stop its process for a moment, as a hypervisor does that has no time for it."""
        del act
        pid = self._balancer.pid()
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(PAUSE_S)
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
