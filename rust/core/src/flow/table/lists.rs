//! A list per state, in order of last use: what expires, and what is evicted first, stands at its head.

use super::entry::{FlowCold, RELINK_NS};
use super::{NONE, Table, present};
use crate::base::Nanos;
use crate::flow::state::FlowState;

impl Table {
    /// Refresh an entry that has `state` from now on, and move it in or between lists as its state and age ask for.
    /// [`Entry::refresh`] does it for most.
    #[inline(never)]
    pub fn touch(&mut self, number: u32, state: FlowState, now: Nanos, timeout_ns: u64) {
        let entry = self.entry_mut(number);
        let from = entry.state();
        let lag = entry.lag_at(now);
        entry.set_state(state);
        entry.last_seen = now;
        if from == state && lag < RELINK_NS {
            entry.lag = lag as u32;
            return;
        }
        entry.lag = 0;
        self.unlink(number, from);
        self.link(number, state);
        self.due = self.due.min(now.plus(timeout_ns));
    }

    /// The oldest entry of a state.
    #[must_use]
    pub fn head(&self, state: FlowState) -> Option<u32> {
        present(self.header().heads[state as usize])
    }

    /// How many entries have a state.
    #[must_use]
    pub fn count(&self, state: FlowState) -> usize {
        self.lengths[state as usize] as usize
    }

    /// Move an entry to its list's tail without having been heard of: it counts as linked when it was seen last.
    pub fn give_second_chance(&mut self, number: u32) {
        let entry = self.entry_mut(number);
        entry.lag = 0;
        let state = entry.state();
        self.unlink(number, state);
        self.link(number, state);
    }

    /// Whether an entry may have expired by `now`. `false` is certain.
    #[inline]
    #[must_use]
    pub fn may_have_expired(&self, now: Nanos) -> bool {
        now.is_past(self.due)
    }

    /// Note that no entry at the head of a list expires before `due`.
    pub fn set_due(&mut self, due: Nanos) {
        self.due = due;
    }

    /// The numbers of all entries, in no useful order.
    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        FlowState::ALL.into_iter().flat_map(move |state| {
            std::iter::successors(self.head(state), |&number| {
                present(self.cold(number).following)
            })
        })
    }

    pub(super) fn link(&mut self, number: u32, state: FlowState) {
        self.lengths[state as usize] += 1;
        let tail = self.header().tails[state as usize];
        let cold = self.cold_mut(number);
        cold.previous = tail;
        cold.following = NONE;
        match present(tail) {
            Some(tail) => self.cold_mut(tail).following = number,
            None => self.header_mut().heads[state as usize] = number,
        }
        self.header_mut().tails[state as usize] = number;
    }

    pub(super) fn unlink(&mut self, number: u32, state: FlowState) {
        self.lengths[state as usize] -= 1;
        let FlowCold {
            previous,
            following,
            ..
        } = *self.cold(number);
        if let Some(previous) = present(previous) {
            self.cold_mut(previous).following = following;
        } else {
            self.header_mut().heads[state as usize] = following;
            // The new head may be due earlier than the old one: `linked` orders the list, `last_seen` decides.
            self.due = Nanos::ZERO;
        }
        match present(following) {
            Some(following) => self.cold_mut(following).previous = previous,
            None => self.header_mut().tails[state as usize] = previous,
        }
    }
}
