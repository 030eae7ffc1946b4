//! Token buckets. A bucket is one number: the theoretical arrival time (GCRA). Of the packets we make ourselves (rule
//! 12.4, packets that we send) each kind has one, so that a flood that asks for one kind starves no other.

use crate::base::Nanos;

const SECOND_NS: u64 = 1_000_000_000;

/// Limits to a rate per second, with a burst of one second's worth.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenBucket {
    /// When the bucket would be full again.
    arrival: Nanos,
}

impl TokenBucket {
    /// When it is full again, if nothing is taken.
    #[must_use]
    pub fn full_at(&self) -> Nanos {
        self.arrival
    }

    /// Take one token; `false` when there is none. Rate 0 has none, ever.
    pub fn take(&mut self, rate: u32, now: Nanos) -> bool {
        self.take_of_burst(rate, rate, now)
    }

    /// The same, with another burst than a second's worth. What was taken while the limit was another counts as an
    /// empty bucket at most.
    pub fn take_of_burst(&mut self, rate: u32, burst: u32, now: Nanos) -> bool {
        let interval = SECOND_NS.checked_div(u64::from(rate));
        let (Some(interval), Some(most)) = (interval, burst.checked_sub(1)) else {
            return false;
        };
        let most = u64::from(most) * interval;
        let empty = now.plus(most).plus(interval);
        self.arrival = self.arrival.max(now).min(empty);
        let has_token = self.arrival.since(now) <= most;
        if has_token {
            self.arrival = self.arrival.plus(interval);
        }
        has_token
    }
}

/// A kind of packet that we make ourselves. Each has a bucket of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AnswerKind {
    /// ICMP time exceeded.
    TimeExceeded,
    /// ICMP fragmentation needed, packet too big: path-MTU discovery depends on it.
    TooBig,
    /// All ICMP destination unreachable but fragmentation needed.
    Unreachable,
    /// ICMP echo reply.
    Echo,
    /// TCP reset that refuses a new flow.
    Reset,
    /// TCP reset that answers a segment of no flow (`on_no_flow`).
    NoFlow,
}

/// The buckets of all kinds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limiter([TokenBucket; AnswerKind::NoFlow as usize + 1]);

impl Limiter {
    /// Take a token of one kind; `false` when there is none. `rate`: tokens per second of each kind.
    pub fn take(&mut self, kind: AnswerKind, rate: u32, now: Nanos) -> bool {
        self.0[kind as usize].take(rate, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rule 12.4, packets that we send: a burst of one second, then the rate.
    #[test]
    fn take_burst_then_rate() {
        let mut bucket = TokenBucket::default();
        let taken =
            |bucket: &mut TokenBucket, now| (0..2000).filter(|_| bucket.take(1000, now)).count();
        assert_eq!(taken(&mut bucket, Nanos::ZERO), 1000);
        assert_eq!(taken(&mut bucket, Nanos::new(999_999)), 0);
        assert_eq!(taken(&mut bucket, Nanos::new(1_000_000)), 1);
        assert_eq!(taken(&mut bucket, Nanos::new(5 * SECOND_NS)), 1000);
    }

    /// Rule 12.4, packets that we send: echo requests do not starve path-MTU discovery.
    #[test]
    fn limiter_each_kind_has_its_own_bucket() {
        let mut limiter = Limiter::default();
        while limiter.take(AnswerKind::Echo, 10, Nanos::ZERO) {}
        for kind in [
            AnswerKind::TimeExceeded,
            AnswerKind::TooBig,
            AnswerKind::Unreachable,
            AnswerKind::Reset,
            AnswerKind::NoFlow,
        ] {
            assert!(
                (0..10).all(|_| limiter.take(kind, 10, Nanos::ZERO)),
                "{kind:?}"
            );
            assert!(!limiter.take(kind, 10, Nanos::ZERO), "{kind:?}");
        }
    }

    #[test]
    fn take_rate_zero_never_gives() {
        assert!(!TokenBucket::default().take(0, Nanos::new(1)));
    }

    #[test]
    fn take_absurd_rate_does_not_overflow() {
        let mut bucket = TokenBucket::default();
        assert!(bucket.take(u32::MAX, Nanos::NEVER) && bucket.take(u32::MAX, Nanos::NEVER));
    }
}
