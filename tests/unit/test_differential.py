"""
Both backends on the same drawn sequences: 20 000 packets here, a million by `make differential`.

Also what makes that worth something: the driver's builders agree with scapy, and the driver finds, shortens and
replays a planted fault.
"""

from __future__ import annotations

import importlib
import os
import random
import sys
from ipaddress import ip_address
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

import differential
import packets as p

PACKETS = 20_000
SEQUENCES = PACKETS // differential.SEQUENCE


@pytest.fixture(scope="module")
def both() -> tuple[str, ...]:
    """Name the backends to compare. A missing extension fails, unless the caller said that it is missing on purpose."""
    try:
        importlib.import_module("lb.backends.rust")
    except Exception as missing:
        if os.environ.get("FLOWLB_PURE_PYTHON_TESTS") == "1":
            pytest.skip("FLOWLB_PURE_PYTHON_TESTS=1: the Rust extension is left out")
        pytest.fail(f"the Rust extension is not there ({missing}); install the package")
    return differential.BACKENDS


@settings(
    max_examples=SEQUENCES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(seed=st.integers(min_value=0, max_value=2**63 - 1))
def test_backends_drawn_sequences_agree(both: tuple[str, ...], seed: int) -> None:
    """
    Equal output, counters and flows, and right checksums by scapy in every forwarded packet (rule 8.20, translation,
    and rule 21.1, secrets and seeds).
    """
    differential.sequence(seed, differential.SEQUENCE, both, scapy_share=1.0)


def test_generator_reaches_every_kind_of_outcome() -> None:
    """The sequences are worth their time: most reasons come up within 20 000 packets."""
    outcomes = differential.run(PACKETS, 1, ("python",))
    assert outcomes["forward"] > PACKETS // 10
    assert len(outcomes) >= 55, sorted(outcomes)


def test_generator_same_seed_same_sequence() -> None:
    """A seed names one run."""
    assert differential.run(500, 7, ("python",)) == differential.run(500, 7, ("python",))


def test_driver_finds_shortens_and_replays_a_planted_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that answers once otherwise is found out, and the reproducer still shows it."""
    python = importlib.import_module("lb.backends.python")

    class Faulty(python.DataPath):  # type: ignore[misc]
        def process(self, frame: bytes, interface: int, now_ns: int, offload: Any = None) -> Any:
            if offload is None and len(frame) > 1000:
                frame = frame[:-1] + bytes([frame[-1] ^ 1])
            return super().process(frame, interface, now_ns, offload)

    module = ModuleType("lb.backends.faulty")
    module.DataPath = Faulty  # type: ignore[attr-defined]
    module.capabilities = python.capabilities  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lb.backends.faulty", module)
    with pytest.raises(differential.DisagreementError) as found:
        differential.run(5000, 3, ("python", "faulty"))
    message = str(found.value)
    reproducer = message[message.index('{"setup"') :]
    assert reproducer.count('["frame"') < 10
    assert differential.replay(reproducer, ("python", "faulty"))
    assert differential.replay(reproducer, ("python", "python")) is None


def test_driver_sees_a_wrong_checksum() -> None:
    """The invariant about checksums can fail."""
    pair = differential.Pair({}, ("python",), 1.0)
    src, dst = ip_address("198.18.1.21").packed, ip_address("198.18.1.31").packed
    frame = bytearray(p.ether(bytes(6), bytes(6), p.ip4(src, dst, p.UDP, p.udp(src, dst, 1, 2, b"data"))))
    pair._right(bytes(frame))
    frame[-1] ^= 1
    with pytest.raises(differential.DisagreementError):
        pair._right(bytes(frame))


def addresses(version: int) -> tuple[str, str]:
    """Return a source and a destination."""
    return ("198.18.1.21", "198.18.1.100") if version == 4 else ("2001:2:0:1::21", "2001:2:0:1::100")


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [0, 1, 2, 999])
def test_builders_equal_scapy(version: int, size: int) -> None:
    """The quick builders make the frames that scapy makes."""
    src, dst = addresses(version)
    a, b = ip_address(src).packed, ip_address(dst).packed
    data = random.Random(size).randbytes(size)
    ip: Any = IP(src=src, dst=dst, ttl=9, id=77, flags="DF") if version == 4 else IPv6(src=src, dst=dst, hlim=9)

    def wrap(protocol: int, l4: bytes) -> bytes:
        packet = p.ip4(a, b, protocol, l4, 9, 77, p.DF) if version == 4 else p.ip6(a, b, protocol, l4, 9)
        return p.ether(b"\xaa" * 6, b"\xba" * 6, packet, b"\x81\x00\x00\x05")

    head = Ether(dst="aa:aa:aa:aa:aa:aa", src="ba:ba:ba:ba:ba:ba") / Dot1Q(vlan=5)
    segment = TCP(sport=5, dport=6, seq=7, ack=8, flags="PA", options=[("MSS", 1460)])
    assert bytes(head / ip / segment / Raw(data)) == wrap(
        p.TCP, p.tcp(a, b, 5, 6, 7, 8, 0x18, data, b"\x02\x04\x05\xb4")
    )
    assert bytes(head / ip / UDP(sport=5, dport=6) / Raw(data)) == wrap(p.UDP, p.udp(a, b, 5, 6, data))
    if version == 4:
        message: Any = ICMP(type=3, code=1) / Raw(data)
        assert bytes(head / ip / message) == wrap(p.ICMP, p.icmp(a, b, 3, 1, bytes(4) + data))
    else:
        message = ICMPv6DestUnreach(code=1) / Raw(data)
        assert bytes(head / ip / message) == wrap(p.ICMP6, p.icmp(a, b, 1, 1, bytes(4) + data))


@pytest.mark.parametrize("version", [4, 6])
def test_checksum_checks_agree_with_scapy(version: int) -> None:
    """The quick check of checksums says what scapy's says, for right and for spoilt packets."""
    src, dst = (ip_address(text).packed for text in addresses(version))
    rng = random.Random(5)
    for _ in range(200):
        l4 = (
            p.udp(src, dst, 1, 2, rng.randbytes(rng.randrange(40)))
            if rng.random() < 0.5
            else p.tcp(src, dst, 1, 2, 3, 4, 16, rng.randbytes(9))
        )
        protocol = p.UDP if l4[4:6] == len(l4).to_bytes(2, "big") else p.TCP
        packet = p.ip4(src, dst, protocol, l4) if version == 4 else p.ip6(src, dst, protocol, l4)
        seen = p.look(p.ether(bytes(6), bytes(6), packet))
        assert seen is not None
        assert p.l4_right(seen) is True
        assert p.l4_right_by_scapy(seen) is True
        spoilt = seen._replace(l4=l4[:-1] + bytes([l4[-1] ^ 1]))
        assert p.l4_right(spoilt) is False
        assert p.l4_right_by_scapy(spoilt) is False


def test_known_sums() -> None:
    """RFC 1071 section 3: the example's sum, and that the sum of zeros is zero."""
    assert p.word_sum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2
    assert p.word_sum(b"\xff\xff") == 0xFFFF
    assert p.word_sum(bytes(4)) == 0
    assert p.checksum(b"\x01") == 0xFEFF
