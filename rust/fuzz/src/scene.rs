//! The scene of all targets: that of the vectors (`tests/vectors/base.json`) with a second interface, and a service
//! for each way to place a flow. Its publications differ by a byte.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use flowlb_core::base::{InterfaceId, Mac};
use flowlb_core::counters::CounterReport;
use flowlb_core::snapshot::{
    Answer, AskFunction, Interface, Neighbour, NextHops, Plan, Protocol, Question, Refusal, Route,
    Selector, Server, Service, Settings, Snapshot, Timeouts, Transit,
};

pub const SECOND: u64 = 1_000_000_000;
pub const OURS: [Mac; 2] = [[0xaa, 0xaa, 0xaa, 0, 0, 1], [0xaa, 0xaa, 0xaa, 0, 1, 1]];
pub const ROUTER: Mac = [0xaa, 0xaa, 0xaa, 0, 0, 0xfe];
const VIPS: [IpAddr; 2] = [near(0, 100), near(1, 100)];
/// Clients of each family: two neighbours, one far away, and one that is a server, too.
const CLIENTS: [[IpAddr; 4]; 2] = [
    [near(0, 21), near(0, 22), far(0), near(0, 32)],
    [near(1, 21), near(1, 22), far(1), near(1, 32)],
];

/// An address of the first interface's network, by its last number as it is written.
const fn near(family: usize, last: u8) -> IpAddr {
    if family == 0 {
        return IpAddr::V4(Ipv4Addr::new(198, 18, 1, last));
    }
    let digits = last as u16 / 100 * 256 + last as u16 / 10 % 10 * 16 + last as u16 % 10;
    IpAddr::V6(Ipv6Addr::new(0x2001, 2, 0, 1, 0, 0, 0, digits))
}

const fn far(family: usize) -> IpAddr {
    if family == 0 {
        IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7))
    } else {
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7))
    }
}

use Protocol::{Tcp, Udp};
use Selector::{Ask, Counter, HashFlow, HashSource, Least, TwoChoices};

/// Family, port, protocol, selector, and its servers: the last number of their address, their port. Servers of two
/// services share an endpoint.
type ServiceRow = (usize, u16, Protocol, Selector, &'static [(u8, u16)]);
const SERVICES: [ServiceRow; 9] = [
    (0, 9876, Tcp, Counter, &[(31, 8031), (32, 8032), (33, 8033)]),
    (0, 53, Udp, Counter, &[(31, 5353), (32, 5353)]),
    (1, 9876, Tcp, Counter, &[(31, 8031), (32, 8032), (33, 8033)]),
    (1, 53, Udp, HashSource, &[(31, 5353), (32, 5353)]),
    (0, 80, Tcp, HashFlow, &[(31, 8031), (32, 81)]),
    (0, 54, Udp, HashSource, &[(31, 54), (33, 54)]),
    (0, 82, Tcp, Least, &[(32, 8032), (33, 82)]),
    (0, 83, Tcp, Ask, &[(31, 83), (32, 83)]),
    (1, 84, Udp, TwoChoices, &[(31, 84), (33, 84)]),
];
pub const SERVICE_COUNT: usize = SERVICES.len();

pub fn address(text: &str) -> IpAddr {
    text.parse().expect("a literal address")
}

pub fn vip(family: usize) -> IpAddr {
    VIPS[family]
}

/// One of the clients of a family.
pub fn client(family: usize, number: usize) -> IpAddr {
    CLIENTS[family][number % CLIENTS[family].len()]
}

/// The router of the first network.
pub fn router(is_v4: bool) -> IpAddr {
    near(usize::from(!is_v4), 254)
}

/// The interface that a client's packets come in by, and its MAC there.
pub fn client_at(number: usize) -> (InterfaceId, Mac) {
    let last = [0x21, 0x22, 0xfe, 0x32][number % 4];
    (InterfaceId::new(0), [0xaa, 0xaa, 0xaa, 0, 0, last])
}

/// The family of a service, its port and protocol.
pub fn listener(service: usize) -> (usize, u16, Protocol) {
    let (family, port, protocol, ..) = SERVICES[service];
    (family, port, protocol)
}

/// Servers of all services: service, family, last number of the address, port, protocol. Their places are their ids.
fn servers() -> impl Iterator<Item = (usize, usize, u8, u16, Protocol)> {
    let rows = SERVICES.iter().enumerate();
    rows.flat_map(|(service, &(family, _, protocol, _, servers))| {
        let row = move |&(last, port): &(u8, u16)| (service, family, last, port, protocol);
        servers.iter().map(row)
    })
}

/// The address and port of a server.
pub fn server_socket(server: usize) -> Option<(IpAddr, u16)> {
    let (_, family, last, port, _) = servers().nth(server)?;
    Some((near(family, last), port))
}

/// The first server of a service.
pub fn first_server(service: usize) -> usize {
    SERVICES[..service].iter().map(|row| row.4.len()).sum()
}

/// What a byte changes of a publication.
#[derive(Clone, Copy)]
pub struct Change(pub u8);

impl Change {
    fn has(self, bit: u8) -> bool {
        self.0 & 1 << bit != 0
    }

    /// Servers that are gone.
    fn removes(self, server: usize) -> bool {
        self.has(0) && server % 3 == 0 || self.has(1) && server % 4 == 1
    }

    pub fn transit(self) -> Transit {
        if self.has(3) {
            Transit::Forward
        } else {
            Transit::Drop
        }
    }
}

/// The scene as the control side would publish it.
pub fn snapshot(generation: u64, change: Change) -> Snapshot {
    Snapshot {
        generation,
        seed: 1,
        interfaces: interfaces(),
        services: (0..SERVICE_COUNT).map(|id| service(id, change)).collect(),
        servers: servers()
            .enumerate()
            .map(|(id, row)| server(id, row, change))
            .collect(),
        settings: Settings {
            transit: change.transit(),
            answer_echo: change.has(4),
            any_replies: change.has(1),
            icmp_rate: if change.has(5) { 1 } else { 1000 },
        },
        timeouts: Timeouts {
            half_open_ns: 30 * SECOND,
            established_ns: 7440 * SECOND,
            closing_ns: 120 * SECOND,
            udp_ns: 300 * SECOND,
            idle_floor_ns: 60 * SECOND,
        },
        ask: Some(ask_function()),
    }
}

fn interfaces() -> Vec<Interface> {
    let addresses = [
        [("198.18.1.1", 24), ("2001:2:0:1::1", 64)],
        [("10.0.0.1", 24), ("2001:2:0:2::1", 64)],
    ];
    let interface = |number: usize| Interface {
        name: format!("eth{number}"),
        mac: OURS[number],
        mtu: [1500, 600][number],
        addresses: addresses[number]
            .iter()
            .map(|&(text, len)| (address(text), len))
            .collect(),
        announce: number == 0,
    };
    (0..2).map(interface).collect()
}

fn service(id: usize, change: Change) -> Option<Service> {
    let (family, port, protocol, selector, rows) = SERVICES[id];
    if change.has(6) && id % 4 == 3 {
        return None;
    }
    let first = first_server(id);
    let all = first..first + rows.len();
    let slots: Vec<u32> = all
        .filter(|&id| !change.removes(id))
        .map(|id| id as u32)
        .collect();
    let plan = |selector| Plan {
        selector,
        scores: slots.iter().map(|&id| u64::from(id) + 1).collect(),
        slots: slots.clone(),
        fallback: None,
        deadline_ns: SECOND,
    };
    let refusals = [Refusal::Reset, Refusal::Drop];
    Some(Service {
        name: format!("service{id}"),
        address: vip(family),
        port,
        protocol,
        plan: Plan {
            fallback: (selector == Ask).then(|| Box::new(plan(TwoChoices))),
            ..plan(selector)
        },
        on_no_server: refusals[id % 2],
        on_no_flow: refusals[usize::from(!change.has(7))],
        new_flow_limit: None,
    })
}

fn server(id: usize, row: (usize, usize, u8, u16, Protocol), change: Change) -> Option<Server> {
    let (service, family, last, port, protocol) = row;
    let is_same = |other: &(usize, usize, u8, u16, Protocol)| {
        (family, last, port, protocol) == (other.1, other.2, other.3, other.4)
    };
    let endpoint = servers().position(|other| is_same(&other)).unwrap_or(id);
    (!change.removes(id)).then(|| Server {
        name: format!("server{id}"),
        service: service as u32,
        endpoint: endpoint as u32,
        address: near(family, last),
        port,
        weight: 1 + id as u32 % 3,
        mac: None,
        moves_udp: change.has(2) && id % 2 == 0,
    })
}

/// It answers by the client's port: with a name at once, later, with a name that there is not, or with nothing.
pub fn ask_function() -> AskFunction {
    Arc::new(|question: &Question<'_>| match question.client_port % 5 {
        1 => Answer::Given(question.candidates.first().map(ToString::to_string)),
        2 if question.ticket.is_some() => Answer::Later,
        3 => Answer::Given(Some("nobody".into())),
        _ => Answer::Given(None),
    })
}

