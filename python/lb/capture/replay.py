"""
Replay a capture through a backend, offline: what would become of each packet, with the capture's own times.

The Python API (`lb.Balancer`) over pcap files. Two passes: the first learns from the capture which host has which MAC
address, as the running balancer knew it from the kernel; the second processes. What the balancer itself had sent (its
own MAC as source) is skipped and counted. An IP packet larger than the MTU is one that the capturing host's network
card merged: it is given its offload header back.
"""

from __future__ import annotations

import json
import os
import pathlib
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import BinaryIO, NamedTuple

import lb.backends
from lb.backends.base import Result
from lb.balancer import Balancer
from lb.capture.pcap import NS_PER_S, CaptureCutError, Packet, PcapWriter, read_packets
from lb.capture.unfinished import finish, unfinished
from lb.config import Config
from lb.errors import CaptureError, ConfigError
from lb.fields.types import martian, parse_interface_address, parse_mac, parse_mtu
from lb.model.clock import ManualClock
from lb.model.snapshot import Address, Interface
from lb.model.units import count
from lb.packet.headers import Headers
from lb.packet.offload import Offload

ETHERTYPE_ARP = 0x0806
TCP, UDP = 6, 17
PROTOCOL_NAMES = {1: "ICMP", TCP: "TCP", UDP: "UDP", 58: "ICMPv6"}
GSO_TCP4, GSO_TCP6, GSO_UDP = 1, 4, 5
ROW = "{:>6} {:>12}  {:<8} {:<20} {:<16} {:<16} {}"


class Replayed(NamedTuple):
    """One packet and what became of it. `time_s`: since the capture's first packet; `headers`: as parsed."""

    number: int
    time_s: float
    result: Result
    headers: Headers


@dataclass
class Opened:
    """The files of a replay. `source`, `sink`: those that were opened before they are needed."""

    capture: pathlib.Path
    write: pathlib.Path | None
    source: BinaryIO | None = None
    sink: BinaryIO | None = None

    def open(self) -> None:
        """Open them now, while this process may: the one that is written stays as it is. Raise CaptureError."""
        self.require_two()
        try:
            self.source = self.capture.open("rb")
            if self.write is not None:
                self.sink = os.fdopen(os.open(self.write, os.O_WRONLY | os.O_CREAT, 0o666), "wb")
        except OSError as error:
            what = "read" if self.source is None else "written"
            raise CaptureError(f"{error.filename}: cannot be {what}: {error.strerror}") from error

    def require_two(self) -> None:
        """Raise CaptureError when what is written is what is read."""
        if self.sink is None and self.write is not None and self.write.exists() and self.write.samefile(self.capture):
            raise CaptureError(f"{self.write}: is the capture itself: name another file to write")


@dataclass
class Replay:
    """
    A replay of one capture. Iterate `packets()` once; the counts are complete after it.

    Args:
        config: a configuration whose interfaces have a `mac`.
        capture: a pcap or pcapng file.
        interface: the name of the interface the packets came in by. None: the first.
        backend: `auto`, `rust` or `python`.
        write: where to write the frames that leave, or None.
        fix_checksums: compute the checksums of IPv4 headers, TCP and UDP before a packet is processed.
        opened: the files, where they were opened already. None: they are not.

    `verdicts`: packets by verdict. `own`: packets of the balancer itself. `cut`: packets that the capture has cut.
    `unfinished`: packets whose checksum was left to the network card, by `ip` and `l4`. `ends_early`: what the capture
    says about its end when that is inside a packet.
    """

    config: Config
    capture: pathlib.Path
    interface: str | None = None
    backend: str = "auto"
    write: pathlib.Path | None = None
    fix_checksums: bool = False
    opened: Opened | None = None
    verdicts: Counter[str] = field(default_factory=Counter)
    own: int = 0
    cut: int = 0
    unfinished: Counter[str] = field(default_factory=Counter)
    ends_early: str | None = None

    def __post_init__(self) -> None:
        """Make the balancer, so that a wrong argument shows before the first line of output."""
        self.files = self.opened or Opened(self.capture, self.write)
        self.files.require_two()
        self.clock = ManualClock()
        self.balancer = Balancer.from_config(self.config, backend=self.backend, clock=self.clock)
        self.parse = lb.backends.load(self.balancer.backend).parse
        self.entry = _find_interface(self.balancer.interfaces, self.interface)

    def packets(self) -> Iterator[Replayed]:
        """
        Process the capture; yield every packet but the balancer's own.

        A capture that ends inside a packet is processed up to there; `ends_early` says so.

        Raises:
            CaptureError: the capture cannot be read, or the output not written.
        """
        self._learn_neighbours()
        with ExitStack() as stack:
            writer = None if self.write is None else stack.enter_context(PcapWriter(self.write, self.files.sink))
            start_ns: int | None = None
            for packet in self._whole_packets():
                start_ns = packet.time_ns if start_ns is None else start_ns
                # Captures of several queues step back by microseconds at times; the clock of a data path never does.
                self.clock.advance_to(packet.time_ns - start_ns)
                if packet.frame[6:12] == self.entry.mac:
                    self.own += 1
                    continue
                replayed = self._process(packet, start_ns)
                if writer is not None:
                    for _, frame in replayed.result.out:
                        writer.write(packet.time_ns, frame)
                yield replayed

    def _whole_packets(self) -> Iterator[Packet]:
        try:
            yield from read_packets(self.capture, self.entry.mac, self.files.source)
        except CaptureCutError as error:
            self.ends_early = str(error)

    def _process(self, packet: Packet, start_ns: int) -> Replayed:
        frame = self._prepare(packet.frame)
        headers = self.parse(frame)
        self.cut += len(packet.frame) < packet.original_len
        if (what := unfinished(packet.frame, self.parse)) is not None:
            self.unfinished[what] += 1
        result = self.balancer.process(frame, self.entry.name, merged_offload(headers, self.entry.mtu))
        self.verdicts[result.verdict] += 1
        return Replayed(packet.number, (packet.time_ns - start_ns) / NS_PER_S, result, headers)

    def _prepare(self, frame: bytes) -> bytes:
        return finish(frame, self.parse) if self.fix_checksums else frame

    def _learn_neighbours(self) -> None:
        found = learn_neighbours(self.capture, self.entry, self.parse, self._prepare, self.files.source)
        for address, mac in found.items():
            self.balancer.add_neighbour(address, mac, self.entry.name)


