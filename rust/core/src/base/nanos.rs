//! Moments on the monotonic clock.

/// A moment: nanoseconds of the monotonic clock, whatever it counts from. How long something lasts is a plain number
/// of nanoseconds, with `_ns` in its name, so that the two are not taken for each other.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, bytemuck::Pod, bytemuck::Zeroable,
)]
#[repr(transparent)]
pub struct Nanos(u64);

impl Nanos {
    /// Where the clock counts from: before all others.
    pub const ZERO: Self = Self(0);
    /// After all others.
    pub const NEVER: Self = Self(u64::MAX);

    /// From what the clock says.
    #[inline(always)]
    #[must_use]
    pub const fn new(ns: u64) -> Self {
        Self(ns)
    }

    /// What the clock says.
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Nanoseconds from another moment to this one; 0 where this one is not after it.
    #[inline(always)]
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The moment this many nanoseconds later, at most [`Self::NEVER`].
    #[inline(always)]
    #[must_use]
    pub const fn plus(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }

    /// The same for a few seconds at most, without a look at the end: no clock comes near that of 64 bits.
    #[inline(always)]
    #[must_use]
    pub fn wrapping_plus(self, ns: u32) -> Self {
        Self(self.0.wrapping_add(u64::from(ns)))
    }

    /// Whether this moment, the present, has come to `due`.
    #[inline(always)]
    #[must_use]
    pub const fn is_past(self, due: Self) -> bool {
        self.0 >= due.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_end_at_both_ends_of_the_clock() {
        let (early, late) = (Nanos::new(5), Nanos::new(7));
        assert_eq!((late.since(early), early.since(late)), (2, 0));
        assert_eq!((early.plus(2), early.plus(u64::MAX)), (late, Nanos::NEVER));
        assert!(late.is_past(late) && late.is_past(early) && !early.is_past(late));
    }
}
