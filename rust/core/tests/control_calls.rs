//! A packet loop with traffic, and threads of the control side that publish, read counters, list and reset flows all
//! the while, as the bindings do it: no datagram is lost, and all are counted. `make sanitize` runs it with
//! `ThreadSanitizer`: then it also shows that no two threads touch the same memory without order.
//!
//! Datagram sockets stand for packet sockets: they keep messages apart and need no privilege.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use flowlb_core::base::{Nanos, Offload};
use flowlb_core::datapath::{DataPath, FlowQuery, FlowReset, FlowSearch};
use flowlb_core::flow::exports::FlowExports;
use flowlb_core::forwarding::ForwardingState;
use flowlb_core::io::vnet_hdr::{OFFLOAD_HEADER_LEN, encode};
use flowlb_core::io::{Interface, IoCounters, LoopError, LoopOptions, Poll, Worker};
use flowlb_core::snapshot::{NextHops, Snapshot};
use flowlb_core::sys::process;

#[allow(dead_code, reason = "it is of the fuzz targets, too")]
#[path = "../../fuzz/src/frames.rs"]
mod frames;
#[allow(dead_code, reason = "it is of the fuzz targets, too")]
#[path = "../../fuzz/src/scene.rs"]
mod scene;

use scene::Change;

const DEADLINE: Duration = Duration::from_secs(20);
const REQUESTS: u16 = 2000;
const CAPACITY: u64 = 256;
/// The service of UDP, of which each publication has a server.
const DNS: usize = 1;
const SERVERS: u32 = 20;

/// A loop over two interfaces, and our ends of them.
struct Running {
    worker: Worker,
    counters: Arc<IoCounters>,
    wires: [UnixDatagram; 2],
    _ports: [UnixDatagram; 2],
    _news: std::fs::File,
}

fn start() -> Running {
    let mut path = Box::new(DataPath::new(CAPACITY, [7; 16], 1).expect("a small table"));
    path.set_next_hops(scene::next_hops(0));
    path.publish(scene::snapshot(1, Change(0)));
    drop(path.keep_flow_exports(64, FlowExports::room(CAPACITY as usize)));
    let [first, second] = [0, 1].map(|_| UnixDatagram::pair().expect("two sockets"));
    let news = process::eventfd().expect("an eventfd");
    let counters = Arc::new(IoCounters::default());
    let interfaces = [&first.0, &second.0].map(|port| Interface::new(port.as_raw_fd()));
    let options = LoopOptions {
        notify_fd: news.as_raw_fd(),
        poll: Poll::default(),
        counters: Arc::clone(&counters),
    };
    let worker = Worker::start(path, interfaces.into(), options).map_err(|(_, error)| error);
    Running {
        worker: worker.expect("a thread"),
        counters,
        wires: [first.1, second.1],
        _ports: [first.0, second.0],
        _news: news,
    }
}

/// A datagram of a client to the service.
fn request(port: u16) -> Vec<u8> {
    let (client, vip) = (scene::client(0, 0), scene::vip(0));
    let mut l4 = frames::udp((port, 53), 20);
    frames::sign(client, vip, frames::UDP, &mut l4);
    let packet = frames::ip(client, vip, frames::UDP, &l4, None);
    let frame = frames::ether(scene::client_at(0).1, scene::OURS[0], &packet);
    [&encode(Offload::default())[..], &frame].concat()
}

/// Send requests, each once the one before it has come out.
fn send_all(wire: &UnixDatagram) {
    wire.set_read_timeout(Some(DEADLINE)).expect("a socket");
    for number in 0..REQUESTS {
        let port = 1024 + number % 300;
        wire.send(&request(port)).expect("the loop reads");
        let mut space = [0; 2000];
        let len = wire.recv(&mut space).expect("it is forwarded");
        let sent = &space[OFFLOAD_HEADER_LEN..len];
        assert_eq!(sent[34..36], port.to_be_bytes(), "it is this one");
    }
}

/// Compile on this thread, and swap between two batches.
fn publish(
    worker: &Worker,
    change: impl FnOnce(Arc<Snapshot>, Arc<NextHops>) -> ForwardingState,
) -> Result<(), LoopError> {
    let (snapshot, next_hops) = worker.call(|path| path.sources())?;
    let mut forwarding = Box::new(change(snapshot, next_hops));
    let (services, servers) = (
        forwarding.snapshot.services.len(),
        forwarding.snapshot.servers.len(),
    );
    while !worker.call(move |path| path.make_room(services, servers))? {}
    let mut is_ready = false;
    while !is_ready {
        (forwarding, is_ready) = worker.call(move |path| {
            let is_ready = path.prepare(&forwarding);
            (forwarding, is_ready)
        })?;
    }
    drop(worker.call(move |path| path.swap(forwarding))?);
    Ok(())
}