def _find_interface(interfaces: Sequence[Interface], name: str | None) -> Interface:
    for entry in interfaces:
        if name in (None, entry.name):
            return entry
    names = ", ".join(entry.name for entry in interfaces)
    raise ConfigError([f"interface {name} is not in the configuration; there are: {names}"])


def with_interface(
    config: Config, name: str | None, mac: str | None, addresses: Sequence[str], mtu: int | None
) -> Config:
    """
    Return the configuration with facts about one interface filled in.

    Args:
        config: any configuration.
        name: the interface; None: the first.
        mac: as a configuration has it; None leaves what is there, here and below.
        addresses: each with its prefix length.
        mtu: in bytes.

    Raises:
        ValueError: there is no such interface, or a fact is malformed; names the option of `lb replay`.
    """
    names = [entry.name for entry in config.interfaces]
    index = names.index(name) if name in names else 0
    if name is not None and name not in names:
        raise ValueError(f"--interface: {name} is not in the configuration; there are: {', '.join(names)}")
    facts: dict[str, object] = {}
    if mac is not None:
        facts["mac"] = _fact("--mac", parse_mac, mac)
    if addresses:
        facts["addresses"] = tuple(_fact("--address", parse_interface_address, text) for text in addresses)
    if mtu is not None:
        facts["mtu"] = _fact("--mtu", parse_mtu, mtu)
    interfaces = list(config.interfaces)
    interfaces[index] = interfaces[index].model_copy(update=facts)
    return config.model_copy(update={"interfaces": tuple(interfaces)})


def _fact(option: str, parse: Callable[[object], object], value: object) -> object:
    """Parse a fact; an error names the option that gave it."""
    try:
        return parse(value)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def merged_offload(headers: Headers, mtu: int) -> Offload | None:
    """
    Return the offload header that a merged frame must have had, or None for an ordinary one.

    A network card (or a veth peer) merges segments into frames larger than the MTU; captures keep the frame and lose
    its header.

    Args:
        headers: of the frame.
        mtu: of the interface it came in by, in bytes.
    """
    if headers.total_len <= mtu or headers.protocol not in (TCP, UDP) or headers.payload_offset == 0:
        return None
    ip_header_len = headers.payload_offset - headers.l3_offset
    if mtu <= ip_header_len:
        return None
    gso_type = GSO_UDP if headers.protocol == UDP else GSO_TCP4 if len(headers.source) == 4 else GSO_TCP6
    return Offload(0, gso_type, headers.payload_offset, mtu - ip_header_len, 0, 0)


def learn_neighbours(
    capture: pathlib.Path,
    entry: Interface,
    parse: Callable[[bytes], Headers],
    prepare: Callable[[bytes], bytes] = lambda frame: frame,
    opened: BinaryIO | None = None,
) -> dict[Address, bytes]:
    """
    Return who is where on the link, as a capture shows it: source MACs of others' packets, destinations of the
    balancer's own.

    Args:
        capture: a pcap or pcapng file.
        entry: the interface it was taken on; only addresses inside its prefixes are on the link.
        parse: of the backend.
        prepare: what is done with a frame before it is parsed.
        opened: the file, where it is open already.
    """
    found: dict[Address, bytes] = {}
    for packet in _intact_packets(capture, entry.mac, opened):
        frame = prepare(packet.frame)
        own = frame[6:12] == entry.mac
        headers = parse(frame)
        if headers.ethertype == ETHERTYPE_ARP and not own:
            pair = _arp_sender(frame, 14 + 4 * len(headers.vlans))
        elif headers.source:
            pair = (headers.destination, frame[0:6]) if own else (headers.source, frame[6:12])
        else:
            continue
        if pair is None or pair[1][0] & 1:
            continue
        address = _address(pair[0])
        if martian(address) is None and any(address in prefix.network for prefix in entry.addresses):
            found.setdefault(address, pair[1])
    return found


