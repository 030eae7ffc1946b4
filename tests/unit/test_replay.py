"""`lb replay`: a capture through a backend, offline."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption, in4_pseudoheader
from scapy.layers.inet6 import IPv6, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, CookedLinux, CookedLinuxV2, Dot1Q, Ether
from scapy.utils import checksum

import lb.backends
from lb.backends.python import parse as parse_frame
from lb.capture.pcap import PcapWriter, read_packets
from lb.capture.replay import (
    Replay,
    describe,
    format_json,
    format_table,
    header,
    learn_neighbours,
    merged_offload,
    summary,
    with_interface,
)
from lb.capture.unfinished import finish, unfinished
from lb.config import Config, parse
from lb.errors import CaptureError, ConfigError
from lb.packet.offload import Offload

CLIENT, ROUTER, SERVER = "aa:aa:aa:00:00:21", "aa:aa:aa:00:00:01", "aa:aa:aa:00:00:31"
START_NS = 1_700_000_000 * 10**9
# With both addresses: scapy would ask the network for the destination's.
HEAD = Ether(src=CLIENT, dst=ROUTER)
CONFIG = parse("""
[[interface]]
name = "eth0"
mac = "aa:aa:aa:00:00:01"
addresses = ["198.18.1.1/24"]
[[service]]
name = "echo"
address = "198.18.1.100"
port = 9876
policy = "static"
  [[service.server]]
  name = "server1"
  address = "198.18.1.31"
  port = 7000
