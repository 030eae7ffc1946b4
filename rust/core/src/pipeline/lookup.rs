//! Finding a packet's flow: rule 8.

use super::evict::{forget, is_expired};
use super::keys::flow_key;
use super::walk::{Departure, Stage, Walk};
use crate::base::{Direction, Event, LastHop};
use crate::flow::key::Key;
use crate::flow::state::FlowState;
use crate::forwarding::ServerFacts;
use crate::packet::{Meta, Packet};
use crate::parse::Transport;

/// A flow that lives: its entry's number, where it stands, its server's id, what is known of the server, and where the client's packets came from.
#[derive(Clone, Copy)]
pub(super) struct FlowRef<'a> {
    pub number: u32,
    pub state: FlowState,
    pub server: u32,
    pub facts: &'a ServerFacts,
    pub last_hop: LastHop,
}

impl<'a> Walk<'a> {
    /// A packet from a client to a service.
    #[inline(always)]
    pub(super) fn client_packet(&mut self, packet: &mut Packet, service: u32) -> Stage<Departure> {
        let transport = &packet.meta.transport;
        self.matched.service = Some(service);
        self.matched.direction = Some(Direction::Forward);
        self.check_ttl(packet)?;
        if let Some(live) = self.lookup(packet.meta) {
            let Some(event) = starts_anew(&live, transport) else {
                return self.hit(packet, &live, Direction::Forward);
            };
            forget(self.state, live.number, Some(event));
        }
        self.miss_forward(packet, transport, service)
    }

    /// A packet from a server.
    #[inline(always)]
    pub(super) fn server_packet(&mut self, packet: &mut Packet, endpoint: u32) -> Stage<Departure> {
        let transport = &packet.meta.transport;
        self.check_ttl(packet)?;
        match self.lookup(packet.meta) {
            Some(live) => {
                self.matched.service = Some(live.facts.service);
                self.matched.direction = Some(Direction::Reply);
                self.hit(packet, &live, Direction::Reply)
            }
            None => self.miss_reply(packet, transport, endpoint),
        }
    }

    /// The live entry of a packet's flow, and its server. What is expired or has lost its server is removed: a miss.
    #[inline(always)]
    fn lookup(&mut self, meta: &Meta) -> Option<FlowRef<'a>> {
        let key = flow_key(meta)?;
        let table = &self.state.table;
        let found = match meta.guess {
            Some(number) if table.holds(number, &key) => Some(number),
            _ => table.find_hashed(&key, meta.hash),
        };
        let live = found.and_then(|number| match self.live(number) {
            Ok(live) => Some(live),
            Err(event) => {
                forget(self.state, number, Some(event));
                None
            }
        });
        self.state.counters.event(if live.is_some() {
            Event::FlowHit
        } else {
            Event::FlowMiss
        });
        live
    }

    /// The live entry of a key, without an event and without removing what is dead.
    pub(super) fn peek(&self, key: &Key) -> Option<u32> {
        self.state
            .table
            .find(key)
            .filter(|&number| self.live(number).is_ok())
    }

    /// An entry that lives; else why it is dead.
    #[inline(always)]
    pub(super) fn live(&self, number: u32) -> Result<FlowRef<'a>, Event> {
        let entry = self.state.table.entry(number);
        if is_expired(self.forwarding, entry, self.now) {
            return Err(Event::FlowExpired);
        }
        let server = entry.server;
        let facts = self.forwarding.server(server).ok_or(Event::FlowOrphaned)?;
        Ok(FlowRef {
            number,
            state: entry.state(),
            server,
            facts,
            last_hop: entry.last_hop(),
        })
    }

    /// Why an entry is dead: it has expired, or its server has left. `None`: it lives.
    pub(super) fn death(&self, number: u32) -> Option<Event> {
        self.live(number).err()
    }
}

/// Why a client's packet makes its flow anew. A SYN on a closing flow is a new flow at once (behaviour 6); a UDP flow leaves a server that was removed,
/// or drained for its time, with the next datagram (behaviour 8).
#[inline(always)]
fn starts_anew(live: &FlowRef, transport: &Transport) -> Option<Event> {
    let Some(segment) = &transport.segment else {
        return live.facts.moves_udp.then_some(Event::FlowMoved);
    };
    let is_reused = segment.is_opening() && live.state == FlowState::Closing;
    is_reused.then_some(Event::FlowReused)
}
