//! One TCP segment, as far as a balancer reads it (RFC 9293 3.1, RFC 7323 2).

use super::tcp::flag;
use crate::base::SeqNumber;

/// What the state machine reads from one TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number.
    pub sequence: SeqNumber,
    /// Acknowledgement number; means something only with ACK.
    pub acknowledgement: SeqNumber,
    /// Sequence number after this segment: SYN and FIN count one each.
    pub end: SeqNumber,
    /// Window, as the header has it.
    pub window: u16,
    /// Control bits.
    pub flags: u8,
    /// Window scale that a SYN offers (RFC 7323 2.2), at most [`MOST_SCALE`]; [`NO_SCALE`] when it offers none, and
    /// in any other segment.
    pub scale: u8,
}

/// No window scale option.
pub const NO_SCALE: u8 = u8::MAX;
/// The largest shift there is (RFC 7323 2.3): a larger one counts as this.
pub const MOST_SCALE: u8 = 14;

impl Segment {
    /// Make one of `payload_len` bytes of data.
    #[inline]
    #[must_use]
    pub const fn new(
        sequence: SeqNumber,
        acknowledgement: SeqNumber,
        flags: u8,
        payload_len: usize,
    ) -> Self {
        let control = (flags & flag::SYN != 0) as u32 + (flags & flag::FIN != 0) as u32;
        let end = sequence.plus(payload_len as u32).plus(control);
        Self {
            sequence,
            acknowledgement,
            end,
            window: 0,
            flags,
            scale: NO_SCALE,
        }
    }

    /// The same with a window and, for a SYN, the scale it offers.
    #[inline]
    #[must_use]
    pub const fn with_window(self, window: u16, scale: u8) -> Self {
        Self {
            window,
            scale,
            ..self
        }
    }

    /// Whether a control bit is set.
    #[inline]
    #[must_use]
    pub const fn has(&self, bit: u8) -> bool {
        self.flags & bit != 0
    }

    /// Whether it carries data.
    #[inline(always)]
    #[must_use]
    pub const fn has_data(&self) -> bool {
        let control = (self.has(flag::SYN)) as u32 + (self.has(flag::FIN)) as u32;
        self.end.since(self.sequence) != control
    }

    /// A first SYN: the start of a connection.
    #[inline]
    #[must_use]
    pub const fn is_opening(&self) -> bool {
        self.has(flag::SYN) && !self.has(flag::ACK)
    }

    /// A segment from the middle of a connection: it may be placed by a hash alone, and stored.
    #[inline]
    #[must_use]
    pub const fn can_pick_up(&self) -> bool {
        self.flags & (flag::ACK | flag::SYN | flag::RST | flag::FIN) == flag::ACK
    }

    /// A segment from the end of a connection: it may be placed by a hash alone, and leaves no entry.
    #[inline]
    #[must_use]
    pub const fn is_ending(&self) -> bool {
        self.flags & (flag::RST | flag::FIN) != 0
    }

    /// The sequence number after the SYN of a segment that has one: what its receiver acknowledges at least.
    #[inline]
    #[must_use]
    pub const fn after_syn(&self) -> SeqNumber {
        self.sequence.plus(1)
    }
}
