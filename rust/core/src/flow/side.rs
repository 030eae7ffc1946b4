//! What is known of one side of a TCP connection: its numbers, its window, and what is noted for later.

use crate::base::SeqNumber;
use crate::sys::cells::{Cell32, cells};
use crate::wire::segment::{MOST_SCALE, NO_SCALE, Segment};

/// What is known of one side of a TCP connection. 12 bytes, plain data. Which numbers are known stands in the
/// entry's marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct TcpSide {
    /// The sequence number after what the side is believed to have sent (SND.NXT): without a gap, but while data
    /// ahead is noted. While a FIN ahead is noted: the number after that one.
    pub snd_nxt: SeqNumber,
    /// The number it acknowledged last: what it expects next (RCV.NXT). Before it has acknowledged anything: on the
    /// client's side, in `SynSent` the number after its first SYN, in `SynReceived` the number after the server's,
    /// which it is expected to acknowledge; on the server's side, in `SynSent` the number after the client's last
    /// SYN and its data, if that is another than the first.
    pub rcv_nxt: SeqNumber,
    /// The largest window it has advertised, before scaling.
    pub(super) window: u16,
    /// How far that is shifted.
    pub(super) scale: u8,
    pub(super) flags: u8,
}

cells! {
    /// The same in its place in the flow table.
    pub struct SideCells {
        snd_nxt: Cell32,
        rcv_nxt: Cell32,
        noted: Cell32,
    }
}

/// The part that is read and written as one number.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Noted {
    window: u16,
    scale: u8,
    flags: u8,
}

impl SideCells {
    /// [`TcpSide::snd_nxt`] alone.
    #[inline(always)]
    #[must_use]
    pub fn snd_nxt(&self) -> SeqNumber {
        SeqNumber::new(self.snd_nxt.get())
    }

    /// [`TcpSide::rcv_nxt`] alone.
    #[inline(always)]
    #[must_use]
    pub fn rcv_nxt(&self) -> SeqNumber {
        SeqNumber::new(self.rcv_nxt.get())
    }

    /// What is noted for later, alone.
    #[inline(always)]
    pub(super) fn flags(&self) -> u8 {
        bytemuck::cast::<u32, Noted>(self.noted.get()).flags
    }

    /// Its value.
    #[inline(always)]
    #[must_use]
    pub fn load(&self) -> TcpSide {
        let Noted {
            window,
            scale,
            flags,
        } = bytemuck::cast(self.noted.get());
        TcpSide {
            snd_nxt: SeqNumber::new(self.snd_nxt.get()),
            rcv_nxt: SeqNumber::new(self.rcv_nxt.get()),
            window,
            scale,
            flags,
        }
    }

    /// Give it another value.
    #[inline(always)]
    pub fn store(&self, side: TcpSide) {
        let TcpSide {
            window,
            scale,
            flags,
            ..
        } = side;
        self.snd_nxt.set(side.snd_nxt.get());
        self.rcv_nxt.set(side.rcv_nxt.get());
        self.noted.set(bytemuck::cast(Noted {
            window,
            scale,
            flags,
        }));
    }
}

/// Where nothing is known of a window, it is 1 with this scale: 2^30, the largest there is.
const UNKNOWN_SCALE: u8 = 30;

/// What [`TcpSide`] notes for later.
pub(super) mod note {
    /// A FIN was believed that does not follow what was seen: it counts once exactly its number is acknowledged.
    pub const FIN_AHEAD: u8 = 1;
    /// Its SYN offered a window scale. Means nothing any more once both SYNs were seen.
    pub const OFFERED_SCALE: u8 = 2;
    /// The same bit, once both SYNs were seen: data was believed that does not follow what was seen. What the other
    /// side has acknowledged is all that is sure. A flow that was closed before both were seen may keep the first
    /// meaning: it changes nothing there, for nothing was acknowledged and what was sent ends where the other side
    /// waits.
    pub const DATA_AHEAD: u8 = OFFERED_SCALE;
    /// Of the client: another SYN than the one that counts was seen. The flow keeps its number, and the upper four
    /// bits the scale it offers. Of the server: it has answered that one. The flow keeps the number after its SYN
    /// instead, which the client acknowledges if it is its own, and the upper four bits likewise.
    pub const SYN_AGAIN: u8 = 4;
    /// Nothing is known of its window: no SYN of it was seen, and it has not been heard.
    pub const UNHEARD: u8 = 8;
    pub const SCALE_AT: u8 = 4;
    /// Instead of a scale: none offered.
    pub const NO_SCALE: u8 = 15;
}

impl Default for TcpSide {
    /// Nothing known: a window of 2^30.
    fn default() -> Self {
        Self {
            window: 1,
            scale: UNKNOWN_SCALE,
            flags: note::UNHEARD,
            ..Self::UNSCALED
        }
    }
}

impl TcpSide {
    /// Nothing advertised yet, in a connection whose SYNs are seen.
    pub(super) const UNSCALED: Self = Self {
        snd_nxt: SeqNumber::ZERO,
        rcv_nxt: SeqNumber::ZERO,
        window: 0,
        scale: 0,
        flags: 0,
    };

    /// The largest window it has advertised, bytes; 2^30 while it is unheard.
    #[inline(always)]
    #[must_use]
    pub const fn window(&self) -> u32 {
        // The largest is 65535 << 14, the mark of the unknown 1 << 30.
        (self.window as u32).wrapping_shl(self.scale as u32)
    }

