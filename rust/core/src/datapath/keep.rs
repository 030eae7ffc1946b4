//! Flows that outlive the process: a table in a file, and what another process left in one.

use std::fs::File;

use super::engine::DataPath;
use crate::base::{InterfaceId, Nanos};
use crate::flow::measure;
use crate::flow::table::{Kept, Table, TableError, Translation};

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
        Ok(Self::over(Table::in_file(capacity, hash_key, file)?, seed))
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
        let counters = &mut state.counters;
        let table = &mut state.table;
        table.keep_from(file, translate, interface, now, |service, server, flow| {
            counters.flow_stored(service, server);
            if flow.state().is_active() {
                counters.flow_active(server);
                if let Some(measures) = counters.measures_mut(server) {
                    measure::resume(measures, flow, now);
                }
            }
        })
    }
}
