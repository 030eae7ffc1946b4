//! Frames: made with right lengths and checksums, put right again after damage, and looked at.

use std::net::IpAddr;

use flowlb_core::base::{Ip, Mac};
use flowlb_core::parse::{Headers, parse};
use flowlb_core::wire::{checksum, icmp};

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// A piece of a datagram: its identification, offset in units of 8 bytes, and whether more follow.
#[derive(Clone, Copy)]
pub struct PieceAt {
    pub id: u16,
    pub offset: u16,
    pub more: bool,
}

/// The data of a segment: `numbers` are its own and the acknowledged one.
pub fn tcp(ports: (u16, u16), flags: u8, numbers: (u32, u32), len: usize) -> Vec<u8> {
    let mut segment = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    segment.extend(numbers.0.to_be_bytes());
    segment.extend(if flags & ACK == 0 { 0 } else { numbers.1 }.to_be_bytes());
    segment.extend([0x50, flags, 0xfa, 0xf0, 0, 0, 0, 0]);
    segment.resize(20 + len, 7);
    segment
}

pub fn udp(ports: (u16, u16), len: usize) -> Vec<u8> {
    let total = (8 + len) as u16;
    let mut datagram = [ports.0, ports.1, total, 0].map(u16::to_be_bytes).concat();
    datagram.resize(usize::from(total), 7);
    datagram
}

/// The ICMP protocol of a family.
pub fn icmp_of(address: IpAddr) -> u8 {
    icmp::protocol_of(address.is_ipv4())
}

/// Write the checksum into a whole segment, datagram or message.
pub fn sign(from: IpAddr, to: IpAddr, protocol: u8, l4: &mut [u8]) {
    let Some(at) = checksum_at(protocol).filter(|at| at + 2 <= l4.len()) else {
        return;
    };
    l4[at..at + 2].fill(0);
    let sum = !checksum_over(Ip::from(from), Ip::from(to), protocol, l4);
    let sum = if protocol == UDP && sum == 0 {
        0xffff
    } else {
        sum
    };
    l4[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// The sum over all that the checksum of a packet is about: 0xffff when it is right.
fn checksum_over(from: Ip, to: Ip, protocol: u8, l4: &[u8]) -> u16 {
    if protocol == 1 {
        return checksum::sum(l4);
    }
    checksum::fold(
        checksum::pseudo_header(from, to, protocol, l4.len()) + u64::from(checksum::sum(l4)),
    )
}

fn checksum_at(protocol: u8) -> Option<usize> {
    match protocol {
        1 | 58 => Some(2),
        TCP => Some(16),
        UDP => Some(6),
        _ => None,
    }
}

/// An IP packet, or one piece of it.
pub fn ip(from: IpAddr, to: IpAddr, protocol: u8, data: &[u8], piece: Option<PieceAt>) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = (20 + data.len()) as u16;
            let at = piece.unwrap_or(PieceAt {
                id: 1,
                offset: 0,
                more: false,
            });
            let word = at.offset & 0x1fff | u16::from(at.more) << 13;
            let mut header = vec![0x45, 0];
            header.extend([total, at.id, word].map(u16::to_be_bytes).concat());
            header.extend([64, protocol, 0, 0]);
            header.extend([from.octets(), to.octets()].concat());
            let sum = checksum::checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            [&header, data].concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let extension = piece.map_or(vec![], |at| fragment_header(protocol, at));
            let next = if piece.is_some() { 44 } else { protocol };
            let len = ((extension.len() + data.len()) as u16).to_be_bytes();
            let head = [0x60, 0, 0, 0, len[0], len[1], next, 64];
            [&head[..], &from.octets(), &to.octets(), &extension, data].concat()
        }
        _ => unreachable!("both are of one family"),
    }
}

fn fragment_header(protocol: u8, at: PieceAt) -> Vec<u8> {
    let word = (at.offset << 3 | u16::from(at.more)).to_be_bytes();
    let id = u32::from(at.id).to_be_bytes();
    [&[protocol, 0][..], &word, &id].concat()
}

pub fn ether(from: Mac, to: Mac, packet: &[u8]) -> Vec<u8> {
    let kind = if packet[0] >> 4 == 4 {
        [8, 0]
    } else {
        [0x86, 0xdd]
    };
    [&to[..], &from, &kind, packet].concat()
}

/// Where the IP header of a frame starts, past its tags.
fn l3(frame: &[u8]) -> Option<usize> {
    let mut at = 12;
    while matches!(frame.get(at..at + 2)?, [0x81, 0] | [0x88, 0xa8]) {
        at += 4;
    }
    Some(at + 2)
}

/// Make the checksums of a damaged frame right, as far as there are any: what is damaged is to be seen by more than
/// the first look.
pub fn repair(frame: &mut [u8]) {
    let Some(l3) = l3(frame) else { return };
    let len = frame.get(l3).map_or(0, |first| usize::from(first & 15) * 4);
    let is_v4 = frame.get(l3).is_some_and(|first| first >> 4 == 4);
    if is_v4 && len >= 20 && l3 + len <= frame.len() {
        frame[l3 + 10..l3 + 12].fill(0);
        let sum = checksum::checksum(&frame[l3..l3 + len]);
        frame[l3 + 10..l3 + 12].copy_from_slice(&sum.to_be_bytes());
    }
    let headers = parse(frame);
    let Some((from, to)) = ends(&headers).filter(|_| !is_piece(&headers)) else {
        return;
    };
    let end = headers.l3_offset + headers.total_len;
    if (1..=end).contains(&headers.l4_offset) && end <= frame.len() {
        sign(
            from,
            to,
            headers.protocol,
            &mut frame[headers.l4_offset..end],
        );
    }
}

/// Source and destination, when they were read.
pub fn ends(headers: &Headers) -> Option<(IpAddr, IpAddr)> {
    Some((
        ip_address(&headers.source)?,
        ip_address(&headers.destination)?,
    ))
}

fn ip_address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from).ok();
    v4.or_else(|| <[u8; 16]>::try_from(bytes).map(IpAddr::from).ok())
}

pub fn is_piece(headers: &Headers) -> bool {
    headers.fragment_offset != 0 || headers.more_fragments
}

/// Whether the L4 checksum of a whole packet is right; `None` when it has none, or is a piece.
pub fn is_right(frame: &[u8], headers: &Headers) -> Option<bool> {
    if headers.reason.is_some() || is_piece(headers) || headers.l4_offset == 0 {
        return None;
    }
    let l4 = frame.get(headers.l4_offset..headers.l3_offset + headers.total_len)?;
    let at = checksum_at(headers.protocol)?;
    let (from, to) = ends(headers)?;
    if headers.protocol == UDP && l4.get(at..at + 2)? == [0, 0] {
        return None;
    }
    Some(checksum_over(Ip::from(from), Ip::from(to), headers.protocol, l4) == 0xffff)
}
