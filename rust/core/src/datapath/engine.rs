//! The engine: state that lives across packets, and the calls that packets and time make.

use std::net::IpAddr;

use super::batch::{Arrival, LookAhead, Sink};
use crate::base::{Frame, InterfaceId, Nanos, Offload, Outcome, Output};
use crate::flow::exports::{FlowExport, FlowExports};
use crate::flow::table::{Table, TableError};
use crate::forwarding::ForwardingState;
use crate::pipeline;
use crate::pipeline::state::PathState;
use crate::snapshot::{NextHops, Snapshot};

/// One data path. Single-threaded: one owner calls it.
pub struct DataPath {
    // Boxed: a data path moves between threads and errors, its insides need not.
    pub(super) forwarding: Box<ForwardingState>,
    pub(super) state: Box<PathState>,
    ahead: LookAhead,
    /// What rule 15, resetting flows, made between two ticks.
    pub(super) pending: Vec<Output>,
    /// Where rotations start.
    pub(super) first_round: u64,
}

impl DataPath {
    /// Make a data path with an empty flow table of `capacity` flows, keyed by `hash_key`; `seed` starts the random
    /// draws. Everything drops as `not_for_us` until a snapshot is published.
    ///
    /// # Errors
    /// `Capacity`, `Memory`.
    pub fn new(capacity: u64, hash_key: [u8; 16], seed: u64) -> Result<Self, TableError> {
        Ok(Self::over(Table::new(capacity, hash_key)?, hash_key, seed))
    }

    pub(super) fn over(table: Table, hash_key: [u8; 16], seed: u64) -> Self {
        Self {
            forwarding: Box::new(ForwardingState::new(
                Snapshot::default(),
                NextHops::default(),
            )),
            state: Box::new(PathState::new(table, hash_key, seed)),
            ahead: LookAhead::default(),
            pending: Vec::new(),
            first_round: 0,
        }
    }

    /// Let the rounds of `counter` and `least` start here, for services that come from now on: workers beside each
    /// other start apart.
    pub fn start_rounds_at(&mut self, first_round: u64) {
        self.first_round = first_round;
    }

    /// Drop packets that would begin new flows, from now on, or no longer (rule 22.3, overload): what a loop says that
    /// finds more frames than it has time for.
    pub fn shed_new_flows(&mut self, sheds: bool) {
        self.state.sheds_new_flows = sheds;
    }

    /// Have all memory of the flow table now, instead of page by page as flows come: a loop asks for it before its
    /// first packet.
    ///
    /// # Errors
    /// `Memory` when there is not that much.
    pub fn populate(&mut self) -> Result<(), TableError> {
        self.state.table.populate()
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
}
