//! From a frame to what its headers say, one layer at a time: rules 3, 5, 6.5 and 7 as far as they need neither snapshot nor state.
//!
//! Each function reads one layer and gives the reason when it is malformed. The pipeline calls them with its own tests in between; [`parse`] calls them in a
//! row, for benches and for teaching. They write what they find where it stays, and are inlined: a returned struct would be copied by its caller right after it was
//! written, with loads of other widths than the stores before them, and wait for these. Everything found here fits the frame: later stages follow offsets without checking them again, except where the frame
//! itself says otherwise.

mod inner;

use crate::base::{Reason, is_v4};
use crate::wire::ethernet::{self, ethertype};
use crate::wire::segment::{MOST_SCALE, NO_SCALE, Segment};
use crate::wire::{checksum, ipv4, ipv6, protocol, tcp, udp};

pub use inner::{InnerPacket, inner_destination, inner_packet};

const MOST_TAGS: usize = 2;

/// The Ethernet header and its tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// After the tags.
    pub ethertype: u16,
    /// Offset of what follows.
    pub l3: usize,
}

/// What a fragment says about its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Names the datagram: 16 bits in IPv4, 32 in IPv6.
    pub identification: u32,
    /// Bytes.
    pub offset: u32,
    /// Whether more follow.
    pub more: bool,
    /// What all fragments of the datagram name: the protocol of IPv4, the next header of IPv6's fragment header.
    pub protocol: u8,
}

/// The IP header, and the options or extension headers behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// IPv4, else IPv6.
    pub v4: bool,
    /// As a number (IPv4-mapped).
    pub source: u128,
    /// As a number (IPv4-mapped).
    pub destination: u128,
    /// TTL or hop limit.
    pub ttl: u8,
    /// The L4 protocol. Before [`inner_headers`] of IPv6: the first next header.
    pub protocol: u8,
    /// Offset of the IP header.
    pub l3: usize,
    /// Offset of what follows the IP header(s). Before [`inner_headers`] of IPv6: of the first extension header.
    pub l4: usize,
    /// Offset of the packet's end; padding follows.
    pub end: usize,
    /// Set for a packet that is a part of a datagram.
    pub fragment: Option<Fragment>,
}

impl Ip {
    /// Nothing read yet.
    pub const EMPTY: Self = Self {
        v4: false,
        source: 0,
        destination: 0,
        ttl: 0,
        protocol: 0,
        l3: 0,
        l4: 0,
        end: 0,
        fragment: None,
    };

    /// Bytes of the IP packet.
    #[inline]
    #[must_use]
    pub const fn total_len(&self) -> usize {
        self.end - self.l3
    }

    /// Whether it is a fragment without the L4 header.
    #[inline]
    #[must_use]
    pub fn is_later_fragment(&self) -> bool {
        self.fragment.is_some_and(|fragment| fragment.offset != 0)
    }
}

/// A TCP or UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Port it comes from.
    pub source_port: u16,
    /// Port it goes to.
    pub destination_port: u16,
    /// Offset of the data.
    pub payload: usize,
    /// What the TCP state machine reads; `None` for UDP.
    pub segment: Option<Segment>,
}

impl Transport {
    /// Nothing read yet.
    pub const EMPTY: Self = Self {
        source_port: 0,
        destination_port: 0,
        payload: 0,
        segment: None,
    };
}

/// Read the Ethernet header and up to two tags (rules 3.1, 3.4). `on_tag` gets each tag's TCI.
///
/// # Errors
/// `FrameTruncated`, `VlanDepth`.
#[inline(always)]
pub fn link(frame: &[u8], mut on_tag: impl FnMut(u16)) -> Result<Link, Reason> {
    let header = ethernet::Frame::new(frame).ok_or(Reason::FrameTruncated)?;
    let mut link = Link {
        ethertype: header.ethertype(),
        l3: ethernet::LEN,
    };
    let mut tags = 0;
    while ethernet::is_tag(link.ethertype) {
        if tags == MOST_TAGS {
            return Err(Reason::VlanDepth);
        }
        let tag = frame
            .get(link.l3..)
            .and_then(<[u8]>::first_chunk::<{ ethernet::TAG_LEN }>);
        let &[high, low, type_high, type_low] = tag.ok_or(Reason::FrameTruncated)?;
        on_tag(u16::from_be_bytes([high, low]));
        link.ethertype = u16::from_be_bytes([type_high, type_low]);
        link.l3 += ethernet::TAG_LEN;
        tags += 1;
    }
    Ok(link)
}

