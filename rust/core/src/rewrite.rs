//! Changing a packet in place: addresses, ports, TTL, and the checksums that cover them (rule 8.20, translation; RFC
//! 1624, RFC 768).
//!
//! What an address and a port change add to a checksum does not depend on the packet, nor does a TTL that is one
//! less: so both are worked out once per server ([`Translation`]); a packet costs two additions and two folds.
//! Bytes after the L4 header never change here.

use crate::base::Ip;
use crate::packet::Packet;
use crate::parse::IpHeader;
use crate::wire::checksum::Delta;
use crate::wire::icmp;
use crate::wire::{ipv4, ipv6, protocol, tcp, udp};

/// Which address of a packet changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressField {
    /// Of packets that come from a server.
    Source,
    /// Of packets that go to a server.
    Destination,
}

/// One change of address and port, with what it adds to checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Which address changes.
    pub field: AddressField,
    /// Its new value.
    pub address: Ip,
    /// The new port beside it.
    pub port: u16,
    addresses: Delta,
    /// With the TTL, one less.
    header: Delta,
    /// With the ports.
    transport: Delta,
}

/// What it adds to the header's checksum that the TTL is one less. It is the upper byte of its word, so the
/// difference is the same for all.
const TTL_LOWERED: Delta = Delta::ZERO.word(1 << 8, 0);

impl Translation {
    /// Change `old` to `new`, each (address, port).
    #[must_use]
    pub fn new(field: AddressField, old: (Ip, u16), new: (Ip, u16)) -> Self {
        let addresses = Delta::default().address(old.0, new.0);
        Self {
            field,
            address: new.0,
            port: new.1,
            addresses,
            header: addresses.plus(TTL_LOWERED),
            transport: addresses.word(old.1, new.1),
        }
    }

    /// The same change at the other end: in the packet inside an ICMP error, source and destination are swapped.
    #[must_use]
    pub fn swapped(mut self) -> Self {
        self.field = match self.field {
            AddressField::Source => AddressField::Destination,
            AddressField::Destination => AddressField::Source,
        };
        self
    }
}

/// How to treat the L4 checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L4Checksum {
    /// Finished: update it.
    Whole,
    /// Only the folded pseudo-header sum, to be finished by hardware: update that.
    Partial,
}

/// Lower the TTL, and change an address. `packet` starts at the IP header. The TTL must not be 0.
#[inline(always)]
pub fn rewrite_ip(packet: &mut [u8], v4: bool, translation: Option<&Translation>) {
    if v4 {
        let Some(mut header) = ipv4::Header::new_mut(packet) else {
            return;
        };
        header.set_ttl(header.ttl().wrapping_sub(1));
        let mut delta = TTL_LOWERED;
        if let Some(translation) = translation {
            delta = translation.header;
            match translation.field {
                AddressField::Source => header.set_source(translation.address),
                AddressField::Destination => header.set_destination(translation.address),
            }
        }
        header.set_checksum(delta.apply(header.checksum()));
        return;
    }
    let Some(mut header) = ipv6::Header::new_mut(packet) else {
        return;
    };
    header.set_hop_limit(header.hop_limit().wrapping_sub(1));
    match translation {
        Some(Translation {
            field: AddressField::Source,
            address,
            ..
        }) => header.set_source(*address),
        Some(Translation {
            field: AddressField::Destination,
            address,
            ..
        }) => header.set_destination(*address),
        None => {}
    }
}

/// Change a port and the checksum of TCP or UDP. `segment` starts at the L4 header. A checksum that is not there
/// (an inner header may be cut) is left alone.
#[inline(always)]
pub fn rewrite_transport(
    segment: &mut [u8],
    number: u8,
    checksum: L4Checksum,
    translation: &Translation,
) {
    let port_at = match translation.field {
        AddressField::Source => 0,
        AddressField::Destination => 2,
    };
    if let Some(port) = segment.get_mut(port_at..port_at + 2) {
        port.copy_from_slice(&translation.port.to_be_bytes());
    }
    let at = if number == protocol::UDP {
        udp::CHECKSUM_AT
    } else {
        tcp::CHECKSUM_AT
    };
    let Some(field) = segment.get_mut(at..at + 2) else {
        return;
    };
    let old = u16::from_be_bytes([field[0], field[1]]);
    let new = match checksum {
        L4Checksum::Partial => translation.addresses.apply_partial(old),
        L4Checksum::Whole if number == protocol::UDP && old == 0 => 0,
        L4Checksum::Whole => {
            let new = translation.transport.apply(old);
            if number == protocol::UDP && new == 0 {
                0xffff
            } else {
                new
            }
        }
    };
    field.copy_from_slice(&new.to_be_bytes());
}

