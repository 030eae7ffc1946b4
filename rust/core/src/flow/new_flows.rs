//! How many new flows the clients of a prefix may begin: rule 8.22, limits of new flows.

use super::hash;
use crate::base::{Ip, Nanos};
use crate::limit::TokenBucket;
use crate::snapshot::NewFlowLimit;

/// Sets of buckets: with [`WAYS`] each 65 536 buckets, 1 MiB.
const SETS: usize = 1 << 14;
const WAYS: usize = 4;

/// The buckets of source prefixes, of all services that have a limit: a fixed number.
///
/// A prefix has a place in the set that a keyed hash says, so that nobody can choose whom to share it with. In a full
/// set it takes the place of the bucket that is full again first: what is forgotten is the least debt, and an error
/// lets more flows in, never fewer.
pub struct NewFlowLimiter {
    key: [u64; 2],
    /// A set is a cache line: the hash of each prefix, then its bucket. None before the first look.
    sets: Vec<([u64; WAYS], [TokenBucket; WAYS])>,
}

impl NewFlowLimiter {
    /// Without memory yet. `key`: secret.
    #[must_use]
    pub fn new(key: [u8; 16]) -> Self {
        let key = u128::from_le_bytes(key);
        Self {
            key: [key as u64, (key >> 64) as u64],
            sets: Vec::new(),
        }
    }

    /// Take a token for a new flow of a client; `false` when its prefix has none.
    pub fn take(&mut self, service: u32, client: Ip, limit: &NewFlowLimit, now: Nanos) -> bool {
        if self.sets.is_empty() {
            self.sets = vec![Default::default(); SETS];
        }
        let hash = self.hash(service, client, limit);
        let (prefixes, buckets) = &mut self.sets[hash as usize % SETS];
        let way = prefixes.iter().position(|&other| other == hash);
        let way = way.unwrap_or_else(|| {
            let fullest = (0..WAYS).min_by_key(|&way| buckets[way].full_at());
            let way = fullest.unwrap_or_default();
            (prefixes[way], buckets[way]) = (hash, TokenBucket::default());
            way
        });
        buckets[way].take_of_burst(limit.rate, limit.burst, now)
    }

    /// Of prefix and service: it stands for both, as one of 2^64.
    fn hash(&self, service: u32, client: Ip, limit: &NewFlowLimit) -> u64 {
        let bits = if client.is_v4() {
            96 + u32::from(limit.prefix_ipv4)
        } else {
            u32::from(limit.prefix_ipv6)
        };
        let mask = u128::MAX.checked_shl(128 - bits.min(128)).unwrap_or(0);
        let mut bytes = [0; 20];
        bytes[..16].copy_from_slice(&client.masked(mask).to_be_bytes());
        bytes[16..].copy_from_slice(&service.to_be_bytes());
        hash::siphash::<2, 4>(self.key, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;
    const LIMIT: NewFlowLimit = NewFlowLimit {
        rate: 10,
        burst: 3,
        prefix_ipv4: 24,
        prefix_ipv6: 56,
    };

    fn taken(limiter: &mut NewFlowLimiter, client: &str, limit: &NewFlowLimit, now: u64) -> usize {
        let client = Ip::from(client.parse::<std::net::IpAddr>().unwrap());
        (0..100)
            .filter(|_| limiter.take(0, client, limit, Nanos::new(now)))
            .count()
    }

    /// Rule 8.22, limits of new flows: a burst, then the rate, of each prefix by itself.
    #[test]
    fn new_flows_burst_then_rate_per_prefix() {
        let mut limiter = NewFlowLimiter::new([7; 16]);
        for (first, neighbour, other) in [
            ("192.0.2.1", "192.0.2.250", "192.0.3.1"),
            ("2001:db8::1", "2001:db8:0:ff::9", "2001:db8:0:100::1"),
        ] {
            assert_eq!(taken(&mut limiter, first, &LIMIT, 5), 3);
            assert_eq!(taken(&mut limiter, neighbour, &LIMIT, 5), 0);
            assert_eq!(taken(&mut limiter, other, &LIMIT, 5), 3);
            assert_eq!(
                taken(&mut limiter, neighbour, &LIMIT, SECOND_NS / 10 + 5),
                1
            );
        }
    }

    /// Rule 8.22, limits of new flows: services have buckets of their own; prefixes of no bits are all clients.
    #[test]
    fn new_flows_of_no_bits_are_of_all_clients_of_a_service() {
        let mut limiter = NewFlowLimiter::new([7; 16]);
        let all = NewFlowLimit {
            prefix_ipv4: 0,
            prefix_ipv6: 0,
            ..LIMIT
        };
        assert_eq!(taken(&mut limiter, "192.0.2.1", &all, 5), 3);
        assert_eq!(taken(&mut limiter, "10.1.2.3", &all, 5), 0);
        assert_eq!(taken(&mut limiter, "2001:db8::1", &all, 5), 3);
        assert_eq!(taken(&mut limiter, "2002::1", &all, 5), 0);
        let client = Ip::from_v4(0x0a01_0203);
        assert!(limiter.take(1, client, &all, Nanos::new(5)));
    }

    /// Rule 8.22, limits of new flows: a debt of an older, slower limit is an empty bucket of the new one.
    #[test]
    fn new_flows_follow_a_changed_limit_at_once() {
        let mut limiter = NewFlowLimiter::new([7; 16]);
        let slow = NewFlowLimit {
            rate: 1,
            burst: 1000,
            ..LIMIT
        };
        assert_eq!(taken(&mut limiter, "192.0.2.1", &slow, 5), 100);
        assert_eq!(taken(&mut limiter, "192.0.2.1", &LIMIT, 5), 0);
        let soon = SECOND_NS / 10 + 5;
        assert_eq!(taken(&mut limiter, "192.0.2.1", &LIMIT, soon), 1);
    }

    /// Rule 8.22, limits of new flows: the memory is fixed; among more prefixes than it has room for, those that were
    /// replaced start anew, and one that is in debt stays while others are full.
    #[test]
    fn new_flows_of_many_prefixes_only_ever_forgive() {
        let mut limiter = NewFlowLimiter::new([7; 16]);
        let one = NewFlowLimit { burst: 1, ..LIMIT };
        let address = |number: u32| Ip::from_v4(0x1000_0000 + (number << 8));
        let count = 3 * (SETS * WAYS) as u32;
        let first = (0..count).filter(|&n| limiter.take(0, address(n), &one, Nanos::new(5)));
        assert_eq!(first.count() as u32, count, "each has its burst");
        let again = (0..count).filter(|&n| limiter.take(0, address(n), &one, Nanos::new(5)));
        assert!(
            again.count() >= 2 * SETS * WAYS,
            "what was replaced starts anew"
        );
        assert_eq!(limiter.sets.len(), SETS);
        assert_eq!(size_of_val(&limiter.sets[0]), 64);
        let late = Nanos::new(9 * SECOND_NS);
        assert!(limiter.take(0, address(1), &one, late));
        let fresh = (count..count + 1000).filter(|&n| limiter.take(0, address(n), &one, late));
        assert_eq!(fresh.count(), 1000);
        assert!(
            !limiter.take(0, address(1), &one, late),
            "its debt is the newest"
        );
    }
}
