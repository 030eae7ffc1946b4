//! Segments with RST (RFC 9293 3.5.2, RFC 5961 3).

use crate::base::{Direction, Reason};
use crate::flow::state::FlowState;
use crate::flow::table::Flow;
use crate::flow::transition::Transition;
use crate::wire::segment::Segment;
use crate::wire::tcp::flag;

/// A reset: believed exactly where the other side waits for it, or will once it has what was sent, else at most
/// forwarded.
pub(super) fn follow_reset(
    flow: &Flow,
    direction: Direction,
    segment: &Segment,
) -> Result<Transition, Reason> {
    let state = flow.state();
    let sequence = segment.sequence;
    let answers = direction == Direction::Reply
        && segment.has(flag::ACK)
        && match state {
            // Of SYNs without an answer only the first is the client's for sure.
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
        return Ok(Transition::believed(flow.state(), FlowState::Closing));
    }
    let base = expected.or(flow.snd_nxt(direction));
    let window = flow.side(direction.other()).window();
    let inside = base.is_some_and(|base| sequence.since(base) <= window);
    // A server may know a connection that the client and we have forgotten: it answers the SYN by an ACK, and the
    // client that by a RST at a number that only they know (RFC 9293 3.5.1). What is over has nothing to lose.
    let passes = (opening || inside) && !unheard || state == FlowState::Closing;
    if passes || ends_another(flow, direction, segment) {
        return Ok(Transition::unbelieved(state));
    }
    Err(Reason::RstWindow)
}

/// Whether a reset may be of the connection that another SYN asks for: the server refuses it, or one of both gives
/// it up before it counts. Their ends judge by numbers that we do not have.
pub(super) fn ends_another(flow: &Flow, direction: Direction, segment: &Segment) -> bool {
    if flow.has_answer() {
        return direction == Direction::Forward || segment.sequence == flow.syn();
    }
    direction == Direction::Reply
        && segment.has(flag::ACK)
        && flow.answers_syn_again(segment.acknowledgement)
}
