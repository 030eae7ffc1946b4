//! Counters as the control side reads them: by name.

use std::collections::BTreeMap;

use crate::base::{Direction, carried};
use crate::flow::measure::Measures;

/// Per service or server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "docs/rules.md rule 13, counters, defines each")]
pub struct Traffic {
    pub flows_created: u64,
    pub flows_active: u64,
    pub packets_forward: u64,
    pub packets_reply: u64,
    pub bytes_forward: u64,
    pub bytes_reply: u64,
}

// `flows_active` is counted anew with the flows.
carried!(Traffic {
    "flows_created" = flows_created,
    "packets_forward" = packets_forward,
    "packets_reply" = packets_reply,
    "bytes_forward" = bytes_forward,
    "bytes_reply" = bytes_reply,
});

/// How full the flow table is. Expired flows that are not removed yet count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "docs/rules.md rule 13, counters, defines each")]
pub struct TableUse {
    pub entries: u64,
    pub capacity: u64,
}

/// All counters at one instant.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "docs/rules.md rule 13, counters, defines each")]
pub struct CounterReport {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub verdicts: BTreeMap<String, u64>,
    pub events: Vec<(&'static str, u64)>,
    pub table: TableUse,
    /// By service id; removed services are `None`.
    pub services: Vec<Option<Traffic>>,
    /// By server id; removed servers are `None`.
    pub servers: Vec<Option<Traffic>>,
}

/// What is known of a server at one instant (`docs/rules.md` rule 16, measurements).
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Id of its service.
    pub service: u32,
    /// Its counters.
    pub traffic: Traffic,
    /// What was measured of it.
    pub measures: Measures,
    /// Nanoseconds for which clients have waited while it sent nothing.
    pub stalled_ns: u64,
}

impl Traffic {
    pub(super) fn add(&mut self, direction: Direction, bytes: usize) {
        match direction {
            Direction::Forward => {
                self.packets_forward += 1;
                self.bytes_forward += bytes as u64;
            }
            Direction::Reply => {
                self.packets_reply += 1;
                self.bytes_reply += bytes as u64;
            }
        }
    }
}
