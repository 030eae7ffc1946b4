//! A batch of frames from a packet socket (`PACKET_VNET_HDR`, packet(7)), received into buffers that were made
//! once, or left in the ring's slots; they are processed there, in place.

use std::io;
use std::ops::Range;
use std::os::fd::RawFd;

use super::counters::{IoCounters, add_one};
use super::interface::Interface;
use super::ring::{RxRing, Slot};
use super::vnet_hdr::{self, OFFLOAD_HEADER_LEN, VLAN_TAG_LEN};
use crate::base::{Frame, Offload};
use crate::sys::socket::{self, MAX_MESSAGES, RxBuffer};

/// The largest IP packet with an Ethernet header and a tag left in the frame. Only BIG TCP, off by default, makes
/// larger ones: counted, not forwarded.
pub(super) const MAX_FRAME_LEN: usize = 14 + 4 + 65535;

/// Frames per batch. Bulk transfers over veth ran equally fast with 8 to 64 (within the noise of the measurement):
/// this is enough to make the system calls cheap for small frames, and keeps the buffers at 2 MiB.
pub const BATCH: usize = MAX_MESSAGES;

/// Where a received message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Space {
    Slot(usize),
    Buffer(usize),
}

/// One received frame: where it is in its space, and what is left to do for it. [`OFFLOAD_HEADER_LEN`] free bytes
/// precede it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Received {
    space: Space,
    start: usize,
    end: usize,
    offload: Offload,
}

/// Up to [`BATCH`] received frames of one interface.
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

    /// Receive what waits at a interface, at most one batch, over the frames of the last call. Returns the number
    /// of usable frames. The batch belongs to this interface until it is finished ([`Batch::finish`]).
    ///
    /// # Errors
    /// Only when the descriptor is no usable socket; other errors are counted.
    pub fn receive(
        &mut self,
        interface: &mut Interface,
        counters: &IoCounters,
    ) -> io::Result<usize> {
        self.frames.clear();
        let taken = interface.ring.as_mut().map_or(0, |ring| ring.take(BATCH));
        match &mut interface.ring {
            Some(ring) if taken > 0 => self.read_ring(interface.fd, ring, taken, counters)?,
            // Also with a ring: an error of the interface is told in the queue.
            _ => {
                let count = self.fill(interface.fd, BATCH, counters)?;
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
        ring: &mut RxRing,
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
    pub fn frames_mut<'a>(
        &'a mut self,
        interface: &'a mut Interface,
    ) -> impl Iterator<Item = Frame<'a>> {
        let mut slots = interface
            .ring
            .iter_mut()
            .flat_map(RxRing::spaces_mut)
            .enumerate();
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
    pub(super) fn write_header(
        &mut self,
        interface: &mut Interface,
        index: usize,
        offload_header: [u8; OFFLOAD_HEADER_LEN],
    ) {
        let Received { space, start, .. } = self.frames[index];
        let place = start - OFFLOAD_HEADER_LEN..start;
        match (space, &mut interface.ring) {
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
    pub(super) fn message<'a>(
        &'a self,
        interface: &'a Interface,
        index: usize,
        len: usize,
    ) -> &'a [u8] {
        let Received { space, start, .. } = self.frames[index];
        let place = start - OFFLOAD_HEADER_LEN..start + len;
        match (space, &interface.ring) {
            (Space::Buffer(buffer), _) => &self.buffers[buffer].space[place],
            (Space::Slot(slot), Some(ring)) => &ring.space(slot)[place],
            (Space::Slot(_), None) => unreachable!("a slot without a ring"),
        }
    }

    /// Forget the frames; give their slots back.
    pub fn finish(&mut self, interface: &mut Interface) {
        self.frames.clear();
        if let Some(ring) = &mut interface.ring {
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

/// Errors that waiting does not cure: the descriptor is not a socket of ours. `EINVAL` is none of them: the kernel
/// gives it for one frame, which it takes off the queue, whose segmentation an offload header cannot name (UDP
/// fragments of a virtual machine, SCTP).
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
    let tag = vnet_hdr::stripped_tag(&control[..buffer.control_len.min(control.len())]);
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

/// Read the offload header that precedes a frame, and put its VLAN tag back: over the header, for which there is
/// room before it.
fn finish(
    place: Space,
    space: &mut [u8],
    Range { mut start, end }: Range<usize>,
    tag: Option<[u8; VLAN_TAG_LEN]>,
) -> Option<Received> {
    let offload_header = space[..start].last_chunk()?;
    let mut offload = vnet_hdr::decode(*offload_header);
    if let Some(tag) = tag {
        start -= VLAN_TAG_LEN;
        if !vnet_hdr::insert_tag(&mut space[start..end], tag) {
            return None;
        }
        offload = vnet_hdr::behind_tag(offload);
    }
    Some(Received {
        space: place,
        start,
        end,
        offload,
    })
}

#[cfg(test)]
mod tests {
    //! A pair of datagram sockets keeps messages apart as a packet socket does, and needs no privilege.

    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixDatagram;

    use super::super::counters::IoReport;
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
        [&vnet_hdr::encode(offload)[..], frame].concat()
    }

    #[test]
    fn batch_receives_frames_with_their_offload_in_order() {
        let (near, far) = pair();
        far.send(&message(Offload::default(), b"plain frame here"))
            .unwrap();
        far.send(&message(PARTIAL, b"partial frame")).unwrap();
        let (mut batch, counters) = (Batch::new(), IoCounters::default());
        let mut interface = Interface::new(near.as_raw_fd());
        assert_eq!(batch.receive(&mut interface, &counters).unwrap(), 2);
        let frames: Vec<_> = batch
            .frames_mut(&mut interface)
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
        let mut interface = Interface::new(near.as_raw_fd());
        assert_eq!(batch.receive(&mut interface, &counters).unwrap(), 0);
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
        let mut interface = Interface::new(near.as_raw_fd());
        assert_eq!(batch.receive(&mut interface, &counters).unwrap(), 1);
        let frames: Vec<_> = batch
            .frames_mut(&mut interface)
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
            .receive(
                &mut Interface::new(file.as_raw_fd()),
                &IoCounters::default(),
            )
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
