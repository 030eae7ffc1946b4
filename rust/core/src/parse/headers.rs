//! All layers in a row, for benches and for teaching: rule 14, the primitive parse.

use super::ip::{IpHeader, inner_headers, ip, tiny_fragment};
use super::l2::l2;
use super::transport::{Transport, transport};
use crate::base::Ip;
use crate::base::Reason;

/// What [`parse`] reads from one frame (rule 14, the primitive parse). Fields that were not reached are 0 or empty.
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

/// Read one frame without snapshot, state or offload (rule 14, the primitive parse).
#[must_use]
pub fn parse(frame: &[u8]) -> Headers {
    let mut headers = Headers::default();
    headers.reason = read_all(frame, &mut headers).err();
    headers
}

fn read_all(frame: &[u8], headers: &mut Headers) -> Result<(), Reason> {
    let vlans = &mut headers.vlans;
    let l2 = l2(frame, |tag| vlans.push(tag))?;
    headers.ethertype = l2.ethertype;
    let mut found = IpHeader::EMPTY;
    if !ip(frame, l2, &mut found)? {
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

fn address_bytes(v4: bool, address: Ip) -> Vec<u8> {
    debug_assert!(!v4 || address.is_v4(), "an IPv4 address is mapped");
    let bytes = address.to_be_bytes();
    if v4 {
        bytes[12..].to_vec()
    } else {
        bytes.to_vec()
    }
}

#[cfg(test)]
mod tests;