""")


def forward(flags: str, payload: bytes = b"", **fields: int) -> Ether:
    tcp = TCP(sport=40000, dport=9876, flags=flags, **fields)
    return Ether(src=CLIENT, dst=ROUTER) / IP(src="198.18.1.21", dst="198.18.1.100") / tcp / payload


def reply(flags: str, payload: bytes = b"", **fields: int) -> Ether:
    tcp = TCP(sport=7000, dport=40000, flags=flags, **fields)
    return Ether(src=SERVER, dst=ROUTER) / IP(src="198.18.1.31", dst="198.18.1.21") / tcp / payload


def capture(tmp_path: Path, *frames: Ether, step_ns: int = 10**6) -> Path:
    with PcapWriter(tmp_path / "in.pcap") as writer:
        for number, frame in enumerate(frames):
            writer.write(START_NS + number * step_ns, bytes(frame))
    return tmp_path / "in.pcap"


def test_replay_capture_one_result_per_packet(tmp_path: Path, backend: str) -> None:
    """Packets get the verdicts of a running balancer; its own transmissions are skipped and counted."""
    own = Ether(src=ROUTER, dst=SERVER) / IP(src="198.18.1.21", dst="198.18.1.31") / TCP(sport=40000, dport=7000)
    frames = [forward("S"), own, reply("SA"), forward("A"), forward("S").copy(), Ether(src=CLIENT, dst=ROUTER) / ARP()]
    frames[4][TCP].dport = 1
    run = Replay(CONFIG, capture(tmp_path, *frames), backend=backend, write=tmp_path / "out.pcap")
    found = [
        (packet.number, packet.result.verdict, packet.result.reason, packet.result.server) for packet in run.packets()
    ]
    assert found == [
        (1, "forward", None, "server1"),
        (3, "forward", None, "server1"),
        (4, "forward", None, "server1"),
        (5, "drop", "no_service", None),
        (6, "pass", None, None),
    ]
    written = [Ether(packet.frame) for packet in read_packets(tmp_path / "out.pcap")]
    assert [(frame.dst, frame[IP].dst) for frame in written] == [
        (SERVER, "198.18.1.31"),
        (CLIENT, "198.18.1.21"),
        (SERVER, "198.18.1.31"),
    ]
    assert summary(run).splitlines() == [
        f"5 packets by backend {backend}: 1 drop, 3 forward, 1 pass",
        "dropped: no_service 1",
        "1 packets of the balancer itself were skipped",
    ]


def test_replay_cut_capture_keeps_the_summary(tmp_path: Path) -> None:
    """A capture whose end was cut off, as a killed tcpdump leaves it, is replayed up to the cut, and that is said."""
    path = capture(tmp_path, forward("S"), reply("SA"), forward("A"))
    path.write_bytes(path.read_bytes()[:-10])
    run = Replay(CONFIG, path, backend="python")
    assert [packet.result.verdict for packet in run.packets()] == ["forward", "forward"]
    assert summary(run).splitlines() == [
        "2 packets by backend python: 2 forward",
        f"warning: {path}: at byte 180: the file ends inside packet 3; the packets before it were replayed",
    ]


def test_replay_damaged_capture_gives_what_comes_before_the_damage(tmp_path: Path) -> None:
    """Damage is an error, after what could be read."""
    path = capture(tmp_path, forward("S"), reply("SA"))
    path.write_bytes(path.read_bytes() + struct.pack("<IIII", 0, 0, 10**9, 10**9))
    packets = Replay(CONFIG, path).packets()
    assert [next(packets).result.verdict, next(packets).result.verdict] == ["forward", "forward"]
    with pytest.raises(CaptureError, match="a packet of 1000000000 bytes: the file is damaged"):
        next(packets)


def offloaded(frame: Ether) -> Ether:
    """Return a frame whose IPv4 header checksum is left to the card."""
    frame = Ether(bytes(frame))
    frame[IP].chksum = 0
    return frame


def partial(frame: Ether) -> Ether:
    """Return a frame whose L4 checksum covers the pseudo-header alone."""
    frame = Ether(bytes(frame))
    layer = frame[TCP] if TCP in frame else frame[UDP]
    pseudo = in4_pseudoheader(frame[IP].proto, frame[IP], len(layer))
    layer.chksum = checksum(pseudo) ^ 0xFFFF
    return frame


def test_replay_offloaded_checksums_told(tmp_path: Path, backend: str) -> None:
    """A capture taken before the card is told from a damaged one, and the summary names the option that helps."""
    frames = [offloaded(forward("S")), partial(forward("S")), reply("SA")]
    run = Replay(CONFIG, capture(tmp_path, *frames), backend=backend)
    assert [packet.result.reason for packet in run.packets()] == ["ip_checksum", None, None]
    assert summary(run).splitlines()[-2:] == [
        "1 packets have an IPv4 header checksum of 0, left to the network card (offload), and count as ip_checksum: "
        "--fix-checksums computes them",
        "1 packets have a TCP or UDP checksum left to the network card (offload), and leave with a wrong one: "
        "--fix-checksums computes them",
    ]


def test_replay_sound_capture_says_nothing_of_checksums(tmp_path: Path, backend: str) -> None:
    """What is right, and what is wrong without being offload, is not called offload."""
    wrong = Ether(bytes(forward("S")))
    wrong[IP].chksum ^= 1
    run = Replay(CONFIG, capture(tmp_path, forward("S"), wrong, reply("SA")), backend=backend)
    assert len(list(run.packets())) == 3
    assert "checksum of 0" not in summary(run)
    assert "left to the network card" not in summary(run)


def test_replay_fix_checksums_makes_frames_as_the_card_would(tmp_path: Path, backend: str) -> None:
    """With the option the packets that leave are byte-equal to those of a capture without offload."""
    sound = [forward("S"), reply("SA"), forward("A", b"odd")]
    outs = []
    for number, frames in enumerate((sound, [partial(offloaded(frame)) for frame in sound])):
        folder = tmp_path / str(number)
        folder.mkdir()
        run = Replay(CONFIG, capture(folder, *frames), backend=backend, fix_checksums=bool(number))
        outs.append([packet.result.out for packet in run.packets()])
    assert outs[0] == outs[1]
    assert all(out for out in outs[0])
    assert summary(run).splitlines()[-1].endswith("left to the network card (offload): were computed")


@pytest.mark.parametrize(
    "packet",
    [
        IP(src="198.18.1.21", dst="198.18.1.100") / TCP() / b"abc",
        IP(src="198.18.1.21", dst="198.18.1.100") / UDP() / b"abcd",
        IP(src="198.18.1.21", dst="198.18.1.100", options=IPOption(b"\x94\x04\0\0")) / TCP() / b"a",
        IPv6(src="fd00::1", dst="fd00::2") / UDP() / b"abc",
        IPv6(src="fd00::1", dst="fd00::2") / IPv6ExtHdrHopByHop() / TCP() / b"abc",
        IP(src="198.51.100.7", dst="10.0.0.11") / UDP(sport=40000, dport=5353) / b"\x1a\x6b",
    ],
    ids=["tcp", "udp", "ip-options", "udp6", "tcp6-extension", "udp-sum-is-zero"],
)
@pytest.mark.parametrize("head", [HEAD, HEAD / Dot1Q(vlan=3)], ids=["plain", "vlan"])
def test_finish_any_packet_gets_the_checksums_of_its_sender(packet: IP, head: Ether, backend: str) -> None:
    """Garbage in the checksum fields becomes what scapy computes; what was right stays."""
    right = bytes(head / packet)
    garbled = head / packet
    if IP in garbled:
        garbled[IP].chksum = 0x1234
    (garbled[TCP] if TCP in garbled else garbled[UDP]).chksum = 0x4321
    parse_by = lb.backends.load(backend).parse
    assert finish(bytes(garbled), parse_by) == right
    assert finish(right, parse_by) == right


@pytest.mark.parametrize(
    "frame",
    [
        HEAD / IP(src="10.0.0.1", dst="10.0.0.2") / UDP(chksum=0) / b"none is none",
        HEAD / IP(src="10.0.0.1", dst="10.0.0.2", flags="MF") / UDP(chksum=0x1111) / b"12345678",
        HEAD / IP(src="10.0.0.1", dst="10.0.0.2", frag=2, proto=17) / b"12345678",
        HEAD / ARP(),
        HEAD / IPv6(src="fd00::1", dst="fd00::2", nh=59),
        HEAD / IP(src="10.0.0.1", dst="10.0.0.2", proto=47) / b"x",
        b"",
        b"\x45" * 14,
    ],
    ids=["udp-zero", "first-fragment", "later-fragment", "arp", "ipv6-nothing", "gre", "empty", "short"],
)
def test_finish_what_cannot_be_computed_stays(frame: Ether | bytes) -> None:
    """No checksum is invented."""
    assert finish(bytes(frame), parse_frame) == bytes(frame)
    assert unfinished(bytes(frame), parse_frame) is None


@given(st.binary(max_size=120))
def test_finish_any_bytes_never_raises(frame: bytes) -> None:
    """Garbage has no checksums, or gets some; its length stays."""
    assert len(finish(frame, parse_frame)) == len(frame)
    unfinished(frame, parse_frame)


@pytest.mark.parametrize("link", [113, 276, 101])
def test_replay_captures_without_ethernet_headers(tmp_path: Path, link: int, backend: str) -> None:
    """A capture of `-i any` or of a tunnel is replayed; of the first kind, what the balancer had sent is skipped."""
    frames = [forward("S"), reply("SA"), forward("A")]
    packets = [header_of(link, frame, kind=0) + bytes(frame[IP]) for frame in frames]
    if link != 101:
        own = forward("S")
        own[Ether].src = ROUTER
        packets.insert(1, header_of(link, own, kind=4) + bytes(own[IP]))
    data = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, link)
    for packet in packets:
        data += struct.pack("<IIII", 1, 0, len(packet), len(packet)) + packet
    (tmp_path / "in.pcap").write_bytes(data)
    run = Replay(CONFIG, tmp_path / "in.pcap", backend=backend)
    found = [(packet.result.verdict, packet.result.server) for packet in run.packets()]
    assert found == [("forward", "server1")] * 3
    assert (run.own, run.cut) == (0 if link == 101 else 1, 0)


def header_of(link: int, frame: Ether, kind: int) -> bytes:
    """Return the link header of a frame in a capture of this link type."""
    source = bytes.fromhex(frame.src.replace(":", "")) + bytes(2)
    if link == 113:
        return bytes(CookedLinux(pkttype=kind, lladdrlen=6, src=source, proto=0x0800))
    if link == 276:
        return bytes(CookedLinuxV2(pkttype=kind, lladdrlen=6, src=source, proto=0x0800))
    return b""


def test_replay_write_over_the_capture_refused(tmp_path: Path) -> None:
    """The capture survives being named as the output too, by whatever path."""
    path = capture(tmp_path, forward("S"))
    before = path.read_bytes()
    (tmp_path / "link.pcap").symlink_to(path)
    for output in (path, tmp_path / "link.pcap"):
        with pytest.raises(CaptureError, match="is the capture itself"):
            Replay(CONFIG, path, write=output)
    assert path.read_bytes() == before


def test_replay_write_to_full_disk_names_the_file(tmp_path: Path) -> None:
    """What cannot be written is an error about that file."""
    run = Replay(CONFIG, capture(tmp_path, forward("S")), write=Path("/dev/full"))
    with pytest.raises(CaptureError, match="/dev/full: cannot be written: No space left on device"):
        list(run.packets())


def test_replay_capture_times_drive_the_clock(tmp_path: Path, backend: str) -> None:
    """Rule 8.12, idle timeouts: a flow that was half open for 31 s in the capture is forgotten."""
    run = Replay(CONFIG, capture(tmp_path, forward("S"), reply("SA"), step_ns=31 * 10**9), backend=backend)
    assert [packet.result.reason for packet in run.packets()] == [None, "no_flow"]


def test_replay_merged_frame_passes_whole(tmp_path: Path, backend: str) -> None:
    """Rule 12.2, frames over the MTU: a frame that the capturing host had merged is not called too big."""
    frames = [forward("S"), reply("SA", seq=0, ack=1), forward("A", b"x" * 20000, seq=1, ack=1)]
    run = Replay(CONFIG, capture(tmp_path, *frames), backend=backend)
    last = list(run.packets())[-1].result
    assert (last.verdict, len(last.out[0][1])) == ("forward", len(frames[2]))


def test_replay_rows_readable_by_people_and_programs(tmp_path: Path) -> None:
    """A row tells number, time, verdict, reason, service, server and what the packet is; JSON has the same."""
    run = Replay(CONFIG, capture(tmp_path, forward("S"), forward("SF"), reply("SA")), backend="python")
    first, second, _ = run.packets()
    assert header().split() == ["packet", "time_s", "verdict", "reason", "service", "server", "what"]
    assert format_table(first).split() == [
        "1", "0.000000", "forward", "-", "echo", "server1", "TCP", "198.18.1.21:40000", ">", "198.18.1.100:9876"
    ]  # fmt: skip
    row = json.loads(format_json(second))
    assert row["verdict"] == "drop"
    assert row == {
        "packet": 2, "time_s": 0.001, "verdict": "drop", "reason": "tcp_flags", "direction": None, "service": None,
        "server": None, "protocol": "TCP", "source": "198.18.1.21", "source_port": None,
        "destination": "198.18.1.100", "destination_port": None, "frames_out": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (Ether() / ARP(), "ARP"),
        (Ether(type=0x88CC), "ethertype 0x88cc"),
        (Ether() / IPv6(src="fd00::1", dst="fd00::2") / UDP(sport=1, dport=2), "UDP [fd00::1]:1 > [fd00::2]:2"),
        (Ether() / IP(src="10.0.0.1", dst="10.0.0.2", proto=47), "protocol 47 10.0.0.1 > 10.0.0.2"),
        (
            Ether() / IP(src="10.0.0.1", dst="10.0.0.2", proto=17, frag=2) / b"12345678",
            "UDP 10.0.0.1 > 10.0.0.2 fragment at 16",
        ),
    ],
    ids=["arp", "other", "ipv6", "protocol", "fragment"],
)
def test_describe_any_packet_one_phrase(frame: Ether, expected: str) -> None:
    """What a packet is fits in one phrase."""
    assert describe(parse_frame(bytes(frame))) == expected


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (forward("A", b"x" * 1460), None),
        (forward("A", b"x" * 1461), Offload(0, 1, 54, 1460)),
        (Ether() / Dot1Q() / IP() / TCP(options=[("NOP", None)] * 12) / (b"x" * 9000), Offload(0, 1, 70, 1448)),
        (Ether() / IPv6() / TCP() / (b"x" * 9000), Offload(0, 4, 74, 1440)),
        (Ether() / IP() / UDP() / (b"x" * 9000), Offload(0, 5, 42, 1472)),
        (Ether() / IP(proto=47) / (b"x" * 9000), None),
    ],
    ids=["fits", "tcp4", "vlan-and-options", "tcp6", "udp", "gre"],
)
def test_merged_offload_by_size_and_protocol(frame: Ether, expected: Offload | None) -> None:
    """Only TCP and UDP are merged; a segment is what fits the MTU behind the headers."""
    assert merged_offload(parse_frame(bytes(frame)), 1500) == expected


def test_learn_neighbours_on_link_hosts_only(tmp_path: Path) -> None:
    """Sources, ARP senders and the balancer's own destinations are learned; far, group and martian ones are not."""
    router, gateway = "aa:aa:aa:00:00:01", "aa:aa:aa:00:00:99"
    path = capture(
        tmp_path,
        Ether(src=CLIENT, dst=router) / IP(src="198.18.1.21", dst="198.18.1.100"),
        Ether(src=gateway, dst=router) / IP(src="203.0.113.5", dst="198.18.1.100"),
        Ether(src=SERVER, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=SERVER, psrc="198.18.1.31"),
        Ether(src=router, dst="aa:aa:aa:00:00:32") / IP(src="198.18.1.21", dst="198.18.1.32"),
        Ether(src=router, dst="ff:ff:ff:ff:ff:ff") / IP(src="198.18.1.1", dst="198.18.1.255"),
        Ether(src=gateway, dst=router) / IP(src="198.18.1.21", dst="198.18.1.100"),
    )
    balancer = Replay(CONFIG, path, backend="python")
    assert {
        str(address): mac.hex(":") for address, mac in learn_neighbours(path, balancer.entry, parse_frame).items()
    } == {
        "198.18.1.21": CLIENT,
        "198.18.1.31": SERVER,
        "198.18.1.32": "aa:aa:aa:00:00:32",
    }


