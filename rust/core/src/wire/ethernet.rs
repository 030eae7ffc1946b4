//! Ethernet II frames and their VLAN tags (IEEE 802.3, 802.1Q).

use std::borrow::{Borrow, BorrowMut};

use super::{fields16, view};
use crate::snapshot::Mac;

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

/// Whether this is a multicast or broadcast address.
#[must_use]
pub const fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
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
        assert!(Frame::new(&bytes[1..]).is_none());
    }
}
