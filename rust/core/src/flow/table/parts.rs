//! Where the parts of a flow lie in the arena.

use super::Table;
use super::arena::Line;
use super::entry::{ColdLine, Entry, FlowCold, FlowRare, RELINK_NS, RareLine};
use super::flow::Flow;
use super::header::{HEADER_LINES, TableHeader};
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
    pub fn entry(&self, number: u32) -> &Entry {
        bytemuck::cast_ref(&self.arena.lines()[self.entry_at(number)])
    }

    /// One entry, for writing. Its keys must not change.
    ///
    /// # Panics
    /// On a number that no call of this table gave.
    #[inline]
    pub fn entry_mut(&mut self, number: u32) -> &mut Entry {
        let at = self.entry_at(number);
        bytemuck::cast_mut(&mut self.arena.lines_mut()[at])
    }

    /// All parts of a flow, for the TCP state machine.
    ///
    /// # Panics
    /// On a number that no call of this table gave.
    #[inline]
    pub fn flow_mut(&mut self, number: u32) -> Flow<'_> {
        let (entry_at, (pair, half)) = (self.entry_at(number), self.cold_place(number));
        let (rare_place, eighth) = self.rare_place(number);
        let (entries, rest) = self.arena.lines_mut().split_at_mut(self.cold_from);
        let (colds, rares) = rest.split_at_mut(self.rare_from - self.cold_from);
        let colds: &mut ColdLine = bytemuck::cast_mut(&mut colds[pair - self.cold_from]);
        let rares: &mut RareLine = bytemuck::cast_mut(&mut rares[rare_place - self.rare_from]);
        Flow {
            entry: bytemuck::cast_mut(&mut entries[entry_at]),
            cold: &mut colds[half],
            rare: &mut rares[eighth],
        }
    }

    /// Note that [`Entry::count_bytes`] went over: once per 4 GiB.
    #[cold]
    pub fn carry_bytes(&mut self, number: u32, direction: Direction) {
        let high = &mut self.rare_mut(number).bytes[direction as usize];
        *high = high.wrapping_add(1);
    }

    /// IP bytes of a flow so far, mod 2^48.
    #[must_use]
    pub fn bytes(&self, number: u32, direction: Direction) -> u64 {
        let at = direction as usize;
        u64::from(self.rare(number).bytes[at]) << 32 | u64::from(self.entry(number).bytes[at])
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
        for neighbour in [cold.previous, cold.following] {
            if let Some(neighbour) = present(neighbour) {
                prefetch(self.cold(neighbour));
            }
        }
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

    pub(super) fn rare(&self, number: u32) -> &FlowRare {
        let (line, place) = self.rare_place(number);
        let rares: &RareLine = bytemuck::cast_ref(&self.arena.lines()[line]);
        &rares[place]
    }

    pub(super) fn rare_mut(&mut self, number: u32) -> &mut FlowRare {
        let (line, place) = self.rare_place(number);
        let rares: &mut RareLine = bytemuck::cast_mut(&mut self.arena.lines_mut()[line]);
        &mut rares[place]
    }

    #[inline]
    pub(super) fn cold(&self, number: u32) -> &FlowCold {
        let (pair, half) = self.cold_place(number);
        let colds: &ColdLine = bytemuck::cast_ref(&self.arena.lines()[pair]);
        &colds[half]
    }

    #[inline]
    pub(super) fn cold_mut(&mut self, number: u32) -> &mut FlowCold {
        let (pair, half) = self.cold_place(number);
        let colds: &mut ColdLine = bytemuck::cast_mut(&mut self.arena.lines_mut()[pair]);
        &mut colds[half]
    }

    #[inline]
    pub(super) fn header(&self) -> &TableHeader {
        let lines: &[Line; HEADER_LINES] = self
            .arena
            .lines()
            .first_chunk()
            .expect("the arena starts with a header");
        bytemuck::cast_ref(lines)
    }

    #[inline]
    pub(super) fn header_mut(&mut self) -> &mut TableHeader {
        let lines: &mut [Line; HEADER_LINES] = self
            .arena
            .lines_mut()
            .first_chunk_mut()
            .expect("the arena starts with a header");
        bytemuck::cast_mut(lines)
    }
}
