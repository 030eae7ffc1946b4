//! The whole data path from outside: random and mutated frames, flows there and back, time passing. Single rules
//! are shown by `tests/vectors`.

use std::net::IpAddr;

use etherparse::PacketBuilder;
use flowlb_core::base::{
    Direction, Frame, InterfaceId, Ip, Nanos, Offload, Outcome, Output, Reason, Verdict,
};
use flowlb_core::datapath::{DataPath, FlowQuery, FlowReset, FlowSearch, Sink};
use flowlb_core::forwarding::ForwardingState;
use flowlb_core::snapshot::{
    Interface, Neighbour, NextHops, Plan, Protocol, Refusal, Route, Selector, Server, Service,
    Settings, Snapshot, Timeouts, Transit,
};
use flowlb_core::wire::{checksum, icmp};
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;
const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x31];
const CLIENT: &str = "198.18.1.21";
const VIP: &str = "198.18.1.100";
const SERVER: &str = "198.18.1.31";
const CLIENT6: &str = "2001:2::21";
const VIP6: &str = "2001:2::100";
const SERVER6: &str = "2001:2::31";

fn address(text: &str) -> IpAddr {
    text.parse().expect("a literal address")
}

fn interface(mac_end: u8, number: u8) -> Interface {
    Interface {
        name: format!("eth{number}"),
        mac: [2, 0, 0, 0, 0, mac_end],
        mtu: 1500,
        addresses: vec![
            (address(&format!("198.18.{}.1", number + 1)), 24),
            (address(&format!("2001:{:x}::1", number + 2)), 64),
        ],
        announce: true,
    }
}

fn service(name: &str, vip: &str, protocol: Protocol, selector: Selector, server: u32) -> Service {
    let plan = Plan {
        selector,
        slots: vec![server],
        scores: vec![],
        fallback: None,
        deadline_ns: 0,
    };
    let (name, address) = (name.to_owned(), address(vip));
    Service {
        name,
        address,
        port: 80,
        protocol,
        plan,
        on_no_server: Refusal::Reset,
        on_no_flow: Refusal::Drop,
        new_flow_limit: None,
    }
}

fn server(service: u32, real: &str) -> Server {
    Server {
        name: format!("server{service}"),
        service,
        endpoint: service,
        address: address(real),
        port: 8031,
        weight: 1,
        mac: None,
        moves_udp: false,
    }
}

fn snapshot() -> Snapshot {
    Snapshot {
        generation: 1,
        seed: 1,
        interfaces: vec![interface(1, 0), interface(2, 1)],
        services: vec![
            Some(service("tcp", VIP, Protocol::Tcp, Selector::Counter, 0)),
            Some(service("udp", VIP, Protocol::Udp, Selector::HashFlow, 1)),
            Some(service("tcp6", VIP6, Protocol::Tcp, Selector::Least, 2)),
            Some(service(
                "udp6",
                VIP6,
                Protocol::Udp,
                Selector::TwoChoices,
                3,
            )),
        ],
        servers: vec![
            Some(server(0, SERVER)),
            Some(server(1, SERVER)),
            Some(server(2, SERVER6)),
            Some(server(3, SERVER6)),
        ],
        settings: Settings {
            transit: Transit::Forward,
            answer_echo: true,
            any_replies: false,
            icmp_rate: 1000,
        },
        timeouts: Timeouts {
            half_open_ns: 30 * SECOND,
            established_ns: 7440 * SECOND,
            closing_ns: 120 * SECOND,
            udp_ns: 300 * SECOND,
            idle_floor_ns: 60 * SECOND,
        },
        ask: None,
    }
}

fn next_hops() -> NextHops {
    let route = |prefix: &str, prefix_len, interface| Route {
        prefix: address(prefix),
        prefix_len,
        interface: InterfaceId::new(interface),
        gateway: None,
        mtu: None,
    };
    let server = |text| Neighbour {
        interface: InterfaceId::new(0),
        address: address(text),
        mac: SERVER_MAC,
    };
    NextHops {
        routes: vec![
            route("198.18.1.0", 24, 0),
            route("198.18.2.0", 24, 1),
            route("2001:2::", 64, 0),
            route("2001:3::", 64, 1),
        ],
        neighbours: vec![server(SERVER), server(SERVER6)],
    }
}

