//! The Internet checksum: RFC 1071 in full, RFC 1624 for updates.
//!
//! A one's-complement sum does not care where a word stands, only whether it is at an even offset, and its bytes
//! may be swapped before or after adding. So [`sum`] adds eight bytes at a time in the machine's own order and
//! swaps once at the end.
//!
//! Updates follow equation 3 of RFC 1624, `HC' = ~(~HC + ~m + m')`: a wrong checksum stays wrong by the same
//! amount, it is never repaired. Equation 4 (subtraction) is not used: it can give 0xFFFF where eqn 3 gives 0x0000.

use crate::base::Ip;
/// Fold a sum of 16-bit words until no carry is left. Zero only for zero.
#[inline]
#[must_use]
pub const fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The same for a sum that fits 32 bits: a number and its halves swapped, added, have the sum of the halves, and
/// its carry, in the upper half.
#[inline(always)]
#[must_use]
const fn fold32(sum: u32) -> u16 {
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

/// [`sum`] of an IPv4 header without options.
#[inline(always)]
#[must_use]
pub fn sum20(bytes: &[u8; 20]) -> u16 {
    let [first @ .., _, _, _, _, _, _, _, _, _, _, _, _] = bytes;
    let [_, _, _, _, _, _, _, _, second @ .., _, _, _, _] = bytes;
    let [.., a, b, c, d] = *bytes;
    // The carry of each addition is added at the other end, as the sum asks for: twice 8 bytes, then 4.
    let (total, carry) = u64::from_ne_bytes(*first).overflowing_add(u64::from_ne_bytes(*second));
    let last = u64::from(u32::from_ne_bytes([a, b, c, d])) + u64::from(carry);
    let (total, carry) = total.overflowing_add(last);
    let total = total.wrapping_add(u64::from(carry));
    // As in `fold32`, with halves of 32 bits.
    let words = (total.wrapping_add(total.rotate_left(32)) >> 32) as u32;
    u16::from_be(fold32(words))
}

/// The one's-complement sum of big-endian 16-bit words, folded; an odd last byte counts as the high half of a word.
#[must_use]
pub fn sum(bytes: &[u8]) -> u16 {
    let mut total = 0u64;
    // 32-bit halves in a 64-bit sum: no carry is lost before 2^32 chunks.
    let chunks = bytes.chunks_exact(8);
    let rest = chunks.remainder();
    for chunk in chunks {
        let word = u64::from_ne_bytes(chunk.try_into().unwrap_or_default());
        total += (word & 0xffff_ffff) + (word >> 32);
    }
    let mut tail = [0u8; 8];
    tail[..rest.len()].copy_from_slice(rest);
    let word = u64::from_ne_bytes(tail);
    total += (word & 0xffff_ffff) + (word >> 32);
    u16::from_be(fold(total))
}

/// The checksum of `bytes` (RFC 1071): the complement of their sum. 0 over bytes that hold their own right checksum.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    !sum(bytes)
}

/// Update a checksum for one 16-bit word that changed from `old` to `new` (RFC 1624, eqn 3).
#[must_use]
pub const fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(!checksum as u64 + !old as u64 + new as u64)
}

/// The sum of the pseudo-header (RFC 9293 3.1, RFC 8200 8.1) of `len` bytes of `protocol`, unfolded. IPv4 and IPv6
/// give what their RFCs ask for: the constant part of a mapped address is left out.
#[must_use]
pub fn pseudo_header(source: Ip, destination: Ip, protocol: u8, len: usize) -> u64 {
    address_sum(source)
        + address_sum(destination)
        + u64::from(protocol)
        + (len as u64 >> 16)
        + (len as u64 & 0xffff)
}

fn address_sum(address: Ip) -> u64 {
    let bytes = address.to_be_bytes();
    let from = if address.is_v4() { 12 } else { 0 };
    u64::from(sum(&bytes[from..]))
}

/// What changed words add to a checksum: the sum of `~m + m'` over the words that differ, folded. Zero only when
/// none differs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u16);

