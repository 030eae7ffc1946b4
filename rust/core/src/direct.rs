//! Connections that clients make straight to a server's address and port, past the services (rule 9.1, direct
//! connections).
//!
//! A server's packet that belongs to no flow is dropped, so that no client sees a server's address that it did not
//! ask for. One that answers a client which did ask for it may pass: this is what remembers that. It is a record of
//! who spoke to whom, not a flow: nothing is translated, and no number is checked. Bounded: the record that was
//! used least recently makes room.

use std::collections::HashMap;

use crate::base::{Direction, Nanos, SeqNumber};
use crate::flow::key::Key;
use crate::snapshot::Timeouts;
use crate::wire::segment::Segment;
use crate::wire::tcp::flag;

/// Records at most, whatever the flow table holds.
const MOST_RECORDS: usize = 65536;
/// The end of the list.
const NONE: u32 = u32::MAX;
/// What a record's marks say: of TCP, answered, and a FIN in each direction; reset counts as both.
const TCP: u8 = 1;
const ANSWERED: u8 = 2;
const FIN: u8 = 4;
const CLOSING: u8 = FIN | FIN << 1;

#[derive(Clone, Copy, Debug)]
struct Record {
    key: Key,
    last_seen: Nanos,
    /// In the list: the one used before it, and after it.
    older: u32,
    newer: u32,
    marks: u8,
}

impl Record {
    fn is_closing(&self) -> bool {
        self.marks & CLOSING == CLOSING
    }

    fn timeout_ns(&self, timeouts: &Timeouts) -> u64 {
        match self.marks {
            marks if marks & TCP == 0 => timeouts.udp_ns,
            _ if self.is_closing() => timeouts.closing_ns,
            marks if marks & ANSWERED != 0 => timeouts.established_ns,
            _ => timeouts.half_open_ns,
        }
    }

    /// Whether it tells what the server's packets are of. `guarded`: only once the server has answered, of TCP.
    fn counts(&self, guarded: bool) -> bool {
        !guarded || self.marks & TCP == 0 || self.marks & ANSWERED != 0
    }

    fn is_expired(&self, timeouts: &Timeouts, now: Nanos) -> bool {
        now.since(self.last_seen) >= self.timeout_ns(timeouts)
    }

    fn follow(&mut self, direction: Direction, segment: Option<&Segment>, now: Nanos) {
        self.last_seen = now;
        if direction == Direction::Reply {
            self.marks |= ANSWERED;
        }
        let Some(segment) = segment else { return };
        if segment.has(flag::RST) {
            self.marks |= CLOSING;
        } else if segment.has(flag::FIN) {
            self.marks |= FIN << direction as u8;
        }
    }
}

/// The records. Keys are those of a server's packets: endpoint, client, client port.
#[derive(Debug)]
pub struct DirectConnections {
    index: HashMap<Key, u32>,
    records: Vec<Record>,
    /// Of the list, by use.
    oldest: u32,
    newest: u32,
    most: usize,
}

