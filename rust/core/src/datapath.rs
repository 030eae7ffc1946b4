//! The data path as its callers see it: state that lives across packets, and the calls that change it.

mod listing;
mod reading;

use crate::base::Frame;
use crate::base::Offload;
use crate::base::Output;
use crate::base::Sent;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::asking::Asking;
use crate::base::{Direction, Verdict, address_number, number_address};
use crate::counters::{Counters, grow_part};
use crate::direct::DirectConnections;
use crate::flow::ends::{Ends, FlowEnd};
use crate::flow::measure::Measures;
use crate::flow::table::Table;
use crate::flow::{Key, Side};
use crate::fragment::Fragments;
use crate::limit::Limiter;
use crate::next_hop::Waiting;
use crate::packet::Meta;
use crate::pipeline::read::{self, Content, Ingress};
use crate::pipeline::{self, Found, Stage, Walk};
use crate::plan::{SplitMix64, Tried};
use crate::snapshot::{NextHops, Plan, Selector, Snapshot, Timeouts};
use crate::world::World;

pub use listing::{FlowPage, FlowQuery, FlowSearch, ServerReset};
pub use reading::Reading;

/// Takes what comes of a batch, packet by packet.
pub trait Sink {
    /// Where frames of their own are appended.
    fn extra(&mut self) -> &mut Vec<Output>;
    /// What became of the frame at `index`, after it appended what it had to.
    fn done(&mut self, index: usize, outcome: &Outcome);
}

/// What became of one frame. When `sent` is set it goes out before the outputs appended by the same call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "docs/datapath.md rule 1 defines each")]
pub struct Outcome {
    pub verdict: Verdict,
    pub direction: Option<Direction>,
    pub service: Option<u32>,
    pub server: Option<u32>,
    pub sent: Option<Sent>,
}

/// One entry of the flow table, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of python/lb/backends/base.py Flow")]
pub struct FlowInfo {
    pub client: IpAddr,
    pub client_port: u16,
    pub service: u32,
    pub server: u32,
    pub state: &'static str,
    pub idle_ns: u64,
    pub bytes_forward: u64,
    pub bytes_reply: u64,
}

/// Per service or server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "docs/datapath.md rule 13 defines each")]
pub struct Traffic {
    pub flows_created: u64,
    pub flows_active: u64,
    pub packets_forward: u64,
    pub packets_reply: u64,
    pub bytes_forward: u64,
    pub bytes_reply: u64,
}

/// How full the flow table is. Expired flows that are not removed yet count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "docs/datapath.md rule 13 defines each")]
pub struct TableUse {
    pub entries: u64,
    pub capacity: u64,
}

/// What is known of a server at one instant (`docs/datapath.md` rule 16).
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Id of its service.
    pub service: u32,
    /// Its counters.
    pub traffic: Traffic,
    /// What was measured of it.
    pub measures: Measures,
    /// Nanoseconds for which somebody has waited and it sent nothing.
    pub stalled_ns: u64,
}

