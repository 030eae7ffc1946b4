//! One datagram in pieces: what is decided for it, and what waits for that.

use std::collections::{BTreeMap, BTreeSet};

use super::pieces::Pieces;
use crate::base::{Direction, Ip, Nanos};
use crate::flow::key::Key;
use crate::packet::Meta;

/// What makes fragments belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DatagramKey {
    /// Source address.
    pub source: Ip,
    /// Destination address.
    pub destination: Ip,
    /// Identification.
    pub identification: u32,
    /// L4 protocol.
    pub protocol: u8,
}

/// What was decided for the first fragment, and holds for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Route it on unchanged.
    Transit,
    /// Translate it as its flow.
    Translate {
        /// Which way the flow goes.
        direction: Direction,
        /// Service id.
        service: u32,
        /// Server id.
        server: u32,
        /// Finds the flow's ingress neighbour.
        reply_key: Key,
    },
}

/// What is known about a datagram's fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The first fragment has not come: others wait for it.
    Unknown,
    /// It was forwarded.
    Decided(Action),
    /// It was not, or the fragments overlap.
    Refused,
}

/// A fragment that waits for the first.
pub struct Held {
    /// The frame as it came.
    pub frame: Vec<u8>,
    /// What was parsed from it.
    pub meta: Meta,
}

/// One datagram in pieces.
pub struct Datagram {
    pub(super) created: Nanos,
    pub(super) sequence: u64,
    /// Pieces seen.
    pub pieces: Pieces,
    /// What is decided.
    pub fate: Fate,
    pub(super) held: Vec<Held>,
    /// Of the frames held.
    pub(super) held_bytes: usize,
}

/// Datagrams in order of their creation, of all and of each source.
#[derive(Default)]
pub(super) struct Order {
    pub(super) by_age: BTreeMap<u64, DatagramKey>,
    pub(super) by_source: BTreeSet<(Ip, u64)>,
}

impl Order {
    pub(super) fn insert(&mut self, sequence: u64, key: &DatagramKey) {
        self.by_age.insert(sequence, *key);
        self.by_source.insert((key.source, sequence));
    }

    pub(super) fn remove(&mut self, sequence: u64, key: &DatagramKey) {
        self.by_age.remove(&sequence);
        self.by_source.remove(&(key.source, sequence));
    }

    pub(super) fn oldest(&self) -> Option<DatagramKey> {
        self.by_age.first_key_value().map(|(_, &key)| key)
    }

    pub(super) fn oldest_of(&self, source: Ip) -> Option<DatagramKey> {
        let mut of_source = self.by_source.range((source, 0)..=(source, u64::MAX));
        let &(_, sequence) = of_source.next()?;
        self.by_age.get(&sequence).copied()
    }
}

/// What one source address has.
#[derive(Clone, Copy, Default)]
pub(super) struct Share {
    pub(super) datagrams: usize,
    pub(super) held_bytes: usize,
}
