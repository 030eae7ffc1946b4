//! Flows whose replies may come to another balancer (rule 8.23, replies through any balancer): the client alone is
//! followed, by what it sends.
//!
//! What the server sends may not be seen, so nothing can be held against it, and no segment is dropped. A client's
//! segment is believed near the last one that was. A guess that finds it changes little: a flow that closes goes on for
//! those who go on, and a SYN moves no flow that both sides have not closed.

use super::handshake::{follow_syn_ack, follow_syn_again};
use super::judge::within;
use super::pickup::pick_up;
use crate::base::{Direction, SeqNumber};
use crate::flow::side::TcpSide;
use crate::flow::state::FlowState;
use crate::flow::table::Flow;
use crate::flow::transition::Transition;
use crate::wire::segment::{NO_SCALE, Segment};
use crate::wire::tcp::flag;

/// How far a client's next segment may be from the last one: 1 MiB, more than a network loses at a time.
const NEAR: u32 = 1 << 20;
/// How far what it acknowledges may be from what it did last: 16 MiB, more than arrives between two of its segments.
const NEAR_ACKNOWLEDGED: u32 = 1 << 24;
/// How far a server's segment may be from what its client acknowledged, to tell of it: 64 KiB, what is sent at once at
/// first. A server may answer a stranger's segment by a number that the stranger knows, but not by its own.
const AT_HAND: u32 = u16::MAX as u32;

/// [`super::follow`] where replies come to any balancer.
#[inline(never)]
pub fn follow_any(flow: &mut Flow, direction: Direction, segment: &Segment) -> Transition {
    match (direction, segment.has(flag::RST)) {
        (_, true) => follow_reset(flow, direction, segment),
        (Direction::Forward, _) => follow_client(flow, segment),
        (Direction::Reply, _) => follow_server(flow, segment),
    }
}

/// A reset: believed exactly where its sender is known to be. Whether else is for its receiver to say.
fn follow_reset(flow: &Flow, direction: Direction, segment: &Segment) -> Transition {
    let state = flow.state();
    let refuses = direction == Direction::Reply
        && segment.has(flag::ACK)
        && match state {
            FlowState::SynSent => flow.answers_first_syn(segment.acknowledgement),
            _ => flow.answers_syn(segment.acknowledgement),
        };
    let exact = match direction {
        Direction::Forward => flow.snd_nxt(Direction::Forward),
        Direction::Reply => flow.rcv_nxt(Direction::Forward),
    };
    if refuses || exact == Some(segment.sequence) {
        return Transition::believed(state, FlowState::Closing);
    }
    Transition::unbelieved(state)
}

/// A client's segment without RST.
fn follow_client(flow: &mut Flow, segment: &Segment) -> Transition {
    let state = flow.state();
    if segment.has(flag::SYN) {
        return follow_syn(flow, segment);
    }
    if !segment.has(flag::ACK) {
        return Transition::unbelieved(state);
    }
    match state {
        FlowState::SynSent | FlowState::SynReceived => follow_opening(flow, segment),
        FlowState::OneWay | FlowState::Closing if syn_again(flow) == Some(segment.sequence) => {
            begin_at(flow, segment, None, FlowState::OneWay)
        }
        FlowState::Pickup => follow_pickup(flow, segment),
        _ if continues(flow, segment) => go_on(flow, segment, state),
        // It may have gone on by another way: then it cannot be told where it is, only that it is there.
        _ => Transition {
            refreshes: segment.can_pick_up(),
            ..Transition::unbelieved(state)
        },
    }
}

/// An ACK of a client before its flow is open: exactly behind its SYN, or behind another that it sent.
fn follow_opening(flow: &mut Flow, segment: &Segment) -> Transition {
    let state = flow.state();
    let sequence = segment.sequence;
    let (other, to) = match state {
        FlowState::SynSent if flow.answers_first_syn(sequence) => (None, FlowState::OneWay),
        FlowState::SynSent if flow.answers_syn_again(sequence) => {
            (flow.first_syn(), FlowState::OneWay)
        }
        FlowState::SynReceived if is_third(flow, segment) => (None, FlowState::Established),
        FlowState::SynReceived if syn_again(flow) == Some(sequence) => {
            (flow.snd_nxt(Direction::Forward), FlowState::OneWay)
        }
        _ => return Transition::unbelieved(state),
    };
    begin_at(flow, segment, other, to)
}

/// A segment of a client that was picked up: it goes on exactly where that ended, or is picked up anew.
fn follow_pickup(flow: &mut Flow, segment: &Segment) -> Transition {
    if flow.snd_nxt(Direction::Forward) == Some(segment.sequence) {
        return go_on(flow, segment, FlowState::OneWay);
    }
    if segment.can_pick_up() {
        flow.forget_reply();
        pick_up(flow, Direction::Forward, segment);
    }
    Transition::unbelieved(FlowState::Pickup)
}

