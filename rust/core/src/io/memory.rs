//! Zeroed memory straight from the kernel, in huge pages where it gives them.
//!
//! A flow table of millions of flows is read at random: with pages of 4 KiB nearly every packet would also miss the processor's page cache (TLB), and each miss
//! costs a walk through tables that are themselves not in the cache. Left out: locking and NUMA placement.
#![allow(unsafe_code, reason = "mmap(2), madvise(2)")]

use std::io;
use std::ptr::{self, NonNull};

/// A huge page of this processor family. On others the advice is only less exact.
const HUGE_BYTES: usize = 2 << 20;

/// A cache line: what a processor fetches at once.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct Line([u64; 8]);

/// Private anonymous memory in cache lines, all zero at first.
pub struct Memory {
    /// What was mapped.
    base: NonNull<libc::c_void>,
    mapped_bytes: usize,
    /// The first of the lines that are given out.
    start: NonNull<Line>,
    lines: usize,
}

// SAFETY: the memory is owned by this value alone and belongs to no thread.
unsafe impl Send for Memory {}
// SAFETY: shared access only reads, as for a boxed slice.
unsafe impl Sync for Memory {}

impl Memory {
    /// Map `lines` cache lines, at least one. From the size of a huge page on, they start at the bounds of one, and huge pages are asked for.
    ///
    /// # Errors
    /// As mmap(2).
    pub fn new(lines: usize) -> io::Result<Self> {
        let bytes = lines
            .max(1)
            .checked_mul(size_of::<Line>())
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let is_huge = bytes >= HUGE_BYTES;
        let spare = if is_huge { HUGE_BYTES } else { 0 };
        let mapped_bytes = bytes.checked_add(spare).ok_or(io::ErrorKind::OutOfMemory)?;
        let base = map(mapped_bytes)?;
        let offset = if is_huge {
            base.as_ptr().align_offset(HUGE_BYTES)
        } else {
            0
        };
        // SAFETY: `offset` is below `HUGE_BYTES`, the spare bytes of the mapping.
        let start = unsafe { base.byte_add(offset) };
        if is_huge {
            // Only advice: without huge pages everything works, more slowly.
            // SAFETY: the range lies in the mapping just made.
            unsafe { libc::madvise(start.as_ptr(), bytes, libc::MADV_HUGEPAGE) };
        }
        Ok(Self {
            base,
            mapped_bytes,
            start: start.cast(),
            lines,
        })
    }

    /// All lines.
    #[inline(always)]
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        // SAFETY: `start` is aligned to a page, and `lines` lines from it on are mapped, zeroed by the kernel, for as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.lines) }
    }

    /// All lines, for writing.
    #[inline(always)]
    pub fn lines_mut(&mut self) -> &mut [Line] {
        // SAFETY: as in `lines`; `self` is borrowed mutably, and nobody else has the address.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.lines) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, whole, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr(), self.mapped_bytes) };
    }
}

fn map(bytes: usize) -> io::Result<NonNull<libc::c_void>> {
    let (rights, kind) = (
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
    );
    // SAFETY: a new anonymous mapping at a place of the kernel's choice touches nothing that exists.
    let base = unsafe { libc::mmap(ptr::null_mut(), bytes, rights, kind, -1, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(base).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_new_is_zero_and_writable_to_its_end() {
        let huge = HUGE_BYTES / size_of::<Line>();
        for lines in [1, 63, 65, huge, huge + 1] {
            let mut memory = Memory::new(lines).unwrap();
            assert_eq!(memory.lines().len(), lines);
            assert!(memory.lines().iter().all(|line| line.0 == [0; 8]));
            memory.lines_mut()[lines - 1].0[7] = 7;
            assert_eq!(memory.lines()[lines - 1].0[7], 7);
        }
    }

    #[test]
    fn memory_of_a_huge_page_or_more_starts_at_its_bounds() {
        let memory = Memory::new(HUGE_BYTES / size_of::<Line>()).unwrap();
        assert_eq!(memory.lines().as_ptr().align_offset(HUGE_BYTES), 0);
    }

    #[test]
    fn memory_beyond_the_address_space_is_refused() {
        assert!(Memory::new(usize::MAX / size_of::<Line>()).is_err());
        assert!(Memory::new(usize::MAX).is_err());
    }
}
