//! Snapshots and routes of any parts: what the types of the control side allow, sense or nonsense. Whatever it is
//! compiles, and packets get a verdict.

use std::net::IpAddr;

use flowlb_core::base::{InterfaceId, Nanos, Offload};
use flowlb_core::datapath::DataPath;
use flowlb_core::snapshot::{
    Interface, Neighbour, NewFlowLimit, NextHops, Plan, Protocol, Refusal, Route, Selector, Server,
    Service, Settings, Snapshot, Timeouts, Transit,
};

use super::frames::{self, ACK, SYN};
use super::input::Input;
use super::scene::{self, OURS, ROUTER, SECOND};

/// Addresses that mean something, with the same number of each family.
const ADDRESSES: [&str; 14] = [
    "198.18.1.100",
    "198.18.1.1",
    "198.18.1.31",
    "198.18.1.21",
    "0.0.0.0",
    "255.255.255.255",
    "224.0.0.1",
    "2001:2:0:1::100",
    "2001:2:0:1::1",
    "2001:2:0:1::31",
    "2001:2:0:1::21",
    "::",
    "::ffff:1.2.3.4",
    "ff02::1",
];
const SELECTORS: [Selector; 7] = [
    Selector::Counter,
    Selector::Random,
    Selector::HashSource,
    Selector::HashFlow,
    Selector::Least,
    Selector::TwoChoices,
    Selector::Ask,
];
/// Plans within plans.
const DEEPEST: usize = 3;

impl Input<'_> {
    /// A number of up to three bits, or a large one.
    fn id(&mut self) -> u32 {
        match self.u8() {
            0xff => u32::MAX,
            0xfe => self.u32(),
            byte => u32::from(byte % 8),
        }
    }

    fn large(&mut self) -> u64 {
        match self.u8() {
            0xff => u64::MAX,
            0xfe => self.u64(),
            byte => u64::from(byte),
        }
    }

    fn address(&mut self) -> IpAddr {
        match self.u8() {
            0xff => IpAddr::from(self.u32().to_be_bytes()),
            byte => scene::address(ADDRESSES[usize::from(byte) % ADDRESSES.len()]),
        }
    }

    fn prefix(&mut self) -> (IpAddr, u8) {
        let address = self.address();
        let most = if address.is_ipv4() { 32 } else { 128 };
        (address, self.u8() % (most + 1))
    }

    fn mac(&mut self) -> [u8; 6] {
        [0xaa, 0xaa, 0xaa, 0, 0, self.u8()]
    }

    fn name(&mut self) -> String {
        "x".repeat(self.below(3))
    }

    fn port(&mut self) -> u16 {
        self.one_of(&[80, 8031, 0, 65535])
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.u8() % 4 != 0).then(|| make(self))
    }

    fn some<T>(&mut self, make: impl Fn(&mut Self) -> T) -> Vec<T> {
        (0..self.below(5)).map(|_| make(self)).collect()
    }
}

fn plan(input: &mut Input<'_>, depth: usize) -> Plan {
    Plan {
        selector: input.one_of(&SELECTORS),
        slots: input.some(Input::id),
        scores: input.some(Input::large),
        fallback: if depth < DEEPEST {
            input.maybe(|input| Box::new(plan(input, depth + 1)))
        } else {
            None
        },
        deadline_ns: input.large(),
    }
}

fn service(input: &mut Input<'_>) -> Service {
    Service {
        name: input.name(),
        address: input.address(),
        port: input.port(),
        protocol: input.one_of(&[Protocol::Tcp, Protocol::Udp]),
        plan: plan(input, 0),
        on_no_server: input.one_of(&[Refusal::Reset, Refusal::Drop]),
        on_no_flow: input.one_of(&[Refusal::Reset, Refusal::Drop]),
        new_flow_limit: input.maybe(new_flow_limit),
    }
}

fn new_flow_limit(input: &mut Input<'_>) -> NewFlowLimit {
    NewFlowLimit {
        rate: (input.large() as u32).max(1),
        burst: (input.large() as u32).max(1),
        prefix_ipv4: input.large() as u8 % 33,
        prefix_ipv6: input.large() as u8 % 129,
    }
}

fn server(input: &mut Input<'_>) -> Server {
    Server {
        name: input.name(),
        service: input.id(),
        endpoint: input.id(),
        address: input.address(),
        port: input.port(),
        weight: input.large() as u32,
        mac: input.maybe(Input::mac),
        moves_udp: input.flag(),
    }
}

