//! Segments that open a connection, until both SYNs are acknowledged; and those that begin another one in its place.

use super::data::note_segment;
use super::judge::within;
use crate::base::{Direction, SeqNumber};
use crate::flow::side::{TcpSide, note};
use crate::flow::state::FlowState;
use crate::flow::table::Flow;
use crate::flow::transition::Transition;
use crate::wire::segment::Segment;

/// SYN without ACK. It refreshes nothing: neither side has vouched for it. One that repeats the number of the first
/// is its sender's.
pub(super) fn follow_syn(flow: &mut Flow, direction: Direction, segment: &Segment) -> Transition {
    let state = flow.state();
    let number = segment.after_syn();
    match (state, direction) {
        (FlowState::SynSent, Direction::Forward) => return follow_syn_again(flow, segment),
        (FlowState::SynSent, Direction::Reply) => follow_crossing_syn(flow, segment),
        (FlowState::SynReceived | FlowState::Established, Direction::Forward)
            if flow.expected_of(direction) != Some(number) =>
        {
            flow.set_syn(number);
            flow.change_side(Direction::Forward, |side| side.remember_syn(segment.scale));
            flow.change_side(Direction::Reply, TcpSide::forget_syn);
        }
        _ => {}
    }
    Transition::unbelieved(state)
}

/// A SYN of the server, which may cross the client's: a simultaneous or split handshake (RFC 9293 3.5, RFC 5382
/// REQ-2). The last counts, till the client has acknowledged one: then no other.
pub(super) fn follow_crossing_syn(flow: &mut Flow, segment: &Segment) {
    if flow.snd_nxt(Direction::Reply) != Some(segment.end) {
        if flow.knows_rcv_nxt(Direction::Forward) {
            return;
        }
        flow.set_snd_nxt(Direction::Reply, segment.end);
        flow.change_side(Direction::Reply, TcpSide::forget_window);
    }
    flow.change_side(Direction::Reply, |side| side.offer(segment));
}

/// Another SYN of a client that was not answered: the same again, or one of another connection. It may be forged:
/// it is kept apart from the first, and the server's answer tells which of the two counts.
pub(super) fn follow_syn_again(flow: &mut Flow, segment: &Segment) -> Transition {
    let number = segment.after_syn();
    if flow.first_syn() == Some(number) {
        flow.change_side(Direction::Forward, |client| {
            client.snd_nxt = client.snd_nxt.later(segment.end);
            client.forget_syn();
            client.offer(segment);
        });
        return Transition {
            is_believed: true,
            ..Transition::unbelieved(FlowState::SynSent)
        };
    }
    if !flow.knows_rcv_nxt(Direction::Forward) && !flow.knows_rcv_nxt(Direction::Reply) {
        let repeats = flow.side(Direction::Forward).has_syn_again() && flow.syn() == number;
        let known = flow.side(Direction::Reply).rcv_nxt;
        let end = if repeats {
            known.later(segment.end)
        } else {
            segment.end
        };
        flow.expect_rcv_nxt(Direction::Reply, end);
        flow.set_syn(number);
        flow.change_side(Direction::Forward, |side| side.remember_syn(segment.scale));
    }
    Transition::unbelieved(FlowState::SynSent)
}

/// One of the client's SYNs was answered: its numbers, window and scale count from now on, and those of the other
/// are forgotten.
pub(super) fn choose_syn(flow: &mut Flow, number: SeqNumber) {
    if !flow.answers_first_syn(number) {
        let (first, end) = (flow.syn(), flow.side(Direction::Reply).rcv_nxt);
        let client = TcpSide {
            snd_nxt: end,
            rcv_nxt: first,
            ..flow.side(Direction::Forward).renewed()
        };
        flow.set_side(Direction::Forward, client);
    }
    flow.change_side(Direction::Forward, TcpSide::forget_syn);
}

