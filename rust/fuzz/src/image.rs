//! A flow table that another process left, damaged: whatever is read of it, no flow is given to a server it was not
//! with, and what is taken over is whole.
//!
//! The table is a true one: a data path made it. Its clients have the same addresses and neighbouring ports with
//! several services and servers, so that a damaged key easily is that of another flow.

use std::collections::HashMap;
use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use flowlb_core::base::{InterfaceId, Nanos, Offload};
use flowlb_core::datapath::{DataPath, FlowInfo};
use flowlb_core::flow::table::Translation;
use flowlb_core::snapshot::{NextHops, Protocol, Snapshot};

use super::frames::{self, ACK, SYN};
use super::input::Input;
use super::scene::{self, Change, OURS, SECOND, SERVICE_COUNT};

const CAPACITY: u64 = 64;
const NOW: u64 = 20 * SECOND;
/// A line of the table, in which its parts are laid out.
const LINE: usize = 64;
const FAMILY_CLIENTS: usize = 2;
const PORTS: u16 = 4;

/// Client, port and service.
type Key = (IpAddr, u16, u32);

/// What was left: the bytes, which server each flow was with, and the snapshot that the ids are of.
struct Left {
    bytes: Vec<u8>,
    servers: HashMap<Key, u32>,
    snapshot: Arc<Snapshot>,
    next_hops: NextHops,
}

/// A file without a name, in memory where that is possible.
fn scratch() -> File {
    let number = std::thread::current().id();
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() {
        memory.to_path_buf()
    } else {
        std::env::temp_dir()
    };
    let path = folder.join(format!("flowlb-fuzz-{}-{number:?}", std::process::id()));
    let mut options = File::options();
    let file = options
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .expect("a temporary file");
    std::fs::remove_file(path).expect("it was made just now");
    file
}

fn key(flow: &FlowInfo) -> Key {
    (flow.client, flow.client_port, flow.service)
}

impl Left {
    fn new() -> Self {
        let file = scratch();
        let mut path = DataPath::in_file(CAPACITY, [5; 16], 1, &file).expect("a small table");
        let next_hops = scene::next_hops(0);
        path.set_next_hops(next_hops.clone());
        let snapshot = Arc::new(scene::snapshot(1, Change(0)));
        path.publish(Arc::clone(&snapshot));
        for service in 0..SERVICE_COUNT {
            for client in 0..FAMILY_CLIENTS {
                for port in 0..PORTS {
                    open(
                        &mut path,
                        service,
                        client,
                        4000 + port,
                        SECOND * (1 + u64::from(port)),
                    );
                }
            }
        }
        let flows = path.flows(Nanos::new(NOW));
        let servers: HashMap<Key, u32> =
            flows.iter().map(|flow| (key(flow), flow.server)).collect();
        assert!(
            servers.len() as u64 > CAPACITY / 2,
            "the table is well filled"
        );
        let mut bytes = vec![0; file.metadata().expect("it is open").len() as usize];
        file.read_exact_at(&mut bytes, 0).expect("it is as long");
        Self {
            bytes,
            servers,
            snapshot,
            next_hops,
        }
    }
}

/// A flow of a client with a service, answered when its port is even.
fn open(path: &mut DataPath, service: usize, client: usize, port: u16, now: u64) {
    let (family, service_port, protocol) = scene::listener(service);
    let client_address = scene::client(family, client);
    let (interface, mac) = scene::client_at(client);
    let there = (client_address, scene::vip(family), (port, service_port));
    send(path, mac, there, protocol, SYN, (interface, now));
    let known = path
        .peek(service as u32, client_address, port, Nanos::new(now))
        .0;
    if let Some(flow) = known.filter(|_| port % 2 == 0) {
        let (server, server_port) =
            scene::server_socket(flow.server as usize).expect("it is one of the scene");
        let back = (server, client_address, (server_port, port));
        send(
            path,
            mac,
            back,
            protocol,
            SYN | ACK,
            (InterfaceId::new(0), now),
        );
    }
}

