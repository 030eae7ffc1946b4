//! Flows that outlive the process: a table in a file, what another process left in one, and rows for a file on a disk.

use std::fs::File;

use super::engine::DataPath;
use crate::base::{InterfaceId, Nanos};
use crate::counters::Counters;
use crate::flow::measure;
use crate::flow::table::{Flow, Kept, ROW_BYTES, Rows, Table, TableError, Translation};

/// Places of the table that one slice copies: up to 104 KiB, read in order.
const PLACES: u32 = 1024;
/// Rows that one slice stores: each is written at random.
const ROWS: usize = 32;

impl DataPath {
    /// As [`DataPath::new`], with the flow table in the memory of an empty file.
    ///
    /// # Errors
    /// `Capacity`, `Memory`.
    pub fn in_file(
        capacity: u64,
        hash_key: [u8; 16],
        seed: u64,
        file: &File,
    ) -> Result<Self, TableError> {
        Ok(Self::over(
            Table::in_file(capacity, hash_key, file)?,
            hash_key,
            seed,
        ))
    }

    /// Take over the flows that another process left in a file, once a snapshot is published and before packets come.
    ///
    /// `translate` says what a server id of theirs stands for in this snapshot, None when that is nothing;
    /// `interface` does so for interfaces.
    ///
    /// # Errors
    /// `Image`: nothing was taken over. `Read`: some may have been, and this data path is of no use.
    pub fn keep_flows(
        &mut self,
        file: &File,
        translate: impl Fn(u32) -> Option<Translation>,
        interface: impl Fn(InterfaceId) -> Option<InterfaceId>,
        now: Nanos,
    ) -> Result<Kept, TableError> {
        let state = &mut *self.state;
        let (table, counters) = (&mut state.table, &mut state.counters);
        table.keep_from(file, translate, interface, now, |service, server, flow| {
            count_kept(counters, (service, server), flow, now);
        })
    }

    /// Copy some more of the flow table. Says whether that was all.
    pub fn copy_some_rows(&self, copy: &mut RowCopy) -> bool {
        let until = copy.place.saturating_add(PLACES).min(copy.until);
        let end = self
            .state
            .table
            .copy_rows(copy.place..until, copy.now, &mut copy.rows);
        copy.place = until;
        copy.is_end = until >= end;
        copy.is_end || until == copy.until
    }

    /// Take over some more of the flows in rows, while packets come. Says whether that was all.
    pub fn keep_some_rows(&mut self, load: &mut RowLoad) -> bool {
        let RowLoad {
            rows,
            servers,
            interfaces,
            now,
        } = load;
        let now = *now;
        let state = &mut *self.state;
        let (table, counters) = (&mut state.table, &mut state.counters);
        table.keep_rows(
            rows,
            ROWS,
            &|server| *servers.get(server as usize)?,
            &|id| *interfaces.get(id.index())?,
            now,
            |service, server, flow| count_kept(counters, (service, server), flow, now),
        )
    }
}

/// Count a flow that was taken over, for its service and server.
fn count_kept(counters: &mut Counters, (service, server): (u32, u32), flow: &Flow<'_>, now: Nanos) {
    counters.flow_stored(service, server);
    if flow.state().is_active() {
        counters.flow_active(server);
        if let Some(measures) = counters.measures_mut(server) {
            measure::resume(measures, flow, now);
        }
    }
}

/// A copy of a part of the flow table, as rows, that is being made.
pub struct RowCopy {
    place: u32,
    until: u32,
    now: Nanos,
    rows: Vec<u8>,
    is_end: bool,
}

impl RowCopy {
    /// Begin one of `places` places from `place` on, as of an instant.
    #[must_use]
    pub fn new(place: u32, places: u32, now: Nanos) -> Self {
        Self {
            place,
            until: place.saturating_add(places),
            now,
            rows: Vec::new(),
            is_end: false,
        }
    }

    /// Between two slices, where no packet waits: have memory for the next one.
    pub fn settle(&mut self) {
        let (len, more) = (self.rows.len(), PLACES as usize * ROW_BYTES);
        // Written to, so that the kernel has given it.
        self.rows.resize(len + more, 0);
        self.rows.truncate(len);
    }

    /// The rows, and the place to go on from; `None`: that was the end of the table.
    #[must_use]
    pub fn into_rows(self) -> (Vec<u8>, Option<u32>) {
        (self.rows, (!self.is_end).then_some(self.place))
    }
}

/// Flows in rows that are being taken over.
pub struct RowLoad {
    rows: Rows,
    servers: Vec<Option<Translation>>,
    interfaces: Vec<Option<InterfaceId>>,
    now: Nanos,
}

impl RowLoad {
    /// Begin to take over the flows in some bytes. `servers`, `interfaces`: what ids in there stand for now.
    ///
    /// # Errors
    /// `Image`: they do not end with a row.
    pub fn new(
        bytes: &[u8],
        servers: Vec<Option<Translation>>,
        interfaces: Vec<Option<InterfaceId>>,
        now: Nanos,
    ) -> Result<Self, TableError> {
        let rows = Rows::parse(bytes, now).ok_or(TableError::Image("its rows are cut short"))?;
        Ok(Self {
            rows,
            servers,
            interfaces,
            now,
        })
    }

    /// What became of them so far.
    #[must_use]
    pub fn kept(&self) -> Kept {
        self.rows.kept()
    }
}
