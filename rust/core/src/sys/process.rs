//! Waiting, waking, the clock and signals.
#![allow(unsafe_code, reason = "system calls")]

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, RawFd};
use std::ptr;

use libc::{c_int, pollfd};

use super::check::check;

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

/// Return another descriptor for what a descriptor of another owner is open on.
///
/// # Errors
/// As fcntl(2).
pub fn duplicate(fd: RawFd) -> io::Result<File> {
    // SAFETY: no pointers.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
    check(copy)?;
    // SAFETY: the kernel just gave this descriptor to us; nothing else knows it.
    Ok(unsafe { File::from_raw_fd(copy) })
}

/// Make an eventfd: a counter that poll can wait for.
///
/// # Errors
/// As eventfd(2).
pub fn eventfd() -> io::Result<File> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    check(fd)?;
    // SAFETY: the kernel just gave this descriptor to us; nothing else knows it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Add 1 to an eventfd that has another owner.
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
    // SAFETY: the pointer is to a local struct of the right type. CLOCK_MONOTONIC exists on every Linux: the call
    // cannot fail.
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
