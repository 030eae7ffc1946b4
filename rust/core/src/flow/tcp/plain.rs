//! The short way for what most segments are: of an established flow, with ACK alone, in order.

use super::judge::{acknowledges, within};
use crate::base::Direction;
use crate::flow::side::note;
use crate::flow::state::FlowState;
use crate::flow::table::Flow;
use crate::wire::segment::Segment;
use crate::wire::tcp::flag;

/// Whether a segment is one of those that most packets are: of an established flow, with ACK alone, where nothing
/// is noted ahead, each side was heard, and no other connection may begin.
#[inline(always)]
#[must_use]
pub fn is_plain(flow: &Flow, segment: &Segment) -> bool {
    const CONTROL: u8 = flag::SYN | flag::RST | flag::FIN | flag::ACK;
    const UNUSUAL: u8 = note::FIN_AHEAD | note::DATA_AHEAD | note::UNHEARD;
    let noted = flow.side_cells(Direction::Forward).flags() & UNUSUAL
        | flow.side_cells(Direction::Reply).flags() & (UNUSUAL | note::SYN_AGAIN);
    segment.flags & CONTROL == flag::ACK && flow.state() == FlowState::Established && noted == 0
}

/// [`follow`] for a plain segment, which changes no state. Says whether it is believed.
#[inline(always)]
pub fn follow_plain(flow: &mut Flow, direction: Direction, segment: &Segment) -> bool {
    let (mut side, other) = (flow.side(direction), flow.side(direction.other()));
    let number = segment.acknowledgement;
    let fits = within(segment.sequence, other.rcv_nxt, other.window())
        & acknowledges(number, (side.rcv_nxt, other.snd_nxt), side.window());
    if fits {
        side.note_end(other.rcv_nxt, segment);
        side.rcv_nxt = side.rcv_nxt.later(number);
        side.advertise(segment.window);
        flow.set_side(direction, side);
    }
    fits
}
