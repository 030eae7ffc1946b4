//! What the benches work on: a balancer between two interfaces, and clients that send 60-byte frames to its VIP,
//! over UDP or TCP.
//!
//! Nothing random is drawn while the clock runs, and nothing differs from run to run: seeds and keys are fixed.

use std::fs::OpenOptions;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::OpenOptionsExt;

use flowlb_core::base::{Frame, InterfaceId, Nanos, Offload, Outcome, Output, Verdict};
use flowlb_core::datapath::{DataPath, Sink};
use flowlb_core::flow::table::{Table, TableError};
use flowlb_core::snapshot::{
    Interface, Neighbour, NextHops, Plan, Protocol, Refusal, Route, Selector, Server, Service,
    Settings, Snapshot, Timeouts,
};
use flowlb_core::wire::checksum;

pub const FRAME_LEN: usize = 60;
pub const HASH_KEY: [u8; 16] = [7; 16];
pub const VIP: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 100);
pub const VIP_PORT: u16 = 53;
/// One packet each microsecond: the rate a worker is to reach, so flows move within their lists as often as they do
/// in service.
pub const PACKET_NS: u64 = 1000;

/// What a packet of a flow that stands has set.
pub const ACK: u8 = 0x10;

const SYN: u8 = 0x02;
const SECOND: u64 = 1_000_000_000;
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x21];
const SERVERS: u32 = 3;
const SERVER_PORT: u16 = 5353;

const fn our_mac(id: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, id]
}

/// The address of a server: 10.128.0.0/9, but its first.
pub fn server_address(id: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a80_0001 + id)
}

/// Where the client of a flow sits: 16 flows for each address, from 20.0.0.0 on.
pub fn client(flow: u32) -> (Ipv4Addr, u16) {
    (
        Ipv4Addr::from_bits(0x1400_0000 + (flow >> 4)),
        1024 + (flow & 0xf) as u16,
    )
}

fn interface(id: u8, address: Ipv4Addr) -> Interface {
    Interface {
        name: format!("eth{id}"),
        mac: our_mac(id),
        mtu: 1500,
        addresses: vec![(IpAddr::V4(address), 24)],
        announce: false,
    }
}

