//! ICMP (RFC 792), `ICMPv6` (RFC 4443) and neighbour discovery (RFC 4861): types, and the first 8 bytes all
//! messages share.

use crate::base::Ip;
use std::borrow::{Borrow, BorrowMut};

use super::{checksum, fields16, protocol, view};
use crate::base::Mac;

view!(
    /// Type, code, checksum, and four bytes whose meaning depends on the type.
    Header, 8
);

/// ICMP types and codes, as (type, code) of what we send.
#[allow(missing_docs, reason = "the names of RFC 792 and RFC 4443")]
pub mod message {
    pub const TIME_EXCEEDED_V4: (u8, u8) = (11, 0);
    pub const TIME_EXCEEDED_V6: (u8, u8) = (3, 0);
    pub const HOST_UNREACHABLE_V4: (u8, u8) = (3, 1);
    pub const ADDRESS_UNREACHABLE_V6: (u8, u8) = (1, 3);
    pub const NO_ROUTE_V6: (u8, u8) = (1, 0);
    pub const PROHIBITED_V4: (u8, u8) = (3, 13);
    pub const PROHIBITED_V6: (u8, u8) = (1, 1);
    pub const PORT_UNREACHABLE_V4: (u8, u8) = (3, 3);
    pub const PORT_UNREACHABLE_V6: (u8, u8) = (1, 4);
    pub const FRAGMENTATION_NEEDED_V4: (u8, u8) = (3, 4);
    pub const PACKET_TOO_BIG_V6: (u8, u8) = (2, 0);
    pub const ECHO_REPLY_V4: (u8, u8) = (0, 0);
    pub const ECHO_REPLY_V6: (u8, u8) = (129, 0);
    pub const NEIGHBOUR_ADVERTISEMENT: (u8, u8) = (136, 0);
}

/// Neighbour solicitation (RFC 4861 4.3).
pub const NEIGHBOUR_SOLICITATION: u8 = 135;
/// Bytes of a solicitation without options: header, then the target.
pub const SOLICITATION_LEN: usize = 24;
/// Bytes of an advertisement with the target's link-layer address.
pub const ADVERTISEMENT_LEN: usize = 32;

/// What a type means to a balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// About a packet that it quotes.
    Error,
    /// Would change routes; never believed.
    Redirect,
    /// A ping.
    EchoRequest,
    /// All others.
    Other,
}

/// Classify an ICMP (`v4`) or `ICMPv6` type.
#[must_use]
pub const fn kind(v4: bool, message_type: u8) -> Kind {
    match (v4, message_type) {
        (true, 3 | 11 | 12) | (false, 1..=4) => Kind::Error,
        (true, 5) | (false, 137) => Kind::Redirect,
        (true, 8) | (false, 128) => Kind::EchoRequest,
        _ => Kind::Other,
    }
}

/// The protocol number of a family's control messages.
#[must_use]
pub const fn protocol_of(v4: bool) -> u8 {
    if v4 { protocol::ICMP } else { protocol::ICMPV6 }
}

/// The checksum over a whole message: with a pseudo-header for `ICMPv6` only. 0 when the message holds its own
/// right checksum.
#[must_use]
pub fn message_checksum(source: Ip, destination: Ip, message: &[u8]) -> u16 {
    let sum = u64::from(checksum::sum(message));
    let pseudo = if destination.is_v4() {
        0
    } else {
        checksum::pseudo_header(source, destination, protocol::ICMPV6, message.len())
    };
    !checksum::fold(sum + pseudo)
}

fields16!(Header:
    /// Checksum.
    checksum set_checksum @ 2;
);

impl<B: Borrow<[u8; LEN]>> Header<B> {
    /// What kind of message.
    #[must_use]
    pub fn message_type(&self) -> u8 {
        self.0.borrow()[0]
    }

    /// Refines the type.
    #[must_use]
    pub fn code(&self) -> u8 {
        self.0.borrow()[1]
    }
}

impl<B: BorrowMut<[u8; LEN]>> Header<B> {
    /// Write every byte; the checksum as 0.
    pub fn set_own(&mut self, (message_type, code): (u8, u8), rest: u32) {
        let bytes = self.0.borrow_mut();
        bytes[0] = message_type;
        bytes[1] = code;
        self.set_checksum(0);
        super::set32::<LEN>(&mut self.0, 4, rest);
    }
}

/// The address a neighbour solicitation asks about; `None` when it is not a valid one (type, code 0, length). The
/// checksum is the caller's.
#[must_use]
pub fn solicitation_target(message: &[u8]) -> Option<Ip> {
    let fixed = message.first_chunk::<SOLICITATION_LEN>()?;
    let target: &[u8; 16] = fixed.last_chunk()?;
    (fixed[0] == NEIGHBOUR_SOLICITATION && fixed[1] == 0).then_some(Ip::from_be_bytes(*target))
}

/// The bytes of a neighbour advertisement after its 8-byte header: target, and the option with its link-layer
/// address.
#[must_use]
pub fn advertisement_body(target: Ip, mac: Mac) -> [u8; ADVERTISEMENT_LEN - LEN] {
    let mut body = [0; ADVERTISEMENT_LEN - LEN];
    body[..16].copy_from_slice(&target.to_be_bytes());
    body[16..18].copy_from_slice(&[2, 1]);
    body[18..].copy_from_slice(&mac);
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_written_reads_back() {
        let mut bytes = [0xaau8; LEN];
        Header::new_mut(&mut bytes)
            .unwrap()
            .set_own(message::FRAGMENTATION_NEEDED_V4, 1400);
        let header = Header::new(&bytes).unwrap();
        assert_eq!(
            (header.message_type(), header.code(), header.checksum()),
            (3, 4, 0)
        );
        assert_eq!(bytes[4..], [0, 0, 5, 120]);
    }

    #[test]
    fn kind_table() {
        for (v4, message_type, expected) in [
            (true, 3, Kind::Error),
            (true, 4, Kind::Other),
            (true, 5, Kind::Redirect),
            (true, 8, Kind::EchoRequest),
            (true, 0, Kind::Other),
            (false, 1, Kind::Error),
            (false, 4, Kind::Error),
            (false, 5, Kind::Other),
            (false, 137, Kind::Redirect),
            (false, 128, Kind::EchoRequest),
        ] {
            assert_eq!(kind(v4, message_type), expected, "{v4} {message_type}");
        }
    }

    #[test]
    fn message_checksum_filled_in_verifies() {
        for (source, destination) in [
            (Ip::from_bits(1 << 90), Ip::from_bits(2 << 90)),
            (Ip::from_v4(1), Ip::from_v4(2)),
        ] {
            let mut message = vec![8, 0, 0, 0, 1, 2, 3, 4, 5];
            let right = message_checksum(source, destination, &message);
            Header::new_mut(&mut message).unwrap().set_checksum(right);
            assert_eq!(message_checksum(source, destination, &message), 0);
        }
    }
}
