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
use crate::datapath::{Frame, Offload, Output, Sent};

/// The largest IP packet with an Ethernet header and a tag left in the frame. Only BIG TCP, off by default, makes larger ones: counted, not forwarded.
const MAX_FRAME_LEN: usize = 14 + 4 + 65535;
/// Frames per batch. Bulk transfers over veth ran equally fast with 8 to 64 (within the noise of the measurement): this is enough to make the
/// system calls cheap for small frames, and keeps the buffers at 2 MiB.
pub const BATCH: usize = MAX_MESSAGES;
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
    /// Failed receives: the interface went down, or a frame whose offload cannot be told.
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

    /// The frames, in order, to be processed in place.
    pub fn frames_mut(&mut self) -> impl Iterator<Item = Frame<'_>> {
        let mut frames = self.frames.iter().peekable();
        let buffers = self.buffers.iter_mut().enumerate();
        buffers.filter_map(move |(index, buffer)| {
            let received = frames.next_if(|received| received.buffer == index)?;
            Some(Frame {
                bytes: &mut buffer.space[received.start..received.end],
                offload: received.offload,
            })
        })
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

/// Errors that no waiting mends: the descriptor is not a socket of ours. `EINVAL` is none of them: the kernel gives it for one frame, which it takes off
/// the queue, whose segmentation an offload header cannot name (UDP fragments of a virtual machine, SCTP).
fn is_fatal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EBADF | libc::ENOTSOCK | libc::EFAULT)
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
        assert_eq!(batch.receive(near.as_raw_fd(), &counters).unwrap(), 2);
        let frames: Vec<_> = batch
            .frames_mut()
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
        assert_eq!(batch.receive(near.as_raw_fd(), &counters).unwrap(), 0);
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
        assert_eq!(batch.receive(near.as_raw_fd(), &counters).unwrap(), 1);
        let frames: Vec<_> = batch.frames_mut().map(|frame| frame.bytes).collect();
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
            .receive(file.as_raw_fd(), &IoCounters::default())
            .unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK));
    }

    #[test]
    fn batch_frame_with_stripped_tag_gets_it_back() {
        let mut buffer = new_buffer();
        buffer.space[VLAN_TAG_LEN..VLAN_TAG_LEN + 16].copy_from_slice(b"DESTINSOURCE\x08\x00ip");
        buffer.message_len = OFFLOAD_HEADER_LEN + 16;
        buffer.header = header::encode(PARTIAL);
        // One control message: length 36, level SOL_PACKET, kind PACKET_AUXDATA, status, ..., tag 7, protocol 0x88a8.
        let control: &mut [u8] = bytemuck::cast_slice_mut(&mut buffer.control);
        control[..8].copy_from_slice(&36u64.to_ne_bytes());
        control[8..12].copy_from_slice(&263i32.to_ne_bytes());
        control[12..16].copy_from_slice(&8i32.to_ne_bytes());
        control[16..20].copy_from_slice(&0x50u32.to_ne_bytes());
        control[32..34].copy_from_slice(&7u16.to_ne_bytes());
        control[34..36].copy_from_slice(&0x88a8u16.to_ne_bytes());
        buffer.control_len = 40;
        let received = finish(0, &mut buffer).unwrap();
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
        let (out0, seen0) = pair();
        let (out1, seen1) = pair();
        let (mut batch, counters) = (Batch::new(), IoCounters::default());
        far.send(&message(Offload::default(), b"first...."))
            .unwrap();
        far.send(&message(Offload::default(), b"second")).unwrap();
        batch.receive(near.as_raw_fd(), &counters).unwrap();
        let mut outbox = Outbox::new(2);
        outbox
            .extra
            .extend([output(0, b"answer"), output(1, b"other")]);
        outbox.collect(0, Some(sent(0, 5)), &counters);
        outbox.extra.push(output(1, b"late"));
        outbox.collect(1, Some(sent(0, 6)), &counters);
        outbox.flush(&batch, &[out0.as_raw_fd(), out1.as_raw_fd()], &counters);
        let plain = |frame: &[u8]| message(Offload::default(), frame);
        assert_eq!(
            drain(&seen0),
            [plain(b"first"), plain(b"answer"), plain(b"second")]
        );
        assert_eq!(drain(&seen1), [plain(b"other"), plain(b"late")]);
        assert_eq!(counters.report(), IoReport::default());
        outbox.flush(&batch, &[out0.as_raw_fd(), out1.as_raw_fd()], &counters);
        assert_eq!(
            drain(&seen0),
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
        outbox.flush(&Batch::new(), &[out.as_raw_fd()], &counters);
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

    #[test]
    fn outbox_way_out_that_stays_full_drops_and_counts_each_frame() {
        let (out, seen) = pair();
        out.set_nonblocking(true).unwrap();
        let mut filled = 0;
        while out.send(b"filler").is_ok() {
            filled += 1;
        }
        let counters = IoCounters::default();
        let mut outbox = Outbox::new(1);
        outbox.extra.extend((0..100).map(|_| output(0, b"frame")));
        outbox.collect_extra(&counters);
        outbox.flush(&Batch::new(), &[out.as_raw_fd()], &counters);
        assert_eq!(drain(&seen).len(), filled);
        assert_eq!(
            counters.report(),
            IoReport {
                tx_dropped: 100,
                ..IoReport::default()
            }
        );
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
}
