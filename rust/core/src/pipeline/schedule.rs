//! Placing a flow that is not known yet: rule 8.16, placement.

use std::ops::ControlFlow::{Break, Continue};

use super::evict::{forget, is_expired, is_over};
use super::keys::is_guarded;
use super::walk::{Departure, OrDrop, Stage, Walk};
use crate::asking::Wait;
use crate::base::{Direction, Event, Ip, Nanos, Reason, Verdict};
use crate::direct::DirectConnections;
use crate::flow::key::{Key, KeySide};
use crate::flow::measure;
use crate::flow::state::FlowState;
use crate::flow::table::{Entry, Table};
use crate::flow::tcp;
use crate::forwarding::{ForwardingState, ServerFacts, is_hash};
use crate::limit;
use crate::packet::Packet;
use crate::parse::Transport;
use crate::plan::{Choice, Eligibility, Picker, hashed};
use crate::snapshot::{Refusal, Service};
use crate::wire::segment::Segment;
use crate::wire::tcp::flag;

/// A client's side of a flow that is to be placed.
#[derive(Clone, Copy)]
struct NewFlow {
    direction: Direction,
    client: Ip,
    client_port: u16,
    service: u32,
    /// Whether its packet opens a connection.
    opens: bool,
}

impl NewFlow {
    /// A flow that begins with this client's packet.
    #[inline(always)]
    fn of_client(packet: &Packet, transport: &Transport, service: u32) -> Self {
        Self {
            direction: Direction::Forward,
            client: packet.meta.ip.source,
            client_port: transport.source_port,
            service,
            opens: transport
                .segment
                .is_some_and(|segment| segment.is_opening()),
        }
    }

    fn key(&self, side: KeySide) -> Key {
        Key {
            client: self.client,
            client_port: self.client_port,
            side,
        }
    }
}

