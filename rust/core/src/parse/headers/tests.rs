//! What is read from frames, and which are refused.

use super::*;
use crate::parse::{L2Header, plain_ipv4};
use crate::wire::checksum;
use crate::wire::ethernet::ethertype;
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;

fn udp_v4(payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([192, 0, 2, 1], [198, 51, 100, 2], 9)
        .udp(7, 53);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

#[test]
fn parse_udp_reads_every_field() {
    let headers = parse(&udp_v4(b"xyz"));
    let expected = Headers {
        ethertype: 0x0800,
        l3_offset: 14,
        l4_offset: 34,
        payload_offset: 42,
        source: vec![192, 0, 2, 1],
        destination: vec![198, 51, 100, 2],
        protocol: 17,
        ttl: 9,
        source_port: 7,
        destination_port: 53,
        total_len: 31,
        ..Headers::default()
    };
    assert_eq!(headers, expected);
}

/// Rule 3.4, VLAN tags: two tags are read, a third is refused, a cut one is truncated.
#[test]
fn parse_vlan_tags_table() {
    let plain = udp_v4(b"");
    let tagged = |tags: &[[u8; 4]]| [&plain[..12], &tags.concat(), &plain[12..]].concat();
    let two = parse(&tagged(&[[0x88, 0xa8, 0, 5], [0x81, 0, 0x20, 6]]));
    assert_eq!(
        (two.reason, two.vlans, two.l3_offset, two.ethertype),
        (None, vec![5, 0x2006], 22, 0x0800)
    );
    let three = parse(&tagged(&[[0x81, 0, 0, 5]; 3]));
    assert_eq!(
        (three.reason, three.vlans, three.ethertype),
        (Some(Reason::VlanDepth), vec![5, 5], 0)
    );
    let cut = parse(&tagged(&[[0x81, 0, 0, 5]; 2])[..21]);
    assert_eq!(
        (cut.reason, cut.vlans),
        (Some(Reason::FrameTruncated), vec![5])
    );
}

/// Rule 5, IP headers: each failure of an IPv4 header has a reason of its own.
#[test]
fn parse_ipv4_validity_table() {
    fn with(change: impl Fn(&mut Vec<u8>)) -> Option<Reason> {
        let mut frame = udp_v4(b"xyz");
        change(&mut frame);
        parse(&frame).reason
    }
    fn correct_checksums(frame: &mut [u8]) {
        let len = usize::from(frame[14] & 15) * 4;
        frame[24..26].fill(0);
        let right = checksum::checksum(&frame[14..14 + len]);
        frame[24..26].copy_from_slice(&right.to_be_bytes());
    }
    assert_eq!(with(|_| ()), None);
    assert_eq!(
        with(|frame| frame.truncate(13)),
        Some(Reason::FrameTruncated)
    );
    assert_eq!(with(|frame| frame.truncate(33)), Some(Reason::IpTruncated));
    assert_eq!(with(|frame| frame[14] = 0x55), Some(Reason::IpVersion));
    assert_eq!(with(|frame| frame[14] = 0x44), Some(Reason::IpHeaderLength));
    assert_eq!(with(|frame| frame[14] = 0x4f), Some(Reason::IpTruncated));
    assert_eq!(with(|frame| frame[24] ^= 1), Some(Reason::IpChecksum));
    assert_eq!(
        with(|frame| {
            frame[17] = 19;
            correct_checksums(frame);
        }),
        Some(Reason::IpTotalLength)
    );
    assert_eq!(with(|frame| frame.truncate(44)), Some(Reason::IpTruncated));
}

/// Rule 5, IP headers: padding beyond the total length is not data.
#[test]
fn parse_padded_frame_ends_at_total_length() {
    let mut frame = udp_v4(b"");
    frame.resize(60, 0);
    assert_eq!((parse(&frame).reason, parse(&frame).total_len), (None, 28));
}

proptest! {
    #[test]
    fn parse_any_bytes_never_panics(frame in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&frame);
    }

    /// The short way finds what the long one finds, or nothing; a frame that any byte was changed in is mostly
    /// refused by both.
    #[test]
    fn plain_ipv4_what_it_accepts_equals_layers(
        payload in proptest::collection::vec(any::<u8>(), 0..40),
        padding in 0usize..20,
        changes in proptest::collection::vec((12usize..36, any::<u8>()), 0..3),
        corrected: bool,
        len in 0usize..100,
    ) {
        let mut frame = udp_v4(&payload);
        frame.resize(frame.len() + padding, 0);
        for (at, byte) in changes {
            frame[at] = byte;
        }
        if corrected {
            frame[24..26].fill(0);
            let right = checksum::checksum(&frame[14..34]);
            frame[24..26].copy_from_slice(&right.to_be_bytes());
        }
        frame.truncate(frame.len().max(len));
        let (mut short, mut long) = (L2Header { ethertype: 0, l3: 0 }, IpHeader::EMPTY);
        if plain_ipv4(&frame, &mut short, &mut long) {
            let mut layers = IpHeader::EMPTY;
            let l2 = l2(&frame, |_| ()).unwrap();
            prop_assert_eq!((short, ip(&frame, l2, &mut layers)), (l2, Ok(true)));
            prop_assert_eq!((long, inner_headers(&frame, &mut layers)), (layers, Ok(())));
        } else {
            let headers = parse(&frame);
            let is_plain = headers.reason.is_none() && headers.l4_offset == 34 && headers.ethertype == ethertype::IPV4;
            prop_assert!(!is_plain || headers.more_fragments || headers.fragment_offset != 0);
        }
    }

    /// An independent parser reads the same, whenever both accept the frame.
    #[test]
    fn parse_tcp_agrees_with_etherparse(
        v6: bool,
        ttl: u8,
        ports: (u16, u16),
        seq: u32,
        ack: u32,
        payload in proptest::collection::vec(any::<u8>(), 0..40),
        mutate in proptest::option::of((14usize..54, any::<u8>())),
    ) {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let builder = if v6 {
            builder.ipv6([1; 16], [2; 16], ttl)
        } else {
            builder.ipv4([192, 0, 2, 1], [198, 51, 100, 2], ttl)
        };
        let mut frame = Vec::new();
        builder.tcp(ports.0, ports.1, seq, 1000).ack(ack).write(&mut frame, &payload).unwrap();
        if let Some((at, bits)) = mutate {
            frame[at] ^= bits;
        }
        let headers = parse(&frame);
        prop_assume!(headers.reason.is_none() && headers.fragment_offset == 0 && headers.payload_offset != 0);
        let oracle = SlicedPacket::from_ethernet(&frame).unwrap();
        match oracle.net {
            Some(NetSlice::Ipv4(ip)) => {
                prop_assert_eq!(ip.header().source().to_vec(), headers.source);
                prop_assert_eq!(ip.header().ttl(), headers.ttl);
            }
            Some(NetSlice::Ipv6(ip)) => {
                prop_assert_eq!(ip.header().source().to_vec(), headers.source);
                prop_assert_eq!(ip.header().hop_limit(), headers.ttl);
            }
            _ => prop_assert!(false, "no IP: {:?}", headers),
        }
        match oracle.transport {
            Some(TransportSlice::Tcp(tcp)) => {
                let expected = (tcp.source_port(), tcp.destination_port());
                prop_assert_eq!(expected, (headers.source_port, headers.destination_port));
                let end = 14 + headers.total_len + 4 * headers.vlans.len();
                prop_assert_eq!(tcp.payload().len(), end - headers.payload_offset);
            }
            Some(TransportSlice::Udp(udp)) => prop_assert_eq!(udp.source_port(), headers.source_port),
            other => prop_assert!(headers.more_fragments, "{other:?}"),
        }
    }
}
