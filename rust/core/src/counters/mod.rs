//! What happened, in numbers (rule 13, counters). Indexed by enum and by id: counting is one addition, names are made
//! only for a report.

mod by_name;
mod report;

use std::ops::Range;

use crate::base::{Direction, EVENT_NAMES, Event, Reason, Verdict};
use crate::flow::measure::Measures;
use crate::forwarding::ForwardingState;
use crate::least::Loads;

pub use report::{CounterReport, Measured, TableUse, Traffic};

const REASONS: usize = Reason::ALL.len();
/// Room for this many ids is reserved at the start, as addresses without memory behind them: growing up to there
/// moves nothing.
const RESERVED_IDS: usize = 1 << 16;
/// Ids that one call makes room for: a few pages of memory, which the kernel zeroes as they are first touched.
const GROWTH: usize = 128;

/// All counters.
#[derive(Clone)]
pub struct Counters {
    rx: (u64, u64),
    tx: (u64, u64),
    forward: u64,
    pass: u64,
    drop: [u64; REASONS],
    reply: [u64; REASONS],
    hold: [u64; REASONS],
    events: [u64; EVENT_NAMES.len()],
    services: Vec<Traffic>,
    servers: Vec<Traffic>,
    measures: Vec<Measures>,
    /// Entries of each server that are stored, whatever their state: expired and orphaned ones too.
    stored: Vec<u32>,
    /// The same of each service.
    stored_of_service: Vec<u32>,
    /// What `least` looks at. Whatever changes `flows_active` tells it.
    pub loads: Loads,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            rx: (0, 0),
            tx: (0, 0),
            forward: 0,
            pass: 0,
            drop: [0; REASONS],
            reply: [0; REASONS],
            hold: [0; REASONS],
            events: [0; EVENT_NAMES.len()],
            services: Vec::with_capacity(RESERVED_IDS),
            servers: Vec::with_capacity(RESERVED_IDS),
            measures: Vec::with_capacity(RESERVED_IDS),
            stored: Vec::with_capacity(RESERVED_IDS),
            stored_of_service: Vec::with_capacity(RESERVED_IDS),
            loads: Loads::default(),
        }
    }
}

impl Counters {
    /// Make room for the ids of a snapshot. Counters of an id live until it is retired.
    pub fn grow(&mut self, services: usize, servers: usize) {
        while !self.grow_part(services, servers) {}
    }

    /// Make room for some more of the ids of a snapshot, few enough that no packet waits for long. Says whether
    /// there is room for all.
    pub fn grow_part(&mut self, services: usize, servers: usize) -> bool {
        let has_services = grow_part(&mut self.services, services, Traffic::default());
        let has_servers = grow_part(&mut self.servers, servers, Traffic::default());
        let has_measures = grow_part(&mut self.measures, servers, Measures::default());
        let has_stored = grow_part(&mut self.stored, servers, 0);
        let has_stored = grow_part(&mut self.stored_of_service, services, 0) && has_stored;
        has_services && has_servers && has_measures && has_stored
    }

    /// The same but for services and servers, of which it has none.
    #[must_use]
    pub fn totals(&self) -> Self {
        Self {
            services: Vec::new(),
            servers: Vec::new(),
            measures: Vec::new(),
            stored: Vec::new(),
            stored_of_service: Vec::new(),
            loads: Loads::default(),
            ..*self
        }
    }

    /// The counters of a service that there is, to go on from.
    pub fn service_mut(&mut self, service: u32) -> Option<&mut Traffic> {
        self.services.get_mut(service as usize)
    }

    /// The same of a server, with what was measured of it.
    pub fn server_mut(&mut self, server: u32) -> Option<(&mut Traffic, &mut Measures)> {
        let id = server as usize;
        self.servers.get_mut(id).zip(self.measures.get_mut(id))
    }

    /// Append some more of the counters of `from`, those of `ids`, to ours; its measures too when `measures` says so.
    pub fn copy_part(&mut self, from: &Self, ids: Range<usize>, measures: bool) {
        let part = |len: usize| ids.start.min(len)..ids.end.min(len);
        self.services
            .extend_from_slice(&from.services[part(from.services.len())]);
        self.servers
            .extend_from_slice(&from.servers[part(from.servers.len())]);
        if measures {
            self.measures
                .extend_from_slice(&from.measures[part(from.measures.len())]);
        }
    }

