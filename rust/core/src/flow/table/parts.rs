//! Where the parts of a flow lie in the arena.

use super::Table;
use super::entry::{ColdCells, ColdLine, EntryCells, RELINK_NS, RareCells, RareLine};
use super::flow::Flow;
use super::header::{CHANGING_LINE, ChangingCells};
use super::list::Place;
use super::present;
use crate::base::{Direction, Nanos};
use crate::sys::prefetch::prefetch;

impl Table {
    /// One entry, by the number `find` gave.
    ///
    /// # Panics
    /// On a number that no call of this table gave.
    #[inline]
    #[must_use]
    pub fn entry(&self, number: u32) -> &EntryCells {
        self.arena.lines()[self.entry_at(number)].view()
    }

    /// All parts of a flow, for the TCP state machine.
    ///
    /// # Panics
    /// On a number that no call of this table gave.
    #[inline]
    #[must_use]
    pub fn flow(&self, number: u32) -> Flow<'_> {
        Flow::new(self.entry(number), self.cold(number), self.rare(number))
    }

    /// Note that [`EntryCells::count_bytes`] went over: once per 4 GiB.
    #[cold]
    pub fn carry_bytes(&mut self, number: u32, direction: Direction) {
        self.rare(number).carry_bytes(direction);
    }

    /// IP bytes of a flow so far, mod 2^48.
    #[must_use]
    pub fn bytes(&self, number: u32, direction: Direction) -> u64 {
        u64::from(self.rare(number).high_bytes(direction)) << 32
            | u64::from(self.entry(number).low_bytes(direction))
    }

    /// Fetch the cold of an entry that is there, if a packet at `now` will need it: every packet of TCP does, and
    /// every one that moves its entry.
    #[inline]
    #[must_use]
    pub fn prefetch_cold(&self, number: u32, now: Nanos) -> bool {
        let entry = self.entry(number);
        let moves = entry.lag_at(now) >= RELINK_NS;
        if moves || !entry.state().is_udp() {
            prefetch(self.cold(number));
        }
        moves
    }

    /// Fetch what moving an entry to its list's tail writes, once its cold is there.
    #[inline]
    pub fn prefetch_neighbours(&self, number: u32) {
        let cold = self.cold(number);
        if let Some(previous) = Place::from_bits(cold.previous.get()).previous {
            prefetch(self.cold(previous));
        }
        if let Some(following) = present(cold.following.get()) {
            prefetch(self.cold(following));
        }
    }

    /// Fetch what putting an entry into a list reads and writes.
    pub(super) fn prefetch_linked(&self, number: u32) {
        prefetch(self.entry(number));
        prefetch(self.cold(number));
    }

    #[inline(always)]
    fn entry_at(&self, number: u32) -> usize {
        self.entries_at + number as usize
    }

    /// The line of a cold half, and its place there.
    #[inline(always)]
    fn cold_place(&self, number: u32) -> (usize, usize) {
        (self.cold_from + number as usize / 2, number as usize % 2)
    }

    /// The line of a rare part, and its place there.
    #[inline(always)]
    fn rare_place(&self, number: u32) -> (usize, usize) {
        (self.rare_from + number as usize / 8, number as usize % 8)
    }

    #[inline]
    pub(super) fn rare(&self, number: u32) -> &RareCells {
        let (line, place) = self.rare_place(number);
        let rares: &RareLine = self.arena.lines()[line].view();
        &rares[place]
    }

    #[inline]
    pub(super) fn cold(&self, number: u32) -> &ColdCells {
        let (pair, half) = self.cold_place(number);
        let colds: &ColdLine = self.arena.lines()[pair].view();
        &colds[half]
    }

    /// What of the header changes.
    #[inline]
    pub(super) fn changing(&self) -> &ChangingCells {
        self.arena.lines()[CHANGING_LINE].view()
    }
}
