//! Where a list of entries begins and ends.

use super::header::NONE;

/// The entries of a state, chained by `previous` and `following` of each.
#[derive(Clone, Copy)]
pub(super) struct List {
    pub head: u32,
    pub tail: u32,
    pub len: u32,
}

impl List {
    pub const EMPTY: Self = Self {
        head: NONE,
        tail: NONE,
        len: 0,
    };
}
