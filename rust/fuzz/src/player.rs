//! A data path on which an input plays, and what must hold after each frame:
//!
//! - no panic, no overflow, no failed assertion;
//! - every packet has one verdict, and all are counted: `rx = forward + pass + drops + replies + held now`;
//! - what goes to a server is of a client's flow with this server, and goes to its address and port; a flow keeps its
//!   server while that lives;
//! - what goes to a client comes from the VIP and its port, never from a server's address;
//! - what leaves is well formed, by an interface there is, with that one's MAC; checksums that were right still are;
//! - the servers' active flows are those in the table, and each flow in the table is found by its key.

use std::cell::RefCell;
use std::net::IpAddr;
use std::sync::Arc;

use flowlb_core::base::{Direction, InterfaceId, Nanos, Offload, Outcome, Output, Reason, Verdict};
use flowlb_core::datapath::{DataPath, FlowInfo};
use flowlb_core::flow::exports::FlowExports;
use flowlb_core::parse::{Headers, parse};
use flowlb_core::snapshot::{NextHops, Protocol, Server, Service, Snapshot, Transit};

use super::frames::{self, ACK, FIN, PieceAt, RST, SYN, TCP, UDP};
use super::input::Input;
use super::scene::{self, Change, OURS, ROUTER, SECOND, SERVICE_COUNT};

/// What an input can do. The first two have these places in each target, so that vectors can be written as inputs.
#[derive(Clone, Copy)]
pub enum Step {
    /// A frame as it is.
    Raw,
    /// Time passes.
    Wait,
    /// A packet of a client's conversation.
    Client,
    /// One of its server.
    Server,
    /// One of either, damaged.
    Damaged,
    /// An ICMP error about one.
    IcmpError,
    /// A piece of one.
    Piece,
    /// Another snapshot.
    Publish,
    /// Other routes and neighbours.
    NextHops,
    /// Flows of a server are reset.
    Reset,
    /// What the control side collects.
    Collect,
    /// A policy's answer.
    Answer,
}

impl Step {
    pub const ALL: [Self; 15] = [
        Self::Raw,
        Self::Wait,
        Self::Client,
        Self::Client,
        Self::Client,
        Self::Server,
        Self::Server,
        Self::Damaged,
        Self::IcmpError,
        Self::Piece,
        Self::Publish,
        Self::NextHops,
        Self::Reset,
        Self::Collect,
        Self::Answer,
    ];
}

/// Steps that one input makes at most.
const MOST_STEPS: usize = 100;
/// Conversations that inputs know of.
const TALKS: usize = 2 * SERVICE_COUNT;
/// Bytes of a datagram that is sent in pieces.
const DATAGRAM: usize = 2000;

/// Where and how a frame comes in: one byte, and an offload header when it says so.
#[derive(Clone, Copy)]
struct Arrival {
    /// What is added to the interface it should come in by.
    interface: u32,
    offload: Offload,
    is_tagged: bool,
    is_repaired: bool,
}

impl Arrival {
    fn read(input: &mut Input<'_>) -> Self {
        let bits = input.u8();
        let mut arrival = Self {
            interface: u32::from(bits & 3),
            offload: Offload::default(),
            is_tagged: bits & 8 != 0,
            is_repaired: bits & 16 != 0,
        };
        if bits & 4 != 0 {
            arrival.offload = Offload {
                flags: input.u8(),
                gso_type: input.u8(),
                hdr_len: input.u16(),
                gso_size: input.u16(),
                csum_start: input.u16(),
                csum_offset: input.u16(),
            };
        }
        arrival
    }
}

/// A conversation: a client, its port, the service, and what each side sends next.
#[derive(Clone, Copy)]
struct Talk {
    client: usize,
    port: u16,
    service: usize,
    next: [u32; 2],
}

/// A data path, its clock, and the conversations that are had through it.
pub struct Player {
    path: DataPath,
    talks: [Talk; TALKS],
    now: u64,
    generation: u64,
    sent: u64,
    extra: Vec<Output>,
    /// Whether what is sent past the services was routed at any time.
    was_routed: bool,
}

