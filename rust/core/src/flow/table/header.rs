//! What the arena begins with, so that a program that maps it can make sense of the rest: a successor of this
//! process, or the kernel program.

use super::arena::{Line, TableError};
use super::bucket::{Bucket, SLOTS};
use super::entry::{Entry, FlowCold, FlowRare};
use crate::sys::cells::{Cell32, Cell64, cells};

/// No entry.
pub(super) const NONE: u32 = u32::MAX;
/// Most flows a table can be made for: slot numbers must fit 32 bits.
pub const MOST_FLOWS: u64 = 1 << 28;

pub(super) const MAGIC: u64 = u64::from_be_bytes(*b"flowlb\0t");
/// Counts layouts: [`super::layouts`].
pub(super) const VERSION: u32 = if cfg!(feature = "next-layout") { 5 } else { 4 };

/// The start of the arena: what a reader needs to know to make sense of the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct TableHeader {
    pub magic: u64,
    pub version: u32,
    pub bytes: u32,
    pub bucket_bytes: u32,
    pub entry_bytes: u32,
    pub cold_bytes: u32,
    pub rare_bytes: u32,
    pub buckets: u64,
    pub capacity: u64,
    pub hash_key: [u64; 2],
    /// Generation of the snapshot the ids belong to.
    pub generation: u64,
    /// Entries in use.
    pub live: u64,
    /// Entries ever used: those beyond are untouched zeros.
    pub touched: u32,
    pub spare: [u32; 11],
}

/// What of it changes.
pub(super) const CHANGING_LINE: usize = 1;

cells! {
    /// That line, in its place.
    pub(super) struct ChangingCells {
        pub generation: Cell64,
        pub live: Cell64,
        pub touched: Cell32,
        spare: [Cell32; 11],
    }
}

const _: () = assert!(
    std::mem::offset_of!(TableHeader, generation) == CHANGING_LINE * size_of::<Line>()
        && size_of::<TableHeader>() == HEADER_LINES * size_of::<Line>()
);

/// Where the index starts.
pub(super) const HEADER_LINES: usize = size_of::<TableHeader>().div_ceil(size_of::<Line>());

/// How many of what a table has, and where its parts start, in lines.
pub(super) struct Sizes {
    pub flows: u32,
    pub buckets: u32,
    pub entries_at: usize,
    pub cold_from: usize,
    pub rare_from: usize,
    pub lines: usize,
}

impl Sizes {
    /// Those of a table for `capacity` flows.
    ///
    /// # Errors
    /// `Capacity` unless it is in 1..=2^28.
    pub fn of(capacity: u64) -> Result<Self, TableError> {
        let flows = u32::try_from(capacity)
            .ok()
            .filter(|&flows| flows >= 1 && capacity <= MOST_FLOWS);
        let flows = flows.ok_or(TableError::Capacity(capacity))?;
        let buckets = (flows * 3).div_ceil(SLOTS as u32);
        let entries_at = HEADER_LINES + buckets as usize;
        let cold_from = entries_at + flows as usize;
        let rare_from = cold_from + (flows as usize).div_ceil(2);
        Ok(Self {
            flows,
            buckets,
            entries_at,
            cold_from,
            rare_from,
            lines: rare_from + (flows as usize).div_ceil(8),
        })
    }
}

impl TableHeader {
    /// All that tells one layout from another.
    pub fn sizes(&self) -> ([u32; 5], u64) {
        let bytes = [
            self.bytes,
            self.bucket_bytes,
            self.entry_bytes,
            self.cold_bytes,
            self.rare_bytes,
        ];
        (bytes, self.buckets)
    }

    /// That of an empty table.
    pub fn new(sizes: &Sizes, hash_key: [u64; 2]) -> Self {
        Self {
            magic: MAGIC,
            version: VERSION,
            bytes: (HEADER_LINES * size_of::<Line>()) as u32,
            bucket_bytes: size_of::<Bucket>() as u32,
            entry_bytes: size_of::<Entry>() as u32,
            cold_bytes: size_of::<FlowCold>() as u32,
            rare_bytes: size_of::<FlowRare>() as u32,
            buckets: u64::from(sizes.buckets),
            capacity: u64::from(sizes.flows),
            hash_key,
            generation: 0,
            live: 0,
            touched: 0,
            spare: [0; 11],
        }
    }

    /// It as lines.
    pub fn lines(self) -> [Line; HEADER_LINES] {
        bytemuck::cast(self)
    }
}
