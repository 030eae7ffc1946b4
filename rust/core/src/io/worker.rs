//! The packet loop: one thread that owns the data path while it runs.
//!
//! It waits for any socket, receives a batch, has each frame processed in place, and sends what came of it; then the next socket. Between two
//! batches it carries out what the control thread asked for ([`Worker::call`]), so that no lock is on the packets' way. Time is read once per batch.

use std::collections::VecDeque;
use std::fs::File;
use std::hint;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError, mpsc};
use std::thread::{self, JoinHandle, ThreadId};

use libc::pollfd;

use super::packet_socket::{BATCH, Batch, IoCounters, Outbox, Port};
use super::patience::{Patience, Poll};
use crate::base::{Frame, Outcome, Output};
use crate::datapath::{DataPath, Sink};
use crate::sys::process;

/// The longest time without a tick.
const TICK_NS: u64 = 100_000_000;
/// The longest time without a look at whether a ring has stopped, while frames come.
const WATCH_NS: u64 = 10_000_000;
const POLL_MS: i32 = 10;
const MILLISECOND_NS: u64 = 1_000_000;
/// Without frames for so long there are fewer wake-ups.
const IDLE_NS: u64 = 1_000_000_000;
const IDLE_POLL_MS: i32 = 100;
/// While frames wait for a full socket: the kernel tells that it has room only when it is half empty.
const FULL_POLL_MS: i32 = 1;
/// Between two looks: below a microsecond.
const PAUSES: usize = 8;
/// Commands are begun for so long between two looks at the sockets; those left have their turn after the next one. Each must be short by itself: what is long
/// is asked for in parts by its caller.
const COMMANDS_NS: u64 = 50_000;

type Command = Box<dyn FnOnce(&mut DataPath) + Send>;

/// Why the loop does not do what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoopError {
    /// The loop ended by itself; nothing is forwarded any more.
    #[error("the packet loop has failed: {0}")]
    Failed(String),
    /// The loop has been stopped.
    #[error("the packet loop does not run")]
    Stopped,
    /// A call from the loop's own thread could never be answered.
    #[error("the data path was called from within its own packet loop (from an `ask` policy)")]
    Reentrant,
}

/// What both threads see.
struct Shared {
    queue: Mutex<Queue>,
    /// Told when [`Queue::ended`] is set.
    has_ended: Condvar,
    wake: File,
    /// Set before `wake` is told: seen without a system call.
    asked: AtomicBool,
    stop: AtomicBool,
}

/// What the queue gives the loop.
enum NextCommand {
    Run(Command),
    None,
    /// A caller has the queue just now.
    Later,
}

/// Commands that wait for the end of a batch.
#[derive(Default)]
struct Queue {
    commands: VecDeque<Command>,
    /// Set when the loop has ended: how.
    ended: Option<LoopError>,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // A queue is whole at any time: a panic elsewhere while it was locked takes nothing from that.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next command, when there is one and no caller is just leaving one: the loop never waits for a caller that was interrupted there.
    fn try_next(&self) -> NextCommand {
        let mut queue = match self.queue.try_lock() {
            Ok(queue) => queue,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return NextCommand::Later,
        };
        queue
            .commands
            .pop_front()
            .map_or(NextCommand::None, NextCommand::Run)
    }