/// The server's SYN+ACK: believed if it acknowledges the SYN that counts, or one while none does yet.
pub(super) fn follow_syn_ack(flow: &mut Flow, segment: &Segment) -> Transition {
    let state = flow.state();
    let number = segment.acknowledgement;
    match state {
        FlowState::SynSent if flow.answers_syn(number) => open(flow, segment),
        FlowState::SynReceived if flow.answers_syn(number) => {
            answer_again(flow, segment);
            Transition::believed(flow.state(), state)
        }
        FlowState::SynReceived | FlowState::Established => {
            note_answer(flow, segment);
            Transition::unbelieved(state)
        }
        _ => Transition::unbelieved(state),
    }
}

/// The server answers another SYN than the one that counts. The other SYN may be of a client that has forgotten its
/// connection, or forged: a server that uses SYN cookies answers each. So nothing is changed until the client
/// acknowledges it, by a number that only it knows.
pub(super) fn note_answer(flow: &mut Flow, segment: &Segment) {
    let number = segment.acknowledgement;
    let answers = flow.answers_syn_again(number) || flow.has_answer();
    if answers && flow.expected_of(Direction::Forward) != Some(number) {
        flow.set_syn(segment.after_syn());
        flow.change_side(Direction::Reply, |side| side.remember_syn(segment.scale));
    }
}

/// The server answers the SYN again. The same answer says nothing new; of another the client acknowledges no number
/// of the one before.
pub(super) fn answer_again(flow: &mut Flow, segment: &Segment) {
    let number = segment.after_syn();
    if flow.side(Direction::Forward).rcv_nxt != number {
        flow.set_snd_nxt(Direction::Reply, segment.end);
        flow.change_side(Direction::Reply, |side| {
            side.flags &= !(note::FIN_AHEAD | note::DATA_AHEAD);
        });
        flow.change_side(Direction::Forward, |side| side.rcv_nxt = number);
    }
}

/// The server has answered a SYN. It may answer the other, too: that is remembered.
pub(super) fn open(flow: &mut Flow, segment: &Segment) -> Transition {
    let client = flow.side(Direction::Forward);
    let (syn, scale) = if flow.answers_first_syn(segment.acknowledgement) {
        (flow.syn(), client.scale_again())
    } else {
        (client.rcv_nxt, client.scale_offered())
    };
    choose_syn(flow, segment.acknowledgement);
    if client.has_syn_again() {
        flow.set_syn(syn);
        flow.change_side(Direction::Forward, |side| side.remember_syn(scale));
    }
    // The client's part of a simultaneous open may have come first.
    let acknowledged = flow.knows_rcv_nxt(Direction::Forward)
        && flow.side(Direction::Forward).rcv_nxt == segment.after_syn();
    flow.set_snd_nxt(Direction::Reply, segment.end);
    flow.set_rcv_nxt(Direction::Reply, segment.acknowledgement);
    flow.set_snd_nxt(Direction::Forward, segment.acknowledgement);
    flow.change_side(Direction::Reply, TcpSide::forget_window);
    flow.change_side(Direction::Reply, |side| side.offer(segment));
    settle_scales(flow);
    if acknowledged {
        return Transition::believed(flow.state(), FlowState::Established);
    }
    flow.expect_rcv_nxt(Direction::Forward, segment.after_syn());
    Transition::believed(flow.state(), FlowState::SynReceived)
}

/// Both SYNs were seen: windows are scaled if both offered it (RFC 7323 2.2).
pub(super) fn settle_scales(flow: &mut Flow) {
    const BOTH: [Direction; 2] = [Direction::Forward, Direction::Reply];
    let scaled = BOTH.map(|side| flow.side(side).offers_scale()) == [true; 2];
    for direction in BOTH {
        flow.change_side(direction, |side| side.settle_scale(scaled));
    }
}

