//! What the data path is given: the immutable, compiled state of one generation, and the next hops.
//!
//! The mirror of `python/lb/model/snapshot.py`, which says what each field means. Ids are positions; `None` marks a
//! removed thing.

use crate::base::{InterfaceId, Mac};
use std::net::IpAddr;
use std::sync::Arc;

/// Names of servers, one per slot of a plan; empty for one that is not in the snapshot.
pub type Names = Arc<[Arc<str>]>;

/// What the user's policy is asked about a new flow.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Name of the service.
    pub service: &'a str,
    /// The client's address.
    pub client: IpAddr,
    /// The client's port.
    pub client_port: u16,
    /// Server names, one per slot: shared, so that a question costs the same however many there are.
    pub candidates: &'a Names,
    /// What the answer may take while packets come from sockets, nanoseconds.
    pub deadline_ns: u64,
    /// The packet may wait: with this number the answer is told later (`DataPath::answer`).
    pub ticket: Option<u64>,
}

/// What comes of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The name of a server; `None`: no usable answer.
    Given(Option<String>),
    /// It comes later, with the question's ticket.
    Later,
}

/// Asks the user's policy for the name of a server. It must not wait for long where packets come from sockets.
pub type AskFunction = Arc<dyn Fn(&Question<'_>) -> Answer + Send + Sync>;

/// How a slot is picked. `docs/rules.md` rule 8, flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "docs/rules.md rule 8, flows, defines each")]
pub enum Selector {
    Counter,
    Random,
    HashSource,
    HashFlow,
    Least,
    TwoChoices,
    Ask,
}

/// All that is needed to place a new flow.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How a slot is picked.
    pub selector: Selector,
    /// Server ids. Empty: no server is available.
    pub slots: Vec<u32>,
    /// One positive score per slot, or empty. Only `TwoChoices` reads it.
    pub scores: Vec<u64>,
    /// Decides when `Ask` has no answer.
    pub fallback: Option<Box<Plan>>,
    /// What an `Ask` has to answer in, nanoseconds.
    pub deadline_ns: u64,
}

/// One network interface.
#[derive(Clone, Debug)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its link-layer address.
    pub mac: Mac,
    /// Bytes of IP packet.
    pub mtu: u32,
    /// Addresses with their prefix length.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Whether the VIPs are answered for on it (ARP, ND).
    pub announce: bool,
}

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// RFC 9293.
    Tcp = 6,
    /// RFC 768.
    Udp = 17,
}

/// A real machine behind a service.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// Id of its service.
    pub service: u32,
    /// Id of (address, port, protocol), shared by services that share it.
    pub endpoint: u32,
    /// Its real address.
    pub address: IpAddr,
    /// Its real port.
    pub port: u16,
    /// Weight; 0 counts as 1 in comparisons.
    pub weight: u32,
    /// Its link-layer address when the config gives it.
    pub mac: Option<Mac>,
    /// It was removed, or drained for its time: UDP flows leave it with their next packet.
    pub moves_udp: bool,
}

/// A VIP, port and protocol, with the plan that places its flows.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// The VIP.
    pub address: IpAddr,
    /// The port clients connect to.
    pub port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Places new flows.
    pub plan: Plan,
    /// Answer with RST or port unreachable when no server is available; else drop.
    pub reset_without_server: bool,
    /// Whether a client's segment of no flow is answered by a RST.
    pub reset_without_flow: bool,
}

/// Idle timeouts and the eviction floor, in nanoseconds.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "docs/rules.md rule 8, flows, defines each")]
pub struct Timeouts {
    pub half_open_ns: u64,
    pub established_ns: u64,
    pub closing_ns: u64,
    pub udp_ns: u64,
    pub idle_floor_ns: u64,
}

/// Calls a macro with the settings that hold for all packets: what each means, its type, and its default.
///
/// One that is added here is a field of [`Settings`], and the bindings read it from the attribute of its name: in
/// Rust, a setting of a plain type is declared nowhere else.
#[macro_export]
macro_rules! for_settings {
    ($then:ident) => {
        $then! {
            /// Answer echo requests to a VIP.
            answer_echo: bool = false,
            /// ICMP and RST packets we may make per second, of each kind.
            icmp_rate: u32 = 1000,
        }
    };
}

macro_rules! declare_settings {
    ($($(#[$meaning:meta])* $name:ident: $kind:ty = $default:expr,)*) => {
        /// What a configuration says to all packets, whatever their service.
        #[derive(Clone, Copy, Debug)]
        pub struct Settings {
            $($(#[$meaning])* pub $name: $kind,)*
        }

        impl Settings {
            /// What holds where a configuration says nothing.
            pub const DEFAULT: Self = Self { $($name: $default,)* };
        }
    };
}

for_settings!(declare_settings);

/// The compiled state of one generation.
#[derive(Clone)]
pub struct Snapshot {
    /// Counts publications.
    pub generation: u64,
    /// Key of the placement hash.
    pub seed: u64,
    /// Interfaces by id.
    pub interfaces: Vec<Interface>,
    /// Services by id.
    pub services: Vec<Option<Service>>,
    /// Servers by id.
    pub servers: Vec<Option<Server>>,
    /// Route packets of no service on, instead of dropping them.
    pub forward_transit: bool,
    /// What holds for all packets.
    pub settings: Settings,
    /// Idle timeouts.
    pub timeouts: Timeouts,
    /// What the `Ask` selector asks.
    pub ask: Option<AskFunction>,
}

impl Snapshot {
    /// What a data path has before anything was published: no interface, so no frame is for us.
    #[must_use]
    pub const fn empty() -> Self {
        Self {
            generation: 0,
            seed: 0,
            interfaces: Vec::new(),
            services: Vec::new(),
            servers: Vec::new(),
            forward_transit: false,
            settings: Settings {
                icmp_rate: 0,
                ..Settings::DEFAULT
            },
            timeouts: Timeouts {
                half_open_ns: 0,
                established_ns: 0,
                closing_ns: 0,
                udp_ns: 0,
                idle_floor_ns: 0,
            },
            ask: None,
        }
    }
}

/// A way to a prefix.
#[derive(Clone, Debug)]
pub struct Route {
    /// Network address.
    pub prefix: IpAddr,
    /// Bits of the prefix.
    pub prefix_len: u8,
    /// Interface id.
    pub interface: InterfaceId,
    /// Next hop; `None` when on-link.
    pub gateway: Option<IpAddr>,
    /// Bytes; `None`: the interface's.
    pub mtu: Option<u32>,
}

/// A resolved link-layer address.
#[derive(Clone, Debug)]
pub struct Neighbour {
    /// Interface id.
    pub interface: InterfaceId,
    /// The neighbour's IP address.
    pub address: IpAddr,
    /// Its link-layer address.
    pub mac: Mac,
}

/// Where packets go next.
#[derive(Clone, Debug, Default)]
pub struct NextHops {
    /// In order of preference among equal prefix lengths.
    pub routes: Vec<Route>,
    /// Resolved neighbours.
    pub neighbours: Vec<Neighbour>,
}