/// One frame for a data path with flows of every kind.
///
/// Making that takes a hundred times as long as a frame, so one that a frame has left as it was serves the next, too.
pub fn one_frame(data: &[u8]) {
    thread_local!(static KEPT: RefCell<Option<Player>> = const { RefCell::new(None) });
    let kept = KEPT.with_borrow_mut(Option::take);
    let mut player = kept.unwrap_or_else(|| Player::with_flows(64));
    let mut input = Input::new(data);
    let arrival = Arrival::read(&mut input);
    let frame = input.bytes(usize::MAX);
    let outcome = player.arrive(frame, InterfaceId::new(0), arrival);
    if leaves_all_as_it_was(&outcome, frame) {
        KEPT.with_borrow_mut(|kept| *kept = Some(player));
    } else {
        player.settle();
    }
}

/// Whether a frame was dropped for what it is, before a flow was looked up.
fn leaves_all_as_it_was(outcome: &Outcome, frame: &[u8]) -> bool {
    let Verdict::Drop(reason) = outcome.verdict else {
        return false;
    };
    let is_in = |first, last| (first as u8..=last as u8).contains(&(reason as u8));
    let is_whole = || !frames::is_piece(&parse(frame));
    is_in(Reason::FrameTruncated, Reason::BadOffload)
        || (is_in(Reason::L4Truncated, Reason::NoService)
            || is_in(Reason::ServerEcho, Reason::IcmpAboutIcmp)
            || reason == Reason::Transit)
            && is_whole()
}

/// How each conversation of the first ones is opened, and where they stand then: worked out once.
struct Opening {
    snapshot: Arc<Snapshot>,
    next_hops: NextHops,
    frames: Vec<(InterfaceId, Vec<u8>)>,
    talks: [Talk; TALKS],
}

impl Opening {
    fn new() -> Self {
        let (snapshot, next_hops) = (Arc::new(scene::snapshot(1, Change(0))), scene::next_hops(0));
        let mut player = Player::new(64, Arc::clone(&snapshot), next_hops.clone());
        let mut frames = Vec::new();
        for number in 0..SERVICE_COUNT {
            let is_tcp = scene::listener(player.talks[number].service).2 == Protocol::Tcp;
            let steps = [(true, SYN), (false, SYN | ACK), (true, ACK)];
            for step in steps.into_iter().take(if is_tcp { 3 } else { 2 }) {
                let (interface, frame) = player.opening(number, step);
                player.pass(interface, &mut frame.clone());
                frames.push((interface, frame));
            }
        }
        let flows = player.path.flows(Nanos::new(player.now));
        let is_open = |flow: &&FlowInfo| matches!(flow.state, "established" | "udp");
        // The policy of one service is still asked.
        assert_eq!(
            flows.iter().filter(is_open).count(),
            SERVICE_COUNT - 1,
            "{flows:?}"
        );
        Self {
            snapshot,
            next_hops,
            frames,
            talks: player.talks,
        }
    }
}

impl Player {
    /// A data path with the scene published, and a conversation of each service under way.
    pub fn with_flows(capacity: u64) -> Self {
        thread_local!(static OPENING: Opening = Opening::new());
        OPENING.with(|opening| {
            let mut player = Self::new(
                capacity,
                opening.snapshot.clone(),
                opening.next_hops.clone(),
            );
            player.talks = opening.talks;
            for (interface, frame) in &opening.frames {
                player.pass(*interface, &mut frame.clone());
            }
            player.wait(1);
            player
        })
    }

    fn new(capacity: u64, snapshot: Arc<Snapshot>, next_hops: NextHops) -> Self {
        let mut path = DataPath::new(capacity, [5; 16], 1).expect("a small table");
        path.set_next_hops(next_hops);
        path.publish(snapshot);
        drop(path.keep_flow_exports(8, FlowExports::room(capacity as usize)));
        let talk = |number: usize| Talk {
            client: number,
            port: 4000 + number as u16,
            service: number % SERVICE_COUNT,
            next: [1000, 9000],
        };
        Self {
            path,
            talks: std::array::from_fn(talk),
            now: SECOND,
            generation: 1,
            sent: 0,
            extra: Vec::new(),
            was_routed: false,
        }
    }

