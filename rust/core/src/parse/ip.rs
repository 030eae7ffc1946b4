//! The IP header, and the options or extension headers behind it: rule 5, IP headers, and rule 6.5, tiny fragments.

use super::l2::L2Header;
use crate::base::Ip;
use crate::base::Reason;
use crate::wire::ethernet::{self, ethertype};
use crate::wire::{checksum, ipv4, ipv6, protocol, tcp, udp};

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
pub struct IpHeader {
    /// IPv4, else IPv6.
    pub v4: bool,
    /// As a number (IPv4-mapped).
    pub source: Ip,
    /// As a number (IPv4-mapped).
    pub destination: Ip,
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

impl IpHeader {
    /// Nothing read yet.
    pub const EMPTY: Self = Self {
        v4: false,
        source: Ip::UNSPECIFIED,
        destination: Ip::UNSPECIFIED,
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

/// Read what nearly every frame starts with in a few comparisons: no tags, IPv4 without options, not a fragment.
/// `false`: it is not that, or it is malformed, and what was written means nothing; [`l2`] and [`ip`], which find
/// the same in what is accepted here, are to be asked.
#[inline(always)]
pub fn plain_ipv4(frame: &[u8], l2: &mut L2Header, ip: &mut IpHeader) -> bool {
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
    *l2 = L2Header {
        ethertype: ethertype::IPV4,
        l3: START,
    };
    *ip = IpHeader {
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

/// Read the fixed IP header (rule 5, IP headers, validity) into `ip`. `false` when the `EtherType` is not IP.
///
/// # Errors
/// `IpTruncated`, `IpVersion`, `IpHeaderLength`, `IpChecksum`, `IpTotalLength`.
#[inline(always)]
pub fn ip(frame: &[u8], l2: L2Header, ip: &mut IpHeader) -> Result<bool, Reason> {
    let packet = frame.get(l2.l3..).unwrap_or_default();
    match l2.ethertype {
        ethertype::IPV4 => ip_v4(packet, l2.l3, ip)?,
        ethertype::IPV6 => ip_v6(packet, l2.l3, ip)?,
        _ => return Ok(false),
    }
    Ok(true)
}

#[inline(always)]
fn ip_v4(packet: &[u8], l3: usize, ip: &mut IpHeader) -> Result<(), Reason> {
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
    *ip = IpHeader {
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
fn ip_v6(packet: &[u8], l3: usize, ip: &mut IpHeader) -> Result<(), Reason> {
    let header = ipv6::Header::new(packet).ok_or(Reason::IpTruncated)?;
    if header.version() != 6 {
        return Err(Reason::IpVersion);
    }
    let total_len = ipv6::LEN + usize::from(header.payload_len());
    if total_len > packet.len() {
        return Err(Reason::IpTruncated);
    }
    *ip = IpHeader {
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

/// Read IPv4 options or IPv6 extension headers (rule 5.8, options and extension headers). Completes `ip`.
///
/// # Errors
/// `IpOptions`, `SourceRoute`; `ExtHeader`, `ExtHeaderLimit`, `RoutingHeader`, `IpTruncated`.
#[inline(never)]
pub fn inner_headers(frame: &[u8], ip: &mut IpHeader) -> Result<(), Reason> {
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

/// Judge the size of a fragment that holds, or cuts, an L4 header (rule 6.5, tiny fragments).
///
/// # Errors
/// `FragmentTiny`, `TcpDataOffset`.
pub fn tiny_fragment(frame: &[u8], ip: &IpHeader) -> Result<(), Reason> {
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
