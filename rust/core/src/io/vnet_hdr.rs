//! What precedes a frame on a packet socket: `struct virtio_net_hdr` (virtio 1.2, 5.1.6) in host order, and the
//! VLAN tag that the kernel took out and tells in a control message (`PACKET_AUXDATA`, `linux/if_packet.h`). Pure
//! bytes: no system call here.

use crate::base::Offload;

/// Bytes of the offload header.
pub const OFFLOAD_HEADER_LEN: usize = 10;
/// Bytes of a VLAN tag.
pub const VLAN_TAG_LEN: usize = 4;

const NEEDS_CSUM: u8 = 1;
const GSO_ECN: u8 = 0x80;
const ADDRESSES_LEN: usize = 12;
const VLAN_8021Q: u16 = 0x8100;

const SOL_PACKET: i32 = 263;
const PACKET_AUXDATA: i32 = 8;
pub(super) const TP_STATUS_VLAN_VALID: u32 = 0x10;
pub(super) const TP_STATUS_VLAN_TPID_VALID: u32 = 0x40;

/// `struct cmsghdr`: a length as wide as a pointer, level, kind.
const CONTROL_HEADER_LEN: usize = size_of::<usize>() + 8;
/// `struct tpacket_auxdata`: status, len, snaplen (4 bytes each), mac, net, vlan tci, vlan tpid (2 each).
const AUXDATA_LEN: usize = 20;

/// Read an offload header. One that leaves nothing to do (checksum verified, or no flag) reads as the default.
#[must_use]
pub fn decode(header: [u8; OFFLOAD_HEADER_LEN]) -> Offload {
    let [flags, gso_type, ..] = header;
    if flags & NEEDS_CSUM == 0 && gso_type & !GSO_ECN == 0 {
        return Offload::default();
    }
    let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    Offload {
        flags,
        gso_type,
        hdr_len: word(2),
        gso_size: word(4),
        csum_start: word(6),
        csum_offset: word(8),
    }
}