fn data_path(capacity: u64) -> DataPath {
    let mut path = DataPath::new(capacity, [5; 16], 1).expect("a small table");
    path.publish(snapshot());
    path.set_next_hops(next_hops());
    path
}

/// A frame from one end to another, with right checksums.
fn frame(
    from: (&str, u16),
    to: (&str, u16),
    protocol: Protocol,
    flags: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(CLIENT_MAC, OUR_MAC);
    let ip = match (address(from.0), address(to.0)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => unreachable!("both ends are of one family"),
    };
    let mut frame = Vec::new();
    if protocol == Protocol::Udp {
        ip.udp(from.1, to.1)
            .write(&mut frame, payload)
            .expect("a vector takes all");
        return frame;
    }
    let mut tcp = ip.tcp(from.1, to.1, 1000, 8000);
    for flag in flags {
        tcp = match flag {
            b'S' => tcp.syn(),
            b'A' => tcp.ack(2000),
            b'F' => tcp.fin(),
            _ => tcp.rst(),
        };
    }
    tcp.write(&mut frame, payload).expect("a vector takes all");
    frame
}

fn process(path: &mut DataPath, frame: &[u8], now: u64) -> (Outcome, Vec<u8>, Vec<Output>) {
    let mut bytes = frame.to_vec();
    let mut extra = Vec::new();
    let outcome = path.process(
        &mut bytes,
        InterfaceId::new(0),
        Nanos::new(now),
        Offload::default(),
        &mut extra,
    );
    bytes.truncate(outcome.sent.map_or(0, |sent| sent.len));
    (outcome, bytes, extra)
}

/// What came of some frames: each outcome, with the number of frames appended so far, and these.
#[derive(Debug, Default, PartialEq)]
struct Taken {
    outcomes: Vec<(usize, Outcome, usize)>,
    extra: Vec<Output>,
}

impl Sink for Taken {
    fn extra(&mut self) -> &mut Vec<Output> {
        &mut self.extra
    }

    fn done(&mut self, index: usize, outcome: &Outcome) {
        self.outcomes.push((index, *outcome, self.extra.len()));
    }
}

/// rx = forward + pass + drops + replies + held now.
fn assert_accounted(path: &DataPath) {
    let report = path.counters();
    let finals = report
        .verdicts
        .iter()
        .filter(|(name, _)| !name.starts_with("hold."));
    let total: u64 = finals.map(|(_, count)| count).sum();
    assert_eq!(
        report.rx_packets,
        total + path.held() as u64,
        "{:?}",
        report.verdicts
    );
    for traffic in report.servers.iter().flatten() {
        assert!(traffic.flows_active <= traffic.flows_created, "{traffic:?}");
    }
}

/// Every checksum in a forwarded frame that we had a hand in, recomputed.
fn assert_checksums(frame: &[u8]) {
    let headers = flowlb_core::parse::parse(frame);
    assert_eq!(headers.reason, None, "{headers:?}");
    if headers.fragment_offset != 0 || headers.more_fragments {
        return;
    }
    let number = |bytes: &[u8]| {
        let mut mapped = [0u8; 16];
        if bytes.len() == 4 {
            mapped[10..12].fill(0xff);
        }
        mapped[16 - bytes.len()..].copy_from_slice(bytes);
        Ip::from_be_bytes(mapped)
    };
    let (source, destination) = (number(&headers.source), number(&headers.destination));
    let l4 = &frame[headers.l4_offset..headers.l3_offset + headers.total_len];
    match headers.protocol {
        1 | 58 => assert_eq!(icmp::message_checksum(source, destination, l4), 0),
        protocol => {
            let sum = checksum::pseudo_header(source, destination, protocol, l4.len());
            assert_eq!(checksum::fold(sum + u64::from(checksum::sum(l4))), 0xffff);
        }
    }
}