/// Change address and port in the packet inside an ICMP error: its own header checksum and its L4 checksum follow,
/// its TTL stays.
pub fn rewrite_inner(packet: &mut [u8], inner: &IpHeader, translation: &Translation) {
    if let Some(header) = packet.get_mut(inner.l3..) {
        rewrite_inner_addresses(header, inner.v4, translation);
    }
    if let Some(segment) = packet.get_mut(inner.l4..inner.end) {
        rewrite_transport(segment, inner.protocol, L4Checksum::Whole, translation);
    }
}

fn rewrite_inner_addresses(header: &mut [u8], v4: bool, translation: &Translation) {
    if v4 {
        let Some(mut header) = ipv4::Header::new_mut(header) else {
            return;
        };
        match translation.field {
            AddressField::Source => header.set_source(translation.address),
            AddressField::Destination => header.set_destination(translation.address),
        }
        header.set_checksum(translation.addresses.apply(header.checksum()));
        return;
    }
    let Some(mut header) = ipv6::Header::new_mut(header) else {
        return;
    };
    match translation.field {
        AddressField::Source => header.set_source(translation.address),
        AddressField::Destination => header.set_destination(translation.address),
    }
}

/// Change addresses and ports of an error (`outer`) and of the packet inside it, lower its TTL, and compute its
/// checksum anew.
pub fn rewrite_icmp_error(
    packet: &mut Packet,
    inner: &IpHeader,
    translation: &Translation,
    outer: &Translation,
) {
    let v4 = packet.meta.ip.v4;
    rewrite_ip(packet.ip_bytes_mut(), v4, Some(outer));
    rewrite_inner(packet.l4_bytes_mut(), inner, &translation.swapped());
    // For ICMPv6 the new addresses are part of the sum; for ICMP only the family counts.
    let IpHeader {
        source,
        destination,
        ..
    } = packet.meta.ip;
    let (source, destination) = if v4 {
        (source, destination)
    } else {
        outer_addresses(packet.ip_bytes())
    };
    let message = packet.l4_bytes_mut();
    if let Some(mut header) = icmp::Header::new_mut(message) {
        header.set_checksum(0);
    }
    let sum = icmp::message_checksum(source, destination, message);
    if let Some(mut header) = icmp::Header::new_mut(message) {
        header.set_checksum(sum);
    }
}

