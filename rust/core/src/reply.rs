//! Packets we make: ARP and neighbour answers, echo replies, ICMP errors (RFC 792, RFC 4443, RFC 1812 4.3.2),
//! resets (RFC 9293 3.10.7.1).
//!
//! Each goes back to the MAC its cause came from, through the same interface, under the same VLAN tags. Every byte
//! is written: buffers start as zeros, and only the inner packet comes from elsewhere. Whether a reply may be made at
//! all is the pipeline's question, not asked here.

use crate::base::SeqNumber;
use crate::base::{Ip, Mac};
use crate::parse::L2Header;
use crate::wire::segment::Segment;
use crate::wire::tcp::{self, flag};
use crate::wire::{arp, checksum, ethernet, icmp, ipv4, ipv6, protocol};

/// RFC 1812 4.3.2.3: as much of the packet as fits 576 bytes.
const MOST_ERROR_V4: usize = 576;
/// RFC 4443 2.4(c): as much as fits the smallest MTU.
const MOST_ERROR_V6: usize = 1280;
/// Precedence of errors (RFC 1812 4.3.2.5): internetwork control.
const ERROR_TOS: u8 = 0xc0;
const NEIGHBOUR_HOP_LIMIT: u8 = 255;
const HOP_LIMIT: u8 = 64;

/// A frame's Ethernet header and tags, turned around: `body` follows.
fn frame_back(cause: &[u8], l2: L2Header, from: Mac, to: Option<Mac>, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(l2.l3 + body.len());
    frame.extend_from_slice(cause.get(..l2.l3).unwrap_or_default());
    if let Some(mut header) = ethernet::Frame::new_mut(&mut frame) {
        header.set_destination(to.unwrap_or_else(|| source_of(cause)));
        header.set_source(from);
    }
    frame.extend_from_slice(body);
    frame
}

fn source_of(cause: &[u8]) -> Mac {
    ethernet::Frame::new(cause).map_or([0; 6], |header| header.source())
}

/// The answer to an ARP request for `target`.
#[must_use]
pub fn arp_reply(
    cause: &[u8],
    l2: L2Header,
    mac: Mac,
    request: &arp::Arp<&[u8; arp::LEN]>,
) -> Vec<u8> {
    let mut body = [0; arp::LEN];
    if let Some(mut reply) = arp::Arp::new_mut(&mut body) {
        reply.set_reply(
            (mac, request.target()),
            (request.sender_mac(), request.sender()),
        );
    }
    frame_back(cause, l2, mac, None, &body)
}

/// The answer to a neighbour solicitation for `target` from `source`. To the unspecified address it goes to all
/// nodes (RFC 4861 7.2.4).
#[must_use]
pub fn neighbour_advertisement(
    cause: &[u8],
    l2: L2Header,
    mac: Mac,
    source: Ip,
    target: Ip,
) -> Vec<u8> {
    const SOLICITED_OVERRIDE: u32 = 0x6000_0000;
    const OVERRIDE: u32 = 0x2000_0000;
    const ALL_NODES: Ip = Ip::from_bits(0xff02_0000_0000_0000_0000_0000_0000_0001);
    const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];
    let (to, to_mac, flags) = if source == Ip::UNSPECIFIED {
        (ALL_NODES, Some(ALL_NODES_MAC), OVERRIDE)
    } else {
        (source, None, SOLICITED_OVERRIDE)
    };
    let body = icmp::advertisement_body(target, mac);
    let message = icmp_message(
        icmp::message::NEIGHBOUR_ADVERTISEMENT,
        flags,
        &body,
        target,
        to,
    );
    let packet = ip_packet(
        &message,
        protocol::ICMPV6,
        (0, NEIGHBOUR_HOP_LIMIT),
        target,
        to,
    );
    frame_back(cause, l2, mac, to_mac, &packet)
}