/// Rule 8, flows, and rule 8.20, translation: both directions translate, addresses come back, checksums are right, the
/// payload is untouched.
#[test]
fn flow_there_and_back_restores_addresses() {
    let families = [(CLIENT, VIP, SERVER), (CLIENT6, VIP6, SERVER6)];
    for (client, vip, server) in families {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let mut path = data_path(16);
            let there = frame((client, 4000), (vip, 80), protocol, b"S", b"ping");
            let (outcome, sent, extra) = process(&mut path, &there, 0);
            assert_eq!(
                (outcome.verdict, outcome.direction),
                (Verdict::Forward, Some(Direction::Forward))
            );
            assert!(extra.is_empty());
            let mut expected = frame((client, 4000), (server, 8031), protocol, b"S", b"ping");
            expected[..6].copy_from_slice(&SERVER_MAC);
            expected[6..12].copy_from_slice(&OUR_MAC);
            assert_eq!(without_ttl(&sent), without_ttl(&expected));
            assert_checksums(&sent);

            let back = frame((server, 8031), (client, 4000), protocol, b"SA", b"pong");
            let (outcome, sent, _) = process(&mut path, &back, 1);
            assert_eq!(
                (outcome.verdict, outcome.direction),
                (Verdict::Forward, Some(Direction::Reply))
            );
            let mut expected = frame((vip, 80), (client, 4000), protocol, b"SA", b"pong");
            expected[..6].copy_from_slice(&CLIENT_MAC);
            expected[6..12].copy_from_slice(&OUR_MAC);
            assert_eq!(without_ttl(&sent), without_ttl(&expected));
            assert_checksums(&sent);
            assert_accounted(&path);
        }
    }
}

/// The TTL and, in IPv4, the header checksum that follows it differ from a packet made afresh.
fn without_ttl(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if frame[12..14] == [8, 0] {
        frame[22] = 0;
        frame[24..26].fill(0);
    } else {
        frame[21] = 0;
    }
    frame
}

/// Rule 22.3, overload: flows that exist go on, others do not begin, unless their clients try again.
#[test]
fn overload_sheds_new_flows_only() {
    let mut path = data_path(8);
    let syn = |port| frame((CLIENT, port), (VIP, 80), Protocol::Tcp, b"S", b"");
    let udp = |port| frame((CLIENT, port), (VIP, 80), Protocol::Udp, b"", b"x");
    let verdict = |path: &mut DataPath, frame: &[u8]| process(path, frame, 0).0.verdict;
    assert_eq!(verdict(&mut path, &syn(1)), Verdict::Forward);
    path.shed_new_flows(true);
    assert_eq!(verdict(&mut path, &syn(1)), Verdict::Forward);
    let back = frame((SERVER, 8031), (CLIENT, 1), Protocol::Tcp, b"SA", b"");
    assert_eq!(verdict(&mut path, &back), Verdict::Forward);
    for new in [syn(2), udp(3)] {
        assert_eq!(verdict(&mut path, &new), Verdict::Drop(Reason::Overload));
        assert_eq!(verdict(&mut path, &new), Verdict::Forward);
    }
    path.shed_new_flows(false);
    assert_eq!(verdict(&mut path, &syn(4)), Verdict::Forward);
    assert_accounted(&path);
}

