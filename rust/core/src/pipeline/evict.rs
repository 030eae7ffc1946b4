//! Flows that go: for one that needs their place, or because their time is over.

use super::state::PathState;
use super::walk::Walk;
use crate::base::{Event, Nanos};
use crate::flow::measure;
use crate::flow::state::FlowState;
use crate::flow::table::Entry;
use crate::forwarding::ForwardingState;

impl Walk<'_> {
    /// Evict if the table is full (rule 8.17, full table). `false`: still full.
    pub(super) fn make_room(&mut self) -> bool {
        if !self.state.table.is_full() {
            return true;
        }
        let Some((number, event)) = self.victim() else {
            return false;
        };
        forget(self.state, number, Some(event));
        true
    }

    /// The flow that goes first when another needs its place: unconfirmed ones, then handshakes, then what is over,
    /// then the longest idle. What a server has answered and was heard of lately stays: a `new_flow` has not been
    /// answered yet.
    fn victim(&self) -> Option<(u32, Event)> {
        let table = &self.state.table;
        let timeouts = &self.forwarding.snapshot.timeouts;
        let idle = |list| {
            let number = table.head(list)?;
            let idle = self.now.since(table.entry(number).last_seen);
            Some((idle, number))
        };
        let idlest = |lists: [FlowState; 2]| {
            let [first, second] = lists.map(idle);
            match (first, second) {
                (Some(first), Some(second)) if second.0 > first.0 => Some(second),
                (first, second) => first.or(second),
            }
        };
        let beyond = |floor, flow: Option<(u64, u32)>| flow.filter(|&(idle, _)| idle > floor);
        let handshake_floor = timeouts.idle_floor_ns.min(timeouts.half_open_ns / 10);
        let unconfirmed = idlest([FlowState::Pickup, FlowState::UdpUnreplied]);
        let answered = || beyond(handshake_floor, idle(FlowState::SynReceived));
        let longest = || {
            beyond(
                timeouts.idle_floor_ns,
                idlest([FlowState::Established, FlowState::Udp]),
            )
        };
        let by = |event| move |(_, number): (u64, u32)| (number, event);
        unconfirmed
            .map(by(Event::FlowEvictedUnconfirmed))
            .or_else(|| idle(FlowState::SynSent).map(by(Event::FlowEvictedHalfOpen)))
            .or_else(|| answered().map(by(Event::FlowEvictedHalfOpen)))
            .or_else(|| idle(FlowState::Closing).map(by(Event::FlowEvictedClosing)))
            .or_else(|| longest().map(by(Event::FlowEvictedIdle)))
    }
}

/// Remove an entry, with the event that says why, and keep the active count right.
pub(super) fn forget(state: &mut PathState, number: u32, event: Option<Event>) {
    if let Some(event) = event {
        state.exports.end(&state.table, number, event);
    }
    let entry = *state.table.entry(number);
    if entry.is_active() {
        state.counters.flow_inactive(entry.server);
        if let Some(measures) = state.counters.measures_mut(entry.server) {
            measure::leave(measures, &mut state.table.flow_mut(number));
            if entry.state() == FlowState::SynSent && event == Some(Event::FlowExpired) {
                measure::time_out(measures);
            }
        }
    }
    state.table.remove(number);
    state.counters.entry_removed(entry.service, entry.server);
    if let Some(event) = event {
        state.counters.event(event);
    }
}

/// Whether an entry's time is over.
#[inline(always)]
pub(crate) fn is_expired(forwarding: &ForwardingState, entry: &Entry, now: Nanos) -> bool {
    now.since(entry.last_seen) >= forwarding.timeout_ns(entry.state())
}

/// Whether an entry is neither expired nor without its server.
pub(crate) fn is_living(forwarding: &ForwardingState, entry: &Entry, now: Nanos) -> bool {
    !is_expired(forwarding, entry, now) && forwarding.server(entry.server).is_some()
}
