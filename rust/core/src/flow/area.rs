//! The one memory area behind the flow table: words, allocated once, zeroed by the kernel page by page as they are first used.
//!
//! Nothing in it is a pointer, so it can be dumped, inspected and taken over by a successor. Today it is anonymous memory; one backed by a `memfd` can
//! take its place in [`crate::io::memory`] without the table noticing. It starts at a page's bounds, so what is placed at multiples of 64 bytes has cache lines of its own.

use crate::datapath::DataPathError;
use crate::io::memory::Memory;

/// Fixed-size memory in 8-byte words.
pub struct Area(Memory);

impl Area {
    /// Allocate `words` zeroed words.
    ///
    /// # Errors
    /// `Memory` when there is not that much.
    pub fn new(words: usize) -> Result<Self, DataPathError> {
        Memory::new(words)
            .map(Self)
            .map_err(|source| DataPathError::Memory {
                bytes: words.saturating_mul(8),
                source,
            })
    }

    /// All words.
    #[inline]
    #[must_use]
    pub fn words(&self) -> &[u64] {
        self.0.words()
    }

    /// All words, for writing.
    #[inline]
    pub fn words_mut(&mut self) -> &mut [u64] {
        self.0.words_mut()
    }
}