/// The answer to an echo request: the bytes after its checksum, sent back from the VIP.
#[must_use]
pub fn echo_reply(
    cause: &[u8],
    l2: L2Header,
    mac: Mac,
    (vip, client): (Ip, Ip),
    request: &[u8],
) -> Vec<u8> {
    let kind = if vip.is_v4() {
        icmp::message::ECHO_REPLY_V4
    } else {
        icmp::message::ECHO_REPLY_V6
    };
    let Some((&[_, _, _, _, a, b, c, d], data)) = request.split_first_chunk::<{ icmp::LEN }>()
    else {
        return Vec::new();
    };
    let message = icmp_message(kind, u32::from_be_bytes([a, b, c, d]), data, vip, client);
    let packet = ip_packet(
        &message,
        icmp::protocol_of(vip.is_v4()),
        (0, HOP_LIMIT),
        vip,
        client,
    );
    frame_back(cause, l2, mac, None, &packet)
}

/// An ICMP error from `own` to `to` that quotes `packet`. `kind`: type and code; `rest`: the four bytes after the
/// checksum.
#[must_use]
pub fn icmp_error(
    cause: &[u8],
    l2: L2Header,
    mac: Mac,
    (own, to): (Ip, Ip),
    (kind, rest): ((u8, u8), u32),
    packet: &[u8],
) -> Vec<u8> {
    let v4 = own.is_v4();
    let (most, tos) = if v4 {
        (MOST_ERROR_V4 - ipv4::LEN - icmp::LEN, ERROR_TOS)
    } else {
        (MOST_ERROR_V6 - ipv6::LEN - icmp::LEN, 0)
    };
    let inner = &packet[..packet.len().min(most)];
    let message = icmp_message(kind, rest, inner, own, to);
    let packet = ip_packet(&message, icmp::protocol_of(v4), (tos, HOP_LIMIT), own, to);
    frame_back(cause, l2, mac, None, &packet)
}

/// A reset from (VIP, port) to (client, port) that answers `segment`.
#[must_use]
pub fn reset(
    cause: &[u8],
    l2: L2Header,
    mac: Mac,
    from: (Ip, u16),
    to: (Ip, u16),
    segment: &Segment,
) -> Vec<u8> {
    let (sequence, acknowledgement, flags) = if segment.has(flag::ACK) {
        (segment.acknowledgement, SeqNumber::ZERO, flag::RST)
    } else {
        (SeqNumber::ZERO, segment.end, flag::RST | flag::ACK)
    };
    let packet = reset_packet(from, to, sequence, (flags, acknowledgement));
    frame_back(cause, l2, mac, None, &packet)
}

/// The IP packet of a reset from (address, port) to (address, port). `flags`: RST, or RST and ACK with what is
/// acknowledged.
#[must_use]
pub fn reset_packet(
    from: (Ip, u16),
    to: (Ip, u16),
    sequence: SeqNumber,
    (flags, acknowledgement): (u8, SeqNumber),
) -> Vec<u8> {
    let mut bytes = [0; tcp::LEN];
    if let Some(mut header) = tcp::Header::new_mut(&mut bytes) {
        header.set_own((from.1, to.1), sequence, acknowledgement, flags);
    }
    let sum = checksum::pseudo_header(from.0, to.0, protocol::TCP, tcp::LEN)
        + u64::from(checksum::sum(&bytes));
    if let Some(mut header) = tcp::Header::new_mut(&mut bytes) {
        header.set_checksum(!checksum::fold(sum));
    }
    ip_packet(&bytes, protocol::TCP, (0, HOP_LIMIT), from.0, to.0)
}

fn icmp_message(kind: (u8, u8), rest: u32, data: &[u8], source: Ip, destination: Ip) -> Vec<u8> {
    let mut message = vec![0; icmp::LEN];
    message.extend_from_slice(data);
    if let Some(mut header) = icmp::Header::new_mut(&mut message) {
        header.set_own(kind, rest);
    }
    let sum = icmp::message_checksum(source, destination, &message);
    if let Some(mut header) = icmp::Header::new_mut(&mut message) {
        header.set_checksum(sum);
    }
    message
}

