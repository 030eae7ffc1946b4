//! The packet loop: waits for any socket, receives a batch, has each frame processed in place, sends what comes of
//! it; then the next socket. Between two batches it runs what the control thread asked for, so that no lock is on
//! the packets' way. Time is read once per batch.

use std::hint;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use libc::pollfd;

use super::batch::{BATCH, Batch};
use super::busy_poll::{BusyPoll, Poll};
use super::counters::IoCounters;
use super::interface::Interface;
use super::outbox::Outbox;
use super::queue::{LoopError, NextCommand, Shared};
use crate::base::{Frame, InterfaceId, Nanos, Outcome, Output};
use crate::datapath::{DataPath, Sink};
use crate::sys::process;

/// The longest time without a tick.
const TICK_NS: u64 = 100_000_000;

/// The longest time without a look at whether a ring has stopped, while frames come.
const WATCH_NS: u64 = 10_000_000;

/// How long a loop that leaves its sockets to another process waits for full ones.
const LEAVE_NS: u64 = 10_000_000;

const POLL_MS: i32 = 10;

const MILLISECOND_NS: u64 = 1_000_000;

/// After this time without frames there are fewer wake-ups.
const IDLE_NS: u64 = 1_000_000_000;

const IDLE_POLL_MS: i32 = 100;

/// While frames wait for a full socket: the kernel tells that it has room only when it is half empty.
const FULL_POLL_MS: i32 = 1;

/// Between two looks: below a microsecond.
const PAUSES: usize = 8;

/// How long commands are begun between two looks at the sockets; those left are begun after the next one.
/// Each must be short by itself: what is long is asked for in parts by its caller.
pub(super) const COMMANDS_NS: u64 = 50_000;

/// What a loop is told at its start, beside its interfaces.
pub struct LoopOptions {
    /// An eventfd that gets 1 when hops became unresolved and when the loop fails.
    pub notify_fd: RawFd,
    /// What to do while nothing comes.
    pub poll: Poll,
    /// Where it counts what goes wrong.
    pub counters: Arc<IoCounters>,
}

/// All that the loop's thread works with, but for the data path.
pub(super) struct PacketLoop {
    interfaces: Vec<Interface>,
    /// One per interface, then the wake eventfd.
    polls: Vec<pollfd>,
    batch: Batch,
    outbox: Outbox,
    notify_fd: RawFd,
    shared: Arc<Shared>,
    counters: Arc<IoCounters>,
    ticked: Nanos,
    watched: Nanos,
    busy_poll: BusyPoll,
    told_unresolved: bool,
    /// When the sockets were looked at last, or a sleep ended.
    looked: Nanos,
    /// Commands wait that there was no time for.
    has_commands: bool,
    /// More flows are due than one tick removes.
    is_behind: bool,
}

