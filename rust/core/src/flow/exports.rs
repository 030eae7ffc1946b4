//! How flows ended, kept for the control side when it asks for them (`docs/rules.md` rule 13, counters): bounded, and
//! written only when a flow begins or ends.
//!
//! When flows began is kept beside the table, by entry number, and only while exports are on: a flow costs no more
//! memory otherwise.

use super::state::FlowState;
use super::table::{EntryCells, Table};
use crate::base::{Direction, Event, Ip, Nanos};

/// When a flow began is not known: it began before exports were switched on.
const UNKNOWN: Nanos = Nanos::NEVER;

/// One flow that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowExport {
    /// The client's address.
    pub client: Ip,
    /// The client's port.
    pub client_port: u16,
    /// Service id.
    pub service: u32,
    /// Server id.
    pub server: u32,
    /// How it ended.
    pub ended: &'static str,
    /// When it began.
    pub began: Option<Nanos>,
    /// Time of its last packet.
    pub last_seen: Nanos,
    /// IP bytes from the client.
    pub bytes_forward: u64,
    /// IP bytes from the server.
    pub bytes_reply: u64,
}

/// The flows that ended since they were last taken. Off at first.
#[derive(Debug, Default)]
pub struct FlowExports {
    most: usize,
    began: Vec<Nanos>,
    kept: Vec<FlowExport>,
    missed: u64,
}

impl FlowExports {
    /// What a table of `capacity` flows needs for keeping when they began.
    #[must_use]
    pub fn room(capacity: usize) -> Vec<Nanos> {
        vec![UNKNOWN; capacity]
    }

    /// Keep up to `most` ends between two calls of [`Self::take`], in a table that `room` was made for. 0: none,
    /// and forget what was kept. Returns what is not needed any more: giving gigabytes back is left to the caller.
    #[must_use]
    pub fn keep(&mut self, most: usize, room: Vec<Nanos>) -> Self {
        let unused = Self {
            began: room,
            ..Self::default()
        };
        if most == 0 {
            return std::mem::take(self);
        }
        self.most = most;
        if !self.began.is_empty() {
            return unused;
        }
        self.began = unused.began;
        Self::default()
    }

    /// Note that a flow began.
    #[inline]
    pub fn begin(&mut self, number: u32, now: Nanos) {
        if let Some(began) = self.began.get_mut(number as usize) {
            *began = now;
        }
    }

    /// Note that a flow is about to be removed, and why.
    #[inline]
    pub fn end(&mut self, table: &Table, number: u32, event: Event) {
        if self.most > 0 {
            self.store(table, number, event);
        }
    }

    fn store(&mut self, table: &Table, number: u32, event: Event) {
        if self.kept.len() >= self.most {
            self.missed += 1;
            return;
        }
        let entry = table.entry(number);
        let began = self.began.get(number as usize).copied();
        self.kept.push(FlowExport {
            client: entry.client(),
            client_port: entry.client_port(),
            service: entry.service(),
            server: entry.server(),
            ended: how(entry, event),
            began: began.filter(|&began| began != UNKNOWN),
            last_seen: entry.last_seen(),
            bytes_forward: table.bytes(number, Direction::Forward),
            bytes_reply: table.bytes(number, Direction::Reply),
        });
    }

    /// Take what is there, in the order of the ends, and the number of those that found no room since the last call.
    pub fn take(&mut self) -> (Vec<FlowExport>, u64) {
        (
            std::mem::take(&mut self.kept),
            std::mem::take(&mut self.missed),
        )
    }
}

/// How a flow ended: what its packets said, else why it was removed.
fn how(entry: &EntryCells, event: Event) -> &'static str {
    if entry.state() == FlowState::Closing {
        return if entry.has_both_fins() || entry.is_closed_by_one() {
            "closed"
        } else {
            "reset"
        };
    }
    match event {
        Event::FlowExpired => "expired",
        Event::FlowOrphaned => "orphaned",
        Event::FlowReset => "reset",
        Event::FlowMoved => "moved",
        _ => "evicted",
    }
}