/// An IP header of ours before `payload`. IPv6 takes the hop limit, IPv4 the TOS: its TTL is always 64.
fn ip_packet(
    payload: &[u8],
    number: u8,
    (tos, hop_limit): (u8, u8),
    source: Ip,
    destination: Ip,
) -> Vec<u8> {
    let len = payload.len() as u16;
    let mut packet = if source.is_v4() {
        let mut packet = vec![0; ipv4::LEN];
        if let Some(mut header) = ipv4::Header::new_mut(&mut packet) {
            header.set_own(
                tos,
                len.saturating_add(ipv4::LEN as u16),
                number,
                source,
                destination,
            );
        }
        packet
    } else {
        let mut packet = vec![0; ipv6::LEN];
        if let Some(mut header) = ipv6::Header::new_mut(&mut packet) {
            header.set_own(len, number, hop_limit, source, destination);
        }
        packet
    };
    packet.extend_from_slice(payload);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Ip;

    const L2: L2Header = L2Header {
        ethertype: 0x0800,
        l3: 18,
    };
    const CAUSE: [u8; 18] = [1, 1, 1, 1, 1, 1, 4, 4, 4, 4, 4, 4, 0x81, 0, 0, 7, 8, 0];

    /// Rule 12.4, packets that we send: quoting stops at 576 bytes, and the frame is right down to its checksums.
    #[test]
    fn icmp_error_long_packet_is_quoted_up_to_576() {
        let kind = (icmp::message::FRAGMENTATION_NEEDED_V4, 1400);
        let frame = icmp_error(
            &CAUSE,
            L2,
            [2; 6],
            (Ip::from_v4(1), Ip::from_v4(2)),
            kind,
            &[7; 1500],
        );
        assert_eq!(frame.len(), 18 + 576);
        assert_eq!(
            frame[..18],
            [4, 4, 4, 4, 4, 4, 2, 2, 2, 2, 2, 2, 0x81, 0, 0, 7, 8, 0]
        );
        assert_eq!((frame[19], checksum::sum(&frame[18..38])), (0xc0, 0xffff));
        assert_eq!(
            (
                &frame[38..40],
                &frame[42..46],
                checksum::checksum(&frame[38..])
            ),
            (&[3, 4][..], &[0, 0, 5, 120][..], 0)
        );
    }

    #[test]
    fn icmp_error_v6_long_packet_is_quoted_up_to_1280() {
        let kind = (icmp::message::PACKET_TOO_BIG_V6, 1280);
        let frame = icmp_error(
            &CAUSE,
            L2,
            [2; 6],
            (Ip::from_bits(5 << 100), Ip::from_bits(6 << 100)),
            kind,
            &[7; 1500],
        );
        assert_eq!(frame.len(), 18 + 1280);
        assert_eq!(
            icmp::message_checksum(
                Ip::from_bits(5 << 100),
                Ip::from_bits(6 << 100),
                &frame[58..]
            ),
            0
        );
    }

    /// Rule 8.18, refusals: the numbers of a reset are those the peer will believe.
    #[test]
    fn reset_table() {
        let cases = [
            (
                Segment::new(100.into(), SeqNumber::ZERO, flag::SYN, 0),
                (0, 101, flag::RST | flag::ACK),
            ),
            (
                Segment::new(100.into(), 900.into(), flag::ACK, 5),
                (900, 0, flag::RST),
            ),
        ];
        for (segment, expected) in cases {
            let frame = reset(
                &CAUSE,
                L2,
                [2; 6],
                (Ip::from_v4(1), 80),
                (Ip::from_v4(2), 4000),
                &segment,
            );
            let header = tcp::Header::new(&frame[38..]).unwrap();
            assert_eq!(
                (
                    header.sequence().get(),
                    header.acknowledgement().get(),
                    header.flags()
                ),
                expected
            );
            assert_eq!(
                (
                    header.source_port(),
                    header.destination_port(),
                    header.window()
                ),
                (80, 4000, 0)
            );
            let sum = checksum::pseudo_header(Ip::from_v4(1), Ip::from_v4(2), 6, 20)
                + u64::from(checksum::sum(&frame[38..]));
            assert_eq!(checksum::fold(sum), 0xffff);
        }
    }
}
