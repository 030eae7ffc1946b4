//! The data path as its callers see it: state that lives across packets, and the calls that change it.
//!
//! A thin face: [`batch`] takes packets through the pipeline, [`flows`] and [`report`] tell the control side what
//! there is.

mod batch;
mod flows;
mod report;

use std::net::IpAddr;
use std::sync::Arc;

use crate::base::{Frame, InterfaceId, Ip, Nanos, Offload, Outcome, Output};
use crate::counters::{CounterReport, Measured, grow_part};
use crate::flow::exports::{FlowExport, FlowExports};
use crate::flow::key::{Key, KeySide};
use crate::flow::table::{Table, TableError};
use crate::forwarding::ForwardingState;
use crate::pipeline::state::PathState;
use crate::pipeline::{self, is_living};
use crate::snapshot::{NextHops, Plan, Selector, Snapshot, Transit};

use batch::{Arrival, LookAhead};
use flows::flow_info;

pub use batch::Sink;
pub use flows::{FlowInfo, FlowPage, FlowQuery, FlowSearch, ServerReset};
pub use report::Reading;

/// One data path. Single-threaded: one owner calls it.
pub struct DataPath {
    // Boxed: a data path moves between threads and errors, its insides need not.
    forwarding: Box<ForwardingState>,
    state: Box<PathState>,
    ahead: LookAhead,
    /// What rule 15, resetting flows, made between two ticks.
    pending: Vec<Output>,
    /// Where rotations start.
    first_round: u64,
}

impl DataPath {
    /// Make a data path with an empty flow table of `capacity` flows, keyed by `hash_key`; `seed` starts the random
    /// draws. Everything drops as `not_for_us` until a snapshot is published.
    ///
    /// # Errors
    /// `Capacity`, `Memory`.
    pub fn new(capacity: u64, hash_key: [u8; 16], seed: u64) -> Result<Self, TableError> {
        let table = Table::new(capacity, hash_key)?;
        Ok(Self {
            forwarding: Box::new(ForwardingState::new(
                Snapshot::default(),
                NextHops::default(),
            )),
            state: Box::new(PathState::new(table, seed)),
            ahead: LookAhead::default(),
            pending: Vec::new(),
            first_round: 0,
        })
    }

    /// Let the rounds of `counter` and `least` start here, for services that come from now on: workers beside each
    /// other start apart.
    pub fn start_rounds_at(&mut self, first_round: u64) {
        self.first_round = first_round;
    }

    /// Have all memory of the flow table now, instead of page by page as flows come: a loop asks for it before its
    /// first packet.
    ///
    /// # Errors
    /// `Memory` when there is not that much.
    pub fn populate(&mut self) -> Result<(), TableError> {
        self.state.table.populate()
    }

    /// Bytes of the flow table: promised for its capacity, everything included, and resident by now.
    #[must_use]
    pub fn memory(&self) -> (u64, u64) {
        let mut total = (0, 0);
        let mut at = Some(0);
        while let Some(from) = at {
            let part;
            (part, at) = self.memory_part(from);
            total = (total.0 + part.0, total.1 + part.1);
        }
        total
    }

    /// [`Self::memory`] of a part from a place on, and where the next one begins: asking the kernel about gigabytes
    /// takes milliseconds.
    #[must_use]
    pub fn memory_part(&self, from: usize) -> ((u64, u64), Option<usize>) {
        self.state.table.memory_part(from)
    }

    /// Swap to a new snapshot. Flows stay. Where packets must not wait meanwhile, do the parts apart:
    /// [`Self::sources`], [`ForwardingState::new`], [`Self::make_room`], [`Self::prepare`], [`Self::swap`].
    pub fn publish(&mut self, snapshot: impl Into<Arc<Snapshot>>) {
        let forwarding = ForwardingState::new(snapshot, Arc::clone(self.forwarding.next_hops()));
        let (services, servers) = (
            forwarding.snapshot.services.len(),
            forwarding.snapshot.servers.len(),
        );
        while !self.make_room(services, servers) {}
        drop(self.swap(Box::new(forwarding)));
    }

