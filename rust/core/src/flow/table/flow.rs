//! A flow as the TCP state machine and the measurements see it: its three parts put together.

use super::entry::{ColdCells, EntryCells, RareCells, mark};
use crate::base::{Direction, Nanos, SeqNumber};
use crate::flow::side::{SideCells, TcpSide};
use crate::flow::state::{FlowState, Phase};
use crate::wire::segment::Segment;

/// One flow for the TCP state machine: all its parts, in their places in the table. What is changed is changed there.
pub struct Flow<'a> {
    entry: &'a EntryCells,
    cold: &'a ColdCells,
    rare: &'a RareCells,
}

impl<'a> Flow<'a> {
    /// Put the parts of one flow together.
    pub fn new(entry: &'a EntryCells, cold: &'a ColdCells, rare: &'a RareCells) -> Self {
        Self { entry, cold, rare }
    }

    /// Where the flow stands.
    #[inline]
    #[must_use]
    pub fn state(&self) -> FlowState {
        self.entry.state()
    }

    /// What is known of the side that sends in a direction.
    #[inline(always)]
    #[must_use]
    pub fn side(&self, direction: Direction) -> TcpSide {
        self.cold.sides[direction as usize].load()
    }

    /// The same in its place in the table, to look at a part of it.
    #[inline(always)]
    #[must_use]
    pub fn side_cells(&self, direction: Direction) -> &'a SideCells {
        &self.cold.sides[direction as usize]
    }

    /// Note it anew. Which numbers are known is not changed by it.
    #[inline(always)]
    pub fn set_side(&mut self, direction: Direction, side: TcpSide) {
        self.cold.sides[direction as usize].store(side);
    }

    /// Change it, likewise.
    #[inline(always)]
    pub fn change_side(&mut self, direction: Direction, change: impl FnOnce(&mut TcpSide)) {
        let mut side = self.side(direction);
        change(&mut side);
        self.set_side(direction, side);
    }

    /// Whether it is known what a side sends next.
    #[inline(always)]
    #[must_use]
    pub fn knows_snd_nxt(&self, direction: Direction) -> bool {
        self.entry.marks() & mark::SND_NXT << direction as u8 != 0
    }

    /// Whether a side has acknowledged something.
    #[inline(always)]
    #[must_use]
    pub fn knows_rcv_nxt(&self, direction: Direction) -> bool {
        self.entry.marks() & mark::RCV_NXT << direction as u8 != 0
    }

    /// What a side sends next, if that is known.
    #[inline]
    #[must_use]
    pub fn snd_nxt(&self, direction: Direction) -> Option<SeqNumber> {
        self.knows_snd_nxt(direction)
            .then_some(self.side(direction).snd_nxt)
    }

    /// What a side sends next by the last that was heard of it, where nothing is believed yet: a client in
    /// `SynSent` may have begun another attempt.
    #[must_use]
    pub fn latest_snd_nxt(&self, direction: Direction) -> Option<SeqNumber> {
        let retries = direction == Direction::Forward
            && self.state() == FlowState::SynSent
            && self.side(direction).has_syn_again();
        if retries {
            return Some(self.side(Direction::Reply).rcv_nxt);
        }
        self.snd_nxt(direction)
    }

    /// What a side has acknowledged, if that is known.
    #[inline]
    #[must_use]
    pub fn rcv_nxt(&self, direction: Direction) -> Option<SeqNumber> {
        self.knows_rcv_nxt(direction)
            .then_some(self.side(direction).rcv_nxt)
    }

    /// The number that the receiver of a direction waits for: what it has acknowledged, or what follows a SYN that
    /// it is sure to acknowledge.
    #[inline]
    #[must_use]
    pub fn expected_of(&self, direction: Direction) -> Option<SeqNumber> {
        let receiver = direction.other();
        let opening = self.state() == FlowState::SynReceived && receiver == Direction::Forward;
        (opening || self.knows_rcv_nxt(receiver)).then_some(self.side(receiver).rcv_nxt)
    }

    /// The end of what a side has sent without a gap, where that is no guess: the numbers of a pickup are not
    /// confirmed, and what is ahead may be forged.
    #[must_use]
    pub fn sent_for_sure(&self, direction: Direction) -> Option<SeqNumber> {
        let sure = self.entry.is_active() && !self.has_gap(direction);
        self.snd_nxt(direction).filter(|_| sure)
    }

    /// Whether a FIN or data is noted ahead of what a side has sent without a gap.
    #[must_use]
    pub fn has_gap(&self, direction: Direction) -> bool {
        let side = self.side(direction);
        // Before both SYNs were seen nothing was.
        self.state() != FlowState::SynSent && (side.has_fin_ahead() || side.has_data_ahead())
    }

    /// The end of what a side is known to have sent without a gap: SND.NXT or, while more is noted ahead of a gap, what
    /// the other side expects.
    #[must_use]
    pub fn known_snd_nxt(&self, direction: Direction) -> Option<SeqNumber> {
        if self.has_gap(direction) {
            self.expected_of(direction)
        } else {
            self.snd_nxt(direction)
        }
    }

    /// Note what a side sends next.
    #[inline]
    pub fn set_snd_nxt(&mut self, direction: Direction, number: SeqNumber) {
        self.change_side(direction, |side| side.snd_nxt = number);
        self.set_marks(self.entry.marks() | mark::SND_NXT << direction as u8);
    }

    /// Note what a side has acknowledged.
    #[inline]
    pub fn set_rcv_nxt(&mut self, direction: Direction, number: SeqNumber) {
        self.change_side(direction, |side| side.rcv_nxt = number);
        self.set_marks(self.entry.marks() | mark::RCV_NXT << direction as u8);
    }

    /// Note what a side is going to acknowledge: it has not yet.
    pub fn expect_rcv_nxt(&mut self, direction: Direction, number: SeqNumber) {
        self.change_side(direction, |side| side.rcv_nxt = number);
        self.set_marks(self.entry.marks() & !(mark::RCV_NXT << direction as u8));
    }

    /// Nothing is known of either side any more, and neither has sent a FIN.
    pub fn forget_sides(&mut self) {
        for side in &self.cold.sides {
            side.store(TcpSide::default());
        }
        self.set_marks(self.entry.marks() & mark::TAGGED);
    }

    /// Nothing is known of the server's side any more, nor what is ahead of the client's.
    pub fn forget_reply(&mut self) {
        const KNOWN: u8 = (mark::SND_NXT | mark::RCV_NXT) << Direction::Reply as u8;
        if self.side(Direction::Reply).has_syn_again() {
            self.change_side(Direction::Forward, TcpSide::forget_syn);
        }
        self.set_side(Direction::Reply, TcpSide::default());
        self.change_side(Direction::Forward, TcpSide::forget_gap);
        self.set_marks(self.entry.marks() & !KNOWN);
    }

    #[inline(always)]
    fn set_marks(&mut self, marks: u8) {
        self.entry.set_marks(marks);
    }

    /// Note the first SYN of a client, at which its flow begins.
    pub fn begin(&mut self, segment: &Segment) {
        let number = segment.after_syn();
        self.set_syn(number);
        self.set_snd_nxt(Direction::Forward, segment.end);
        self.expect_rcv_nxt(Direction::Forward, number);
        self.change_side(Direction::Forward, |side| side.offer(segment));
    }

    /// The sequence number after the client's last SYN, or after the server's that has answered it while another
    /// counts.
    #[inline]
    #[must_use]
    pub fn syn(&self) -> SeqNumber {
        self.rare.syn()
    }

    /// Note a SYN of the client, or the server's that answers it.
    #[inline]
    pub fn set_syn(&mut self, number: SeqNumber) {
        self.rare.set_syn(number);
    }

    /// The sequence number after the client's first SYN, or after the one that the server has acknowledged alone,
    /// while the client has answered nothing.
    #[must_use]
    pub fn first_syn(&self) -> Option<SeqNumber> {
        let kept = self.state() == FlowState::SynSent && !self.knows_rcv_nxt(Direction::Forward);
        kept.then_some(self.side(Direction::Forward).rcv_nxt)
    }

    /// Whether a number acknowledges the SYN of a handshake that is under way: the client's first, its last, or
    /// data sent with it (RFC 7413).
    #[must_use]
    pub fn answers_syn(&self, number: SeqNumber) -> bool {
        match self.state() {
            FlowState::SynSent => self.answers_first_syn(number) || self.answers_syn_again(number),
            FlowState::SynReceived => self.rcv_nxt(Direction::Reply) == Some(number),
            _ => false,
        }
    }

    /// Whether a number acknowledges the SYN of a client in `SynSent` that is its own for sure.
    #[must_use]
    pub fn answers_first_syn(&self, number: SeqNumber) -> bool {
        let first = self.first_syn().unwrap_or(self.syn());
        number.is_between(first, self.side(Direction::Forward).snd_nxt)
    }

    /// Whether a number acknowledges another SYN than the one that counts, or in `SynSent` than the first: it may
    /// be forged.
    #[must_use]
    pub fn answers_syn_again(&self, number: SeqNumber) -> bool {
        let end = match self.state() {
            FlowState::SynSent => self.side(Direction::Reply).rcv_nxt,
            _ => self.syn(),
        };
        let [client, server] = self.cold.sides.each_ref().map(SideCells::load);
        let open = client.has_syn_again() && !server.has_syn_again();
        open && number.is_between(self.syn(), end)
    }

    /// Whether the server has answered another SYN than the one that counts, and the client may acknowledge that
    /// still.
    #[must_use]
    pub fn has_answer(&self) -> bool {
        matches!(
            self.state(),
            FlowState::SynReceived | FlowState::Established
        ) && self.side(Direction::Reply).has_syn_again()
    }

    /// Time of the last packet that refreshed it.
    #[inline]
    #[must_use]
    pub fn last_seen(&self) -> Nanos {
        self.entry.last_seen()
    }

    /// Bytes that the server has sent and the client has not acknowledged, as far as is known.
    #[inline(always)]
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        const KNOWN: u8 = mark::SND_NXT << Direction::Reply as u8 | mark::RCV_NXT;
        let [client, server] = &self.cold.sides;
        let left = server.snd_nxt().since(client.rcv_nxt());
        if self.entry.marks() & KNOWN == KNOWN && left < 1 << 31 {
            left
        } else {
            0
        }
    }

    /// [`Self::in_flight`] of an established flow with no FIN ahead: both numbers are known, and in order.
    #[inline(always)]
    #[must_use]
    pub fn in_flight_plain(&self) -> u32 {
        let [client, server] = &self.cold.sides;
        let left = server.snd_nxt().since(client.rcv_nxt());
        debug_assert_eq!(left, self.in_flight());
        left
    }

    /// What it waits for.
    #[inline(always)]
    #[must_use]
    pub fn phase(&self) -> Phase {
        Phase::from_bits(self.entry.measured())
    }

    /// Since when.
    #[inline]
    #[must_use]
    pub fn stamp(&self) -> u32 {
        self.entry.measured() >> 2
    }

    /// Set both. `stamp`: 30 bits.
    #[inline(always)]
    pub fn set_phase(&mut self, phase: Phase, stamp: u32) {
        self.entry.set_measured(stamp << 2 | phase as u32);
    }

    /// Note that a side is done.
    pub fn mark_fin(&mut self, direction: Direction) {
        self.set_marks(self.entry.marks() | mark::FIN << direction as u8);
    }

    /// Note that the FIN of one side has closed it, whatever the other's.
    pub fn mark_closed(&mut self) {
        self.set_marks(self.entry.marks() | mark::CLOSED);
    }

    /// Whether a side is done.
    #[must_use]
    pub fn has_fin(&self, direction: Direction) -> bool {
        self.entry.marks() & mark::FIN << direction as u8 != 0
    }

    /// Whether both sides are done.
    #[must_use]
    pub fn has_both_fins(&self) -> bool {
        self.entry.has_both_fins()
    }
}
