//! Batches of frames from and to packet sockets (`PACKET_VNET_HDR`, packet(7)).
//!
//! [`Batch`] receives frames into buffers made once; frames are processed there, in place. [`Outbox`] gathers what is to be sent, per interface and in
//! order, and refers to those buffers: it is flushed before they are used again. No error stops the loop unless the socket itself is unusable:
//! what is lost is counted.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use super::direct::{self, Sender};
use super::header::{self, OFFLOAD_HEADER_LEN, VLAN_TAG_LEN};
use super::pauses::{Histogram, HistogramReport};
use super::ring::{Ring, Slot};
use crate::base::{Frame, Offload, Output, Sent};
use crate::sys::socket::{self, MAX_MESSAGES, RxBuffer};

/// The largest IP packet with an Ethernet header and a tag left in the frame. Only BIG TCP, off by default, makes larger ones: counted, not forwarded.
const MAX_FRAME_LEN: usize = 14 + 4 + 65535;
/// Frames per batch. Bulk transfers over veth ran equally fast with 8 to 64 (within the noise of the measurement): this is enough to make the
/// system calls cheap for small frames, and keeps the buffers at 2 MiB.
pub const BATCH: usize = MAX_MESSAGES;
/// What may wait for a full socket, per interface, beside what its buffer and the interface's queue hold (4 MiB and more): enough for what comes until the loop
/// tries again, little enough to be copied while other interfaces wait. A router drops what comes beyond.
const BACKLOG_FRAMES: usize = 1024;
const BACKLOG_BYTES: usize = 1 << 20;

/// What went wrong between the wire and the data path. Written by the loop, read by anyone.
#[derive(Debug, Default)]
pub struct IoCounters {
    rx_truncated: AtomicU64,
    rx_errors: AtomicU64,
    rx_dropped: AtomicU64,
    tx_dropped: AtomicU64,
    tx_errors: AtomicU64,
    /// How long the loop looked away from its sockets, whatever the cause.
    pub(super) pauses: Histogram,
    /// The part of that in which it carried out commands of the control side, of the rounds that had any.
    pub(super) control: Histogram,
}

/// How long the loop looked away from its sockets, so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoopReport {
    /// Each round.
    pub pauses: HistogramReport,
    /// Commands of the control side, per round that had any.
    pub control: HistogramReport,
}

/// What went wrong, of [`IoCounters`], at one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoReport {
    /// Frames larger than the buffer: not forwarded.
    pub rx_truncated: u64,
    /// Failed receives: the interface went down, or a frame came whose offload cannot be told (with it a ring ends too).
    pub rx_errors: u64,
    /// Frames that found no room before they were read, as far as the loop asked the kernel for them.
    pub rx_dropped: u64,
    /// Frames for which the way out had no room: the interface's queue, or the socket and what may wait for it.
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
            rx_dropped: self.rx_dropped.load(Ordering::Relaxed),
            tx_dropped: self.tx_dropped.load(Ordering::Relaxed),
            tx_errors: self.tx_errors.load(Ordering::Relaxed),
        }
    }

    /// Read how long the loop looked away.
    #[must_use]
    pub fn loop_report(&self) -> LoopReport {
        LoopReport {
            pauses: self.pauses.report(),
            control: self.control.report(),
        }
    }
}