impl Walk<'_> {
    /// A client's packet of a flow that is not known: where its service limits new flows, only those that may begin
    /// (rule 8.22, limits of new flows) are placed.
    #[inline(never)]
    pub(super) fn miss_forward(
        &mut self,
        packet: &mut Packet,
        transport: &Transport,
        service: u32,
    ) -> Stage<Departure> {
        let facts = self
            .forwarding
            .service(service)
            .or_drop(Reason::NoService)?;
        if facts.new_flow_limit.is_some() || self.state.sheds_new_flows {
            self.may_begin(packet, transport, service, facts)?;
        }
        self.place_forward(packet, transport, service)
    }

    /// Whether a client's packet may begin a flow, if it would: there is time for it (rule 22.3, overload), and its
    /// source has not begun too many.
    #[cold]
    fn may_begin(
        &mut self,
        packet: &Packet,
        transport: &Transport,
        service: u32,
        facts: &Service,
    ) -> Stage<()> {
        // What waited for a policy's answer was let in when it came.
        if !stores_flow(transport, is_hash(facts.plan.selector)) || self.state.asking.is_resumed() {
            return Continue(());
        }
        let now = self.now;
        if self.state.sheds_new_flows {
            let new_flow = NewFlow::of_client(packet, transport, service);
            let key = new_flow.key(KeySide::Service(service));
            if !self.state.shed.comes_again(&key, now) {
                return Break(Reason::Overload.into());
            }
        }
        let client = packet.meta.ip.source;
        let has_token = |limit| self.state.new_flows.take(service, client, limit, now);
        if facts.new_flow_limit.as_ref().is_none_or(has_token) {
            Continue(())
        } else {
            Break(Reason::NewFlowLimit.into())
        }
    }

    /// A client's packet of a flow that is not known, and not limited: it is placed, held while a policy is asked, or
    /// refused.
    #[inline(never)]
    pub(super) fn place_forward(
        &mut self,
        packet: &mut Packet,
        transport: &Transport,
        service: u32,
    ) -> Stage<Departure> {
        let forwarding = self.forwarding;
        let plan = &forwarding.service(service).or_drop(Reason::NoService)?.plan;
        let hash = is_hash(plan.selector);
        let stores = stores_flow(transport, hash);
        if !(stores || hash && self.may_be_stateless(transport)) {
            return Break(self.no_flow(packet, transport, service));
        }
        let new_flow = NewFlow::of_client(packet, transport, service);
        self.state.asking.begin(packet.meta.ip.fragment.is_none());
        let choice = self.select(&new_flow, stores);
        if let Some(wait) = self.state.asking.take_wait() {
            return Break(self.hold_for_answer(packet, wait));
        }
        let result = match choice {
            Choice::Server { server, dead } => {
                self.place(packet, transport, &new_flow, (server, dead), stores)
            }
            Choice::Refused(server, reason) => {
                self.matched.server = Some(server);
                Break(reason.into())
            }
            Choice::NoServer if !stores => Break(self.no_flow(packet, transport, service)),
            Choice::NoServer => Break(self.no_server(packet, transport, service)),
        };
        match result {
            Break(verdict) if stores => {
                Break(self.refuse_new_flow(packet, transport, service, verdict))
            }
            result => result,
        }
    }

    /// Rule 8.21, asking a policy: the packet waits for what the policy answers.
    #[cold]
    fn hold_for_answer(&mut self, packet: &Packet, wait: Wait) -> Verdict {
        let (interface, offload) = (packet.meta.interface, packet.meta.offload);
        let (asking, now) = (&mut self.state.asking, self.now);
        asking.hold(wait, packet.frame, interface, offload, now);
        Verdict::Hold(Reason::Ask)
    }

    /// A server's packet of a flow we do not know may be of one that a hash would have placed there (rule 8.14, client
    /// packets of no flow).
    #[inline(never)]
    pub(super) fn miss_reply(
        &mut self,
        packet: &mut Packet,
        transport: &Transport,
        endpoint: u32,
    ) -> Stage<Departure> {
        if self.answers_directly(packet.meta) {
            return self.send_transit(packet);
        }
        if self.forwarding.any_replies {
            return self.pass_reply(packet, transport, endpoint);
        }
        let stores = transport.segment.as_ref().is_none_or(Segment::can_pick_up);
        let forwarding = self.forwarding;
        let services = if stores || self.may_be_stateless(transport) {
            forwarding.hash_services(endpoint)
        } else {
            &[]
        };
        for &service in services {
            let new_flow = NewFlow {
                direction: Direction::Reply,
                client: packet.meta.ip.destination,
                client_port: transport.destination_port,
                service,
                opens: false,
            };
            let Choice::Server { server, dead } = self.select(&new_flow, stores) else {
                continue;
            };
            let is_sender = |facts: &ServerFacts| facts.endpoint == endpoint;
            if forwarding.server(server).is_some_and(is_sender) {
                return self.place(packet, transport, &new_flow, (server, dead), stores);
            }
        }
        Break(Reason::NoFlow.into())
    }

    /// Whether a segment that stores no flow may be placed by a hash: the end of a connection that began before us,
    /// and all of one that a full table could not store: it must be able to open and to close.
    fn may_be_stateless(&self, transport: &Transport) -> bool {
        let ends = transport.segment.is_some_and(|segment| segment.is_ending());
        ends || self.state.table.is_full()
    }

    /// Have the service's plan choose a server. Without `stores`: for a packet that leaves no flow behind.
    fn select(&mut self, new_flow: &NewFlow, stores: bool) -> Choice {
        let (forwarding, now) = (self.forwarding, self.now);
        let id = new_flow.service;
        let state = &mut *self.state;
        let known = forwarding.service(id).zip(forwarding.plan_servers(id));
        let rotation = state.rotation.get_mut(id as usize);
        let Some(((service, named), rotation)) = known.zip(rotation) else {
            return Choice::NoServer;
        };
        let eligibility = |server: u32| {
            let known = (&state.table, &state.direct);
            eligibility(forwarding, known, new_flow, server, stores, now)
        };
        Picker {
            forwarding,
            counters: &mut state.counters,
            random: &mut state.random,
            rotation,
            asking: &mut state.asking,
            tried: &mut state.tried,
            eligibility: &eligibility,
            service: id,
            client: (new_flow.client, new_flow.client_port),
        }
        .select(&service.plan, named)
    }

    /// The server that a hash gives a client's flow; `None` where the service's plan has no hash selector. Changes
    /// nothing.
    pub(super) fn hash_choice(&self, service: u32, client: (Ip, u16)) -> Option<u32> {
        let plan = &self.forwarding.service(service)?.plan;
        if !is_hash(plan.selector) {
            return None;
        }
        hashed(self.forwarding, service, client, plan)
    }

    /// Rule 8.16, placement, from step 2 on. Without `stores`: stateless.
    fn place(
        &mut self,
        packet: &mut Packet,
        transport: &Transport,
        new_flow: &NewFlow,
        (server, dead): (u32, Option<u32>),
        stores: bool,
    ) -> Stage<Departure> {
        self.matched.service = Some(new_flow.service);
        self.matched.direction = Some(new_flow.direction);
        self.matched.server = Some(server);
        let forwarding = self.forwarding;
        let facts = forwarding.server(server).or_drop(Reason::NoServer)?;
        if let Some(number) = dead {
            let event = self.death(number).unwrap_or(Event::FlowReused);
            forget(self.state, number, Some(event));
        }
        if new_flow.direction == Direction::Reply {
            self.clear_key(&new_flow.key(KeySide::Service(new_flow.service)), stores)?;
        }
        if stores && self.make_room() {
            // What is left there is closing, or was never answered: the flow takes its place.
            let key = new_flow.key(KeySide::Endpoint(facts.endpoint));
            self.state.direct.remove(&key);
            self.insert(packet, transport, new_flow, (server, facts.endpoint));
        } else if forwarding
            .service(new_flow.service)
            .is_some_and(|service| is_hash(service.plan.selector))
        {
            self.state.counters.event(Event::FlowStateless);
        } else {
            return Break(Reason::TableFull.into());
        }
        // The client was not heard of before: its next hop is looked up.
        self.translate(packet, new_flow.direction, (server, facts), None)
    }

    /// Make sure that no flow has this key, by removing a dead one where that is allowed.
    fn clear_key(&mut self, key: &Key, removes: bool) -> Stage<()> {
        let Some(number) = self.state.table.find(key) else {
            return Continue(());
        };
        if !removes {
            return Break(Reason::FlowConflict.into());
        }
        let closing = self.state.table.entry(number).state() == FlowState::Closing;
        let event = self
            .death(number)
            .or_else(|| closing.then_some(Event::FlowReused));
        let event = event.or_drop(Reason::FlowConflict)?;
        forget(self.state, number, Some(event));
        Continue(())
    }

    /// Store a flow that is placed, with what its first packet says, and count it.
    fn insert(
        &mut self,
        packet: &Packet,
        transport: &Transport,
        new_flow: &NewFlow,
        (server, endpoint): (u32, u32),
    ) {
        let (now, direction) = (self.now, new_flow.direction);
        let state = first_state(transport);
        let entry = first_entry(packet, new_flow, (server, endpoint), state, now);
        let table = &mut self.state.table;
        let number = table.insert(entry, self.forwarding.timeout_ns(state));
        if let Some(segment) = &transport.segment {
            let mut flow = table.flow(number);
            if state == FlowState::SynSent {
                flow.begin(segment);
                measure::begin(&mut flow, now);
            } else {
                tcp::pick_up(&mut flow, direction, segment);
            }
        }
        self.state.exports.begin(number, now);
        let counters = &mut self.state.counters;
        counters.flow_created(new_flow.service, server);
        if state.is_active() {
            counters.flow_active(server);
        }
    }

    /// A segment of no flow: dropped, or answered by a RST where the service says so, so that a client whose flow
    /// is gone learns at once (rule 8.14, client packets of no flow).
    fn no_flow(&mut self, packet: &Packet, transport: &Transport, service: u32) -> Verdict {
        let answers = self
            .forwarding
            .service(service)
            .is_some_and(|service| service.on_no_flow == Refusal::Reset);
        match &transport.segment {
            Some(segment) if answers && segment.has(flag::ACK) => {
                self.answer_reset(packet, transport, Reason::NoFlow, limit::AnswerKind::NoFlow)
            }
            _ => Reason::NoFlow.into(),
        }
    }

    /// Rule 8.16, placement, step 1: no server is available.
    fn no_server(&mut self, packet: &Packet, transport: &Transport, service: u32) -> Verdict {
        if self
            .forwarding
            .service(service)
            .is_some_and(|service| service.on_no_server == Refusal::Reset)
        {
            return self.refuse(packet, transport);
        }
        Reason::NoServer.into()
    }
}