    /// What the forwarding of packets was compiled of.
    #[must_use]
    pub fn sources(&self) -> (Arc<Snapshot>, Arc<NextHops>) {
        let next_hops = Arc::clone(self.forwarding.next_hops());
        (Arc::clone(&self.forwarding.snapshot), next_hops)
    }

    /// Make room for what is kept per service and server, some of it per call. Says whether there is room for all
    /// of a snapshot with these numbers of ids: it can be swapped to then.
    #[must_use]
    pub fn make_room(&mut self, services: usize, servers: usize) -> bool {
        let has_rotation = grow_part(&mut self.state.rotation, services, self.first_round);
        self.state.counters.grow_part(services, servers) && has_rotation
    }

    /// Prepare to swap to a forwarding, for which room was made, some of it per call. Says whether all is ready.
    #[must_use]
    pub fn prepare(&mut self, forwarding: &ForwardingState) -> bool {
        Arc::ptr_eq(&forwarding.snapshot, &self.forwarding.snapshot)
            || self.state.counters.prepare(forwarding, self.first_round)
    }

    /// Swap to another forwarding, after what is left to prepare for it. Returns the one before it: to be dropped
    /// where no packet waits.
    #[must_use]
    pub fn swap(&mut self, forwarding: Box<ForwardingState>) -> Box<ForwardingState> {
        let PathState {
            table,
            counters,
            direct,
            ..
        } = &mut *self.state;
        table.set_generation(forwarding.snapshot.generation);
        // Other next hops alone change nothing about who is placed where.
        if !Arc::ptr_eq(&forwarding.snapshot, &self.forwarding.snapshot) {
            direct.prepare(forwarding.snapshot.settings.transit == Transit::Forward);
            counters.follow(&forwarding, self.first_round);
        }
        std::mem::replace(&mut self.forwarding, forwarding)
    }

    /// Swap routes and neighbours. Waiting packets leave at the next `tick`. It compiles anew: see [`Self::publish`].
    pub fn set_next_hops(&mut self, next_hops: NextHops) {
        self.forwarding.set_next_hops(Arc::new(next_hops));
    }

    /// Process one frame in place. Frames of their own are appended to `extra`.
    pub fn process(
        &mut self,
        frame: &mut [u8],
        interface: InterfaceId,
        now: Nanos,
        offload: Offload,
        extra: &mut Vec<Output>,
    ) -> Outcome {
        let engine = (&*self.forwarding, &mut *self.state);
        let frame = Frame {
            bytes: frame,
            offload,
        };
        let arrival = Arrival { interface, now };
        self.ahead.process(engine, frame, arrival, extra)
    }