    /// Play an input: its bytes choose among steps, and say what each is to do.
    pub fn play(mut self, data: &[u8], steps: &[Step]) {
        let mut input = Input::new(data);
        for _ in 0..MOST_STEPS {
            if input.is_empty() {
                break;
            }
            let step = input.one_of(steps);
            self.step(step, &mut input);
        }
        self.settle();
    }

    fn step(&mut self, step: Step, input: &mut Input<'_>) {
        match step {
            Step::Raw => {
                let arrival = Arrival::read(input);
                let len = usize::from(input.u16());
                self.arrive(input.bytes(len), InterfaceId::new(0), arrival);
            }
            Step::Wait => self.wait(u64::from(input.u32()) * 1_000_000),
            Step::Client => self.talk(input, true, false),
            Step::Server => self.talk(input, false, false),
            Step::Damaged => {
                let from_client = input.flag();
                self.talk(input, from_client, true);
            }
            Step::IcmpError => self.icmp_error(input),
            Step::Piece => self.piece(input),
            Step::Publish => self.publish(Change(input.u8())),
            Step::NextHops => self.path.set_next_hops(scene::next_hops(input.u8())),
            Step::Reset => self.reset(input),
            Step::Collect => self.collect(input),
            Step::Answer => self.answer(input),
        }
    }

    // The steps.

    fn wait(&mut self, ns: u64) {
        self.now = self.now.saturating_add(ns);
        self.path.tick(Nanos::new(self.now), &mut self.extra);
        self.check_extra();
    }

    fn publish(&mut self, change: Change) {
        self.generation += 1;
        self.was_routed |= change.transit() == Transit::Forward;
        self.path.publish(scene::snapshot(self.generation, change));
    }

    fn reset(&mut self, input: &mut Input<'_>) {
        let (server, limit) = (u32::from(input.u8()), input.below(5));
        self.path.reset_flows(server, limit, Nanos::new(self.now));
    }

    fn collect(&mut self, input: &mut Input<'_>) {
        let mask = input.u32();
        let ids: Vec<u32> = (0..32).filter(|id| mask >> id & 1 != 0).collect();
        self.path.retire_servers(&ids);
        self.path.retire_services(&ids);
        self.path.take_unresolved();
        self.path.take_flow_exports();
        drop(self.path.measurements(Nanos::new(self.now)));
    }

    fn answer(&mut self, input: &mut Input<'_>) {
        let name = format!("server{}", input.u8());
        let ticket = u64::from(input.u8());
        self.path.answer(ticket, input.flag().then_some(&name));
    }

    /// A packet of a conversation, the next one of its side or one beside it.
    fn talk(&mut self, input: &mut Input<'_>, from_client: bool, damages: bool) {
        let number = input.below(TALKS);
        let flags = input.one_of(&[SYN, SYN | ACK, ACK, ACK, FIN | ACK, RST, RST | ACK, 0]);
        let len = usize::from(input.u8()) * 7;
        let shift = i32::from(i8::from_be_bytes([input.u8()])) * 300;
        let arrival = Arrival::read(input);
        let (from, to, protocol) = self.ends(number, from_client, input.u8());
        let l4 = self.l4(
            (from.1, to.1),
            protocol,
            number,
            (from_client, flags, len, shift),
        );
        let (interface, mac) = self.origin(number, from_client);
        let mut frame = whole(mac, (from.0, to.0), protocol, l4);
        if damages {
            damage(&mut frame, input);
        }
        self.arrive(&frame, interface, arrival);
    }

    fn icmp_error(&mut self, input: &mut Input<'_>) {
        let number = input.below(TALKS);
        let from_client = input.flag();
        let arrival = Arrival::read(input);
        let mut inner = self.as_it_left(number, from_client, input.u8());
        let about = parse(&frames::ether(ROUTER, ROUTER, &inner));
        let Some((source, _)) = frames::ends(&about) else {
            return;
        };
        let head = [input.u8(), input.u8(), 0, 0];
        let rest = input.u32().to_be_bytes();
        let sender = if input.flag() {
            self.ends(number, false, 0).0.0
        } else {
            scene::router(source.is_ipv4())
        };
        let len = usize::from(input.u8()) * 4;
        damage(&mut inner, input);
        inner.truncate(if len == 0 { usize::MAX } else { len });
        let mut message = [&head[..], &rest, &inner].concat();
        frames::sign(sender, source, frames::icmp_of(source), &mut message);
        let packet = frames::ip(sender, source, frames::icmp_of(source), &message, None);
        self.arrive(
            &frames::ether(ROUTER, OURS[0], &packet),
            InterfaceId::new(0),
            arrival,
        );
    }

