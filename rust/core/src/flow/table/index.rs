//! The index: from a key's hash to its entry.

use super::Table;
use super::bucket::{BucketCells, SLOTS};
use super::header::HEADER_LINES;
use crate::flow::key::Key;
use crate::sys::prefetch::prefetch;

impl Table {
    /// The hash of a key: what [`Self::find_hashed`] asks for, so that a packet's key is hashed once.
    #[inline]
    #[must_use]
    pub fn hash(&self, key: &Key) -> u32 {
        key.hash(self.hash_key) as u32
    }

    /// Find the entry of a key.
    #[must_use]
    pub fn find(&self, key: &Key) -> Option<u32> {
        self.find_hashed(key, self.hash(key))
    }

    /// Find the entry of a key whose hash is known.
    #[inline(always)]
    #[must_use]
    pub fn find_hashed(&self, key: &Key, hash: u32) -> Option<u32> {
        let mut at = self.home(hash);
        loop {
            let bucket = self.bucket(at);
            let mut candidates = bucket.slots_with(hash);
            while candidates != 0 {
                let number = bucket.number(candidates.trailing_zeros() as usize);
                if let Some(number) = number.filter(|&number| self.entry(number).matches(key)) {
                    return Some(number);
                }
                candidates &= candidates - 1;
            }
            if bucket.has_room() {
                return None;
            }
            at = self.after(at);
        }
    }

    /// Fetch what a lookup of a hash reads first. Of use when other work is done in between.
    #[inline]
    pub fn prefetch_bucket(&self, hash: u32) {
        prefetch(self.bucket(self.home(hash)));
    }

    /// Fetch what a lookup of a hash reads next, once its bucket is there: the entry that probably is the one.
    #[inline]
    #[must_use]
    pub fn prefetch_entry(&self, hash: u32) -> Option<u32> {
        let bucket = self.bucket(self.home(hash));
        let slot = bucket.slots_with(hash).trailing_zeros();
        let number = bucket.number(slot as usize)?;
        prefetch(self.entry(number));
        Some(number)
    }

    #[inline]
    fn home(&self, hash: u32) -> u32 {
        ((u64::from(hash) * u64::from(self.buckets)) >> 32) as u32
    }

    #[inline]
    fn after(&self, bucket: u32) -> u32 {
        if bucket + 1 == self.buckets {
            0
        } else {
            bucket + 1
        }
    }

    #[inline]
    pub(super) fn bucket(&self, at: u32) -> &BucketCells {
        self.arena.lines()[HEADER_LINES + at as usize].view()
    }

    pub(super) fn insert_slot(&mut self, hash: u32, number: u32) {
        let mut at = self.home(hash);
        loop {
            let bucket = self.bucket(at);
            if let Some(slot) = bucket.free_slot() {
                return bucket.set(slot, hash, number);
            }
            at = self.after(at);
        }
    }

    /// Empty the slot of (hash, number). If that makes room in a full bucket, fetch back what had to go further for
    /// want of it; and so on.
    pub(super) fn remove_slot(&mut self, hash: u32, number: u32) {
        let mut hole = self.home(hash);
        let mut slot = loop {
            match self.slot_of(hole, hash, number) {
                Some(slot) => break slot,
                None => hole = self.after(hole),
            }
        };
        let mut was_full = !self.bucket(hole).has_room();
        self.bucket(hole).clear(slot);
        let mut at = hole;
        while was_full {
            at = self.after(at);
            was_full = !self.bucket(at).has_room();
            if let Some((moved, hash, number)) = self.displaced(at, hole) {
                self.bucket(at).clear(moved);
                self.bucket(hole).set(slot, hash, number);
                (hole, slot) = (at, moved);
            }
        }
    }

    /// The slot of bucket `at` that holds (hash, number): both, for the two keys of one entry may share a bucket.
    fn slot_of(&self, at: u32, hash: u32, number: u32) -> Option<usize> {
        let bucket = self.bucket(at).load();
        (0..SLOTS).find(|&slot| bucket.hashes[slot] == hash && bucket.number(slot) == Some(number))
    }

    /// A slot of bucket `at`, with its hash and entry number, that may stand in bucket `hole` before it: its home
    /// lies not after `hole`, in cyclic distance.
    fn displaced(&self, at: u32, hole: u32) -> Option<(usize, u32, u32)> {
        let (bucket, back) = (self.bucket(at).load(), self.distance(hole, at));
        (0..SLOTS).find_map(|slot| {
            let (hash, number) = (bucket.hashes[slot], bucket.number(slot)?);
            (self.distance(self.home(hash), at) >= back).then_some((slot, hash, number))
        })
    }

    fn distance(&self, from: u32, to: u32) -> u32 {
        if to >= from {
            to - from
        } else {
            to + (self.buckets - from)
        }
    }
}
