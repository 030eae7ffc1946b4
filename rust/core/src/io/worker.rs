//! The thread of the packet loop, as its owner has it: start, call, stop.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle, ThreadId};

use super::interface::Interface;
use super::packet_loop::{LoopOptions, PacketLoop};
use super::queue::{Command, LoopError, Shared};
use crate::datapath::DataPath;
use crate::sys::process;

/// Where another loop is to go on reading the ring of each socket.
pub type Rings = Vec<Option<usize>>;

/// A running packet loop.
pub struct Worker {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<Box<DataPath>>>>,
    thread_id: ThreadId,
}

impl Worker {
    /// Start the loop over the interfaces of a snapshot, in order of their ids. Their descriptors, and that of
    /// `options`, stay open until it has stopped.
    ///
    /// # Errors
    /// The eventfd or the thread could not be made; the data path comes back with the error.
    ///
    /// # Panics
    /// Never: the thread gets what it waits for before this returns.
    pub fn start(
        datapath: Box<DataPath>,
        interfaces: Vec<Interface>,
        options: LoopOptions,
    ) -> Result<Self, (Box<DataPath>, io::Error)> {
        let wake = match process::eventfd() {
            Ok(wake) => wake,
            Err(error) => return Err((datapath, error)),
        };
        let shared = Arc::new(Shared::new(wake));
        let packet_loop = PacketLoop::new(interfaces, options, Arc::clone(&shared));
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

    /// Run something between two batches and wait for its answer.
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
            // No thread waits for the answer when the caller's is gone.
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
        // The sender is dropped unused only when the loop ends. After a panic that is while the stack unwinds,
        // before the loop can say how it ended.
        receiver.recv().map_err(|_| self.shared.wait_for_end())
    }

    /// Stop the loop, and leave its sockets with what waits in them to another loop. The third value says where that
    /// is to go on reading each ([`Interface::adopt`]).
    pub fn leave(&self) -> Option<(Box<DataPath>, Result<(), LoopError>, Rings)> {
        self.shared.leaves.store(true, Ordering::Relaxed);
        let (datapath, ended) = self.stop()?;
        let rings = std::mem::take(&mut self.shared.queue().rings);
        Some((datapath, ended, rings))
    }

    /// Stop the loop, wait for its thread, and take the data path back. The second value says whether the loop had
    /// failed. `None`: it was taken already.
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
    /// A loop without an owner would read from descriptors that are closed.
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests;
