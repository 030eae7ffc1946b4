//! Errors of system calls.

use std::io;

use libc::c_int;

/// Turn the usual "-1 and errno" into a result.
pub(super) fn check(answer: c_int) -> io::Result<usize> {
    usize::try_from(answer).map_err(|_| io::Error::last_os_error())
}
