//! Sequence numbers, compared as they wrap around (RFC 9293 3.4).

/// A TCP sequence number. There is no order among all of them: which of two is later says the signed difference, so
/// it is asked by name and not by `<`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(transparent)]
pub struct SeqNumber(u32);

impl SeqNumber {
    /// 0.
    pub const ZERO: Self = Self(0);

    /// From what a header says, in host order.
    #[inline(always)]
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// What a header says, in host order.
    #[inline(always)]
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The number `bytes` further.
    #[inline(always)]
    #[must_use]
    pub const fn plus(self, bytes: u32) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    /// The bytes from another number to this one, going up.
    #[inline(always)]
    #[must_use]
    pub const fn since(self, other: Self) -> u32 {
        self.0.wrapping_sub(other.0)
    }

    /// Whether it is after another, by signed difference; the one half around is not.
    #[inline(always)]
    #[must_use]
    #[allow(clippy::cast_possible_wrap, reason = "the sign is the point")]
    pub const fn is_after(self, other: Self) -> bool {
        self.since(other) as i32 > 0
    }

    /// The later of both.
    #[inline(always)]
    #[must_use]
    pub const fn later(self, new: Self) -> Self {
        if new.is_after(self) { new } else { self }
    }

    /// Whether it lies between two others, both included: `first` is not after `last`.
    #[inline(always)]
    #[must_use]
    pub const fn is_between(self, first: Self, last: Self) -> bool {
        self.since(first) <= last.since(first)
    }
}

impl From<u32> for SeqNumber {
    fn from(number: u32) -> Self {
        Self(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_goes_round_at_2_to_32() {
        let (before, after) = (SeqNumber::new(u32::MAX), SeqNumber::new(3));
        assert_eq!(before.later(after), after);
        assert_eq!(after.later(before), after);
        assert_eq!(after.later(after.plus(1 << 31)), after);
    }
}