/// Rule 8.17, full table: unconfirmed first, then half-open, then idle beyond the floor; recently active answered
/// flows stay.
#[test]
fn table_full_evicts_in_order() {
    let mut path = data_path(2);
    let udp = |port| frame((CLIENT, port), (VIP, 80), Protocol::Udp, b"", b"x");
    let answer = |port| frame((SERVER, 8031), (CLIENT, port), Protocol::Udp, b"", b"x");
    let syn = |port| frame((CLIENT, port), (VIP, 80), Protocol::Tcp, b"S", b"");
    let ports = |path: &DataPath, now| {
        path.flows(now)
            .iter()
            .map(|flow| flow.client_port)
            .collect::<Vec<_>>()
    };
    process(&mut path, &udp(1), 0);
    process(&mut path, &syn(2), 1);
    process(&mut path, &udp(3), 2);
    assert_eq!(
        ports(&path, Nanos::new(2)),
        [2, 3],
        "no server had answered the datagram"
    );
    process(&mut path, &answer(3), 2);
    process(&mut path, &udp(1), 2);
    process(&mut path, &answer(1), 2);
    assert_eq!(
        ports(&path, Nanos::new(2)),
        [1, 3],
        "then goes the half-open flow"
    );
    let (outcome, sent, _) = process(&mut path, &udp(4), 3);
    assert_eq!(
        (outcome.verdict, ports(&path, Nanos::new(3))),
        (Verdict::Forward, vec![1, 3]),
        "placed by the hash, without state"
    );
    assert_checksums(&sent);
    let (outcome, ..) = process(&mut path, &syn(5), 4);
    assert_eq!(outcome.verdict, Verdict::Reply(Reason::TableFull));
    process(&mut path, &syn(6), 62 * SECOND);
    assert_eq!(
        ports(&path, Nanos::new(62 * SECOND)),
        [1, 6],
        "the longest idle went, beyond the floor"
    );
    let events = path.counters().events;
    let count = |name: &str| {
        events
            .iter()
            .find(|(event, _)| *event == name)
            .expect("all events are there")
            .1
    };
    let evicted = [
        "flow_evicted_unconfirmed",
        "flow_evicted_half_open",
        "flow_evicted_closing",
        "flow_evicted_idle",
        "flow_stateless",
    ];
    assert_eq!(evicted.map(count), [1, 1, 0, 1, 1]);
}

/// Rule 18.2, servers that leave or fail, rule 15, resetting flows: as many of a server's flows as asked, in order;
/// both ends learn at the next tick, of UDP neither does.
#[test]
fn flows_of_a_server_are_reset_in_order() {
    let mut path = data_path(8);
    for port in [3, 1, 2] {
        process(
            &mut path,
            &frame((CLIENT, port), (VIP, 80), Protocol::Tcp, b"S", b""),
            0,
        );
    }
    process(
        &mut path,
        &frame((CLIENT, 1), (VIP, 80), Protocol::Udp, b"", b"x"),
        0,
    );
    assert_eq!(path.reset_flows(0, 2, Nanos::new(1)), 2);
    let mut extra = Vec::new();
    path.tick(Nanos::new(1), &mut extra);
    assert_eq!(extra.len(), 4, "to the client and to the server, twice");
    for output in &extra {
        assert_checksums(&output.frame);
    }
    assert_eq!(
        [
            path.reset_flows(0, 2, Nanos::new(2)),
            path.reset_flows(1, 2, Nanos::new(2))
        ],
        [1, 1]
    );
    extra.clear();
    path.tick(Nanos::new(2), &mut extra);
    assert_eq!((extra.len(), path.flows(Nanos::new(2)).len()), (2, 0));
    assert_accounted(&path);
}

/// A page of the listing is a slice of the whole, and the total is that of all that fit.
#[test]
fn find_flows_page_is_a_slice() {
    let mut path = data_path(64);
    for port in [9, 4, 7, 1, 3, 8, 2] {
        process(
            &mut path,
            &frame((CLIENT, port), (VIP, 80), Protocol::Udp, b"", b"x"),
            0,
        );
    }
    let page = |offset, limit, servers| {
        let query = FlowQuery {
            client: None,
            servers,
            state: None,
            offset,
            limit,
        };
        let (total, rows) = path.find_flows(&query, Nanos::ZERO);
        let ports: Vec<u16> = rows.iter().map(|row| row.client_port).collect();
        (total, ports)
    };
    assert_eq!(page(2, 3, None), (7, vec![3, 4, 7]));
    assert_eq!(page(6, 9, Some(vec![1])), (7, vec![9]));
    assert_eq!(page(0, 9, Some(vec![0])), (0, vec![]));
    assert_eq!(page(9, 9, None), (7, vec![]));
}

