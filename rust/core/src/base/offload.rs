//! Work that a sender left to the network card, as it travels beside a frame.

/// Work the sender left to the network card: `struct virtio_net_hdr`, in host order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of virtio 1.2, 5.1.6")]
pub struct Offload {
    pub flags: u8,
    pub gso_type: u8,
    pub hdr_len: u16,
    pub gso_size: u16,
    pub csum_start: u16,
    pub csum_offset: u16,
}

const NEEDS_CHECKSUM: u8 = 1;
const GSO_MASK: u8 = 0x7f;

/// GSO types (virtio 1.2, 5.1.6).
#[allow(missing_docs, reason = "the names of the standard")]
pub mod gso {
    pub const TCP_V4: u8 = 1;
    pub const TCP_V6: u8 = 4;
    pub const UDP_L4: u8 = 5;
}

impl Offload {
    /// No work left.
    pub const NONE: Self = Self {
        flags: 0,
        gso_type: 0,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    /// Whether the L4 checksum is only the pseudo-header sum so far.
    #[inline(always)]
    #[must_use]
    pub const fn is_partial(&self) -> bool {
        self.flags & NEEDS_CHECKSUM != 0
    }

    /// The GSO type without its ECN bit; `None` for a frame that is not to be cut.
    #[inline(always)]
    #[must_use]
    pub const fn gso(&self) -> Option<u8> {
        match self.gso_type & GSO_MASK {
            0 => None,
            kind => Some(kind),
        }
    }

    /// What is passed on with the packet: only the flag we know; nothing at all where there is no work left.
    #[inline(always)]
    #[must_use]
    pub const fn onward(self) -> Self {
        if self.is_partial() || self.gso().is_some() {
            return self.work_left();
        }
        Self::NONE
    }

    #[inline(never)]
    const fn work_left(self) -> Self {
        Self {
            flags: self.flags & NEEDS_CHECKSUM,
            ..self
        }
    }
}
