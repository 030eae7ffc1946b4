//! The flow table: a fixed number of entries, found by either direction's key, expired and evicted through a list
//! per state.
//!
//! One [`Arena`] holds everything: a header, an index of buckets, then 64 bytes per flow that every packet of it
//! needs ([`Entry`]), then 32 that TCP and lists need ([`FlowCold`]), then 8 that hardly any packet needs
//! ([`FlowRare`]). Three slots of the index per flow for its two keys keep it at most two thirds full, so a flow
//! costs 64 + 32 + 8 + 24 = 128 bytes, all included. The arena has no pointer in it: entries name each other by
//! number. A lookup touches two cache lines: a bucket and an entry are one each.
//!
//! Index: a bucket is 8 slots, a slot holds (hash, entry + 1), a key's home bucket is `hash * buckets >> 32`. What
//! finds its home full goes to the next bucket with room; so all buckets between an entry's home and its place are
//! full, and a search ends at the first bucket with room. Removal fetches back what may stand nearer to its home
//! instead of leaving tombstones, so lookups never slow down with age. Lists: an entry moves to its list's tail at
//! most once per second; so a list is ordered by `linked`, and roughly by `last_seen`, at the cost of almost no
//! writes per packet.

mod arena;
mod bucket;
mod entry;
mod flow;
mod header;
mod image;
mod index;
mod kept;
mod layouts;
mod list;
mod lists;
mod parts;
mod rows;
mod source;
mod stored;

use std::fs::File;
use std::ops::Range;

use crate::base::Nanos;
use crate::flow::key::Key;
use crate::flow::state::FlowState;

use arena::{Arena, Line};
use header::{NONE, Sizes, TableHeader};
use kept::Row;
use list::List;

pub use arena::TableError;
pub use entry::{ColdCells, Entry, EntryCells, FlowCold, RareCells};
pub use flow::Flow;
pub use header::MOST_FLOWS;
pub use kept::{Kept, Translation};
pub use rows::{ROW_BYTES, Rows, row_layout};

/// Cache lines of its memory that are asked about at once: 32 MiB, at a byte per page.
const MEMORY_PART: usize = 1 << 19;

/// The table. See the module's description.
pub struct Table {
    arena: Arena,
    /// Copies of constants in the header, at hand.
    buckets: u32,
    capacity: u32,
    /// Where entries, colds and cold parts start, in lines.
    entries_at: usize,
    cold_from: usize,
    rare_from: usize,
    hash_key: [u64; 2],
    /// A time before which no head can have expired: lets most packets skip the look at the heads.
    due: Nanos,
    /// A list per state: no reader of the arena needs them.
    lists: [List; FlowState::ALL.len()],
    /// First of the removed entries, chained by `following`.
    free: u32,
}

impl Table {
    /// Make an empty table.
    ///
    /// # Errors
    /// `Capacity` unless it is in 1..=2^28, `Memory`.
    pub fn new(capacity: u64, hash_key: [u8; 16]) -> Result<Self, TableError> {
        let sizes = Sizes::of(capacity)?;
        Ok(Self::over(Arena::new(sizes.lines)?, &sizes, hash_key))
    }