    /// Wait until the loop has said how it ended.
    fn wait_for_end(&self) -> LoopError {
        let mut queue = self.queue();
        loop {
            if let Some(ended) = &queue.ended {
                return ended.clone();
            }
            queue = self
                .has_ended
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wake(&self) {
        self.asked.store(true, Ordering::Release);
        // It can only fail with EAGAIN, when the counter is full: then the loop is awake anyway.
        let _ = (&self.wake).write(&1u64.to_ne_bytes());
    }
}

/// A running packet loop.
pub struct Worker {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<Box<DataPath>>>>,
    thread_id: ThreadId,
}

impl Worker {
    /// Start the loop. `sockets`: one packet socket per interface id, open until the loop has stopped. `notify_fd`: an eventfd that gets 1 when
    /// hops became unresolved and when the loop fails. `poll`: what to do while nothing comes. `direct`: interface ids whose finished
    /// frames are handed straight to the driver, each with a fresh `AF_XDP` socket.
    ///
    /// # Errors
    /// The eventfd or the thread could not be made; the data path comes back with the error.
    ///
    /// # Panics
    /// Never: the thread gets what it waits for before this returns.
    pub fn start(
        datapath: Box<DataPath>,
        sockets: &[RawFd],
        notify_fd: RawFd,
        poll: Poll,
        direct: &[(usize, RawFd)],
        counters: Arc<IoCounters>,
    ) -> Result<Self, (Box<DataPath>, io::Error)> {
        let wake = match process::eventfd() {
            Ok(wake) => wake,
            Err(error) => return Err((datapath, error)),
        };
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            has_ended: Condvar::new(),
            wake,
            asked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut packet_loop =
            PacketLoop::new(sockets, notify_fd, poll, Arc::clone(&shared), counters);
        if let Err(error) = packet_loop.send_directly(direct) {
            return Err((datapath, error));
        }
        // The data path travels behind the thread's start: if that fails it is still here.
        let (sender, receiver) = mpsc::channel();
        let body = move || {
            packet_loop.run(
                receiver
                    .recv()
                    .expect("start sends the data path before it returns"),
            )
        };
        match thread::Builder::new().name("lb-packets".into()).spawn(body) {
            Ok(thread) => {
                sender.send(datapath).map_err(|mpsc::SendError(datapath)| {
                    (
                        datapath,
                        io::Error::other("the packet loop's thread died at its start"),
                    )
                })?;
                let thread_id = thread.thread().id();
                Ok(Self {
                    shared,
                    thread: Mutex::new(Some(thread)),
                    thread_id,
                })
            }
            Err(error) => Err((datapath, error)),
        }
    }

    /// Carry something out between two batches and wait for its answer.
    ///
    /// # Errors
    /// The loop has ended, or the call came from the loop's own thread.
    pub fn call<T: Send + 'static>(
        &self,
        action: impl FnOnce(&mut DataPath) -> T + Send + 'static,
    ) -> Result<T, LoopError> {
        if thread::current().id() == self.thread_id {
            return Err(LoopError::Reentrant);
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        let command: Command = Box::new(move |datapath| {
            // Nobody waits for the answer when the caller's thread is gone.
            let _ = sender.send(action(datapath));
        });
        {
            let mut queue = self.shared.queue();
            if let Some(ended) = &queue.ended {
                return Err(ended.clone());
            }
            queue.commands.push_back(command);
        }
        self.shared.wake();
        // The sender is dropped unused only when the loop ends. After a panic that is while the stack unwinds, before the loop can say how it ended.
        receiver.recv().map_err(|_| self.shared.wait_for_end())
    }

    /// Stop the loop, wait for its thread, and take the data path back. The second value says whether the loop had failed. `None`: it was taken
    /// already.
    pub fn stop(&self) -> Option<(Box<DataPath>, Result<(), LoopError>)> {
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()?;
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.wake();
        let datapath = thread.join().ok()?;
        let ended = self.shared.queue().ended.clone();
        Some((
            datapath,
            match ended {
                Some(error @ LoopError::Failed(_)) => Err(error),
                _ => Ok(()),
            },
        ))
    }
}

impl Drop for Worker {
    /// A loop without an owner would read from descriptors that someone closes.
    fn drop(&mut self) {
        self.stop();
    }
}

/// All that the loop's thread works with, but for the data path.
struct PacketLoop {
    ports: Vec<Port>,
    /// One per port, then the wake eventfd.
    polls: Vec<pollfd>,
    batch: Batch,
    outbox: Outbox,
    notify_fd: RawFd,
    shared: Arc<Shared>,
    counters: Arc<IoCounters>,
    ticked_ns: u64,
    watched_ns: u64,
    patience: Patience,
    told_unresolved: bool,
    /// When the sockets were looked at last, or a sleep ended.
    looked_ns: u64,
    /// Commands wait that there was no time for.
    has_commands: bool,
    /// More flows are due than one tick removes.
    is_behind: bool,
}

impl PacketLoop {
    fn new(
        sockets: &[RawFd],
        notify_fd: RawFd,
        poll: Poll,
        shared: Arc<Shared>,
        counters: Arc<IoCounters>,
    ) -> Self {
        let fds = sockets.iter().copied().chain([shared.wake.as_raw_fd()]);
        Self {
            ports: sockets.iter().map(|&fd| Port::new(fd)).collect(),
            polls: fds
                .map(|fd| pollfd {
                    fd,
                    events: libc::POLLIN,
                    revents: 0,
                })
                .collect(),
            batch: Batch::new(),
            outbox: Outbox::new(sockets.len()),
            notify_fd,
            shared,
            counters,
            ticked_ns: process::monotonic_ns(),
            watched_ns: process::monotonic_ns(),
            patience: Patience::new(poll),
            told_unresolved: false,
            looked_ns: process::monotonic_ns(),
            has_commands: false,
            is_behind: false,
        }
    }

    fn send_directly(&mut self, interfaces: &[(usize, RawFd)]) -> io::Result<()> {
        interfaces.iter().try_for_each(|&(interface, by)| {
            let port = self.ports.get_mut(interface);
            let port = port.ok_or(io::ErrorKind::InvalidInput)?;
            port.send_directly(by).map_err(|error| {
                let reason =
                    format!("frames cannot be sent directly from interface {interface}: {error}");
                io::Error::new(error.kind(), reason)
            })
        })
    }

    /// Run until stopped or failed; say how it ended, and give the data path back.
    #[expect(
        clippy::unnecessary_box_returns,
        reason = "it came in this box and goes back in it"
    )]
    fn run(mut self, mut datapath: Box<DataPath>) -> Box<DataPath> {
        process::block_signals();
        // After a panic the data path is only read (counters, flows) and dropped: what it left half done harms nobody.
        let ended = match catch_unwind(AssertUnwindSafe(|| self.forward(&mut datapath))) {
            Ok(Ok(())) => LoopError::Stopped,
            Ok(Err(error)) => LoopError::Failed(error.to_string()),
            Err(panic) => LoopError::Failed(panic_message(panic.as_ref())),
        };
        let failed = ended != LoopError::Stopped;
        let forgotten = {
            let mut queue = self.shared.queue();
            queue.ended = Some(ended);
            std::mem::take(&mut queue.commands)
        };
        self.shared.has_ended.notify_all();
        drop(forgotten);
        if failed {
            self.notify();
        }
        datapath
    }

