//! IPv4 (RFC 791): the fixed header, its flags, and the options a router must judge (RFC 1812 5.2.2, 5.3.13).

use crate::base::Ip;
use std::borrow::{Borrow, BorrowMut};

use super::{checksum, fields16, view};
use crate::base::Reason;

view!(
    /// The fixed header. Options follow it, up to `header_len`.
    Header, 20
);

/// The bit of the flags word that is reserved. Kept as it came.
pub const RESERVED: u16 = 0x8000;
/// Don't fragment.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// More fragments.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// The rest of the flags word: offset in units of 8 bytes.
pub const OFFSET_MASK: u16 = 0x1fff;

mod option {
    pub const END: u8 = 0;
    pub const NO_OPERATION: u8 = 1;
    pub const LOOSE_SOURCE_ROUTE: u8 = 131;
    pub const STRICT_SOURCE_ROUTE: u8 = 137;
    pub const COPIED: u8 = 0x80;
}

fields16!(Header:
    /// Bytes from the header's start to the packet's end.
    total_len set_total_len @ 2;
    /// Names the datagram a fragment belongs to.
    identification set_identification @ 4;
    /// Reserved bit, DF, MF and the fragment offset.
    flags_offset set_flags_offset @ 6;
    /// TTL (high byte) and protocol (low byte), the word a checksum update sees.
    ttl_protocol set_ttl_protocol @ 8;
    /// Header checksum.
    checksum set_checksum @ 10;
);

impl<B: Borrow<[u8; LEN]>> Header<B> {
    /// 4, or it is something else.
    #[inline]
    #[must_use]
    pub fn version(&self) -> u8 {
        self.0.borrow()[0] >> 4
    }

    /// Bytes of the header with its options, as claimed: 0 to 60.
    #[inline]
    #[must_use]
    pub fn header_len(&self) -> usize {
        usize::from(self.0.borrow()[0] & 0xf) * 4
    }

    /// Whether the checksum of a header without options is right.
    #[inline(always)]
    #[must_use]
    pub fn is_right(&self) -> bool {
        checksum::sum20(self.0.borrow()) == 0xffff
    }

    /// Hops left.
    #[inline]
    #[must_use]
    pub fn ttl(&self) -> u8 {
        self.0.borrow()[8]
    }

    /// What follows the header.
    #[inline]
    #[must_use]
    pub fn protocol(&self) -> u8 {
        self.0.borrow()[9]
    }

    /// Source, as a number (IPv4-mapped).
    #[inline]
    #[must_use]
    pub fn source(&self) -> Ip {
        Ip::from_v4(super::get32::<LEN>(&self.0, 12))
    }

    /// Destination, as a number (IPv4-mapped).
    #[inline]
    #[must_use]
    pub fn destination(&self) -> Ip {
        Ip::from_v4(super::get32::<LEN>(&self.0, 16))
    }
}

impl<B: BorrowMut<[u8; LEN]>> Header<B> {
    /// Hops left.
    #[inline]
    pub fn set_ttl(&mut self, ttl: u8) {
        self.0.borrow_mut()[8] = ttl;
    }

    /// Source, from a number (IPv4-mapped).
    #[inline]
    pub fn set_source(&mut self, address: Ip) {
        super::set32::<LEN>(&mut self.0, 12, address.v4_bits());
    }

    /// Destination, from a number (IPv4-mapped).
    #[inline]
    pub fn set_destination(&mut self, address: Ip) {
        super::set32::<LEN>(&mut self.0, 16, address.v4_bits());
    }

    /// Write every byte of a header without options whose packet is ours: id 0, DF, TTL 64, right checksum.
    pub fn set_own(&mut self, tos: u8, total_len: u16, protocol: u8, source: Ip, destination: Ip) {
        let bytes = self.0.borrow_mut();
        bytes[0] = 0x45;
        bytes[1] = tos;
        self.set_total_len(total_len);
        self.set_identification(0);
        self.set_flags_offset(DONT_FRAGMENT);
        self.set_ttl_protocol(64 << 8 | u16::from(protocol));
        self.set_source(source);
        self.set_destination(destination);
        self.set_checksum(0);
        self.set_checksum(checksum::checksum(self.0.borrow()));
    }
}

