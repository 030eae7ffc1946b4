//! Words about what another process left: what its ids mean now, its flows, and how much of it was kept.

use super::entry::{Entry, FlowCold, FlowRare};

/// One entry of its table, with its other parts. In rows of bytes `last_seen` is how long ago that was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Row {
    pub entry: Entry,
    pub cold: FlowCold,
    pub rare: FlowRare,
}

impl Row {
    /// That of a new flow.
    pub fn of(entry: Entry) -> Self {
        Self {
            entry,
            ..Self::default()
        }
    }
}

/// What a server id in the table that was left stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Ids of the service and the endpoint that it belonged to.
    pub then: (u32, u32),
    /// Whether that is a service of UDP.
    pub is_udp: bool,
    /// Ids of service, server and endpoint now.
    pub today: (u32, u32, u32),
}

/// What became of the entries that were left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Flows that are in the table now.
    pub flows: u64,
    /// Entries that were damaged or half written, or whose server there is no more; or there was no room.
    pub dropped: u64,
}
