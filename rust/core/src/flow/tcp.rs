//! The state of a flow, as far as a balancer must follow it (RFC 9293 3.3.2, RFC 5382, RFC 5961), and the one place that judges what a segment may change.
//!
//! The addresses and ports of a connection are no secret; its sequence numbers are. So a segment is *believed* only where it fits what the other side has
//! vouched for: it starts within the window that the other side's acknowledgements opened, and acknowledges what its own window let the other side send.
//! Only a believed segment moves numbers, state, idle timer and last hop; any other is handed on to the endpoint, which judges by the same numbers, and
//! changes nothing here. Data is never dropped for its numbers.
//!
//! A window has room for guesses. So what ends a flow must be *exact*: a reset where the other side waits for it, or at the end of what was sent without a
//! gap behind that; a FIN between these two, or at a number that the other side acknowledges. What was sent without a gap is [`Side::snd_nxt`], and it is never
//! before what the other side has acknowledged.

use super::table::Flow;
use crate::base::is_between;
use crate::base::is_later;
use crate::base::later;
use crate::base::{Direction, Reason};
use crate::flow::state::FlowState;
use crate::wire::segment::MOST_SCALE;
use crate::wire::segment::NO_SCALE;
use crate::wire::segment::Segment;
use crate::wire::tcp::flag;

/// What is known of one side of a TCP connection. 12 bytes, plain data. Which numbers are known stands in the entry's marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Side {
    /// The sequence number after what the side is believed to have sent (SND.NXT): without a gap, but while data ahead is noted. While a FIN ahead is noted:
    /// the number after that one.
    pub snd_nxt: u32,
    /// The number it acknowledged last: what it expects next (RCV.NXT). Before it has acknowledged anything: on the client's side, in `SynSent` the number
    /// after its first SYN, in `SynReceived` the number after the server's, which it is expected to acknowledge; on the server's side, in `SynSent` the number
    /// after the client's last SYN and its data, if that is another than the first.
    pub rcv_nxt: u32,
    /// The largest window it has advertised, before scaling.
    window: u16,
    /// How far that is shifted.
    scale: u8,
    flags: u8,
}

/// What [`Side`] notes for later.
mod note {
    /// A FIN was believed that does not follow what was seen: it counts once exactly its number is acknowledged.
    pub const FIN_AHEAD: u8 = 1;
    /// Its SYN offered a window scale. Means nothing any more once both SYNs were seen.
    pub const OFFERED_SCALE: u8 = 2;
    /// The same bit, once both SYNs were seen: data was believed that does not follow what was seen. What the other side has acknowledged is all that is sure.
    /// A flow that was closed before both were seen may keep the first meaning: it changes nothing there, for nothing was acknowledged and what was sent ends
    /// where the other side waits.
    pub const DATA_AHEAD: u8 = OFFERED_SCALE;
    /// Of the client: another SYN than the one that counts was seen. The flow keeps its number, and the upper four bits the scale it offers. Of the server: it
    /// has answered that one. The flow keeps the number after its SYN instead, which the client acknowledges if it is its own, and the upper four bits likewise.
    pub const SYN_AGAIN: u8 = 4;
    /// Nothing is known of its window: no SYN of it was seen, and it has not been heard.
    pub const UNHEARD: u8 = 8;
    pub const SCALE_AT: u8 = 4;
    /// Instead of a scale: none offered.
    pub const NO_SCALE: u8 = 15;
}

impl Default for Side {
    /// Nothing known: a window of 2^30.
    fn default() -> Self {
        Self {
            window: 1,
            scale: 30,
            flags: note::UNHEARD,
            ..Self::UNSCALED
        }
    }
}

