//! A token bucket for the packets we make ourselves (rule 12, behaviour 27), as one number: the theoretical arrival time (GCRA).

const SECOND_NS: u64 = 1_000_000_000;

/// Limits to a rate per second, with a burst of one second's worth.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenBucket {
    /// When the bucket would be full again.
    arrival: u64,
}

impl TokenBucket {
    /// Take one token; `false` when there is none. Rate 0 has none, ever.
    pub fn take(&mut self, rate: u32, now: u64) -> bool {
        let Some(interval) = SECOND_NS.checked_div(u64::from(rate)) else {
            return false;
        };
        let arrival = self.arrival.max(now);
        if arrival - now > u64::from(rate - 1) * interval {
            return false;
        }
        self.arrival = arrival.saturating_add(interval);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// behaviour 27: a burst of one second, then the rate.
    #[test]
    fn take_burst_then_rate() {
        let mut bucket = TokenBucket::default();
        let taken =
            |bucket: &mut TokenBucket, now| (0..2000).filter(|_| bucket.take(1000, now)).count();
        assert_eq!(taken(&mut bucket, 0), 1000);
        assert_eq!(taken(&mut bucket, 999_999), 0);
        assert_eq!(taken(&mut bucket, 1_000_000), 1);
        assert_eq!(taken(&mut bucket, 5 * SECOND_NS), 1000);
    }

    #[test]
    fn take_rate_zero_never_gives() {
        assert!(!TokenBucket::default().take(0, 1));
    }

    #[test]
    fn take_absurd_rate_does_not_overflow() {
        let mut bucket = TokenBucket::default();
        assert!(bucket.take(u32::MAX, u64::MAX) && bucket.take(u32::MAX, u64::MAX));
    }
}
