//! A list per state, in order of last use: what expires, and what is evicted first, stands at its head.

use super::entry::RELINK_NS;
use super::header::NONE;
use super::{Table, present};
use crate::base::Nanos;
use crate::flow::state::FlowState;

impl Table {
    /// Refresh an entry that has `state` from now on, and move it in or between lists as its state and age ask for.
    /// [`Entry::refresh`] does it for most.
    #[inline(never)]
    pub fn touch(&mut self, number: u32, state: FlowState, now: Nanos, timeout_ns: u64) {
        let entry = self.entry(number);
        let from = entry.state();
        let lag = entry.lag_at(now);
        entry.set_state(state);
        if from == state && lag < RELINK_NS {
            entry.set_seen(now, lag as u32);
            return;
        }
        entry.set_seen(now, 0);
        self.unlink(number, from);
        self.link(number, state);
        self.due = self.due.min(now.plus(timeout_ns));
    }

    /// The oldest entry of a state.
    #[must_use]
    pub fn head(&self, state: FlowState) -> Option<u32> {
        present(self.lists[state as usize].head)
    }

    /// How many entries have a state.
    #[must_use]
    pub fn count(&self, state: FlowState) -> usize {
        self.lists[state as usize].len as usize
    }

    /// Move an entry to its list's tail without having been heard of: it counts as linked when it was seen last.
    pub fn give_second_chance(&mut self, number: u32) {
        let entry = self.entry(number);
        entry.set_linked();
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
                present(self.cold(number).following.get())
            })
        })
    }

    pub(super) fn link(&mut self, number: u32, state: FlowState) {
        let list = &mut self.lists[state as usize];
        list.len += 1;
        let tail = std::mem::replace(&mut list.tail, number);
        match present(tail) {
            Some(tail) => self.cold(tail).following.set(number),
            None => self.lists[state as usize].head = number,
        }
        let cold = self.cold(number);
        cold.previous.set(tail);
        cold.following.set(NONE);
    }

    pub(super) fn unlink(&mut self, number: u32, state: FlowState) {
        let cold = self.cold(number);
        let (previous, following) = (cold.previous.get(), cold.following.get());
        self.lists[state as usize].len -= 1;
        if let Some(previous) = present(previous) {
            self.cold(previous).following.set(following);
        } else {
            self.lists[state as usize].head = following;
            // The new head may be due earlier than the old one: `linked` orders the list, `last_seen` decides.
            self.due = Nanos::ZERO;
        }
        match present(following) {
            Some(following) => self.cold(following).previous.set(previous),
            None => self.lists[state as usize].tail = previous,
        }
    }
}