    /// Note a window that it advertises, in a segment without SYN. It is not unheard.
    #[inline(always)]
    pub(super) fn advertise(&mut self, window: u16) {
        self.window = self.window.max(window);
    }

    /// Whether this side can have come about: a scale beyond the largest that is ever noted is a damaged one.
    pub(super) const fn is_possible(&self) -> bool {
        self.scale <= UNKNOWN_SCALE
    }

    pub(super) const fn is_unheard(&self) -> bool {
        self.flags & note::UNHEARD != 0
    }

    /// Note the first window of a side whose SYN was not seen: an unknown scale counts as the largest (RFC 7323 2.3).
    pub(super) fn hear(&mut self, window: u16) {
        if self.is_unheard() {
            (self.window, self.scale) = (0, MOST_SCALE);
            self.flags &= !note::UNHEARD;
        }
        self.advertise(window);
    }

    /// Forget what it advertised and offered: another SYN takes the place of the one before.
    pub(super) fn forget_window(&mut self) {
        *self = Self {
            snd_nxt: self.snd_nxt,
            rcv_nxt: self.rcv_nxt,
            ..Self::UNSCALED
        };
    }

    /// Note the window of a SYN, which is never scaled, and the scale it offers.
    pub fn offer(&mut self, segment: &Segment) {
        if self.is_unheard() {
            self.forget_window();
        }
        self.window = self.window.max(segment.window);
        if segment.scale != NO_SCALE {
            self.flags |= note::OFFERED_SCALE;
            self.scale = self.scale.max(segment.scale);
        }
    }

    pub(super) const fn offers_scale(&self) -> bool {
        self.flags & note::OFFERED_SCALE != 0
    }

    /// From now on windows are scaled, or are not. What was advertised before was not.
    pub(super) fn settle_scale(&mut self, scaled: bool) {
        if !scaled {
            self.scale = 0;
        }
        self.window = u32::from(self.window).div_ceil(1 << self.scale) as u16;
        self.flags &= !note::OFFERED_SCALE;
    }

    /// Note another SYN than the one that counts: the scale it offers.
    pub(super) fn remember_syn(&mut self, scale: u8) {
        self.forget_syn();
        self.flags |= note::SYN_AGAIN | scale.min(note::NO_SCALE) << note::SCALE_AT;
    }

    pub(super) fn forget_syn(&mut self) {
        self.flags &= !(note::SYN_AGAIN | note::NO_SCALE << note::SCALE_AT);
    }

    /// Whether another SYN than the one that counts is remembered.
    #[inline(always)]
    #[must_use]
    pub const fn has_syn_again(&self) -> bool {
        self.flags & note::SYN_AGAIN != 0
    }

    /// The scale of the SYN that was remembered, or [`note::NO_SCALE`].
    pub(super) const fn scale_again(&self) -> u8 {
        self.flags >> note::SCALE_AT
    }

    /// The scale of the SYN that counts, likewise.
    pub(super) const fn scale_offered(&self) -> u8 {
        if self.offers_scale() {
            self.scale
        } else {
            note::NO_SCALE
        }
    }

    /// Whether a FIN ahead of what was seen is noted: its number stands where the end of what was sent does else.
    #[must_use]
    pub const fn has_fin_ahead(&self) -> bool {
        self.flags & note::FIN_AHEAD != 0
    }

    /// Whether data ahead of what was seen is noted: its end stands where the end of what was sent without a gap
    /// does else.
    #[inline(always)]
    #[must_use]
    pub const fn has_data_ahead(&self) -> bool {
        self.flags & note::DATA_AHEAD != 0
    }

    /// Nothing is noted ahead of what was seen.
    pub(super) fn forget_gap(&mut self) {
        self.flags &= !(note::FIN_AHEAD | note::DATA_AHEAD);
    }

    /// Note that the other side has acknowledged all that this one is known to have sent.
    #[inline(always)]
    pub(super) fn close_gap(&mut self) {
        self.flags &= !note::DATA_AHEAD;
    }

    /// Note the end of a segment without FIN that is believed, where the other side waits for `begins`.
    #[inline(always)]
    pub(super) fn note_end(&mut self, begins: SeqNumber, segment: &Segment) {
        if segment.sequence.is_between(begins, self.snd_nxt) & !self.has_data_ahead() {
            self.snd_nxt = self.snd_nxt.later(segment.end);
        } else {
            self.note_end_ahead(begins, segment);
        }
    }

    /// The same where there is a gap, or will be: what does not start where the other side waits, or in what
    /// follows that, may be a guess.
    #[cold]
    pub(super) fn note_end_ahead(&mut self, begins: SeqNumber, segment: &Segment) {
        if segment.sequence == begins && !self.snd_nxt.is_after(segment.end) {
            self.close_gap();
            self.snd_nxt = segment.end;
        } else if segment.end.is_after(self.snd_nxt) {
            self.flags |= note::DATA_AHEAD;
            self.snd_nxt = segment.end;
        }
    }

    /// What it is once the SYN that was remembered counts. Its window was not kept: the largest that a SYN can have.
    pub(super) const fn renewed(&self) -> Self {
        let scale = self.scale_again();
        let offered = scale != note::NO_SCALE;
        Self {
            window: u16::MAX,
            scale: if offered { scale } else { 0 },
            flags: if offered { note::OFFERED_SCALE } else { 0 },
            ..Self::UNSCALED
        }
    }
}