def test_replay_cut_packets_counted(tmp_path: Path) -> None:
    """A capture with a snap length says so, or its drops would be a riddle."""
    data = bytearray(capture(tmp_path, forward("S")).read_bytes())
    data[36:40] = (2000).to_bytes(4, "little")
    (tmp_path / "in.pcap").write_bytes(data)
    run = Replay(CONFIG, tmp_path / "in.pcap", backend="python")
    assert len(list(run.packets())) == 1
    assert summary(run).splitlines()[-1].startswith("1 packets were cut short by the capture")


def bare() -> Config:
    return CONFIG.model_copy(update={"interfaces": (CONFIG.interfaces[0].model_copy(update={"mac": None}),)})


def test_with_interface_facts_from_options(tmp_path: Path) -> None:
    """A configuration of a running balancer has no MAC: options give it."""
    with pytest.raises(ConfigError, match="--mac, --address, --mtu"):
        Replay(bare(), capture(tmp_path, forward("S")), backend="python")
    given = with_interface(bare(), "eth0", "aa:aa:aa:00:00:01", ["198.18.1.1/24", "fd00::1/64"], 1400)
    run = Replay(given, tmp_path / "in.pcap", backend="python")
    assert (run.entry.mac.hex(":"), run.entry.mtu, len(run.entry.addresses)) == ("aa:aa:aa:00:00:01", 1400, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eth9", None, [], None), "--interface: eth9 is not in the configuration; there are: eth0"),
        ((None, "aa:bb", [], None), '--mac: "aa:bb" is not a MAC address'),
        ((None, None, ["198.18.1.1"], None), '--address: "198.18.1.1" has no prefix length'),
        ((None, None, [], 20), "--mtu: 20 is not in 68..65535"),
    ],
)
def test_with_interface_bad_fact_named(
    arguments: tuple[str | None, str | None, list[str], int | None], message: str
) -> None:
    """A malformed option is said like a malformed key, with the option's name."""
    with pytest.raises(ValueError) as caught:
        with_interface(CONFIG, *arguments)
    assert str(caught.value) == message