fn send(
    path: &mut DataPath,
    mac: [u8; 6],
    (from, to, ports): (IpAddr, IpAddr, (u16, u16)),
    protocol: Protocol,
    flags: u8,
    (interface, now): (InterfaceId, u64),
) {
    let mut l4 = match protocol {
        Protocol::Tcp => frames::tcp(ports, flags, (1000, 1001), 0),
        Protocol::Udp => frames::udp(ports, 10),
    };
    frames::sign(from, to, protocol as u8, &mut l4);
    let packet = frames::ip(from, to, protocol as u8, &l4, None);
    let mut frame = frames::ether(mac, OURS[0], &packet);
    path.process(
        &mut frame,
        interface,
        Nanos::new(now),
        Offload::default(),
        &mut Vec::new(),
    );
}

/// One change after the other: bytes, whole fields, lines that take each other's place, a file cut short.
fn damage(bytes: &mut Vec<u8>, input: &mut Input<'_>) {
    while !input.is_empty() && !bytes.is_empty() {
        let kind = input.u8() % 8;
        let at = usize::from(input.u16()) % bytes.len();
        match kind {
            0..=2 => bytes[at] ^= input.u8(),
            3 => bytes[at] ^= 1 << input.below(8),
            4 => write(
                bytes,
                at / 4 * 4,
                &input
                    .one_of(&[0, 1, 2, u32::MAX, u32::MAX - 1, 1 << 31])
                    .to_ne_bytes(),
            ),
            5 => write(bytes, at / 8 * 8, &input.u64().to_ne_bytes()),
            6 => {
                let from = usize::from(input.u16()) % bytes.len() / LINE * LINE;
                let line: Vec<u8> = bytes[from..(from + LINE).min(bytes.len())].to_vec();
                write(bytes, at / LINE * LINE, &line);
            }
            _ if input.u8() % 16 == 0 => bytes.truncate(at),
            _ => {}
        }
    }
}

fn write(bytes: &mut [u8], at: usize, what: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + what.len()) {
        place.copy_from_slice(what);
    }
}

fn translate(snapshot: &Snapshot, id: u32) -> Option<Translation> {
    let server = snapshot.servers.get(id as usize)?.as_ref()?;
    let service = snapshot.services.get(server.service as usize)?.as_ref()?;
    Some(Translation {
        then: (server.service, server.endpoint),
        is_udp: service.protocol == Protocol::Udp,
        today: (server.service, id, server.endpoint),
    })
}

/// Take over a damaged table.
pub fn damaged(data: &[u8]) {
    thread_local! {
        static LEFT: Left = Left::new();
        static FILE: File = scratch();
    }
    LEFT.with(|left| {
        let mut bytes = left.bytes.clone();
        damage(&mut bytes, &mut Input::new(data));
        FILE.with(|file| {
            file.write_all_at(&bytes, 0)
                .expect("there is room for 10 KiB");
            file.set_len(bytes.len() as u64)
                .expect("it is open for writing");
            take_over(left, file);
        });
    });
}

fn take_over(left: &Left, file: &File) {
    let mut path = DataPath::new(CAPACITY, [9; 16], 2).expect("a small table");
    path.set_next_hops(left.next_hops.clone());
    path.publish(Arc::clone(&left.snapshot));
    let interface = |id: InterfaceId| (id.get() < 2).then_some(id);
    let translate = |id| translate(&left.snapshot, id);
    let Ok(kept) = path.keep_flows(file, translate, interface, Nanos::new(NOW)) else {
        assert_eq!(path.counters().table.entries, 0, "nothing was taken over");
        return;
    };
    let report = path.counters();
    assert_eq!(report.table.entries, kept.flows);
    for flow in path.flows(Nanos::new(NOW)) {
        let was = left.servers.get(&key(&flow));
        assert_eq!(was, Some(&flow.server), "{flow:?} was with another server");
    }
    live_on(&mut path);
}

/// Packets of all flows pass, then each flow ends: none is left in the lists or in the index.
fn live_on(path: &mut DataPath) {
    for service in 0..SERVICE_COUNT {
        open(path, service, 0, 4000, NOW);
    }
    let end = Nanos::new(100_000 * SECOND);
    while path.is_behind(end) {
        path.tick(end, &mut Vec::new());
    }
    let report = path.counters();
    assert_eq!(report.table.entries, 0, "each was in a list");
    assert!(
        report
            .servers
            .iter()
            .flatten()
            .all(|traffic| traffic.flows_active == 0)
    );
}
