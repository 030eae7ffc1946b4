//! IPv6 (RFC 8200): the fixed header, and the walk over the extension headers a balancer must look behind.

use crate::base::Ip;
use std::borrow::{Borrow, BorrowMut};

use super::{fields16, view};
use crate::base::Reason;

view!(
    /// The fixed header. Extension headers follow it.
    Header, 40
);

/// Extension headers (IANA) that are walked; anything else is the L4 protocol.
mod next_header {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const DESTINATION_OPTIONS: u8 = 60;
}

const MOST_EXTENSION_HEADERS: usize = 8;
const FRAGMENT_LEN: usize = 8;

fields16!(Header:
    /// Bytes after this header.
    payload_len set_payload_len @ 4;
);

impl<B: Borrow<[u8; LEN]>> Header<B> {
    /// 6, or it is something else.
    #[inline]
    #[must_use]
    pub fn version(&self) -> u8 {
        self.0.borrow()[0] >> 4
    }

    /// The first extension header, or the L4 protocol.
    #[inline]
    #[must_use]
    pub fn next_header(&self) -> u8 {
        self.0.borrow()[6]
    }

    /// Hops left.
    #[inline]
    #[must_use]
    pub fn hop_limit(&self) -> u8 {
        self.0.borrow()[7]
    }

    /// Source.
    #[inline]
    #[must_use]
    pub fn source(&self) -> Ip {
        self.address(8)
    }

    /// Destination.
    #[inline]
    #[must_use]
    pub fn destination(&self) -> Ip {
        self.address(24)
    }

    #[inline]
    fn address(&self, at: usize) -> Ip {
        let mut address = [0; 16];
        address.copy_from_slice(&self.0.borrow()[at..at + 16]);
        Ip::from_be_bytes(address)
    }
}

impl<B: BorrowMut<[u8; LEN]>> Header<B> {
    /// Hops left.
    #[inline]
    pub fn set_hop_limit(&mut self, hop_limit: u8) {
        self.0.borrow_mut()[7] = hop_limit;
    }

    /// Source.
    #[inline]
    pub fn set_source(&mut self, address: Ip) {
        self.0.borrow_mut()[8..24].copy_from_slice(&address.to_be_bytes());
    }

    /// Destination.
    #[inline]
    pub fn set_destination(&mut self, address: Ip) {
        self.0.borrow_mut()[24..40].copy_from_slice(&address.to_be_bytes());
    }

    /// Write every byte of a header of our own: traffic class 0, flow label 0.
    pub fn set_own(
        &mut self,
        payload_len: u16,
        next_header: u8,
        hop_limit: u8,
        source: Ip,
        destination: Ip,
    ) {
        let bytes = self.0.borrow_mut();
        bytes[..4].copy_from_slice(&[0x60, 0, 0, 0]);
        bytes[6] = next_header;
        self.set_payload_len(payload_len);
        self.set_hop_limit(hop_limit);
        self.set_source(source);
        self.set_destination(destination);
    }
}

/// What the fragment header said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FragmentHeader {
    /// Names the datagram.
    pub identification: u32,
    /// Bytes.
    pub offset: u32,
    /// The M flag.
    pub more: bool,
    /// The next header, which all fragments of the datagram name.
    pub protocol: u8,
}

/// Where the extension headers lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extensions {
    /// The first next header that is none of those walked.
    pub protocol: u8,
    /// Bytes of all extension headers.
    pub len: usize,
    /// The fragment header, when there is one.
    pub fragment: Option<FragmentHeader>,
}

/// Walk the extension headers in `payload`, from the one the fixed header names. After a later fragment's header
/// what follows is data.
///
/// # Errors
/// At each header in this order: `ExtHeaderLimit` for the ninth; `ExtHeader` for hop-by-hop options that are not
/// first, or a second fragment header; `IpTruncated` when it does not fit; `RoutingHeader` for type 0 (RFC 5095).
pub fn walk_extensions(first: u8, payload: &[u8]) -> Result<Extensions, Reason> {
    let mut walk = Extensions {
        protocol: first,
        len: 0,
        fragment: None,
    };
    let mut count = 0;
    while is_extension(walk.protocol) {
        let misplaced = match walk.protocol {
            next_header::HOP_BY_HOP => count > 0,
            next_header::FRAGMENT => walk.fragment.is_some(),
            _ => false,
        };
        count += 1;
        if count > MOST_EXTENSION_HEADERS {
            return Err(Reason::ExtHeaderLimit);
        }
        if misplaced {
            return Err(Reason::ExtHeader);
        }
        let header = extension(walk.protocol, payload.get(walk.len..).unwrap_or_default())?;
        if walk.protocol == next_header::FRAGMENT {
            walk.fragment = Some(fragment_header(header));
        }
        walk.len += header.len();
        walk.protocol = header[0];
        if walk.fragment.is_some_and(|fragment| fragment.offset != 0) {
            break;
        }
    }
    Ok(walk)
}