/// Write an offload header.
#[must_use]
pub fn encode(offload: Offload) -> [u8; OFFLOAD_HEADER_LEN] {
    let mut header = [offload.flags, offload.gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
    let words = [
        offload.hdr_len,
        offload.gso_size,
        offload.csum_start,
        offload.csum_offset,
    ];
    for (field, word) in header[2..].chunks_exact_mut(2).zip(words) {
        field.copy_from_slice(&word.to_ne_bytes());
    }
    header
}

/// Move the offsets of an offload behind a tag that was put back: they count from the start of the frame; 0 means
/// "not given".
#[must_use]
pub fn behind_tag(mut offload: Offload) -> Offload {
    if offload.hdr_len != 0 {
        offload.hdr_len = offload.hdr_len.saturating_add(VLAN_TAG_LEN as u16);
    }
    if offload.flags & NEEDS_CSUM != 0 {
        offload.csum_start = offload.csum_start.saturating_add(VLAN_TAG_LEN as u16);
    }
    offload
}

/// Find the VLAN tag that the control messages of a receive tell of, in network order.
#[must_use]
pub fn stripped_tag(mut control: &[u8]) -> Option<[u8; VLAN_TAG_LEN]> {
    while let Some((message, rest)) = split_control(control) {
        if let Some(tag) = auxdata_tag(message) {
            return Some(tag);
        }
        control = rest;
    }
    None
}

/// Split the first control message off; `None` at the end or when its length makes no sense.
fn split_control(control: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = usize::from_ne_bytes(*control.first_chunk()?);
    if len < CONTROL_HEADER_LEN || len > control.len() {
        return None;
    }
    let next = len.next_multiple_of(size_of::<usize>()).min(control.len());
    Some((&control[..len], &control[next..]))
}

/// The tag in one control message, when it is auxiliary data with a valid tag.
fn auxdata_tag(message: &[u8]) -> Option<[u8; VLAN_TAG_LEN]> {
    let (header, data) = message.split_at_checked(CONTROL_HEADER_LEN)?;
    let level = i32::from_ne_bytes(*header[size_of::<usize>()..].first_chunk()?);
    let kind = i32::from_ne_bytes(*header.last_chunk()?);
    if level != SOL_PACKET || kind != PACKET_AUXDATA {
        return None;
    }
    let data: &[u8; AUXDATA_LEN] = data.first_chunk()?;
    let status = u32::from_ne_bytes([data[0], data[1], data[2], data[3]]);
    if status & TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let told = status & TP_STATUS_VLAN_TPID_VALID != 0;
    let word = |at: usize| u16::from_ne_bytes([data[at], data[at + 1]]);
    Some(tag_bytes(word(16), told.then(|| word(18))))
}

/// A tag in network order; 802.1Q where the kernel does not tell the protocol.
#[must_use]
pub fn tag_bytes(tci: u16, tpid: Option<u16>) -> [u8; VLAN_TAG_LEN] {
    let [tpid_high, tpid_low] = tpid.unwrap_or(VLAN_8021Q).to_be_bytes();
    let [tci_high, tci_low] = tci.to_be_bytes();
    [tpid_high, tpid_low, tci_high, tci_low]
}

/// Put a tag behind the two addresses. `space` holds [`VLAN_TAG_LEN`] free bytes, then the frame; afterwards the
/// whole of it is the frame. Only the 12 address bytes move. A frame too short to have both addresses gets no tag:
/// `false`.
pub fn insert_tag(space: &mut [u8], tag: [u8; VLAN_TAG_LEN]) -> bool {
    if space.len() < VLAN_TAG_LEN + ADDRESSES_LEN {
        return false;
    }
    space.copy_within(VLAN_TAG_LEN..VLAN_TAG_LEN + ADDRESSES_LEN, 0);
    space[ADDRESSES_LEN..ADDRESSES_LEN + VLAN_TAG_LEN].copy_from_slice(&tag);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTIAL: Offload = Offload {
        flags: 1,
        gso_type: 1,
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
    };

    fn control_message(level: i32, kind: i32, status: u32, tci: u16, tpid: u16) -> Vec<u8> {
        let mut message = (CONTROL_HEADER_LEN + AUXDATA_LEN).to_ne_bytes().to_vec();
        message.extend(level.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(status.to_ne_bytes());
        message.extend([0; 12]);
        message.extend(tci.to_ne_bytes());
        message.extend(tpid.to_ne_bytes());
        message.resize(message.len().next_multiple_of(size_of::<usize>()), 0);
        message
    }

    #[test]
    fn offload_header_written_then_read_is_the_same() {
        assert_eq!(decode(encode(PARTIAL)), PARTIAL);
    }

    #[test]
    fn offload_header_with_verified_checksum_reads_as_nothing_to_do() {
        assert_eq!(decode([2, 0, 1, 0, 2, 0, 3, 0, 4, 0]), Offload::default());
    }

    #[test]
    fn offload_header_with_only_ecn_bit_reads_as_nothing_to_do() {
        assert_eq!(
            decode([0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0]),
            Offload::default()
        );
    }

    #[test]
    fn offload_behind_tag_moves_given_offsets_only() {
        assert_eq!(
            behind_tag(PARTIAL),
            Offload {
                hdr_len: 58,
                csum_start: 38,
                ..PARTIAL
            }
        );
        assert_eq!(behind_tag(Offload::default()), Offload::default());
    }

    #[test]
    fn stripped_tag_with_protocol_is_told() {
        let control = control_message(SOL_PACKET, PACKET_AUXDATA, 0x50, 0x2007, 0x88a8);
        assert_eq!(stripped_tag(&control), Some([0x88, 0xa8, 0x20, 0x07]));
    }

    #[test]
    fn stripped_tag_without_protocol_is_8021q() {
        let control = control_message(SOL_PACKET, PACKET_AUXDATA, 0x10, 7, 0);
        assert_eq!(stripped_tag(&control), Some([0x81, 0, 0, 7]));
    }

    #[test]
    fn stripped_tag_behind_another_message_is_found() {
        let mut control = control_message(1, 29, 0x50, 1, 2);
        control.extend(control_message(SOL_PACKET, PACKET_AUXDATA, 0x50, 7, 0x8100));
        assert_eq!(stripped_tag(&control), Some([0x81, 0, 0, 7]));
    }

    #[test]
    fn stripped_tag_without_valid_bit_or_in_broken_control_is_none() {
        let valid = control_message(SOL_PACKET, PACKET_AUXDATA, 0x50, 7, 0x8100);
        assert_eq!(
            stripped_tag(&control_message(SOL_PACKET, PACKET_AUXDATA, 0, 7, 0x8100)),
            None
        );
        assert_eq!(stripped_tag(&[]), None);
        for len in 0..CONTROL_HEADER_LEN + AUXDATA_LEN {
            assert_eq!(stripped_tag(&valid[..len]), None, "cut to {len}");
        }
        assert_eq!(stripped_tag(&[0; 64]), None);
    }

    #[test]
    fn inserted_tag_sits_behind_addresses() {
        let mut space = [&[0; VLAN_TAG_LEN][..], b"DESTINSOURCE", b"\x08\x00rest"].concat();
        assert!(insert_tag(&mut space, [0x81, 0, 0, 7]));
        assert_eq!(space, b"DESTINSOURCE\x81\x00\x00\x07\x08\x00rest");
    }

    #[test]
    fn inserted_tag_in_frame_without_addresses_is_refused() {
        assert!(!insert_tag(&mut [0; 15], [0x81, 0, 0, 7]));
    }
}
