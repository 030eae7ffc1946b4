//! Flows whose beginning was not seen: placed again by a hash.

use super::data::note_segment;
use super::judge::is_believed;
use crate::base::Direction;
use crate::flow::state::FlowState;
use crate::flow::table::Flow;
use crate::flow::transition::Transition;
use crate::wire::segment::Segment;

/// A segment that a flow is picked up from, or one more of the side that spoke first: it is not confirmed yet. A
/// server's window counts as its numbers do; a client's may be forged, and one that is too narrow would keep the
/// true segments out.
pub fn pick_up(flow: &mut Flow, direction: Direction, segment: &Segment) {
    flow.set_snd_nxt(direction, segment.end);
    flow.set_rcv_nxt(direction, segment.acknowledgement);
    if direction == Direction::Reply {
        flow.change_side(direction, |side| side.hear(segment.window));
    }
}

/// A segment of a flow that was picked up. The side that spoke first may go on; an ACK of the other side confirms
/// it. The server's numbers are taken for both sides, for a client's may be forged.
pub(super) fn follow_pickup(
    flow: &mut Flow,
    direction: Direction,
    segment: &Segment,
) -> Transition {
    let first = if flow.knows_snd_nxt(Direction::Forward) {
        Direction::Forward
    } else {
        Direction::Reply
    };
    if direction == first {
        if segment.can_pick_up() {
            pick_up(flow, direction, segment);
        }
        return Transition::unbelieved(FlowState::Pickup);
    }
    let (client, server) = if direction == Direction::Reply {
        (segment.acknowledgement, segment.sequence)
    } else if is_believed(flow, direction, segment) {
        let server = flow.side(Direction::Reply);
        (server.rcv_nxt, server.snd_nxt)
    } else {
        return Transition::unbelieved(FlowState::Pickup);
    };
    flow.set_snd_nxt(Direction::Forward, client);
    flow.set_rcv_nxt(Direction::Reply, client);
    flow.set_snd_nxt(Direction::Reply, server);
    flow.set_rcv_nxt(Direction::Forward, server);
    note_segment(flow, direction, segment, FlowState::Established)
}