/// One service whose plan has a slot for each of `servers` servers.
pub fn snapshot(selector: Selector, servers: u32, protocol: Protocol) -> Snapshot {
    let server = |id: u32| Server {
        name: format!("server{id}"),
        service: 0,
        endpoint: id,
        address: IpAddr::V4(server_address(id)),
        port: SERVER_PORT,
        weight: 1,
        mac: None,
        moves_udp: false,
    };
    let plan = Plan {
        selector,
        slots: (0..servers).collect(),
        scores: Vec::new(),
        fallback: None,
        deadline_ns: 0,
    };
    Snapshot {
        generation: 1,
        seed: 1,
        interfaces: vec![
            interface(0, Ipv4Addr::new(198, 18, 1, 1)),
            interface(1, Ipv4Addr::new(198, 18, 2, 1)),
        ],
        services: vec![Some(Service {
            name: "dns".into(),
            address: IpAddr::V4(VIP),
            port: VIP_PORT,
            protocol,
            plan,
            on_no_server: Refusal::Reset,
            on_no_flow: Refusal::Drop,
            new_flow_limit: None,
        })],
        servers: (0..servers).map(|id| Some(server(id))).collect(),
        settings: Settings {
            icmp_rate: 1000,
            ..Settings::default()
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

/// Routes to the clients and the servers, and the servers' neighbours.
pub fn next_hops(servers: u32) -> NextHops {
    let route = |prefix: [u8; 4], prefix_len, interface| Route {
        prefix: prefix.into(),
        prefix_len,
        interface: InterfaceId::new(interface),
        gateway: None,
        mtu: None,
    };
    let neighbour = |id: u32| Neighbour {
        interface: InterfaceId::new(1),
        address: IpAddr::V4(server_address(id)),
        mac: [2, 0, 2, (id >> 16) as u8, (id >> 8) as u8, id as u8],
    };
    NextHops {
        routes: vec![route([20, 0, 0, 0], 8, 0), route([10, 128, 0, 0], 9, 1)],
        neighbours: (0..servers).map(neighbour).collect(),
    }
}

/// Bytes of IP header, L4 header and data, the checksums in place (that of L4 is as good as any: it is updated,
/// never verified).
fn frame(
    macs: [[u8; 6]; 2],
    ends: [(Ipv4Addr, u16); 2],
    protocol: Protocol,
    flags: u8,
) -> [u8; FRAME_LEN] {
    let mut frame = [0; FRAME_LEN];
    frame[..6].copy_from_slice(&macs[1]);
    frame[6..12].copy_from_slice(&macs[0]);
    frame[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, protocol as u8]);
    for (at, (address, port)) in ends.into_iter().enumerate() {
        frame[26 + 4 * at..30 + 4 * at].copy_from_slice(&address.octets());
        frame[34 + 2 * at..36 + 2 * at].copy_from_slice(&port.to_be_bytes());
    }
    match protocol {
        Protocol::Udp => frame[38..42].copy_from_slice(&[0, 26, 0x12, 0x34]),
        Protocol::Tcp => write_tcp(&mut frame, flags),
    }
    let sum = checksum::checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The rest of a TCP header, with 6 bytes behind it: both sides begin at 0, so what is neither SYN nor answer to
/// one has 1 and 1, and the largest window.
fn write_tcp(frame: &mut [u8; FRAME_LEN], flags: u8) {
    let sequence = u32::from(flags & SYN == 0);
    let acknowledgement = u32::from(flags & ACK != 0);
    frame[38..42].copy_from_slice(&sequence.to_be_bytes());
    frame[42..46].copy_from_slice(&acknowledgement.to_be_bytes());
    frame[46..52].copy_from_slice(&[0x50, flags, 0xff, 0xff, 0x12, 0x34]);
    if flags & SYN != 0 {
        // Without data: padding behind the packet's end.
        frame[17] = 40;
    }
}

/// A packet of a flow, from its client. `flags` are those of TCP.
pub fn request(flow: u32, protocol: Protocol, flags: u8) -> [u8; FRAME_LEN] {
    let ends = [client(flow), (VIP, VIP_PORT)];
    frame([CLIENT_MAC, our_mac(0)], ends, protocol, flags)
}

/// The answer to it. Flows were made in order, so the `counter` selector gave them the servers in turn.
pub fn response(flow: u32, protocol: Protocol, flags: u8) -> [u8; FRAME_LEN] {
    let id = flow % SERVERS;
    let mac = [2, 0, 2, 0, 0, id as u8];
    let ends = [(server_address(id), SERVER_PORT), client(flow)];
    frame([mac, our_mac(1)], ends, protocol, flags)
}

/// A data path, its clock, and the numbers of random flows.
pub struct Scene {
    pub path: DataPath,
    pub now: u64,
    taken: Taken,
    random: u64,
    flows: u32,
}

impl Scene {
    /// Make one with room for `capacity` flows and none in it.
    pub fn empty(capacity: u32, protocol: Protocol) -> Self {
        let mut path = path_with_memory(u64::from(capacity)).expect("the table finds room");
        path.publish(snapshot(Selector::Counter, SERVERS, protocol));
        path.set_next_hops(next_hops(SERVERS));
        Self {
            path,
            now: SECOND,
            taken: Taken::default(),
            random: 1,
            flows: capacity,
        }
    }

    /// Make one with `flows` flows, each of them answered and, of TCP, established, in a table of that capacity.
    pub fn full(flows: u32, protocol: Protocol) -> Self {
        let mut scene = Self::empty(flows, protocol);
        for flow in 0..flows {
            let opening = [
                (request(flow, protocol, SYN), 0),
                (response(flow, protocol, SYN | ACK), 1),
                (request(flow, protocol, ACK), 0),
            ];
            for (mut frame, interface) in opening {
                let outcome = scene.process(&mut frame, interface);
                assert_eq!(outcome.verdict, Verdict::Forward);
            }
        }
        scene
    }

    /// A random flow's number.
    pub fn draw(&mut self) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (((self.random >> 32) * u64::from(self.flows)) >> 32) as u32
    }

    /// Process one frame, a packet's time after the last.
    #[inline]
    pub fn process(&mut self, frame: &mut [u8], interface: u32) -> Outcome {
        self.now += PACKET_NS;
        self.path.process(
            frame,
            InterfaceId::new(interface),
            Nanos::new(self.now),
            Offload::default(),
            &mut self.taken.extra,
        )
    }

    /// Process a batch, its packets' time after the last. Returns how many were forwarded.
    #[inline]
    pub fn process_batch(&mut self, frames: &mut [Frame<'_>], interface: u32) -> usize {
        self.now += PACKET_NS * frames.len() as u64;
        self.taken.forwarded = 0;
        self.path.process_batch(
            frames,
            InterfaceId::new(interface),
            Nanos::new(self.now),
            &mut self.taken,
        );
        self.taken.forwarded
    }
}

/// Make a data path whose flow table is where `FLOWLB_TABLE` says: in the process's own memory (unset), in a map of
/// the kernel's (`map`), or in a file without a name in a directory (its path: of a tmpfs).
fn path_with_memory(capacity: u64) -> Result<DataPath, TableError> {
    let Some(place) = std::env::var_os("FLOWLB_TABLE") else {
        return DataPath::new(capacity, HASH_KEY, 1);
    };
    let file = if place == "map" {
        Table::create_map(capacity)?
    } else {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .open(place)
            .expect("FLOWLB_TABLE is `map` or a directory in a tmpfs")
    };
    DataPath::in_file(capacity, HASH_KEY, 1, &file)
}

/// What came of a batch.
#[derive(Default)]
struct Taken {
    extra: Vec<Output>,
    forwarded: usize,
}

impl Sink for Taken {
    fn extra(&mut self) -> &mut Vec<Output> {
        &mut self.extra
    }

    fn done(&mut self, _index: usize, outcome: &Outcome) {
        self.forwarded += usize::from(outcome.sent.is_some());
    }
}
