//! Sequence numbers, compared as they wrap around (RFC 9293 3.4).

/// The later of two sequence numbers, by signed difference.
#[inline(always)]
#[must_use]
pub const fn later(known: u32, new: u32) -> u32 {
    if is_later(new, known) { new } else { known }
}

/// Whether a sequence number is after another, by signed difference; the one half around is not.
#[inline(always)]
#[allow(clippy::cast_possible_wrap, reason = "the sign is the point")]
#[must_use]
pub const fn is_later(new: u32, known: u32) -> bool {
    new.wrapping_sub(known) as i32 > 0
}

/// Whether a number lies between two others, both included: `first` is not after `last`.
#[inline(always)]
#[must_use]
pub const fn is_between(number: u32, first: u32, last: u32) -> bool {
    number.wrapping_sub(first) <= last.wrapping_sub(first)
}
