//! Memory that is shared with the kernel, or pinned by it: mapped, and unmapped in the end.
#![allow(unsafe_code, reason = "mmap(2)")]

use std::io;
use std::os::fd::RawFd;
use std::ptr::{self, NonNull};

/// A mapping for reading and writing.
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is owned by this value alone and belongs to no thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Map what a descriptor gives from an offset on.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn shared(fd: RawFd, offset: i64, len: usize) -> io::Result<Self> {
        Self::new(libc::MAP_SHARED, fd, offset, len)
    }

    /// Map zeroed memory of our own, at the bounds of a page.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn private(len: usize) -> io::Result<Self> {
        Self::new(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0, len)
    }

    fn new(kind: i32, fd: RawFd, offset: i64, len: usize) -> io::Result<Self> {
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice touches nothing that exists.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, rights, kind, fd, offset) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len })
    }

    /// The address of the byte at `offset`.
    ///
    /// # Panics
    /// It lies outside.
    #[inline]
    #[must_use]
    pub fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < self.len, "offset {offset} of {}", self.len);
        // SAFETY: the line above: within the mapping.
        unsafe { self.base.byte_add(offset) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, whole, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
