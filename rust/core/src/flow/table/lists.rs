//! A list per state, in order of last use: what expires, and what is evicted first, stands at its head. Another walker
//! changes entries and leaves lists as they are: so a list may lie a little, and its head is judged by the entry.

use super::header::NONE;
use super::list::Place;
use super::{Table, present};
use crate::base::Nanos;
use crate::flow::state::FlowState;

impl Table {
    /// Refresh an entry that has `state` from now on, and move it in or between lists as its state and age ask for.
    /// [`super::EntryCells::refresh`] does it for most.
    #[inline(never)]
    pub fn touch(&mut self, number: u32, state: FlowState, now: Nanos, timeout_ns: u64) {
        let entry = self.entry(number);
        if entry.refresh(state, now) {
            return;
        }
        entry.set_state(state);
        entry.set_seen(now, 0);
        self.unlink(number);
        self.link(number, state);
        self.due = self.due.min(now.plus(timeout_ns));
    }

    /// Put entries at the head of a state's list that do not belong there, `most` at most, where they do.
    pub fn settle_head(&mut self, state: FlowState, most: usize) {
        for _ in 0..most {
            let Some(number) = self.head(state).filter(|&number| self.is_misplaced(number)) else {
                return;
            };
            self.settle(number);
        }
    }

    /// Put a misplaced entry where it belongs: at a tail, unless it is at its own list's head and was not heard of
    /// after the next one: it stays.
    pub fn settle(&mut self, number: u32) {
        let place = self.place_of(number);
        let (entry, following) = (
            self.entry(number),
            present(self.cold(number).following.get()),
        );
        let is_first =
            following.is_none_or(|next| entry.last_seen() <= self.entry(next).last_seen());
        if place.list == entry.state() && place.previous.is_none() && is_first {
            entry.set_linked();
        } else {
            self.give_second_chance(number);
        }
    }

    /// Whether an entry has another state than its list, or was heard of long after it was put there: another walker
    /// changes entries, not lists.
    #[must_use]
    pub fn is_misplaced(&self, number: u32) -> bool {
        let entry = self.entry(number);
        entry.wants_to_move() || self.place_of(number).list != entry.state()
    }

    fn place_of(&self, number: u32) -> Place {
        Place::from_bits(self.cold(number).previous.get())
    }

    /// The first entry of a state's list: the oldest, unless it is misplaced.
    #[must_use]
    pub fn head(&self, state: FlowState) -> Option<u32> {
        present(self.lists[state as usize].head)
    }

    /// How many entries a state's list has.
    #[must_use]
    pub fn count(&self, state: FlowState) -> usize {
        self.lists[state as usize].len as usize
    }

    /// Move an entry to its list's tail without having been heard of: it counts as linked when it was seen last.
    pub fn give_second_chance(&mut self, number: u32) {
        let entry = self.entry(number);
        entry.set_linked();
        let state = entry.state();
        self.unlink(number);
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
        let place = Place {
            list: state,
            previous: present(tail),
        };
        let cold = self.cold(number);
        cold.previous.set(place.bits());
        cold.following.set(NONE);
    }

    pub(super) fn unlink(&mut self, number: u32) {
        let following = self.cold(number).following.get();
        let place = self.place_of(number);
        let list = &mut self.lists[place.list as usize];
        list.len -= 1;
        if place.previous.is_none() {
            list.head = following;
            // The new head may be due earlier than the old one: `linked` orders the list, `last_seen` decides.
            self.due = Nanos::ZERO;
        }
        if following == NONE {
            list.tail = place.previous.unwrap_or(NONE);
        }
        if let Some(previous) = place.previous {
            self.cold(previous).following.set(following);
        }
        if let Some(following) = present(following) {
            self.cold(following).previous.set(place.bits());
        }
    }
}
