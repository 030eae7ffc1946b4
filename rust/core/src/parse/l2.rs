//! The Ethernet header and its tags: rules 3.1 and 3.4.

use crate::base::Reason;
use crate::wire::ethernet;

const MOST_TAGS: usize = 2;

/// The Ethernet header and its tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// After the tags.
    pub ethertype: u16,
    /// Offset of what follows.
    pub l3: usize,
}

/// Read the Ethernet header and up to two tags (rules 3.1, 3.4). `on_tag` gets each tag's TCI.
///
/// # Errors
/// `FrameTruncated`, `VlanDepth`.
#[inline(always)]
pub fn link(frame: &[u8], mut on_tag: impl FnMut(u16)) -> Result<Link, Reason> {
    let header = ethernet::Frame::new(frame).ok_or(Reason::FrameTruncated)?;
    let mut link = Link {
        ethertype: header.ethertype(),
        l3: ethernet::LEN,
    };
    let mut tags = 0;
    while ethernet::is_tag(link.ethertype) {
        if tags == MOST_TAGS {
            return Err(Reason::VlanDepth);
        }
        let tag = frame
            .get(link.l3..)
            .and_then(<[u8]>::first_chunk::<{ ethernet::TAG_LEN }>);
        let &[high, low, type_high, type_low] = tag.ok_or(Reason::FrameTruncated)?;
        on_tag(u16::from_be_bytes([high, low]));
        link.ethertype = u16::from_be_bytes([type_high, type_low]);
        link.l3 += ethernet::TAG_LEN;
        tags += 1;
    }
    Ok(link)
}
