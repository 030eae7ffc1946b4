//! All datagrams in pieces. Everything is bounded: entries, pieces, held bytes, time; and no source address has
//! more than an eighth of entries or bytes, so a flood from one address costs only that address. Nothing here scans
//! all entries.

use crate::base::{Ip, Nanos};
use std::collections::BTreeMap;

use super::datagram::{Action, Datagram, DatagramKey, Fate, Held, Order, Share};
use super::pieces::{Piece, Pieces};

/// Datagrams whose fragments may pass or wait.
const MOST_DATAGRAMS: usize = 1024;
/// Refused datagrams that are remembered, beside those.
const MOST_REFUSED: usize = 1024;
/// Bytes of all held frames.
const MOST_HELD_BYTES: usize = 4 << 20;
/// One source address has at most this part of entries and of bytes.
const SHARES: usize = 8;
const LIFETIME_NS: u64 = 30_000_000_000;

/// All datagrams in pieces.
#[derive(Default)]
pub struct Fragments {
    datagrams: BTreeMap<DatagramKey, Datagram>,
    /// Those that are not refused.
    alive: Order,
    /// Those whose first fragment has not come. Each holds a fragment.
    waiting: Order,
    shares: BTreeMap<Ip, Share>,
    /// Those that are refused, in order: they hold nothing, and take no room of others.
    refused: BTreeMap<u64, DatagramKey>,
    sequence: u64,
    held_bytes: usize,
    /// Fragments that were given up, whose memory is to be freed: many may be given up at once, and each takes its
    /// time.
    given_up: Vec<Vec<Held>>,
}

impl Fragments {
    /// What is known of a datagram.
    #[must_use]
    pub fn get(&self, key: &DatagramKey) -> Option<&Datagram> {
        self.datagrams.get(key)
    }

    /// Add a checked piece of a datagram whose fate is decided.
    pub fn add(&mut self, key: &DatagramKey, piece: Piece) {
        if let Some(datagram) = self.datagrams.get_mut(key) {
            datagram.pieces.add(piece);
        }
    }

    /// Make room for a frame of a datagram: waiting datagrams of its source, or of all, go, the oldest first. Says
    /// whether there is room, and how many held fragments that gave up.
    pub fn make_room(&mut self, key: &DatagramKey, bytes: usize) -> (bool, usize) {
        let mut given_up = 0;
        loop {
            let share = self.shares.get(&key.source).copied().unwrap_or_default();
            let victim = if share.held_bytes + bytes > MOST_HELD_BYTES / SHARES {
                self.waiting.oldest_of(key.source)
            } else if self.held_bytes + bytes > MOST_HELD_BYTES {
                self.waiting.oldest()
            } else {
                return (true, given_up);
            };
            // What would go is the datagram itself: nothing is gained.
            let Some(victim) = victim.filter(|victim| victim != key) else {
                return (false, given_up);
            };
            given_up += self.remove(&victim);
        }
    }

    /// Hold a fragment, whose piece was checked and for which there is room, until its first one comes. Says how
    /// many others that gave up.
    pub fn hold(&mut self, key: &DatagramKey, piece: Piece, held: Held, now: Nanos) -> usize {
        let given_up = self.open(key, Fate::Unknown, now);
        let bytes = held.frame.len();
        if let Some(datagram) = self.datagrams.get_mut(key) {
            datagram.pieces.add(piece);
            datagram.held.push(held);
            datagram.held_bytes += bytes;
            self.held_bytes += bytes;
            self.shares.entry(key.source).or_default().held_bytes += bytes;
        }
        given_up
    }

    /// Decide a datagram's fate by its first fragment, whose piece was checked. Gives the fragments that waited for
    /// it, and how many of others were given up.
    pub fn decide(
        &mut self,
        key: &DatagramKey,
        piece: Piece,
        action: Action,
        now: Nanos,
    ) -> (Vec<Held>, usize) {
        let given_up = self.open(key, Fate::Decided(action), now);
        let held = self.take_held(key);
        if let Some(datagram) = self.datagrams.get_mut(key) {
            datagram.fate = Fate::Decided(action);
            datagram.pieces.add(piece);
        }
        (held, given_up)
    }

    /// Let nothing more of a datagram pass, one that is not refused yet. Says how many fragments were held for it.
    pub fn refuse(&mut self, key: &DatagramKey, now: Nanos) -> usize {
        let given_up = self.remove(key);
        if self.refused.len() >= MOST_REFUSED {
            if let Some((_, oldest)) = self.refused.pop_first() {
                self.datagrams.remove(&oldest);
            }
        }
        self.sequence += 1;
        self.refused.insert(self.sequence, *key);
        self.insert(key, Fate::Refused, now);
        given_up
    }

    /// Forget a datagram that was forwarded and is complete.
    pub fn close_if_complete(&mut self, key: &DatagramKey) {
        let is_done =
            |entry: &Datagram| matches!(entry.fate, Fate::Decided(_)) && entry.pieces.is_complete();
        if self.datagrams.get(key).is_some_and(is_done) {
            self.remove(key);
        }
    }

