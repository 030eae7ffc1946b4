//! What is believed of a segment: it fits what the other side has vouched for.

use crate::base::{Direction, SeqNumber};
use crate::flow::state::FlowState;
use crate::flow::table::Flow;
use crate::wire::segment::Segment;

/// Whether a number acknowledges what was sent, from a window, and one, before what was acknowledged last: an
/// endpoint acknowledges only what was sent (RFC 5961 5).
#[inline(always)]
pub(super) const fn acknowledges(
    number: SeqNumber,
    (acknowledged, sent): (SeqNumber, SeqNumber),
    window: u32,
) -> bool {
    let reach = sent.since(acknowledged).wrapping_add(window + 1);
    sent.since(number) <= reach
}

/// Whether a number is at most a window, and one for SYN, FIN or a probe (RFC 1122 4.2.3.6), away from another.
#[inline(always)]
pub(super) const fn within(number: SeqNumber, base: SeqNumber, window: u32) -> bool {
    let reach = window + 1;
    number.since(base).wrapping_add(reach) <= 2 * reach
}

/// Whether a segment with ACK, and without SYN and RST, fits what the other side has vouched for.
pub(super) fn is_believed(flow: &Flow, direction: Direction, segment: &Segment) -> bool {
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

/// Whether a client's segment has numbers that hardly a guess has: it begins in what the server waits for or has
/// not acknowledged yet, and acknowledges what the server has sent last. To be asked before the segment is
/// followed.
#[must_use]
pub fn is_exact(flow: &Flow, segment: &Segment) -> bool {
    match flow.state() {
        // What is believed there repeats the client's number.
        FlowState::SynSent => return true,
        FlowState::Pickup => return false,
        _ if flow.has_answer() && segment.acknowledgement == flow.syn() => return true,
        _ => {}
    }
    let begins = flow.expected_of(Direction::Forward);
    let ends = flow.known_snd_nxt(Direction::Forward).or(begins);
    let acknowledged = flow.expected_of(Direction::Reply);
    let sent = flow.snd_nxt(Direction::Reply);
    let is_between = |number: SeqNumber, first: Option<SeqNumber>, last: Option<SeqNumber>| {
        first
            .zip(last)
            .is_some_and(|(first, last)| number.is_between(first, last))
    };
    is_between(segment.sequence, begins, ends)
        && is_between(segment.acknowledgement, acknowledged, sent)
}