/// Rule 22.1, bounded pauses: flows come and go between two slices of a search; those that are there all the while are
/// listed once each.
#[test]
fn search_in_slices_lists_what_stays_exactly_once() {
    const FLOWS: u16 = 5000;
    let mut path = data_path(u64::from(FLOWS));
    let datagram = |port| frame((CLIENT, port), (VIP, 80), Protocol::Udp, b"", b"x");
    for port in 1..=4500 {
        process(&mut path, &datagram(port), u64::from(port == 4500) * SECOND);
    }
    let query = FlowQuery {
        client: None,
        servers: None,
        state: None,
        offset: 0,
        limit: usize::MAX,
    };
    let mut search = FlowSearch::new(query, Nanos::new(SECOND));
    let mut slices = 1;
    while !path.look(&mut search) {
        slices += 1;
        search.settle();
        // One goes, another comes, in its place or at the end.
        assert_eq!(path.reset_flows(1, 1, Nanos::new(SECOND)), 1);
        process(&mut path, &datagram(5000 + slices), SECOND);
    }
    assert_eq!(slices, 3, "one walk: a slice per 2048 places");
    let (_, mut page) = search.page();
    // And one more before its row is read.
    path.reset_flows(1, 1, Nanos::new(SECOND));
    while !path.read_rows(&mut page) {}
    let ports: Vec<u16> = page.into_rows().iter().map(|row| row.client_port).collect();
    let staying: Vec<u16> = ports.iter().copied().filter(|&port| port <= 4500).collect();
    assert_eq!(staying, (4..=4500).collect::<Vec<u16>>());
}

/// Rule 22.1, bounded pauses: the flows of a server are found by one walk over the table, and reset some at a time, in
/// order; what went meanwhile is left alone.
#[test]
fn reset_in_slices_resets_each_flow_once() {
    let mut path = data_path(100);
    for port in 1..=50 {
        let syn = frame((CLIENT, port), (VIP, 80), Protocol::Tcp, b"S", b"");
        process(&mut path, &syn, 0);
    }
    let mut search = FlowReset::search(Some(0), usize::MAX, Nanos::new(1));
    while !path.look(&mut search) {
        search.settle();
    }
    let mut reset = FlowReset::new(Some(0), search.page().1);
    assert!(!path.reset_some(&mut reset));
    assert_eq!(reset.removed(), 8);
    let mut extra = Vec::new();
    path.tick(Nanos::new(1), &mut extra);
    assert_eq!(
        extra.len(),
        16,
        "what a slice made leaves before the next one"
    );
    assert_eq!(path.reset_flows(0, 4, Nanos::new(1)), 4);
    while !path.reset_some(&mut reset) {}
    assert_eq!((reset.removed(), path.flows(Nanos::new(1)).len()), (46, 0));
    assert_accounted(&path);
}

/// Rule 22.1, bounded pauses: rooms are made some at a time, and a forwarding is swapped to whole; the one before it
/// comes back.
#[test]
fn publication_in_parts_is_one_swap() {
    let mut path = data_path(8);
    let mut larger = snapshot();
    larger.generation = 9;
    larger.servers.resize(1000, None);
    let (before, next_hops) = path.sources();
    let forwarding = Box::new(ForwardingState::new(larger, next_hops));
    let mut parts = 1;
    while !path.make_room(forwarding.snapshot.services.len(), 1000) {
        parts += 1;
        assert_eq!(path.snapshot().generation, before.generation);
    }
    assert!(parts > 1, "room for 1000 servers is made in parts");
    let old = path.swap(forwarding);
    assert_eq!(
        (old.snapshot.generation, path.snapshot().generation),
        (before.generation, 9)
    );
    assert_eq!(path.counters().servers.len(), 1000);
}

