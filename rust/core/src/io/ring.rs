//! The receive ring of a packet socket: memory that the kernel fills with frames while we read them, without a
//! system call (`PACKET_RX_RING`, `TPACKET_V2`, packet(7) and the kernel's `packet_mmap.rst`).
//!
//! Slots are of one size and filled in order. Small enough to hold an Ethernet frame, not a segment of 64 KiB: a
//! longer frame's slot is marked [`Slot::is_queued`], and the frame itself waits, in the same order, in the
//! socket's queue. `TPACKET_V3` has slots of any length, but hands over a lone packet only when a timer of a
//! millisecond ends. Frames are processed in their slots and sent from there; then the slots go back.
#![allow(unsafe_code, reason = "memory shared with the kernel")]

use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use super::vnet_hdr::{TP_STATUS_VLAN_TPID_VALID, TP_STATUS_VLAN_VALID, VLAN_TAG_LEN, tag_bytes};
use crate::sys::mapping::Mapping;
use crate::sys::socket;

/// Bytes per slot: a frame of 1500 bytes and the kernel's header, at a power of two.
const SLOT_LEN: usize = 2048;
/// A burst waits here, as in the socket's queue.
const SLOTS: usize = 4096;
/// From so many frames on that wait, new flows are not begun (rule 22.3, overload): what is left is room for some
/// milliseconds of a flood, in which those that wait are dropped or sent.
const CROWDED: usize = SLOTS / 4 * 3;
/// The kernel allocates slots in pieces of this length.
const BLOCK_LEN: usize = 1 << 16;
const RING_LEN: usize = SLOT_LEN * SLOTS;

// linux/if_packet.h.
const SOL_PACKET: i32 = 263;
const PACKET_RX_RING: i32 = 5;
const PACKET_STATISTICS: i32 = 6;
const PACKET_COPY_THRESH: i32 = 7;
const PACKET_VERSION: i32 = 10;
const TPACKET_V2: u32 = 1;
const TP_STATUS_KERNEL: u32 = 0;
const TP_STATUS_USER: u32 = 1;
const TP_STATUS_COPY: u32 = 2;
/// `struct tpacket2_hdr` and `struct sockaddr_ll`: what precedes the frame's space in a slot.
const SLOT_HEADER_LEN: usize = 52;

/// `struct tpacket_req`.
#[repr(C)]
#[derive(Default)]
struct Request {
    block_len: u32,
    blocks: u32,
    slot_len: u32,
    slots: u32,
}

/// The beginning of `struct tpacket2_hdr`, but for the status.
#[repr(C)]
#[derive(Clone, Copy)]
struct SlotHeader {
    len: u32,
    snaplen: u32,
    mac: u16,
    net: u16,
    seconds: u32,
    nanoseconds: u32,
    vlan_tci: u16,
    vlan_tpid: u16,
}

/// What the kernel says about a filled slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Where the frame starts in the slot's space.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
    /// Whether the whole frame waits in the socket's queue, and the slot holds only its start.
    pub is_queued: bool,
    /// Whether it is cut short, and waits nowhere.
    pub is_truncated: bool,
    /// The VLAN tag that the kernel took out, in network order.
    pub tag: Option<[u8; VLAN_TAG_LEN]>,
}

/// A mapped receive ring.
pub struct RxRing {
    fd: RawFd,
    /// Taken away only by `drop`.
    memory: Option<Mapping>,
    /// The first slot that was not given back.
    head: usize,
    /// Slots from `head` on that were taken.
    taken: usize,
    /// Whether slots were given back since the last [`RxRing::watch`].
    has_moved: bool,
    /// Whether nothing came between the last two.
    was_idle: bool,
    /// Whether it stays with the socket at the end.
    is_lent: bool,
}