    fn forward(&mut self, datapath: &mut DataPath) -> io::Result<()> {
        self.looked_ns = process::monotonic_ns();
        while !self.shared.stop.load(Ordering::Relaxed) {
            let count = self.forward_ready(datapath)?;
            if self.outbox.has_backlog() {
                self.outbox.drain(&self.ports, &self.counters);
            }
            let asked = self.is_asked() && self.run_commands(datapath);
            let mut now_ns = process::monotonic_ns();
            // A command may have made hops known: their packets need not wait for the next tick.
            let is_due = asked
                || self.is_behind
                || now_ns - self.ticked_ns >= TICK_NS
                || datapath
                    .answer_due_ns()
                    .is_some_and(|due_ns| now_ns >= due_ns);
            if is_due {
                self.tick(datapath, now_ns);
            }
            self.tell_unresolved(datapath);
            let watches = now_ns - self.watched_ns >= WATCH_NS;
            if watches {
                self.watch(now_ns);
            }
            if is_due || watches {
                now_ns = process::monotonic_ns();
            }
            self.counters
                .pauses
                .record(now_ns.saturating_sub(self.looked_ns));
            self.looked_ns = now_ns;
            if count > 0 {
                self.patience.found(now_ns);
            } else if !self.has_commands && !self.is_behind {
                self.rest(now_ns, datapath.answer_due_ns())?;
            }
        }
        Ok(())
    }

