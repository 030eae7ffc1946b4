//! Batches of frames from and to packet sockets (`PACKET_VNET_HDR`, packet(7)).
//!
//! [`Batch`] receives frames into buffers made once; frames are processed there, in place. [`Outbox`] gathers what is to be sent, per interface and in
//! order, and refers to those buffers: it is flushed before they are used again. No error stops the loop unless the socket itself is unusable:
//! what is lost is counted.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use super::header::{self, OFFLOAD_HEADER_LEN, VLAN_TAG_LEN};
use super::sys::{self, MAX_MESSAGES, RxBuffer};
use crate::datapath::{Offload, Output, Sent};

/// The largest IP packet with an Ethernet header and a tag left in the frame. Only BIG TCP, off by default, makes larger ones: counted, not forwarded.
const MAX_FRAME_LEN: usize = 14 + 4 + 65535;
/// Frames per batch.
const BATCH: usize = 64;
/// How long a flush waits for a full socket, each time and how often.
const SEND_WAIT_MS: i32 = 2;
const SEND_WAITS: usize = 3;

/// What went wrong between the wire and the data path. Written by the loop, read by anyone.
#[derive(Debug, Default)]
pub struct IoCounters {
    rx_truncated: AtomicU64,
    rx_errors: AtomicU64,
    tx_dropped: AtomicU64,
    tx_errors: AtomicU64,
}

/// [`IoCounters`] at one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoReport {
    /// Frames larger than the buffer: not forwarded.
    pub rx_truncated: u64,
    /// Failed receives: the interface went down.
    pub rx_errors: u64,
    /// Frames given up because the way out stayed full.
    pub tx_dropped: u64,
    /// Frames that the kernel refused.
    pub tx_errors: u64,
}

impl IoCounters {
    /// Read all of them.
    #[must_use]
    pub fn report(&self) -> IoReport {
        IoReport {
            rx_truncated: self.rx_truncated.load(Ordering::Relaxed),
            rx_errors: self.rx_errors.load(Ordering::Relaxed),
            tx_dropped: self.tx_dropped.load(Ordering::Relaxed),
            tx_errors: self.tx_errors.load(Ordering::Relaxed),
        }
    }
}

fn add_one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// One received frame: where it is in its buffer, and what is left to do for it.
#[derive(Clone, Copy, Debug)]
struct Received {
    buffer: usize,
    start: usize,
    end: usize,
    offload: Offload,
}

/// Up to [`BATCH`] received frames.
pub struct Batch {
    buffers: Vec<RxBuffer>,
    frames: Vec<Received>,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// Make the buffers.
    #[must_use]
    pub fn new() -> Self {
        Self {
            buffers: (0..BATCH).map(|_| new_buffer()).collect(),
            frames: Vec::with_capacity(BATCH),
        }
    }

    /// Receive what is queued, at most one batch, over the frames of the last call. Returns the number of usable frames.
    ///
    /// # Errors
    /// Only when the descriptor is no usable socket; other errors are counted.
    pub fn receive(&mut self, fd: RawFd, counters: &IoCounters) -> io::Result<usize> {
        self.frames.clear();
        let count = match sys::receive(fd, &mut self.buffers) {
            Ok(count) => count,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                0
            }
            Err(error) if is_fatal(&error) => return Err(error),
            Err(_) => {
                add_one(&counters.rx_errors);
                0
            }
        };
        for (index, buffer) in self.buffers.iter_mut().enumerate().take(count) {
            match finish(index, buffer) {
                Some(received) => self.frames.push(received),
                None => add_one(&counters.rx_truncated),
            }
        }
        Ok(self.frames.len())
    }

    /// The frame at `index`, to be processed in place, and its offload.
    pub fn frame_mut(&mut self, index: usize) -> (&mut [u8], Offload) {
        let Received {
            buffer,
            start,
            end,
            offload,
        } = self.frames[index];
        (&mut self.buffers[buffer].space[start..end], offload)
    }

    /// The first `len` bytes of the frame at `index`.
    fn frame(&self, index: usize, len: usize) -> &[u8] {
        let Received { buffer, start, .. } = self.frames[index];
        &self.buffers[buffer].space[start..start + len]
    }
}

fn new_buffer() -> RxBuffer {
    RxBuffer {
        header: [0; OFFLOAD_HEADER_LEN],
        control: [0; 8],
        control_len: 0,
        space: vec![0; VLAN_TAG_LEN + MAX_FRAME_LEN].into_boxed_slice(),
        headroom: VLAN_TAG_LEN,
        message_len: 0,
        truncated: false,
    }
}

/// Errors that no waiting mends: the descriptor is not a socket of ours.
fn is_fatal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EBADF | libc::ENOTSOCK | libc::EINVAL | libc::EFAULT)
    )
}

