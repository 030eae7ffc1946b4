//! What the arena begins with, so that a program that maps it can make sense of the rest: a successor of this
//! process, or the kernel program.

use super::arena::Line;
use crate::flow::state::FlowState;

pub(super) const MAGIC: u64 = u64::from_be_bytes(*b"flowlb\0t");
pub(super) const VERSION: u32 = 4;

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
    /// First of the removed entries, chained by `following`.
    pub free: u32,
    /// First and last of each state's list.
    pub heads: [u32; LISTS],
    pub tails: [u32; LISTS],
    pub spare: [u64; 5],
}

/// Room for a list per state.
pub(super) const LISTS: usize = 8;
const _: () = assert!(FlowState::ALL.len() <= LISTS);
const _: () = assert!(size_of::<TableHeader>() % size_of::<Line>() == 0);

/// Where the index starts.
pub(super) const HEADER_LINES: usize = size_of::<TableHeader>().div_ceil(size_of::<Line>());
