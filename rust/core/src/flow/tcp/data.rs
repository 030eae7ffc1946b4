//! Segments of a flow whose numbers are known: what they add to what was sent and acknowledged, and when the flow
//! is over.

use super::judge::is_believed;
use crate::base::{Direction, SeqNumber};
use crate::flow::side::{TcpSide, note};
use crate::flow::state::FlowState;
use crate::flow::table::Flow;
use crate::flow::transition::Transition;
use crate::wire::segment::Segment;
use crate::wire::tcp::flag;

/// A segment of a flow whose numbers are known.
pub(super) fn follow_known(flow: &mut Flow, direction: Direction, segment: &Segment) -> Transition {
    let state = flow.state();
    if !is_believed(flow, direction, segment) {
        return Transition::unbelieved(state);
    }
    note_segment(flow, direction, segment, state)
}

/// Take the numbers of a segment that is believed, and see whether the flow is over: both FINs, each in sequence or
/// acknowledged.
pub(super) fn note_segment(
    flow: &mut Flow,
    direction: Direction,
    segment: &Segment,
    state: FlowState,
) -> Transition {
    note_sent(flow, direction, segment);
    note_acknowledged(flow, direction, segment);
    if flow.has_both_fins() {
        return Transition::believed(flow.state(), FlowState::Closing);
    }
    Transition::believed(flow.state(), state)
}

/// Note what a segment adds to what its side has sent.
pub(super) fn note_sent(flow: &mut Flow, direction: Direction, segment: &Segment) {
    let (expected, known) = (flow.expected_of(direction), flow.snd_nxt(direction));
    let begins = expected.or(known).unwrap_or(segment.sequence);
    flow.set_snd_nxt(direction, known.unwrap_or(begins));
    if segment.has(flag::FIN) {
        note_fin(flow, direction, begins, segment);
    } else if !flow.side(direction).has_fin_ahead() {
        flow.change_side(direction, |side| side.note_end(begins, segment));
    }
}

/// Note a FIN: it counts in sequence.
pub(super) fn note_fin(
    flow: &mut Flow,
    direction: Direction,
    begins: SeqNumber,
    segment: &Segment,
) {
    let mut side = flow.side(direction);
    let ahead = side.has_fin_ahead();
    // Where the data behind what is ahead ends is not known.
    let has_gap = ahead || side.has_data_ahead();
    let contiguous = if has_gap { begins } else { side.snd_nxt };
    if segment.sequence.is_between(begins, contiguous) {
        side.flags &= !(note::FIN_AHEAD | note::DATA_AHEAD);
        side.snd_nxt = contiguous.later(segment.end);
        flow.set_side(direction, side);
        flow.mark_fin(direction);
        return;
    }
    // Of several the first in order: a forged one would have to hit what is not acknowledged to hide the true one,
    // and is overtaken by it else.
    let counts = segment.end.is_after(begins) && (!ahead || side.snd_nxt.is_after(segment.end));
    if counts && !flow.has_fin(direction) {
        side.flags = side.flags & !note::DATA_AHEAD | note::FIN_AHEAD;
        side.snd_nxt = segment.end;
        flow.set_side(direction, side);
    }
}

/// Note what a segment acknowledges, and its window.
pub(super) fn note_acknowledged(flow: &mut Flow, direction: Direction, segment: &Segment) {
    let (other, number) = (direction.other(), segment.acknowledgement);
    let (expected, sent) = (flow.expected_of(other), flow.snd_nxt(other));
    // A guess that found room in the unknown window tells nothing about it.
    let exact = expected
        .zip(sent)
        .is_some_and(|(expected, sent)| number.is_between(expected, sent));
    if exact || !flow.side(direction).is_unheard() {
        flow.change_side(direction, |side| side.hear(segment.window));
    }
    let known = flow.rcv_nxt(direction);
    let rcv_nxt = known.map_or(number, |known| known.later(number));
    flow.set_rcv_nxt(direction, rcv_nxt);
    if sent.is_none_or(|sent| sent.is_after(rcv_nxt)) {
        return;
    }
    if flow.side(other).has_fin_ahead() {
        flow.change_side(other, |side| side.flags &= !note::FIN_AHEAD);
        // What is acknowledged beyond it was sent after it: it was forged.
        if sent == Some(rcv_nxt) {
            flow.mark_fin(other);
        }
    }
    flow.change_side(other, TcpSide::close_gap);
    flow.set_snd_nxt(other, rcv_nxt);
}