/// Whether a client's packet of a flow that is not known may leave one behind. `hash`: its service's plan is one.
#[inline(always)]
fn stores_flow(transport: &Transport, hash: bool) -> bool {
    match &transport.segment {
        None => true,
        Some(segment) => segment.is_opening() || (segment.can_pick_up() && hash),
    }
}

/// The state in which a flow begins.
#[inline(always)]
fn first_state(transport: &Transport) -> FlowState {
    match &transport.segment {
        None => FlowState::UdpUnreplied,
        Some(segment) if segment.is_opening() => FlowState::SynSent,
        Some(_) => FlowState::Pickup,
    }
}

/// The entry of a flow, its first packet counted.
#[inline(always)]
fn first_entry(
    packet: &Packet,
    new_flow: &NewFlow,
    (server, endpoint): (u32, u32),
    state: FlowState,
    now: Nanos,
) -> Entry {
    let mut entry = Entry::new(
        new_flow.client,
        new_flow.client_port,
        (new_flow.service, server, endpoint),
        state,
        now,
    );
    if new_flow.direction == Direction::Forward {
        entry.set_ingress(packet.meta.ingress);
    }
    if packet.is_tagged() {
        entry.mark_tagged();
    }
    entry.with_bytes(new_flow.direction, packet.meta.ip.total_len() as u32)
}