impl DirectConnections {
    /// Make room for as many as the flow table holds flows, 65536 at most.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            index: HashMap::new(),
            records: Vec::new(),
            oldest: NONE,
            newest: NONE,
            most: capacity.min(MOST_RECORDS),
        }
    }

    /// Have room for all records there may be, so that none waits for it; without `wanted`, forget them all.
    pub fn prepare(&mut self, wanted: bool) {
        if !wanted {
            *self = Self::new(self.most);
        } else if self.records.capacity() < self.most {
            // The index is empty as long as it has not been here.
            self.index.reserve(self.most);
            self.records.reserve(self.most);
        }
    }

    /// Whether there is a record that a flow with this key has a conflict with: one that lives, counts and is not
    /// closing.
    #[must_use]
    pub fn occupies(&self, key: &Key, guarded: bool, timeouts: &Timeouts, now: Nanos) -> bool {
        self.living(key, guarded, timeouts, now)
            .is_some_and(|record| !record.is_closing())
    }

    /// Whether there is a record that lives and counts.
    #[must_use]
    pub fn knows(&self, key: &Key, guarded: bool, timeouts: &Timeouts, now: Nanos) -> bool {
        self.living(key, guarded, timeouts, now).is_some()
    }

    fn living(&self, key: &Key, guarded: bool, timeouts: &Timeouts, now: Nanos) -> Option<&Record> {
        let record = &self.records[self.find(key)? as usize];
        (!record.is_expired(timeouts, now) && record.counts(guarded)).then_some(record)
    }

    /// Note a client's packet to a server. A reset makes no record, and where the key is `guarded` neither does any
    /// other segment but a SYN: it may be of a flow that a hash would place. Returns whether another record had to
    /// go for it.
    pub fn ask(
        &mut self,
        key: &Key,
        segment: Option<&Segment>,
        guarded: bool,
        timeouts: &Timeouts,
        now: Nanos,
    ) -> bool {
        let opens = segment.is_some_and(Segment::is_opening);
        if let Some(number) = self.find(key) {
            let record = &self.records[number as usize];
            if record.is_expired(timeouts, now) || (opens && record.is_closing()) {
                self.remove(key);
            } else {
                self.records[number as usize].follow(Direction::Forward, segment, now);
                self.move_to_newest(number);
                return false;
            }
        }
        let makes_none =
            |segment: &Segment| segment.has(flag::RST) || guarded && !segment.is_opening();
        if segment.is_some_and(makes_none) {
            return false;
        }
        let is_full = self.records.len() >= self.most;
        if is_full {
            let key = self.records[self.oldest as usize].key;
            self.remove(&key);
        }
        self.insert(key, segment, now);
        is_full
    }

    /// Note a server's packet. Returns whether it answers a client that asked for it. Where the key is `guarded`,
    /// only an answer to a SYN makes a record count: that SYN may be forged, and anything else may be of a flow
    /// that a hash would place.
    pub fn answer(
        &mut self,
        key: &Key,
        segment: Option<&Segment>,
        guarded: bool,
        timeouts: &Timeouts,
        now: Nanos,
    ) -> bool {
        let Some(number) = self.find(key) else {
            return false;
        };
        if self.records[number as usize].is_expired(timeouts, now) {
            self.remove(key);
            return false;
        }
        let record = &mut self.records[number as usize];
        if !record.counts(guarded) && !segment.is_some_and(answers_syn) {
            return false;
        }
        record.follow(Direction::Reply, segment, now);
        self.move_to_newest(number);
        true
    }

    /// Forget a record, if there is one.
    pub fn remove(&mut self, key: &Key) {
        if self.index.is_empty() {
            return;
        }
        let Some(number) = self.index.remove(key) else {
            return;
        };
        self.unlink(number);
        self.records.swap_remove(number as usize);
        let moved = self.records.get(number as usize).copied();
        if let Some(moved) = moved {
            self.index.insert(moved.key, number);
            self.set_newer(moved.older, number);
            self.set_older(moved.newer, number);
        }
    }

    #[inline]
    fn find(&self, key: &Key) -> Option<u32> {
        if self.index.is_empty() {
            return None;
        }
        self.index.get(key).copied()
    }

    fn insert(&mut self, key: &Key, segment: Option<&Segment>, now: Nanos) {
        let number = self.records.len() as u32;
        let mut record = Record {
            key: *key,
            last_seen: now,
            older: NONE,
            newer: NONE,
            marks: if segment.is_some() { TCP } else { 0 },
        };
        record.follow(Direction::Forward, segment, now);
        self.records.push(record);
        self.index.insert(*key, number);
        self.link(number);
    }

    fn move_to_newest(&mut self, number: u32) {
        if self.newest != number {
            self.unlink(number);
            self.link(number);
        }
    }

    fn link(&mut self, number: u32) {
        let newest = self.newest;
        let record = &mut self.records[number as usize];
        (record.older, record.newer) = (newest, NONE);
        self.set_newer(newest, number);
        self.newest = number;
    }

    fn unlink(&mut self, number: u32) {
        let Record { older, newer, .. } = self.records[number as usize];
        self.set_newer(older, newer);
        self.set_older(newer, older);
    }

    /// Say which record was used after one; of none, which is the oldest.
    fn set_newer(&mut self, number: u32, newer: u32) {
        match self.records.get_mut(number as usize) {
            Some(record) => record.newer = newer,
            None => self.oldest = newer,
        }
    }

    fn set_older(&mut self, number: u32, older: u32) {
        match self.records.get_mut(number as usize) {
            Some(record) => record.older = older,
            None => self.newest = older,
        }
    }
}