/// Rule 22.1, bounded pauses: a tick removes a bounded number of the flows that are due, and says that more are.
#[test]
fn tick_that_leaves_flows_says_that_it_is_behind() {
    let mut path = data_path(100);
    for port in 1..=70 {
        let datagram = frame((CLIENT, port), (VIP, 80), Protocol::Udp, b"", b"x");
        process(&mut path, &datagram, 0);
    }
    let now = 1000 * SECOND;
    let mut tick = || {
        path.tick(Nanos::new(now), &mut Vec::new());
        (
            path.counters().table.entries,
            path.is_behind(Nanos::new(now)),
        )
    };
    assert_eq!([tick(), tick()], [(6, true), (0, false)]);
}

/// Rule 8.12, idle timeouts: each state has its timeout; what is over is gone before the next packet is looked at.
#[test]
fn timeouts_per_state() {
    let mut path = data_path(16);
    process(
        &mut path,
        &frame((CLIENT, 1), (VIP, 80), Protocol::Tcp, b"S", b""),
        0,
    );
    process(
        &mut path,
        &frame((CLIENT, 2), (VIP, 80), Protocol::Udp, b"", b""),
        0,
    );
    let live = |path: &mut DataPath, now| {
        path.tick(now, &mut Vec::new());
        path.counters()
            .servers
            .iter()
            .flatten()
            .map(|traffic| traffic.flows_active)
            .sum::<u64>()
    };
    process(
        &mut path,
        &frame((SERVER, 8031), (CLIENT, 2), Protocol::Udp, b"", b""),
        0,
    );
    assert_eq!(live(&mut path, Nanos::new(30 * SECOND - 1)), 2);
    assert_eq!(live(&mut path, Nanos::new(30 * SECOND)), 1);
    assert_eq!(live(&mut path, Nanos::new(300 * SECOND)), 0);
}

/// Rule 11, next hop: a packet waits for its neighbour, and leaves at the tick after it is known.
#[test]
fn neighbour_unknown_holds_then_releases() {
    let mut path = data_path(16);
    path.set_next_hops(NextHops {
        neighbours: vec![],
        ..next_hops()
    });
    let syn = frame((CLIENT, 1), (VIP, 80), Protocol::Tcp, b"S", b"");
    let (outcome, ..) = process(&mut path, &syn, 0);
    assert_eq!(outcome.verdict, Verdict::Hold(Reason::Neighbour));
    assert!(path.has_unresolved());
    assert_eq!(
        path.take_unresolved(),
        [(InterfaceId::new(0), address(SERVER))]
    );
    assert!(!path.has_unresolved());
    path.set_next_hops(next_hops());
    let mut extra = Vec::new();
    path.tick(Nanos::new(1), &mut extra);
    assert_eq!(extra.len(), 1);
    assert_eq!(extra[0].frame[..12], [SERVER_MAC, OUR_MAC].concat());
    assert_checksums(&extra[0].frame);
    assert_accounted(&path);
}

#[test]
fn nothing_published_drops_not_for_us() {
    let mut path = DataPath::new(1, [0; 16], 0).expect("a small table");
    let syn = frame((CLIENT, 1), (VIP, 80), Protocol::Tcp, b"S", b"");
    assert_eq!(
        process(&mut path, &syn, 0).0.verdict,
        Verdict::Drop(Reason::NotForUs)
    );
}

/// One packet of a conversation, or something close to one.
#[derive(Clone, Debug)]
struct Packet {
    frame: Vec<u8>,
    interface: InterfaceId,
    advance_ns: u64,
    offload: Offload,
}

fn ends() -> impl Strategy<Value = ((&'static str, u16), (&'static str, u16))> {
    let port = prop_oneof![Just(4000u16), Just(4001), Just(0)];
    let other = prop_oneof![Just(80u16), Just(8031), Just(9)];
    let hosts = prop_oneof![
        4 => Just((CLIENT, VIP)), 4 => Just((CLIENT6, VIP6)),
        1 => Just((CLIENT, "198.18.2.7")), 1 => Just((CLIENT6, "2001:3::7")),
        3 => Just((CLIENT, SERVER)), 3 => Just((CLIENT6, SERVER6)),
        1 => Just((CLIENT, "198.18.1.1")), 1 => Just((SERVER, VIP)),
    ];
    (hosts, port, other, any::<bool>()).prop_map(|((one, two), port, other, swap)| {
        if swap {
            ((two, other), (one, port))
        } else {
            ((one, port), (two, other))
        }
    })
}

