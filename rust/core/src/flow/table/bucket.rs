//! A bucket of the index: hashes and entry numbers side by side, in one cache line.

use super::arena::Line;
use crate::sys::lanes::{LANES, equal_lanes};

/// Slots per bucket.
pub(super) const SLOTS: usize = LANES;

/// A cache line of the index. The hashes are side by side, so that a handful of vector instructions compares them
/// all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Bucket {
    pub hashes: [u32; SLOTS],
    /// Entry numbers + 1; 0: an empty slot, whose hash means nothing.
    pub numbers: [u32; SLOTS],
}

const _: () = assert!(size_of::<Bucket>() == size_of::<Line>());

impl Bucket {
    /// A bit per slot that holds this hash, or did so before it became empty. All are compared, without a branch:
    /// which slot it is cannot be foretold.
    #[inline(always)]
    pub fn slots_with(&self, hash: u32) -> u32 {
        equal_lanes(&self.hashes, hash)
    }

    /// The entry number in a slot; `None` when it is empty.
    #[inline]
    pub fn number(&self, slot: usize) -> Option<u32> {
        self.numbers.get(slot)?.checked_sub(1)
    }

    /// The slots in use: the hash and the entry number in each.
    pub fn in_use(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        (0..SLOTS).filter_map(|slot| Some((self.hashes[slot], self.number(slot)?)))
    }

    #[inline]
    pub fn has_room(&self) -> bool {
        self.numbers.contains(&0)
    }

    pub fn set(&mut self, slot: usize, hash: u32, number: u32) {
        self.hashes[slot] = hash;
        self.numbers[slot] = number + 1;
    }

    pub fn clear(&mut self, slot: usize) {
        self.hashes[slot] = 0;
        self.numbers[slot] = 0;
    }
}