impl Side {
    /// Nothing advertised yet, in a connection whose SYNs are seen.
    const UNSCALED: Self = Self {
        snd_nxt: 0,
        rcv_nxt: 0,
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
    fn advertise(&mut self, window: u16) {
        self.window = self.window.max(window);
    }

    const fn is_unheard(&self) -> bool {
        self.flags & note::UNHEARD != 0
    }

    /// Note the first window of a side whose SYN was not seen: an unknown scale counts as the largest (RFC 7323 2.3).
    fn hear(&mut self, window: u16) {
        if self.is_unheard() {
            (self.window, self.scale) = (0, MOST_SCALE);
            self.flags &= !note::UNHEARD;
        }
        self.advertise(window);
    }

    /// Forget what it advertised and offered: another SYN takes the place of the one before.
    fn forget_window(&mut self) {
        *self = Self {
            snd_nxt: self.snd_nxt,
            rcv_nxt: self.rcv_nxt,
            ..Self::UNSCALED
        };
    }

    /// Note the window of a SYN, which is never scaled, and the scale it offers.
    pub(super) fn offer(&mut self, segment: &Segment) {
        if self.is_unheard() {
            self.forget_window();
        }
        self.window = self.window.max(segment.window);
        if segment.scale != NO_SCALE {
            self.flags |= note::OFFERED_SCALE;
            self.scale = self.scale.max(segment.scale);
        }
    }

    const fn offers_scale(&self) -> bool {
        self.flags & note::OFFERED_SCALE != 0
    }

    /// From now on windows are scaled, or are not. What was advertised before was not.
    fn settle_scale(&mut self, scaled: bool) {
        if !scaled {
            self.scale = 0;
        }
        self.window = u32::from(self.window).div_ceil(1 << self.scale) as u16;
        self.flags &= !note::OFFERED_SCALE;
    }

    /// Note another SYN than the one that counts: the scale it offers.
    fn remember_syn(&mut self, scale: u8) {
        self.forget_syn();
        self.flags |= note::SYN_AGAIN | scale.min(note::NO_SCALE) << note::SCALE_AT;
    }

    fn forget_syn(&mut self) {
        self.flags &= !(note::SYN_AGAIN | note::NO_SCALE << note::SCALE_AT);
    }

    #[inline(always)]
    pub(super) const fn has_syn_again(&self) -> bool {
        self.flags & note::SYN_AGAIN != 0
    }

    /// The scale of the SYN that was remembered, or [`note::NO_SCALE`].
    const fn scale_again(&self) -> u8 {
        self.flags >> note::SCALE_AT
    }

    /// The scale of the SYN that counts, likewise.
    const fn scale_offered(&self) -> u8 {
        if self.offers_scale() {
            self.scale
        } else {
            note::NO_SCALE
        }
    }

    /// Whether a FIN ahead of what was seen is noted: its number stands where the end of what was sent does else.
    pub(super) const fn has_fin_ahead(&self) -> bool {
        self.flags & note::FIN_AHEAD != 0
    }

    /// Whether data ahead of what was seen is noted: its end stands where the end of what was sent without a gap does else.
    #[inline(always)]
    pub(super) const fn has_data_ahead(&self) -> bool {
        self.flags & note::DATA_AHEAD != 0
    }

    /// Note that the other side has acknowledged all that this one is known to have sent.
    #[inline(always)]
    fn close_gap(&mut self) {
        self.flags &= !note::DATA_AHEAD;
    }

    /// Note the end of a segment without FIN that is believed, where the other side waits for `begins`.
    #[inline(always)]
    fn note_end(&mut self, begins: u32, segment: &Segment) {
        if is_between(segment.sequence, begins, self.snd_nxt) & !self.has_data_ahead() {
            self.snd_nxt = later(self.snd_nxt, segment.end);
        } else {
            self.note_end_ahead(begins, segment);
        }
    }

    /// The same where there is a gap, or will be: what does not start where the other side waits, or in what follows that, may be a guess.
    #[cold]
    fn note_end_ahead(&mut self, begins: u32, segment: &Segment) {
        if segment.sequence == begins && !is_later(self.snd_nxt, segment.end) {
            self.close_gap();
            self.snd_nxt = segment.end;
        } else if is_later(segment.end, self.snd_nxt) {
            self.flags |= note::DATA_AHEAD;
            self.snd_nxt = segment.end;
        }
    }

    /// What it is once the SYN that was remembered counts. Its window was not kept: the largest that a SYN can have.
    const fn renewed(&self) -> Self {
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

/// What became of a segment of a known flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where the flow stands now.
    pub state: FlowState,
    /// Whether the segment is believed: it tells where its client is, and it is measured.
    pub believed: bool,
    /// Whether it refreshes the flow, too.
    pub refreshes: bool,
    /// Whether the numbers begin anew: another connection has taken the place of the one before.
    pub restarted: bool,
}

impl Step {
    /// What a segment does that is believed.
    #[must_use]
    pub const fn believed(state: FlowState) -> Self {
        Self {
            state,
            believed: true,
            refreshes: true,
            restarted: false,
        }
    }

    /// What a segment does that is handed on only.
    #[must_use]
    pub const fn unbelieved(state: FlowState) -> Self {
        Self {
            state,
            believed: false,
            refreshes: false,
            restarted: false,
        }
    }
}

/// Whether a segment is one of those that most packets are: of an established flow, with ACK alone, where nothing is noted ahead, each side was heard, and no other
/// connection may begin.
#[inline(always)]
#[must_use]
pub fn is_plain(flow: &Flow, segment: &Segment) -> bool {
    const CONTROL: u8 = flag::SYN | flag::RST | flag::FIN | flag::ACK;
    const UNUSUAL: u8 = note::FIN_AHEAD | note::DATA_AHEAD | note::UNHEARD;
    let noted = flow.side(Direction::Forward).flags & UNUSUAL
        | flow.side(Direction::Reply).flags & (UNUSUAL | note::SYN_AGAIN);
    segment.flags & CONTROL == flag::ACK && flow.state() == FlowState::Established && noted == 0
}

/// [`follow`] for a plain segment, which changes no state. Says whether it is believed.
#[inline(always)]
pub fn follow_plain(flow: &mut Flow, direction: Direction, segment: &Segment) -> bool {
    let (side, other) = flow.sides(direction);
    let number = segment.acknowledgement;
    let fits = within(segment.sequence, other.rcv_nxt, other.window())
        & acknowledges(number, (side.rcv_nxt, other.snd_nxt), side.window());
    if fits {
        side.note_end(other.rcv_nxt, segment);
        side.rcv_nxt = later(side.rcv_nxt, number);
        side.advertise(segment.window);
    }
    fits
}

/// Whether a number acknowledges what was sent, from a window, and one, before what was acknowledged last: nobody acknowledges what was not sent (RFC 5961 5).
#[inline(always)]
const fn acknowledges(number: u32, (acknowledged, sent): (u32, u32), window: u32) -> bool {
    let reach = sent.wrapping_sub(acknowledged).wrapping_add(window + 1);
    sent.wrapping_sub(number) <= reach
}

/// Whether a number is at most a window, and one for SYN, FIN or a probe (RFC 1122 4.2.3.6), away from another.
#[inline(always)]
const fn within(number: u32, base: u32, window: u32) -> bool {
    let reach = window + 1;
    number.wrapping_sub(base).wrapping_add(reach) <= 2 * reach
}

/// Judge a segment of a known flow, and let it change what it may. It is no first SYN of a closing flow: that one is a new flow.
///
/// # Errors
/// `RstWindow` for a reset outside the window (RFC 5961 3.2); nothing has changed then.
#[inline(never)]
pub fn follow(flow: &mut Flow, direction: Direction, segment: &Segment) -> Result<Step, Reason> {
    let state = flow.state();
    if segment.has(flag::RST) {
        return follow_reset(flow, direction, segment);
    }
    if segment.has(flag::SYN) {
        return Ok(match (segment.has(flag::ACK), direction) {
            (false, _) => follow_syn(flow, direction, segment),
            (true, Direction::Reply) => follow_syn_ack(flow, segment),
            (true, Direction::Forward) => follow_crossed_syn_ack(flow, segment),
        });
    }
    if !segment.has(flag::ACK) {
        return Ok(Step::unbelieved(state));
    }
    if direction == Direction::Forward && has_answer(flow) && segment.acknowledgement == flow.syn()
    {
        return Ok(restart(flow, segment));
    }
    Ok(match (state, direction) {
        (FlowState::SynSent, _) => follow_early_ack(flow, direction, segment),
        (FlowState::SynReceived, Direction::Forward) => follow_third(flow, segment),
        (FlowState::Pickup, _) => follow_pickup(flow, direction, segment),
        _ => follow_known(flow, direction, segment),
    })
}

/// A reset: believed exactly where the other side waits for it, or will once it has what was sent, else at most handed on.
fn follow_reset(flow: &Flow, direction: Direction, segment: &Segment) -> Result<Step, Reason> {
    let state = flow.state();
    let sequence = segment.sequence;
    let answers = direction == Direction::Reply
        && segment.has(flag::ACK)
        && match state {
            // Of SYNs that nobody has answered only the first is the client's for sure.
            FlowState::SynSent => flow.answers_first_syn(segment.acknowledgement),
            _ => flow.answers_syn(segment.acknowledgement),
        };
    // Of a server that has acknowledged nothing, no number can be told from a guess.
    let opening = state == FlowState::SynSent;
    let unheard = opening && direction == Direction::Reply;
    let expected = flow.expected_of(direction);
    // Behind data that is not acknowledged yet its end is as good.
    let exact = [expected, flow.sent_for_sure(direction), flow.first_syn()];
    if answers || exact.contains(&Some(sequence)) && !unheard {
        return Ok(Step::believed(FlowState::Closing));
    }
    let base = expected.or(flow.snd_nxt(direction));
    let window = flow.side(direction.other()).window();
    let inside = base.is_some_and(|base| sequence.wrapping_sub(base) <= window);
    // A server may know a connection that the client and we have forgotten: it answers the SYN by an ACK, and the client that by a RST at a number that only
    // they know (RFC 9293 3.5.1). What is over has nothing to lose.
    let passes = (opening || inside) && !unheard || state == FlowState::Closing;
    if passes || ends_another(flow, direction, segment) {
        return Ok(Step::unbelieved(state));
    }
    Err(Reason::RstWindow)
}

/// Whether a reset may be of the connection that another SYN asks for: the server refuses it, or one of both gives it up before it counts. Their ends judge by
/// numbers that we do not have.
fn ends_another(flow: &Flow, direction: Direction, segment: &Segment) -> bool {
    if has_answer(flow) {
        return direction == Direction::Forward || segment.sequence == flow.syn();
    }
    direction == Direction::Reply
        && segment.has(flag::ACK)
        && flow.answers_syn_again(segment.acknowledgement)
}

/// SYN without ACK. It refreshes nothing: nobody has vouched for it. One that repeats the number of the first is its sender's.
fn follow_syn(flow: &mut Flow, direction: Direction, segment: &Segment) -> Step {
    let state = flow.state();
    let number = segment.after_syn();
    match (state, direction) {
        (FlowState::SynSent, Direction::Forward) => return follow_syn_again(flow, segment),
        (FlowState::SynSent, Direction::Reply) => follow_crossing_syn(flow, segment),
        (FlowState::SynReceived | FlowState::Established, Direction::Forward)
            if flow.expected_of(direction) != Some(number) =>
        {
            flow.set_syn(number);
            flow.side_mut(Direction::Forward)
                .remember_syn(segment.scale);
            flow.side_mut(Direction::Reply).forget_syn();
        }
        _ => {}
    }
    Step::unbelieved(state)
}

/// A SYN of the server, which may cross the client's: a simultaneous or split handshake (RFC 9293 3.5, RFC 5382 REQ-2). The last counts, till the client has
/// acknowledged one: then no other.
fn follow_crossing_syn(flow: &mut Flow, segment: &Segment) {
    if flow.snd_nxt(Direction::Reply) != Some(segment.end) {
        if flow.knows_rcv_nxt(Direction::Forward) {
            return;
        }
        flow.set_snd_nxt(Direction::Reply, segment.end);
        flow.side_mut(Direction::Reply).forget_window();
    }
    flow.side_mut(Direction::Reply).offer(segment);
}

/// Another SYN of a client that was not answered: the same again, or one of another connection. That may be anybody's: it is kept apart from the first, and
/// the server's answer tells which of the two counts.
fn follow_syn_again(flow: &mut Flow, segment: &Segment) -> Step {
    let number = segment.after_syn();
    if flow.first_syn() == Some(number) {
        let client = flow.side_mut(Direction::Forward);
        client.snd_nxt = later(client.snd_nxt, segment.end);
        client.forget_syn();
        client.offer(segment);
        return Step {
            believed: true,
            ..Step::unbelieved(FlowState::SynSent)
        };
    }
    if !flow.knows_rcv_nxt(Direction::Forward) && !flow.knows_rcv_nxt(Direction::Reply) {
        let repeats = flow.side(Direction::Forward).has_syn_again() && flow.syn() == number;
        let known = flow.side(Direction::Reply).rcv_nxt;
        let end = if repeats {
            later(known, segment.end)
        } else {
            segment.end
        };
        flow.expect_rcv_nxt(Direction::Reply, end);
        flow.set_syn(number);
        flow.side_mut(Direction::Forward)
            .remember_syn(segment.scale);
    }
    Step::unbelieved(FlowState::SynSent)
}

/// One of the client's SYNs was answered: its numbers, window and scale count from now on, and those of the other are forgotten.
fn choose_syn(flow: &mut Flow, number: u32) {
    if !flow.answers_first_syn(number) {
        let (first, end) = (flow.syn(), flow.side(Direction::Reply).rcv_nxt);
        let client = flow.side_mut(Direction::Forward);
        *client = Side {
            snd_nxt: end,
            rcv_nxt: first,
            ..client.renewed()
        };
    }
    flow.side_mut(Direction::Forward).forget_syn();
}

/// The server's SYN+ACK: believed if it acknowledges the SYN that counts, or one while none does yet.
fn follow_syn_ack(flow: &mut Flow, segment: &Segment) -> Step {
    let state = flow.state();
    let number = segment.acknowledgement;
    match state {
        FlowState::SynSent if flow.answers_syn(number) => open(flow, segment),
        FlowState::SynReceived if flow.answers_syn(number) => {
            answer_again(flow, segment);
            Step::believed(state)
        }
        FlowState::SynReceived | FlowState::Established => {
            note_answer(flow, segment);
            Step::unbelieved(state)
        }
        _ => Step::unbelieved(state),
    }
}

/// The server answers another SYN than the one that counts. That may be of a client that has forgotten its connection, or anybody's: a server that uses SYN
/// cookies answers each. So nothing is changed until the client acknowledges it, by a number that nobody else knows.
fn note_answer(flow: &mut Flow, segment: &Segment) {
    let number = segment.acknowledgement;
    let answers = flow.answers_syn_again(number) || has_answer(flow);
    if answers && flow.expected_of(Direction::Forward) != Some(number) {
        flow.set_syn(segment.after_syn());
        flow.side_mut(Direction::Reply).remember_syn(segment.scale);
    }
}

/// Whether the server has answered another SYN than the one that counts, and the client may acknowledge that still.
fn has_answer(flow: &Flow) -> bool {
    matches!(
        flow.state(),
        FlowState::SynReceived | FlowState::Established
    ) && flow.side(Direction::Reply).has_syn_again()
}

/// The server answers the SYN again. The same answer says nothing new; of another the client acknowledges no number of the one before.
fn answer_again(flow: &mut Flow, segment: &Segment) {
    let number = segment.after_syn();
    if flow.side(Direction::Forward).rcv_nxt != number {
        flow.set_snd_nxt(Direction::Reply, segment.end);
        flow.side_mut(Direction::Reply).flags &= !(note::FIN_AHEAD | note::DATA_AHEAD);
        flow.side_mut(Direction::Forward).rcv_nxt = number;
    }
}

/// The server has answered a SYN. It may answer the other, too: that is remembered.
fn open(flow: &mut Flow, segment: &Segment) -> Step {
    let client = *flow.side(Direction::Forward);
    let (syn, scale) = if flow.answers_first_syn(segment.acknowledgement) {
        (flow.syn(), client.scale_again())
    } else {
        (client.rcv_nxt, client.scale_offered())
    };
    choose_syn(flow, segment.acknowledgement);
    if client.has_syn_again() {
        flow.set_syn(syn);
        flow.side_mut(Direction::Forward).remember_syn(scale);
    }
    // The client's part of a simultaneous open may have come first.
    let acknowledged = flow.knows_rcv_nxt(Direction::Forward)
        && flow.side(Direction::Forward).rcv_nxt == segment.after_syn();
    flow.set_snd_nxt(Direction::Reply, segment.end);
    flow.set_rcv_nxt(Direction::Reply, segment.acknowledgement);
    flow.set_snd_nxt(Direction::Forward, segment.acknowledgement);
    flow.side_mut(Direction::Reply).forget_window();
    flow.side_mut(Direction::Reply).offer(segment);
    settle_scales(flow);
    if acknowledged {
        return Step::believed(FlowState::Established);
    }
    flow.expect_rcv_nxt(Direction::Forward, segment.after_syn());
    Step::believed(FlowState::SynReceived)
}

/// Both SYNs were seen: windows are scaled if both offered it (RFC 7323 2.2).
fn settle_scales(flow: &mut Flow) {
    const BOTH: [Direction; 2] = [Direction::Forward, Direction::Reply];
    let scaled = BOTH.map(|side| flow.side(side).offers_scale()) == [true; 2];
    for direction in BOTH {
        flow.side_mut(direction).settle_scale(scaled);
    }
}

/// Another connection takes the place of the one before: the client acknowledges a SYN+ACK that it can only have seen itself. Both have forgotten that one.
fn restart(flow: &mut Flow, segment: &Segment) -> Step {
    const BOTH: [Direction; 2] = [Direction::Forward, Direction::Reply];
    let sides = BOTH.map(|side| flow.side(side).renewed());
    flow.forget_sides();
    for (direction, side) in BOTH.into_iter().zip(sides) {
        *flow.side_mut(direction) = side;
    }
    flow.set_snd_nxt(Direction::Reply, segment.acknowledgement);
    flow.set_rcv_nxt(Direction::Reply, segment.sequence);
    flow.expect_rcv_nxt(Direction::Forward, segment.acknowledgement);
    settle_scales(flow);
    Step {
        restarted: true,
        ..note_segment(flow, Direction::Forward, segment, FlowState::Established)
    }
}

/// A SYN+ACK from the client: its SYN has crossed the server's. Believed if it repeats the client's SYN and acknowledges the server's.
fn follow_crossed_syn_ack(flow: &mut Flow, segment: &Segment) -> Step {
    let state = flow.state();
    let repeats = flow.answers_syn(segment.after_syn());
    let acknowledges = flow.knows_snd_nxt(Direction::Reply)
        && flow.side(Direction::Reply).snd_nxt == segment.acknowledgement;
    if !repeats || !acknowledges {
        return Step::unbelieved(state);
    }
    if state == FlowState::SynSent {
        choose_syn(flow, segment.after_syn());
    }
    let snd_nxt = later(flow.side(Direction::Forward).snd_nxt, segment.end);
    flow.set_snd_nxt(Direction::Forward, snd_nxt);
    flow.set_rcv_nxt(Direction::Forward, segment.acknowledgement);
    if state == FlowState::SynReceived {
        return Step::believed(FlowState::Established);
    }
    flow.set_syn(segment.after_syn());
    flow.side_mut(Direction::Forward).offer(segment);
    if flow.knows_rcv_nxt(Direction::Reply) {
        settle_scales(flow);
        return Step::believed(FlowState::Established);
    }
    Step::believed(FlowState::SynSent)
}

/// An ACK while the server has not answered the SYN by one of its own: the server's may acknowledge the SYN alone (a split handshake).
fn follow_early_ack(flow: &mut Flow, direction: Direction, segment: &Segment) -> Step {
    if direction == Direction::Forward || !flow.answers_syn(segment.acknowledgement) {
        return Step::unbelieved(FlowState::SynSent);
    }
    choose_syn(flow, segment.acknowledgement);
    flow.set_rcv_nxt(Direction::Reply, segment.acknowledgement);
    if flow.knows_rcv_nxt(Direction::Forward) {
        settle_scales(flow);
        return Step::believed(FlowState::Established);
    }
    Step::believed(FlowState::SynSent)
}

/// The client's answer to the SYN+ACK: the third segment of a handshake. It acknowledges the server's SYN, and at most what has followed it.
fn follow_third(flow: &mut Flow, segment: &Segment) -> Step {
    let (server, expected) = (
        flow.side(Direction::Reply),
        flow.side(Direction::Forward).rcv_nxt,
    );
    let fits = within(segment.sequence, server.rcv_nxt, server.window())
        && is_between(segment.acknowledgement, expected, server.snd_nxt);
    if !fits {
        return Step::unbelieved(FlowState::SynReceived);
    }
    flow.set_rcv_nxt(Direction::Forward, segment.acknowledgement);
    // It is this SYN that is the client's own.
    flow.side_mut(Direction::Forward).forget_syn();
    flow.side_mut(Direction::Reply).forget_syn();
    note_segment(flow, Direction::Forward, segment, FlowState::Established)
}

/// A segment that a flow is picked up from, or one more of the side that spoke first: nobody has vouched for it. A server's window counts as its numbers do; a
/// client's may be anybody's, and one that is too narrow would keep the true segments out.
pub fn pick_up(flow: &mut Flow, direction: Direction, segment: &Segment) {
    flow.set_snd_nxt(direction, segment.end);
    flow.set_rcv_nxt(direction, segment.acknowledgement);
    if direction == Direction::Reply {
        flow.side_mut(direction).hear(segment.window);
    }
}

/// A segment of a flow that was picked up. The side that spoke first may go on; an ACK of the other side confirms it. The server's numbers are taken for
/// both sides, for a client's may be anybody's.
fn follow_pickup(flow: &mut Flow, direction: Direction, segment: &Segment) -> Step {
    let first = if flow.knows_snd_nxt(Direction::Forward) {
        Direction::Forward
    } else {
        Direction::Reply
    };
    if direction == first {
        if segment.is_midstream() {
            pick_up(flow, direction, segment);
        }
        return Step::unbelieved(FlowState::Pickup);
    }
    let (client, server) = if direction == Direction::Reply {
        (segment.acknowledgement, segment.sequence)
    } else if is_believed(flow, direction, segment) {
        let server = flow.side(Direction::Reply);
        (server.rcv_nxt, server.snd_nxt)
    } else {
        return Step::unbelieved(FlowState::Pickup);
    };
    flow.set_snd_nxt(Direction::Forward, client);
    flow.set_rcv_nxt(Direction::Reply, client);
    flow.set_snd_nxt(Direction::Reply, server);
    flow.set_rcv_nxt(Direction::Forward, server);
    note_segment(flow, direction, segment, FlowState::Established)
}

/// A segment of a flow whose numbers are known.
fn follow_known(flow: &mut Flow, direction: Direction, segment: &Segment) -> Step {
    let state = flow.state();
    if !is_believed(flow, direction, segment) {
        return Step::unbelieved(state);
    }
    note_segment(flow, direction, segment, state)
}

/// Whether a segment with ACK, and without SYN and RST, fits what the other side has vouched for.
fn is_believed(flow: &Flow, direction: Direction, segment: &Segment) -> bool {
    let (side, other) = (flow.side(direction), flow.side(direction.other()));
    let starts = flow
        .expected_of(direction)
        .or(flow.knows_snd_nxt(direction).then_some(side.snd_nxt));
    let (expected, sent) = (
        flow.expected_of(direction.other()),
        flow.snd_nxt(direction.other()),
    );
    // What is acknowledged beyond a FIN ahead shows that it was forged.
    let known = if other.has_fin_ahead() { None } else { sent };
    let number = segment.acknowledgement;
    let is_acknowledgement = match (expected.or(sent), known) {
        (None, _) => true,
        (Some(base), None) => within(number, base, side.window()),
        (Some(base), Some(sent)) => acknowledges(number, (base, sent), side.window()),
    };
    is_acknowledgement && starts.is_some_and(|base| within(segment.sequence, base, other.window()))
}

/// Whether a client's segment has numbers that hardly a guess has: it begins in what the server waits for or has not acknowledged yet, and acknowledges what the
/// server has sent last. To be asked before the segment is followed.
#[must_use]
pub fn is_exact(flow: &Flow, segment: &Segment) -> bool {
    match flow.state() {
        // What is believed there repeats the client's number.
        FlowState::SynSent => return true,
        FlowState::Pickup => return false,
        _ if has_answer(flow) && segment.acknowledgement == flow.syn() => return true,
        _ => {}
    }
    let begins = flow.expected_of(Direction::Forward);
    let ends = flow.seen(Direction::Forward).or(begins);
    let acknowledged = flow.expected_of(Direction::Reply);
    let sent = flow.snd_nxt(Direction::Reply);
    let is_between = |number, first: Option<u32>, last: Option<u32>| {
        first
            .zip(last)
            .is_some_and(|(first, last)| is_between(number, first, last))
    };
    is_between(segment.sequence, begins, ends)
        && is_between(segment.acknowledgement, acknowledged, sent)
}

/// Take the numbers of a segment that is believed, and see whether the flow is over: both FINs, each in sequence or acknowledged.
fn note_segment(
    flow: &mut Flow,
    direction: Direction,
    segment: &Segment,
    state: FlowState,
) -> Step {
    note_sent(flow, direction, segment);
    note_acknowledged(flow, direction, segment);
    if flow.has_both_fins() {
        return Step::believed(FlowState::Closing);
    }
    Step::believed(state)
}

/// Note what a segment adds to what its side has sent.
fn note_sent(flow: &mut Flow, direction: Direction, segment: &Segment) {
    let (expected, known) = (flow.expected_of(direction), flow.snd_nxt(direction));
    let begins = expected.or(known).unwrap_or(segment.sequence);
    flow.set_snd_nxt(direction, known.unwrap_or(begins));
    if segment.has(flag::FIN) {
        note_fin(flow, direction, begins, segment);
    } else if !flow.side(direction).has_fin_ahead() {
        flow.side_mut(direction).note_end(begins, segment);
    }
}

/// Note a FIN: it counts in sequence.
fn note_fin(flow: &mut Flow, direction: Direction, begins: u32, segment: &Segment) {
    let side = flow.side_mut(direction);
    let ahead = side.has_fin_ahead();
    // Where the data behind what is ahead ends is not known.
    let has_gap = ahead || side.has_data_ahead();
    let contiguous = if has_gap { begins } else { side.snd_nxt };
    if is_between(segment.sequence, begins, contiguous) {
        side.flags &= !(note::FIN_AHEAD | note::DATA_AHEAD);
        side.snd_nxt = later(contiguous, segment.end);
        flow.mark_fin(direction);
        return;
    }
    // Of several the first in order: a forged one would have to hit what is not acknowledged to hide the true one, and is overtaken by it else.
    let counts = is_later(segment.end, begins) && (!ahead || is_later(side.snd_nxt, segment.end));
    if counts && !flow.has_fin(direction) {
        let side = flow.side_mut(direction);
        side.flags = side.flags & !note::DATA_AHEAD | note::FIN_AHEAD;
        side.snd_nxt = segment.end;
    }
}

/// Note what a segment acknowledges, and its window.
fn note_acknowledged(flow: &mut Flow, direction: Direction, segment: &Segment) {
    let (other, number) = (direction.other(), segment.acknowledgement);
    let (expected, sent) = (flow.expected_of(other), flow.snd_nxt(other));
    // A guess that found room in the unknown window tells nothing about it.
    let exact = expected
        .zip(sent)
        .is_some_and(|(expected, sent)| is_between(number, expected, sent));
    let side = flow.side_mut(direction);
    if exact || !side.is_unheard() {
        side.hear(segment.window);
    }
    let known = flow.rcv_nxt(direction);
    let rcv_nxt = known.map_or(number, |known| later(known, number));
    flow.set_rcv_nxt(direction, rcv_nxt);
    if sent.is_none_or(|sent| is_later(sent, rcv_nxt)) {
        return;
    }
    if flow.side(other).has_fin_ahead() {
        flow.side_mut(other).flags &= !note::FIN_AHEAD;
        // What is acknowledged beyond it was sent after it: it was forged.
        if sent == Some(rcv_nxt) {
            flow.mark_fin(other);
        }
    }
    flow.side_mut(other).close_gap();
    flow.set_snd_nxt(other, rcv_nxt);
}

#[cfg(test)]
mod tests;
