//! Finding a packet's flow, or making it: rule 8.

use super::direct::is_guarded;
use super::{Departure, Stage, Walk};
use crate::base::{Direction, Event, LastHop, Reason, Verdict};
use crate::datapath::State;
use crate::direct::DirectConnections;
use crate::flow::measure::{self, Before};
use crate::flow::state::FlowState;
use crate::flow::table::{Entry, Table};
use crate::flow::tcp::{self, Step};
use crate::flow::{Key, Side};
use crate::limit;
use crate::packet::{Meta, Packet, Target};
use crate::parse::Transport;
use crate::plan::{Choice, Chooser, Fit, hashed};
use crate::wire::segment::Segment;
use crate::wire::tcp::flag;
use crate::world::{ServerFacts, World, is_hash};

/// A client's side of a flow that is to be placed.
#[derive(Clone, Copy)]
struct Newcomer {
    direction: Direction,
    client: u128,
    client_port: u16,
    service: u32,
    /// Whether its packet opens a connection.
    opens: bool,
}

impl Newcomer {
    fn key(&self, side: Side) -> Key {
        Key {
            client: self.client,
            client_port: self.client_port,
            side,
        }
    }
}

/// A flow that lives: its entry's number, where it stands, its server's id, what is known of the server, and where the client's packets came from.
#[derive(Clone, Copy)]
struct Live<'a> {
    number: u32,
    state: FlowState,
    server: u32,
    facts: &'a ServerFacts,
    last_hop: LastHop,
}

