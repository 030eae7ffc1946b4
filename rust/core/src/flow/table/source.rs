//! Where another process left its table: a file, or a map of the kernel's.
//!
//! A file is read, not mapped, so that one that is cut short meanwhile is an error and no signal. A map keeps its
//! length.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::arena::Line;
use crate::sys::memory::Memory;

/// A table's bytes, for reading.
pub(super) enum Source<'a> {
    File(&'a File),
    Map(Memory),
}

impl<'a> Source<'a> {
    /// Look at a file or a map.
    ///
    /// # Errors
    /// It is neither, or as fstat(2), bpf(2), mmap(2).
    pub fn of(file: &'a File) -> io::Result<Self> {
        if file.metadata()?.is_file() {
            return Ok(Self::File(file));
        }
        Memory::of_whole_map(file).map(Self::Map)
    }

    /// How many bytes there are.
    ///
    /// # Errors
    /// As fstat(2).
    pub fn len(&self) -> io::Result<u64> {
        match self {
            Self::File(file) => Ok(file.metadata()?.len()),
            Self::Map(memory) => Ok(size_of_val(memory.lines()) as u64),
        }
    }

    /// Read bytes from the beginning of a line on.
    ///
    /// # Errors
    /// `UnexpectedEof` when there are fewer.
    pub fn read_exact_at(&self, bytes: &mut [u8], line: usize) -> io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(bytes, (line * size_of::<Line>()) as u64),
            Self::Map(memory) => {
                let lines = memory.lines().get(line..).unwrap_or_default();
                if size_of_val(lines) < bytes.len() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                for (into, line) in bytes.chunks_mut(size_of::<Line>()).zip(lines) {
                    into.copy_from_slice(&bytemuck::bytes_of(&line.load())[..into.len()]);
                }
                Ok(())
            }
        }
    }
}
