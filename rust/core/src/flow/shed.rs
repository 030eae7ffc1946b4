//! Who tries again: rule 22.3, overload.
//!
//! A client whose first packet was shed sends it again, after a second or so; a flood from random sources hardly ever
//! has the same source twice. So what comes again is let in. What was shed is remembered in two Bloom filters, each
//! for one spell: the one of this spell is written, both are asked, and the older one is emptied for the next. With
//! 300 000 packets shed per second some 4 in 100 of them are taken for one that comes again.

use super::key::Key;
use crate::base::Nanos;

/// Longer than a client's host waits before it sends a SYN again (RFC 6298 2.1: 1 s).
const SPELL_NS: u64 = 2_000_000_000;
/// Words of a filter: 1 MiB.
const WORDS: usize = 1 << 17;
const BITS: usize = WORDS * 64;

/// What was shed within the last two spells.
pub struct Shed {
    key: [u64; 2],
    /// Of this spell, and of the one before. None before the first packet.
    filters: [Vec<u64>; 2],
    began: Nanos,
}

impl Shed {
    /// Without memory yet. `key`: secret, so that nobody can fill it at will.
    #[must_use]
    pub fn new(key: [u8; 16]) -> Self {
        let key = u128::from_le_bytes(key);
        Self {
            key: [key as u64, (key >> 64) as u64],
            filters: [Vec::new(), Vec::new()],
            began: Nanos::ZERO,
        }
    }

    /// Whether a flow's packet was shed before; it is remembered from now on.
    pub fn comes_again(&mut self, key: &Key, now: Nanos) -> bool {
        self.turn(now);
        let hash = key.hash(self.key);
        let places = [hash as usize % BITS, (hash >> 32) as usize % BITS];
        let has = |filter: &Vec<u64>| {
            let is_set = |&place: &usize| filter[place / 64] >> (place % 64) & 1 == 1;
            places.iter().all(is_set)
        };
        let known = self.filters.iter().any(has);
        for place in places {
            self.filters[0][place / 64] |= 1 << (place % 64);
        }
        known
    }

    /// Begin another spell if this one is over.
    fn turn(&mut self, now: Nanos) {
        let age = now.since(self.began);
        if self.filters[0].is_empty() {
            self.filters = [vec![0; WORDS], vec![0; WORDS]];
            self.began = now;
        } else if age >= SPELL_NS {
            self.filters.swap(0, 1);
            self.filters[0].fill(0);
            if age >= 2 * SPELL_NS {
                self.filters[1].fill(0);
            }
            self.began = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Ip;
    use crate::flow::key::KeySide;

    fn key(client: u32) -> Key {
        Key {
            client: Ip::from_v4(client),
            client_port: 4000,
            side: KeySide::Service(0),
        }
    }

    /// Rule 22.3, overload: within two spells, longer than that not.
    #[test]
    fn what_comes_again_is_known_for_two_to_four_seconds() {
        let mut shed = Shed::new([7; 16]);
        let at = |ms: u64| Nanos::new(50_000_000_000 + ms * 1_000_000);
        assert!(!shed.comes_again(&key(1), at(0)));
        assert!(!shed.comes_again(&key(2), at(1900)));
        assert!(shed.comes_again(&key(1), at(1999)));
        assert!(shed.comes_again(&key(2), at(3800)));
        assert!(!shed.comes_again(&key(3), at(4000)));
        assert!(!shed.comes_again(&key(3), at(60_000)));
    }

    /// Rule 22.3, overload: a flood that never repeats itself is hardly ever taken for a client that does.
    #[test]
    fn random_sources_are_rarely_known() {
        let mut shed = Shed::new([7; 16]);
        let now = Nanos::new(50_000_000_000);
        let known = (0..600_000).filter(|&client| shed.comes_again(&key(client), now));
        assert!(known.count() < 600_000 / 50);
    }
}