const fn is_extension(number: u8) -> bool {
    matches!(
        number,
        next_header::HOP_BY_HOP
            | next_header::ROUTING
            | next_header::FRAGMENT
            | next_header::DESTINATION_OPTIONS
    )
}

/// The bytes of the extension header at the start of `rest`: at least 8.
fn extension(number: u8, rest: &[u8]) -> Result<&[u8], Reason> {
    let &[_, units, kind, ..] = rest else {
        return Err(Reason::IpTruncated);
    };
    let len = if number == next_header::FRAGMENT {
        FRAGMENT_LEN
    } else {
        (usize::from(units) + 1) * 8
    };
    let header = rest.get(..len).ok_or(Reason::IpTruncated)?;
    if number == next_header::ROUTING && kind == 0 {
        return Err(Reason::RoutingHeader);
    }
    Ok(header)
}

fn fragment_header(header: &[u8]) -> FragmentHeader {
    let offset_flags = u16::from_be_bytes([header[2], header[3]]);
    FragmentHeader {
        identification: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
        offset: u32::from(offset_flags & !7),
        more: offset_flags & 1 != 0,
        protocol: header[0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_header_written_reads_back() {
        let mut bytes = [0xaau8; LEN];
        Header::new_mut(&mut bytes).unwrap().set_own(
            9,
            58,
            255,
            Ip::from_bits(1 << 100),
            Ip::from_bits(2 << 100),
        );
        let header = Header::new(&bytes).unwrap();
        assert_eq!(
            (
                header.version(),
                header.payload_len(),
                header.next_header(),
                header.hop_limit()
            ),
            (6, 9, 58, 255)
        );
        assert_eq!(
            (header.source(), header.destination()),
            (Ip::from_bits(1 << 100), Ip::from_bits(2 << 100))
        );
    }

    /// Rule 5.8, options and extension headers: known headers are walked, at most eight; the order of the tests is
    /// that of the rule.
    #[test]
    fn extensions_table() {
        let option = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
        let chain = |kinds: &[u8]| {
            kinds
                .iter()
                .flat_map(|&next| option(next))
                .collect::<Vec<u8>>()
        };
        let found = |protocol, len| {
            Ok(Extensions {
                protocol,
                len,
                fragment: None,
            })
        };
        let cases: Vec<(u8, Vec<u8>, Result<Extensions, Reason>)> = vec![
            (6, vec![], found(6, 0)),
            (0, chain(&[6]), found(6, 8)),
            (60, chain(&[60, 17]), found(17, 16)),
            (60, chain(&[0, 6]), Err(Reason::ExtHeader)),
            (60, chain(&[60, 60, 60, 60, 60, 60, 60, 6]), found(6, 64)),
            (60, chain(&[60; 8]), Err(Reason::ExtHeaderLimit)),
            (60, vec![6, 1, 1, 4, 0, 0, 0, 0], Err(Reason::IpTruncated)),
            (43, vec![6, 0, 0, 0, 0, 0, 0, 0], Err(Reason::RoutingHeader)),
            (43, vec![6, 9, 0, 0, 0, 0, 0, 0], Err(Reason::IpTruncated)),
            (43, vec![6, 0, 4, 0, 0, 0, 0, 0], found(6, 8)),
            (
                44,
                vec![44, 0, 0, 0, 0, 0, 0, 1, 6, 0, 0, 0, 0, 0, 0, 1],
                Err(Reason::ExtHeader),
            ),
        ];
        for (first, payload, expected) in cases {
            assert_eq!(
                walk_extensions(first, &payload),
                expected,
                "{first} {payload:?}"
            );
        }
    }

    #[test]
    fn extensions_later_fragment_stops_walk() {
        let walk = walk_extensions(44, &[60, 0, 0x05, 0x29, 0, 0, 0, 7, 9]).unwrap();
        let fragment = FragmentHeader {
            identification: 7,
            offset: 0x528,
            more: true,
            protocol: 60,
        };
        assert_eq!(
            walk,
            Extensions {
                protocol: 60,
                len: 8,
                fragment: Some(fragment)
            }
        );
    }
}
