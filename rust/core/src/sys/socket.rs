//! Messages and options of sockets, one thin safe function for each system call; errors are `std::io::Error`.
//!
//! Descriptors are plain numbers: Python owns the sockets. A stale number is no memory fault, only `EBADF` or
//! another file, and the owner promises to keep it open until the loop has stopped.
#![allow(unsafe_code, reason = "system calls")]

use std::io;
use std::os::fd::RawFd;
use std::ptr;

use bytemuck::Pod;
use libc::{c_int, c_uint, c_void, iovec, mmsghdr};

use super::check::check;

/// Messages per system call at most.
pub const MAX_MESSAGES: usize = 32;

/// Where one message is received: control messages apart, offload header and frame together.
pub struct RxBuffer {
    /// Control messages; `u64`: aligned as the kernel's structs are.
    pub control: [u64; 8],
    /// Bytes of `control` that the last receive filled.
    pub control_len: usize,
    /// Free bytes, then the message.
    pub space: Box<[u8]>,
    /// Free bytes before the message.
    pub headroom: usize,
    /// Bytes of the last message as far as they found room.
    pub message_len: usize,
    /// Whether the last message did not fit.
    pub truncated: bool,
}

fn no_message() -> mmsghdr {
    // SAFETY: mmsghdr is a plain C struct of integers and pointers; all zero bytes are valid (null pointers, zero
    // lengths).
    unsafe { std::mem::zeroed() }
}

const NO_IOVEC: iovec = iovec {
    iov_base: ptr::null_mut(),
    iov_len: 0,
};

/// Receive up to [`MAX_MESSAGES`] messages without waiting, one per buffer.
///
/// # Errors
/// As recvmmsg(2); `WouldBlock` when nothing is queued.
pub fn receive(fd: RawFd, buffers: &mut [RxBuffer]) -> io::Result<usize> {
    let mut vectors = [NO_IOVEC; MAX_MESSAGES];
    let mut messages = [no_message(); MAX_MESSAGES];
    let count = buffers.len().min(MAX_MESSAGES);
    for ((buffer, vector), message) in buffers.iter_mut().zip(&mut vectors).zip(&mut messages) {
        let space = &mut buffer.space[buffer.headroom..];
        *vector = iovec {
            iov_base: space.as_mut_ptr().cast(),
            iov_len: space.len(),
        };
        message.msg_hdr.msg_iov = vector;
        message.msg_hdr.msg_iovlen = 1;
        message.msg_hdr.msg_control = buffer.control.as_mut_ptr().cast();
        message.msg_hdr.msg_controllen = size_of_val(&buffer.control) as _;
    }
    // SAFETY: the first `count` messages point to vectors, control arrays and spaces that live in this frame or in
    // `buffers`, which is borrowed for the call, with their true lengths. The kernel writes nowhere else.
    let answer = unsafe {
        libc::recvmmsg(
            fd,
            messages.as_mut_ptr(),
            count as c_uint,
            libc::MSG_DONTWAIT as _,
            ptr::null_mut(),
        )
    };
    let received = check(answer)?;
    for (buffer, message) in buffers.iter_mut().zip(&messages).take(received) {
        buffer.message_len = message.msg_len as usize;
        buffer.truncated = message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        buffer.control_len = message.msg_hdr.msg_controllen;
    }
    Ok(received)
}

/// Send up to [`MAX_MESSAGES`] messages without waiting; each is an offload header and a frame, in two pieces of
/// which the second may be empty. Returns how many the kernel took, at least one.
///
/// # Errors
/// As sendmmsg(2), about the first message: the others were not looked at.
pub fn send<'a>(
    fd: RawFd,
    pieces: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> io::Result<usize> {
    let mut vectors = [[NO_IOVEC; 2]; MAX_MESSAGES];
    let mut messages = [no_message(); MAX_MESSAGES];
    let mut count = 0;
    for (((first, second), vector), message) in pieces.zip(&mut vectors).zip(&mut messages) {
        *vector = [first, second].map(|piece| iovec {
            iov_base: piece.as_ptr().cast::<c_void>().cast_mut(),
            iov_len: piece.len(),
        });
        message.msg_hdr.msg_iov = vector.as_mut_ptr();
        // One piece is read in on a shorter way.
        message.msg_hdr.msg_iovlen = if second.is_empty() { 1 } else { 2 };
        count += 1;
    }
    // SAFETY: the first `count` messages point to vectors in this frame and to pieces borrowed for 'a, which
    // outlives the call, with their true lengths. sendmmsg only reads them, though the C types are not const.
    let answer =
        unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), count, libc::MSG_DONTWAIT as _) };
    check(answer)
}

/// Make sure that a descriptor is a socket.
///
/// # Errors
/// `EBADF` when it is not open, `ENOTSOCK` when it is something else.
pub fn require_socket(fd: RawFd) -> io::Result<()> {
    let mut kind: c_int = 0;
    let mut len = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: both pointers are to variables of this frame; the length is that of the first.
    let answer = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_TYPE,
            (&raw mut kind).cast(),
            &raw mut len,
        )
    };
    check(answer).map(|_| ())
}

/// Set a socket option to the bytes of a plain C struct.
///
/// # Errors
/// As setsockopt(2).
pub fn set_option<T>(fd: RawFd, level: c_int, option: c_int, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of a borrowed value of that size.
    let answer = unsafe { libc::setsockopt(fd, level, option, ptr::from_ref(value).cast(), len) };
    check(answer).map(|_| ())
}

/// Get a socket option that is a plain C struct, zero where the kernel writes less.
///
/// # Errors
/// As getsockopt(2).
pub fn get_option<T: Pod>(fd: RawFd, level: c_int, option: c_int) -> io::Result<T> {
    let mut value = T::zeroed();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes into a local value of that size; any bytes are a value of plain
    // integers.
    let answer =
        unsafe { libc::getsockopt(fd, level, option, (&raw mut value).cast(), &raw mut len) };
    check(answer).map(|_| value)
}

/// The kernel's index of the interface that a packet socket is bound to.
///
/// # Errors
/// As getsockname(2); `InvalidInput` when it is bound to none.
pub fn bound_ifindex(fd: RawFd) -> io::Result<u32> {
    // SAFETY: sockaddr_ll is a plain C struct of integers; all zero bytes are valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of the struct, which lives in this frame.
    let answer = unsafe { libc::getsockname(fd, (&raw mut address).cast(), &raw mut len) };
    check(answer)?;
    let is_packet_socket = c_int::from(address.sll_family) == libc::AF_PACKET;
    match u32::try_from(address.sll_ifindex) {
        Ok(ifindex) if ifindex > 0 && is_packet_socket => Ok(ifindex),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}
