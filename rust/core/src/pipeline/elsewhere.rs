//! Flows that a packet tells of although they may have no entry here: a hash gives a client its server, and the
//! endpoint that a server's packet comes from says which service it answers for (rule 8.23, replies through any
//! balancer).

use std::ops::ControlFlow::Break;

use super::walk::{Departure, OrDrop, Stage, Walk};
use crate::base::{Direction, Event, IngressNeighbour, Ip, Reason};
use crate::flow::key::{Key, KeySide};
use crate::forwarding::{ServerFacts, is_hash};
use crate::packet::Packet;
use crate::parse::Transport;

/// A flow, whether it has an entry or not.
#[derive(Clone, Copy)]
pub(super) struct KnownFlow {
    pub service: u32,
    pub server: u32,
    /// Where the client's packets came from, if that is known.
    pub ingress: Option<IngressNeighbour>,
}

pub(super) fn key_of((client, client_port): (Ip, u16), side: KeySide) -> Key {
    Key {
        client,
        client_port,
        side,
    }
}

impl Walk<'_> {
    /// A server's packet of no flow here: another balancer may have it. It is translated as its endpoint says, and
    /// leaves no entry: its client's packets may never come to us.
    pub(super) fn pass_reply(
        &mut self,
        packet: &mut Packet,
        transport: &Transport,
        endpoint: u32,
    ) -> Stage<Departure> {
        if transport
            .segment
            .is_some_and(|segment| segment.is_opening())
        {
            return Break(Reason::NoFlow.into());
        }
        let client = (packet.meta.ip.destination, transport.destination_port);
        let flow = self
            .flow_of_endpoint(client, endpoint)
            .or_drop(Reason::NoFlow)?;
        let facts = self
            .forwarding
            .server(flow.server)
            .or_drop(Reason::NoFlow)?;
        self.matched.direction = Some(Direction::Reply);
        self.matched.service = Some(flow.service);
        self.matched.server = Some(flow.server);
        self.state.counters.event(Event::ReplyStateless);
        self.translate(packet, Direction::Reply, (flow.server, facts), None)
    }

    /// The flow that an entry of the table says.
    pub(super) fn stored_flow(&self, client: (Ip, u16), side: KeySide) -> Option<KnownFlow> {
        let number = self.peek(&key_of(client, side))?;
        let entry = self.state.table.entry(number);
        Some(KnownFlow {
            service: entry.service(),
            server: entry.server(),
            ingress: Some(entry.ingress()),
        })
    }

    /// The flow that a client has with a hash service, when there is no entry of it: what follows a restart must
    /// not lose path-MTU discovery.
    pub(super) fn hashed_flow_to_vip(&self, client: (Ip, u16), service: u32) -> Option<KnownFlow> {
        let server = self.hash_choice(service, client)?;
        let facts = self.forwarding.server(server)?;
        // Another service's flow may have these ports at the server: then this one would not have been placed there.
        let other = key_of(client, KeySide::Endpoint(facts.endpoint));
        if facts.address == client.0 || self.peek(&other).is_some() {
            return None;
        }
        Some(KnownFlow {
            service,
            server,
            ingress: None,
        })
    }

    /// The same from a server's side: the first hash service that would have placed the client there, and has no
    /// entry that says otherwise.
    pub(super) fn flow_of_endpoint(&self, client: (Ip, u16), endpoint: u32) -> Option<KnownFlow> {
        let forwarding = self.forwarding;
        if forwarding.any_replies {
            return self.flow_elsewhere(client, endpoint);
        }
        let mut services = forwarding.hash_services(endpoint).iter();
        services.find_map(|&service| {
            let server = self.hash_choice(service, client)?;
            let facts = forwarding.server(server)?;
            let elsewhere = self.peek(&key_of(client, KeySide::Service(service)));
            let fits = facts.endpoint == endpoint && facts.address != client.0;
            (fits && elsewhere.is_none()).then_some(KnownFlow {
                service,
                server,
                ingress: None,
            })
        })
    }

    /// The flow that another balancer may have of a client with an endpoint: that of the only service that can have
    /// placed it there.
    fn flow_elsewhere(&self, client: (Ip, u16), endpoint: u32) -> Option<KnownFlow> {
        let servers = self.forwarding.endpoint_servers(endpoint);
        let is_alone = servers.len() == 1;
        let mut candidates = servers
            .iter()
            .filter_map(|&server| Some((server, self.forwarding.server(server)?)))
            .filter(|(_, facts)| is_alone || self.may_have_placed(facts, client));
        let (server, facts) = candidates.next()?;
        let fits = candidates.next().is_none() && facts.address != client.0;
        fits.then_some(KnownFlow {
            service: facts.service,
            server,
            ingress: None,
        })
    }

    /// Whether a server's service can have placed a client there: one that places by a hash places it nowhere else.
    fn may_have_placed(&self, facts: &ServerFacts, client: (Ip, u16)) -> bool {
        let service = self.forwarding.service(facts.service);
        if !service.is_some_and(|service| is_hash(service.plan.selector)) {
            return true;
        }
        let choice = self.hash_choice(facts.service, client);
        let chosen = choice.and_then(|server| self.forwarding.server(server));
        chosen.is_some_and(|chosen| chosen.endpoint == facts.endpoint)
    }
}