    /// Make an empty table in the memory of an empty file or of a new map of [`Self::create_map`], where it outlives
    /// the process.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn in_file(capacity: u64, hash_key: [u8; 16], file: &File) -> Result<Self, TableError> {
        let sizes = Sizes::of(capacity)?;
        Ok(Self::over(
            Arena::of_file(file, sizes.lines)?,
            &sizes,
            hash_key,
        ))
    }

    /// Have the kernel make a map that a table fits in. It ends with its descriptor, unless it is pinned.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn create_map(capacity: u64) -> Result<File, TableError> {
        Arena::create_map(Sizes::of(capacity)?.lines)
    }

    fn over(arena: Arena, sizes: &Sizes, hash_key: [u8; 16]) -> Self {
        let key = u128::from_le_bytes(hash_key);
        let hash_key = [key as u64, (key >> 64) as u64];
        let header = TableHeader::new(sizes, hash_key);
        for (place, line) in arena.lines().iter().zip(header.lines()) {
            place.store(line);
        }
        Self {
            arena,
            buckets: sizes.buckets,
            capacity: sizes.flows,
            entries_at: sizes.entries_at,
            cold_from: sizes.cold_from,
            rare_from: sizes.rare_from,
            hash_key,
            due: Nanos::ZERO,
            lists: [List::EMPTY; FlowState::ALL.len()],
            free: NONE,
        }
    }

    /// Have all of its memory now: before packets flow, not while they do.
    ///
    /// # Errors
    /// `Memory`.
    pub fn populate(&mut self) -> Result<(), TableError> {
        self.arena.populate()
    }

    /// Bytes of it that are promised, everything included, and of these resident by now: of the lines from `from`
    /// on that one call can ask about, and where the next call has to begin.
    #[must_use]
    pub fn memory_part(&self, from: usize) -> ((u64, u64), Option<usize>) {
        let until = (from + MEMORY_PART).min(self.arena.lines().len());
        let promised = ((until - from) * size_of::<Line>()) as u64;
        let next = (until < self.arena.lines().len()).then_some(until);
        ((promised, self.arena.resident_bytes(from..until)), next)
    }

    /// Note the generation of the snapshot that ids belong to from now on, and that timeouts may have changed.
    pub fn set_generation(&mut self, generation: u64) {
        self.changing().generation.set(generation);
        self.due = Nanos::ZERO;
    }

    /// Entries in use.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.changing().live.get()
    }

    /// Entries it has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Whether no entry is in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the next insertion needs a removal first.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len() >= u64::from(self.capacity)
    }

    /// Whether an entry has this key. No entry that was removed has one: its port is 0.
    #[inline]
    #[must_use]
    pub fn holds(&self, number: u32, key: &Key) -> bool {
        self.entry(number).matches(key)
    }

    /// Store a flow at the tail of its list. The table must not be full, and neither of its keys in it.
    pub fn insert(&mut self, entry: Entry, timeout_ns: u64) -> u32 {
        let number = self.place(&Row::of(entry));
        self.link(number, entry.state());
        self.due = self.due.min(entry.last_seen.plus(timeout_ns));
        number
    }

    /// Remove an entry, and return what it was.
    pub fn remove(&mut self, number: u32) -> Entry {
        let entry = self.entry(number).load();
        self.remove_slot(self.hash(&entry.forward_key()), number);
        self.remove_slot(self.hash(&entry.reply_key()), number);
        self.unlink(number);
        self.entry(number).store(&Entry::default());
        self.cold(number).store(&FlowCold {
            following: self.free,
            ..FlowCold::default()
        });
        self.free = number;
        self.changing().live.set(self.len() - 1);
        entry
    }

    /// The numbers of the entries in some places, in their order; and the place after the last one of the table.
    pub fn numbers_in(&self, places: Range<u32>) -> (impl Iterator<Item = u32>, u32) {
        let end = self.changing().touched.get();
        // A removed entry has port 0, which no flow has.
        let numbers = (places.start..places.end.min(end))
            .filter(|&number| self.entry(number).client_port() != 0);
        (numbers, end)
    }

    /// Store a flow with all its parts, in no list yet. The table must not be full, and neither of its keys in it.
    fn place(&mut self, row: &Row) -> u32 {
        let number = self.take_free();
        self.entry(number).store(&row.entry);
        self.cold(number).store(&row.cold);
        self.rare(number).store(&row.rare);
        self.insert_slot(self.hash(&row.entry.forward_key()), number);
        self.insert_slot(self.hash(&row.entry.reply_key()), number);
        self.changing().live.set(self.len() + 1);
        number
    }

    fn take_free(&mut self) -> u32 {
        if let Some(number) = present(self.free) {
            self.free = self.cold(number).following.get();
            return number;
        }
        let touched = &self.changing().touched;
        let number = touched.get();
        touched.set(number + 1);
        number
    }
}

fn present(number: u32) -> Option<u32> {
    (number != NONE).then_some(number)
}

#[cfg(test)]
mod tests;