/// Read what nearly every frame starts with in a few comparisons: no tags, IPv4 without options, not a fragment. `false`: it is not that, or it is malformed, and
/// what was written means nothing; [`link`] and [`ip`], which find the same in what is accepted here, are to be asked.
#[inline(always)]
pub fn plain_ipv4(frame: &[u8], link: &mut Link, ip: &mut Ip) -> bool {
    const START: usize = ethernet::LEN;
    const END: usize = START + ipv4::LEN;
    let Some(start) = frame.first_chunk::<END>() else {
        return false;
    };
    let Some(header) = ipv4::Header::new(&start[START..]) else {
        return false;
    };
    let &[.., type_high, type_low, version_len, _] = start.first_chunk::<16>().unwrap_or(&[0; 16]);
    let total_len = usize::from(header.total_len());
    let is_plain = [type_high, type_low, version_len] == [8, 0, 0x45]
        && header.flags_offset() & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK) == 0
        && total_len >= ipv4::LEN
        && START + total_len <= frame.len();
    if !is_plain || !header.is_right() {
        return false;
    }
    *link = Link {
        ethertype: ethertype::IPV4,
        l3: START,
    };
    *ip = Ip {
        v4: true,
        source: header.source(),
        destination: header.destination(),
        ttl: header.ttl(),
        protocol: header.protocol(),
        l3: START,
        l4: END,
        end: START + total_len,
        fragment: None,
    };
    true
}

/// Read the fixed IP header (rule 5, validity) into `ip`. `false` when the `EtherType` is not IP.
///
/// # Errors
/// `IpTruncated`, `IpVersion`, `IpHeaderLength`, `IpChecksum`, `IpTotalLength`.
#[inline(always)]
pub fn ip(frame: &[u8], link: Link, ip: &mut Ip) -> Result<bool, Reason> {
    let packet = frame.get(link.l3..).unwrap_or_default();
    match link.ethertype {
        ethertype::IPV4 => ip_v4(packet, link.l3, ip)?,
        ethertype::IPV6 => ip_v6(packet, link.l3, ip)?,
        _ => return Ok(false),
    }
    Ok(true)
}

#[inline(always)]
fn ip_v4(packet: &[u8], l3: usize, ip: &mut Ip) -> Result<(), Reason> {
    let header = ipv4::Header::new(packet).ok_or(Reason::IpTruncated)?;
    if header.version() != 4 {
        return Err(Reason::IpVersion);
    }
    let header_len = header.header_len();
    if header_len < ipv4::LEN {
        return Err(Reason::IpHeaderLength);
    }
    let header_bytes = packet.get(..header_len).ok_or(Reason::IpTruncated)?;
    let sum = match header_bytes.try_into() {
        Ok(plain) => checksum::sum20(plain),
        Err(_) => checksum::sum(header_bytes),
    };
    if sum != 0xffff {
        return Err(Reason::IpChecksum);
    }
    let total_len = usize::from(header.total_len());
    if total_len < header_len {
        return Err(Reason::IpTotalLength);
    }
    if total_len > packet.len() {
        return Err(Reason::IpTruncated);
    }
    let flags_offset = header.flags_offset();
    let is_fragment = flags_offset & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK) != 0;
    *ip = Ip {
        v4: true,
        source: header.source(),
        destination: header.destination(),
        ttl: header.ttl(),
        protocol: header.protocol(),
        l3,
        l4: l3 + header_len,
        end: l3 + total_len,
        fragment: is_fragment.then(|| Fragment {
            identification: u32::from(header.identification()),
            offset: u32::from(flags_offset & ipv4::OFFSET_MASK) * 8,
            more: flags_offset & ipv4::MORE_FRAGMENTS != 0,
            protocol: header.protocol(),
        }),
    };
    Ok(())
}

