//! The state of a flow, as far as a balancer must follow it (RFC 9293 3.3.2, RFC 5382, RFC 5961), and the one place
//! that judges what a segment may change.
//!
//! The addresses and ports of a connection are no secret; its sequence numbers are. So a segment is *believed* only
//! where it fits what the other side has vouched for: it starts within the window that the other side's
//! acknowledgements opened, and acknowledges what its own window let the other side send. Only a believed segment
//! moves numbers, state, idle timer and ingress neighbour; any other is forwarded to the endpoint, which judges by
//! the same numbers, and changes nothing here. Data is never dropped for its numbers.
//!
//! A window has room for guesses. So what ends a flow must be *exact*: a reset where the other side waits for it,
//! or at the end of what was sent without a gap behind that; a FIN between these two, or at a number that the other
//! side acknowledges. What was sent without a gap is [`TcpSide::snd_nxt`], and it is never before what the other
//! side has acknowledged.

mod any;
mod data;
mod handshake;
mod judge;
mod pickup;
mod plain;
mod reset;

use crate::base::{Direction, Reason};
use crate::flow::state::FlowState;
use crate::flow::table::Flow;
use crate::flow::transition::Transition;
use crate::wire::segment::Segment;
use crate::wire::tcp::flag;

pub use any::follow_any;
pub use judge::is_exact;
pub use pickup::pick_up;
pub use plain::{follow_plain, is_plain};

use data::follow_known;
use handshake::{
    follow_crossed_syn_ack, follow_early_ack, follow_syn, follow_syn_ack, follow_third, restart,
};
use pickup::follow_pickup;
use reset::follow_reset;

/// Judge a segment of a known flow, and let it change what it may. It is no first SYN of a closing flow: that one
/// is a new flow.
///
/// # Errors
/// `RstWindow` for a reset outside the window (RFC 5961 3.2); nothing has changed then.
#[inline(never)]
pub fn follow(
    flow: &mut Flow,
    direction: Direction,
    segment: &Segment,
) -> Result<Transition, Reason> {
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
        return Ok(Transition::unbelieved(state));
    }
    if direction == Direction::Forward && flow.has_answer() && segment.acknowledgement == flow.syn()
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

#[cfg(test)]
mod tests;
