//! The packet inside an ICMP error: rule 10.4, inner packets.

use super::ip::{Fragment, IpHeader};
use crate::base::Ip;
use crate::base::Reason;
use crate::wire::icmp::{self, Kind};
use crate::wire::{checksum, ipv4, ipv6, protocol};

/// RFC 792: at least this much of the inner L4 header is there.
const LEAST_INNER: usize = 8;

/// The packet inside an ICMP error. Offsets are within the ICMP message.
#[derive(Clone, Copy)]
pub struct InnerPacket {
    /// Its IP header; what is beyond the error message is not there.
    pub ip: IpHeader,
    /// Port it comes from.
    pub source_port: u16,
    /// Port it goes to.
    pub destination_port: u16,
}

/// Read the packet in an error message: rule 10.4, inner packets.
///
/// # Errors
/// `IcmpInner`, `IcmpAboutIcmp`, `IcmpNoFlow`.
pub fn inner_packet(v4: bool, message: &[u8]) -> Result<InnerPacket, Reason> {
    let ip = if v4 {
        inner_v4(message)?
    } else {
        inner_v6(message)?
    };
    if ip.is_later_fragment() {
        return Err(Reason::IcmpInner);
    }
    let l4 = message.get(ip.l4..).unwrap_or_default();
    if ip.protocol == icmp::protocol_of(v4) {
        let about = l4.first().map(|&message_type| icmp::kind(v4, message_type));
        let is_error = matches!(about, Some(Kind::Error | Kind::Redirect));
        return Err(if is_error {
            Reason::IcmpAboutIcmp
        } else {
            Reason::IcmpNoFlow
        });
    }
    if !matches!(ip.protocol, protocol::TCP | protocol::UDP) {
        return Err(Reason::IcmpNoFlow);
    }
    let &[a, b, c, d, ..] = l4.first_chunk::<LEAST_INNER>().ok_or(Reason::IcmpInner)?;
    Ok(InnerPacket {
        ip,
        source_port: u16::from_be_bytes([a, b]),
        destination_port: u16::from_be_bytes([c, d]),
    })
}

fn inner_v4(message: &[u8]) -> Result<IpHeader, Reason> {
    let packet = message.get(icmp::LEN..).ok_or(Reason::IcmpInner)?;
    let header = ipv4::Header::new(packet).ok_or(Reason::IcmpInner)?;
    let header_len = header.header_len();
    let bytes = packet
        .get(..header_len)
        .filter(|bytes| bytes.len() >= ipv4::LEN)
        .ok_or(Reason::IcmpInner)?;
    if header.version() != 4 || checksum::sum(bytes) != 0xffff {
        return Err(Reason::IcmpInner);
    }
    let offset = u32::from(header.flags_offset() & ipv4::OFFSET_MASK) * 8;
    Ok(IpHeader {
        v4: true,
        source: header.source(),
        destination: header.destination(),
        ttl: header.ttl(),
        protocol: header.protocol(),
        l3: icmp::LEN,
        l4: icmp::LEN + header_len,
        end: message.len(),
        fragment: Some(Fragment {
            identification: 0,
            offset,
            more: false,
            protocol: header.protocol(),
        }),
    })
}

fn inner_v6(message: &[u8]) -> Result<IpHeader, Reason> {
    let packet = message.get(icmp::LEN..).ok_or(Reason::IcmpInner)?;
    let header = ipv6::Header::new(packet)
        .filter(|header| header.version() == 6)
        .ok_or(Reason::IcmpInner)?;
    let walk = ipv6::walk_extensions(header.next_header(), &packet[ipv6::LEN..])
        .map_err(|_| Reason::IcmpInner)?;
    let offset = walk.fragment.map_or(0, |fragment| fragment.offset);
    Ok(IpHeader {
        v4: false,
        source: header.source(),
        destination: header.destination(),
        ttl: header.hop_limit(),
        protocol: walk.protocol,
        l3: icmp::LEN,
        l4: icmp::LEN + ipv6::LEN + walk.len,
        end: message.len(),
        fragment: Some(Fragment {
            identification: 0,
            offset,
            more: false,
            protocol: walk.protocol,
        }),
    })
}

/// The destination of an inner packet that cannot be read otherwise: only its fixed header must be there.
#[must_use]
pub fn inner_destination(v4: bool, message: &[u8]) -> Option<Ip> {
    let packet = message.get(icmp::LEN..)?;
    if v4 {
        ipv4::Header::new(packet).map(|header| header.destination())
    } else {
        ipv6::Header::new(packet).map(|header| header.destination())
    }
}
