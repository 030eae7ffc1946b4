//! Where a list of entries begins and ends, and where an entry stands in its own.

use super::header::{MOST_FLOWS, NONE};
use crate::flow::state::FlowState;

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

/// Which list an entry is in, and which entry is before it there. The list is kept apart from the entry's state:
/// another walker may have changed that since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub list: FlowState,
    pub previous: Option<u32>,
}

/// Bits of the number of an entry, counted from 1; 0 is none. The list is above.
const NUMBER_BITS: u32 = 29;
const NUMBER: u32 = (1 << NUMBER_BITS) - 1;

const _: () = assert!(MOST_FLOWS <= NUMBER as u64);
const _: () = assert!(FlowState::ALL.len() <= 1 << (u32::BITS - NUMBER_BITS));

impl Place {
    pub fn bits(self) -> u32 {
        (self.list as u32) << NUMBER_BITS | self.previous.map_or(0, |number| number + 1)
    }

    pub fn from_bits(bits: u32) -> Self {
        Self {
            list: FlowState::from_byte((bits >> NUMBER_BITS) as u8),
            previous: (bits & NUMBER).checked_sub(1),
        }
    }
}