/// Whether a segment answers a SYN: it accepts or, with the number that such a reset has (RFC 9293 3.5.2), refuses
/// it.
fn answers_syn(segment: &Segment) -> bool {
    let refuses = segment.has(flag::RST) && segment.sequence == SeqNumber::ZERO;
    segment.has(flag::ACK) && (segment.has(flag::SYN) || refuses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Ip;
    use crate::flow::key::KeySide;
    use proptest::prelude::*;

    const TIMEOUTS: Timeouts = Timeouts {
        half_open_ns: 10,
        established_ns: 40,
        closing_ns: 20,
        udp_ns: 30,
        idle_floor_ns: 0,
    };

    fn key(port: u16) -> Key {
        Key {
            client: Ip::from_bits(7),
            client_port: port,
            side: KeySide::Endpoint(1),
        }
    }

    proptest! {
        /// A list that is searched from end to end keeps the same records, in the same order of use.
        #[test]
        fn records_any_use_equal_a_plain_list(uses in proptest::collection::vec((0u8..3, 0u16..8), 1..200)) {
            let mut direct = DirectConnections::new(4);
            direct.prepare(true);
            let mut list: Vec<u16> = Vec::new();
            for (kind, port) in uses {
                let known = list.iter().position(|&each| each == port);
                if let Some(at) = known {
                    list.remove(at);
                }
                match kind {
                    0 => {
                        let had_to_go = direct.ask(&key(port), None, false, &TIMEOUTS, Nanos::new(1));
                        prop_assert_eq!(had_to_go, known.is_none() && list.len() == 4);
                        if had_to_go {
                            list.remove(0);
                        }
                        list.push(port);
                    }
                    1 => {
                        let answered = direct.answer(&key(port), None, false, &TIMEOUTS, Nanos::new(1));
                        prop_assert_eq!(answered, known.is_some());
                        list.extend(known.map(|_| port));
                    }
                    _ => direct.remove(&key(port)),
                }
                let mut ports = Vec::new();
                let mut at = direct.oldest;
                while let Some(record) = direct.records.get(at as usize) {
                    ports.push(record.key.client_port);
                    at = record.newer;
                }
                prop_assert_eq!(&ports, &list);
                prop_assert!(ports.iter().all(|&port| direct.knows(&key(port), false, &TIMEOUTS, Nanos::new(1))));
                prop_assert_eq!(direct.index.len(), list.len());
            }
        }
    }

    #[test]
    fn record_timeout_follows_what_was_seen() {
        let mut direct = DirectConnections::new(4);
        let segment = |flags| Segment::new(SeqNumber::ZERO, SeqNumber::ZERO, flags, 0);
        let lives_until = |direct: &DirectConnections| {
            (0..100)
                .take_while(|&now| direct.knows(&key(1), false, &TIMEOUTS, Nanos::new(now)))
                .count()
        };
        direct.ask(
            &key(1),
            Some(&segment(flag::SYN)),
            false,
            &TIMEOUTS,
            Nanos::ZERO,
        );
        assert_eq!(lives_until(&direct), 10);
        direct.answer(
            &key(1),
            Some(&segment(flag::SYN | flag::ACK)),
            false,
            &TIMEOUTS,
            Nanos::ZERO,
        );
        assert_eq!(lives_until(&direct), 40);
        direct.ask(
            &key(1),
            Some(&segment(flag::FIN | flag::ACK)),
            false,
            &TIMEOUTS,
            Nanos::ZERO,
        );
        assert!(direct.occupies(&key(1), false, &TIMEOUTS, Nanos::ZERO));
        direct.answer(
            &key(1),
            Some(&segment(flag::FIN | flag::ACK)),
            false,
            &TIMEOUTS,
            Nanos::ZERO,
        );
        assert_eq!(lives_until(&direct), 20);
        assert!(!direct.occupies(&key(1), false, &TIMEOUTS, Nanos::ZERO));
        direct.prepare(false);
        assert_eq!(lives_until(&direct), 0);
    }
}