/// Whether a server takes a flow: it is not the client itself, and no flow or direct connection of the client has
/// its endpoint and this port. An entry that is over makes room, where entries may be removed: not stateless.
fn eligibility(
    forwarding: &ForwardingState,
    (table, direct): (&Table, &DirectConnections),
    new_flow: &NewFlow,
    server: u32,
    stores: bool,
    now: Nanos,
) -> Eligibility {
    let Some(facts) = forwarding.server(server) else {
        return Eligibility::Free;
    };
    if new_flow.client == facts.address {
        return Eligibility::Refused(Reason::Hairpin);
    }
    let key = new_flow.key(KeySide::Endpoint(facts.endpoint));
    // A SYN straight to the server may be forged: it turns no connection away that is there.
    let guarded = !new_flow.opens && is_guarded(forwarding, &key);
    if direct.occupies(&key, guarded, &forwarding.snapshot.timeouts, now) {
        return Eligibility::Refused(Reason::FlowConflict);
    }
    let Some(number) = table.find(&key) else {
        return Eligibility::Free;
    };
    let entry = table.entry(number);
    // The very flow that a server's packet is matched to: it has its server.
    if new_flow.direction == Direction::Reply && entry.service() == new_flow.service {
        return Eligibility::Free;
    }
    let is_dead = is_expired(forwarding, entry, now) || forwarding.server(entry.server()).is_none();
    if stores && (is_dead || is_over(forwarding, entry)) {
        Eligibility::Dead(number)
    } else {
        Eligibility::Refused(Reason::FlowConflict)
    }
}