    /// Have memory for `ids` more ids, all of it now.
    pub fn reserve(&mut self, ids: usize, measures: bool) {
        reserve(&mut self.services, ids);
        reserve(&mut self.servers, ids);
        if measures {
            reserve(&mut self.measures, ids);
        }
    }

    /// Prepare to follow another snapshot, some of it per call. Says whether all is ready. `first`: where the
    /// rounds of `least` start.
    pub fn prepare(&mut self, forwarding: &ForwardingState, first: u64) -> bool {
        let Self { servers, loads, .. } = self;
        let active = |id: u32| servers.get(id as usize).map_or(0, |each| each.flows_active);
        loads.prepare(forwarding, first, active)
    }

    /// Follow it.
    pub fn follow(&mut self, forwarding: &ForwardingState, first: u64) {
        let Self { servers, loads, .. } = self;
        let active = |id: u32| servers.get(id as usize).map_or(0, |each| each.flows_active);
        loads.follow(forwarding, first, active);
    }

    /// Count a frame that came in.
    #[inline]
    pub fn received(&mut self, bytes: usize) {
        self.rx.0 += 1;
        self.rx.1 += bytes as u64;
    }

    /// Count a frame that goes out.
    #[inline]
    pub fn sent(&mut self, bytes: usize) {
        self.tx.0 += 1;
        self.tx.1 += bytes as u64;
    }

    /// Count a verdict.
    #[inline]
    pub fn verdict(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Forward => self.forward += 1,
            Verdict::Pass => self.pass += 1,
            Verdict::Drop(reason) => self.drop[reason as usize] += 1,
            Verdict::Reply(reason) => self.reply[reason as usize] += 1,
            Verdict::Hold(reason) => self.hold[reason as usize] += 1,
        }
    }

    /// Count packets that were dropped.
    #[inline]
    pub fn drops(&mut self, reason: Reason, packets: usize) {
        self.drop[reason as usize] += packets as u64;
    }

    /// Count an event.
    #[inline]
    pub fn event(&mut self, event: Event) {
        self.events[event as usize] += 1;
    }

    /// Count a translated packet of `bytes` for its server.
    #[inline]
    pub fn server_packet(&mut self, server: u32, direction: Direction, bytes: usize) {
        if let Some(traffic) = self.servers.get_mut(server as usize) {
            traffic.add(direction, bytes);
        }
    }

    /// Count a translated packet of `bytes` for its service.
    #[inline]
    pub fn service_packet(&mut self, service: u32, direction: Direction, bytes: usize) {
        if let Some(traffic) = self.services.get_mut(service as usize) {
            traffic.add(direction, bytes);
        }
    }

    /// Count a new flow, which is stored.
    pub fn flow_created(&mut self, service: u32, server: u32) {
        self.event(Event::FlowCreated);
        if let Some(traffic) = self.services.get_mut(service as usize) {
            traffic.flows_created += 1;
        }
        if let Some(traffic) = self.servers.get_mut(server as usize) {
            traffic.flows_created += 1;
        }
        self.flow_stored(service, server);
    }

    /// Note that an entry refers to these ids, until [`Self::entry_removed`].
    pub fn flow_stored(&mut self, service: u32, server: u32) {
        if let Some(stored) = self.stored.get_mut(server as usize) {
            *stored += 1;
        }
        if let Some(stored) = self.stored_of_service.get_mut(service as usize) {
            *stored += 1;
        }
    }

    /// Note that a flow counts for its server from now on.
    pub fn flow_active(&mut self, server: u32) {
        if let Some(traffic) = self.servers.get_mut(server as usize) {
            traffic.flows_active += 1;
            self.loads.change(server, traffic.flows_active);
        }
    }

    /// Note that an entry was removed.
    pub fn entry_removed(&mut self, service: u32, server: u32) {
        if let Some(stored) = self.stored.get_mut(server as usize) {
            *stored -= 1;
        }
        if let Some(stored) = self.stored_of_service.get_mut(service as usize) {
            *stored -= 1;
        }
    }

    /// Begin anew with a service that no entry refers to. Returns whether that is so; if not, nothing has changed.
    pub fn retire_service(&mut self, service: u32) -> bool {
        let id = service as usize;
        if self
            .stored_of_service
            .get(id)
            .is_some_and(|&stored| stored > 0)
        {
            return false;
        }
        if let Some(traffic) = self.services.get_mut(id) {
            *traffic = Traffic::default();
        }
        self.loads.forget_clock(service);
        true
    }

    /// Begin anew with a server that no entry refers to. Returns whether that is so; if not, nothing has changed.
    pub fn retire_server(&mut self, server: u32) -> bool {
        let id = server as usize;
        if self.stored.get(id).is_some_and(|&stored| stored > 0) {
            return false;
        }
        if let (Some(traffic), Some(measures)) =
            (self.servers.get_mut(id), self.measures.get_mut(id))
        {
            (*traffic, *measures) = Default::default();
        }
        self.loads.forget_round(server);
        true
    }

    /// Note that an active flow is none any more: closing, or gone.
    pub fn flow_inactive(&mut self, server: u32) {
        if let Some(traffic) = self.servers.get_mut(server as usize) {
            traffic.flows_active -= 1;
            self.loads.change(server, traffic.flows_active);
        }
    }

    /// What is measured of a server; `None` for an id that no snapshot had.
    #[inline(always)]
    pub fn measures_mut(&mut self, server: u32) -> Option<&mut Measures> {
        self.measures.get_mut(server as usize)
    }

    /// The counters of a service that a snapshot had.
    #[must_use]
    pub fn service(&self, service: usize) -> Option<&Traffic> {
        self.services.get(service)
    }

    /// The counters and the measures of a server that a snapshot had.
    #[must_use]
    pub fn server(&self, server: usize) -> Option<(&Traffic, &Measures)> {
        self.servers.get(server).zip(self.measures.get(server))
    }

    /// Active flows of a server.
    #[must_use]
    pub fn active(&self, server: u32) -> u64 {
        self.servers
            .get(server as usize)
            .map_or(0, |traffic| traffic.flows_active)
    }
}

