//! What packets change: everything that lives across packets but the forwarding state.

use crate::asking::Asking;
use crate::base::{Output, SplitMix64};
use crate::counters::Counters;
use crate::direct::DirectConnections;
use crate::flow::exports::FlowExports;
use crate::flow::new_flows::NewFlowLimiter;
use crate::flow::shed::Shed;
use crate::flow::table::Table;
use crate::fragment::Fragments;
use crate::limit::Limiter;
use crate::next_hop::Waiting;
use crate::plan::Tried;

/// What packets change: everything that lives across calls but the snapshot.
pub struct PathState {
    pub table: Table,
    pub exports: FlowExports,
    pub fragments: Fragments,
    pub waiting: Waiting,
    pub asking: Asking,
    pub limiter: Limiter,
    pub new_flows: NewFlowLimiter,
    /// There is time for flows that exist only.
    pub sheds_new_flows: bool,
    pub shed: Shed,
    /// Errors about packets that waited in vain: they leave at the next tick.
    pub answers: Vec<Output>,
    pub random: SplitMix64,
    /// The `counter` of each service, by id.
    pub rotation: Vec<u64>,
    pub tried: Tried,
    pub direct: DirectConnections,
    pub counters: Counters,
}

/// Services that room is reserved for: see `Counters`.
const RESERVED_SERVICES: usize = 1 << 16;

impl PathState {
    /// Make it around an empty table. `hash_key` is that of the limits of new flows, `seed` starts the random draws.
    pub fn new(table: Table, hash_key: [u8; 16], seed: u64) -> Self {
        Self {
            direct: DirectConnections::new(table.capacity()),
            table,
            exports: FlowExports::default(),
            fragments: Fragments::default(),
            waiting: Waiting::default(),
            asking: Asking::default(),
            limiter: Limiter::default(),
            new_flows: NewFlowLimiter::new(hash_key),
            sheds_new_flows: false,
            shed: Shed::new(hash_key),
            answers: Vec::new(),
            random: SplitMix64::new(seed),
            rotation: Vec::with_capacity(RESERVED_SERVICES),
            tried: Tried::default(),
            counters: Counters::default(),
        }
    }
}