/// A frame of a flow; or an ICMP error that quotes one; cut into a fragment, mutated, or truncated at times.
fn near_frame() -> impl Strategy<Value = Vec<u8>> {
    let flags = prop::sample::select(vec![&b"S"[..], b"SA", b"A", b"FA", b"R", b"RA"]);
    let mutation = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    let payload = prop_oneof![9 => 0usize..64, 1 => 1400usize..3000];
    let shape = (
        any::<bool>(),
        flags,
        payload,
        proptest::option::weighted(0.2, any::<u16>()),
        any::<bool>(),
    );
    (
        ends(),
        shape,
        proptest::bool::weighted(0.2),
        mutation,
        proptest::option::weighted(0.1, any::<prop::sample::Index>()),
    )
        .prop_map(
            |((from, to), (udp, flags, len, fragment, corrected), error, mutation, cut)| {
                let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
                let mut bytes = frame(from, to, protocol, flags, &vec![7; len]);
                if let Some(word) = fragment.filter(|_| bytes[12..14] == [8, 0]) {
                    bytes[20..22].copy_from_slice(&(word & 0xe00f).to_be_bytes());
                }
                fix_header_checksum(&mut bytes);
                if error {
                    bytes = error_about(&bytes);
                }
                for (at, bits) in mutation {
                    let at = at.index(bytes.len());
                    bytes[at] ^= bits;
                }
                if corrected {
                    fix_header_checksum(&mut bytes);
                }
                if let Some(cut) = cut {
                    bytes.truncate(cut.index(bytes.len()));
                }
                bytes
            },
        )
}

