"""
The balancer as a Python object: a configuration, a backend and a clock, without sockets and without root.

It strings the control walk together (`config -> policy -> plan -> snapshot -> publish`) and feeds frames to the
backend one call at a time. The daemon (`lb.control.daemon`) does the same with sockets and the kernel's tables; `lb
replay` is this object over a capture.
"""

from __future__ import annotations

import pathlib
import secrets
from collections.abc import Sequence
from typing import Any

import lb.backends
from lb.backends import Backend
from lb.backends.base import Engine, Flow, Result
from lb.compiler.compile import Compiler, offline_interfaces, offline_next_hops, seed_of
from lb.compiler.edits import with_config, without_removed
from lb.compiler.spec import ServerIdentity, Spec
from lb.config import Config, load
from lb.errors import BackendError
from lb.fields.types import parse_mac, plain_address
from lb.model.clock import Clock, ManualClock
from lb.model.snapshot import Address, Interface, Neighbour, Snapshot
from lb.packet.offload import Offload

MAX_SEED = 2**64 - 1
HASH_KEY_BYTES = 16


class Balancer:
    """
    An offline balancer. Make it with `from_file` or `from_config`.

    Interfaces come from the configuration (`mac` is needed, `addresses` and `mtu` are useful); neighbours from the
    servers' `mac`, from `add_neighbour` and from nowhere else.
    """

    def __init__(self, config: Config, backend: str, seed: int | None, clock: Clock | None) -> None:
        if seed is not None and not 0 <= seed <= MAX_SEED:
            raise ValueError(f"seed: {seed} is not in 0..{MAX_SEED}")
        implementation = load_offline(choose_backend(backend, config))
        self.clock: Clock | ManualClock = ManualClock() if clock is None else clock
        self.config = config
        self.backend = implementation.NAME
        self._seed = seed_of(config) if seed is None else seed
        self._compiler = Compiler()
        self._neighbours: dict[tuple[int, Address], bytes] = {}
        self._spec = Spec(config)
        self.snapshot = self._compile(self._spec)
        self._engine: Engine = implementation.DataPath(
            config.flows.capacity, secrets.token_bytes(HASH_KEY_BYTES), self._seed
        )
        self._publish(self.snapshot)

    @classmethod
    def from_file(
        cls, path: str | pathlib.Path, backend: str = "auto", seed: int | None = None, clock: Clock | None = None
    ) -> Balancer:
        """
        Make a balancer from a configuration file.

        Args:
            path: of a TOML file.
            backend: `rust`, `python`, or `auto`: what the configuration says, the best one otherwise.
            seed: u64, takes the place of the configuration's. None, and none there: 1, so that runs are the same.
            clock: default: a ManualClock at 0.

        Raises:
            ConfigError: the file cannot be read or is invalid, or lacks what offline work needs.
            BackendError: the backend is not there, or takes packets from interfaces only.
            ValueError: the seed is out of range.
        """
        return cls(load(path), backend, seed, clock)

    @classmethod
    def from_config(
        cls, config: Config, backend: str = "auto", seed: int | None = None, clock: Clock | None = None
    ) -> Balancer:
        """Make a balancer from a validated configuration (`lb.Config`). Arguments and errors: as `from_file`."""
        return cls(config, backend, seed, clock)

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        """The interfaces, by id."""
        return self.snapshot.interfaces

    def process(self, frame: bytes, interface: str | None = None, offload: Offload | None = None) -> Result:
        """
        Process one frame.

        Args:
            frame: a whole Ethernet frame, without FCS.
            interface: the name of the interface it came in by. Default: the first.
            offload: work the sender left to the network card.

        Raises:
            ValueError: there is no such interface.
            TypeError: the frame is not bytes.
        """
        return self._engine.process(_require_bytes(frame), self._index(interface), self.clock.now_ns(), offload)

    def process_many(self, frames: Sequence[bytes], interface: str | None = None) -> list[Result]:
        """Process frames in order, at one instant. Arguments and errors: as `process`."""
        whole = [_require_bytes(frame) for frame in frames]
        return self._engine.process_many(whole, self._index(interface), self.clock.now_ns())

    def tick(self) -> list[tuple[str, bytes, Offload | None]]:
        """Expire and release what is due now; return frames to send: (interface name, frame, offload)."""
        return self._engine.tick(self.clock.now_ns())

    def flows(self) -> list[Flow]:
        """Return the flow table's unexpired entries, sorted by client."""
        return self._engine.flows(self.clock.now_ns())

    def counters(self) -> dict[str, Any]:
        """Return all counters by name (`docs/rules.md` rule 13, counters)."""
        return self._engine.counters()

    def take_unresolved(self) -> list[tuple[str, Address]]:
        """Return the (interface name, address) of neighbours that packets wait for, each once."""
        return [(self.interfaces[number].name, address) for number, address in self._engine.take_unresolved()]

    def add_neighbour(self, address: Address | str, mac: bytes | str, interface: str | None = None) -> None:
        """
        Tell where a host on the link is. Packets that wait for it leave at the next `tick`.

        Args:
            address: its IP address.
            mac: 6 bytes, or "aa:aa:aa:00:00:31".
            interface: the name of the interface it is behind. Default: the first.

        Raises:
            ValueError: an argument is not what it should be.
        """
        wire = parse_mac(mac) if isinstance(mac, str) else bytes(mac)
        if len(wire) != len(bytes(6)):
            raise ValueError(f"mac: {len(wire)} bytes, not 6")
        host = plain_address(str(address))
        self._neighbours[(self._index(interface), host)] = wire
        self._set_next_hops()

    def reload(self, config: Config | str | pathlib.Path) -> None:
        """
        Swap to another configuration. Flows stay, those of servers that it does not list too (rule 18.2, servers that
        leave or fail); the seed and the flow table's capacity stay those of the start.

        Args:
            config: a configuration, or the path of a file.

        Raises:
            ConfigError: it is invalid; nothing has changed then.
            ValueError: its interfaces are not the ones of the start.
        """
        loaded = config if isinstance(config, Config) else load(config)
        require_same_interfaces(self.config, loaded)
        spec = with_config(without_removed(self._spec, self._idle_removed()), loaded)
        snapshot = self._compile(spec)
        self.config, self._spec = loaded, spec
        self._publish(snapshot)

    def _idle_removed(self) -> set[ServerIdentity]:
        """Return the removed servers that have no flow any more."""
        ids = self._compiler.server_ids(removed.identity for removed in self._spec.removed_servers)
        active = self._engine.active_flows(list(ids.values()))
        return {identity for identity, flows in zip(ids, active, strict=True) if not flows}

    def _compile(self, spec: Spec) -> Snapshot:
        return self._compiler.compile(spec, offline_interfaces(spec.config), self._seed)

    def _publish(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._engine.publish(snapshot)
        self._set_next_hops()

    def _set_next_hops(self) -> None:
        neighbours = [Neighbour(number, address, mac) for (number, address), mac in self._neighbours.items()]
        self._engine.set_next_hops(offline_next_hops(self.interfaces, neighbours))

    def _index(self, interface: str | None) -> int:
        names = [entry.name for entry in self.interfaces]
        if interface is None:
            return 0
        if interface not in names:
            raise ValueError(f"interface: {interface!r} is not one of {', '.join(names)}")
        return names.index(interface)


def load_offline(name: str) -> Backend:
    """Load a backend. Raise BackendError when it is not there, or processes packets of interfaces only."""
    backend = lb.backends.load(name)
    if not backend.capabilities().offline:
        raise BackendError(
            f"backend {backend.NAME!r} takes packets from interfaces only: offline, choose another (--backend python)"
        )
    return backend


def choose_backend(backend: str, config: Config) -> str:
    """Return the backend to load: the argument, or the configuration's when the argument is `auto`."""
    return config.backend if backend == "auto" else backend


def require_same_interfaces(old: Config, new: Config) -> None:
    """
    Raise ValueError when two configurations do not name the same interfaces in the same order: they are taken at
    start.
    """
    before = [entry.name for entry in old.interfaces]
    after = [entry.name for entry in new.interfaces]
    if before != after:
        raise ValueError(f"interfaces cannot change while running ({', '.join(before)} to {', '.join(after)}): restart")


def _require_bytes(frame: bytes) -> bytes:
    if not isinstance(frame, bytes | bytearray | memoryview):
        raise TypeError(f"frame: {type(frame).__name__} is not bytes")
    return bytes(frame)