    fn piece(&mut self, input: &mut Input<'_>) {
        let number = input.below(TALKS);
        let from_client = input.flag();
        let arrival = Arrival::read(input);
        let (from, to, protocol) = self.ends(number, from_client, 0);
        let mut l4 = self.l4(
            (from.1, to.1),
            protocol,
            number,
            (from_client, ACK, DATAGRAM, 0),
        );
        frames::sign(from.0, to.0, protocol, &mut l4);
        let at = PieceAt {
            id: u16::from(input.u8() & 3),
            offset: input.u16() & 0x1fff,
            more: input.flag(),
        };
        let start = usize::from(at.offset) * 8;
        let len = usize::from(input.u8()) * 4;
        let end = (start + len).min(l4.len());
        let data = l4
            .get(start..end)
            .map_or_else(|| vec![9; len], <[u8]>::to_vec);
        let packet = frames::ip(from.0, to.0, protocol, &data, Some(at));
        let (interface, mac) = self.origin(number, from_client);
        self.arrive(
            &frames::ether(mac, OURS[interface.index()], &packet),
            interface,
            arrival,
        );
    }

    // What the packets of the steps are made of.

    /// The next packet of a conversation that is being opened.
    fn opening(
        &mut self,
        number: usize,
        (from_client, flags): (bool, u8),
    ) -> (InterfaceId, Vec<u8>) {
        let (from, to, protocol) = self.ends(number, from_client, 0);
        let l4 = self.l4((from.1, to.1), protocol, number, (from_client, flags, 0, 0));
        let (interface, mac) = self.origin(number, from_client);
        (interface, whole(mac, (from.0, to.0), protocol, l4))
    }

    /// Have a frame processed without a look at what comes of it.
    fn pass(&mut self, interface: InterfaceId, frame: &mut [u8]) {
        let (now, path) = (Nanos::new(self.now), &mut self.path);
        let outcome = path.process(frame, interface, now, Offload::default(), &mut self.extra);
        self.sent += u64::from(outcome.sent.is_some());
    }

    /// Where a packet of a conversation comes from and goes to, and its protocol. A server is that of the flow; without
    /// one, the input says which.
    fn ends(
        &self,
        number: usize,
        from_client: bool,
        which: u8,
    ) -> ((IpAddr, u16), (IpAddr, u16), u8) {
        let talk = &self.talks[number];
        let (family, port, protocol) = scene::listener(talk.service);
        let client = (scene::client(family, talk.client), talk.port);
        if from_client {
            return (client, (scene::vip(family), port), protocol as u8);
        }
        let (flow, _) = self.path.peek(
            talk.service as u32,
            client.0,
            client.1,
            Nanos::new(self.now),
        );
        let first = scene::first_server(talk.service);
        let server = flow.map_or(first + usize::from(which % 2), |flow| flow.server as usize);
        let server = scene::server_socket(server).expect("each service has two at least");
        (server, client, protocol as u8)
    }

    fn l4(
        &mut self,
        ports: (u16, u16),
        protocol: u8,
        number: usize,
        (from_client, flags, len, shift): (bool, u8, usize, i32),
    ) -> Vec<u8> {
        if protocol == UDP {
            return frames::udp(ports, len);
        }
        let next = &mut self.talks[number].next;
        let side = usize::from(!from_client);
        let (own, other) = (next[side].wrapping_add_signed(shift), next[1 - side]);
        if shift == 0 && flags & RST == 0 {
            let control = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
            next[side] = own.wrapping_add(control + len as u32);
        }
        frames::tcp(ports, flags, (own, other), len)
    }

    fn origin(&self, number: usize, from_client: bool) -> (InterfaceId, [u8; 6]) {
        if from_client {
            return scene::client_at(self.talks[number].client);
        }
        (InterfaceId::new(0), [0xaa, 0xaa, 0xaa, 0, 0, 0x31])
    }

