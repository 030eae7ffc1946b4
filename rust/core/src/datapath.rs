//! The data path as its callers see it: state that lives across packets, and the calls that change it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::snapshot::{NextHops, Snapshot};
use crate::verdict::{Direction, Verdict};

/// Work the sender left to the network card: `struct virtio_net_hdr`, in host order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of virtio 1.2, 5.1.6")]
pub struct Offload {
    pub flags: u8,
    pub gso_type: u8,
    pub hdr_len: u16,
    pub gso_size: u16,
    pub csum_start: u16,
    pub csum_offset: u16,
}

/// The frame that came in, rewritten in place, is to be sent: its first `len` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Interface id.
    pub interface: u32,
    /// Bytes of the frame.
    pub len: usize,
    /// What the kernel still has to do.
    pub offload: Offload,
}

/// A frame of its own to send: answers, fragments, frames that waited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Interface id.
    pub interface: u32,
    /// A whole Ethernet frame.
    pub frame: Vec<u8>,
    /// What the kernel still has to do.
    pub offload: Offload,
}

/// What became of one frame. When `sent` is set it goes out before the outputs appended by the same call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "docs/datapath.md rule 1 defines each")]
pub struct Outcome {
    pub verdict: Verdict,
    pub direction: Option<Direction>,
    pub service: Option<u32>,
    pub server: Option<u32>,
    pub sent: Option<Sent>,
}

/// One entry of the flow table, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of python/lb/backends/base.py Flow")]
pub struct FlowInfo {
    pub client: IpAddr,
    pub client_port: u16,
    pub service: u32,
    pub server: u32,
    pub state: &'static str,
    pub idle_ns: u64,
    pub bytes_forward: u64,
    pub bytes_reply: u64,
}

/// Per service or server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "docs/datapath.md rule 13 defines each")]
pub struct Traffic {
    pub flows_created: u64,
    pub flows_active: u64,
    pub packets_forward: u64,
    pub packets_reply: u64,
    pub bytes_forward: u64,
    pub bytes_reply: u64,
}

/// All counters at one instant.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs, reason = "docs/datapath.md rule 13 defines each")]
pub struct CounterReport {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    pub verdicts: BTreeMap<String, u64>,
    pub events: Vec<(&'static str, u64)>,
    /// By service id; removed services are `None`.
    pub services: Vec<Option<Traffic>>,
    /// By server id; removed servers are `None`.
    pub servers: Vec<Option<Traffic>>,
}

/// The flow table could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DataPathError {
    /// Capacity 0 or beyond what 32-bit entry numbers can hold.
    #[error("flow table capacity {0} is not in 1..=268435456")]
    Capacity(u64),
    /// The kernel refused the memory.
    #[error("flow table of {bytes} bytes could not be allocated: {source}")]
    Memory {
        /// Bytes asked for.
        bytes: usize,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// One data path. Single-threaded: one owner calls it.
pub struct DataPath {}

impl DataPath {
    /// Make a data path with an empty flow table of `capacity` flows, keyed by `hash_key`; `seed` starts the random draws. Everything drops as
    /// `not_for_us` until a snapshot is published.
    ///
    /// # Errors
    /// `Capacity`, `Memory`.
    pub fn new(_capacity: u64, _hash_key: [u8; 16], _seed: u64) -> Result<Self, DataPathError> {
        unimplemented!()
    }
    /// Swap to a new snapshot. Flows stay.
    pub fn publish(&mut self, _snapshot: Snapshot) {
        unimplemented!()
    }
    /// Swap routes and neighbours. Waiting packets leave at the next `tick`.
    pub fn set_next_hops(&mut self, _next_hops: NextHops) {
        unimplemented!()
    }
    /// Process one frame in place. Frames of their own are appended to `extra`.
    pub fn process(
        &mut self,
        _frame: &mut [u8],
        _interface: u32,
        _now_ns: u64,
        _offload: Offload,
        _extra: &mut Vec<Output>,
    ) -> Outcome {
        unimplemented!()
    }
    /// Expire and release what is due.
    pub fn tick(&mut self, _now_ns: u64, _extra: &mut Vec<Output>) {
        unimplemented!()
    }
    /// The unexpired entries, sorted by (client, client port, service), addresses compared as 16 bytes (IPv4-mapped).
    #[must_use]
    pub fn flows(&self, _now_ns: u64) -> Vec<FlowInfo> {
        unimplemented!()
    }
    /// All counters.
    #[must_use]
    pub fn counters(&self) -> CounterReport {
        unimplemented!()
    }
    /// Hops to resolve that were not returned before.
    pub fn take_unresolved(&mut self) -> Vec<(u32, IpAddr)> {
        unimplemented!()
    }
    /// Whether `take_unresolved` has news.
    #[must_use]
    pub fn has_unresolved(&self) -> bool {
        unimplemented!()
    }
    /// The published snapshot, for names.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        unimplemented!()
    }
}