    /// Nothing was found: look again in a moment, or sleep until something comes, or until a packet that waits for an answer is due.
    fn rest(&mut self, now_ns: u64, due_ns: Option<u64>) -> io::Result<()> {
        if self.patience.looks_on(now_ns) {
            (0..PAUSES).for_each(|_| hint::spin_loop());
            self.looked_ns = process::monotonic_ns();
            self.patience.paused(now_ns, self.looked_ns);
            return Ok(());
        }
        let is_idle = self.patience.idle_ns(now_ns) > IDLE_NS;
        let timeout_ms = match (self.outbox.has_backlog(), is_idle) {
            (true, _) => FULL_POLL_MS,
            (false, true) => IDLE_POLL_MS,
            (false, false) => POLL_MS,
        };
        let timeout_ms = due_ns.map_or(timeout_ms, |due_ns| {
            let left_ms = due_ns.saturating_sub(now_ns).div_ceil(MILLISECOND_NS);
            timeout_ms.min(i32::try_from(left_ms).unwrap_or(i32::MAX))
        });
        for interface in 0..self.ports.len() {
            let is_blocked = self.outbox.is_blocked(interface);
            let writable = if is_blocked { libc::POLLOUT } else { 0 };
            self.polls[interface].events = libc::POLLIN | writable;
        }
        process::poll(&mut self.polls, timeout_ms)?;
        self.looked_ns = process::monotonic_ns();
        Ok(())
    }

    /// A batch from each port that has one. Returns the number of frames.
    fn forward_ready(&mut self, datapath: &mut DataPath) -> io::Result<usize> {
        let mut count = 0;
        for interface in 0..self.ports.len() {
            let told = std::mem::take(&mut self.polls[interface].revents) & !libc::POLLOUT != 0;
            if told || self.ports[interface].may_be_ready() {
                count += self.forward_batch(datapath, interface)?;
            }
        }
        Ok(count)
    }

    fn is_asked(&mut self) -> bool {
        let told = self
            .polls
            .last_mut()
            .map(|wake| std::mem::take(&mut wake.revents));
        let told = told.is_some_and(|events| events != 0);
        self.shared.asked.swap(false, Ordering::Acquire) || told || self.has_commands
    }

    /// One batch from one socket: a busy interface gets no more before the others had their turn.
    fn forward_batch(&mut self, datapath: &mut DataPath, interface: usize) -> io::Result<usize> {
        let port = &mut self.ports[interface];
        let count = self.batch.receive(port, &self.counters)?;
        if count == 0 {
            self.batch.finish(port);
            return Ok(0);
        }
        let now_ns = process::monotonic_ns();
        let mut frames: [Frame; BATCH] = std::array::from_fn(|_| Frame::default());
        for (place, frame) in frames.iter_mut().zip(self.batch.frames_mut(port)) {
            *place = frame;
        }
        let mut collector = Collector {
            outbox: &mut self.outbox,
            counters: &self.counters,
        };
        datapath.process_batch(
            &mut frames[..count],
            interface as u32,
            now_ns,
            &mut collector,
        );
        self.outbox
            .flush(&mut self.batch, interface, &mut self.ports, &self.counters);
        self.batch.finish(&mut self.ports[interface]);
        Ok(count)
    }

    /// Carry out queued commands, for as long as [`COMMANDS_NS`] says; those that come meanwhile wake the next round. Says whether there were any.
    fn run_commands(&mut self, datapath: &mut DataPath) -> bool {
        let mut count = [0; 8];
        // Reading sets the eventfd to 0, or finds it so. Commands come before it is told, so none is missed.
        let _ = (&self.shared.wake).read(&mut count);
        let began_ns = process::monotonic_ns();
        let mut now_ns = began_ns;
        let mut has_run = false;
        self.has_commands = loop {
            // Frames that a command made leave before more are made.
            if now_ns - began_ns >= COMMANDS_NS || datapath.has_pending() {
                break true;
            }
            match self.shared.try_next() {
                NextCommand::Run(command) => command(datapath),
                NextCommand::None => break false,
                NextCommand::Later => break true,
            }
            has_run = true;
            now_ns = process::monotonic_ns();
        };
        if has_run {
            self.counters.control.record(now_ns - began_ns);
        }
        has_run
    }