impl RxRing {
    /// Give a packet socket a ring and map it. The socket must have its offload header switched on already, and
    /// forgets what is queued.
    ///
    /// # Errors
    /// As setsockopt(2) and mmap(2): it is no packet socket, has a ring, or memory is short. Then it has none.
    pub fn new(fd: RawFd) -> io::Result<Self> {
        socket::set_option(fd, SOL_PACKET, PACKET_VERSION, &TPACKET_V2)?;
        socket::set_option(fd, SOL_PACKET, PACKET_COPY_THRESH, &1u32)?;
        let request = Request {
            block_len: BLOCK_LEN as u32,
            blocks: (RING_LEN / BLOCK_LEN) as u32,
            slot_len: SLOT_LEN as u32,
            slots: SLOTS as u32,
        };
        socket::set_option(fd, SOL_PACKET, PACKET_RX_RING, &request)?;
        match Self::over(fd, 0) {
            Ok(ring) => Ok(ring),
            Err(error) => {
                let _ = socket::set_option(fd, SOL_PACKET, PACKET_RX_RING, &Request::default());
                Err(error)
            }
        }
    }

    /// Go on with the ring that a socket has, where another process stopped reading it ([`RxRing::leave`]): no frame
    /// that came meanwhile is lost.
    ///
    /// # Errors
    /// As mmap(2): it has no such ring; or it has no such place.
    pub fn adopt(fd: RawFd, head: usize) -> io::Result<Self> {
        if head >= SLOTS {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let mut ring = Self::over(fd, head)?;
        ring.is_lent = true;
        // One that read on from there and is gone has left it behind the place where frames are.
        let ahead = (0..SLOTS).find(|&number| ring.is_filled(head + number));
        if let Some(ahead) = ahead.filter(|_| !ring.is_filled(head)) {
            ring.head = (head + ahead) % SLOTS;
        }
        Ok(ring)
    }

    /// Take an adopted ring from the socket at the end: until now it was another process's, to go on with.
    pub fn own(&mut self) {
        self.is_lent = false;
    }

    fn over(fd: RawFd, head: usize) -> io::Result<Self> {
        Ok(Self {
            fd,
            memory: Some(Mapping::shared(fd, 0, RING_LEN)?),
            head,
            taken: 0,
            has_moved: false,
            was_idle: false,
            is_lent: false,
        })
    }

    /// Leave the ring to the next process that has the socket. Returns where to go on reading; all that was taken must
    /// have been given back.
    #[must_use]
    pub fn leave(mut self) -> usize {
        debug_assert_eq!(self.taken, 0);
        self.memory = None;
        let head = self.head;
        // The rest is plain numbers; `drop` would take the ring from the socket.
        std::mem::forget(self);
        head
    }

    /// Whether a frame waits.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.is_filled(self.head + self.taken)
    }