fn interface(input: &mut Input<'_>) -> Interface {
    Interface {
        name: input.name(),
        mac: OURS[0],
        mtu: input.one_of(&[1500, 0, 1, 27, 28, 67, 68, 1280, 65535, u32::MAX]),
        addresses: input.some(Input::prefix),
        announce: input.flag(),
    }
}

fn snapshot(input: &mut Input<'_>) -> Snapshot {
    let has_ask = input.flag();
    Snapshot {
        generation: input.large(),
        seed: input.large(),
        interfaces: input.some(interface),
        services: input.some(|input| input.maybe(service)),
        servers: input.some(|input| input.maybe(server)),
        settings: Settings {
            transit: input.one_of(&[Transit::Drop, Transit::Forward]),
            answer_echo: input.flag(),
            any_replies: input.flag(),
            icmp_rate: input.large() as u32,
        },
        timeouts: Timeouts {
            half_open_ns: input.large(),
            established_ns: input.large(),
            closing_ns: input.large(),
            udp_ns: input.large(),
            idle_floor_ns: input.large(),
        },
        ask: has_ask.then(scene::ask_function),
    }
}

fn next_hops(input: &mut Input<'_>) -> NextHops {
    NextHops {
        routes: input.some(|input| {
            let (prefix, prefix_len) = input.prefix();
            Route {
                prefix,
                prefix_len,
                interface: InterfaceId::new(input.id()),
                gateway: input.maybe(Input::address),
                mtu: input.maybe(|input| input.one_of(&[0, 1, 68, 576, 1280, u32::MAX])),
            }
        }),
        neighbours: input.some(|input| Neighbour {
            interface: InterfaceId::new(input.id()),
            address: input.address(),
            mac: input.mac(),
        }),
    }
}

/// Packets between all addresses of a family, over TCP and UDP, small and large.
fn probes() -> Vec<Vec<u8>> {
    let mut probes = Vec::new();
    for family in [&ADDRESSES[..4], &ADDRESSES[7..11]] {
        let hosts: Vec<IpAddr> = family.iter().map(|text| scene::address(text)).collect();
        let pairs = [
            (3, 0, 80),
            (3, 2, 8031),
            (2, 3, 4000),
            (0, 3, 4000),
            (2, 0, 80),
        ];
        for (at, (from, to, port)) in pairs.into_iter().enumerate() {
            let (from, to) = (hosts[from], hosts[to]);
            let ports = if port == 4000 {
                (8031, 4000)
            } else {
                (4000, port)
            };
            for (protocol, mut l4) in [
                (
                    frames::TCP,
                    frames::tcp(ports, if at % 2 == 0 { SYN } else { ACK }, (1, 1), at * 300),
                ),
                (frames::UDP, frames::udp(ports, at * 400)),
            ] {
                frames::sign(from, to, protocol, &mut l4);
                probes.push(frames::ether(
                    ROUTER,
                    OURS[0],
                    &frames::ip(from, to, protocol, &l4, None),
                ));
            }
        }
    }
    probes
}

fn probe(path: &mut DataPath, probes: &[Vec<u8>], now: u64) {
    let mut extra = Vec::new();
    for (number, probe) in probes.iter().enumerate() {
        let interface = InterfaceId::new(number as u32 % 2);
        path.process(
            &mut probe.clone(),
            interface,
            Nanos::new(now),
            Offload::default(),
            &mut extra,
        );
    }
    path.tick(Nanos::new(now), &mut extra);
    drop(path.flows(Nanos::new(now)));
    drop(path.measurements(Nanos::new(now)));
    path.take_unresolved();
}

/// Publish any snapshot and any routes, and others after them; packets pass in between.
pub fn any_snapshot(data: &[u8]) {
    thread_local!(static PROBES: Vec<Vec<u8>> = probes());
    let mut input = Input::new(data);
    let mut path = DataPath::new(8, [5; 16], 1).expect("a small table");
    PROBES.with(|probes| {
        for round in 0..3 {
            path.publish(snapshot(&mut input));
            path.set_next_hops(next_hops(&mut input));
            probe(&mut path, probes, round * 4 * SECOND);
            path.answer(round, input.flag().then_some("x"));
            path.reset_flows(input.id().min(64), 2, Nanos::new(round * 4 * SECOND));
            path.retire_servers(&[input.id(), input.id()]);
            path.retire_services(&[input.id()]);
            if input.is_empty() {
                break;
            }
        }
    });
    scene::require_verdicts(&path.counters(), path.held());
}