    /// See to it that no ring has stopped.
    fn watch(&mut self, now_ns: u64) {
        self.watched_ns = now_ns;
        for port in &mut self.ports {
            port.watch(&self.counters);
        }
    }

    fn tick(&mut self, datapath: &mut DataPath, now_ns: u64) {
        self.ticked_ns = now_ns;
        datapath.tick(now_ns, &mut self.outbox.extra);
        self.is_behind = datapath.is_behind(now_ns);
        self.outbox.collect_extra(&self.counters);
        self.outbox
            .flush(&mut self.batch, 0, &mut self.ports, &self.counters);
    }

    /// Tell once that there are hops to resolve, until they were taken.
    fn tell_unresolved(&mut self, datapath: &DataPath) {
        let unresolved = datapath.has_unresolved();
        if unresolved && !self.told_unresolved {
            self.notify();
        }
        self.told_unresolved = unresolved;
    }

    fn notify(&self) {
        // A reader that is gone, or a full counter, is no reason to stop forwarding.
        let _ = process::eventfd_add(self.notify_fd);
    }
}

/// Queues what comes of a batch.
struct Collector<'a> {
    outbox: &'a mut Outbox,
    counters: &'a IoCounters,
}

impl Sink for Collector<'_> {
    fn extra(&mut self) -> &mut Vec<Output> {
        &mut self.outbox.extra
    }

    fn done(&mut self, index: usize, outcome: &Outcome) {
        self.outbox.collect(index, outcome.sent, self.counters);
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown panic")
        .to_owned()
}

#[cfg(test)]
mod tests {
    //! Datagram sockets stand for packet sockets: they keep messages apart and need no privilege.

    use std::net::{IpAddr, Ipv4Addr};
    use std::os::unix::net::UnixDatagram;
    use std::time::Duration;

    use super::super::header::{OFFLOAD_HEADER_LEN, encode};
    use super::*;
    use crate::base::Offload;
    use crate::snapshot::{
        Interface, NextHops, Plan, Protocol, Selector, Server, Service, Snapshot, Timeouts,
    };

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
                reset_without_server: true,
                reset_without_flow: false,
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
            forward_transit: false,
            answer_echo: false,
            icmp_rate: 1000,
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
        let sockets = [port0.as_raw_fd(), port1.as_raw_fd()];
        let worker = Worker::start(
            datapath,
            &sockets,
            news.as_raw_fd(),
            Poll::default(),
            &[],
            Arc::clone(&counters),
        )
        .map_err(|(_, e)| e);
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
        assert_eq!(scene.counters.report(), super::super::IoReport::default());
    }

    #[test]
    fn loop_call_is_carried_out_between_batches() {
        let scene = start();
        send(&scene.wires[1], &request());
        receive(&scene.wires[0]);
        assert_eq!(
            scene
                .worker
                .call(|datapath| datapath.flows(process::monotonic_ns()).len()),
            Ok(1)
        );
    }

    /// behaviour 39: commands that are queued behind a long one wait for another look at the sockets.
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
            let second =
                scope.spawn(|| scene.worker.call(|datapath| datapath.counters().rx_packets));
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
            interface: 0,
            gateway: None,
            mtu: None,
        };
        let neighbour = crate::snapshot::Neighbour {
            interface: 0,
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
        assert_eq!(unresolved, [(0, IpAddr::V4(SERVER))]);
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
            &[file.as_raw_fd()],
            news.as_raw_fd(),
            Poll::default(),
            &[],
            Arc::default(),
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
}
