//! How long the packet loop looked away from its sockets: a histogram that the loop writes and any thread reads.
//!
//! One value per round of the loop, from a look at the sockets (or the end of a sleep) to the next look: the
//! longest time that a frame which came just after a look was held up. Sleeping is no pause: a frame ends it. What
//! the machine does with the thread meanwhile (it was not scheduled) counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Upper bounds of the buckets, nanoseconds; a last one has none.
pub const BOUNDS_NS: [u64; 13] = [
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
];

/// A histogram with one writer.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS_NS.len() + 1],
    sum_ns: AtomicU64,
    max_ns: AtomicU64,
}

/// [`Histogram`] at one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HistogramReport {
    /// Values per bucket: those up to its bound and beyond the one before it.
    pub buckets: [u64; BOUNDS_NS.len() + 1],
    /// Their sum, nanoseconds.
    pub sum_ns: u64,
    /// The largest, nanoseconds.
    pub max_ns: u64,
}

impl Histogram {
    /// Add a value. Only one thread may: its loads and stores are apart, which spares it the price of atomic
    /// additions.
    #[inline]
    pub fn record(&self, ns: u64) {
        let at = BOUNDS_NS.iter().position(|&bound| ns <= bound);
        add(&self.buckets[at.unwrap_or(BOUNDS_NS.len())], 1);
        add(&self.sum_ns, ns);
        if ns > self.max_ns.load(Ordering::Relaxed) {
            self.max_ns.store(ns, Ordering::Relaxed);
        }
    }

    /// Read it.
    #[must_use]
    pub fn report(&self) -> HistogramReport {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        HistogramReport {
            buckets: std::array::from_fn(|at| read(&self.buckets[at])),
            sum_ns: read(&self.sum_ns),
            max_ns: read(&self.max_ns),
        }
    }
}

#[inline]
fn add(number: &AtomicU64, value: u64) {
    number.store(
        number.load(Ordering::Relaxed).wrapping_add(value),
        Ordering::Relaxed,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_value_goes_into_the_first_bucket_that_holds_it() {
        let histogram = Histogram::default();
        for ns in [0, 10_000, 10_001, 200_000, 100_000_001, u64::MAX >> 1] {
            histogram.record(ns);
        }
        let report = histogram.report();
        let mut expected = [0; BOUNDS_NS.len() + 1];
        (expected[0], expected[1], expected[4], expected[13]) = (2, 1, 1, 2);
        assert_eq!(report.buckets, expected);
        assert_eq!(report.max_ns, u64::MAX >> 1);
    }
}