fn publish_next(worker: &Worker, round: u8) -> Result<(), LoopError> {
    // Servers come and go, and where far clients are; those of the requests keep their neighbours.
    publish(worker, |_, next_hops| {
        let generation = u64::from(round) + 2;
        ForwardingState::new(scene::snapshot(generation, Change(round % 64)), next_hops)
    })?;
    publish(worker, |snapshot, _| {
        ForwardingState::new(snapshot, scene::next_hops(round % 8))
    })
}

fn read_counters(worker: &Worker) -> Result<(), LoopError> {
    let mut reading = worker.call(|path| path.reading(true))?;
    let mut is_last = false;
    while !is_last {
        reading.settle();
        (reading, is_last) = worker.call(move |path| {
            let is_last = path.copy_some(&mut reading);
            (reading, is_last)
        })?;
    }
    assert!(reading.report().rx_packets <= u64::from(REQUESTS));
    drop(reading.measurements(Nanos::new(process::monotonic_ns())));
    worker.call(|path| (path.take_flow_exports(), path.take_unresolved()))?;
    Ok(())
}

/// List all flows, or reset those of a server.
fn list_or_reset(worker: &Worker, round: u8) -> Result<(), LoopError> {
    let now = Nanos::new(process::monotonic_ns());
    let server = u32::from(round) % SERVERS;
    let resets = round % 4 == 0;
    let mut search = if resets {
        FlowReset::search(Some(server), 16, now)
    } else {
        FlowSearch::new(FlowQuery::all(), now)
    };
    let mut is_last = false;
    while !is_last {
        search.settle();
        (search, is_last) = worker.call(move |path| {
            let is_last = path.look(&mut search);
            (search, is_last)
        })?;
    }
    let (total, mut page) = search.page();
    assert!(total as u64 <= CAPACITY);
    if resets {
        let mut reset = FlowReset::new(Some(server), page);
        return worker.call(move |path| while !path.reset_some(&mut reset) {});
    }
    let rows = worker.call(move |path| {
        while !path.read_rows(&mut page) {}
        page.into_rows()
    })?;
    assert!(rows.iter().all(|flow| flow.service as usize == DNS));
    Ok(())
}

/// Rule 22.1, bounded pauses: whatever the control side does, each packet has its verdict.
#[test]
fn loop_with_calls_from_all_sides_loses_and_miscounts_nothing() {
    let running = start();
    let is_over = AtomicBool::new(false);
    let worker = &running.worker;
    let repeat = |action: &dyn Fn(&Worker, u8) -> Result<(), LoopError>| {
        let mut rounds = 0;
        while !is_over.load(Ordering::Relaxed) {
            action(worker, rounds as u8).expect("the loop runs");
            rounds += 1;
        }
        rounds
    };
    let rounds: [u32; 4] = thread::scope(|scope| {
        let threads = [
            scope.spawn(|| repeat(&publish_next)),
            scope.spawn(|| repeat(&|worker, _| read_counters(worker))),
            scope.spawn(|| repeat(&list_or_reset)),
            scope.spawn(|| {
                repeat(&|worker, _| {
                    let _ = (running.counters.report(), running.counters.loop_report());
                    worker.call(|path| path.held()).map(drop)
                })
            }),
        ];
        let sent = thread::Builder::new().spawn_scoped(scope, || send_all(&running.wires[0]));
        let sent = sent.expect("a thread").join();
        is_over.store(true, Ordering::Relaxed);
        let rounds = threads.map(|thread| thread.join().expect("no call failed"));
        sent.expect("all requests passed");
        rounds
    });
    assert!(rounds.iter().all(|&rounds| rounds > 0), "{rounds:?}");
    let (path, ended) = running.worker.stop().expect("it runs");
    assert_eq!(ended, Ok(()));
    let report = path.counters();
    assert_eq!(report.rx_packets, u64::from(REQUESTS));
    assert_eq!(report.verdicts["forward"], u64::from(REQUESTS));
    let active: u64 = report
        .servers
        .iter()
        .flatten()
        .map(|each| each.flows_active)
        .sum();
    assert_eq!(active, 0, "no server has answered");
}
