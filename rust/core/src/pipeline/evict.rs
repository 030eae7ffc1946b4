//! Flows that go: for one that needs their place, or because their time is over.

use super::state::PathState;
use super::walk::Walk;
use crate::base::{Event, Nanos};
use crate::flow::measure;
use crate::flow::state::FlowState;
use crate::flow::table::{EntryCells, Table};
use crate::forwarding::ForwardingState;

/// A kind of flows that servers have answered, but no client has proved to be there, may have this part of the
/// table, and this many in any.
const SHARE: usize = 4;
const LEAST_SHARE: usize = 64;
/// Flows that wait for a server's answer have this part of the table before others that are over.
const RESERVE: usize = 64;
/// Heads of each list that are put where they belong before one is evicted.
const SETTLED: usize = 64;
/// UDP flows that are looked at for one to evict.
const SECOND_CHANCES: usize = 4;

impl Walk<'_> {
    /// Evict if the table is full (rule 8.17, full table). `false`: still full.
    pub(super) fn make_room(&mut self) -> bool {
        if !self.state.table.is_full() {
            return true;
        }
        for state in FlowState::ALL {
            self.state.table.settle_head(state, SETTLED);
        }
        let Some((number, event)) = self.victim() else {
            return false;
        };
        forget(self.state, number, Some(event));
        true
    }

    /// The flow that goes first when another needs its place: unconfirmed ones, then handshakes, then what is over,
    /// then those that one side alone was heard of, then the longest idle. What a server has answered and was heard of
    /// lately stays: a `new_flow` has not been answered yet. Kinds whose clients nobody has proved to be there have a
    /// share: a flood of one fills no more.
    fn victim(&mut self) -> Option<(u32, Event)> {
        let queues = Queues {
            table: &self.state.table,
            now: self.now,
        };
        let timeouts = &self.forwarding.snapshot.timeouts;
        let (reserve, share) = (queues.reserve(), queues.share());
        let (unconfirmed, syn_sent) = (
            [FlowState::Pickup, FlowState::UdpUnreplied],
            [FlowState::SynSent],
        );
        let handshake_floor = timeouts.idle_floor_ns.min(timeouts.half_open_ns / 10);
        let answered = || {
            let is_flood = queues.count(&[FlowState::SynReceived]) > share;
            queues.idlest(
                &[FlowState::SynReceived],
                (!is_flood).then_some(handshake_floor),
            )
        };
        let longest = || {
            let lists = [FlowState::Established, FlowState::Udp];
            queues.idlest(&lists, Some(timeouts.idle_floor_ns))
        };
        let by = |event| move |number: u32| (number, event);
        let found = queues
            .beyond(reserve, &unconfirmed)
            .map(by(Event::FlowEvictedUnconfirmed))
            .or_else(|| {
                queues
                    .beyond(reserve, &syn_sent)
                    .map(by(Event::FlowEvictedHalfOpen))
            })
            .or_else(|| answered().map(by(Event::FlowEvictedHalfOpen)))
            .or_else(|| {
                queues
                    .idlest(&[FlowState::Closing], None)
                    .map(by(Event::FlowEvictedClosing))
            })
            .or_else(|| {
                queues
                    .idlest(&[FlowState::OneWay], None)
                    .map(by(Event::FlowEvictedOneWay))
            })
            .or_else(|| {
                queues
                    .idlest(&unconfirmed, None)
                    .map(by(Event::FlowEvictedUnconfirmed))
            })
            .or_else(|| {
                queues
                    .idlest(&syn_sent, None)
                    .map(by(Event::FlowEvictedHalfOpen))
            })
            .or_else(|| longest().map(by(Event::FlowEvictedIdle)));
        let exceeds = found.is_none() && queues.count(&[FlowState::Udp]) > share;
        found.or_else(|| exceeds.then(|| self.answered_once())?)
    }

    /// A UDP flow that has not been heard of since its server's answer, or since it was passed over here: an answer
    /// proves that there is a server, not that there is a client. Of the first few; those before it go to the tail.
    fn answered_once(&mut self) -> Option<(u32, Event)> {
        let table = &mut self.state.table;
        for _ in 0..SECOND_CHANCES {
            let number = table.head(FlowState::Udp)?;
            if !table.entry(number).is_heard_since_linked() {
                return Some((number, Event::FlowEvictedIdle));
            }
            table.give_second_chance(number);
        }
        None
    }
}

/// The lists of the table, as eviction looks at them.
#[derive(Clone, Copy)]
struct Queues<'a> {
    table: &'a Table,
    now: Nanos,
}

impl Queues<'_> {
    /// Flows of a kind that are not answered yet and go after those that are over: so a flood of what servers refuse
    /// leaves new ones the time in which a server answers.
    fn reserve(&self) -> usize {
        self.table.capacity() / RESERVE
    }

    /// Flows of a kind, answered but not proved, that are kept whatever comes.
    fn share(&self) -> usize {
        (self.table.capacity() / SHARE).max(LEAST_SHARE)
    }

    fn count(&self, states: &[FlowState]) -> usize {
        states.iter().map(|&state| self.table.count(state)).sum()
    }

    /// The flow at the head of these lists that is idle for longest, the first of equals; beyond a floor, if any.
    fn idlest(&self, states: &[FlowState], floor: Option<u64>) -> Option<u32> {
        let idle = |&state| {
            let head = self.table.head(state);
            let number = head.filter(|&number| !self.table.is_misplaced(number))?;
            let idle = self.now.since(self.table.entry(number).last_seen());
            Some((idle, number))
        };
        let longer = |first: (u64, u32), second: (u64, u32)| {
            if second.0 > first.0 { second } else { first }
        };
        let (idle, number) = states.iter().filter_map(idle).reduce(longer)?;
        floor.is_none_or(|floor| idle > floor).then_some(number)
    }

    /// The same, if these lists together have more than so many.
    fn beyond(&self, most: usize, states: &[FlowState]) -> Option<u32> {
        (self.count(states) > most).then(|| self.idlest(states, None))?
    }
}

/// Remove an entry, with the event that says why, and keep the active count right.
pub(super) fn forget(state: &mut PathState, number: u32, event: Option<Event>) {
    if let Some(event) = event {
        state.exports.end(&state.table, number, event);
    }
    let entry = state.table.entry(number).load();
    if entry.is_active() {
        state.counters.flow_inactive(entry.server);
        if let Some(measures) = state.counters.measures_mut(entry.server) {
            measure::leave(measures, &mut state.table.flow(number));
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

/// Whether a flow is closed so that a SYN may begin another one in its place. Where replies come to any balancer, a
/// side that was not seen to close may go on.
#[inline]
pub(super) fn is_over(forwarding: &ForwardingState, entry: &EntryCells) -> bool {
    entry.state() == FlowState::Closing && (!forwarding.any_replies || entry.has_both_fins())
}

/// Whether an entry's time is over.
#[inline(always)]
pub(crate) fn is_expired(forwarding: &ForwardingState, entry: &EntryCells, now: Nanos) -> bool {
    now.since(entry.last_seen()) >= forwarding.timeout_ns(entry.state())
}

/// Whether an entry is neither expired nor without its server.
pub(crate) fn is_living(forwarding: &ForwardingState, entry: &EntryCells, now: Nanos) -> bool {
    !is_expired(forwarding, entry, now) && forwarding.server(entry.server()).is_some()
}
