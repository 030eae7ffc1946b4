//! Datagram sockets stand for packet sockets: they keep messages apart and need no privilege.

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use super::super::packet_loop::COMMANDS_NS;
use super::super::vnet_hdr::{OFFLOAD_HEADER_LEN, encode};
use super::*;
use crate::base::{InterfaceId, Nanos, Offload};
use crate::io::{IoCounters, Poll};
use crate::snapshot::{
    Interface, NextHops, Plan, Protocol, Refusal, Selector, Server, Service, Settings, Snapshot,
    Timeouts,
};
use libc::pollfd;
use std::fs::File;
use std::hint;
use std::os::fd::AsRawFd;

const DEADLINE: Duration = Duration::from_secs(5);
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x21];
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x31];
const VIP: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 100);
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 21);
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 31);

fn our_mac(id: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, id]
}

fn snapshot() -> Snapshot {
    const SECOND: u64 = 1_000_000_000;
    let interface = |id: u8| Interface {
        name: format!("eth{id}"),
        mac: our_mac(id),
        mtu: 1500,
        addresses: Vec::new(),
        announce: false,
    };
    let plan = Plan {
        selector: Selector::Counter,
        slots: vec![0],
        scores: Vec::new(),
        fallback: None,
        deadline_ns: 0,
    };
    Snapshot {
        generation: 1,
        seed: 1,
        interfaces: vec![interface(0), interface(1)],
        services: vec![Some(Service {
            name: "echo".into(),
            address: IpAddr::V4(VIP),
            port: 53,
            protocol: Protocol::Udp,
            plan,
            on_no_server: Refusal::Reset,
            on_no_flow: Refusal::Drop,
            new_flow_limit: None,
        })],
        servers: vec![Some(Server {
            name: "server1".into(),
            service: 0,
            endpoint: 0,
            address: IpAddr::V4(SERVER),
            port: 5353,
            weight: 1,
            mac: Some(SERVER_MAC),
            moves_udp: false,
        })],
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

/// A UDP datagram from the client to the VIP that comes in by interface 1.
fn request() -> Vec<u8> {
    let mut frame = [
        &our_mac(1)[..],
        &CLIENT_MAC,
        &[8, 0, 0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0],
    ]
    .concat();
    frame.extend(CLIENT.octets());
    frame.extend(VIP.octets());
    let sum: u32 = frame[14..34]
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    frame.extend([0x9c, 0x40, 0, 53, 0, 12, 0, 0, b'p', b'i', b'n', b'g']);
    frame
}

/// A loop over two sockets, our ends of them, and the eventfd it tells its news.
struct Scene {
    worker: Worker,
    wires: [UnixDatagram; 2],
    news: File,
    counters: Arc<IoCounters>,
    _ports: [UnixDatagram; 2],
}

fn options(news: &File, counters: &Arc<IoCounters>) -> LoopOptions {
    LoopOptions {
        notify_fd: news.as_raw_fd(),
        poll: Poll::default(),
        counters: Arc::clone(counters),
    }
}

fn start() -> Scene {
    let (port0, wire0) = UnixDatagram::pair().unwrap();
    let (port1, wire1) = UnixDatagram::pair().unwrap();
    let wires = [wire0, wire1];
    for wire in &wires {
        wire.set_read_timeout(Some(DEADLINE)).unwrap();
    }
    let mut datapath = Box::new(DataPath::new(16, [7; 16], 1).unwrap());
    datapath.publish(snapshot());
    let news = process::eventfd().unwrap();
    let counters = Arc::new(IoCounters::default());
    let interfaces = [&port0, &port1].map(|port| crate::io::Interface::new(port.as_raw_fd()));
    let worker =
        Worker::start(datapath, interfaces.into(), options(&news, &counters)).map_err(|(_, e)| e);
    Scene {
        worker: worker.unwrap(),
        wires,
        news,
        counters,
        _ports: [port0, port1],
    }
}

fn send(wire: &UnixDatagram, frame: &[u8]) {
    wire.send(&[&encode(Offload::default())[..], frame].concat())
        .unwrap();
}

fn receive(wire: &UnixDatagram) -> Vec<u8> {
    let mut space = [0; 2000];
    let len = wire.recv(&mut space).unwrap();
    space[OFFLOAD_HEADER_LEN..len].to_vec()
}

fn wait_for_news(news: &File) -> bool {
    let mut fds = [pollfd {
        fd: news.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    }];
    process::poll(&mut fds, 5000).unwrap() == 1
}

#[test]
fn loop_frame_to_service_leaves_translated_by_the_servers_interface() {
    let scene = start();
    send(&scene.wires[1], &request());
    let frame = receive(&scene.wires[0]);
    assert_eq!(frame[..6], SERVER_MAC);
    assert_eq!(frame[6..12], our_mac(0));
    assert_eq!(frame[30..34], SERVER.octets());
    assert_eq!(frame[36..38], 5353u16.to_be_bytes());
    assert_eq!(&frame[42..], b"ping");
    let (datapath, ended) = scene.worker.stop().unwrap();
    assert_eq!(ended, Ok(()));
    assert_eq!(datapath.counters().tx_packets, 1);
    assert_eq!(scene.counters.report(), crate::io::IoReport::default());
}

#[test]
fn loop_call_is_carried_out_between_batches() {
    let scene = start();
    send(&scene.wires[1], &request());
    receive(&scene.wires[0]);
    assert_eq!(
        scene
            .worker
            .call(|datapath| datapath.flows(Nanos::new(process::monotonic_ns())).len()),
        Ok(1)
    );
}

/// Rule 22.1, bounded pauses: commands that are queued behind a long one wait for another look at the sockets.
#[test]
fn loop_commands_leave_room_for_frames_between_them() {
    let scene = start();
    let (go, wait) = mpsc::channel::<()>();
    let (begun, has_begun) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            scene.worker.call(move |_| {
                begun.send(()).unwrap();
                wait.recv().unwrap();
                let until = process::monotonic_ns() + COMMANDS_NS;
                while process::monotonic_ns() < until {
                    hint::spin_loop();
                }
            })
        });
        has_begun.recv_timeout(DEADLINE).unwrap();
        let second = scope.spawn(|| scene.worker.call(|datapath| datapath.counters().rx_packets));
        let deadline = process::monotonic_ns() + DEADLINE.as_nanos() as u64;
        while scene.worker.shared.queue().commands.is_empty() {
            assert!(process::monotonic_ns() < deadline);
        }
        send(&scene.wires[1], &request());
        go.send(()).unwrap();
        assert_eq!(second.join().unwrap(), Ok(1));
    });
    let control = scene.counters.loop_report().control;
    assert!(control.max_ns >= COMMANDS_NS);
}