    /// A packet of a conversation as we sent it on: what an error quotes.
    fn as_it_left(&mut self, number: usize, from_client: bool, which: u8) -> Vec<u8> {
        let (family, port, _) = scene::listener(self.talks[number].service);
        let (server, client, protocol) = self.ends(number, false, which);
        let vip = (scene::vip(family), port);
        let (from, to) = if from_client {
            (client, server)
        } else {
            (vip, client)
        };
        let saved = self.talks[number];
        let mut l4 = self.l4((from.1, to.1), protocol, number, (from_client, ACK, 64, 0));
        self.talks[number] = saved;
        frames::sign(from.0, to.0, protocol, &mut l4);
        frames::ip(from.0, to.0, protocol, &l4, None)
    }

    // A frame, and what must hold after it.

    fn arrive(&mut self, frame: &[u8], interface: InterfaceId, arrival: Arrival) -> Outcome {
        let mut bytes = frame.to_vec();
        if arrival.is_tagged && bytes.len() > 12 {
            bytes.splice(12..12, [0x81, 0, 0, 5]);
        }
        if arrival.is_repaired {
            frames::repair(&mut bytes);
        }
        let before = parse(&bytes);
        let is_whole = arrival.offload == Offload::default()
            && frames::is_right(&bytes, &before) == Some(true);
        let known = self.flow_of_client(&before);
        let interface = InterfaceId::new(interface.get() + arrival.interface);
        let now = Nanos::new(self.now);
        let outcome =
            self.path
                .process(&mut bytes, interface, now, arrival.offload, &mut self.extra);
        assert_eq!(
            outcome.service.is_some(),
            outcome.direction.is_some(),
            "{outcome:?}"
        );
        assert!(
            outcome.sent.is_none() || outcome.verdict == Verdict::Forward,
            "{outcome:?}"
        );
        self.check_keeps_server(&outcome, known.as_ref());
        if let Some(sent) = outcome.sent {
            self.sent += 1;
            let left = &bytes[..sent.len];
            self.check_leaving(left, sent.interface);
            self.check_sent(left, &outcome, &before, is_whole);
        }
        self.check_extra();
        outcome
    }

    /// The living flow that a packet of a client to a service belongs to.
    fn flow_of_client(&self, headers: &Headers) -> Option<FlowInfo> {
        if headers.reason.is_some() || headers.source_port == 0 {
            return None;
        }
        let (from, to) = frames::ends(headers)?;
        let is_it = |service: &Service| {
            (service.address, service.port, service.protocol as u8)
                == (to, headers.destination_port, headers.protocol)
        };
        let services = &self.path.snapshot().services;
        let service = services
            .iter()
            .position(|service| service.as_ref().is_some_and(is_it))?;
        let now = Nanos::new(self.now);
        self.path
            .peek(service as u32, from, headers.source_port, now)
            .0
    }

    /// A flow keeps its server while that is in the snapshot. One that is over may make room for another.
    fn check_keeps_server(&self, outcome: &Outcome, known: Option<&FlowInfo>) {
        let Some(flow) = known.filter(|flow| flow.state != "closing") else {
            return;
        };
        let moves = self
            .server(flow.server)
            .is_none_or(|server| server.moves_udp);
        if outcome.verdict == Verdict::Forward && !moves {
            assert_eq!(
                outcome.server,
                Some(flow.server),
                "{flow:?} was with another server"
            );
        }
    }

    /// What any frame that leaves must be.
    fn check_leaving(&self, frame: &[u8], interface: InterfaceId) {
        let mac = OURS
            .get(interface.index())
            .expect("it leaves by an interface there is");
        assert_eq!(
            &frame[6..12],
            mac,
            "it leaves with the MAC of its interface"
        );
        let headers = parse(frame);
        if let Some((from, to)) = frames::ends(&headers) {
            assert!(headers.l3_offset + headers.total_len <= frame.len());
            let is_server = |address| self.servers().any(|server| server.address == address);
            let is_hidden = self.was_routed || !is_server(from) || is_server(to);
            assert!(is_hidden, "{to} sees the address {from} of a server");
        }
    }

