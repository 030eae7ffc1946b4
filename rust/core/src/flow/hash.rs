//! `SipHash` (Aumasson and Bernstein, 2012): the keyed hash behind the flow table (1-3) and behind placement (2-4).
//!
//! Clients choose their addresses and ports, so an unkeyed hash would let them choose where their entries go. The
//! table's key is drawn at start and never shown. Placement uses the configured seed, so that several balancers,
//! and both backends, choose alike; its vectors are in `tests/vectors`.

/// The second half of the placement key: "flowlb-1".
const PLACEMENT_KEY: u64 = 0x666c_6f77_6c62_2d31;

struct State([u64; 4]);

impl State {
    #[inline]
    const fn new(k0: u64, k1: u64) -> Self {
        // The constants spell "somepseudorandomlygeneratedbytes".
        Self([
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ])
    }

    #[inline]
    fn round(&mut self) {
        let [v0, v1, v2, v3] = &mut self.0;
        *v0 = v0.wrapping_add(*v1);
        *v2 = v2.wrapping_add(*v3);
        *v1 = v1.rotate_left(13) ^ *v0;
        *v3 = v3.rotate_left(16) ^ *v2;
        *v0 = v0.rotate_left(32);
        *v2 = v2.wrapping_add(*v1);
        *v0 = v0.wrapping_add(*v3);
        *v1 = v1.rotate_left(17) ^ *v2;
        *v3 = v3.rotate_left(21) ^ *v0;
        *v2 = v2.rotate_left(32);
    }

    #[inline]
    fn word<const ROUNDS: usize>(&mut self, word: u64) {
        self.0[3] ^= word;
        for _ in 0..ROUNDS {
            self.round();
        }
        self.0[0] ^= word;
    }

    #[inline]
    fn finish<const ROUNDS: usize>(mut self) -> u64 {
        self.0[2] ^= 0xff;
        for _ in 0..ROUNDS {
            self.round();
        }
        self.0.iter().fold(0, |hash, v| hash ^ v)
    }
}

/// SipHash-C-D of bytes.
#[must_use]
pub fn siphash<const C: usize, const D: usize>(key: [u64; 2], bytes: &[u8]) -> u64 {
    let mut state = State::new(key[0], key[1]);
    let chunks = bytes.chunks_exact(8);
    let rest = chunks.remainder();
    for chunk in chunks {
        state.word::<C>(u64::from_le_bytes(chunk.try_into().unwrap_or_default()));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    state.word::<C>(u64::from_le_bytes(last) | (bytes.len() as u64) << 56);
    state.finish::<D>()
}

/// SipHash-1-3 of bytes that are given as the hash takes them in: in little-endian words, the last of which has the
/// number of bytes in its top byte.
#[inline(always)]
#[must_use]
pub fn siphash13_words<const N: usize>(key: [u64; 2], words: [u64; N]) -> u64 {
    let mut state = State::new(key[0], key[1]);
    for word in words {
        state.word::<1>(word);
    }
    state.finish::<3>()
}

/// The hash of the `hash-flow` selector: SipHash-2-4 of client, VIP (16 bytes each, IPv4-mapped), their ports
/// (big-endian) and the protocol.
#[must_use]
pub fn flow_hash(
    seed: u64,
    client: &[u8; 16],
    vip: &[u8; 16],
    client_port: u16,
    vip_port: u16,
    protocol: u8,
) -> u64 {
    let mut tuple = [0; 37];
    tuple[..16].copy_from_slice(client);
    tuple[16..32].copy_from_slice(vip);
    tuple[32..34].copy_from_slice(&client_port.to_be_bytes());
    tuple[34..36].copy_from_slice(&vip_port.to_be_bytes());
    tuple[36] = protocol;
    siphash::<2, 4>([seed, PLACEMENT_KEY], &tuple)
}

/// The hash of the `hash-source` selector: SipHash-2-4 of the client's 16 bytes.
#[must_use]
pub fn source_hash(seed: u64, client: &[u8; 16]) -> u64 {
    siphash::<2, 4>([seed, PLACEMENT_KEY], client)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

    fn counting(len: u8) -> Vec<u8> {
        (0..len).collect()
    }

    /// The worked example of the `SipHash` paper, appendix A, and the first reference vectors of its authors.
    #[test]
    fn siphash24_reference_vectors() {
        assert_eq!(siphash::<2, 4>(KEY, &counting(0)), 0x726f_db47_dd0e_0e31);
        assert_eq!(siphash::<2, 4>(KEY, &counting(1)), 0x74f8_39c5_93dc_67fd);
        assert_eq!(siphash::<2, 4>(KEY, &counting(8)), 0x93f5_f579_9a93_2462);
        assert_eq!(siphash::<2, 4>(KEY, &counting(15)), 0xa129_ca61_49be_45e5);
    }

    proptest! {
        /// The standard library's hasher is SipHash-1-3 with a zero key.
        #[test]
        #[allow(deprecated, reason = "SipHasher is 2-4 with a chosen key: the only oracle the standard library has")]
        fn siphash_any_bytes_equals_standard_library(
            k0: u64,
            k1: u64,
            bytes in proptest::collection::vec(any::<u8>(), 0..70),
        ) {
            use std::hash::Hasher as _;
            let mut keyed = std::hash::SipHasher::new_with_keys(k0, k1);
            keyed.write(&bytes);
            prop_assert_eq!(siphash::<2, 4>([k0, k1], &bytes), keyed.finish());
            let mut zero = std::collections::hash_map::DefaultHasher::new();
            zero.write(&bytes);
            prop_assert_eq!(siphash::<1, 3>([0, 0], &bytes), zero.finish());
        }

        #[test]
        fn siphash13_words_equals_bytes(key: [u64; 2], mut words: [u64; 3]) {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).take(23).collect();
            words[2] = words[2] << 8 >> 8 | 23 << 56;
            prop_assert_eq!(siphash13_words(key, words), siphash::<1, 3>(key, &bytes));
        }
    }
}