    /// Forget the oldest datagram if its time is over, of those that are refused only when no other's is: how many
    /// fragments were held for it.
    pub fn expire(&mut self, now: Nanos) -> Option<usize> {
        let key = self.oldest_over(now)?;
        Some(self.forget(&key))
    }

    /// Forget a datagram if its time is over: how many fragments were held for it.
    pub fn expire_one(&mut self, key: &DatagramKey, now: Nanos) -> usize {
        if self.is_over(key, now) {
            self.forget(key)
        } else {
            0
        }
    }

    /// Whether there is a datagram whose time is over, or memory to free.
    #[must_use]
    pub fn is_behind(&self, now: Nanos) -> bool {
        self.has_given_up() || self.oldest_over(now).is_some()
    }

    fn oldest_over(&self, now: Nanos) -> Option<DatagramKey> {
        let refused = self.refused.first_key_value().map(|(_, &key)| key);
        let oldest = [self.alive.oldest(), refused].into_iter().flatten();
        oldest.into_iter().find(|key| self.is_over(key, now))
    }

    fn is_over(&self, key: &DatagramKey, now: Nanos) -> bool {
        let datagram = self.datagrams.get(key);
        datagram.is_some_and(|datagram| now.since(datagram.created) >= LIFETIME_NS)
    }

    /// Forget a datagram that is known: how many fragments were held for it.
    fn forget(&mut self, key: &DatagramKey) -> usize {
        let refused = self
            .datagrams
            .get(key)
            .filter(|one| one.fate == Fate::Refused);
        let Some(sequence) = refused.map(|datagram| datagram.sequence) else {
            return self.remove(key);
        };
        self.refused.remove(&sequence);
        self.datagrams.remove(key);
        0
    }

    /// Whether no datagram is known, and nothing is left to free.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        // Asked before every frame: without a jump between the two.
        self.datagrams.is_empty() & self.given_up.is_empty()
    }

    /// Whether memory of fragments that were given up is left to free.
    #[inline]
    fn has_given_up(&self) -> bool {
        !self.given_up.is_empty()
    }

    /// Free the memory of some fragments that were given up.
    pub fn free(&mut self, most: usize) {
        let mut left = most;
        while let Some(last) = self.given_up.last_mut() {
            let kept = last.len().saturating_sub(left);
            left -= last.len() - kept;
            last.truncate(kept);
            if kept > 0 {
                return;
            }
            self.given_up.pop();
        }
    }

    /// Fragments held now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.datagrams
            .values()
            .map(|datagram| datagram.held.len())
            .sum()
    }

    /// Make the entry of a datagram that has none. Where there is no room its source's oldest goes, or the oldest
    /// of all: how many fragments that gave up.
    fn open(&mut self, key: &DatagramKey, fate: Fate, now: Nanos) -> usize {
        if self.datagrams.contains_key(key) {
            return 0;
        }
        let share = self.shares.get(&key.source).copied().unwrap_or_default();
        let victim = if share.datagrams >= MOST_DATAGRAMS / SHARES {
            self.alive.oldest_of(key.source)
        } else if self.alive.by_age.len() >= MOST_DATAGRAMS {
            self.alive.oldest()
        } else {
            None
        };
        let given_up = victim.map_or(0, |victim| self.remove(&victim));
        self.sequence += 1;
        self.alive.insert(self.sequence, key);
        if fate == Fate::Unknown {
            self.waiting.insert(self.sequence, key);
        }
        self.shares.entry(key.source).or_default().datagrams += 1;
        self.insert(key, fate, now);
        given_up
    }

    fn insert(&mut self, key: &DatagramKey, fate: Fate, now: Nanos) {
        let datagram = Datagram {
            created: now,
            sequence: self.sequence,
            pieces: Pieces::default(),
            fate,
            held: Vec::new(),
            held_bytes: 0,
        };
        self.datagrams.insert(*key, datagram);
    }

    /// Take out the held fragments of a datagram: it does not wait any more.
    fn take_held(&mut self, key: &DatagramKey) -> Vec<Held> {
        let Some(datagram) = self.datagrams.get_mut(key) else {
            return Vec::new();
        };
        let bytes = std::mem::take(&mut datagram.held_bytes);
        let held = std::mem::take(&mut datagram.held);
        self.waiting.remove(datagram.sequence, key);
        self.held_bytes -= bytes;
        if let Some(share) = self.shares.get_mut(&key.source) {
            share.held_bytes -= bytes;
        }
        held
    }

    /// Forget a datagram that is not refused: how many fragments were held for it.
    fn remove(&mut self, key: &DatagramKey) -> usize {
        let held = self.take_held(key);
        let Some(datagram) = self.datagrams.remove(key) else {
            return 0;
        };
        self.alive.remove(datagram.sequence, key);
        if let Some(share) = self.shares.get_mut(&key.source) {
            share.datagrams -= 1;
            if share.datagrams == 0 {
                self.shares.remove(&key.source);
            }
        }
        let count = held.len();
        if count > 0 {
            self.given_up.push(held);
        }
        count
    }
}

#[cfg(test)]
mod tests;
