//! Rule 8.17, full table: a table at its capacity. Arrivals of all kinds, in any order: whatever goes, no flow that a
//! server has answered and that was heard of lately goes for one that has not been answered; unconfirmed flows go
//! first; each entry is found by both of its keys; what counts as active is what is. Another walker of the table, who
//! changes entries and no lists, makes no flow go that should stay, neither for another nor for its time.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::fs::FileExt;

use flowlb_core::base::{InterfaceId, Nanos, Offload, SplitMix64, Verdict};
use flowlb_core::datapath::{DataPath, FlowInfo};
use flowlb_core::snapshot::{
    Interface, Neighbour, NextHops, Plan, Protocol, Refusal, Route, Selector, Server, Service,
    Settings, Snapshot, Timeouts,
};

mod wire;

use wire::{ACK, FIN, RST, SYN, Socket, Wire};

const SECOND: u64 = 1_000_000_000;
const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
const THEIRS: [u8; 6] = [2, 0, 0, 0, 0, 9];
const VIP: [u8; 4] = [198, 18, 1, 100];
const SERVER: [u8; 4] = [10, 0, 0, 11];
const CLIENT: [u8; 4] = [203, 0, 113, 7];
const CAPACITY: u64 = 24;
const FLOOR: u64 = 60 * SECOND;
const HANDSHAKE_FLOOR: u64 = 3 * SECOND;
/// (service port, server port, protocol, selector)
const SERVICES: [(u16, u16, Protocol, Selector); 4] = [
    (80, 8080, Protocol::Tcp, Selector::Counter),
    (81, 8081, Protocol::Tcp, Selector::HashFlow),
    (53, 5353, Protocol::Udp, Selector::Counter),
    (54, 5454, Protocol::Udp, Selector::HashSource),
];

fn snapshot() -> Snapshot {
    let service = |id: usize| {
        let (port, _, protocol, selector) = SERVICES[id];
        Some(Service {
            name: format!("service{id}"),
            address: IpAddr::from(VIP),
            port,
            protocol,
            plan: Plan {
                selector,
                slots: vec![id as u32],
                scores: vec![],
                fallback: None,
                deadline_ns: 0,
            },
            on_no_server: Refusal::Reset,
            on_no_flow: Refusal::Drop,
            new_flow_limit: None,
        })
    };
    let server = |id: usize| {
        Some(Server {
            name: format!("server{id}"),
            service: id as u32,
            endpoint: id as u32,
            address: IpAddr::from(SERVER),
            port: SERVICES[id].1,
            weight: 1,
            mac: None,
            moves_udp: false,
        })
    };
    Snapshot {
        generation: 1,
        seed: 1,
        interfaces: vec![Interface {
            name: "eth0".into(),
            mac: OURS,
            mtu: 1500,
            addresses: vec![(IpAddr::from([10, 0, 0, 1]), 24)],
            announce: false,
        }],
        services: (0..SERVICES.len()).map(service).collect(),
        servers: (0..SERVICES.len()).map(server).collect(),
        settings: Settings {
            icmp_rate: 1000,
            ..Settings::default()
        },
        timeouts: Timeouts {
            half_open_ns: 30 * SECOND,
            established_ns: 7440 * SECOND,
            closing_ns: 120 * SECOND,
            udp_ns: 300 * SECOND,
            idle_floor_ns: FLOOR,
        },
        ask: None,
    }
}

fn next_hops() -> NextHops {
    let route = |prefix: [u8; 4], prefix_len| Route {
        prefix: IpAddr::from(prefix),
        prefix_len,
        interface: InterfaceId::new(0),
        gateway: None,
        mtu: None,
    };
    let neighbour = |address: [u8; 4]| Neighbour {
        interface: InterfaceId::new(0),
        address: IpAddr::from(address),
        mac: THEIRS,
    };
    NextHops {
        routes: vec![route([10, 0, 0, 0], 24), route([0; 4], 0)],
        neighbours: vec![neighbour(SERVER), neighbour(CLIENT)],
    }
}

/// Service and client port.
type Name = (u32, u16);

/// Another walker of the table, as a program of the kernel is one: it knows where the fields of an entry are.
struct Walker {
    file: File,
}

