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

/// Calls a macro with the words that a snapshot is written in: each choice, its words in Python and their variants.
#[macro_export]
macro_rules! for_choices {
    ($then:ident) => {
        $then! {
            /// How a slot is picked.
            #[allow(missing_docs, reason = "docs/rules.md rule 8, flows, defines each")]
            enum Selector {
                "counter" => Counter,
                "random" => Random,
                "hash-source" => HashSource,
                "hash-flow" => HashFlow,
                "least" => Least,
                "two-choices" => TwoChoices,
                "ask" => Ask,
            }

            /// TCP or UDP.
            #[repr(u8)]
            enum Protocol {
                /// RFC 9293.
                "tcp" => Tcp = 6,
                /// RFC 768.
                "udp" => Udp = 17,
            }

            /// What a client gets whose packet is refused.
            enum Refusal {
                /// A RST, or port unreachable.
                "reset" => Reset,
                /// Nothing.
                "drop" => Drop,
            }

            /// What becomes of packets of no service.
            #[derive(Default)]
            enum Transit {
                /// They are dropped.
                #[default]
                "drop" => Drop,
                /// They are routed on.
                "forward" => Forward,
            }
        }
    };
}

macro_rules! declare_choices {
    ($(
        $(#[$about:meta])*
        enum $choice:ident {
            $($(#[$meaning:meta])* $word:literal => $variant:ident $(= $number:literal)?,)*
        }
    )*) => {$(
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $choice {
            $($(#[$meaning])* $variant $(= $number)?,)*
        }

        impl $choice {
            /// Each word and what it stands for.
            pub const WORDS: &[(&str, Self)] = &[$(($word, Self::$variant)),*];
        }
    )*};
}

for_choices!(declare_choices);

/// Calls a macro with the parts of a snapshot: what each field means, its name in Python too, and its type.
///
/// A field that is added here is one of the struct, and the bindings read it from the attribute of its name: in Rust,
/// it is declared nowhere else.
#[macro_export]
macro_rules! for_parts {
    ($then:ident) => {
        $then! {
            /// All that is needed to place a new flow.
            struct Plan {
                /// How a slot is picked.
                selector: Selector,
                /// Server ids. Empty: no server is available.
                slots: Vec<u32>,
                /// One positive score per slot, or empty. Only `TwoChoices` reads it.
                scores: Vec<u64>,
                /// Decides when `Ask` has no answer.
                fallback: Option<Box<Plan>>,
                /// What an `Ask` has to answer in, nanoseconds.
                deadline_ns: u64,
            }

            /// One network interface.
            struct Interface {
                /// Its name.
                name: String,
                /// Its link-layer address.
                mac: Mac,
                /// Bytes of IP packet.
                mtu: u32,
                /// Addresses with their prefix length.
                addresses: Vec<(IpAddr, u8)>,
                /// Whether the VIPs are answered for on it (ARP, ND).
                announce: bool,
            }

            /// A real machine behind a service.
            struct Server {
                /// Its name.
                name: String,
                /// Id of its service.
                service: u32,
                /// Id of (address, port, protocol), shared by services that share it.
                endpoint: u32,
                /// Its real address.
                address: IpAddr,
                /// Its real port.
                port: u16,
                /// Weight; 0 counts as 1 in comparisons.
                weight: u32,
                /// Its link-layer address when the config gives it.
                mac: Option<Mac>,
                /// It was removed, or drained for its time: UDP flows leave it with their next packet.
                moves_udp: bool,
            }

            /// How many new flows clients of one prefix may begin.
            #[derive(Copy, PartialEq, Eq)]
            struct NewFlowLimit {
                /// New flows per second; at least 1.
                rate: u32,
                /// New flows at once, after a pause; at least 1.
                burst: u32,
                /// Bits of an IPv4 client's prefix.
                prefix_ipv4: u8,
                /// Bits of an IPv6 client's prefix.
                prefix_ipv6: u8,
            }

            /// A VIP, port and protocol, with the plan that places its flows.
            struct Service {
                /// Its name.
                name: String,
                /// The VIP.
                address: IpAddr,
                /// The port clients connect to.
                port: u16,
                /// TCP or UDP.
                protocol: Protocol,
                /// Places new flows.
                plan: Plan,
                /// What a client gets when no server is available.
                on_no_server: Refusal,
                /// What a client gets for a segment of no flow.
                on_no_flow: Refusal,
                /// Limits new flows by their source.
                new_flow_limit: Option<NewFlowLimit>,
            }

            /// Idle timeouts and the eviction floor, in nanoseconds.
            #[derive(Copy, Default)]
            #[allow(missing_docs, reason = "docs/rules.md rule 8, flows, defines each")]
            struct Timeouts {
                half_open_ns: u64,
                established_ns: u64,
                closing_ns: u64,
                udp_ns: u64,
                idle_floor_ns: u64,
            }

            /// What a configuration says to all packets, whatever their service: fields of the snapshot in Python.
            #[derive(Copy, Default)]
            struct Settings {
                /// What becomes of packets of no service.
                transit: Transit,
                /// Answer echo requests to a VIP.
                answer_echo: bool,
                /// Translate replies whatever balancer has their flows.
                any_replies: bool,
                /// ICMP and RST packets we may make per second, of each kind.
                icmp_rate: u32,
            }
        }
    };
}

macro_rules! declare_parts {
    ($(
        $(#[$about:meta])*
        struct $part:ident { $($(#[$meaning:meta])* $field:ident: $kind:ty,)* }
    )*) => {$(
        $(#[$about])*
        #[derive(Clone, Debug)]
        pub struct $part {
            $($(#[$meaning])* pub $field: $kind,)*
        }
    )*};
}

for_parts!(declare_parts);

/// The compiled state of one generation. Its default is what a data path has before anything was published: no
/// interface, so no frame is for us.
#[derive(Clone, Default)]
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
    /// What holds for all packets.
    pub settings: Settings,
    /// Idle timeouts.
    pub timeouts: Timeouts,
    /// What the `Ask` selector asks.
    pub ask: Option<AskFunction>,
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
