//! The one memory area behind the flow table: cache lines, allocated once, zeroed by the kernel page by page as they are first used.
//!
//! Nothing in it is a pointer, so it can be dumped, inspected and taken over by a successor. Today it is anonymous memory; one backed by a `memfd` can
//! take its place in [`crate::io::memory`] without the table noticing.

use crate::datapath::DataPathError;
use crate::io::memory::Memory;

pub use crate::io::memory::Line;

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