impl Walker {
    const LINE: usize = 64;
    const PORT_AT: usize = 16;
    const STATE_AT: usize = 18;
    const SERVICE_AT: usize = 20;
    const SEEN_AT: usize = 32;
    const LAG_AT: usize = 40;
    const ESTABLISHED: u8 = 2;

    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("flowlb-{name}-{}", std::process::id()));
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(&path);
        fs::remove_file(&path).expect("it was made");
        Self {
            file: file.expect("a file in the temporary directory"),
        }
    }

    /// Note a packet at `now` in a flow's entry, but not in its list: the flow is established from then on, or stays in
    /// its state.
    fn follow(&self, (service, port): Name, establishes: bool, now: u64) {
        let mut area = vec![0; self.file.metadata().expect("it is open").len() as usize];
        self.file.read_exact_at(&mut area, 0).expect("it is open");
        let is_wanted = |line: &[u8]| {
            line[Self::PORT_AT..][..2] == port.to_ne_bytes()
                && line[Self::SERVICE_AT..][..4] == service.to_ne_bytes()
        };
        let lines = area.chunks_exact(Self::LINE);
        let places: Vec<_> = lines
            .enumerate()
            .filter(|(_, line)| is_wanted(line))
            .collect();
        let [(place, _)] = places[..] else {
            panic!("{} entries have this key", places.len());
        };
        let write = |at: usize, bytes: &[u8]| {
            let at = (place * Self::LINE + at) as u64;
            self.file.write_all_at(bytes, at).expect("it is open");
        };
        write(Self::SEEN_AT, &now.to_ne_bytes());
        write(Self::LAG_AT, &(SECOND as u32).to_ne_bytes());
        if establishes {
            write(Self::STATE_AT, &[Self::ESTABLISHED]);
        }
    }
}

struct Model {
    path: DataPath,
    random: SplitMix64,
    now: u64,
    /// The services that packets come for, and of how many packets one is of a new flow: without UDP and pickups none
    /// is unconfirmed.
    services: &'static [u32],
    new_flow_odds: u64,
    /// What each side of a flow sends next: the client, the server.
    numbers: HashMap<Name, [u32; 2]>,
}

impl Model {
    fn new(mut path: DataPath, seed: u64, services: &'static [u32], new_flow_odds: u64) -> Self {
        path.publish(snapshot());
        path.set_next_hops(next_hops());
        Self {
            path,
            random: SplitMix64::new(seed),
            now: SECOND,
            services,
            new_flow_odds,
            numbers: HashMap::new(),
        }
    }

    /// One whose table another walker has, too.
    fn with_walker(name: &str) -> (Self, Walker) {
        let walker = Walker::new(name);
        let path = DataPath::in_file(CAPACITY, [7; 16], 1, &walker.file).expect("a small table");
        (Self::new(path, 1, &[0], 1), walker)
    }

    fn open(&mut self, port: u16) -> Verdict {
        let wire = self.wire((0, port), true, SYN);
        self.send(&wire)
    }

    fn ports(&self) -> Vec<u16> {
        let mut ports: Vec<_> = self.flows().into_keys().map(|(_, port)| port).collect();
        ports.sort_unstable();
        ports
    }

    fn draw(&mut self, bound: u64) -> u64 {
        self.random.draw() % bound
    }

    fn flows(&self) -> HashMap<Name, FlowInfo> {
        let flows = self.path.flows(Nanos::new(self.now)).into_iter();
        flows
            .map(|flow| ((flow.service, flow.client_port), flow))
            .collect()
    }

    fn wire(&mut self, (service, port): Name, from_client: bool, flags: u8) -> Wire {
        let (vip_port, server_port, ..) = SERVICES[service as usize];
        let numbers = self.numbers.entry((service, port)).or_insert([1000, 9000]);
        let (own, other) = if from_client {
            (numbers[0], numbers[1])
        } else {
            (numbers[1], numbers[0])
        };
        let client: Socket = (CLIENT, port);
        let (from, to) = if from_client {
            (client, (VIP, vip_port))
        } else {
            ((SERVER, server_port), client)
        };
        let control = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        numbers[usize::from(!from_client)] = own.wrapping_add(control);
        Wire {
            interface: 0,
            macs: (THEIRS, OURS),
            from,
            to,
            flags,
            numbers: (own, if flags & ACK != 0 { other } else { 0 }),
            window: 60000,
            scale: None,
            len: 0,
        }
    }

    fn send(&mut self, wire: &Wire) -> Verdict {
        let mut frame = wire.frame();
        let mut extra = Vec::new();
        let path = &mut self.path;
        path.process(
            &mut frame,
            InterfaceId::new(0),
            Nanos::new(self.now),
            Offload::default(),
            &mut extra,
        )
        .verdict
    }

