//! Counters and measurements for the control side, copied in slices with packets in between, and put together where
//! no packet waits.
//!
//! The totals are of one instant, and so are the numbers of any one server; with more servers than one slice
//! copies, theirs are of instants that follow one another.

use std::sync::Arc;

use super::engine::DataPath;
use crate::base::Nanos;
use crate::counters::{CounterReport, Counters, Measured, TableUse};
use crate::pipeline::state::PathState;
use crate::snapshot::{Server, Snapshot};

/// Ids that one slice copies: some tens of KiB.
const IDS: usize = 256;

/// All that was counted, and measured where that is asked for.
pub struct Reading {
    counters: Counters,
    table: TableUse,
    snapshot: Arc<Snapshot>,
    measures: bool,
    next: usize,
}

impl Reading {
    /// Begin with the totals. `measures`: with what was measured of each server.
    #[must_use]
    pub(super) fn new(snapshot: &Arc<Snapshot>, state: &PathState, measures: bool) -> Self {
        let table = &state.table;
        Self {
            counters: state.counters.totals(),
            table: TableUse {
                entries: table.len(),
                capacity: table.capacity() as u64,
            },
            snapshot: Arc::clone(snapshot),
            measures,
            next: 0,
        }
    }

    /// Where no packet waits, before the first slice: have memory for all.
    pub fn settle(&mut self) {
        if self.next == 0 {
            let ids = self
                .snapshot
                .services
                .len()
                .max(self.snapshot.servers.len());
            self.counters.reserve(ids + IDS, self.measures);
        }
    }

    /// Copy the next slice. Says whether it was the last one.
    pub(super) fn copy(&mut self, counters: &Counters) -> bool {
        let ids = self.next..self.next + IDS;
        self.next = ids.end;
        self.counters.copy_part(counters, ids, self.measures);
        let Snapshot {
            services, servers, ..
        } = &*self.snapshot;
        self.next >= services.len().max(servers.len())
    }

    /// All counters, once the last slice was copied.
    #[must_use]
    pub fn report(&self) -> CounterReport {
        CounterReport {
            table: self.table,
            ..self.counters.report(&self.snapshot)
        }
    }

    /// What is known of each server by id, until `now`: its counters and measures; `None` for those that are not in
    /// the snapshot.
    #[must_use]
    pub fn measurements(&self, now: Nanos) -> Vec<Option<Measured>> {
        let measured = |(id, server): (usize, &Option<Server>)| {
            let (traffic, measures) = self.counters.server(id)?;
            Some(Measured {
                service: server.as_ref()?.service,
                traffic: *traffic,
                measures: *measures,
                stalled_ns: measures.stalled_ns(now),
            })
        };
        let servers = self.snapshot.servers.iter();
        servers.enumerate().map(measured).collect()
    }
}

impl DataPath {
    /// Bytes of the flow table: promised for its capacity, everything included, and resident by now.
    #[must_use]
    pub fn memory(&self) -> (u64, u64) {
        let mut total = (0, 0);
        let mut at = Some(0);
        while let Some(from) = at {
            let part;
            (part, at) = self.memory_part(from);
            total = (total.0 + part.0, total.1 + part.1);
        }
        total
    }

    /// [`Self::memory`] of a part from a place on, and where the next one begins: asking the kernel about gigabytes
    /// takes milliseconds.
    #[must_use]
    pub fn memory_part(&self, from: usize) -> ((u64, u64), Option<usize>) {
        self.state.table.memory_part(from)
    }

    /// How many active flows each of the servers with these ids has (rule 13, counters).
    #[must_use]
    pub fn active_flows(&self, servers: &[u32]) -> Vec<u64> {
        let counters = &self.state.counters;
        servers.iter().map(|&id| counters.active(id)).collect()
    }

    /// Begin to read the counters, with what was measured where `measures` says so.
    #[must_use]
    pub fn reading(&self, measures: bool) -> Reading {
        Reading::new(&self.forwarding.snapshot, &self.state, measures)
    }

    /// Copy the next slice of the counters. Says whether it was the last one.
    pub fn copy_some(&self, reading: &mut Reading) -> bool {
        reading.copy(&self.state.counters)
    }

    /// All counters at once.
    #[must_use]
    pub fn counters(&self) -> CounterReport {
        self.read(false).report()
    }

    /// What is known of each server by id, until `now`, at once; `None` for those that are not in the snapshot.
    #[must_use]
    pub fn measurements(&self, now: Nanos) -> Vec<Option<Measured>> {
        self.read(true).measurements(now)
    }

    fn read(&self, measures: bool) -> Reading {
        let mut reading = self.reading(measures);
        reading.settle();
        while !self.copy_some(&mut reading) {}
        reading
    }
}