    /// What a frame that was sent on must be.
    fn check_sent(&self, frame: &[u8], outcome: &Outcome, before: &Headers, was_right: bool) {
        let headers = parse(frame);
        if was_right {
            assert_eq!(
                frames::is_right(frame, &headers),
                Some(true),
                "its checksum was right"
            );
        }
        let Some((direction, service)) = outcome.direction.zip(outcome.service) else {
            return;
        };
        assert_eq!(headers.reason, None, "{headers:?}");
        assert_eq!(headers.ttl, before.ttl - 1, "a router lowers it by one");
        let (from, to) = frames::ends(&headers).expect("it was parsed");
        let has_ports = matches!(headers.protocol, TCP | UDP) && headers.fragment_offset == 0;
        let service_id = service;
        let service = self.path.snapshot().services[service as usize].as_ref();
        let service = service.expect("it is in the snapshot");
        let server = self
            .server(outcome.server.expect("it has one"))
            .expect("it is in the snapshot");
        assert_eq!(server.service, service_id, "a server of this service");
        if direction == Direction::Forward {
            assert_eq!(to, server.address);
            assert!(!has_ports || headers.destination_port == server.port);
        } else if has_ports {
            assert_eq!((from, headers.source_port), (service.address, service.port));
        } else {
            assert!(from != server.address || to == server.address);
        }
    }

    /// Frames of their own, and those that waited.
    fn check_extra(&mut self) {
        let extra = std::mem::take(&mut self.extra);
        for output in &extra {
            self.sent += 1;
            self.check_leaving(&output.frame, output.interface);
        }
        self.extra = extra;
        self.extra.clear();
    }

    /// At the end of an input: all counts are true, and the table is whole.
    fn settle(&mut self) {
        self.wait(0);
        let report = self.path.counters();
        scene::require_verdicts(&report, self.path.held());
        assert_eq!(report.tx_packets, self.sent);
        let now = Nanos::new(self.now);
        let flows = self.path.flows(now);
        assert!(
            flows.len() as u64 <= report.table.entries
                && report.table.entries <= report.table.capacity
        );
        for flow in &flows {
            let (found, _) = self
                .path
                .peek(flow.service, flow.client, flow.client_port, now);
            assert_eq!(found.as_ref(), Some(flow), "each is found by its key");
        }
        // Expired ones count until they are removed: as of the beginning of time none has expired.
        let entries = self.path.flows(Nanos::ZERO);
        for (id, traffic) in report.servers.iter().enumerate() {
            let Some(traffic) = traffic.filter(|_| self.has_service(id)) else {
                continue;
            };
            let states = ["syn-sent", "syn-received", "established", "udp"];
            let is_active =
                |flow: &&FlowInfo| flow.server as usize == id && states.contains(&flow.state);
            let active = entries.iter().filter(is_active).count() as u64;
            assert_eq!(active, traffic.flows_active, "server {id}: {traffic:?}");
            assert!(traffic.flows_active <= traffic.flows_created, "{traffic:?}");
        }
    }

    /// Whether the service of a server is in the snapshot: else its flows are found by no packet.
    fn has_service(&self, server: usize) -> bool {
        let snapshot = self.path.snapshot();
        let service = snapshot.servers[server]
            .as_ref()
            .map(|server| server.service as usize);
        service.is_some_and(|service| snapshot.services[service].is_some())
    }

    fn servers(&self) -> impl Iterator<Item = &Server> {
        self.path.snapshot().servers.iter().flatten()
    }

    fn server(&self, id: u32) -> Option<&Server> {
        self.path.snapshot().servers.get(id as usize)?.as_ref()
    }
}

/// A frame with right checksums.
fn whole(mac: [u8; 6], (from, to): (IpAddr, IpAddr), protocol: u8, mut l4: Vec<u8>) -> Vec<u8> {
    frames::sign(from, to, protocol, &mut l4);
    frames::ether(mac, OURS[0], &frames::ip(from, to, protocol, &l4, None))
}

/// Damage up to three bytes.
fn damage(bytes: &mut [u8], input: &mut Input<'_>) {
    for _ in 0..input.below(4) {
        let (at, bits) = (usize::from(input.u8()), input.u8());
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= bits;
        }
    }
}