/// Another connection takes the place of the one before: the client acknowledges a SYN+ACK that it can only have
/// seen itself. Both have forgotten that one.
pub(super) fn restart(flow: &mut Flow, segment: &Segment) -> Transition {
    const BOTH: [Direction; 2] = [Direction::Forward, Direction::Reply];
    let sides = BOTH.map(|side| flow.side(side).renewed());
    flow.forget_sides();
    for (direction, side) in BOTH.into_iter().zip(sides) {
        flow.set_side(direction, side);
    }
    flow.set_snd_nxt(Direction::Reply, segment.acknowledgement);
    flow.set_rcv_nxt(Direction::Reply, segment.sequence);
    flow.expect_rcv_nxt(Direction::Forward, segment.acknowledgement);
    settle_scales(flow);
    Transition {
        restarts: true,
        ..note_segment(flow, Direction::Forward, segment, FlowState::Established)
    }
}

/// A SYN+ACK from the client: its SYN has crossed the server's. Believed if it repeats the client's SYN and
/// acknowledges the server's.
pub(super) fn follow_crossed_syn_ack(flow: &mut Flow, segment: &Segment) -> Transition {
    let state = flow.state();
    let repeats = flow.answers_syn(segment.after_syn());
    let acknowledges = flow.knows_snd_nxt(Direction::Reply)
        && flow.side(Direction::Reply).snd_nxt == segment.acknowledgement;
    if !repeats || !acknowledges {
        return Transition::unbelieved(state);
    }
    if state == FlowState::SynSent {
        choose_syn(flow, segment.after_syn());
    }
    let snd_nxt = flow.side(Direction::Forward).snd_nxt.later(segment.end);
    flow.set_snd_nxt(Direction::Forward, snd_nxt);
    flow.set_rcv_nxt(Direction::Forward, segment.acknowledgement);
    if state == FlowState::SynReceived {
        return Transition::believed(flow.state(), FlowState::Established);
    }
    flow.set_syn(segment.after_syn());
    flow.change_side(Direction::Forward, |side| side.offer(segment));
    if flow.knows_rcv_nxt(Direction::Reply) {
        settle_scales(flow);
        return Transition::believed(flow.state(), FlowState::Established);
    }
    Transition::believed(flow.state(), FlowState::SynSent)
}

/// An ACK while the server has not answered the SYN by one of its own: the server's may acknowledge the SYN alone
/// (a split handshake).
pub(super) fn follow_early_ack(
    flow: &mut Flow,
    direction: Direction,
    segment: &Segment,
) -> Transition {
    if direction == Direction::Forward || !flow.answers_syn(segment.acknowledgement) {
        return Transition::unbelieved(FlowState::SynSent);
    }
    choose_syn(flow, segment.acknowledgement);
    flow.set_rcv_nxt(Direction::Reply, segment.acknowledgement);
    if flow.knows_rcv_nxt(Direction::Forward) {
        settle_scales(flow);
        return Transition::believed(flow.state(), FlowState::Established);
    }
    Transition::believed(flow.state(), FlowState::SynSent)
}

/// The client's answer to the SYN+ACK: the third segment of a handshake. It acknowledges the server's SYN, and at
/// most what has followed it.
pub(super) fn follow_third(flow: &mut Flow, segment: &Segment) -> Transition {
    let (server, expected) = (
        flow.side(Direction::Reply),
        flow.side(Direction::Forward).rcv_nxt,
    );
    let fits = within(segment.sequence, server.rcv_nxt, server.window())
        && segment.acknowledgement.is_between(expected, server.snd_nxt);
    if !fits {
        return Transition::unbelieved(FlowState::SynReceived);
    }
    flow.set_rcv_nxt(Direction::Forward, segment.acknowledgement);
    // It is this SYN that is the client's own.
    flow.change_side(Direction::Forward, TcpSide::forget_syn);
    flow.change_side(Direction::Reply, TcpSide::forget_syn);
    note_segment(flow, Direction::Forward, segment, FlowState::Established)
}