fn outer_addresses(packet: &[u8]) -> (Ip, Ip) {
    ipv6::Header::new(packet).map_or((Ip::UNSPECIFIED, Ip::UNSPECIFIED), |header| {
        (header.source(), header.destination())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Ip;
    use crate::wire::checksum;
    use proptest::prelude::*;

    const CLIENT: Ip = Ip::from_v4(0xc633_6407);
    const VIP: Ip = Ip::from_v4(0xcb00_710a);
    const SERVER: Ip = Ip::from_v4(0x0a00_000b);

    fn dnat() -> Translation {
        Translation::new(AddressField::Destination, (VIP, 53), (SERVER, 5353))
    }

    /// Rule 8.20, translation: 198.51.100.7:40000 -> 203.0.113.10:53, payload 1A 6B, checksum E2B3; after DNAT to
    /// 10.0.0.11:5353 the sum is 0 -> FFFF.
    #[test]
    fn rewrite_transport_udp_result_zero_is_sent_as_ffff() {
        let mut segment = [0x9c, 0x40, 0, 53, 0, 10, 0xe2, 0xb3, 0x1a, 0x6b];
        let sum = checksum::pseudo_header(CLIENT, VIP, 17, 10) + u64::from(checksum::sum(&segment));
        assert_eq!(checksum::fold(sum), 0xffff, "the vector itself is right");
        rewrite_transport(&mut segment, 17, L4Checksum::Whole, &dnat());
        assert_eq!(
            segment,
            [0x9c, 0x40, 0x14, 0xe9, 0, 10, 0xff, 0xff, 0x1a, 0x6b]
        );
    }

    /// Rule 8.20, translation: no checksum stays none.
    #[test]
    fn rewrite_transport_udp_zero_stays_zero() {
        let mut segment = [0x9c, 0x40, 0, 53, 0, 8, 0, 0];
        rewrite_transport(&mut segment, 17, L4Checksum::Whole, &dnat());
        assert_eq!(segment[6..], [0, 0]);
    }

    /// An inner header cut to 8 bytes has ports but no TCP checksum.
    #[test]
    fn rewrite_transport_cut_tcp_changes_port_only() {
        let mut segment = [0x9c, 0x40, 0, 53, 1, 2, 3, 4];
        rewrite_transport(&mut segment, 6, L4Checksum::Whole, &dnat());
        assert_eq!(segment, [0x9c, 0x40, 0x14, 0xe9, 1, 2, 3, 4]);
    }

    proptest! {
        /// Rule 8.20, translation: the update equals a full recomputation, finished or partial, wrong ones stay as
        /// wrong as they were.
        #[test]
        fn rewrite_transport_tcp_equals_recomputation(
            client: u32,
            old: (u32, u16),
            new: (u32, u16),
            mut segment in proptest::collection::vec(any::<u8>(), 20..60),
            error: u16,
        ) {
            let (client, old, new) = (Ip::from_v4(client), (Ip::from_v4(old.0), old.1), (Ip::from_v4(new.0), new.1));
            segment[2..4].copy_from_slice(&old.1.to_be_bytes());
            let len = segment.len();
            let right = |destination: Ip, segment: &[u8]| {
                let mut copy = segment.to_vec();
                copy[16..18].fill(0);
                !checksum::fold(checksum::pseudo_header(client, destination, 6, len) + u64::from(checksum::sum(&copy)))
            };
            let partial = |destination| checksum::fold(checksum::pseudo_header(client, destination, 6, len));
            let translation = Translation::new(AddressField::Destination, old, new);

            let wrong = right(old.0, &segment).wrapping_add(error);
            segment[16..18].copy_from_slice(&wrong.to_be_bytes());
            let mut whole = segment.clone();
            rewrite_transport(&mut whole, 6, L4Checksum::Whole, &translation);
            let result = u16::from_be_bytes([whole[16], whole[17]]);
            // Equal as one's-complement numbers: both differ from right by the same amount.
            let off = |sum: u16, right: u16| (u32::from(sum) + 0xffff - u32::from(right)) % 0xffff;
            prop_assert_eq!(off(result, right(new.0, &whole)), off(wrong, right(old.0, &segment)));

            segment[16..18].copy_from_slice(&partial(old.0).to_be_bytes());
            rewrite_transport(&mut segment, 6, L4Checksum::Partial, &translation);
            prop_assert_eq!(u16::from_be_bytes([segment[16], segment[17]]), partial(new.0));
        }

        /// Forward, then reply with the ports and addresses put back, restores all but the TTL.
        #[test]
        fn rewrite_ip_there_and_back_restores_addresses(source: u32, ttl in 3u8..) {
            let mut packet = [0u8; 20];
            ipv4::Header::new_mut(&mut packet).unwrap().set_own(0, 20, 6, Ip::from_v4(source), VIP);
            packet[8] = ttl;
            packet[10..12].fill(0);
            let sum = checksum::checksum(&packet);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
            let before = packet;
            rewrite_ip(&mut packet, true, Some(&dnat()));
            prop_assert_eq!(checksum::sum(&packet), 0xffff);
            let translation = Translation::new(AddressField::Destination, (SERVER, 5353), (VIP, 53));
            rewrite_ip(&mut packet, true, Some(&translation));
            prop_assert_eq!(checksum::sum(&packet), 0xffff);
            prop_assert_eq!(&packet[12..], &before[12..]);
            prop_assert_eq!(packet[8], ttl - 2);
        }
    }
}