impl<'a> Walk<'a> {
    /// A packet from a client to a service.
    #[inline(always)]
    pub(super) fn forward(&mut self, packet: &mut Packet, service: u32) -> Stage<Departure> {
        let transport = &packet.meta.transport;
        self.found.service = Some(service);
        self.found.direction = Some(Direction::Forward);
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
    pub(super) fn reply(&mut self, packet: &mut Packet, endpoint: u32) -> Stage<Departure> {
        let transport = &packet.meta.transport;
        self.check_ttl(packet)?;
        match self.lookup(packet.meta) {
            Some(live) => {
                self.found.service = Some(live.facts.service);
                self.found.direction = Some(Direction::Reply);
                self.hit(packet, &live, Direction::Reply)
            }
            None => self.miss_reply(packet, transport, endpoint),
        }
    }

    /// The live entry of a packet's flow, and its server. What is expired or has lost its server is removed: a miss.
    #[inline(always)]
    fn lookup(&mut self, meta: &Meta) -> Option<Live<'a>> {
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
    fn live(&self, number: u32) -> Result<Live<'a>, Event> {
        let entry = self.state.table.entry(number);
        if is_expired(self.world, entry, self.now) {
            return Err(Event::FlowExpired);
        }
        let server = entry.server;
        let facts = self.world.server(server).ok_or(Event::FlowOrphaned)?;
        Ok(Live {
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

    #[inline(always)]
    fn hit(&mut self, packet: &mut Packet, live: &Live, direction: Direction) -> Stage<Departure> {
        let meta = packet.meta;
        let Live {
            number,
            server,
            facts,
            last_hop,
            ..
        } = *live;
        self.found.server = Some(server);
        let moves = direction == Direction::Forward && meta.last_hop != last_hop;
        let may_move = moves && self.tells_way(live, meta);
        let step = match &meta.transport.segment {
            Some(segment) => self.follow_tcp((number, server), direction, segment)?,
            None => self.follow_udp(live, direction),
        };
        if may_move && step.believed {
            let entry = self.state.table.entry_mut(number);
            entry.set_last_hop(meta.last_hop);
        }
        self.count(number, direction, meta.ip.total_len() as u32, step);
        self.translate(packet, direction, (server, facts), Some(last_hop))
    }

    /// Let a segment of TCP change what it may, and measure it.
    #[inline(always)]
    fn follow_tcp(
        &mut self,
        (number, server): (u32, u32),
        direction: Direction,
        segment: &Segment,
    ) -> Stage<Step> {
        let State {
            table, counters, ..
        } = &mut *self.state;
        let mut flow = table.flow_mut(number);
        if tcp::is_plain(&flow, segment) {
            let before = Before::of_plain(&flow);
            if !tcp::follow_plain(&mut flow, direction, segment) {
                return Ok(Step::unbelieved(FlowState::Established));
            }
            let active = counters.active(server);
            if let Some(measures) = counters.measures_mut(server) {
                measure::follow_plain(
                    measures, &mut flow, &before, direction, segment, active, self.now,
                );
            }
            return Ok(Step::believed(FlowState::Established));
        }
        let mut before = Before::of(&flow);
        let step = tcp::follow(&mut flow, direction, segment)?;
        if !step.believed || before.state() == FlowState::Closing {
            return Ok(step);
        }
        let was_active = before.state().is_active();
        if step.state.is_active() && !was_active {
            counters.flow_active(server);
        }
        if was_active || step.state.is_active() {
            let now = (step.state, counters.active(server));
            if let Some(measures) = counters.measures_mut(server) {
                if step.restarted {
                    measure::restart(measures, &mut flow, &mut before);
                }
                measure::follow(
                    measures, &mut flow, &before, direction, segment, now, self.now,
                );
            }
        }
        if step.state == FlowState::Closing {
            counters.event(Event::FlowClosed);
            if was_active {
                counters.flow_inactive(server);
            }
        }
        Ok(step)
    }

    /// What a datagram of a known flow changes. What only its server keeps up ends when the server leaves: its answers pass, and do not refresh it.
    #[inline(always)]
    fn follow_udp(&mut self, live: &Live, direction: Direction) -> Step {
        if direction == Direction::Forward {
            return Step::believed(live.state);
        }
        if live.facts.moves_udp {
            return Step::unbelieved(live.state);
        }
        if live.state == FlowState::UdpUnreplied {
            self.state.counters.flow_active(live.server);
        }
        Step::believed(FlowState::Udp)
    }

    /// Count a packet on its flow, and refresh that if the packet does.
    #[inline(always)]
    fn count(&mut self, number: u32, direction: Direction, len: u32, step: Step) {
        let table = &mut self.state.table;
        let entry = table.entry_mut(number);
        let carries = entry.count_bytes(direction, len);
        if step.refreshes && !entry.refresh(step.state, self.now) {
            let timeout = self.world.timeout(step.state);
            table.touch(number, step.state, self.now, timeout);
        }
        if carries {
            table.carry_bytes(number, direction);
        }
    }

    /// Whether a client's packet, which comes another way than those before, may tell where the client is, if it is believed (behaviour 28): from the interface
    /// that they came to; from another one only if its numbers are exact, or if the client is routed to there. Nothing vouches for a datagram.
    #[cold]
    #[inline(never)]
    fn tells_way(&mut self, live: &Live, meta: &Meta) -> bool {
        let segment = meta.transport.segment;
        live.last_hop.interface() == meta.interface
            || segment.is_some_and(|segment| {
                tcp::is_exact(&self.state.table.flow_mut(live.number), &segment)
            })
            || self.leads_to_client(live, meta)
    }

    /// Whether a client may have come to another interface than the one that is known.
    fn leads_to_client(&self, live: &Live, meta: &Meta) -> bool {
        let heard_before = self.world.port(live.last_hop.interface()).is_some();
        !heard_before
            || self
                .world
                .route(meta.ip.source)
                .is_some_and(|hop| hop.interface == meta.interface)
    }

    #[inline(never)]
    fn miss_forward(
        &mut self,
        packet: &mut Packet,
        transport: &Transport,
        service: u32,
    ) -> Stage<Departure> {
        let world = self.world;
        let plan = &world.service(service).ok_or(Reason::NoService)?.plan;
        let hash = is_hash(plan.selector);
        let stores = match &transport.segment {
            None => true,
            Some(segment) => segment.is_opening() || (segment.is_midstream() && hash),
        };
        if !(stores || hash && self.may_pass(transport)) {
            return Err(self.no_flow(packet, transport, service));
        }
        let newcomer = Newcomer {
            direction: Direction::Forward,
            client: packet.meta.ip.source,
            client_port: transport.source_port,
            service,
            opens: transport
                .segment
                .is_some_and(|segment| segment.is_opening()),
        };
        self.state.asking.begin(packet.meta.ip.fragment.is_none());
        let choice = self.select(&newcomer, stores);
        if let Some(wait) = self.state.asking.take_wait() {
            let (interface, offload) = (packet.meta.interface, packet.meta.offload);
            let (asking, now) = (&mut self.state.asking, self.now);
            asking.hold(wait, packet.frame, interface, offload, now);
            return Err(Verdict::Hold(Reason::Ask));
        }
        let result = match choice {
            Choice::Server { server, dead } => {
                self.place(packet, transport, &newcomer, (server, dead), stores)
            }
            Choice::Refused(server, reason) => {
                self.found.server = Some(server);
                Err(reason.into())
            }
            Choice::NoServer if !stores => Err(self.no_flow(packet, transport, service)),
            Choice::NoServer => Err(self.no_server(packet, transport, service)),
        };
        match result {
            Err(verdict) if stores => {
                Err(self.refuse_newcomer(packet, transport, service, verdict))
            }
            result => result,
        }
    }

    /// A server's packet of a flow we do not know may be of one that a hash would have placed there (behaviour 2).
    #[inline(never)]
    fn miss_reply(
        &mut self,
        packet: &mut Packet,
        transport: &Transport,
        endpoint: u32,
    ) -> Stage<Departure> {
        if self.answers_directly(packet.meta) {
            return self.send_transit(packet);
        }
        let stores = transport.segment.as_ref().is_none_or(Segment::is_midstream);
        let world = self.world;
        let services = if stores || self.may_pass(transport) {
            world.hash_services(endpoint)
        } else {
            &[]
        };
        for &service in services {
            let newcomer = Newcomer {
                direction: Direction::Reply,
                client: packet.meta.ip.destination,
                client_port: transport.destination_port,
                service,
                opens: false,
            };
            let Choice::Server { server, dead } = self.select(&newcomer, stores) else {
                continue;
            };
            let is_sender = |facts: &ServerFacts| facts.endpoint == endpoint;
            if world.server(server).is_some_and(is_sender) {
                return self.place(packet, transport, &newcomer, (server, dead), stores);
            }
        }
        Err(Reason::NoFlow.into())
    }

    /// Whether a segment that stores no flow may be placed by a hash: the end of a connection that began before us, and all of one that a full table could
    /// not store: it must be able to open and to close.
    fn may_pass(&self, transport: &Transport) -> bool {
        let ends = transport.segment.is_some_and(|segment| segment.is_ending());
        ends || self.state.table.is_full()
    }

    fn select(&mut self, newcomer: &Newcomer, stores: bool) -> Choice {
        let (world, now) = (self.world, self.now);
        let service = newcomer.service;
        let State {
            table,
            direct,
            counters,
            random,
            rotation,
            asking,
            tried,
            ..
        } = &mut *self.state;
        let known = world.service(service).zip(world.plan_servers(service));
        let rotation = rotation.get_mut(service as usize);
        let Some(((service, named), rotation)) = known.zip(rotation) else {
            return Choice::NoServer;
        };
        let fit = |server: u32| fit(world, (table, direct), newcomer, server, stores, now);
        Chooser {
            world,
            counters,
            random,
            rotation,
            asking,
            tried,
            fit: &fit,
            service: newcomer.service,
            client: (newcomer.client, newcomer.client_port),
        }
        .select(&service.plan, named)
    }

    /// The server that a hash gives a client's flow; `None` where the service's plan has no hash selector. Changes nothing.
    pub(super) fn hash_choice(&self, service: u32, client: (u128, u16)) -> Option<u32> {
        let plan = &self.world.service(service)?.plan;
        if !is_hash(plan.selector) {
            return None;
        }
        hashed(self.world, service, client, plan)
    }

    /// Rule 8, *Place*, from 2 on. Without `stores`: in passing.
    fn place(
        &mut self,
        packet: &mut Packet,
        transport: &Transport,
        newcomer: &Newcomer,
        (server, dead): (u32, Option<u32>),
        stores: bool,
    ) -> Stage<Departure> {
        self.found.service = Some(newcomer.service);
        self.found.direction = Some(newcomer.direction);
        self.found.server = Some(server);
        let world = self.world;
        let facts = world.server(server).ok_or(Reason::NoServer)?;
        if let Some(number) = dead {
            let event = self.live(number).err().unwrap_or(Event::FlowReused);
            forget(self.state, number, Some(event));
        }
        if newcomer.direction == Direction::Reply {
            self.clear_key(&newcomer.key(Side::Service(newcomer.service)), stores)?;
        }
        if stores && self.make_room() {
            // What is left there is closing, or was never answered: the flow takes its place.
            let key = newcomer.key(Side::Endpoint(facts.endpoint));
            self.state.direct.remove(&key);
            self.insert(packet, transport, newcomer, (server, facts.endpoint));
        } else if world
            .service(newcomer.service)
            .is_some_and(|service| is_hash(service.plan.selector))
        {
            self.state.counters.event(Event::FlowStateless);
        } else {
            return Err(Reason::TableFull.into());
        }
        // Whoever is answered here was not heard of before: the way to a client is looked up.
        self.translate(packet, newcomer.direction, (server, facts), None)
    }

    /// Make sure that no flow has this key, by removing a dead one where that is allowed.
    fn clear_key(&mut self, key: &Key, removes: bool) -> Stage<()> {
        let Some(number) = self.state.table.find(key) else {
            return Ok(());
        };
        if !removes {
            return Err(Reason::FlowConflict.into());
        }
        let closing = self.state.table.entry(number).state() == FlowState::Closing;
        let event = self
            .live(number)
            .err()
            .or_else(|| closing.then_some(Event::FlowReused));
        let event = event.ok_or(Reason::FlowConflict)?;
        forget(self.state, number, Some(event));
        Ok(())
    }

    /// Evict if the table is full (behaviour 7). `false`: still full.
    fn make_room(&mut self) -> bool {
        if !self.state.table.is_full() {
            return true;
        }
        let Some((number, event)) = self.victim() else {
            return false;
        };
        forget(self.state, number, Some(event));
        true
    }

    /// The flow that goes first when another needs its place: unconfirmed ones, then handshakes, then what is over, then the longest idle. What a server has
    /// answered and was heard of lately stays: a newcomer has not been answered yet.
    fn victim(&self) -> Option<(u32, Event)> {
        let table = &self.state.table;
        let timeouts = &self.world.snapshot.timeouts;
        let idle = |list| {
            let number = table.head(list)?;
            let idle = self.now.saturating_sub(table.entry(number).last_seen);
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

    fn insert(
        &mut self,
        packet: &Packet,
        transport: &Transport,
        newcomer: &Newcomer,
        ids: (u32, u32),
    ) {
        let Newcomer {
            direction,
            client,
            client_port,
            service,
            ..
        } = *newcomer;
        let (server, endpoint) = ids;
        let state = match &transport.segment {
            None => FlowState::UdpUnreplied,
            Some(segment) if segment.is_opening() => FlowState::SynSent,
            Some(_) => FlowState::Pickup,
        };
        let mut entry = Entry::new(
            client,
            client_port,
            (service, server, endpoint),
            state,
            self.now,
        );
        if direction == Direction::Forward {
            entry.set_last_hop(packet.meta.last_hop);
        }
        if packet.is_tagged() {
            entry.mark_tagged();
        }
        // A packet has fewer bytes than 2^32: the first one of a flow carries nothing.
        let _ = entry.count_bytes(direction, packet.meta.ip.total_len() as u32);
        let table = &mut self.state.table;
        let number = table.insert(entry, self.world.timeout(state));
        if let Some(segment) = &transport.segment {
            let mut flow = table.flow_mut(number);
            if state == FlowState::SynSent {
                flow.begin(segment);
                measure::begin(&mut flow, self.now);
            } else {
                tcp::pick_up(&mut flow, direction, segment);
            }
        }
        self.state.ends.begin(number, self.now);
        self.state.counters.flow_created(service, server);
        if state.is_active() {
            self.state.counters.flow_active(server);
        }
    }

    /// Count, then rewrite and send. `last_hop`: where the client's packets came from, if that is known.
    #[inline(always)]
    fn translate(
        &mut self,
        packet: &mut Packet,
        direction: Direction,
        (server, facts): (u32, &ServerFacts),
        last_hop: Option<LastHop>,
    ) -> Stage<Departure> {
        let len = packet.meta.ip.total_len();
        let counters = &mut self.state.counters;
        counters.service_packet(facts.service, direction, len);
        counters.server_packet(server, direction, len);
        if packet.meta.ip.fragment.is_some() {
            self.found.reply_key = Some(reply_key(packet.meta, direction, facts.endpoint));
        }
        self.send_translated(packet, direction, facts, last_hop)
    }

    /// A segment of no flow: dropped, or answered by a RST where the service says so, so that a client whose flow is gone learns at once (behaviour 2).
    fn no_flow(&mut self, packet: &Packet, transport: &Transport, service: u32) -> Verdict {
        let answers = self
            .world
            .service(service)
            .is_some_and(|service| service.reset_without_flow);
        match &transport.segment {
            Some(segment) if answers && segment.has(flag::ACK) => {
                self.answer_reset(packet, transport, Reason::NoFlow, limit::Kind::NoFlow)
            }
            _ => Reason::NoFlow.into(),
        }
    }

    /// Rule 8, *Place*, 1: nobody is there.
    fn no_server(&mut self, packet: &Packet, transport: &Transport, service: u32) -> Verdict {
        if self
            .world
            .service(service)
            .is_some_and(|service| service.reset_without_server)
        {
            return self.refuse(packet, transport);
        }
        Reason::NoServer.into()
    }
}

/// Remove an entry, with the event that says why, and keep the active count right.
pub(super) fn forget(state: &mut State, number: u32, event: Option<Event>) {
    if let Some(event) = event {
        state.ends.end(&state.table, number, event);
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

/// Whether a server takes a flow: it is not the client itself, and no flow or direct connection of the client has its endpoint and this port. An entry that is
/// over makes room, where entries may be removed: not in passing.
fn fit(
    world: &World,
    (table, direct): (&Table, &DirectConnections),
    newcomer: &Newcomer,
    server: u32,
    stores: bool,
    now: u64,
) -> Fit {
    let Some(facts) = world.server(server) else {
        return Fit::Free;
    };
    if newcomer.client == facts.address {
        return Fit::Refused(Reason::Hairpin);
    }
    let key = newcomer.key(Side::Endpoint(facts.endpoint));
    // A SYN straight to the server may be anybody's: it turns no connection away that is there.
    let guarded = !newcomer.opens && is_guarded(world, &key);
    if direct.occupies(&key, guarded, &world.snapshot.timeouts, now) {
        return Fit::Refused(Reason::FlowConflict);
    }
    let Some(number) = table.find(&key) else {
        return Fit::Free;
    };
    let entry = table.entry(number);
    // The very flow that a server's packet is matched to: it has its server.
    if newcomer.direction == Direction::Reply && entry.service == newcomer.service {
        return Fit::Free;
    }
    let is_dead = is_expired(world, entry, now) || world.server(entry.server).is_none();
    if stores && (is_dead || entry.state() == FlowState::Closing) {
        Fit::Dead(number)
    } else {
        Fit::Refused(Reason::FlowConflict)
    }
}

/// Whether an entry's time is over.
#[inline(always)]
pub(crate) fn is_expired(world: &World, entry: &Entry, now: u64) -> bool {
    now.saturating_sub(entry.last_seen) >= world.timeout(entry.state())
}

/// Why a client's packet makes its flow anew. A SYN on a closing flow is a new flow at once (behaviour 6); a UDP flow leaves a server that was removed,
/// or drained for its time, with the next datagram (behaviour 8).
#[inline(always)]
fn starts_anew(live: &Live, transport: &Transport) -> Option<Event> {
    let Some(segment) = &transport.segment else {
        return live.facts.moves_udp.then_some(Event::FlowMoved);
    };
    let is_reused = segment.is_opening() && live.state == FlowState::Closing;
    is_reused.then_some(Event::FlowReused)
}

/// What a packet's flow is looked up by; `None` for a target that has none.
#[inline(always)]
pub(crate) fn flow_key(meta: &Meta) -> Option<Key> {
    let Meta { ip, transport, .. } = meta;
    match meta.target {
        Target::Service(id) => Some(Key {
            client: ip.source,
            client_port: transport.source_port,
            side: Side::Service(id),
        }),
        Target::Endpoint(id) => Some(Key {
            client: ip.destination,
            client_port: transport.destination_port,
            side: Side::Endpoint(id),
        }),
        Target::Icmp { .. } | Target::Transit => None,
    }
}

/// What finds the flow of a packet that has not been rewritten yet from the server's side.
fn reply_key(meta: &Meta, direction: Direction, endpoint: u32) -> Key {
    let Meta { ip, transport, .. } = meta;
    let (client, client_port) = match direction {
        Direction::Forward => (ip.source, transport.source_port),
        Direction::Reply => (ip.destination, transport.destination_port),
    };
    Key {
        client,
        client_port,
        side: Side::Endpoint(endpoint),
    }
}
