//! Ethernet II frames and their VLAN tags (IEEE 802.3, 802.1Q).

use crate::base::MacNumber;
use std::borrow::{Borrow, BorrowMut};

use super::{fields16, view};
use crate::base::Mac;

view!(
    /// The 14 bytes before any tag. With tags, `ethertype` is that of the first tag.
    Frame, 14
);

/// Bytes of one VLAN tag.
pub const TAG_LEN: usize = 4;

/// `EtherTypes` (IANA).
#[allow(missing_docs, reason = "the names of the registry")]
pub mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
    pub const VLAN: u16 = 0x8100;
    pub const IPV6: u16 = 0x86dd;
    pub const SERVICE_VLAN: u16 = 0x88a8;
}

/// A header without tags.
#[must_use]
pub fn header(destination: Mac, source: Mac, ethertype: u16) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    if let Some(mut frame) = Frame::new_mut(&mut bytes) {
        frame.set_destination(destination);
        frame.set_source(source);
        frame.set_ethertype(ethertype);
    }
    bytes
}

/// Whether a VLAN tag follows.
#[must_use]
pub const fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, ethertype::VLAN | ethertype::SERVICE_VLAN)
}

fields16!(Frame:
    /// What follows: an `EtherType`, or the mark of a VLAN tag.
    ethertype set_ethertype @ 12;
);

impl<B: Borrow<[u8; LEN]>> Frame<B> {
    /// Destination.
    #[inline]
    #[must_use]
    pub fn destination(&self) -> Mac {
        *self.0.borrow().first_chunk().unwrap_or(&[0; 6])
    }

    /// Source.
    #[inline]
    #[must_use]
    pub fn source(&self) -> Mac {
        *self.0.borrow()[6..].first_chunk().unwrap_or(&[0; 6])
    }

    /// Destination.
    #[inline(always)]
    #[must_use]
    pub fn destination_number(&self) -> MacNumber {
        let start = self.0.borrow().first_chunk().unwrap_or(&[0; 8]);
        MacNumber::from_bits(u64::from_le_bytes(*start))
    }

    /// Source.
    #[inline(always)]
    #[must_use]
    pub fn source_number(&self) -> MacNumber {
        let end = self.0.borrow().last_chunk().unwrap_or(&[0; 8]);
        MacNumber::from_bits(u64::from_le_bytes(*end))
    }
}

impl<B: BorrowMut<[u8; LEN]>> Frame<B> {
    /// Destination.
    #[inline]
    pub fn set_destination(&mut self, mac: Mac) {
        self.0.borrow_mut()[..6].copy_from_slice(&mac);
    }

    /// Source.
    #[inline]
    pub fn set_source(&mut self, mac: Mac) {
        self.0.borrow_mut()[6..12].copy_from_slice(&mac);
    }

    /// Both: 8 bytes and 4.
    #[inline(always)]
    pub fn set_numbers(&mut self, destination: MacNumber, source: MacNumber) {
        let front = destination.bits() | source.bits() << 48;
        let back = (source.bits() >> 16) as u32;
        let bytes = self.0.borrow_mut();
        bytes[..8].copy_from_slice(&front.to_le_bytes());
        bytes[8..12].copy_from_slice(&back.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_written_reads_back() {
        let mut bytes = [0u8; LEN];
        let mut frame = Frame::new_mut(&mut bytes).unwrap();
        frame.set_destination([1, 2, 3, 4, 5, 6]);
        frame.set_source([7, 8, 9, 10, 11, 12]);
        frame.set_ethertype(ethertype::IPV6);
        let frame = Frame::new(&bytes).unwrap();
        assert_eq!(
            (frame.destination(), frame.source()),
            ([1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12])
        );
        assert_eq!(frame.ethertype(), 0x86dd);
        assert_eq!(
            (frame.destination_number(), frame.source_number()),
            (frame.destination().into(), frame.source().into())
        );
        assert!(Frame::new(&bytes[1..]).is_none());
        let mut again = [0u8; LEN];
        let numbers = (frame.destination_number(), frame.source_number());
        let mut copy = Frame::new_mut(&mut again).unwrap();
        copy.set_numbers(numbers.0, numbers.1);
        assert_eq!(again[..12], bytes[..12]);
        assert!(numbers.0.is_group() && !MacNumber::from([2; 6]).is_group());
    }
}