fn add_one(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A packet socket, with its receive ring when it could have one.
pub struct Port {
    fd: RawFd,
    ring: Option<Ring>,
    /// For frames with nothing left to do, where they may pass by queue disciplines.
    direct: Option<Sender>,
}

impl Port {
    /// Use a socket. One that can have no ring (no packet socket, no memory) is read by system calls.
    #[must_use]
    pub fn new(fd: RawFd) -> Self {
        Self {
            fd,
            ring: Ring::new(fd).ok(),
            direct: None,
        }
    }

    /// Hand frames straight to the driver from now on, those that are finished, by a fresh `AF_XDP` socket.
    ///
    /// # Errors
    /// As [`Sender::new`].
    pub fn send_directly(&mut self, by: RawFd) -> io::Result<()> {
        self.direct = Some(Sender::new(by, self.fd)?);
        Ok(())
    }

    /// Whether a frame waits. Without a ring only a receive can tell.
    #[must_use]
    pub fn may_be_ready(&self) -> bool {
        self.ring.as_ref().is_none_or(Ring::is_ready)
    }

    /// Give the ring up when it has stopped: frames come by system calls from now on. Have frames sent that the driver did not take. To be called now and then.
    pub fn watch(&mut self, counters: &IoCounters) {
        if let Some(sender) = &mut self.direct {
            sender.resume();
        }
        let Some(ring) = &mut self.ring else { return };
        let (drops, has_stopped) = ring.watch();
        counters.rx_dropped.fetch_add(drops, Ordering::Relaxed);
        if has_stopped {
            add_one(&counters.rx_errors);
            self.ring = None;
        }
    }
}

/// Where a received message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Space {
    Slot(usize),
    Buffer(usize),
}

/// One received frame: where it is in its space, and what is left to do for it. [`OFFLOAD_HEADER_LEN`] free bytes precede it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Received {
    space: Space,
    start: usize,
    end: usize,
    offload: Offload,
}

/// Up to [`BATCH`] received frames of one port.
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

    /// Receive what waits at a port, at most one batch, over the frames of the last call. Returns the number of usable frames. The batch belongs to
    /// this port until it is finished ([`Batch::finish`]).
    ///
    /// # Errors
    /// Only when the descriptor is no usable socket; other errors are counted.
    pub fn receive(&mut self, port: &mut Port, counters: &IoCounters) -> io::Result<usize> {
        self.frames.clear();
        let taken = port.ring.as_mut().map_or(0, |ring| ring.take(BATCH));
        match &mut port.ring {
            Some(ring) if taken > 0 => self.read_ring(port.fd, ring, taken, counters)?,
            // Also with a ring: an error of the interface is told in the queue.
            _ => {
                let count = self.fill(port.fd, BATCH, counters)?;
                for index in 0..count {
                    self.add_queued(index, counters);
                }
            }
        }
        Ok(self.frames.len())
    }

    /// Read what is told of the taken slots. Frames too long for a slot wait in the queue, in the same order.
    fn read_ring(
        &mut self,
        fd: RawFd,
        ring: &mut Ring,
        taken: usize,
        counters: &IoCounters,
    ) -> io::Result<()> {
        let queued = (0..taken)
            .filter(|&index| ring.slot(index).is_queued)
            .count();
        let filled = self.fill(fd, queued, counters)?;
        let mut next = 0;
        for index in 0..taken {
            let slot = ring.slot(index);
            if !slot.is_queued {
                self.add(finish_slot(index, slot, ring.space_mut(index)), counters);
            } else if next < filled {
                self.add_queued(next, counters);
                next += 1;
            }
        }
        Ok(())
    }

    /// Receive up to `most` messages of the queue into the buffers, from the first one on. Returns how many.
    fn fill(&mut self, fd: RawFd, most: usize, counters: &IoCounters) -> io::Result<usize> {
        let mut filled = 0;
        // One call gives all that there are, unless one in between cannot be given.
        while filled < most {
            match socket::receive(fd, &mut self.buffers[filled..most]) {
                Ok(count) if most == BATCH => return Ok(filled + count),
                Ok(count) => filled += count,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) =>
                {
                    break;
                }
                Err(error) if is_fatal(&error) => return Err(error),
                Err(_) => {
                    add_one(&counters.rx_errors);
                    break;
                }
            }
        }
        Ok(filled)
    }

    fn add_queued(&mut self, index: usize, counters: &IoCounters) {
        let received = finish_message(index, &mut self.buffers[index]);
        self.add(received, counters);
    }

    fn add(&mut self, received: Option<Received>, counters: &IoCounters) {
        match received {
            Some(received) => self.frames.push(received),
            None => add_one(&counters.rx_truncated),
        }
    }

    /// The frames, in order, to be processed in place.
    pub fn frames_mut<'a>(&'a mut self, port: &'a mut Port) -> impl Iterator<Item = Frame<'a>> {
        let mut slots = port.ring.iter_mut().flat_map(Ring::spaces_mut).enumerate();
        let mut buffers = self.buffers.iter_mut().enumerate();
        self.frames.iter().filter_map(move |received| {
            let (_, space) = match received.space {
                Space::Slot(wanted) => slots.find(|&(index, _)| index == wanted)?,
                Space::Buffer(wanted) => buffers
                    .find(|&(index, _)| index == wanted)
                    .map(|(index, buffer)| (index, &mut buffer.space[..]))?,
            };
            Some(Frame {
                bytes: &mut space[received.start..received.end],
                offload: received.offload,
            })
        })
    }

    /// Write the offload header of the frame at `index` before it.
    fn write_header(
        &mut self,
        port: &mut Port,
        index: usize,
        offload_header: [u8; OFFLOAD_HEADER_LEN],
    ) {
        let Received { space, start, .. } = self.frames[index];
        let place = start - OFFLOAD_HEADER_LEN..start;
        match (space, &mut port.ring) {
            (Space::Buffer(buffer), _) => {
                self.buffers[buffer].space[place].copy_from_slice(&offload_header);
            }
            (Space::Slot(slot), Some(ring)) => {
                ring.space_mut(slot)[place].copy_from_slice(&offload_header);
            }
            (Space::Slot(_), None) => unreachable!("a slot without a ring"),
        }
    }

    /// The offload header and the first `len` bytes of the frame at `index`.
    fn message<'a>(&'a self, port: &'a Port, index: usize, len: usize) -> &'a [u8] {
        let Received { space, start, .. } = self.frames[index];
        let place = start - OFFLOAD_HEADER_LEN..start + len;
        match (space, &port.ring) {
            (Space::Buffer(buffer), _) => &self.buffers[buffer].space[place],
            (Space::Slot(slot), Some(ring)) => &ring.space(slot)[place],
            (Space::Slot(_), None) => unreachable!("a slot without a ring"),
        }
    }

    /// Forget the frames; give their slots back.
    pub fn finish(&mut self, port: &mut Port) {
        self.frames.clear();
        if let Some(ring) = &mut port.ring {
            ring.give_back();
        }
    }
}