/// Lengthen by [`GROWTH`] at most, towards `len`. Says whether it is as long.
pub(crate) fn grow_part<T: Clone>(items: &mut Vec<T>, len: usize, value: T) -> bool {
    let next = len.min(items.len() + GROWTH);
    if next > items.len() {
        items.resize(next, value);
    }
    items.len() >= len
}

/// Reserve memory and touch it, so that the thread that fills it does not wait for the kernel.
fn reserve<T: Clone + Default>(items: &mut Vec<T>, more: usize) {
    let len = items.len();
    items.resize(len + more, T::default());
    items.truncate(len);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn retire_waits_for_the_last_entry_and_starts_from_zero() {
        let mut counters = Counters::default();
        counters.grow(1, 2);
        counters.flow_created(0, 1);
        counters.flow_active(1);
        counters.flow_inactive(1);
        assert!(!counters.retire_server(1));
        assert!(!counters.retire_service(0));
        assert_eq!(counters.servers[1].flows_created, 1);
        assert_eq!(counters.services[0].flows_created, 1);
        counters.entry_removed(0, 1);
        assert!(counters.retire_server(1));
        assert!(counters.retire_service(0));
        assert_eq!(counters.servers[1], Traffic::default());
        assert_eq!(counters.services[0], Traffic::default());
        assert!(counters.retire_server(9));
        assert!(counters.retire_service(9));
    }

    #[test]
    pub(super) fn verdicts_by_name_leaves_out_what_did_not_happen() {
        let mut counters = Counters::default();
        counters.verdict(Verdict::Drop(Reason::TooBig));
        counters.verdict(Verdict::Reply(Reason::TooBig));
        counters.verdict(Verdict::Reply(Reason::TooBig));
        let expected = BTreeMap::from([
            ("drop.too_big".to_owned(), 1),
            ("reply.too_big".to_owned(), 2),
        ]);
        assert_eq!(counters.verdicts_by_name(), expected);
    }
}