    /// Process frames of one interface in place, in order. What comes of it is the same as of calls of `process`;
    /// what their flows need from memory is fetched together before the first is acted upon.
    pub fn process_batch(
        &mut self,
        frames: &mut [Frame<'_>],
        interface: InterfaceId,
        now: Nanos,
        sink: &mut impl Sink,
    ) {
        let engine = (&*self.forwarding, &mut *self.state);
        let arrival = Arrival { interface, now };
        self.ahead.process_batch(engine, frames, arrival, sink);
    }

    /// Expire and release what is due. Of flows and fragments one call removes, and frees, a bounded number:
    /// [`Self::is_behind`] says whether more are due.
    pub fn tick(&mut self, now: Nanos, extra: &mut Vec<Output>) {
        let Self {
            forwarding, state, ..
        } = self;
        pipeline::expire(forwarding, state, now, pipeline::PER_TICK);
        for output in self.pending.drain(..).chain(state.answers.drain(..)) {
            state.counters.sent(output.frame.len());
            extra.push(output);
        }
        pipeline::release(forwarding, state, extra);
        if !state.asking.is_empty() {
            self.ahead.resume(forwarding, state, now, extra);
        }
    }

    /// Tell what was answered to the question with this ticket; `None`: nothing usable. Its packets go on with the
    /// next tick. Nothing happens when they have gone on already.
    pub fn answer(&mut self, ticket: u64, answer: Option<&str>) {
        self.state.asking.answer(ticket, answer);
    }

    /// When the next tick is due for packets that wait for an answer; `None`: none waits.
    #[must_use]
    pub fn answer_due(&self) -> Option<Nanos> {
        self.state.asking.due()
    }

    /// Whether frames wait for the next tick that no packet asked for (rule 15, resetting flows).
    #[must_use]
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether a tick at this time left flows or fragments that are due, or memory of such: the next one does more.
    #[must_use]
    pub fn is_behind(&self, now: Nanos) -> bool {
        self.state.table.may_have_expired(now) || self.state.fragments.is_behind(now)
    }

    /// How many active flows each of the servers with these ids has (rule 13, counters).
    #[must_use]
    pub fn active_flows(&self, servers: &[u32]) -> Vec<u64> {
        let counters = &self.state.counters;
        servers.iter().map(|&id| counters.active(id)).collect()
    }

    /// Begin anew with the servers of these ids that the snapshot does not have and no entry refers to: their
    /// counters and measurements are 0 (rule 13, counters). Returns those.
    pub fn retire_servers(&mut self, servers: &[u32]) -> Vec<u32> {
        let Self {
            forwarding, state, ..
        } = self;
        let is_gone = |&&server: &&u32| forwarding.server(server).is_none();
        let gone = servers.iter().filter(is_gone).copied();
        gone.filter(|&server| state.counters.retire_server(server))
            .collect()
    }

    /// The same for services: their counters and rounds begin anew (rule 13, counters).
    pub fn retire_services(&mut self, services: &[u32]) -> Vec<u32> {
        let Self {
            forwarding, state, ..
        } = self;
        let is_gone = |&&service: &&u32| forwarding.service(service).is_none();
        let gone = services.iter().filter(is_gone).copied();
        let retired: Vec<_> = gone
            .filter(|&service| state.counters.retire_service(service))
            .collect();
        for &service in &retired {
            if let Some(round) = state.rotation.get_mut(service as usize) {
                *round = self.first_round;
            }
        }
        retired
    }

    /// The unexpired entries, sorted by (client, client port, service), addresses compared as 16 bytes (IPv4-mapped).
    #[must_use]
    pub fn flows(&self, now: Nanos) -> Vec<FlowInfo> {
        self.find_flows(&FlowQuery::all(), now).1
    }

    /// Look at the next slice of the flow table for a search. Says whether it was the last one.
    pub fn look(&self, search: &mut FlowSearch) -> bool {
        search.look(&self.forwarding, &self.state.table)
    }

    /// Read some rows of a page, of flows that are there still. Says whether these were the last ones.
    pub fn read_rows(&self, page: &mut FlowPage) -> bool {
        page.read(&self.forwarding, &self.state.table)
    }

    /// How many unexpired entries fit a query, and its page of them, sorted by (client, client port, service),
    /// addresses compared as 16 bytes. All at once: where packets wait, go through [`Self::look`] and
    /// [`Self::read_rows`] in slices.
    #[must_use]
    pub fn find_flows(&self, query: &FlowQuery, now: Nanos) -> (usize, Vec<FlowInfo>) {
        let mut search = FlowSearch::new(query.clone(), now);
        while !self.look(&mut search) {
            search.settle();
        }
        let (total, mut page) = search.page();
        while !self.read_rows(&mut page) {}
        (total, page.into_rows())
    }

    /// Reset some more of the flows of a server, those that are there still; both ends of each learn at the next
    /// tick. Says whether these were the last ones.
    pub fn reset_some(&mut self, reset: &mut ServerReset) -> bool {
        let Self {
            forwarding,
            state,
            pending,
            ..
        } = self;
        reset.reset(forwarding, state, pending)
    }

    /// Remove live flows of a server, `limit` at most; both ends of each learn at the next tick (rule 15, resetting
    /// flows). Returns how many. All at once: where packets wait, go through [`Self::reset_some`] in slices.
    pub fn reset_flows(&mut self, server: u32, limit: usize, now: Nanos) -> usize {
        let mut search = ServerReset::search(server, limit, now);
        while !self.look(&mut search) {
            search.settle();
        }
        let mut reset = ServerReset::new(server, search.page().1);
        while !self.reset_some(&mut reset) {}
        reset.removed()
    }

    /// Begin to read the counters, with what was measured where `measures` says so.
    #[must_use]
    pub fn reading(&self, measures: bool) -> Reading {
        Reading::new(&self.forwarding.snapshot, &self.state, measures)
    }

    /// Copy the next slice of the counters. Says whether it was the last one.
    pub fn copy_some(&self, reading: &mut Reading) -> bool {
        reading.copy(&self.state.counters)
    }

    /// All counters at once.
    #[must_use]
    pub fn counters(&self) -> CounterReport {
        self.read(false).report()
    }

    /// What is known of each server by id, until `now`, at once; `None` for those that are not in the snapshot.
    #[must_use]
    pub fn measurements(&self, now: Nanos) -> Vec<Option<Measured>> {
        self.read(true).measurements(now)
    }

    fn read(&self, measures: bool) -> Reading {
        let mut reading = self.reading(measures);
        reading.settle();
        while !self.copy_some(&mut reading) {}
        reading
    }

    /// What there is to know before a packet of a client comes to a service: its flow, if it has a living one, and
    /// the service's next round. Changes nothing.
    #[must_use]
    pub fn peek(
        &self,
        service: u32,
        client: IpAddr,
        client_port: u16,
        now: Nanos,
    ) -> (Option<FlowInfo>, u64) {
        let table = &self.state.table;
        let key = Key {
            client: Ip::from(client),
            client_port,
            side: KeySide::Service(service),
        };
        let flow = table
            .find(&key)
            .filter(|&number| is_living(&self.forwarding, table.entry(number), now));
        let flow = flow.map(|number| flow_info(table, number, now));
        (flow, self.next_round(service))
    }

    /// The number of a service's next round; where it places by `least`, the first slot of the server that is next.
    fn next_round(&self, service: u32) -> u64 {
        let slots = self
            .forwarding
            .service(service)
            .and_then(|service| least_slots(&service.plan));
        let next = self.state.counters.loads.best(service);
        let slot = slots
            .zip(next)
            .and_then(|(slots, server)| slots.iter().position(|&slot| slot == server));
        let round = self.state.rotation.get(service as usize).copied();
        slot.map_or_else(|| round.unwrap_or(self.first_round), |slot| slot as u64)
    }

    /// Keep how flows end: up to `most` of them between two calls of `take_flow_exports`. 0: none. `room`: of
    /// [`FlowExports::room`] for the table's capacity, made where no packet waits; empty when `most` is 0. Returns
    /// what is to be dropped there.
    #[must_use]
    pub fn keep_flow_exports(&mut self, most: usize, room: Vec<Nanos>) -> FlowExports {
        self.state.exports.keep(most, room)
    }

    /// Flows that the table can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.state.table.capacity()
    }

