//! Frames handed straight to an interface's driver: the sending half of an `AF_XDP` socket (the kernel's
//! `af_xdp.rst`), in copy mode.
//!
//! For frames with nothing left to do for the card, where the interface is set to `transmit = "direct"`. One system
//! call sends a batch, and each frame passes by what the packet socket goes through: queue disciplines, packet
//! sockets that watch (tcpdump), a look at its headers. Needs no program on the interface and changes nothing
//! there. The kernel copies a frame before the call returns. Left out: receiving, zero copy, segmentation.
#![allow(unsafe_code, reason = "memory shared with the kernel")]

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use crate::sys::mapping::Mapping;
use crate::sys::socket;
use crate::sys::xdp;

/// Room for one frame: one of 1500 bytes, at a power of two.
pub const CHUNK_LEN: usize = 2048;
/// Frames on their way at most. On a veth each is done before the call returns.
const CHUNKS: u32 = 512;
/// How often in a row a call may take nothing before the rest is left to the next one.
const TRIES: usize = 2;

/// How long to wait for a queue that is being freed, and how often.
const BIND_WAIT: Duration = Duration::from_millis(10);
const BIND_WAITS: usize = 100;
/// `XDP_UMEM_PGOFF_COMPLETION_RING`, as an offset of mmap(2).
const DONE_PAGE: i64 = 0x1_8000_0000;

#[repr(C)]
#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    options: u32,
}

/// Where the kernel put the parts of a ring in its mapping.
#[derive(Clone, Copy)]
struct Offsets {
    producer: usize,
    consumer: usize,
    entries: usize,
}

/// A ring of [`CHUNKS`] entries.
struct XdpRing {
    memory: Mapping,
    offsets: Offsets,
}

impl XdpRing {
    fn map(
        fd: RawFd,
        page: i64,
        entry_len: usize,
        found: &libc::xdp_ring_offset,
    ) -> io::Result<Self> {
        let offsets = Offsets {
            producer: found.producer as usize,
            consumer: found.consumer as usize,
            entries: found.desc as usize,
        };
        let memory = Mapping::shared(fd, page, offsets.entries + CHUNKS as usize * entry_len)?;
        Ok(Self { memory, offsets })
    }

    fn counter(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: the kernel put a 32-bit counter there, aligned, mapped while `self` lives; both sides access it
        // atomically only.
        unsafe { AtomicU32::from_ptr(self.memory.at(offset).as_ptr().cast()) }
    }

    fn producer(&self) -> &AtomicU32 {
        self.counter(self.offsets.producer)
    }

    fn consumer(&self) -> &AtomicU32 {
        self.counter(self.offsets.consumer)
    }

    fn entry<T>(&self, number: u32) -> *mut T {
        let index = (number % CHUNKS) as usize;
        let place = self
            .memory
            .at(self.offsets.entries + index * size_of::<T>());
        place.as_ptr().cast()
    }
}

/// Bind the socket. The kernel frees a queue some time after the socket that had it was closed: a balancer that
/// starts again waits for that.
fn bind(fd: RawFd, ifindex: u32) -> io::Result<()> {
    let mut waits_left = BIND_WAITS;
    loop {
        match xdp::bind_xdp(fd, ifindex) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && waits_left > 0 => {
                waits_left -= 1;
                thread::sleep(BIND_WAIT);
            }
            other => return other,
        }
    }
}

/// Sends frames out of one interface.
pub struct XdpSender {
    /// Python's: open until the loop has stopped.
    fd: RawFd,
    to_send: XdpRing,
    done: XdpRing,
    chunks: Mapping,
    /// Chunks that hold no frame on its way.
    free: Vec<u64>,
}