impl PacketLoop {
    pub fn new(interfaces: Vec<Interface>, options: LoopOptions, shared: Arc<Shared>) -> Self {
        let at = now();
        let sockets = interfaces.iter().map(|interface| interface.fd);
        let polls = sockets
            .chain([shared.wake.as_raw_fd()])
            .map(|fd| pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        Self {
            outbox: Outbox::new(interfaces.len()),
            interfaces,
            polls,
            batch: Batch::new(),
            notify_fd: options.notify_fd,
            shared,
            counters: options.counters,
            ticked: at,
            watched: at,
            busy_poll: BusyPoll::new(options.poll),
            told_unresolved: false,
            looked: at,
            has_commands: false,
            is_behind: false,
        }
    }

    /// Run until stopped or failed; say how it ended, and give the data path back.
    #[expect(
        clippy::unnecessary_box_returns,
        reason = "it came in this box and goes back in it"
    )]
    pub fn run(mut self, mut datapath: Box<DataPath>) -> Box<DataPath> {
        process::block_signals();
        self.interfaces.iter_mut().for_each(Interface::own);
        // After a panic the data path is only read (counters, flows) and dropped: what it left half done does no
        // harm.
        let ended = match catch_unwind(AssertUnwindSafe(|| self.forward(&mut datapath))) {
            Ok(Ok(())) => LoopError::Stopped,
            Ok(Err(error)) => LoopError::Failed(error.to_string()),
            Err(panic) => LoopError::Failed(panic_message(panic.as_ref())),
        };
        let failed = ended != LoopError::Stopped;
        let rings = if !failed && self.shared.leaves.load(Ordering::Relaxed) {
            self.leave()
        } else {
            Vec::new()
        };
        let forgotten = {
            let mut queue = self.shared.queue();
            queue.ended = Some(ended);
            queue.rings = rings;
            std::mem::take(&mut queue.commands)
        };
        self.shared.has_ended.notify_all();
        drop(forgotten);
        if failed {
            self.notify();
        }
        datapath
    }

    /// Leave the sockets to another process, once what waits for a full one is sent, or has waited for
    /// [`LEAVE_NS`]. Returns where it is to go on reading.
    fn leave(&mut self) -> Vec<Option<usize>> {
        let began = now();
        while self.outbox.has_backlog() && now().since(began) < LEAVE_NS {
            self.outbox.drain(&self.interfaces, &self.counters);
        }
        self.interfaces.iter_mut().map(Interface::leave).collect()
    }

    fn forward(&mut self, datapath: &mut DataPath) -> io::Result<()> {
        self.looked = now();
        while !self.shared.stop.load(Ordering::Relaxed) {
            let count = self.forward_ready(datapath)?;
            if self.outbox.has_backlog() {
                self.outbox.drain(&self.interfaces, &self.counters);
            }
            let asked = self.is_asked() && self.run_commands(datapath);
            let mut at = now();
            // A command may have made hops known: their packets need not wait for the next tick.
            let is_due = asked
                || self.is_behind
                || at.since(self.ticked) >= TICK_NS
                || datapath.answer_due().is_some_and(|due| at.is_past(due));
            if is_due {
                self.tick(datapath, at);
            }
            self.tell_unresolved(datapath);
            let watches = at.since(self.watched) >= WATCH_NS;
            if watches {
                self.watch(at);
            }
            if is_due || watches {
                at = now();
            }
            self.counters.pauses.record(at.since(self.looked));
            self.looked = at;
            if count > 0 {
                self.busy_poll.found(at);
            } else if !self.has_commands && !self.is_behind {
                self.rest(at, datapath.answer_due())?;
            }
        }
        Ok(())
    }

    /// Nothing was found: look again in a moment, or sleep until something comes, or until a packet that waits for
    /// an answer is due.
    fn rest(&mut self, at: Nanos, due: Option<Nanos>) -> io::Result<()> {
        if self.busy_poll.keeps_polling(at) {
            (0..PAUSES).for_each(|_| hint::spin_loop());
            self.looked = now();
            self.busy_poll.paused(at, self.looked);
            return Ok(());
        }
        let is_idle = self.busy_poll.idle_ns(at) > IDLE_NS;
        let timeout_ms = match (self.outbox.has_backlog(), is_idle) {
            (true, _) => FULL_POLL_MS,
            (false, true) => IDLE_POLL_MS,
            (false, false) => POLL_MS,
        };
        let timeout_ms = due.map_or(timeout_ms, |due| {
            let left_ms = due.since(at).div_ceil(MILLISECOND_NS);
            timeout_ms.min(i32::try_from(left_ms).unwrap_or(i32::MAX))
        });
        for interface in InterfaceId::first(self.interfaces.len()) {
            let is_blocked = self.outbox.is_blocked(interface);
            let writable = if is_blocked { libc::POLLOUT } else { 0 };
            self.polls[interface.index()].events = libc::POLLIN | writable;
        }
        process::poll(&mut self.polls, timeout_ms)?;
        self.looked = now();
        Ok(())
    }

    /// A batch from each interface that has one. Returns the number of frames.
    fn forward_ready(&mut self, datapath: &mut DataPath) -> io::Result<usize> {
        let mut count = 0;
        for id in InterfaceId::first(self.interfaces.len()) {
            let revents = std::mem::take(&mut self.polls[id.index()].revents);
            let told = revents & !libc::POLLOUT != 0;
            if told || self.interfaces[id.index()].may_be_ready() {
                count += self.forward_batch(datapath, id)?;
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
    fn forward_batch(&mut self, datapath: &mut DataPath, id: InterfaceId) -> io::Result<usize> {
        let interface = &mut self.interfaces[id.index()];
        let count = self.batch.receive(interface, &self.counters)?;
        if count == 0 {
            self.batch.finish(interface);
            return Ok(0);
        }
        let is_crowded = interface.is_crowded();
        let at = now();
        let mut frames: [Frame; BATCH] = std::array::from_fn(|_| Frame::default());
        for (place, frame) in frames.iter_mut().zip(self.batch.frames_mut(interface)) {
            *place = frame;
        }
        let mut collector = Collector {
            outbox: &mut self.outbox,
            counters: &self.counters,
        };
        datapath.shed_new_flows(is_crowded);
        datapath.process_batch(&mut frames[..count], id, at, &mut collector);
        self.outbox
            .flush(&mut self.batch, id, &mut self.interfaces, &self.counters);
        self.batch.finish(&mut self.interfaces[id.index()]);
        Ok(count)
    }

    /// Run queued commands, for as long as [`COMMANDS_NS`] says; those that come meanwhile wake the next round.
    /// Says whether there were any.
    fn run_commands(&mut self, datapath: &mut DataPath) -> bool {
        let mut count = [0; 8];
        // Reading sets the eventfd to 0, or finds it so. Commands come before it is told, so none is missed.
        let _ = (&self.shared.wake).read(&mut count);
        let began = now();
        let mut at = began;
        let mut has_run = false;
        self.has_commands = loop {
            // Frames that a command made leave before more are made.
            if at.since(began) >= COMMANDS_NS || datapath.has_pending() {
                break true;
            }
            match self.shared.try_next() {
                NextCommand::Run(command) => command(datapath),
                NextCommand::None => break false,
                NextCommand::Later => break true,
            }
            has_run = true;
            at = now();
        };
        if has_run {
            self.counters.control.record(at.since(began));
        }
        has_run
    }

    /// See to it that no ring has stopped.
    fn watch(&mut self, at: Nanos) {
        self.watched = at;
        for interface in &mut self.interfaces {
            interface.watch(&self.counters);
        }
    }

    fn tick(&mut self, datapath: &mut DataPath, at: Nanos) {
        self.ticked = at;
        datapath.tick(at, &mut self.outbox.extra);
        self.is_behind = datapath.is_behind(at);
        self.outbox.collect_extra(&self.counters);
        // Nothing of it is in the batch, so that any interface will do as its source.
        let source = InterfaceId::default();
        self.outbox.flush(
            &mut self.batch,
            source,
            &mut self.interfaces,
            &self.counters,
        );
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

fn now() -> Nanos {
    Nanos::new(process::monotonic_ns())
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown panic")
        .to_owned()
}
