//! Verdicts and reasons: what becomes of a packet. Every packet ends with exactly one verdict; every drop has one
//! reason. The names are those of `python/lb/backends/base.py` and `docs/rules.md`.

/// Why a packet was dropped, answered or held. The order is the order of the stages that give them.
macro_rules! reasons {
    ($($variant:ident = $name:literal),+ $(,)?) => {
        /// Why a packet was dropped, answered or held.
        #[allow(missing_docs, reason = "the names are the documentation; docs/rules.md says when each is given")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason { $($variant),+ }

        impl Reason {
            /// All reasons, in declaration order.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant),+];

            /// The name used in results, counters and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Reason::$variant => $name),+ }
            }
        }
    };
}

reasons! {
    FrameTruncated = "frame_truncated",
    OwnFrame = "own_frame",
    BadSourceMac = "bad_source_mac",
    NotForUs = "not_for_us",
    VlanDepth = "vlan_depth",
    Vlan = "vlan",
    BadArp = "bad_arp",
    IpTruncated = "ip_truncated",
    IpVersion = "ip_version",
    IpHeaderLength = "ip_header_length",
    IpChecksum = "ip_checksum",
    IpTotalLength = "ip_total_length",
    IpOptions = "ip_options",
    SourceRoute = "source_route",
    ExtHeader = "ext_header",
    ExtHeaderLimit = "ext_header_limit",
    RoutingHeader = "routing_header",
    L2Broadcast = "l2_broadcast",
    MartianSource = "martian_source",
    MartianDestination = "martian_destination",
    SpoofedServer = "spoofed_server",
    BadOffload = "bad_offload",
    FragmentLength = "fragment_length",
    FragmentTiny = "fragment_tiny",
    FragmentLimit = "fragment_limit",
    FragmentRefused = "fragment_refused",
    FragmentOverlap = "fragment_overlap",
    FragmentDuplicate = "fragment_duplicate",
    FragmentEvicted = "fragment_evicted",
    FragmentTimeout = "fragment_timeout",
    L4Truncated = "l4_truncated",
    L4Protocol = "l4_protocol",
    TcpDataOffset = "tcp_data_offset",
    TcpFlags = "tcp_flags",
    UdpLength = "udp_length",
    UdpChecksumZero = "udp_checksum_zero",
    PortZero = "port_zero",
    NoService = "no_service",
    NoServer = "no_server",
    NoFlow = "no_flow",
    NewFlowLimit = "new_flow_limit",
    Overload = "overload",
    RstWindow = "rst_window",
    Hairpin = "hairpin",
    FlowConflict = "flow_conflict",
    TableFull = "table_full",
    ServerEcho = "server_echo",
    VipEcho = "vip_echo",
    IcmpFragment = "icmp_fragment",
    IcmpChecksum = "icmp_checksum",
    IcmpRedirect = "icmp_redirect",
    IcmpType = "icmp_type",
    IcmpInner = "icmp_inner",
    IcmpAboutIcmp = "icmp_about_icmp",
    IcmpNoFlow = "icmp_no_flow",
    Transit = "transit",
    TtlExceeded = "ttl_exceeded",
    TooBig = "too_big",
    NoRoute = "no_route",
    NeighbourUnresolved = "neighbour_unresolved",
    NeighbourTimeout = "neighbour_timeout",
    RateLimited = "rate_limited",
    Arp = "arp",
    Nd = "nd",
    Echo = "echo",
    Fragment = "fragment",
    Neighbour = "neighbour",
    Ask = "ask",
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Sent on, translated or as transit.
    Forward,
    /// Left to the host.
    Pass,
    /// Discarded.
    Drop(Reason),
    /// Answered by us.
    Reply(Reason),
    /// Kept until something is known: the first fragment, a neighbour, or what a user's policy answers.
    Hold(Reason),
}

impl Verdict {
    /// The verdict's name without its reason.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Forward => "forward",
            Verdict::Pass => "pass",
            Verdict::Drop(_) => "drop",
            Verdict::Reply(_) => "reply",
            Verdict::Hold(_) => "hold",
        }
    }

    /// The reason, for drop, reply and hold.
    #[must_use]
    pub const fn reason(self) -> Option<Reason> {
        match self {
            Verdict::Forward | Verdict::Pass => None,
            Verdict::Drop(reason) | Verdict::Reply(reason) | Verdict::Hold(reason) => Some(reason),
        }
    }
}

impl From<Reason> for Verdict {
    /// A reason by itself is that of a drop.
    fn from(reason: Reason) -> Self {
        Verdict::Drop(reason)
    }
}

/// Which way a packet of a flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Client to server.
    Forward,
    /// Server to client.
    Reply,
}

impl Direction {
    /// The opposite direction.
    #[inline(always)]
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Direction::Forward => Direction::Reply,
            Direction::Reply => Direction::Forward,
        }
    }
}