fn fix_header_checksum(frame: &mut [u8]) {
    let len = usize::from(frame[14] & 15) * 4;
    if frame[12..14] == [8, 0] && (20..=frame.len() - 14).contains(&len) {
        frame[24..26].fill(0);
        let sum = checksum::checksum(&frame[14..14 + len]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
}

/// The ICMP error that a router would send about the frame, to its source.
fn error_about(frame: &[u8]) -> Vec<u8> {
    let inner = &frame[14..frame.len().min(200)];
    let ethernet = PacketBuilder::ethernet2(CLIENT_MAC, OUR_MAC);
    let mut error = Vec::new();
    if frame[12..14] == [8, 0] {
        let to = inner[12..16].try_into().expect("four bytes");
        let builder = ethernet
            .ipv4([198, 18, 2, 9], to, 64)
            .icmpv4_raw(3, 4, [0, 0, 5, 0]);
        builder
            .write(&mut error, inner)
            .expect("a vector takes all");
    } else {
        let to = inner[8..24].try_into().expect("sixteen bytes");
        let from = [0x20, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
        let builder = ethernet.ipv6(from, to, 64).icmpv6_raw(2, 0, [0, 0, 5, 0]);
        builder
            .write(&mut error, inner)
            .expect("a vector takes all");
    }
    error
}

fn packet() -> impl Strategy<Value = Packet> {
    let frame =
        prop_oneof![12 => near_frame(), 1 => proptest::collection::vec(any::<u8>(), 0..200)];
    let time = prop_oneof![6 => 0u64..SECOND, 1 => 0u64..400 * SECOND];
    let offload = (
        0u8..2,
        prop_oneof![4 => Just(0u8), 1 => 0u8..6],
        any::<u16>(),
        prop_oneof![Just(34u16), Just(54)],
        prop_oneof![Just(16u16), Just(6)],
    );
    let offload =
        offload.prop_map(
            |(flags, gso_type, gso_size, csum_start, csum_offset)| Offload {
                flags,
                gso_type,
                hdr_len: 54,
                gso_size,
                csum_start,
                csum_offset,
            },
        );
    let offload = prop_oneof![4 => Just(Offload::default()), 1 => offload];
    (
        frame,
        prop_oneof![8 => Just(0u32), 1 => 0u32..4],
        time,
        offload,
    )
        .prop_map(|(frame, interface, advance_ns, offload)| Packet {
            frame,
            interface: InterfaceId::new(interface),
            advance_ns,
            offload,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Bad input is a verdict, never a panic; and whatever comes, every packet is accounted for.
    #[test]
    fn any_sequence_is_accounted_for(packets in proptest::collection::vec(packet(), 1..60), capacity in 1u64..8) {
        let mut path = data_path(capacity);
        let mut now = 0;
        let mut sent_frames = 0u64;
        for packet in packets {
            now += packet.advance_ns;
            let mut bytes = packet.frame.clone();
            let mut extra = Vec::new();
            let outcome = path.process(&mut bytes, packet.interface, Nanos::new(now), packet.offload, &mut extra);
            prop_assert_eq!(outcome.service.is_some(), outcome.direction.is_some());
            prop_assert!(outcome.sent.is_none() || outcome.verdict == Verdict::Forward);
            prop_assert!(outcome.sent.is_none_or(|sent| sent.len <= bytes.len() && sent.interface.get() < 2));
            sent_frames += extra.len() as u64 + u64::from(outcome.sent.is_some());
            extra.clear();
            path.tick(Nanos::new(now), &mut extra);
            sent_frames += extra.len() as u64;
            path.take_unresolved();
            assert_accounted(&path);
        }
        prop_assert_eq!(path.counters().tx_packets, sent_frames);
    }

    /// A batch gives what its frames give one by one: outcomes, frames in order, counters and flows.
    #[test]
    fn batch_any_frames_equals_one_by_one(
        batches in proptest::collection::vec(proptest::collection::vec(packet(), 1..100), 1..4),
        capacity in 1u64..8,
    ) {
        let (mut single, mut batched) = (data_path(capacity), data_path(capacity));
        let mut now = 0;
        for packets in batches {
            now += packets[0].advance_ns;
            let mut expected = Taken::default();
            let mut one_by_one: Vec<_> = packets.iter().map(|packet| packet.frame.clone()).collect();
            for (index, (bytes, packet)) in one_by_one.iter_mut().zip(&packets).enumerate() {
                let (interface, moment) = (InterfaceId::new(0), Nanos::new(now));
                let outcome = single.process(bytes, interface, moment, packet.offload, &mut expected.extra);
                expected.done(index, &outcome);
            }
            let mut taken = Taken::default();
            let mut together: Vec<_> = packets.iter().map(|packet| packet.frame.clone()).collect();
            let mut frames: Vec<_> = together
                .iter_mut()
                .zip(&packets)
                .map(|(bytes, packet)| Frame { bytes, offload: packet.offload })
                .collect();
            batched.process_batch(&mut frames, InterfaceId::new(0), Nanos::new(now), &mut taken);
            prop_assert_eq!(taken, expected);
            prop_assert_eq!(together, one_by_one);
        }
        prop_assert_eq!(format!("{:?}", batched.counters()), format!("{:?}", single.counters()));
        prop_assert_eq!(batched.flows(Nanos::new(now)), single.flows(Nanos::new(now)));
    }

    /// Rule 8.20, translation: whatever was right when it came is right when it leaves.
    #[test]
    fn forwarded_packets_have_right_checksums(
        packets in proptest::collection::vec((ends(), any::<bool>(), 0usize..3000), 1..40),
    ) {
        let mut path = data_path(64);
        for (now, ((from, to), udp, len)) in packets.into_iter().enumerate() {
            let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
            let bytes = frame(from, to, protocol, if len % 2 == 0 { b"S" } else { b"A" }, &vec![now as u8; len]);
            let (_, sent, extra) = process(&mut path, &bytes, now as u64);
            for frame in extra.iter().map(|output| &output.frame).chain(Some(&sent).filter(|sent| !sent.is_empty())) {
                assert_checksums(frame);
            }
        }
    }
}
