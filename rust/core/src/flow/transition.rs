//! What a packet does to the flow it belongs to: the one answer that counters, measurements, the table and the
//! ingress neighbour go by.

use crate::flow::state::FlowState;

/// What became of a flow by one of its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Where the flow stood.
    pub from: FlowState,
    /// Where it stands now.
    pub to: FlowState,
    /// Whether the packet is believed: it tells where its client is, and it is measured.
    pub is_believed: bool,
    /// Whether it refreshes the flow, too.
    pub refreshes: bool,
    /// Whether the numbers begin anew: another connection has taken the place of the one before.
    pub restarts: bool,
}

impl Transition {
    /// What a packet does that is believed.
    #[inline(always)]
    #[must_use]
    pub const fn believed(from: FlowState, to: FlowState) -> Self {
        Self {
            from,
            to,
            is_believed: true,
            refreshes: true,
            restarts: false,
        }
    }

    /// What a packet does that is forwarded only.
    #[inline(always)]
    #[must_use]
    pub const fn unbelieved(state: FlowState) -> Self {
        Self {
            from: state,
            to: state,
            is_believed: false,
            refreshes: false,
            restarts: false,
        }
    }

    /// Whether the flow counts for its server from now on.
    #[inline(always)]
    #[must_use]
    pub const fn becomes_active(&self) -> bool {
        self.to.is_active() && !self.from.is_active()
    }

    /// Whether the flow counts for its server no more.
    #[inline(always)]
    #[must_use]
    pub const fn becomes_inactive(&self) -> bool {
        self.from.is_active() && !self.to.is_active()
    }

    /// Whether the flow is over by it, and was not before.
    #[inline(always)]
    #[must_use]
    pub fn closes(&self) -> bool {
        self.to == FlowState::Closing && self.from != FlowState::Closing
    }
}
