//! The system calls of the packet loop, one thin safe function each; errors are `std::io::Error`.
//!
//! Descriptors are plain numbers: Python owns the sockets. A stale number is no memory fault, only `EBADF` or someone else's file, and the owner
//! promises to keep it open until the loop has stopped.
#![allow(unsafe_code, reason = "system calls")]

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, RawFd};
use std::ptr;

use bytemuck::Pod;
use libc::{c_int, c_uint, c_void, iovec, mmsghdr, pollfd};

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

/// Turn the usual "-1 and errno" into a result.
fn check(answer: c_int) -> io::Result<usize> {
    usize::try_from(answer).map_err(|_| io::Error::last_os_error())
}

fn no_message() -> mmsghdr {
    // SAFETY: mmsghdr is a plain C struct of integers and pointers; all zero bytes are valid (null pointers, zero lengths).
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
    // SAFETY: the first `count` messages point to vectors, control arrays and spaces that live in this frame or in `buffers`, which is
    // borrowed for the call, with their true lengths. The kernel writes nowhere else.
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

/// Send up to [`MAX_MESSAGES`] messages without waiting; each is an offload header and a frame, in two pieces of which the second may be empty. Returns
/// how many the kernel took, at least one.
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
    // SAFETY: the first `count` messages point to vectors in this frame and to pieces borrowed for 'a, which outlives the call, with their
    // true lengths. sendmmsg only reads them, though the C types are not const.
    let answer =
        unsafe { libc::sendmmsg(fd, messages.as_mut_ptr(), count, libc::MSG_DONTWAIT as _) };
    check(answer)
}

/// Wait until a descriptor is ready, for `timeout_ms` at most. An interrupted wait counts as "nothing ready".
///
/// # Errors
/// As poll(2).
pub fn poll(fds: &mut [pollfd], timeout_ms: c_int) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of a slice borrowed mutably for the call.
    let answer = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) };
    match check(answer) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            for fd in fds {
                fd.revents = 0;
            }
            Ok(0)
        }
        other => other,
    }
}

/// Make sure that a descriptor is open.
///
/// # Errors
/// `EBADF` when it is not.
pub fn require_open(fd: RawFd) -> io::Result<()> {
    // SAFETY: no pointers.
    let answer = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    check(answer).map(|_| ())
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
    // SAFETY: the kernel writes at most `len` bytes into a local value of that size; any bytes are a value of plain integers.
    let answer =
        unsafe { libc::getsockopt(fd, level, option, (&raw mut value).cast(), &raw mut len) };
    check(answer).map(|_| value)
}

/// The interface that a packet socket is bound to, by its number.
///
/// # Errors
/// As getsockname(2); `InvalidInput` when it is bound to none.
pub fn bound_interface(fd: RawFd) -> io::Result<u32> {
    // SAFETY: sockaddr_ll is a plain C struct of integers; all zero bytes are valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of the struct, which lives in this frame.
    let answer = unsafe { libc::getsockname(fd, (&raw mut address).cast(), &raw mut len) };
    check(answer)?;
    let is_packet_socket = c_int::from(address.sll_family) == libc::AF_PACKET;
    match u32::try_from(address.sll_ifindex) {
        Ok(number) if number > 0 && is_packet_socket => Ok(number),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

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

/// Bind an `AF_XDP` socket to the first queue of an interface, in copy mode.
///
/// # Errors
/// As bind(2): `EBUSY` when somebody else has the queue.
pub fn bind_xdp(fd: RawFd, interface: u32) -> io::Result<()> {
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: libc::XDP_COPY,
        sxdp_ifindex: interface,
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

/// Make an eventfd: a counter that poll can wait for.
///
/// # Errors
/// As eventfd(2).
pub fn eventfd() -> io::Result<File> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    check(fd)?;
    // SAFETY: the kernel just gave this descriptor to us; nobody else knows it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Add 1 to an eventfd that someone else owns.
///
/// # Errors
/// As write(2).
pub fn eventfd_add(fd: RawFd) -> io::Result<()> {
    let one = 1u64.to_ne_bytes();
    // SAFETY: the buffer lives in this frame and has the length given.
    let answer = unsafe { libc::write(fd, one.as_ptr().cast(), one.len()) };
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Nanoseconds of the monotonic clock: the one Python's `time.monotonic_ns` reads.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a local struct of the right type. CLOCK_MONOTONIC exists on every Linux: the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// Block all signals in this thread: they are for Python's main thread, whose waits they must interrupt.
pub fn block_signals() {
    let mut all = std::mem::MaybeUninit::uninit();
    // SAFETY: sigfillset writes the whole set it is given.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: the set was filled by the line above; the old mask is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), ptr::null_mut()) };
}

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 2;
/// What we know of `union bpf_attr` (linux/bpf.h), for loading a program.
#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The same, for running one.
#[repr(C)]
#[derive(Default)]
struct ProgramRun {
    program: u32,
    answer: u32,
    data_len: u32,
    data_out_len: u32,
    data: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_len: u32,
    context_out_len: u32,
    context: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    padding: u32,
}

/// Load an XDP program. It ends with its descriptor.
///
/// # Errors
/// As bpf(2): `EPERM` without the capabilities, `EINVAL` or `EACCES` when the verifier refuses it.
pub fn load_xdp(instructions: &[u64]) -> io::Result<File> {
    let load = ProgramLoad {
        kind: BPF_PROG_TYPE_XDP,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"MIT".as_ptr() as u64,
        ..ProgramLoad::default()
    };
    // SAFETY: the attributes live in this frame and have the length given; the instructions are borrowed for the call with their true number, the
    // license is a string with its end. The kernel copies them.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const load,
            size_of::<ProgramLoad>(),
        )
    };
    let fd = fd as RawFd;
    check(fd)?;
    // SAFETY: the kernel just gave this descriptor to us; nobody else knows it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Run an XDP program on frames that the kernel makes and really sends where the program says.
///
/// # Errors
/// As bpf(2): `EINVAL` before Linux 5.18, `EINTR` on a signal.
pub fn run_xdp_live(program: RawFd, frame: &[u8], repeat: u32) -> io::Result<()> {
    let mut run = ProgramRun {
        program: u32::try_from(program).unwrap_or(u32::MAX),
        data_len: frame.len() as u32,
        data: frame.as_ptr() as u64,
        repeat,
        flags: BPF_F_TEST_XDP_LIVE_FRAMES,
        ..ProgramRun::default()
    };
    // SAFETY: the attributes live in this frame and have the length given; the frame is borrowed for the call with its true length, and only read. The kernel writes its answer into the
    // attributes.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            &raw mut run,
            size_of::<ProgramRun>(),
        )
    };
    check(answer as c_int).map(|_| ())
}