#[inline]
fn ip_v6(packet: &[u8], l3: usize, ip: &mut Ip) -> Result<(), Reason> {
    let header = ipv6::Header::new(packet).ok_or(Reason::IpTruncated)?;
    if header.version() != 6 {
        return Err(Reason::IpVersion);
    }
    let total_len = ipv6::LEN + usize::from(header.payload_len());
    if total_len > packet.len() {
        return Err(Reason::IpTruncated);
    }
    *ip = Ip {
        v4: false,
        source: header.source(),
        destination: header.destination(),
        ttl: header.hop_limit(),
        protocol: header.next_header(),
        l3,
        l4: l3 + ipv6::LEN,
        end: l3 + total_len,
        fragment: None,
    };
    Ok(())
}

/// Read IPv4 options or IPv6 extension headers (rule 5.8). Completes `ip`.
///
/// # Errors
/// `IpOptions`, `SourceRoute`; `ExtHeader`, `ExtHeaderLimit`, `RoutingHeader`, `IpTruncated`.
#[inline(never)]
pub fn inner_headers(frame: &[u8], ip: &mut Ip) -> Result<(), Reason> {
    if ip.v4 {
        return ipv4::check_options(frame.get(ip.l3 + ipv4::LEN..ip.l4).unwrap_or_default());
    }
    let walk = ipv6::walk_extensions(ip.protocol, frame.get(ip.l4..ip.end).unwrap_or_default())?;
    ip.protocol = walk.protocol;
    ip.l4 += walk.len;
    ip.fragment = walk
        .fragment
        .filter(|fragment| fragment.more || fragment.offset != 0)
        .map(|fragment| Fragment {
            identification: fragment.identification,
            offset: fragment.offset,
            more: fragment.more,
            protocol: fragment.protocol,
        });
    Ok(())
}

/// Judge the size of a fragment that holds, or cuts, an L4 header (rule 6.5).
///
/// # Errors
/// `FragmentTiny`, `TcpDataOffset`.
pub fn tiny_fragment(frame: &[u8], ip: &Ip) -> Result<(), Reason> {
    let Some(fragment) = ip.fragment else {
        return Ok(());
    };
    let bytes = frame.get(ip.l4..ip.end).unwrap_or_default();
    match (ip.protocol, fragment.offset) {
        (protocol::TCP, 0) => {
            let header_len = tcp::Header::new(bytes)
                .ok_or(Reason::FragmentTiny)?
                .header_len();
            if header_len < tcp::LEN {
                return Err(Reason::TcpDataOffset);
            }
            if header_len > bytes.len() {
                Err(Reason::FragmentTiny)
            } else {
                Ok(())
            }
        }
        (protocol::TCP, 8) => Err(Reason::FragmentTiny),
        (protocol::UDP, 0) if bytes.len() < udp::LEN => Err(Reason::FragmentTiny),
        _ => Ok(()),
    }
}

/// Read the TCP or UDP header of a whole packet or a first fragment (rule 7) into `transport`. `false` for other protocols and later fragments. `partial`: the checksum is still
/// to be finished.
///
/// # Errors
/// `L4Truncated`, `TcpDataOffset`, `TcpFlags`, `UdpLength`, `UdpChecksumZero`, `PortZero`.
#[inline(always)]
pub fn transport(
    frame: &[u8],
    ip: &Ip,
    partial: bool,
    transport: &mut Transport,
) -> Result<bool, Reason> {
    if ip.is_later_fragment() {
        return Ok(false);
    }
    // The headers before it were found to fit.
    let Some(bytes) = frame.get(ip.l4..ip.end) else {
        return Ok(false);
    };
    match ip.protocol {
        protocol::TCP => transport_tcp(bytes, ip, transport)?,
        protocol::UDP => transport_udp(bytes, ip, partial, transport)?,
        _ => return Ok(false),
    }
    if transport.source_port == 0 || transport.destination_port == 0 {
        return Err(Reason::PortZero);
    }
    Ok(true)
}