impl Delta {
    /// Nothing changed.
    pub const ZERO: Self = Self(0);

    /// Count one 16-bit word. Words that do not differ are left out: they must not turn a sum of 0 into 0xFFFF.
    #[inline]
    #[must_use]
    pub const fn word(self, old: u16, new: u16) -> Self {
        if old == new {
            self
        } else {
            Self(fold(self.0 as u64 + !old as u64 + new as u64))
        }
    }

    /// Count every word of an address. For IPv4 the mapped part does not differ and so does not count.
    #[must_use]
    pub const fn address(mut self, old: Ip, new: Ip) -> Self {
        let mut shift = 0;
        while shift < 128 {
            self = self.word((old.bits() >> shift) as u16, (new.bits() >> shift) as u16);
            shift += 16;
        }
        self
    }

    /// Count what `other` counted.
    #[inline]
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(fold32(self.0 as u32 + other.0 as u32))
    }

    /// The updated checksum.
    #[inline]
    #[must_use]
    pub const fn apply(self, checksum: u16) -> u16 {
        !fold32(!checksum as u32 + self.0 as u32)
    }

    /// The updated pseudo-header sum of a frame whose checksum the network card finishes: it is not complemented.
    #[inline]
    #[must_use]
    pub const fn apply_partial(self, sum: u16) -> u16 {
        fold32(sum as u32 + self.0 as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive_sum(bytes: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in bytes.chunks(2) {
            total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    /// Rule 8.20, translation: the vector of RFC 1624 section 4.
    #[test]
    fn update_rfc1624_vector_gives_zero() {
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    /// RFC 1071 section 3 works this example: the sum is DDF2.
    #[test]
    fn sum_rfc1071_example_gives_ddf2() {
        assert_eq!(
            sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            0xddf2
        );
    }

    /// Rule 8.20, translation: after this DNAT the UDP sum is 0 (and is sent as FFFF by the rewrite stage).
    #[test]
    fn delta_dnat_vector_gives_zero() {
        let vip = Ip::from_v4(0xcb00_710a);
        let server = Ip::from_v4(0x0a00_000b);
        let delta = Delta::default().address(vip, server).word(53, 5353);
        assert_eq!(delta.apply(0xe2b3), 0x0000);
    }

    #[test]
    fn sum20_every_carry_equals_sum() {
        for pattern in 0..1u32 << 10 {
            let bytes = std::array::from_fn(|at| {
                if pattern >> (at / 2) & 1 == 1 {
                    0xff
                } else {
                    (at == 19).into()
                }
            });
            assert_eq!(sum20(&bytes), sum(&bytes));
        }
    }

    proptest! {
        #[test]
        fn sum20_any_header_equals_sum(bytes: [u8; 20]) {
            prop_assert_eq!(sum20(&bytes), sum(&bytes));
        }

        #[test]
        fn sum_any_bytes_equals_word_by_word(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(sum(&bytes), naive_sum(&bytes));
        }

        #[test]
        fn delta_changed_words_equals_recomputation(
            mut words in proptest::collection::vec(any::<u16>(), 2..40),
            at in any::<prop::sample::Index>(),
            new in any::<u16>(),
        ) {
            let bytes = |words: &[u16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>();
            words[0] |= 1; // A header is never all zeros, the one case with two right answers.
            let before = checksum(&bytes(&words));
            let at = 1 + at.index(words.len() - 1);
            let delta = Delta::default().word(words[at], new);
            words[at] = new;
            prop_assert_eq!(delta.apply(before), checksum(&bytes(&words)));
        }

        #[test]
        fn delta_in_one_step_equals_word_by_word(
            start in any::<u16>(),
            pairs in proptest::collection::vec(any::<(u16, u16)>(), 0..20),
        ) {
            let all = pairs.iter().fold(Delta::default(), |delta, &(old, new)| delta.word(old, new));
            let changed = pairs.iter().filter(|(old, new)| old != new);
            let stepwise = changed.fold(start, |sum, &(old, new)| update(sum, old, new));
            prop_assert_eq!(all.apply(start), stepwise);
        }
    }
}
