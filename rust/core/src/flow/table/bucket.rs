//! A bucket of the index: hashes and entry numbers side by side, in one cache line.

use super::arena::Line;
use crate::sys::cells::{Index, cells};
use crate::sys::lanes::{LANES, equal_lanes};

/// Slots per bucket.
pub(super) const SLOTS: usize = LANES;

/// The value of a cache line of the index. The hashes are side by side, so that a handful of vector instructions
/// compares them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Bucket {
    pub hashes: [u32; SLOTS],
    /// Entry numbers + 1; 0: an empty slot, whose hash means nothing.
    pub numbers: [u32; SLOTS],
}

const _: () = assert!(size_of::<Bucket>() == size_of::<Line>());

cells! {
    /// A cache line of the index, in its place: only we change it.
    pub(super) struct BucketCells {
        hashes: Index,
        numbers: Index,
    }
}

impl Bucket {
    /// The entry number in a slot; `None` when it is empty.
    #[inline]
    pub fn number(&self, slot: usize) -> Option<u32> {
        self.numbers.get(slot)?.checked_sub(1)
    }

    /// The slots in use: the hash and the entry number in each.
    pub fn in_use(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        (0..SLOTS).filter_map(|slot| Some((self.hashes[slot], self.number(slot)?)))
    }
}

impl BucketCells {
    /// Its value.
    pub fn load(&self) -> Bucket {
        Bucket {
            hashes: self.hashes.all(),
            numbers: self.numbers.all(),
        }
    }

    /// A bit per slot that holds this hash, or did so before it became empty. All are compared, without a branch:
    /// which slot it is cannot be foretold.
    #[inline(always)]
    pub fn slots_with(&self, hash: u32) -> u32 {
        equal_lanes(&self.hashes.all(), hash)
    }

    /// The entry number in a slot; `None` when it is empty.
    #[inline]
    pub fn number(&self, slot: usize) -> Option<u32> {
        self.numbers.get(slot)?.checked_sub(1)
    }

    /// The first empty slot.
    pub fn free_slot(&self) -> Option<usize> {
        self.numbers.all().iter().position(|&number| number == 0)
    }

    #[inline]
    pub fn has_room(&self) -> bool {
        self.numbers.all().contains(&0)
    }

    pub fn set(&self, slot: usize, hash: u32, number: u32) {
        self.hashes.set(slot, hash);
        self.numbers.set(slot, number + 1);
    }

    pub fn clear(&self, slot: usize) {
        self.hashes.set(slot, 0);
        self.numbers.set(slot, 0);
    }
}