    /// Any packet of any flow: mostly new ones, for the table is to be full.
    fn arrive(&mut self) -> (Name, Wire) {
        let service = self.services[self.draw(self.services.len() as u64) as usize];
        let known: Vec<Name> = self.flows().into_keys().collect();
        let name = if known.is_empty() || self.draw(self.new_flow_odds) == 0 {
            let port = 1024 + self.draw(30_000) as u16;
            self.numbers.remove(&(service, port));
            (service, port)
        } else {
            let mut known = known;
            known.sort_unstable();
            known[self.draw(known.len() as u64) as usize]
        };
        let is_udp = SERVICES[name.0 as usize].2 == Protocol::Udp;
        let from_client = self.draw(2) == 0;
        let flags = match (is_udp, from_client) {
            (true, _) => 0,
            (false, true) => [SYN, SYN, ACK, ACK, FIN | ACK, RST][self.draw(6) as usize],
            (false, false) => [SYN | ACK, SYN | ACK, ACK, FIN | ACK, RST][self.draw(5) as usize],
        };
        (name, self.wire(name, from_client, flags))
    }

    /// Expire all that is due.
    fn settle(&mut self) {
        for _ in 0..2 {
            self.path.tick(Nanos::new(self.now), &mut Vec::new());
        }
    }

    fn check_counters(&self, flows: &HashMap<Name, FlowInfo>) {
        let report = self.path.counters();
        assert_eq!(report.table.entries, flows.len() as u64);
        for (id, traffic) in report.servers.iter().enumerate() {
            let is_active = |flow: &&FlowInfo| {
                flow.server == id as u32
                    && matches!(
                        flow.state,
                        "syn-sent" | "syn-received" | "established" | "udp"
                    )
            };
            let active = flows.values().filter(is_active).count() as u64;
            assert_eq!(traffic.expect("it is there").flows_active, active);
        }
    }

    /// Both keys of each entry find it: a segment of a guess passes and changes nothing; a datagram refreshes.
    fn check_keys(&mut self, flows: &HashMap<Name, FlowInfo>) {
        for &(service, port) in flows.keys() {
            for from_client in [true, false] {
                let is_udp = SERVICES[service as usize].2 == Protocol::Udp;
                let mut wire =
                    self.wire((service, port), from_client, if is_udp { 0 } else { ACK });
                wire.numbers = (0x7777_7777, 0x7777_7777);
                let hits = self.hits();
                assert_eq!(self.send(&wire), Verdict::Forward);
                assert_eq!(self.hits(), hits + 1);
            }
        }
    }

    fn hits(&self) -> u64 {
        let events = self.path.counters().events;
        let hit = events.iter().find(|(name, _)| *name == "flow_hit");
        hit.expect("it is counted").1
    }

    fn evictions(&self) -> Vec<(&'static str, u64)> {
        let events = self.path.counters().events.into_iter();
        events
            .filter(|(name, _)| name.starts_with("flow_evicted"))
            .collect()
    }

    fn step(&mut self) {
        self.now += match self.draw(60) {
            0 => 70 * SECOND,
            1..=5 => 4 * SECOND,
            other => [0, SECOND / 100, SECOND / 10][other as usize % 3],
        };
        self.settle();
        let before = self.flows();
        let (name, wire) = self.arrive();
        self.send(&wire);
        let after = self.flows();
        assert!(after.len() as u64 <= CAPACITY);
        let gone: Vec<_> = before
            .iter()
            .filter(|(key, _)| **key != name && !after.contains_key(key))
            .collect();
        assert!(gone.len() <= 1, "one makes room for one");
        for (_, flow) in gone {
            assert_may_go(flow, &before);
        }
        self.check_counters(&after);
    }
}

/// The order of rule 8.17, full table.
fn assert_may_go(flow: &FlowInfo, before: &HashMap<Name, FlowInfo>) {
    let any = |states: &[&str]| before.values().any(|flow| states.contains(&flow.state));
    let unconfirmed = ["pickup", "udp-unreplied"];
    match flow.state {
        "pickup" | "udp-unreplied" => return,
        "syn-sent" | "closing" => {}
        "syn-received" => assert!(flow.idle_ns > HANDSHAKE_FLOOR, "{flow:?}"),
        _ => assert!(flow.idle_ns > FLOOR, "{flow:?}"),
    }
    assert!(!any(&unconfirmed), "{flow:?} before an unconfirmed one");
    if flow.state != "syn-sent" {
        assert!(!any(&["syn-sent"]), "{flow:?} before one without an answer");
    }
    if flow.state != "syn-sent" && flow.state != "syn-received" && flow.state != "closing" {
        assert!(!any(&["closing"]), "{flow:?} before one that is over");
    }
}