/// Judge the options, one by one, the length first.
///
/// # Errors
/// `IpOptions` for one that does not fit, `SourceRoute` for LSRR and SSRR.
pub fn check_options(options: &[u8]) -> Result<(), Reason> {
    for option in walk_options(options) {
        if let Some(&(option::LOOSE_SOURCE_ROUTE | option::STRICT_SOURCE_ROUTE)) = option?.first() {
            return Err(Reason::SourceRoute);
        }
    }
    Ok(())
}

/// The options that a later fragment repeats (RFC 791 3.1, "copied"), padded with zeros to a multiple of 4.
#[must_use]
pub fn copied_options(options: &[u8]) -> Vec<u8> {
    let mut copied = Vec::new();
    for option in walk_options(options).map_while(Result::ok) {
        if option
            .first()
            .is_some_and(|kind| kind & option::COPIED != 0)
        {
            copied.extend_from_slice(option);
        }
    }
    copied.resize(copied.len().next_multiple_of(4), option::END);
    copied
}

fn walk_options(mut rest: &[u8]) -> impl Iterator<Item = Result<&[u8], Reason>> {
    std::iter::from_fn(move || {
        let len = match *rest {
            [] | [option::END, ..] => return None,
            [option::NO_OPERATION, ..] => 1,
            [_, len, ..] if len >= 2 && usize::from(len) <= rest.len() => usize::from(len),
            _ => {
                rest = &[];
                return Some(Err(Reason::IpOptions));
            }
        };
        let (option, after) = rest.split_at(len);
        rest = after;
        Some(Ok(option))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_header_written_reads_back() {
        let mut bytes = [0xaau8; LEN];
        let (source, destination) = (Ip::from_v4(1), Ip::from_v4(2));
        Header::new_mut(&mut bytes)
            .unwrap()
            .set_own(0xc0, 99, 6, source, destination);
        let header = Header::new(&bytes).unwrap();
        assert_eq!(
            (header.version(), header.header_len(), header.total_len()),
            (4, 20, 99)
        );
        assert_eq!(
            (header.ttl(), header.protocol(), header.flags_offset()),
            (64, 6, DONT_FRAGMENT)
        );
        assert_eq!(
            (header.source(), header.destination()),
            (source, destination)
        );
        assert_eq!(checksum::sum(&bytes), 0xffff);
    }

    /// Rule 5.8, options and extension headers: each option is judged by itself, the length first.
    #[test]
    fn options_table() {
        let cases: [(&[u8], Result<(), Reason>); 9] = [
            (&[], Ok(())),
            (&[1, 1, 1, 0], Ok(())),
            (&[0, 131, 3, 0], Ok(())),
            (&[7, 3, 4, 0], Ok(())),
            (&[7, 1, 4, 0], Err(Reason::IpOptions)),
            (&[7, 9, 4, 0], Err(Reason::IpOptions)),
            (&[1, 1, 1, 7], Err(Reason::IpOptions)),
            (&[131, 3, 4, 0], Err(Reason::SourceRoute)),
            (&[137, 9, 4, 0], Err(Reason::IpOptions)),
        ];
        for (options, expected) in cases {
            assert_eq!(check_options(options), expected, "{options:?}");
        }
    }

    #[test]
    fn copied_options_mixed_keeps_only_copied_padded() {
        assert_eq!(
            copied_options(&[1, 7, 3, 4, 148, 4, 0, 0, 0x82, 3, 9, 0]),
            [148, 4, 0, 0, 0x82, 3, 9, 0]
        );
        assert_eq!(copied_options(&[7, 3, 4, 0]), []);
    }
}