/// Make a frame of a received message: put its VLAN tag back. `None` when the message is cut short.
fn finish(index: usize, buffer: &mut RxBuffer) -> Option<Received> {
    let frame_len = buffer.message_len.checked_sub(OFFLOAD_HEADER_LEN)?;
    if buffer.truncated {
        return None;
    }
    let end = VLAN_TAG_LEN + frame_len;
    let offload = header::decode(buffer.header);
    let control: &[u8] = bytemuck::cast_slice(&buffer.control);
    let Some(tag) = header::stripped_tag(&control[..buffer.control_len.min(control.len())]) else {
        return Some(Received {
            buffer: index,
            start: VLAN_TAG_LEN,
            end,
            offload,
        });
    };
    if !header::insert_tag(&mut buffer.space[..end], tag) {
        return None;
    }
    Some(Received {
        buffer: index,
        start: 0,
        end,
        offload: header::behind_tag(offload),
    })
}

/// One frame to send: in the batch, or one of its own.
#[derive(Clone, Copy, Debug)]
enum Place {
    Batch { index: usize, len: usize },
    Extra(usize),
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    header: [u8; OFFLOAD_HEADER_LEN],
    place: Place,
}

/// What is to be sent, per interface, in the order in which the data path gave it.
pub struct Outbox {
    /// Frames of their own: the data path appends here.
    pub extra: Vec<Output>,
    collected: usize,
    queues: Vec<Vec<Pending>>,
}

impl Outbox {
    /// Make an empty one for so many interfaces.
    #[must_use]
    pub fn new(interfaces: usize) -> Self {
        Self {
            extra: Vec::new(),
            collected: 0,
            queues: vec![Vec::with_capacity(BATCH); interfaces],
        }
    }

    /// Queue what one call of the data path gave: the frame that came in, then those it appended to `extra`.
    pub fn collect(&mut self, index: usize, sent: Option<Sent>, counters: &IoCounters) {
        if let Some(sent) = sent {
            let place = Place::Batch {
                index,
                len: sent.len,
            };
            self.push(
                sent.interface,
                Pending {
                    header: header::encode(sent.offload),
                    place,
                },
                counters,
            );
        }
        self.collect_extra(counters);
    }

    /// Queue what was appended to `extra`.
    pub fn collect_extra(&mut self, counters: &IoCounters) {
        while let Some(output) = self.extra.get(self.collected) {
            let pending = Pending {
                header: header::encode(output.offload),
                place: Place::Extra(self.collected),
            };
            let interface = output.interface;
            self.collected += 1;
            self.push(interface, pending, counters);
        }
    }

    fn push(&mut self, interface: u32, pending: Pending, counters: &IoCounters) {
        match self.queues.get_mut(interface as usize) {
            Some(queue) => queue.push(pending),
            // The snapshot names an interface that the loop was given no socket for.
            None => add_one(&counters.tx_errors),
        }
    }

    /// Send everything that is queued and forget it. `batch` is the one that was collected from.
    pub fn flush(&mut self, batch: &Batch, sockets: &[RawFd], counters: &IoCounters) {
        for (queue, &fd) in self.queues.iter().zip(sockets) {
            let frames = |pending: &'_ Pending| match pending.place {
                Place::Batch { index, len } => batch.frame(index, len),
                Place::Extra(index) => &self.extra[index].frame[..],
            };
            send_all(fd, queue, frames, counters);
        }
        self.queues.iter_mut().for_each(Vec::clear);
        self.extra.clear();
        self.collected = 0;
    }
}

/// Send a queue in order. A frame that the kernel refuses is skipped; one for which there is no room within the waits of this call is dropped, as
/// a full queue does it to any router.
fn send_all<'a>(
    fd: RawFd,
    queue: &'a [Pending],
    frame: impl Fn(&'a Pending) -> &'a [u8],
    counters: &IoCounters,
) {
    let mut waits_left = SEND_WAITS;
    let mut next = 0;
    while next < queue.len() {
        let chunk = &queue[next..queue.len().min(next + MAX_MESSAGES)];
        let error = match sys::send(
            fd,
            chunk
                .iter()
                .map(|pending| (&pending.header, frame(pending))),
        ) {
            Ok(count) => {
                next += count;
                continue;
            }
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN | libc::ENOBUFS) if waits_left > 0 => {
                waits_left -= 1;
                wait_writable(fd);
            }
            Some(libc::EAGAIN | libc::ENOBUFS) => {
                add_one(&counters.tx_dropped);
                next += 1;
            }
            _ => {
                add_one(&counters.tx_errors);
                next += 1;
            }
        }
    }
}

fn wait_writable(fd: RawFd) {
    let mut fds = [libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    }];
    // A failed wait only means that the next attempt comes at once.
    let _ = sys::poll(&mut fds, SEND_WAIT_MS);
}