def _intact_packets(capture: pathlib.Path, mac: bytes, source: BinaryIO | None) -> Iterator[Packet]:
    """Yield the packets before the first damage of a capture; the damage is reported when they are processed."""
    number = 0
    try:
        for packet in read_packets(capture, mac, source):
            number = packet.number
            yield packet
    except CaptureError as error:
        if number == 0 and not isinstance(error, CaptureCutError):
            raise


def _arp_sender(frame: bytes, at: int) -> tuple[bytes, bytes] | None:
    """Return the sender's address and MAC of an ARP packet that starts at a byte."""
    if len(frame) < at + 28 or struct.unpack_from("!HHBB", frame, at) != (1, 0x0800, 6, 4):
        return None
    return frame[at + 14 : at + 18], frame[at + 8 : at + 14]


def _address(raw: bytes) -> Address:
    return IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw)


def header() -> str:
    """Return the head of the table."""
    return ROW.format("packet", "time_s", "verdict", "reason", "service", "server", "what").rstrip()


def format_table(packet: Replayed) -> str:
    """Return a packet as a row of the table."""
    result = packet.result
    fields = (result.verdict, result.reason or "-", result.service or "-", result.server or "-")
    return ROW.format(packet.number, f"{packet.time_s:.6f}", *fields, describe(packet.headers)).rstrip()


def format_json(packet: Replayed) -> str:
    """Return a packet as a line of JSON."""
    result, headers = packet.result, packet.headers
    return json.dumps(
        {
            "packet": packet.number,
            "time_s": round(packet.time_s, 9),
            "verdict": result.verdict,
            "reason": result.reason,
            "direction": result.direction,
            "service": result.service,
            "server": result.server,
            "protocol": PROTOCOL_NAMES.get(headers.protocol, str(headers.protocol)) if headers.source else None,
            "source": str(_address(headers.source)) if headers.source else None,
            "source_port": headers.source_port or None,
            "destination": str(_address(headers.destination)) if headers.destination else None,
            "destination_port": headers.destination_port or None,
            "frames_out": len(result.out),
        }
    )


def describe(headers: Headers) -> str:
    """Return what a packet is, for people: `TCP 198.18.1.21:40000 > 198.18.1.100:9876`."""
    if not headers.source or not headers.destination:
        return "ARP" if headers.ethertype == ETHERTYPE_ARP else f"ethertype {headers.ethertype:#06x}"
    name = PROTOCOL_NAMES.get(headers.protocol, f"protocol {headers.protocol}")
    source = _endpoint(headers.source, headers.source_port)
    destination = _endpoint(headers.destination, headers.destination_port)
    fragment = f" fragment at {headers.fragment_offset}" if headers.fragment_offset or headers.more_fragments else ""
    return f"{name} {source} > {destination}{fragment}"


def _endpoint(raw: bytes, port: int) -> str:
    address = _address(raw)
    if not port:
        return str(address)
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


def summary(run: Replay) -> str:
    """Return what a finished replay did, for people: some lines."""
    counts = ", ".join(f"{count(times)} {verdict}" for verdict, times in sorted(run.verdicts.items())) or "none"
    lines = [f"{count(sum(run.verdicts.values()))} packets by backend {run.balancer.backend}: {counts}"]
    verdicts = run.balancer.counters()["verdicts"]
    drops = {name: times for name, times in verdicts.items() if name.startswith("drop.")}
    if drops:
        lines.append("dropped: " + ", ".join(f"{name[5:]} {count(times)}" for name, times in sorted(drops.items())))
    if run.own:
        lines.append(f"{count(run.own)} packets of the balancer itself were skipped")
    if run.cut:
        lines.append(f"{count(run.cut)} packets were cut short by the capture (snap length) and count as truncated")
    lines += _checksum_lines(run)
    if run.ends_early is not None:
        lines.append(f"warning: {run.ends_early}; the packets before it were replayed")
    return "\n".join(lines)


def _checksum_lines(run: Replay) -> Iterator[str]:
    """Yield what a summary says about checksums that a network card was to compute."""
    done = "were computed" if run.fix_checksums else "--fix-checksums computes them"
    if packets := run.unfinished["ip"]:
        what = "" if run.fix_checksums else ", and count as ip_checksum"
        text = "have an IPv4 header checksum of 0, left to the network card (offload)"
        yield f"{count(packets)} packets {text}{what}: {done}"
    if packets := run.unfinished["l4"]:
        what = "" if run.fix_checksums else ", and leave with a wrong one"
        yield f"{count(packets)} packets have a TCP or UDP checksum left to the network card (offload){what}: {done}"
