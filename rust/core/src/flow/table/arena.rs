//! The one memory arena behind the flow table: cache lines, allocated once. The kernel gives zeroed pages as they
//! are first used, or all at once where that is asked for: before packets flow, but not in tests and offline.
//!
//! Nothing in it is a pointer, so it can be dumped, inspected and taken over by a successor: when it is the memory of a
//! file, [`super::image`] reads what another process left there.

use std::fs::File;
use std::ops::Range;

use crate::sys::cells::SharedLine;
use crate::sys::memory::{self, Memory};

pub use crate::sys::cells::Line;

/// The flow table could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// Capacity 0 or beyond what 32-bit entry numbers can hold.
    #[error("flow table capacity {0} is not in 1..=268435456")]
    Capacity(u64),
    /// The kernel refused the memory.
    #[error("flow table of {bytes} bytes could not be allocated: {source}")]
    Memory {
        /// Bytes asked for.
        bytes: usize,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// What another process left is no table that this one can read.
    #[error("{0}")]
    Image(&'static str),
    /// It could not be read.
    #[error("the flow table that was left could not be read: {0}")]
    Read(#[from] std::io::Error),
}

/// Fixed-size memory in cache lines.
pub struct Arena(Memory);

impl Arena {
    /// Allocate `lines` zeroed cache lines.
    ///
    /// # Errors
    /// `Memory` when there is not that much.
    pub fn new(lines: usize) -> Result<Self, TableError> {
        Memory::new(lines)
            .map(Self)
            .map_err(|source| TableError::Memory {
                bytes: lines.saturating_mul(size_of::<Line>()),
                source,
            })
    }

    /// Take the memory of an empty file, which becomes `lines` cache lines long, or of a map of the kernel's that is as
    /// long. All of it at once: a file system that is full later would end the process.
    ///
    /// # Errors
    /// `Memory` when there is not that much.
    pub fn of_file(file: &File, lines: usize) -> Result<Self, TableError> {
        let bytes = lines.saturating_mul(size_of::<Line>());
        let failed = |source| TableError::Memory { bytes, source };
        let is_file = file.metadata().map_err(failed)?.is_file();
        let memory = if is_file {
            Memory::of_file(file, lines)
        } else {
            Memory::of_map(file, lines)
        };
        let arena = Self(memory.map_err(failed)?);
        arena.populate()?;
        Ok(arena)
    }

    /// Have the kernel make a map of that many lines for [`Self::of_file`].
    ///
    /// # Errors
    /// `Memory` when there is not that much, or it refuses.
    pub fn create_map(lines: usize) -> Result<File, TableError> {
        memory::create_map(lines).map_err(|source| TableError::Memory {
            bytes: lines.saturating_mul(size_of::<Line>()),
            source,
        })
    }

    /// Have all of its memory now.
    ///
    /// # Errors
    /// `Memory` when there is not that much.
    pub fn populate(&self) -> Result<(), TableError> {
        let bytes = size_of_val(self.lines());
        self.0
            .populate()
            .map_err(|source| TableError::Memory { bytes, source })
    }

    /// Bytes of some of its lines that the process has by now; 0 when the kernel does not tell. The first line
    /// begins a page.
    #[must_use]
    pub fn resident_bytes(&self, lines: Range<usize>) -> u64 {
        self.0.resident_bytes(lines).unwrap_or(0)
    }

    /// All lines.
    #[inline(always)]
    #[must_use]
    pub fn lines(&self) -> &[SharedLine] {
        self.0.lines()
    }
}
