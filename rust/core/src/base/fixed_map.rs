//! A map for what the configuration names.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map whose keys come from the configuration: packets only look things up, so no client can fill its buckets.
pub type FixedMap<K, V> = HashMap<K, V, BuildHasherDefault<FoldHasher>>;

/// A fast hasher without a key: multiply and fold.
#[derive(Clone, Copy, Debug, Default)]
pub struct FoldHasher(u64);

impl FoldHasher {
    #[inline(always)]
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word ^ 0x2d35_8dcc_aa6c_78a5) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
}

impl Hasher for FoldHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_ne_bytes(word));
        }
    }
    #[inline(always)]
    fn write_u32(&mut self, word: u32) {
        self.mix(u64::from(word));
    }
    #[inline(always)]
    fn write_u128(&mut self, word: u128) {
        self.mix((word >> 64) as u64 ^ (word as u64).rotate_left(32));
    }
    #[inline(always)]
    fn finish(&self) -> u64 {
        self.0
    }
}
