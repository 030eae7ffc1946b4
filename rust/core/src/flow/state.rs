//! Where a flow stands: the states that the table keeps lists of, and the phases of a request that is measured.

/// Where a flow stands. Each state has a timeout and a list of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FlowState {
    /// The client's SYN was seen.
    SynSent,
    /// The server has acknowledged it.
    SynReceived,
    /// Each side has acknowledged the other's SYN.
    Established,
    /// Both FINs, or a reset that was believed.
    Closing,
    /// UDP that the server has answered.
    Udp,
    /// A TCP flow that began before us, placed again by a hash. Unconfirmed: one side alone has spoken.
    Pickup,
    /// UDP that the server has not answered. Unconfirmed.
    UdpUnreplied,
    /// TCP whose client goes on as if it were answered, by replies that take another way (rule 8.23, replies through
    /// any balancer).
    OneWay,
}

impl FlowState {
    /// All, by the byte that stands for each, and in the order in which their lists are searched for expired flows.
    pub const ALL: [FlowState; 8] = [
        FlowState::SynSent,
        FlowState::SynReceived,
        FlowState::Established,
        FlowState::Closing,
        FlowState::Udp,
        FlowState::Pickup,
        FlowState::UdpUnreplied,
        FlowState::OneWay,
    ];

    /// Whether a flow in it counts for its server: it is neither over nor unconfirmed.
    #[inline]
    #[must_use]
    pub const fn is_active(self) -> bool {
        !matches!(
            self,
            FlowState::Closing | FlowState::Pickup | FlowState::UdpUnreplied
        )
    }

    /// Whether it is one of UDP.
    #[inline]
    #[must_use]
    pub const fn is_udp(self) -> bool {
        matches!(self, FlowState::Udp | FlowState::UdpUnreplied)
    }

    /// The name people see.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            FlowState::SynSent => "syn-sent",
            FlowState::SynReceived => "syn-received",
            FlowState::Established => "established",
            FlowState::Closing => "closing",
            FlowState::Udp => "udp",
            FlowState::Pickup => "pickup",
            FlowState::UdpUnreplied => "udp-unreplied",
            FlowState::OneWay => "one-way",
        }
    }

    /// From the byte an entry keeps. Unknown bytes, which we never write, are read as `Closing`: the safest to lose.
    #[inline]
    #[must_use]
    pub const fn from_byte(byte: u8) -> Self {
        // By a look, not a match: which one it is cannot be foretold.
        const BY_BYTE: [FlowState; 8] = {
            let mut states = [FlowState::Closing; 8];
            let mut at = 0;
            while at < FlowState::ALL.len() {
                states[at] = FlowState::ALL[at];
                at += 1;
            }
            states
        };
        BY_BYTE[byte as usize % BY_BYTE.len()]
    }
}

/// Who spoke last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Neither side yet.
    Fresh,
    /// The client has sent data: it waits for the server's.
    Asked,
    /// The server has.
    Answering,
    /// The flow is over.
    Over,
}

impl Phase {
    /// From the low bits of what an entry keeps.
    #[must_use]
    pub const fn from_bits(bits: u32) -> Self {
        match bits & 3 {
            0 => Phase::Fresh,
            1 => Phase::Asked,
            2 => Phase::Answering,
            _ => Phase::Over,
        }
    }
}
