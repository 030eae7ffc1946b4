//! The Ethernet header and its tags: rule 3.1, frame length, and rule 3.4, VLAN tags.

use crate::base::Reason;
use crate::wire::ethernet;

const MOST_TAGS: usize = 2;

/// The Ethernet header and its tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L2Header {
    /// After the tags.
    pub ethertype: u16,
    /// Offset of what follows.
    pub l3: usize,
}

/// Read the Ethernet header and up to two tags (rule 3.1, frame length, and rule 3.4, VLAN tags). `on_tag` gets each
/// tag's TCI.
///
/// # Errors
/// `FrameTruncated`, `VlanDepth`.
#[inline(always)]
pub fn l2(frame: &[u8], mut on_tag: impl FnMut(u16)) -> Result<L2Header, Reason> {
    let header = ethernet::Frame::new(frame).ok_or(Reason::FrameTruncated)?;
    let mut l2 = L2Header {
        ethertype: header.ethertype(),
        l3: ethernet::LEN,
    };
    let mut tags = 0;
    while ethernet::is_tag(l2.ethertype) {
        if tags == MOST_TAGS {
            return Err(Reason::VlanDepth);
        }
        let tag = frame
            .get(l2.l3..)
            .and_then(<[u8]>::first_chunk::<{ ethernet::TAG_LEN }>);
        let &[high, low, type_high, type_low] = tag.ok_or(Reason::FrameTruncated)?;
        on_tag(u16::from_be_bytes([high, low]));
        l2.ethertype = u16::from_be_bytes([type_high, type_low]);
        l2.l3 += ethernet::TAG_LEN;
        tags += 1;
    }
    Ok(l2)
}