impl XdpSender {
    /// Make one of a fresh `AF_XDP` socket, for the interface that a packet socket is bound to.
    ///
    /// # Errors
    /// The two are in different network namespaces; the packet socket is bound to no interface; the kernel refuses
    /// it for this interface (another program has it); the memory may not be pinned; the socket was used before.
    pub fn new(fd: RawFd, packet_socket: RawFd) -> io::Result<Self> {
        let ifindex = socket::bound_ifindex(packet_socket)?;
        let home = |fd| socket::get_option::<u64>(fd, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE);
        if home(fd)? != home(packet_socket)? {
            let reason = "the packet socket is in another network namespace";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let chunks = Mapping::private(CHUNKS as usize * CHUNK_LEN)?;
        let umem = libc::xdp_umem_reg {
            addr: chunks.at(0).as_ptr() as u64,
            len: (CHUNKS as usize * CHUNK_LEN) as u64,
            chunk_size: CHUNK_LEN as u32,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        socket::set_option(fd, libc::SOL_XDP, libc::XDP_UMEM_REG, &umem)?;
        for ring in [
            libc::XDP_UMEM_FILL_RING,
            libc::XDP_UMEM_COMPLETION_RING,
            libc::XDP_TX_RING,
        ] {
            socket::set_option(fd, libc::SOL_XDP, ring, &CHUNKS)?;
        }
        let [_, to_send, _, done] = xdp::xdp_offsets(fd)?;
        let sender = Self {
            to_send: XdpRing::map(
                fd,
                libc::XDP_PGOFF_TX_RING,
                size_of::<Descriptor>(),
                &to_send,
            )?,
            done: XdpRing::map(fd, DONE_PAGE, size_of::<u64>(), &done)?,
            fd,
            chunks,
            free: (0..u64::from(CHUNKS))
                .map(|number| number * CHUNK_LEN as u64)
                .collect(),
        };
        bind(fd, ifindex)?;
        Ok(sender)
    }

    /// Send frames of [`CHUNK_LEN`] bytes at most, as many as there is room for. Returns how many.
    pub fn send<'a>(&mut self, frames: impl Iterator<Item = &'a [u8]>) -> usize {
        let first = self.to_send.producer().load(Ordering::Relaxed);
        let mut count = 0;
        for frame in frames {
            assert!(frame.len() <= CHUNK_LEN, "{} bytes", frame.len());
            let Some(address) = self.free.pop() else {
                break;
            };
            let place = self.chunks.at(address as usize).as_ptr();
            // SAFETY: a chunk that is free is ours, CHUNK_LEN bytes long, and apart from any frame.
            unsafe { std::ptr::copy_nonoverlapping(frame.as_ptr(), place, frame.len()) };
            let descriptor = Descriptor {
                address,
                len: frame.len() as u32,
                options: 0,
            };
            let entry = self.to_send.entry(first.wrapping_add(count));
            // SAFETY: no more entries are in use than chunks: this one is free, and ours until the producer moves on.
            unsafe { std::ptr::write(entry, descriptor) };
            count += 1;
        }
        // Release: entries and frames come before the number that tells of them.
        let last = first.wrapping_add(count);
        self.to_send.producer().store(last, Ordering::Release);
        self.kick(last);
        self.take_back();
        count as usize
    }

    /// Let the kernel send up to entry `last`, 32 frames per call. What it does not take now (the interface is
    /// down, the driver's queue full) leaves with the next ones, or when [`Self::resume`] is called: nothing is
    /// waited for.
    fn kick(&self, last: u32) {
        let mut before = self.to_send.consumer().load(Ordering::Acquire);
        let mut left = TRIES;
        while before != last && left > 0 {
            // An error is about a frame or the moment; whether frames left shows in the ring.
            let _ = xdp::kick(self.fd);
            let now = self.to_send.consumer().load(Ordering::Acquire);
            left = if now == before { left - 1 } else { TRIES };
            before = now;
        }
    }

    /// Have frames sent that the driver did not take when they came.
    pub fn resume(&mut self) {
        self.kick(self.to_send.producer().load(Ordering::Relaxed));
        self.take_back();
    }

    /// Take back the chunks of frames that are done.
    fn take_back(&mut self) {
        let first = self.done.consumer().load(Ordering::Relaxed);
        let last = self.done.producer().load(Ordering::Acquire);
        let mut next = first;
        while next != last {
            // SAFETY: the kernel wrote this entry before it moved its producer on (acquired above).
            self.free
                .push(unsafe { std::ptr::read(self.done.entry(next)) });
            next = next.wrapping_add(1);
        }
        self.done.consumer().store(last, Ordering::Release);
    }
}
