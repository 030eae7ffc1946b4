//! What an `AF_XDP` socket is asked for (the kernel's `af_xdp.rst`).
#![allow(unsafe_code, reason = "system calls")]

use std::io;
use std::os::fd::RawFd;
use std::ptr;

use super::check::check;
use super::socket::get_option;

/// Where the four rings of an `AF_XDP` socket begin in their mappings: receive, send, fill, done.
///
/// # Errors
/// As getsockopt(2).
pub fn xdp_offsets(fd: RawFd) -> io::Result<[libc::xdp_ring_offset; 4]> {
    const WORDS: usize = size_of::<libc::xdp_mmap_offsets>() / size_of::<u64>();
    let words: [u64; WORDS] = get_option(fd, libc::SOL_XDP, libc::XDP_MMAP_OFFSETS)?;
    Ok(std::array::from_fn(|ring| {
        let [producer, consumer, desc, flags] = std::array::from_fn(|word| words[ring * 4 + word]);
        libc::xdp_ring_offset {
            producer,
            consumer,
            desc,
            flags,
        }
    }))
}

/// Bind an `AF_XDP` socket to the first queue of the interface with this kernel index, in copy mode.
///
/// # Errors
/// As bind(2): `EBUSY` when another program has the queue.
pub fn bind_xdp(fd: RawFd, ifindex: u32) -> io::Result<()> {
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: libc::XDP_COPY,
        sxdp_ifindex: ifindex,
        sxdp_queue_id: 0,
        sxdp_shared_umem_fd: 0,
    };
    let len = size_of::<libc::sockaddr_xdp>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes, the size of the struct, which lives in this frame.
    let answer = unsafe { libc::bind(fd, (&raw const address).cast(), len) };
    check(answer).map(|_| ())
}

/// Tell an `AF_XDP` socket that there is something to send.
///
/// # Errors
/// As sendto(2); what was sent shows in the ring.
pub fn kick(fd: RawFd) -> io::Result<()> {
    // SAFETY: there is no buffer: null pointers of length 0.
    let answer = unsafe { libc::sendto(fd, ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0) };
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