fn new_buffer() -> RxBuffer {
    let headroom = VLAN_TAG_LEN;
    RxBuffer {
        control: [0; 8],
        control_len: 0,
        space: vec![0; headroom + OFFLOAD_HEADER_LEN + MAX_FRAME_LEN].into_boxed_slice(),
        headroom,
        message_len: 0,
        truncated: false,
    }
}

/// Errors that no waiting mends: the descriptor is not a socket of ours. `EINVAL` is none of them: the kernel gives it for one frame, which it takes off
/// the queue, whose segmentation an offload header cannot name (UDP fragments of a virtual machine, SCTP).
fn is_fatal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EBADF | libc::ENOTSOCK | libc::EFAULT)
    )
}

/// Make a frame of a message from the queue. `None` when it is cut short.
fn finish_message(index: usize, buffer: &mut RxBuffer) -> Option<Received> {
    let frame_len = buffer.message_len.checked_sub(OFFLOAD_HEADER_LEN)?;
    if buffer.truncated {
        return None;
    }
    let control: &[u8] = bytemuck::cast_slice(&buffer.control);
    let tag = header::stripped_tag(&control[..buffer.control_len.min(control.len())]);
    let start = buffer.headroom + OFFLOAD_HEADER_LEN;
    let place = start..start + frame_len;
    finish(Space::Buffer(index), &mut buffer.space, place, tag)
}

/// Make a frame of a slot of the ring. `None` when it is cut short.
fn finish_slot(index: usize, slot: Slot, space: &mut [u8]) -> Option<Received> {
    let fits = slot.start >= OFFLOAD_HEADER_LEN + VLAN_TAG_LEN && slot.end <= space.len();
    if slot.is_truncated || !fits {
        return None;
    }
    finish(Space::Slot(index), space, slot.start..slot.end, slot.tag)
}

