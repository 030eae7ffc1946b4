//! Commands from the control thread to the loop: a queue, a wake-up, and how the loop ended.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};

use crate::datapath::DataPath;

/// Something to be done between two batches.
pub(super) type Command = Box<dyn FnOnce(&mut DataPath) + Send>;

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
pub(super) struct Shared {
    pub queue: Mutex<Queue>,
    /// Told when [`Queue::ended`] is set.
    pub has_ended: Condvar,
    pub wake: File,
    /// Set before `wake` is told: seen without a system call.
    pub asked: AtomicBool,
    pub stop: AtomicBool,
    /// Whether the sockets go on in another process after the stop.
    pub leaves: AtomicBool,
}

/// What the queue gives the loop.
pub(super) enum NextCommand {
    Run(Command),
    None,
    /// A caller has the queue just now.
    Later,
}

/// Commands that wait for the end of a batch.
#[derive(Default)]
pub(super) struct Queue {
    pub commands: VecDeque<Command>,
    /// Set when the loop has ended: how.
    pub ended: Option<LoopError>,
    /// Where the next process is to go on reading the ring of each interface, where the sockets go on there.
    pub rings: Vec<Option<usize>>,
}

impl Shared {
    /// Nothing is asked for yet. `wake`: an eventfd.
    pub fn new(wake: File) -> Self {
        Self {
            queue: Mutex::default(),
            has_ended: Condvar::new(),
            wake,
            asked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            leaves: AtomicBool::new(false),
        }
    }

    pub fn queue(&self) -> MutexGuard<'_, Queue> {
        // A queue is whole at any time: a panic elsewhere while it was locked takes nothing from that.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next command, when there is one and no caller is just leaving one: the loop never waits for a caller
    /// that was interrupted there.
    pub fn try_next(&self) -> NextCommand {
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
    pub fn wait_for_end(&self) -> LoopError {
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

    pub fn wake(&self) {
        self.asked.store(true, Ordering::Release);
        // It can only fail with EAGAIN, when the counter is full: then the loop is awake anyway.
        let _ = (&self.wake).write(&1u64.to_ne_bytes());
    }
}