/// Routes and neighbours. A byte changes them: fewer neighbours, another interface, a smaller MTU, no default route.
pub fn next_hops(change: u8) -> NextHops {
    let has = |bit: u8| change & 1 << bit != 0;
    let small = has(0).then_some(1280);
    let far = usize::from(has(1));
    let route = |prefix: &str, prefix_len, interface: usize, gateway: Option<&str>, mtu| Route {
        prefix: address(prefix),
        prefix_len,
        interface: InterfaceId::new(interface as u32),
        gateway: gateway.map(address),
        mtu,
    };
    let mut routes = vec![
        route("198.18.1.0", 24, 0, None, small),
        route("2001:2:0:1::", 64, 0, None, small),
        route("10.0.0.0", 24, 1, None, None),
        route(
            "198.51.100.0",
            24,
            far,
            Some(["198.18.1.254", "10.0.0.9"][far]),
            None,
        ),
        route(
            "2001:db8::",
            32,
            far,
            Some(["2001:2:0:1::254", "2001:2:0:2::9"][far]),
            None,
        ),
    ];
    if has(2) {
        routes.truncate(3);
    }
    let lasts = ["21", "22", "31", "32", "33", "254"];
    let known = lasts
        .iter()
        .enumerate()
        .filter(|(at, _)| change >> 3 & 1 << (at % 5) == 0);
    let neighbours = known.flat_map(|(_, last)| {
        let mac = [
            0xaa,
            0xaa,
            0xaa,
            0,
            0,
            u8::from_str_radix(last, 16).unwrap_or(0xfe),
        ];
        ["198.18.1.", "2001:2:0:1::"].map(|net| Neighbour {
            interface: InterfaceId::new(0),
            address: address(&format!("{net}{last}")),
            mac,
        })
    });
    NextHops {
        neighbours: neighbours.collect(),
        routes,
    }
}

/// Each packet that came has exactly one final verdict, but for those that are held.
pub fn require_verdicts(report: &CounterReport, held: usize) {
    let finals = report
        .verdicts
        .iter()
        .filter(|(name, _)| !name.starts_with("hold."));
    let finals: u64 = finals.map(|(_, count)| count).sum();
    assert_eq!(
        report.rx_packets,
        finals + held as u64,
        "{:?}",
        report.verdicts
    );
}