/// Read the offload header that precedes a frame, and put its VLAN tag back: over the header, for which there is room before it.
fn finish(
    place: Space,
    space: &mut [u8],
    Range { mut start, end }: Range<usize>,
    tag: Option<[u8; VLAN_TAG_LEN]>,
) -> Option<Received> {
    let offload_header = space[..start].last_chunk()?;
    let mut offload = header::decode(*offload_header);
    if let Some(tag) = tag {
        start -= VLAN_TAG_LEN;
        if !header::insert_tag(&mut space[start..end], tag) {
            return None;
        }
        offload = header::behind_tag(offload);
    }
    Some(Received {
        space: place,
        start,
        end,
        offload,
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

impl Pending {
    /// Whether nothing is left to do for the card.
    fn is_finished(&self) -> bool {
        self.header == [0; OFFLOAD_HEADER_LEN]
    }
}

/// Messages that wait for a socket which is full, in order.
#[derive(Debug, Default)]
struct Backlog {
    messages: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Backlog {
    /// Keep a message, or count it as dropped when there is no room.
    fn push(&mut self, (header, frame): (&[u8], &[u8]), counters: &IoCounters) {
        let bytes = self.bytes + header.len() + frame.len();
        if self.messages.len() >= BACKLOG_FRAMES || bytes > BACKLOG_BYTES {
            return add_one(&counters.tx_dropped);
        }
        self.bytes = bytes;
        self.messages.push_back([header, frame].concat());
    }

    /// Send from its front, for one system call at most, but for frames that are refused. Says whether it is empty.
    fn drain(&mut self, fd: RawFd, counters: &IoCounters) -> bool {
        let (first, _) = self.messages.as_slices();
        let chunk = &first[..first.len().min(MAX_MESSAGES)];
        let done = send_all(fd, chunk, |message| (&message[..], &[][..]), counters);
        for message in self.messages.drain(..done) {
            self.bytes -= message.len();
        }
        self.messages.is_empty()
    }
}

/// What is to be sent, per interface, in the order in which the data path gave it.
pub struct Outbox {
    /// Frames of their own: the data path appends here.
    pub extra: Vec<Output>,
    collected: usize,
    queues: Vec<Vec<Pending>>,
    backlogs: Vec<Backlog>,
    /// Whether any backlog holds a message.
    has_backlog: bool,
}

impl Outbox {
    /// Make an empty one for so many interfaces.
    #[must_use]
    pub fn new(interfaces: usize) -> Self {
        Self {
            extra: Vec::new(),
            collected: 0,
            queues: vec![Vec::with_capacity(BATCH); interfaces],
            backlogs: std::iter::repeat_with(Backlog::default)
                .take(interfaces)
                .collect(),
            has_backlog: false,
        }
    }

    /// Whether frames wait for a full socket.
    #[must_use]
    pub fn has_backlog(&self) -> bool {
        self.has_backlog
    }

    /// Whether frames wait for the socket of an interface.
    #[must_use]
    pub fn is_blocked(&self, interface: usize) -> bool {
        let backlog = self.backlogs.get(interface);
        backlog.is_some_and(|backlog| !backlog.messages.is_empty())
    }

    /// Send what waits, of each interface some. Nothing is waited for.
    pub fn drain(&mut self, ports: &[Port], counters: &IoCounters) {
        let mut has_backlog = false;
        for (backlog, port) in self.backlogs.iter_mut().zip(ports) {
            has_backlog |= !backlog.messages.is_empty() && !backlog.drain(port.fd, counters);
        }
        self.has_backlog = has_backlog;
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

    /// Send everything that is queued, or keep it for a socket that is full, and forget it. Nothing is waited for (behaviour 40). `batch` is the one that was collected from, of the port at `source`.
    pub fn flush(
        &mut self,
        batch: &mut Batch,
        source: usize,
        ports: &mut [Port],
        counters: &IoCounters,
    ) {
        for pending in self.queues.iter().flatten() {
            if let Place::Batch { index, .. } = pending.place {
                batch.write_header(&mut ports[source], index, pending.header);
            }
        }
        for (interface, queue) in self.queues.iter().enumerate() {
            // Apart for the while: the port that sends may be the one that the frames are in.
            let Some(port) = ports.get_mut(interface) else {
                continue;
            };
            let (fd, mut direct) = (port.fd, port.direct.take());
            let source = &ports[source];
            let pieces = |pending| pieces(pending, batch, source, &self.extra);
            let backlog = &mut self.backlogs[interface];
            let done = match &mut direct {
                // Behind those that wait, in order.
                _ if !backlog.messages.is_empty() => 0,
                Some(sender) => send_directly(sender, fd, queue, pieces, counters),
                None => send_all(fd, queue, pieces, counters),
            };
            for pending in &queue[done..] {
                backlog.push(pieces(pending), counters);
            }
            self.has_backlog |= done < queue.len();
            ports[interface].direct = direct;
        }
        self.queues.iter_mut().for_each(Vec::clear);
        self.extra.clear();
        self.collected = 0;
    }
}

/// The offload header and the frame.
fn pieces<'a>(
    pending: &'a Pending,
    batch: &'a Batch,
    source: &'a Port,
    extra: &'a [Output],
) -> (&'a [u8], &'a [u8]) {
    match pending.place {
        Place::Batch { index, len } => (batch.message(source, index, len), &[]),
        Place::Extra(index) => (&pending.header, &extra[index].frame),
    }
}

/// Send a queue in order: frames with nothing left to do straight to the driver, as far as there is room, the others through the packet socket. Returns how
/// many are done with; the socket is full at the next one.
fn send_directly<'a>(
    sender: &mut Sender,
    fd: RawFd,
    queue: &'a [Pending],
    pieces: impl Fn(&'a Pending) -> (&'a [u8], &'a [u8]),
    counters: &IoCounters,
) -> usize {
    let mut done = 0;
    while done < queue.len() {
        let left = &queue[done..];
        let direct = left.iter().take_while(|pending| pending.is_finished());
        let frames = direct.map(|pending| match pieces(pending) {
            (message, []) => &message[OFFLOAD_HEADER_LEN..],
            (_, frame) => frame,
        });
        let sent = sender.send(frames.take_while(|frame| frame.len() <= direct::CHUNK_LEN));
        done += sent;
        let left = &left[sent..];
        // At least one: what was not sent now has no room there, whatever it is.
        let others = left.iter().skip(1);
        let count = others.take_while(|pending| !pending.is_finished()).count() + 1;
        let through_socket = &left[..count.min(left.len())];
        let sent = send_all(fd, through_socket, &pieces, counters);
        done += sent;
        if sent < through_socket.len() {
            break;
        }
    }
    done
}

/// Send a queue in order, without waiting. Returns how many are done with; the socket is full at the next one. A frame that the kernel refuses is skipped; one
/// that finds the interface's queue full is dropped there, as it is for any router.
fn send_all<'a, T>(
    fd: RawFd,
    queue: &'a [T],
    pieces: impl Fn(&'a T) -> (&'a [u8], &'a [u8]),
    counters: &IoCounters,
) -> usize {
    let mut done = 0;
    while done < queue.len() {
        let chunk = &queue[done..queue.len().min(done + MAX_MESSAGES)];
        let error = match socket::send(fd, chunk.iter().map(&pieces)) {
            Ok(count) => {
                done += count;
                continue;
            }
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN) => break,
            Some(libc::ENOBUFS) => {
                add_one(&counters.tx_dropped);
                done += 1;
            }
            _ => {
                add_one(&counters.tx_errors);
                done += 1;
            }
        }
    }
    done
}

#[cfg(test)]
mod tests {
    //! A pair of datagram sockets keeps messages apart as a packet socket does, and needs no privilege.

    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    const PARTIAL: Offload = Offload {
        flags: 1,
        gso_type: 1,
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
    };

    fn pair() -> (UnixDatagram, UnixDatagram) {
        UnixDatagram::pair().unwrap()
    }

    fn message(offload: Offload, frame: &[u8]) -> Vec<u8> {
        [&header::encode(offload)[..], frame].concat()
    }

    /// Everything that waits in a socket.
    fn drain(socket: &UnixDatagram) -> Vec<Vec<u8>> {
        socket.set_nonblocking(true).unwrap();
        let mut space = vec![0; 100_000];
        std::iter::from_fn(|| {
            socket
                .recv(&mut space)
                .ok()
                .map(|len| space[..len].to_vec())
        })
        .collect()
    }

    fn output(interface: u32, frame: &[u8]) -> Output {
        Output {
            interface,
            frame: frame.to_vec(),
            offload: Offload::default(),
        }
    }

    fn sent(interface: u32, len: usize) -> Sent {
        Sent {
            interface,
            len,
            offload: Offload::default(),
        }
    }

    #[test]
    fn batch_receives_frames_with_their_offload_in_order() {
        let (near, far) = pair();
        far.send(&message(Offload::default(), b"plain frame here"))
            .unwrap();
        far.send(&message(PARTIAL, b"partial frame")).unwrap();
        let (mut batch, counters) = (Batch::new(), IoCounters::default());
        let mut port = Port::new(near.as_raw_fd());
        assert_eq!(batch.receive(&mut port, &counters).unwrap(), 2);
        let frames: Vec<_> = batch
            .frames_mut(&mut port)
            .map(|frame| (frame.bytes.to_vec(), frame.offload))
            .collect();
        assert_eq!(
            frames,
            [
                (b"plain frame here".to_vec(), Offload::default()),
                (b"partial frame".to_vec(), PARTIAL)
            ]
        );
        assert_eq!(counters.report(), IoReport::default());
    }

    #[test]
    fn batch_empty_queue_gives_nothing_and_counts_nothing() {
        let (near, _far) = pair();
        let (mut batch, counters) = (Batch::new(), IoCounters::default());
        let mut port = Port::new(near.as_raw_fd());
        assert_eq!(batch.receive(&mut port, &counters).unwrap(), 0);
        assert_eq!(counters.report(), IoReport::default());
    }

    #[test]
    fn batch_frame_too_large_or_too_short_is_counted_and_left_out() {
        let (near, far) = pair();
        far.send(&message(Offload::default(), &vec![1; MAX_FRAME_LEN + 1]))
            .unwrap();
        far.send(&[0; OFFLOAD_HEADER_LEN - 1]).unwrap();
        far.send(&message(Offload::default(), &vec![2; MAX_FRAME_LEN]))
            .unwrap();
        let (mut batch, counters) = (Batch::new(), IoCounters::default());
        let mut port = Port::new(near.as_raw_fd());
        assert_eq!(batch.receive(&mut port, &counters).unwrap(), 1);
        let frames: Vec<_> = batch
            .frames_mut(&mut port)
            .map(|frame| frame.bytes)
            .collect();
        assert_eq!(frames, [vec![2; MAX_FRAME_LEN]]);
        assert_eq!(
            counters.report(),
            IoReport {
                rx_truncated: 2,
                ..IoReport::default()
            }
        );
    }

    #[test]
    fn batch_descriptor_that_is_no_socket_is_an_error() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = Batch::new()
            .receive(&mut Port::new(file.as_raw_fd()), &IoCounters::default())
            .unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK));
    }

    #[test]
    fn batch_frame_with_stripped_tag_gets_it_back() {
        let mut buffer = new_buffer();
        let received = message(PARTIAL, b"DESTINSOURCE\x08\x00ip");
        buffer.space[buffer.headroom..][..received.len()].copy_from_slice(&received);
        buffer.message_len = received.len();
        // One control message: length 36, level SOL_PACKET, kind PACKET_AUXDATA, status, ..., tag 7, protocol 0x88a8.
        let control: &mut [u8] = bytemuck::cast_slice_mut(&mut buffer.control);
        control[..8].copy_from_slice(&36u64.to_ne_bytes());
        control[8..12].copy_from_slice(&263i32.to_ne_bytes());
        control[12..16].copy_from_slice(&8i32.to_ne_bytes());
        control[16..20].copy_from_slice(&0x50u32.to_ne_bytes());
        control[32..34].copy_from_slice(&7u16.to_ne_bytes());
        control[34..36].copy_from_slice(&0x88a8u16.to_ne_bytes());
        buffer.control_len = 40;
        let received = finish_message(0, &mut buffer).unwrap();
        assert_eq!(
            &buffer.space[received.start..received.end],
            b"DESTINSOURCE\x88\xa8\x00\x07\x08\x00ip"
        );
        assert_eq!(
            received.offload,
            Offload {
                hdr_len: 58,
                csum_start: 38,
                ..PARTIAL
            }
        );
    }

    #[test]
    fn outbox_keeps_order_of_each_interface_and_cuts_frames() {
        let (near, far) = pair();
        let (out1, seen1) = pair();
        let (mut batch, counters) = (Batch::new(), IoCounters::default());
        let mut ports = [&near, &out1].map(|socket| Port::new(socket.as_raw_fd()));
        far.send(&message(Offload::default(), b"first...."))
            .unwrap();
        far.send(&message(Offload::default(), b"second")).unwrap();
        batch.receive(&mut ports[0], &counters).unwrap();
        let mut outbox = Outbox::new(2);
        outbox
            .extra
            .extend([output(0, b"answer"), output(1, b"other")]);
        outbox.collect(0, Some(sent(0, 5)), &counters);
        outbox.extra.push(output(1, b"late"));
        outbox.collect(1, Some(sent(0, 6)), &counters);
        outbox.flush(&mut batch, 0, &mut ports, &counters);
        let plain = |frame: &[u8]| message(Offload::default(), frame);
        assert_eq!(
            drain(&far),
            [plain(b"first"), plain(b"answer"), plain(b"second")]
        );
        assert_eq!(drain(&seen1), [plain(b"other"), plain(b"late")]);
        assert_eq!(counters.report(), IoReport::default());
        outbox.flush(&mut batch, 0, &mut ports, &counters);
        assert_eq!(
            drain(&far),
            Vec::<Vec<u8>>::new(),
            "a flushed frame is not sent again"
        );
    }

    #[test]
    fn outbox_refused_frame_is_skipped_and_counted() {
        let (out, seen) = pair();
        let counters = IoCounters::default();
        let mut outbox = Outbox::new(1);
        outbox.extra.extend([
            output(0, b"before"),
            output(0, &vec![0; 1 << 22]),
            output(0, b"after"),
        ]);
        outbox.collect_extra(&counters);
        let mut ports = [Port::new(out.as_raw_fd())];
        outbox.flush(&mut Batch::new(), 0, &mut ports, &counters);
        let plain = |frame: &[u8]| message(Offload::default(), frame);
        assert_eq!(drain(&seen), [plain(b"before"), plain(b"after")]);
        assert_eq!(
            counters.report(),
            IoReport {
                tx_errors: 1,
                ..IoReport::default()
            }
        );
    }

    /// behaviour 40: what finds the socket full waits, in order, while another interface sends; nothing is lost or overtaken.
    #[test]
    fn outbox_full_way_out_keeps_frames_in_order_and_holds_up_no_other() {
        let ((full, seen_late), (free, seen)) = (pair(), pair());
        full.set_nonblocking(true).unwrap();
        let mut filled = 0;
        while full.send(b"filler").is_ok() {
            filled += 1;
        }
        let counters = IoCounters::default();
        let mut outbox = Outbox::new(2);
        let mut ports = [&full, &free].map(|socket| Port::new(socket.as_raw_fd()));
        for round in 0..3 {
            let frames = (0..100).map(|number| output(0, &[b'a', round, number]));
            outbox.extra.extend(frames);
            outbox.extra.push(output(1, b"other"));
            outbox.collect_extra(&counters);
            outbox.flush(&mut Batch::new(), 0, &mut ports, &counters);
        }
        let plain = |frame: &[u8]| message(Offload::default(), frame);
        assert_eq!(drain(&seen), [(); 3].map(|()| plain(b"other")));
        assert!(outbox.is_blocked(0) && !outbox.is_blocked(1));
        let mut late = drain(&seen_late);
        while outbox.has_backlog() {
            outbox.drain(&ports, &counters);
            late.extend(drain(&seen_late));
        }
        let expected = (0..3).flat_map(|round| (0..100).map(move |number| [b'a', round, number]));
        let expected: Vec<_> = expected.map(|frame| plain(&frame)).collect();
        assert_eq!(late[filled..], expected);
        assert_eq!(counters.report(), IoReport::default());
    }

    /// behaviour 40: what waits is bounded, by frames and by bytes; the rest is dropped and counted.
    #[test]
    fn outbox_way_out_that_stays_full_drops_and_counts_what_is_beyond_the_backlog() {
        for (len, kept) in [
            (5, BACKLOG_FRAMES),
            (60_000, BACKLOG_BYTES / (60_000 + OFFLOAD_HEADER_LEN)),
        ] {
            let (out, seen) = pair();
            out.set_nonblocking(true).unwrap();
            while out.send(b"filler").is_ok() {}
            let counters = IoCounters::default();
            let mut outbox = Outbox::new(1);
            let mut ports = [Port::new(out.as_raw_fd())];
            outbox
                .extra
                .extend((0..kept + 7).map(|_| output(0, &vec![7; len])));
            outbox.collect_extra(&counters);
            outbox.flush(&mut Batch::new(), 0, &mut ports, &counters);
            drain(&seen);
            let mut sent = 0;
            while outbox.has_backlog() {
                outbox.drain(&ports, &counters);
                sent += drain(&seen).len();
            }
            assert_eq!(sent, kept);
            let expected = IoReport {
                tx_dropped: 7,
                ..IoReport::default()
            };
            assert_eq!(counters.report(), expected);
        }
    }

    #[test]
    fn outbox_interface_without_socket_is_counted() {
        let counters = IoCounters::default();
        let mut outbox = Outbox::new(1);
        outbox.extra.push(output(7, b"frame"));
        outbox.collect_extra(&counters);
        assert_eq!(
            counters.report(),
            IoReport {
                tx_errors: 1,
                ..IoReport::default()
            }
        );
    }

    const SLOT: Slot = Slot {
        start: 14,
        end: 30,
        is_queued: false,
        is_truncated: false,
        tag: None,
    };

    /// A slot's space with four free bytes, an offload header and a frame.
    fn slot_space() -> Vec<u8> {
        [
            &[0; VLAN_TAG_LEN][..],
            &message(PARTIAL, b"DESTINSOURCE\x08\x00ip"),
        ]
        .concat()
    }

    #[test]
    fn slot_frame_is_read_in_place_and_gets_its_tag_back() {
        let mut space = slot_space();
        let received = finish_slot(3, SLOT, &mut space).unwrap();
        assert_eq!(received.space, Space::Slot(3));
        assert_eq!(received.offload, PARTIAL);
        assert_eq!(
            &space[received.start..received.end],
            b"DESTINSOURCE\x08\x00ip"
        );
        let tag = Some([0x81, 0, 0, 7]);
        let received = finish_slot(3, Slot { tag, ..SLOT }, &mut space).unwrap();
        assert_eq!(received.offload.csum_start, PARTIAL.csum_start + 4);
        let tagged = b"DESTINSOURCE\x81\x00\x00\x07\x08\x00ip";
        assert_eq!(&space[received.start..received.end], tagged);
        assert!(
            received.start >= OFFLOAD_HEADER_LEN,
            "no room for the header"
        );
    }

    #[test]
    fn slot_cut_short_or_beyond_its_space_is_no_frame() {
        let mut space = slot_space();
        let is_truncated = true;
        for slot in [
            Slot {
                is_truncated,
                ..SLOT
            },
            Slot { start: 13, ..SLOT },
            Slot { end: 31, ..SLOT },
        ] {
            assert_eq!(finish_slot(0, slot, &mut space), None, "{slot:?}");
        }
    }
}
