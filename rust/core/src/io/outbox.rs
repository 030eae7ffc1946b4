//! What is to be sent, per interface and in order. It refers to the frames of the batch it was collected from, and
//! is flushed before they are used again. No error stops the loop unless the socket itself is unusable: what is
//! lost is counted.

use std::os::fd::RawFd;

use super::af_xdp::{self, XdpSender};
use super::backlog::{Backlog, send_all};
use super::batch::{BATCH, Batch};
use super::counters::{IoCounters, add_one};
use super::interface::Interface;
use super::vnet_hdr::{self, OFFLOAD_HEADER_LEN};
use crate::base::{InterfaceId, Output, Sent};

/// One frame to send: in the batch, or one of its own.
#[derive(Clone, Copy, Debug)]
enum FrameRef {
    Batch { index: usize, len: usize },
    Extra(usize),
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    header: [u8; OFFLOAD_HEADER_LEN],
    frame: FrameRef,
}

impl Pending {
    /// Whether nothing is left to do for the card.
    fn is_finished(&self) -> bool {
        self.header == [0; OFFLOAD_HEADER_LEN]
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
    /// Make an empty one for `interfaces` interfaces.
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
    pub fn is_blocked(&self, interface: InterfaceId) -> bool {
        let backlog = self.backlogs.get(interface.index());
        backlog.is_some_and(|backlog| !backlog.messages.is_empty())
    }

    /// Send what waits, of each interface some. Nothing is waited for.
    pub fn drain(&mut self, interfaces: &[Interface], counters: &IoCounters) {
        let mut has_backlog = false;
        for (backlog, interface) in self.backlogs.iter_mut().zip(interfaces) {
            has_backlog |= !backlog.messages.is_empty() && !backlog.drain(interface.fd, counters);
        }
        self.has_backlog = has_backlog;
    }

    /// Queue what one call of the data path gave: the frame that came in, then those it appended to `extra`.
    pub fn collect(&mut self, index: usize, sent: Option<Sent>, counters: &IoCounters) {
        if let Some(sent) = sent {
            let frame = FrameRef::Batch {
                index,
                len: sent.len,
            };
            self.push(
                sent.interface,
                Pending {
                    header: vnet_hdr::encode(sent.offload),
                    frame,
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
                header: vnet_hdr::encode(output.offload),
                frame: FrameRef::Extra(self.collected),
            };
            let interface = output.interface;
            self.collected += 1;
            self.push(interface, pending, counters);
        }
    }

    fn push(&mut self, interface: InterfaceId, pending: Pending, counters: &IoCounters) {
        match self.queues.get_mut(interface.index()) {
            Some(queue) => queue.push(pending),
            // The snapshot names an interface that the loop was given no socket for.
            None => add_one(&counters.tx_errors),
        }
    }

    /// Send everything that is queued, or keep it for a socket that is full, and forget it. Nothing is waited for
    /// (rule 22.2, full interfaces). `batch` is the one that was collected from, of the interface `source`.
    pub fn flush(
        &mut self,
        batch: &mut Batch,
        source: InterfaceId,
        interfaces: &mut [Interface],
        counters: &IoCounters,
    ) {
        let source = source.index();
        for pending in self.queues.iter().flatten() {
            if let FrameRef::Batch { index, .. } = pending.frame {
                batch.write_header(&mut interfaces[source], index, pending.header);
            }
        }
        for (id, queue) in self.queues.iter().enumerate() {
            // Apart for the while: the interface that sends may be the one that the frames are in.
            let Some(interface) = interfaces.get_mut(id) else {
                continue;
            };
            let (fd, mut af_xdp) = (interface.fd, interface.af_xdp.take());
            let source = &interfaces[source];
            let pieces = |pending| pieces(pending, batch, source, &self.extra);
            let backlog = &mut self.backlogs[id];
            let done = match &mut af_xdp {
                // Behind those that wait, in order.
                _ if !backlog.messages.is_empty() => 0,
                Some(sender) => send_directly(sender, fd, queue, pieces, counters),
                None => send_all(fd, queue, pieces, counters),
            };
            for pending in &queue[done..] {
                backlog.push(pieces(pending), counters);
            }
            self.has_backlog |= done < queue.len();
            interfaces[id].af_xdp = af_xdp;
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
    source: &'a Interface,
    extra: &'a [Output],
) -> (&'a [u8], &'a [u8]) {
    match pending.frame {
        FrameRef::Batch { index, len } => (batch.message(source, index, len), &[]),
        FrameRef::Extra(index) => (&pending.header, &extra[index].frame),
    }
}

/// Send a queue in order: frames with nothing left to do straight to the driver, as far as there is room, the
/// others through the packet socket. Returns how many are done with; the socket is full at the next one.
fn send_directly<'a>(
    sender: &mut XdpSender,
    fd: RawFd,
    queue: &'a [Pending],
    pieces: impl Fn(&'a Pending) -> (&'a [u8], &'a [u8]),
    counters: &IoCounters,
) -> usize {
    let mut done = 0;
    while done < queue.len() {
        let left = &queue[done..];
        let finished = left.iter().take_while(|pending| pending.is_finished());
        let frames = finished.map(|pending| match pieces(pending) {
            (message, []) => &message[OFFLOAD_HEADER_LEN..],
            (_, frame) => frame,
        });
        let sent = sender.send(frames.take_while(|frame| frame.len() <= af_xdp::CHUNK_LEN));
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

#[cfg(test)]
mod tests {
    //! A pair of datagram sockets keeps messages apart as a packet socket does, and needs no privilege.

    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixDatagram;

    use super::super::backlog::{BACKLOG_BYTES, BACKLOG_FRAMES};
    use super::super::counters::IoReport;
    use super::*;
    use crate::base::Offload;

    const FIRST: InterfaceId = InterfaceId::new(0);

    fn pair() -> (UnixDatagram, UnixDatagram) {
        UnixDatagram::pair().unwrap()
    }

    fn message(offload: Offload, frame: &[u8]) -> Vec<u8> {
        [&vnet_hdr::encode(offload)[..], frame].concat()
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
            interface: InterfaceId::new(interface),
            frame: frame.to_vec(),
            offload: Offload::default(),
        }
    }

    fn sent(interface: u32, len: usize) -> Sent {
        Sent {
            interface: InterfaceId::new(interface),
            len,
            offload: Offload::default(),
        }
    }

    #[test]
    fn outbox_keeps_order_of_each_interface_and_cuts_frames() {
        let (near, far) = pair();
        let (out1, seen1) = pair();
        let (mut batch, counters) = (Batch::new(), IoCounters::default());
        let mut interfaces = [&near, &out1].map(|socket| Interface::new(socket.as_raw_fd()));
        far.send(&message(Offload::default(), b"first...."))
            .unwrap();
        far.send(&message(Offload::default(), b"second")).unwrap();
        batch.receive(&mut interfaces[0], &counters).unwrap();
        let mut outbox = Outbox::new(2);
        outbox
            .extra
            .extend([output(0, b"answer"), output(1, b"other")]);
        outbox.collect(0, Some(sent(0, 5)), &counters);
        outbox.extra.push(output(1, b"late"));
        outbox.collect(1, Some(sent(0, 6)), &counters);
        outbox.flush(&mut batch, FIRST, &mut interfaces, &counters);
        let plain = |frame: &[u8]| message(Offload::default(), frame);
        assert_eq!(
            drain(&far),
            [plain(b"first"), plain(b"answer"), plain(b"second")]
        );
        assert_eq!(drain(&seen1), [plain(b"other"), plain(b"late")]);
        assert_eq!(counters.report(), IoReport::default());
        outbox.flush(&mut batch, FIRST, &mut interfaces, &counters);
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
        let mut interfaces = [Interface::new(out.as_raw_fd())];
        outbox.flush(&mut Batch::new(), FIRST, &mut interfaces, &counters);
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

    /// Rule 22.2, full interfaces: what finds the socket full waits, in order, while another interface sends; nothing
    /// is lost or overtaken.
    #[test]
    fn outbox_full_socket_keeps_frames_in_order_and_holds_up_no_other() {
        let ((full, seen_late), (free, seen)) = (pair(), pair());
        full.set_nonblocking(true).unwrap();
        let mut filled = 0;
        while full.send(b"filler").is_ok() {
            filled += 1;
        }
        let counters = IoCounters::default();
        let mut outbox = Outbox::new(2);
        let mut interfaces = [&full, &free].map(|socket| Interface::new(socket.as_raw_fd()));
        for round in 0..3 {
            let frames = (0..100).map(|number| output(0, &[b'a', round, number]));
            outbox.extra.extend(frames);
            outbox.extra.push(output(1, b"other"));
            outbox.collect_extra(&counters);
            outbox.flush(&mut Batch::new(), FIRST, &mut interfaces, &counters);
        }
        let plain = |frame: &[u8]| message(Offload::default(), frame);
        assert_eq!(drain(&seen), [(); 3].map(|()| plain(b"other")));
        assert!(outbox.is_blocked(FIRST) && !outbox.is_blocked(InterfaceId::new(1)));
        let mut late = drain(&seen_late);
        while outbox.has_backlog() {
            outbox.drain(&interfaces, &counters);
            late.extend(drain(&seen_late));
        }
        let expected = (0..3).flat_map(|round| (0..100).map(move |number| [b'a', round, number]));
        let expected: Vec<_> = expected.map(|frame| plain(&frame)).collect();
        assert_eq!(late[filled..], expected);
        assert_eq!(counters.report(), IoReport::default());
    }

    /// Rule 22.2, full interfaces: what waits is bounded, by frames and by bytes; the rest is dropped and counted.
    #[test]
    fn outbox_socket_that_stays_full_drops_and_counts_what_is_beyond_the_backlog() {
        for (len, kept) in [
            (5, BACKLOG_FRAMES),
            (60_000, BACKLOG_BYTES / (60_000 + OFFLOAD_HEADER_LEN)),
        ] {
            let (out, seen) = pair();
            out.set_nonblocking(true).unwrap();
            while out.send(b"filler").is_ok() {}
            let counters = IoCounters::default();
            let mut outbox = Outbox::new(1);
            let mut interfaces = [Interface::new(out.as_raw_fd())];
            outbox
                .extra
                .extend((0..kept + 7).map(|_| output(0, &vec![7; len])));
            outbox.collect_extra(&counters);
            outbox.flush(&mut Batch::new(), FIRST, &mut interfaces, &counters);
            drain(&seen);
            let mut sent = 0;
            while outbox.has_backlog() {
                outbox.drain(&interfaces, &counters);
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
}