    /// Whether so many frames wait that there may soon be no room for more.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.is_filled(self.head + CROWDED)
    }

    /// Take the filled slots that come next, `most` at most; those taken before must have been given back. Returns
    /// how many.
    pub fn take(&mut self, most: usize) -> usize {
        debug_assert_eq!(self.taken, 0);
        self.taken = (0..most)
            .take_while(|&number| self.is_filled(self.head + number))
            .count();
        self.taken
    }

    fn is_filled(&self, number: usize) -> bool {
        // Acquire: the frame was written before its status.
        self.status(number).load(Ordering::Acquire) & TP_STATUS_USER != 0
    }

    fn at(&self, number: usize) -> NonNull<u8> {
        let memory = self.memory.as_ref().expect("only drop takes it away");
        memory.at(number % SLOTS * SLOT_LEN)
    }

    fn status(&self, number: usize) -> &AtomicU32 {
        // SAFETY: a slot begins with its status, aligned to 16 bytes, mapped while `self` lives; we and the kernel
        // access it atomically only.
        unsafe { AtomicU32::from_ptr(self.at(number).as_ptr().cast()) }
    }

    /// What the kernel says about the taken slot at `index`.
    #[must_use]
    pub fn slot(&self, index: usize) -> Slot {
        debug_assert!(index < self.taken);
        let number = self.head + index;
        let status = self.status(number).load(Ordering::Relaxed);
        // SAFETY: the rest of the header follows the status, within the slot.
        let place = unsafe { self.at(number).byte_add(size_of::<u32>()) };
        // SAFETY: the slot is ours until it is given back: the kernel does not write to it. Plain integers, aligned
        // to 4 bytes as they need.
        let header: SlotHeader = unsafe { place.cast().read() };
        let start = usize::from(header.mac).saturating_sub(SLOT_HEADER_LEN);
        let is_queued = status & TP_STATUS_COPY != 0;
        let tag = (status & TP_STATUS_VLAN_VALID != 0).then(|| {
            let told = status & TP_STATUS_VLAN_TPID_VALID != 0;
            tag_bytes(header.vlan_tci, told.then_some(header.vlan_tpid))
        });
        Slot {
            start,
            end: start + header.snaplen as usize,
            is_queued,
            is_truncated: header.snaplen < header.len && !is_queued,
            tag,
        }
    }

    /// The space of each taken slot, in order: what follows the kernel's header.
    pub fn spaces_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        (0..self.taken).map(|index| {
            // SAFETY: the header lies within the slot.
            let start = unsafe { self.at(self.head + index).byte_add(SLOT_HEADER_LEN) };
            // SAFETY: these bytes of the slot are mapped, ours until the slot is given back (which needs `self`
            // mutably), and no two slots overlap: `taken` is below SLOTS.
            unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), SLOT_LEN - SLOT_HEADER_LEN) }
        })
    }

    /// The space of the taken slot at `index`, for writing.
    pub fn space_mut(&mut self, index: usize) -> &mut [u8] {
        assert!(index < self.taken, "slot {index} was not taken");
        // SAFETY: the header lies within the slot.
        let start = unsafe { self.at(self.head + index).byte_add(SLOT_HEADER_LEN) };
        // SAFETY: as in `spaces_mut`.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), SLOT_LEN - SLOT_HEADER_LEN) }
    }

    /// The space of the taken slot at `index`.
    #[must_use]
    pub fn space(&self, index: usize) -> &[u8] {
        assert!(index < self.taken, "slot {index} was not taken");
        // SAFETY: the header lies within the slot.
        let start = unsafe { self.at(self.head + index).byte_add(SLOT_HEADER_LEN) };
        // SAFETY: as in `spaces_mut`; shared access only reads.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), SLOT_LEN - SLOT_HEADER_LEN) }
    }

    /// Give the taken slots back to the kernel.
    pub fn give_back(&mut self) {
        for index in 0..self.taken {
            // Release: what we read and wrote comes before the kernel's next frame.
            self.status(self.head + index)
                .store(TP_STATUS_KERNEL, Ordering::Release);
        }
        self.has_moved |= self.taken > 0;
        self.head = (self.head + self.taken) % SLOTS;
        self.taken = 0;
    }

    /// Find out whether the ring has stopped. Returns the frames that found no room since the last call, and
    /// whether there was room all the time.
    ///
    /// When the kernel meets a frame whose segmentation no offload header can name, it drops it but keeps the slot
    /// marked as being filled (seen in Linux 6.18), and every frame after it: such a ring never moves again. So
    /// frames that were dropped between two looks at an empty ring tell it.
    pub fn watch(&mut self) -> (u64, bool) {
        if std::mem::take(&mut self.has_moved) || self.is_ready() {
            self.was_idle = false;
            return (0, false);
        }
        let counts = socket::get_option::<[u32; 2]>(self.fd, SOL_PACKET, PACKET_STATISTICS);
        let drops = counts.map_or(0, |[_frames, drops]| drops);
        let was_idle = std::mem::replace(&mut self.was_idle, true);
        (u64::from(drops), was_idle && drops > 0)
    }
}

impl Drop for RxRing {
    /// The socket is as it was: frames come by its queue.
    fn drop(&mut self) {
        // The kernel keeps a ring that is mapped.
        self.memory = None;
        if self.is_lent {
            return;
        }
        // It fails when the descriptor is closed: then the ring is gone too.
        let _ = socket::set_option(self.fd, SOL_PACKET, PACKET_RX_RING, &Request::default());
    }
}
