"""Ethernet and VLAN: what is a frame for us (docs/rules.md rule 3, Ethernet and VLAN)."""

from __future__ import annotations

from scene import (
    BOTH,
    CLIENT_MAC,
    ROUTER_MAC,
    ROUTER_MAC_1,
    STRANGER,
    V4,
    Case,
    Talk,
    ether,
    service_tag,
    tag,
    tcp,
    two_interfaces,
    udp,
)


def cases() -> list[Case]:
    """Make the cases."""
    return [_truncated(), *_addresses(), *_other_protocols(), *_tags(), *_padding()]


def _truncated() -> Case:
    case = Case("a frame shorter than its Ethernet header is dropped", ["3"])
    case.drop(b"", "frame_truncated")
    case.drop(Talk(case, V4).c_in(tcp("S", 1))[:13], "frame_truncated")
    return case


def _addresses() -> list[Case]:
    made = []
    for f in BOTH:
        case = Case(f"our own transmission read back is dropped, IPv{f.version}", ["3"])
        case.drop(Talk(case, f, mac=ROUTER_MAC).c_in(tcp("S", 1)), "own_frame")
        made.append(case)
        case = Case(f"a source MAC with the group bit is dropped, IPv{f.version}", ["3"])
        case.drop(Talk(case, f, mac="ab:aa:aa:00:00:21").c_in(tcp("S", 1)), "bad_source_mac")
        made.append(case)
        case = Case(f"a frame for another MAC is ignored, IPv{f.version}", ["3"])
        case.drop(Talk(case, f).c_in(tcp("S", 1), dst_mac=STRANGER), "not_for_us")
        made.append(case)
        case = Case(f"an IP unicast in an Ethernet broadcast or multicast is dropped, IPv{f.version}", ["3"])
        case.drop(Talk(case, f).c_in(tcp("S", 1), dst_mac="ff:ff:ff:ff:ff:ff"), "l2_broadcast")
        case.drop(Talk(case, f, "udp").c_in(udp(b"x"), dst_mac="01:00:5e:00:00:01"), "l2_broadcast")
        made.append(case)
    case = Case("a frame for the MAC of another interface of ours is not for us", ["3"], **two_interfaces())
    case.drop(Talk(case, V4).c_in(tcp("S", 1), dst_mac=ROUTER_MAC_1), "not_for_us")
    made.append(case)
    return made


def _other_protocols() -> list[Case]:
    case = Case("protocols that are neither ARP nor IP are left to the host", ["3"])
    case.passes(ether(CLIENT_MAC, "01:80:c2:00:00:0e", b"\x02\x07" + bytes(44), 0x88CC))
    case.passes(ether(CLIENT_MAC, ROUTER_MAC, bytes(46), 0x9000))
    case.passes(ether(CLIENT_MAC, ROUTER_MAC, bytes(46), 0x88CC, (tag(5),)))
    return [case]


def _tags() -> list[Case]:
    made = []
    for f in BOTH:
        case = Case(f"a VLAN tag stays on the packets of a flow, both ways, IPv{f.version}", ["3.4"])
        talk = Talk(case, f, tags=(tag(42),))
        talk.open()
        made.append(case)
        case = Case(f"two VLAN tags stay on the packets of a flow, both ways, IPv{f.version}", ["3.4"])
        talk = Talk(case, f, "udp", tags=(service_tag(100), tag(42)))
        talk.c(udp(b"question"))
        talk.s(udp(b"answer"))
        made.append(case)
        case = Case(
            f"a tagged frame that would leave by another interface is dropped, IPv{f.version}",
            ["3.4"],
            **two_interfaces(),
        )
        talk = Talk(case, f, tags=(tag(42),))
        case.drop(talk.c_in(tcp("S", 1)), "vlan", **talk.names)
        made.append(case)
    case = Case("a third VLAN tag is dropped", ["3.4"])
    case.drop(Talk(case, V4, tags=(tag(1), tag(2), tag(3))).c_in(tcp("S", 1)), "vlan_depth")
    made.append(case)
    case = Case("a VLAN tag cut short is dropped", ["3.4"])
    whole = Talk(case, V4, tags=(tag(1), tag(2))).c_in(tcp("S", 1))
    for length in (14, 17, 18, 21):
        case.drop(whole[:length], "frame_truncated")
    made.append(case)
    return made


def _padding() -> list[Case]:
    made = []
    for f in BOTH:
        case = Case(f"Ethernet padding is not data and is not sent on, IPv{f.version}", ["5", "8.20"])
        talk = Talk(case, f)
        syn = talk.c_in(tcp("S", 1000))
        case.forward(syn + b"\xa5" * 20, talk.c_out(tcp("S", 1000)), **talk.names)
        answer = talk.s_in(tcp("SA", 5000, 1001))
        case.forward(answer + bytes(6), talk.s_out(tcp("SA", 5000, 1001)), **talk.reply_names)
        case.forward(talk.c_in(tcp("A", 1001, 5001)) + bytes(6), talk.c_out(tcp("A", 1001, 5001)), **talk.names)
        # Were padding data, the ACK above would have moved the client's sequence to 1007, and this RST would close.
        talk.c(tcp("R", 1007))
        case.flows(talk.flow("established"))
        talk.c(tcp("R", 1001))
        case.flows(talk.flow("closing"))
        made.append(case)
    return made