    /// The flows that ended since the last call, in that order, and the number of those that found no room.
    pub fn take_flow_exports(&mut self) -> (Vec<FlowExport>, u64) {
        self.state.exports.take()
    }

    /// Hops to resolve that were not returned before. One that timed out meanwhile is not returned.
    pub fn take_unresolved(&mut self) -> Vec<(InterfaceId, IpAddr)> {
        let unreported = self.state.waiting.take_unreported();
        unreported
            .into_iter()
            .map(|(interface, address)| (interface, IpAddr::from(address)))
            .collect()
    }

    /// Whether `take_unresolved` has news.
    #[must_use]
    pub fn has_unresolved(&self) -> bool {
        self.state.waiting.has_unreported()
    }

    /// Packets without a final verdict yet: fragments that wait for their first, packets that wait for a neighbour
    /// or an answer.
    #[must_use]
    pub fn held(&self) -> usize {
        self.state.fragments.held() + self.state.waiting.len() + self.state.asking.len()
    }

    /// The published snapshot, for names.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.forwarding.snapshot
    }
}

/// The slots of the plan that places by `least`: the plan itself, or the fall-back of one that asks.
fn least_slots(plan: &Plan) -> Option<&[u32]> {
    match plan.selector {
        Selector::Least => Some(&plan.slots),
        Selector::Ask => least_slots(plan.fallback.as_ref()?),
        _ => None,
    }
}