#[inline(always)]
fn transport_tcp(bytes: &[u8], ip: &Ip, transport: &mut Transport) -> Result<(), Reason> {
    let header = tcp::Header::new(bytes).ok_or(Reason::L4Truncated)?;
    let header_len = header.header_len();
    if header_len < tcp::LEN || header_len > bytes.len() {
        return Err(Reason::TcpDataOffset);
    }
    let flags = header.flags();
    if tcp::is_nonsense(flags) {
        return Err(Reason::TcpFlags);
    }
    let payload_len = bytes.len() - header_len;
    let scale = if flags & tcp::flag::SYN == 0 {
        NO_SCALE
    } else {
        tcp::window_scale(&bytes[tcp::LEN..header_len])
            .map_or(NO_SCALE, |shift| shift.min(MOST_SCALE))
    };
    *transport = Transport {
        source_port: header.source_port(),
        destination_port: header.destination_port(),
        payload: ip.l4 + header_len,
        segment: Some(
            Segment::new(
                header.sequence(),
                header.acknowledgement(),
                flags,
                payload_len,
            )
            .with_window(header.window(), scale),
        ),
    };
    Ok(())
}

#[inline(always)]
fn transport_udp(
    bytes: &[u8],
    ip: &Ip,
    partial: bool,
    transport: &mut Transport,
) -> Result<(), Reason> {
    let header = udp::Header::new(bytes).ok_or(Reason::L4Truncated)?;
    let length = usize::from(header.length());
    if length < udp::LEN || (ip.fragment.is_none() && length > bytes.len()) {
        return Err(Reason::UdpLength);
    }
    if !ip.v4 && !partial && header.checksum() == 0 {
        return Err(Reason::UdpChecksumZero);
    }
    *transport = Transport {
        source_port: header.source_port(),
        destination_port: header.destination_port(),
        payload: ip.l4 + udp::LEN,
        segment: None,
    };
    Ok(())
}

/// What [`parse`] reads from one frame (rule 14). Fields that were not reached are 0 or empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// Why the frame is malformed; `None` when it is not.
    pub reason: Option<Reason>,
    /// After the tags; 0 when a tag is cut short or a third is met.
    pub ethertype: u16,
    /// TCI of each tag, outermost first.
    pub vlans: Vec<u16>,
    /// Offset of the IP header.
    pub l3_offset: usize,
    /// Offset of what follows the IP header(s), in later fragments too.
    pub l4_offset: usize,
    /// Offset of the data of TCP and UDP.
    pub payload_offset: usize,
    /// 4 or 16 bytes, network order.
    pub source: Vec<u8>,
    /// 4 or 16 bytes, network order.
    pub destination: Vec<u8>,
    /// L4 protocol.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TCP and UDP.
    pub source_port: u16,
    /// TCP and UDP.
    pub destination_port: u16,
    /// All eight.
    pub tcp_flags: u8,
    /// Bytes.
    pub fragment_offset: u32,
    /// MF.
    pub more_fragments: bool,
    /// Bytes of the IP packet.
    pub total_len: usize,
}

/// Read one frame without snapshot, state or offload (rule 14).
#[must_use]
pub fn parse(frame: &[u8]) -> Headers {
    let mut headers = Headers::default();
    headers.reason = read_all(frame, &mut headers).err();
    headers
}

fn read_all(frame: &[u8], headers: &mut Headers) -> Result<(), Reason> {
    let vlans = &mut headers.vlans;
    let link = link(frame, |tag| vlans.push(tag))?;
    headers.ethertype = link.ethertype;
    let mut found = Ip::EMPTY;
    if !ip(frame, link, &mut found)? {
        return Ok(());
    }
    let mut ip = found;
    headers.l3_offset = ip.l3;
    headers.source = address_bytes(ip.v4, ip.source);
    headers.destination = address_bytes(ip.v4, ip.destination);
    headers.ttl = ip.ttl;
    headers.total_len = ip.total_len();
    inner_headers(frame, &mut ip)?;
    headers.l4_offset = ip.l4;
    headers.protocol = ip.protocol;
    headers.fragment_offset = ip.fragment.map_or(0, |fragment| fragment.offset);
    headers.more_fragments = ip.fragment.is_some_and(|fragment| fragment.more);
    tiny_fragment(frame, &ip)?;
    let mut found = Transport::EMPTY;
    if !transport(frame, &ip, false, &mut found)? {
        return Ok(());
    }
    let transport = found;
    headers.source_port = transport.source_port;
    headers.destination_port = transport.destination_port;
    headers.tcp_flags = transport.segment.map_or(0, |segment| segment.flags);
    headers.payload_offset = transport.payload;
    Ok(())
}