/// All counters at one instant.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "docs/datapath.md rule 13 defines each")]
pub struct CounterReport {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub verdicts: BTreeMap<String, u64>,
    pub events: Vec<(&'static str, u64)>,
    pub table: TableUse,
    /// By service id; removed services are `None`.
    pub services: Vec<Option<Traffic>>,
    /// By server id; removed servers are `None`.
    pub servers: Vec<Option<Traffic>>,
}

/// The flow table could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DataPathError {
    /// Capacity 0 or beyond what 32-bit entry numbers can hold.
    #[error("flow table capacity {0} is not in 1..=268435456")]
    Capacity(u64),
    /// The kernel refused the memory.
    #[error("flow table of {bytes} bytes could not be allocated: {source}")]
    Memory {
        /// Bytes asked for.
        bytes: usize,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// What packets change: everything that lives across calls but the snapshot.
pub(crate) struct State {
    pub(crate) table: Table,
    pub(crate) ends: Ends,
    pub(crate) fragments: Fragments,
    pub(crate) waiting: Waiting,
    pub(crate) asking: Asking,
    pub(crate) limiter: Limiter,
    /// Errors about packets that waited in vain: they leave at the next tick.
    pub(crate) answers: Vec<Output>,
    pub(crate) random: SplitMix64,
    /// The `counter` of each service, by id.
    pub(crate) rotation: Vec<u64>,
    pub(crate) tried: Tried,
    pub(crate) direct: DirectConnections,
    pub(crate) counters: Counters,
}

/// Frames that are read before the first of them is acted upon: enough to keep all of a core's line fill buffers busy.
const LOOK_AHEAD: usize = 64;

/// Services that room is reserved for: see `Counters`.
const RESERVED_SERVICES: usize = 1 << 16;

/// A frame that was read and waits to be acted upon.
#[derive(Clone, Copy)]
struct Ahead {
    meta: Meta,
    read: Stage<Content>,
}

impl Ahead {
    const EMPTY: Self = Self {
        meta: Meta::EMPTY,
        read: Ok(Content::NotIp),
    };

    /// Read a frame into this place. Says whether a flow will be looked up for it.
    #[inline]
    fn read(
        &mut self,
        world: &World,
        ingress: &Ingress,
        table: &Table,
        frame: &[u8],
        offload: Offload,
    ) -> bool {
        self.meta.guess = None;
        match read::frame(world, ingress, frame, offload, &mut self.meta) {
            Ok(Content::Packet) => {
                self.read = Ok(Content::Packet);
                read::hash(table, &mut self.meta)
            }
            other => {
                self.read = other;
                false
            }
        }
    }
}

/// One data path. Single-threaded: one owner calls it.
pub struct DataPath {
    // Boxed: a data path moves between threads and errors, its insides need not.
    world: Box<World>,
    state: Box<State>,
    ahead: Box<[Ahead; LOOK_AHEAD]>,
    /// What rule 15 made between two ticks.
    pending: Vec<Output>,
    /// Where rotations start.
    first_turn: u64,
}

impl DataPath {
    /// Make a data path with an empty flow table of `capacity` flows, keyed by `hash_key`; `seed` starts the random draws. Everything drops as
    /// `not_for_us` until a snapshot is published.
    ///
    /// # Errors
    /// `Capacity`, `Memory`.
    pub fn new(capacity: u64, hash_key: [u8; 16], seed: u64) -> Result<Self, DataPathError> {
        let table = Table::new(capacity, hash_key)?;
        let state = State {
            direct: DirectConnections::new(table.capacity()),
            table,
            ends: Ends::default(),
            fragments: Fragments::default(),
            waiting: Waiting::default(),
            asking: Asking::default(),
            limiter: Limiter::default(),
            answers: Vec::new(),
            random: SplitMix64::new(seed),
            rotation: Vec::with_capacity(RESERVED_SERVICES),
            tried: Tried::default(),
            counters: Counters::default(),
        };
        Ok(Self {
            world: Box::new(World::new(empty_snapshot(), NextHops::default())),
            state: Box::new(state),
            ahead: Box::new([Ahead::EMPTY; LOOK_AHEAD]),
            pending: Vec::new(),
            first_turn: 0,
        })
    }

    /// Let the turns of `counter` and `least` start here, for services that come from now on: workers beside each other start apart.
    pub fn start_turns_at(&mut self, first_turn: u64) {
        self.first_turn = first_turn;
    }

    /// Have all memory of the flow table now, instead of page by page as flows come: a loop asks for it before its first packet.
    ///
    /// # Errors
    /// `Memory` when there is not that much.
    pub fn populate(&mut self) -> Result<(), DataPathError> {
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

    /// [`Self::memory`] of a part from a place on, and where the next one begins: asking the kernel about gigabytes takes milliseconds.
    #[must_use]
    pub fn memory_part(&self, from: usize) -> ((u64, u64), Option<usize>) {
        self.state.table.memory_part(from)
    }

    /// Swap to a new snapshot. Flows stay. Where packets must not wait meanwhile, do the parts apart: [`Self::sources`], [`World::new`], [`Self::make_room`],
    /// [`Self::prepare`], [`Self::swap`].
    pub fn publish(&mut self, snapshot: impl Into<Arc<Snapshot>>) {
        let world = World::new(snapshot, Arc::clone(self.world.next_hops()));
        let (services, servers) = (world.snapshot.services.len(), world.snapshot.servers.len());
        while !self.make_room(services, servers) {}
        drop(self.swap(Box::new(world)));
    }

    /// What the world of packets was compiled of.
    #[must_use]
    pub fn sources(&self) -> (Arc<Snapshot>, Arc<NextHops>) {
        let next_hops = Arc::clone(self.world.next_hops());
        (Arc::clone(&self.world.snapshot), next_hops)
    }

    /// Make room for what is kept per service and server, some of it per call. Says whether there is room for all of a snapshot with so many ids: it can be
    /// swapped to then.
    #[must_use]
    pub fn make_room(&mut self, services: usize, servers: usize) -> bool {
        let has_rotation = grow_part(&mut self.state.rotation, services, self.first_turn);
        self.state.counters.grow_part(services, servers) && has_rotation
    }

    /// Prepare to swap to a world, for which room was made, some of it per call. Says whether all is ready.
    #[must_use]
    pub fn prepare(&mut self, world: &World) -> bool {
        Arc::ptr_eq(&world.snapshot, &self.world.snapshot)
            || self.state.counters.prepare(world, self.first_turn)
    }

    /// Swap to another world, after what is left to prepare for it. Returns the one before it: to be dropped where no packet waits.
    #[must_use]
    pub fn swap(&mut self, world: Box<World>) -> Box<World> {
        let State {
            table,
            counters,
            direct,
            ..
        } = &mut *self.state;
        table.set_generation(world.snapshot.generation);
        // Other next hops alone change nothing about who is placed where.
        if !Arc::ptr_eq(&world.snapshot, &self.world.snapshot) {
            direct.prepare(world.snapshot.forward_transit);
            counters.follow(&world, self.first_turn);
        }
        std::mem::replace(&mut self.world, world)
    }

    /// Swap routes and neighbours. Waiting packets leave at the next `tick`. It compiles anew: see [`Self::publish`].
    pub fn set_next_hops(&mut self, next_hops: NextHops) {
        self.world.set_next_hops(Arc::new(next_hops));
    }

    /// Process one frame in place. Frames of their own are appended to `extra`.
    pub fn process(
        &mut self,
        frame: &mut [u8],
        interface: u32,
        now_ns: u64,
        offload: Offload,
        extra: &mut Vec<Output>,
    ) -> Outcome {
        let Self {
            world,
            state,
            ahead,
            ..
        } = self;
        let place = &mut ahead[0];
        let ingress = Ingress::new(world, interface);
        place.read(world, &ingress, &state.table, frame, offload);
        act(world, state, place, frame, now_ns, extra)
    }

    /// Process frames of one interface in place, in order. What comes of it is the same as of calls of `process`; what their flows need from memory is fetched
    /// together before the first is acted upon.
    pub fn process_batch(
        &mut self,
        frames: &mut [Frame<'_>],
        interface: u32,
        now_ns: u64,
        sink: &mut impl Sink,
    ) {
        let mut index = 0;
        for frames in frames.chunks_mut(LOOK_AHEAD) {
            self.look_ahead(frames, interface, now_ns);
            let Self {
                world,
                state,
                ahead,
                ..
            } = self;
            for (frame, place) in frames.iter_mut().zip(ahead.iter()) {
                let outcome = act(world, state, place, frame.bytes, now_ns, sink.extra());
                sink.done(index, &outcome);
                index += 1;
            }
        }
    }

    /// Read frames, and fetch what acting upon them will need: buckets of the index, then entries, then their annexes, then the annexes of their neighbours in
    /// the list. Each step only asks for memory, and uses what the step before asked for.
    fn look_ahead(&mut self, frames: &[Frame<'_>], interface: u32, now_ns: u64) {
        let Self {
            world,
            state,
            ahead,
            ..
        } = self;
        let table = &state.table;
        let ingress = Ingress::new(world, interface);
        let mut flows = [0; LOOK_AHEAD];
        let mut count = 0;
        for (at, (frame, place)) in frames.iter().zip(ahead.iter_mut()).enumerate() {
            if place.read(world, &ingress, table, frame.bytes, frame.offload) {
                table.prefetch_bucket(place.meta.hash);
                flows[count] = at;
                count += 1;
            }
        }
        for &at in &flows[..count] {
            let meta = &mut ahead[at].meta;
            meta.guess = table.prefetch_entry(meta.hash);
        }
        let mut moving = [0; LOOK_AHEAD];
        let mut moves = 0;
        for &at in &flows[..count] {
            if let Some(number) = ahead[at].meta.guess {
                if table.prefetch_annex(number, now_ns) {
                    moving[moves] = number;
                    moves += 1;
                }
            }
        }
        for &number in &moving[..moves] {
            table.prefetch_neighbours(number);
        }
    }

    /// Expire and release what is due. Of flows and fragments one call removes, and frees, a bounded number: [`Self::is_behind`] says whether more are due.
    pub fn tick(&mut self, now_ns: u64, extra: &mut Vec<Output>) {
        let Self { world, state, .. } = self;
        pipeline::expire(world, state, now_ns, pipeline::PER_TICK);
        for output in self.pending.drain(..).chain(state.answers.drain(..)) {
            state.counters.sent(output.frame.len());
            extra.push(output);
        }
        pipeline::release(world, state, extra);
        if !self.state.asking.is_empty() {
            self.resume(now_ns, extra);
        }
    }

    /// Tell what was answered to the question with this ticket; `None`: nothing usable. Its packets go on with the next tick. Nothing happens when they have
    /// gone on already.
    pub fn answer(&mut self, ticket: u64, answer: Option<&str>) {
        self.state.asking.answer(ticket, answer);
    }

    /// When the next tick is due for packets that wait for an answer; `None`: none waits.
    #[must_use]
    pub fn answer_due_ns(&self) -> Option<u64> {
        self.state.asking.due_ns()
    }

    /// Have the packets go on whose answer is there, or too late: rule 8, *ask*.
    fn resume(&mut self, now_ns: u64, extra: &mut Vec<Output>) {
        while let Some(mut packet) = self.state.asking.next(now_ns) {
            let Self {
                world,
                state,
                ahead,
                ..
            } = self;
            let (place, frame) = (&mut ahead[0], &mut packet.frame);
            let ingress = Ingress::new(world, packet.interface);
            place.read(world, &ingress, &state.table, frame, packet.offload);
            let mut walk = Walk {
                world,
                state,
                extra,
                now: now_ns,
                found: Found::default(),
            };
            let outcome = pipeline::resume(&mut walk, frame, &place.meta, place.read);
            self.state.asking.finish();
            if let Some(sent) = outcome.sent {
                packet.frame.truncate(sent.len);
                extra.push(Output {
                    interface: sent.interface,
                    frame: packet.frame,
                    offload: sent.offload,
                });
            }
        }
    }

    /// Whether frames wait for the next tick that no packet asked for (rule 15).
    #[must_use]
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether a tick at this time left flows or fragments that are due, or memory of such: the next one does more.
    #[must_use]
    pub fn is_behind(&self, now_ns: u64) -> bool {
        self.state.table.may_have_expired(now_ns) || self.state.fragments.is_behind(now_ns)
    }

    /// How many active flows each of the servers with these ids has (rule 13).
    #[must_use]
    pub fn active_flows(&self, servers: &[u32]) -> Vec<u64> {
        let counters = &self.state.counters;
        servers.iter().map(|&id| counters.active(id)).collect()
    }

    /// Begin anew with the servers of these ids that the snapshot does not have and no entry refers to: their counters and measurements are 0 (rule 13).
    /// Returns those.
    pub fn retire_servers(&mut self, servers: &[u32]) -> Vec<u32> {
        let Self { world, state, .. } = self;
        let is_gone = |&&server: &&u32| world.server(server).is_none();
        let gone = servers.iter().filter(is_gone).copied();
        gone.filter(|&server| state.counters.retire_server(server))
            .collect()
    }

    /// The same for services: their counters and turns begin anew (rule 13).
    pub fn retire_services(&mut self, services: &[u32]) -> Vec<u32> {
        let Self { world, state, .. } = self;
        let is_gone = |&&service: &&u32| world.service(service).is_none();
        let gone = services.iter().filter(is_gone).copied();
        let retired: Vec<_> = gone
            .filter(|&service| state.counters.retire_service(service))
            .collect();
        for &service in &retired {
            if let Some(turn) = state.rotation.get_mut(service as usize) {
                *turn = self.first_turn;
            }
        }
        retired
    }

    /// The unexpired entries, sorted by (client, client port, service), addresses compared as 16 bytes (IPv4-mapped).
    #[must_use]
    pub fn flows(&self, now_ns: u64) -> Vec<FlowInfo> {
        let all = FlowQuery {
            client: None,
            servers: None,
            state: None,
            offset: 0,
            limit: usize::MAX,
        };
        self.find_flows(&all, now_ns).1
    }

    /// What there is to know before a packet of a client comes to a service: its flow, if it has a living one, and the service's next turn. Changes nothing.
    #[must_use]
    pub fn peek(
        &self,
        service: u32,
        client: IpAddr,
        client_port: u16,
        now_ns: u64,
    ) -> (Option<FlowInfo>, u64) {
        let table = &self.state.table;
        let key = Key {
            client: address_number(client),
            client_port,
            side: Side::Service(service),
        };
        let flow = table
            .find(&key)
            .filter(|&number| self.is_living(number, now_ns));
        let flow = flow.map(|number| flow_info(table, number, now_ns));
        (flow, self.next_turn(service))
    }

    /// The number of a service's next turn; where it places by `least`, the first slot of the server that is next.
    fn next_turn(&self, service: u32) -> u64 {
        let slots = self
            .world
            .service(service)
            .and_then(|service| least_slots(&service.plan));
        let next = self.state.counters.loads.best(service);
        let slot = slots
            .zip(next)
            .and_then(|(slots, server)| slots.iter().position(|&slot| slot == server));
        let turn = self.state.rotation.get(service as usize).copied();
        slot.map_or_else(|| turn.unwrap_or(self.first_turn), |slot| slot as u64)
    }

    /// Whether an entry is neither expired nor orphaned.
    fn is_living(&self, number: u32, now_ns: u64) -> bool {
        let entry = self.state.table.entry(number);
        !pipeline::is_expired(&self.world, entry, now_ns)
            && self.world.server(entry.server).is_some()
    }

    /// Keep how flows end: up to `most` of them between two calls of `take_flow_ends`. 0: none. `room`: of [`Ends::room`] for the table's capacity, made where
    /// no packet waits; empty when `most` is 0. Returns what is to be dropped there.
    #[must_use]
    pub fn keep_flow_ends(&mut self, most: usize, room: Vec<u64>) -> Ends {
        self.state.ends.keep(most, room)
    }

    /// Flows that the table can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.state.table.capacity()
    }

    /// The flows that ended since the last call, in that order, and the number of those that found no room.
    pub fn take_flow_ends(&mut self) -> (Vec<FlowEnd>, u64) {
        self.state.ends.take()
    }

    /// Hops to resolve that were not returned before. One that timed out meanwhile is not returned.
    pub fn take_unresolved(&mut self) -> Vec<(u32, IpAddr)> {
        let unreported = self.state.waiting.take_unreported();
        unreported
            .into_iter()
            .map(|(interface, address)| (interface, number_address(address)))
            .collect()
    }

    /// Whether `take_unresolved` has news.
    #[must_use]
    pub fn has_unresolved(&self) -> bool {
        self.state.waiting.has_unreported()
    }

    /// Packets without a final verdict yet: fragments that wait for their first, packets that wait for a neighbour or an answer.
    #[must_use]
    pub fn held(&self) -> usize {
        self.state.fragments.held() + self.state.waiting.len() + self.state.asking.len()
    }

    /// The published snapshot, for names.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.world.snapshot
    }
}

/// Act upon a frame that was read.
#[inline]
fn act(
    world: &World,
    state: &mut State,
    place: &Ahead,
    frame: &mut [u8],
    now: u64,
    extra: &mut Vec<Output>,
) -> Outcome {
    let mut walk = Walk {
        world,
        state,
        extra,
        now,
        found: Found::default(),
    };
    pipeline::process(&mut walk, frame, &place.meta, place.read)
}

/// The slots of the plan that places by `least`: the plan itself, or the fall-back of one that asks.
fn least_slots(plan: &Plan) -> Option<&[u32]> {
    match plan.selector {
        Selector::Least => Some(&plan.slots),
        Selector::Ask => least_slots(plan.fallback.as_ref()?),
        _ => None,
    }
}

fn flow_info(table: &Table, number: u32, now_ns: u64) -> FlowInfo {
    let entry = table.entry(number);
    FlowInfo {
        client: number_address(entry.client()),
        client_port: entry.client_port,
        service: entry.service,
        server: entry.server,
        state: entry.state().name(),
        idle_ns: now_ns.saturating_sub(entry.last_seen),
        bytes_forward: table.bytes(number, Direction::Forward),
        bytes_reply: table.bytes(number, Direction::Reply),
    }
}

/// The state of the world before anything was published: no interface, so nothing is for us.
pub(crate) fn empty_snapshot() -> Snapshot {
    Snapshot {
        generation: 0,
        seed: 0,
        interfaces: Vec::new(),
        services: Vec::new(),
        servers: Vec::new(),
        forward_transit: false,
        answer_echo: false,
        icmp_rate: 0,
        timeouts: Timeouts {
            half_open_ns: 0,
            established_ns: 0,
            closing_ns: 0,
            udp_ns: 0,
            idle_floor_ns: 0,
        },
        ask: None,
    }
}
