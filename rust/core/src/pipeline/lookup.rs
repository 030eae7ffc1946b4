//! Finding a packet's flow: rule 8, flows.

use std::ops::ControlFlow::{self, Break, Continue};

use super::evict::{forget, is_expired, is_over};
use super::keys::flow_key;
use super::walk::{Departure, Stage, Walk};
use crate::base::{Direction, Event, IngressNeighbour};
use crate::flow::key::Key;
use crate::flow::state::FlowState;
use crate::forwarding::ServerFacts;
use crate::packet::{Meta, Packet};
use crate::parse::Transport;

/// A flow that lives.
#[derive(Clone, Copy)]
pub(super) struct FlowRef<'a> {
    /// Of its entry.
    pub number: u32,
    /// Where it stands.
    pub state: FlowState,
    /// Server id.
    pub server: u32,
    /// What is known of the server.
    pub facts: &'a ServerFacts,
    /// Where the client's packets come from.
    pub ingress: IngressNeighbour,
}

impl<'a> Walk<'a> {
    /// A packet from a client to a service.
    #[inline(always)]
    pub(super) fn client_packet(&mut self, packet: &mut Packet, service: u32) -> Stage<Departure> {
        let transport = &packet.meta.transport;
        self.matched.service = Some(service);
        self.matched.direction = Some(Direction::Forward);
        self.check_ttl(packet)?;
        if let Some(flow) = self.lookup(packet.meta) {
            let Some(event) = self.starts_anew(&flow, transport) else {
                return self.hit(packet, &flow, Direction::Forward);
            };
            return self.begin_anew(packet, transport, service, (flow.number, event));
        }
        self.miss_forward(packet, transport, service)
    }

    /// A client's packet that makes its flow anew: one that moves is no new one, and not limited.
    #[cold]
    #[inline(never)]
    fn begin_anew(
        &mut self,
        packet: &mut Packet,
        transport: &Transport,
        service: u32,
        (number, event): (u32, Event),
    ) -> Stage<Departure> {
        forget(self.state, number, Some(event));
        if event == Event::FlowMoved {
            self.place_forward(packet, transport, service)
        } else {
            self.miss_forward(packet, transport, service)
        }
    }

    /// A packet from a server.
    #[inline(always)]
    pub(super) fn server_packet(&mut self, packet: &mut Packet, endpoint: u32) -> Stage<Departure> {
        let transport = &packet.meta.transport;
        self.check_ttl(packet)?;
        match self.lookup(packet.meta) {
            Some(flow) => {
                self.matched.service = Some(flow.facts.service);
                self.matched.direction = Some(Direction::Reply);
                self.hit(packet, &flow, Direction::Reply)
            }
            None => self.miss_reply(packet, transport, endpoint),
        }
    }

    /// The living entry of a packet's flow, and its server. What is expired or has lost its server is removed: a
    /// miss.
    #[inline(always)]
    fn lookup(&mut self, meta: &Meta) -> Option<FlowRef<'a>> {
        let key = flow_key(meta)?;
        let table = &self.state.table;
        let found = match meta.guess {
            Some(number) if table.holds(number, &key) => Some(number),
            _ => table.find_hashed(&key, meta.hash),
        };
        let flow = found.and_then(|number| match self.living(number) {
            Continue(flow) => Some(flow),
            Break(event) => {
                forget(self.state, number, Some(event));
                None
            }
        });
        self.state.counters.event(if flow.is_some() {
            Event::FlowHit
        } else {
            Event::FlowMiss
        });
        flow
    }

    /// The living entry of a key, without an event and without removing what is dead.
    pub(super) fn peek(&self, key: &Key) -> Option<u32> {
        self.state
            .table
            .find(key)
            .filter(|&number| self.living(number).is_continue())
    }

    /// An entry that lives; else why it is dead.
    #[inline(always)]
    pub(super) fn living(&self, number: u32) -> ControlFlow<Event, FlowRef<'a>> {
        let entry = self.state.table.entry(number);
        if is_expired(self.forwarding, entry, self.now) {
            return Break(Event::FlowExpired);
        }
        let server = entry.server();
        let Some(facts) = self.forwarding.server(server) else {
            return Break(Event::FlowOrphaned);
        };
        Continue(FlowRef {
            number,
            state: entry.state(),
            server,
            facts,
            ingress: entry.ingress(),
        })
    }

    /// Why an entry is dead: it has expired, or its server has left. `None`: it lives.
    pub(super) fn death(&self, number: u32) -> Option<Event> {
        self.living(number).break_value()
    }

    /// Why a client's packet makes its flow anew. A SYN on a closing flow is a new flow at once (rule 8.1, port reuse),
    /// unless one side may be open still; a UDP flow leaves a server that was removed, or drained for its time, with
    /// the next datagram (rule 18.2, servers that leave or fail).
    #[inline(always)]
    fn starts_anew(&self, flow: &FlowRef, transport: &Transport) -> Option<Event> {
        let Some(segment) = &transport.segment else {
            return flow.facts.moves_udp.then_some(Event::FlowMoved);
        };
        let is_reused =
            segment.is_opening() && is_over(self.forwarding, self.state.table.entry(flow.number));
        is_reused.then_some(Event::FlowReused)
    }
}
