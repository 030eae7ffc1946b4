//! Cutting: a packet that is too long for its way, made into fragments (rule 12.2, frames over the MTU, RFC 791 3.2).

use crate::wire::{checksum, ipv4};

/// Cut an IPv4 packet into fragments of at most `mtu` bytes. It must be longer than that, without DF, and `mtu`
/// leave room for its header and 8 bytes.
#[must_use]
pub fn cut(packet: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    let Some(header) = ipv4::Header::new(packet) else {
        return Vec::new();
    };
    let header_len = header.header_len();
    let flags_offset = header.flags_offset();
    let (Some(first_header), Some(mut data)) = (packet.get(..header_len), packet.get(header_len..))
    else {
        return Vec::new();
    };
    let mut later_header = packet[..ipv4::LEN].to_vec();
    later_header.extend(ipv4::copied_options(&packet[ipv4::LEN..header_len]));
    let mut pieces = Vec::new();
    let mut offset = flags_offset & ipv4::OFFSET_MASK;
    while !data.is_empty() {
        let header = if pieces.is_empty() {
            first_header
        } else {
            &later_header
        };
        let room = mtu.saturating_sub(header.len());
        let len = if data.len() <= room {
            data.len()
        } else {
            (room & !7).max(8)
        };
        let (piece, rest) = data.split_at(len.min(data.len()));
        let more = if rest.is_empty() {
            flags_offset & ipv4::MORE_FRAGMENTS
        } else {
            ipv4::MORE_FRAGMENTS
        };
        let word = flags_offset & ipv4::RESERVED | more | offset & ipv4::OFFSET_MASK;
        pieces.push(fragment(header, piece, word));
        offset = offset.wrapping_add((len / 8) as u16);
        data = rest;
    }
    pieces
}

fn fragment(header: &[u8], data: &[u8], flags_offset: u16) -> Vec<u8> {
    let mut packet = [header, data].concat();
    let total_len = packet.len() as u16;
    packet[0] = 0x40 | (header.len() / 4) as u8;
    if let Some(mut view) = ipv4::Header::new_mut(&mut packet) {
        view.set_total_len(total_len);
        view.set_flags_offset(flags_offset);
        view.set_checksum(0);
    }
    let sum = checksum::checksum(&packet[..header.len()]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Ip;
    use proptest::prelude::*;

    fn packet(options: &[u8], flags_offset: u16, data: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 20];
        ipv4::Header::new_mut(&mut packet).unwrap().set_own(
            0,
            0,
            17,
            Ip::from_v4(1),
            Ip::from_v4(2),
        );
        packet.extend(options);
        fragment(&packet, data, flags_offset)
    }

    /// Rule 12.2, frames over the MTU: the copied option travels with every fragment, the other with the first only.
    #[test]
    fn cut_with_options_repeats_copied_only() {
        let options = [7, 3, 4, 0x94, 4, 0, 0, 0];
        let pieces = cut(&packet(&options, 0, &[5; 60]), 52);
        let lens: Vec<_> = pieces.iter().map(|piece| (piece[0], piece.len())).collect();
        assert_eq!(lens, [(0x47, 52), (0x46, 48), (0x46, 36)]);
        assert_eq!(pieces[1][20..24], [0x94, 4, 0, 0]);
    }

    proptest! {
        /// Put together again, the pieces are the packet; each fits, has a right checksum, and all but the last
        /// have data in units of 8.
        #[test]
        fn cut_any_packet_joins_back(
            data in proptest::collection::vec(any::<u8>(), 100..400),
            mtu in 28usize..110,
            more: bool,
            offset in 0u16..100,
        ) {
            let flags_offset = offset | if more { ipv4::MORE_FRAGMENTS } else { 0 };
            let pieces = cut(&packet(&[], flags_offset, &data), mtu);
            let mut at = usize::from(offset) * 8;
            let mut joined = Vec::new();
            for (number, piece) in pieces.iter().enumerate() {
                let header = ipv4::Header::new(piece).unwrap();
                let last = number + 1 == pieces.len();
                prop_assert!(piece.len() <= mtu && (last || (piece.len() - 20) % 8 == 0));
                prop_assert_eq!(checksum::sum(&piece[..20]), 0xffff);
                prop_assert_eq!(usize::from(header.flags_offset() & ipv4::OFFSET_MASK) * 8, at);
                prop_assert_eq!(header.flags_offset() & ipv4::MORE_FRAGMENTS != 0, more || !last);
                joined.extend_from_slice(&piece[20..]);
                at += piece.len() - 20;
            }
            prop_assert_eq!(joined, data);
        }
    }
}
