//! Eight numbers compared with one at once, for the buckets of the flow table: vector instructions that every
//! `x86_64` has, and the same in plain Rust.
//!
//! The compiler makes 30 instructions of the plain form, and of these ten. It is asked twice per packet of a flow.
#![allow(unsafe_code, reason = "vector instructions are intrinsics")]

/// How many numbers are compared.
pub const LANES: usize = 8;

/// A bit for each of `lanes` that equals `value`, the lowest for the first.
#[inline(always)]
#[must_use]
pub fn equal_lanes(lanes: &[u32; LANES], value: u32) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: SSE2 is part of the architecture.
        unsafe { sse2::equal_lanes(lanes, value) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    plain(lanes, value)
}

#[cfg(any(test, not(target_arch = "x86_64")))]
fn plain(lanes: &[u32; LANES], value: u32) -> u32 {
    let bits = lanes.iter().enumerate();
    bits.fold(0, |found, (at, &lane)| {
        found | u32::from(lane == value) << at
    })
}

#[cfg(target_arch = "x86_64")]
mod sse2 {
    use std::arch::x86_64::{
        __m128i, _mm_cmpeq_epi32, _mm_movemask_epi8, _mm_packs_epi16, _mm_packs_epi32,
        _mm_set1_epi32, _mm_setzero_si128,
    };

    /// Equal lanes are all ones, and stay so while their width is halved twice; then a bit of each is taken.
    #[inline]
    #[target_feature(enable = "sse2")]
    #[allow(
        clippy::multiple_unsafe_ops_per_block,
        unused_unsafe,
        reason = "they need no unsafe block from Rust 1.87 on"
    )]
    pub(super) unsafe fn equal_lanes(lanes: &[u32; super::LANES], value: u32) -> u32 {
        let [low, high]: [__m128i; 2] = bytemuck::cast(*lanes);
        // SAFETY: they work on values alone, and SSE2 is enabled here.
        unsafe {
            let value = _mm_set1_epi32(i32::from_ne_bytes(value.to_ne_bytes()));
            let low = _mm_cmpeq_epi32(low, value);
            let high = _mm_cmpeq_epi32(high, value);
            let bytes = _mm_packs_epi16(_mm_packs_epi32(low, high), _mm_setzero_si128());
            u32::from_ne_bytes(_mm_movemask_epi8(bytes).to_ne_bytes())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Few different numbers, so that many lanes are equal; those that differ in one half only among them.
        #[test]
        fn equal_lanes_any_numbers_equals_plain(
            lanes: [bool; LANES],
            values in proptest::array::uniform2(prop_oneof![
                any::<u32>(), Just(0), Just(u32::MAX), Just(0xffff), Just(0xffff_0000)
            ]),
        ) {
            let lanes = lanes.map(|second| values[usize::from(second)]);
            for value in values {
                prop_assert_eq!(equal_lanes(&lanes, value), plain(&lanes, value));
            }
        }
    }

    #[test]
    fn equal_lanes_each_lane_has_its_bit() {
        for at in 0..LANES {
            let mut lanes = [7; LANES];
            lanes[at] = 9;
            assert_eq!(equal_lanes(&lanes, 9), 1 << at);
        }
    }
}