/// A SYN of the client, which may be forged: it is kept apart while the flow opens, and when a side has closed it. The
/// first of a new connection refreshes what is closing, so that it is there still when the client goes on.
fn follow_syn(flow: &mut Flow, segment: &Segment) -> Transition {
    let state = flow.state();
    let number = Some(segment.after_syn());
    let is_new = number != flow.snd_nxt(Direction::Forward) && number != syn_again(flow);
    match state {
        _ if segment.has(flag::ACK) => Transition::unbelieved(state),
        FlowState::SynSent => follow_syn_again(flow, segment),
        FlowState::SynReceived | FlowState::Closing if is_new => {
            remember(flow, segment.after_syn());
            Transition {
                refreshes: state == FlowState::Closing,
                ..Transition::unbelieved(state)
            }
        }
        _ => Transition::unbelieved(state),
    }
}

/// Whether a segment is the client's answer to the SYN+ACK that was seen, or what follows that.
fn is_third(flow: &Flow, segment: &Segment) -> bool {
    let expected = flow.side(Direction::Forward).rcv_nxt;
    flow.rcv_nxt(Direction::Reply) == Some(segment.sequence)
        && segment
            .acknowledgement
            .is_between(expected, expected.plus(AT_HAND))
}

/// A segment of the server: it confirms the client's numbers where it acknowledges them.
fn follow_server(flow: &mut Flow, segment: &Segment) -> Transition {
    let state = flow.state();
    let number = segment.acknowledgement;
    let opening = matches!(state, FlowState::SynSent | FlowState::SynReceived);
    if segment.has(flag::SYN) && segment.has(flag::ACK) && opening && flow.answers_syn(number) {
        return follow_syn_ack(flow, segment);
    }
    let side = Direction::Forward;
    let fits = segment.flags & (flag::SYN | flag::ACK) == flag::ACK
        && !opening
        && is_near(flow.snd_nxt(side), number, NEAR)
        && is_near(flow.rcv_nxt(side), segment.sequence, AT_HAND);
    if !fits {
        return Transition::unbelieved(state);
    }
    flow.forget_reply();
    if segment.has(flag::FIN) {
        flow.mark_fin(Direction::Reply);
    }
    match state {
        FlowState::OneWay | FlowState::Pickup => close_or(flow, FlowState::Established),
        state => close_or(flow, state),
    }
}

/// The number after a SYN that is kept apart, if one is.
fn syn_again(flow: &Flow) -> Option<SeqNumber> {
    const BOTH: [Direction; 2] = [Direction::Forward, Direction::Reply];
    let [client, server] = BOTH.map(|side| flow.side(side).has_syn_again());
    (client && !server).then_some(flow.syn())
}

/// Keep a number apart, at which the client may go on.
fn remember(flow: &mut Flow, number: SeqNumber) {
    flow.set_syn(number);
    flow.change_side(Direction::Forward, |side| side.remember_syn(NO_SCALE));
    flow.change_side(Direction::Reply, TcpSide::forget_syn);
}

/// The client goes on exactly behind a SYN: its numbers count from now on. `other`: where it would if that SYN was
/// forged.
fn begin_at(
    flow: &mut Flow,
    segment: &Segment,
    other: Option<SeqNumber>,
    to: FlowState,
) -> Transition {
    flow.forget_sides();
    if let Some(other) = other {
        remember(flow, other);
    }
    go_on(flow, segment, to)
}

/// Whether a client's segment is near the last one that was believed.
fn continues(flow: &Flow, segment: &Segment) -> bool {
    let side = Direction::Forward;
    is_near(flow.snd_nxt(side), segment.sequence, NEAR)
        && is_near(
            flow.rcv_nxt(side),
            segment.acknowledgement,
            NEAR_ACKNOWLEDGED,
        )
}

fn is_near(known: Option<SeqNumber>, number: SeqNumber, reach: u32) -> bool {
    known.is_some_and(|known| within(number, known, reach))
}

/// A client's segment that is believed: its end, and what it acknowledges, count. Of the server nothing is known.
fn go_on(flow: &mut Flow, segment: &Segment, to: FlowState) -> Transition {
    let side = Direction::Forward;
    let end = flow
        .snd_nxt(side)
        .map_or(segment.end, |known| known.later(segment.end));
    let acknowledged = segment.acknowledgement;
    let acknowledged = flow
        .rcv_nxt(side)
        .map_or(acknowledged, |known| known.later(acknowledged));
    flow.forget_reply();
    flow.set_snd_nxt(side, end);
    flow.set_rcv_nxt(side, acknowledged);
    if segment.has(flag::FIN) {
        flow.mark_fin(side);
    }
    close_or(flow, to)
}

/// What a segment that is believed makes of a flow: the FIN of either side closes it, for the other's may never be
/// seen.
fn close_or(flow: &mut Flow, to: FlowState) -> Transition {
    let ends = flow.has_fin(Direction::Forward) || flow.has_fin(Direction::Reply);
    if !ends {
        return Transition::believed(flow.state(), to);
    }
    flow.mark_closed();
    Transition::believed(flow.state(), FlowState::Closing)
}