#[test]
fn table_at_capacity_keeps_what_servers_answered() {
    let mut evicted = 0;
    for seed in 0..60 {
        let path = DataPath::new(CAPACITY, [7; 16], 1).expect("a small table");
        let services = [&[0, 1, 2, 3][..], &[0], &[0, 2]][seed as usize % 3];
        let mut model = Model::new(path, seed, services, 2 + seed % 7);
        for _ in 0..400 {
            model.step();
        }
        let flows = model.flows();
        model.check_keys(&flows);
        for (kind, (name, count)) in model.evictions().into_iter().enumerate() {
            evicted |= u32::from(count > 0) << kind;
            assert!(name.starts_with("flow_evicted"));
        }
    }
    // None is one-way: replies come to this balancer alone.
    assert_eq!(evicted, 0b1_0111, "each step of the order was met");
}

#[test]
fn flow_that_another_walker_follows_ends_when_its_entry_says_so() {
    let (mut model, walker) = Model::with_walker("ends");
    for port in [1, 2, 3] {
        assert_eq!(model.open(port), Verdict::Forward);
    }
    walker.follow((0, 1), true, 2 * SECOND);
    walker.follow((0, 2), false, 20 * SECOND);
    let ends = [
        (30, vec![1, 2, 3]),
        (31, vec![1, 2]),
        (49, vec![1, 2]),
        (50, vec![1]),
        (7441, vec![1]),
        (7442, vec![]),
    ];
    for (now, ports) in ends {
        model.now = now * SECOND;
        model.settle();
        assert_eq!(model.ports(), ports, "at {now} s");
        model.check_counters(&model.flows());
    }
}

#[test]
fn flow_that_another_walker_followed_ends_in_time_whatever_is_behind_it() {
    let (mut model, walker) = Model::with_walker("behind");
    assert_eq!(model.open(101), Verdict::Forward);
    walker.follow((0, 101), false, 20 * SECOND);
    model.now = 30 * SECOND;
    assert_eq!(model.open(102), Verdict::Forward);
    model.now = 50 * SECOND;
    model.settle();
    assert_eq!(model.ports(), vec![102]);
    model.check_counters(&model.flows());
}

#[test]
fn flow_behind_one_that_another_walker_followed_ends_in_time() {
    let (mut model, walker) = Model::with_walker("hidden");
    for port in [101, 102] {
        assert_eq!(model.open(port), Verdict::Forward);
        walker.follow((0, port), true, 2 * SECOND);
    }
    model.now = 31 * SECOND;
    model.settle();
    walker.follow((0, 101), false, 7400 * SECOND);
    model.now = 7411 * SECOND;
    for port in 11..=14 {
        assert_eq!(model.open(port), Verdict::Forward);
    }
    // As many are due as a frame takes away.
    model.now = 7441 * SECOND;
    assert_eq!(model.open(20), Verdict::Forward);
    assert_eq!(model.ports(), vec![20, 101, 102]);
    model.now = 7443 * SECOND;
    model.settle();
    assert_eq!(model.ports(), vec![20, 101]);
    model.check_counters(&model.flows());
}

#[test]
fn flow_that_is_idle_for_longest_makes_room_although_another_walker_followed_it_once() {
    let (mut model, walker) = Model::with_walker("idle");
    assert_eq!(model.open(101), Verdict::Forward);
    walker.follow((0, 101), true, 2 * SECOND);
    model.now = 31 * SECOND;
    model.settle();
    walker.follow((0, 101), false, 35 * SECOND);
    model.now = 120 * SECOND;
    let others = 102..101 + CAPACITY as u16;
    for port in others.clone() {
        assert_eq!(model.open(port), Verdict::Forward);
        walker.follow((0, port), true, model.now);
    }
    model.now = 130 * SECOND;
    assert_eq!(model.open(1000), Verdict::Forward);
    assert_eq!(model.ports(), others.chain([1000]).collect::<Vec<_>>());
}

#[test]
fn flow_that_another_walker_established_makes_no_room() {
    let (mut model, walker) = Model::with_walker("room");
    let count = CAPACITY as u16;
    for port in 1..=count {
        assert_eq!(model.open(port), Verdict::Forward);
    }
    let half = count / 2;
    for port in 1..=half {
        walker.follow((0, port), true, model.now);
    }
    model.now += SECOND / 10;
    for port in count + 1..=count + half {
        assert_eq!(model.open(port), Verdict::Forward);
    }
    let stay: Vec<_> = (1..=half).chain(count + 1..=count + half).collect();
    assert_eq!(model.ports(), stay);
    for port in count + 1..=count + half {
        walker.follow((0, port), true, model.now);
    }
    assert_eq!(
        model.open(1000),
        Verdict::Reply(flowlb_core::base::Reason::TableFull)
    );
    assert_eq!(model.ports(), stay);
    model.check_counters(&model.flows());
}
