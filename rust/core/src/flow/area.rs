//! The one memory area behind the flow table: words, allocated once, zeroed by the kernel page by page as they are first used.
//!
//! Nothing in it is a pointer, so it can be dumped, inspected and taken over by a successor. Today it is anonymous memory; one backed by a `memfd` can
//! take its place without the table noticing.

use crate::datapath::DataPathError;

/// Fixed-size memory in 8-byte words.
pub struct Area(Box<[u64]>);

impl Area {
    /// Allocate `words` zeroed words.
    ///
    /// # Errors
    /// `Memory` when there is not that much.
    pub fn new(words: usize) -> Result<Self, DataPathError> {
        bytemuck::allocation::try_zeroed_slice_box(words)
            .map(Self)
            .map_err(|()| DataPathError::Memory {
                bytes: words.saturating_mul(8),
                source: std::io::ErrorKind::OutOfMemory.into(),
            })
    }

    /// All words.
    #[inline]
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.0
    }

    /// All words, for writing.
    #[inline]
    pub fn words_mut(&mut self) -> &mut [u64] {
        &mut self.0
    }
}
