//! The one memory area behind the flow table: cache lines, allocated once. The kernel gives zeroed pages as they are first used, or all at once where that is asked for: before packets flow, but not in tests and
//! offline.
//!
//! Nothing in it is a pointer, so it can be dumped, inspected and taken over by a successor. Today it is anonymous memory; one backed by a `memfd` can
//! take its place in [`crate::sys::memory`] without the table noticing.

use std::ops::Range;

use crate::datapath::DataPathError;
use crate::sys::memory::Memory;

pub use crate::sys::memory::Line;

/// Fixed-size memory in cache lines.
pub struct Area(Memory);

impl Area {
    /// Allocate `lines` zeroed cache lines.
    ///
    /// # Errors
    /// `Memory` when there is not that much.
    pub fn new(lines: usize) -> Result<Self, DataPathError> {
        Memory::new(lines)
            .map(Self)
            .map_err(|source| DataPathError::Memory {
                bytes: lines.saturating_mul(size_of::<Line>()),
                source,
            })
    }

    /// Have all of its memory now.
    ///
    /// # Errors
    /// `Memory` when there is not that much.
    pub fn populate(&mut self) -> Result<(), DataPathError> {
        let bytes = size_of_val(self.lines());
        self.0
            .populate()
            .map_err(|source| DataPathError::Memory { bytes, source })
    }

    /// Bytes of some of its lines that the process has by now; 0 when the kernel does not tell. The first line begins a page.
    #[must_use]
    pub fn resident_bytes(&self, lines: Range<usize>) -> u64 {
        self.0.resident_bytes(lines).unwrap_or(0)
    }

    /// All lines.
    #[inline(always)]
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        self.0.lines()
    }

    /// All lines, for writing.
    #[inline(always)]
    pub fn lines_mut(&mut self) -> &mut [Line] {
        self.0.lines_mut()
    }
}
