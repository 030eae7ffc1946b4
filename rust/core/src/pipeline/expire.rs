//! What time takes away, before each frame and at each tick: rule 2, expiry.

use super::evict::{forget, is_expired};
use super::state::PathState;
use crate::base::{Event, Nanos, Output, Reason, Verdict};
use crate::flow::state::FlowState;
use crate::forwarding::ForwardingState;
use crate::limit::AnswerKind;
use crate::next_hop::Waited;
use crate::wire::ethernet;

/// Flows removed before a frame, and datagrams in fragments: a batch of frames must not take long when many are
/// due. What is left the ticks remove.
pub(crate) const PER_FRAME: usize = 4;
/// Removed per tick: some tens of microseconds. A loop that is behind ticks again after its next look at the sockets.
pub(crate) const PER_TICK: usize = 64;
/// Fragments that were given up and are freed then, per flow that may be removed: each takes about a tenth of the
/// time.
const FREED: usize = 4;

/// Remove what is over: flows and datagrams in fragments, `most` at most of either, and waiting packets.
#[inline(always)]
pub(crate) fn expire(forwarding: &ForwardingState, state: &mut PathState, now: Nanos, most: usize) {
    if state.table.may_have_expired(now) {
        expire_flows(forwarding, state, now, most);
    }
    if !state.fragments.is_empty() || !state.waiting.is_empty() {
        expire_held(forwarding, state, now, most);
        state.fragments.free(most * FREED);
    }
}

#[inline(never)]
fn expire_held(forwarding: &ForwardingState, state: &mut PathState, now: Nanos, most: usize) {
    for _ in 0..most {
        let Some(held) = state.fragments.expire(now) else {
            break;
        };
        count_drops(state, Reason::FragmentTimeout, held);
    }
    while let Some(waited) = state.waiting.expire(now) {
        for packet in waited {
            let verdict = give_up(forwarding, state, packet, now);
            state.counters.verdict(verdict);
        }
    }
}

/// A packet has waited in vain: a client is told, at the next tick, if the rate allows it.
fn give_up(
    forwarding: &ForwardingState,
    state: &mut PathState,
    packet: Waited,
    now: Nanos,
) -> Verdict {
    let notice = packet.notice;
    let Some(notice) = notice.filter(|notice| forwarding.interface(notice.interface).is_some())
    else {
        return Reason::NeighbourTimeout.into();
    };
    let rate = forwarding.snapshot.settings.icmp_rate;
    if !state.limiter.take(AnswerKind::Unreachable, rate, now) {
        return Reason::RateLimited.into();
    }
    state.answers.push(notice);
    Verdict::Reply(Reason::NeighbourTimeout)
}

/// Send the packets whose neighbour is known by now, in order.
pub(crate) fn release(
    forwarding: &ForwardingState,
    state: &mut PathState,
    extra: &mut Vec<Output>,
) {
    let resolve = |interface, address| {
        forwarding
            .interface(interface)
            .and_then(|_| forwarding.neighbour(interface, address))
    };
    for (mac, frames) in state.waiting.release(resolve) {
        state.counters.verdict(Verdict::Forward);
        for mut output in frames {
            if let Some((mut header, port)) = ethernet::Frame::new_mut(&mut output.frame)
                .zip(forwarding.interface(output.interface))
            {
                header.set_destination(mac);
                header.set_source(port.mac);
            }
            state.counters.sent(output.frame.len());
            extra.push(output);
        }
    }
}

fn expire_flows(forwarding: &ForwardingState, state: &mut PathState, now: Nanos, most: usize) {
    let mut left = most;
    let mut due = Nanos::NEVER;
    for list in FlowState::ALL {
        while let Some(head) = state.table.head(list) {
            let entry = state.table.entry(head);
            let over = is_expired(forwarding, entry, now);
            if !over && !state.table.is_misplaced(head) {
                due = due.min(entry.last_seen().plus(forwarding.timeout_ns(list)));
                break;
            }
            if left == 0 {
                return;
            }
            left -= 1;
            if over {
                forget(state, head, Some(Event::FlowExpired));
            } else {
                state.table.settle(head);
                // It may be due before what was looked at.
                due = Nanos::ZERO;
            }
        }
    }
    state.table.set_due(due);
}

pub(super) fn count_drops(state: &mut PathState, reason: Reason, packets: usize) {
    state.counters.drops(reason, packets);
}
