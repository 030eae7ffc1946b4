//! ARP for IPv4 over Ethernet (RFC 826). Other hardware or protocols are not read: [`Arp::is_ethernet_ipv4`] tells
//! them apart.

use std::borrow::{Borrow, BorrowMut};

use super::{fields16, view};
use crate::base::Mac;

view!(
    /// A request or a reply.
    Arp, 28
);

/// The operations we know.
#[allow(missing_docs, reason = "the names of RFC 826")]
pub mod operation {
    pub const REQUEST: u16 = 1;
    pub const REPLY: u16 = 2;
}

const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];

fields16!(Arp:
    /// Request or reply.
    operation set_operation @ 6;
);

impl<B: Borrow<[u8; LEN]>> Arp<B> {
    /// Whether the four type and length fields are those of IPv4 over Ethernet.
    #[must_use]
    pub fn is_ethernet_ipv4(&self) -> bool {
        self.0.borrow().starts_with(&ETHERNET_IPV4)
    }

    /// Sender's link-layer address.
    #[must_use]
    pub fn sender_mac(&self) -> Mac {
        let bytes = self.0.borrow();
        [
            bytes[8], bytes[9], bytes[10], bytes[11], bytes[12], bytes[13],
        ]
    }

    /// Sender's IPv4 address.
    #[must_use]
    pub fn sender(&self) -> u32 {
        super::get32::<LEN>(&self.0, 14)
    }

    /// The IPv4 address asked about.
    #[must_use]
    pub fn target(&self) -> u32 {
        super::get32::<LEN>(&self.0, 24)
    }
}

impl<B: BorrowMut<[u8; LEN]>> Arp<B> {
    /// Write every byte of a reply.
    pub fn set_reply(&mut self, sender: (Mac, u32), target: (Mac, u32)) {
        let bytes = self.0.borrow_mut();
        bytes[..6].copy_from_slice(&ETHERNET_IPV4);
        bytes[8..14].copy_from_slice(&sender.0);
        bytes[14..18].copy_from_slice(&sender.1.to_be_bytes());
        bytes[18..24].copy_from_slice(&target.0);
        bytes[24..28].copy_from_slice(&target.1.to_be_bytes());
        self.set_operation(operation::REPLY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reply_written_reads_back() {
        let mut bytes = [0xaau8; LEN];
        Arp::new_mut(&mut bytes)
            .unwrap()
            .set_reply(([1; 6], 0x0102_0304), ([2; 6], 0x0506_0708));
        let arp = Arp::new(&bytes).unwrap();
        assert!(arp.is_ethernet_ipv4());
        assert_eq!(
            (
                arp.operation(),
                arp.sender_mac(),
                arp.sender(),
                arp.target()
            ),
            (2, [1; 6], 0x0102_0304, 0x0506_0708)
        );
    }
}