#[test]
fn loop_unresolved_hop_is_told_and_its_packet_leaves_once_it_is_known() {
    let scene = start();
    let route = crate::snapshot::Route {
        prefix: IpAddr::V4(Ipv4Addr::new(198, 18, 1, 0)),
        prefix_len: 24,
        interface: InterfaceId::new(0),
        gateway: None,
        mtu: None,
    };
    let neighbour = crate::snapshot::Neighbour {
        interface: InterfaceId::new(0),
        address: IpAddr::V4(SERVER),
        mac: SERVER_MAC,
    };
    let hops = NextHops {
        routes: vec![route.clone()],
        neighbours: Vec::new(),
    };
    let mut without_mac = snapshot();
    without_mac.servers[0].as_mut().unwrap().mac = None;
    scene
        .worker
        .call(move |datapath| (datapath.publish(without_mac), datapath.set_next_hops(hops)))
        .unwrap();
    send(&scene.wires[1], &request());
    assert!(wait_for_news(&scene.news));
    let unresolved = scene.worker.call(DataPath::take_unresolved).unwrap();
    assert_eq!(unresolved, [(InterfaceId::new(0), IpAddr::V4(SERVER))]);
    let hops = NextHops {
        routes: vec![route],
        neighbours: vec![neighbour],
    };
    scene
        .worker
        .call(move |datapath| datapath.set_next_hops(hops))
        .unwrap();
    assert_eq!(receive(&scene.wires[0])[..6], SERVER_MAC);
}

#[test]
fn loop_call_from_its_own_thread_is_refused() {
    let scene = start();
    let worker = Arc::new(scene.worker);
    let inner = Arc::clone(&worker);
    assert_eq!(
        worker.call(move |_| inner.call(|_| ())),
        Ok(Err(LoopError::Reentrant))
    );
}

#[test]
fn loop_call_that_panics_fails_the_loop_and_tells() {
    let scene = start();
    let answer: Result<(), _> = scene.worker.call(|_| panic!("on purpose"));
    let failure = LoopError::Failed("on purpose".into());
    assert_eq!(answer, Err(failure.clone()));
    assert!(wait_for_news(&scene.news));
    assert_eq!(scene.worker.call(|_| ()), Err(failure.clone()));
    assert_eq!(scene.worker.stop().unwrap().1, Err(failure));
}

#[test]
fn loop_over_a_file_that_is_no_socket_fails_and_tells() {
    let (mut datapath, news) = (
        Box::new(DataPath::new(16, [7; 16], 1).unwrap()),
        process::eventfd().unwrap(),
    );
    datapath.publish(snapshot());
    let file = File::open("/dev/null").unwrap();
    let worker = Worker::start(
        datapath,
        vec![crate::io::Interface::new(file.as_raw_fd())],
        options(&news, &Arc::default()),
    )
    .map_err(|(_, e)| e);
    assert!(wait_for_news(&news));
    assert!(matches!(
        worker.unwrap().stop().unwrap().1,
        Err(LoopError::Failed(_))
    ));
}

#[test]
fn loop_stopped_twice_gives_the_data_path_once() {
    let scene = start();
    assert!(scene.worker.stop().is_some());
    assert!(scene.worker.stop().is_none());
    assert_eq!(scene.worker.call(|_| ()), Err(LoopError::Stopped));
}