fn address_bytes(v4: bool, address: u128) -> Vec<u8> {
    debug_assert!(!v4 || is_v4(address), "an IPv4 address is mapped");
    let bytes = address.to_be_bytes();
    if v4 {
        bytes[12..].to_vec()
    } else {
        bytes.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    /// behaviour 25: two tags are read, a third is refused, a cut one is truncated.
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

    /// behaviour 10: each failure of an IPv4 header has a reason of its own.
    #[test]
    fn parse_ipv4_validity_table() {
        fn with(change: impl Fn(&mut Vec<u8>)) -> Option<Reason> {
            let mut frame = udp_v4(b"xyz");
            change(&mut frame);
            parse(&frame).reason
        }
        fn mend(frame: &mut [u8]) {
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
                mend(frame);
            }),
            Some(Reason::IpTotalLength)
        );
        assert_eq!(with(|frame| frame.truncate(44)), Some(Reason::IpTruncated));
    }

    /// behaviour 10: padding beyond the total length is not data.
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

        /// The short way finds what the long one finds, or nothing; a frame that any byte was changed in is mostly refused by both.
        #[test]
        fn plain_ipv4_what_it_accepts_equals_layers(payload in proptest::collection::vec(any::<u8>(), 0..40), padding in 0usize..20, changes in proptest::collection::vec((12usize..36, any::<u8>()), 0..3), mend: bool, len in 0usize..100) {
            let mut frame = udp_v4(&payload);
            frame.resize(frame.len() + padding, 0);
            for (at, byte) in changes {
                frame[at] = byte;
            }
            if mend {
                frame[24..26].fill(0);
                let right = checksum::checksum(&frame[14..34]);
                frame[24..26].copy_from_slice(&right.to_be_bytes());
            }
            frame.truncate(frame.len().max(len));
            let (mut short, mut long) = (Link { ethertype: 0, l3: 0 }, Ip::EMPTY);
            if plain_ipv4(&frame, &mut short, &mut long) {
                let mut layers = Ip::EMPTY;
                let link = link(&frame, |_| ()).unwrap();
                prop_assert_eq!((short, ip(&frame, link, &mut layers)), (link, Ok(true)));
                prop_assert_eq!((long, inner_headers(&frame, &mut layers)), (layers, Ok(())));
            } else {
                let headers = parse(&frame);
                let is_plain = headers.reason.is_none() && headers.l4_offset == 34 && headers.ethertype == ethertype::IPV4;
                prop_assert!(!is_plain || headers.more_fragments || headers.fragment_offset != 0);
            }
        }

        /// An independent parser reads the same, whenever both accept the frame.
        #[test]
        fn parse_tcp_agrees_with_etherparse(v6: bool, ttl: u8, ports: (u16, u16), seq: u32, ack: u32, payload in proptest::collection::vec(any::<u8>(), 0..40), mutate in proptest::option::of((14usize..54, any::<u8>()))) {
            let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
            let builder = if v6 { builder.ipv6([1; 16], [2; 16], ttl) } else { builder.ipv4([192, 0, 2, 1], [198, 51, 100, 2], ttl) };
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
                    prop_assert_eq!((tcp.source_port(), tcp.destination_port()), (headers.source_port, headers.destination_port));
                    prop_assert_eq!(tcp.payload().len(), 14 + headers.total_len + 4 * headers.vlans.len() - headers.payload_offset);
                }
                Some(TransportSlice::Udp(udp)) => prop_assert_eq!(udp.source_port(), headers.source_port),
                other => prop_assert!(headers.more_fragments, "{other:?}"),
            }
        }
    }
}
