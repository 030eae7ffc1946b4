//! What happens to flows, by the names that counters and metrics have.

/// What happened to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "docs/rules.md says when each happens")]
pub enum Event {
    FlowHit,
    FlowMiss,
    FlowCreated,
    FlowExpired,
    FlowClosed,
    FlowReused,
    FlowOrphaned,
    FlowEvictedUnconfirmed,
    FlowEvictedHalfOpen,
    FlowEvictedClosing,
    FlowEvictedOneWay,
    FlowEvictedIdle,
    FlowStateless,
    ReplyStateless,
    FlowReset,
    FlowMoved,
    DirectEvicted,
    AskFallback,
}

/// Names of the events, in the order of [`Event`].
pub const EVENT_NAMES: [&str; 18] = [
    "flow_hit",
    "flow_miss",
    "flow_created",
    "flow_expired",
    "flow_closed",
    "flow_reused",
    "flow_orphaned",
    "flow_evicted_unconfirmed",
    "flow_evicted_half_open",
    "flow_evicted_closing",
    "flow_evicted_one_way",
    "flow_evicted_idle",
    "flow_stateless",
    "reply_stateless",
    "flow_reset",
    "flow_moved",
    "direct_evicted",
    "ask_fallback",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_names_follow_declaration() {
        assert_eq!(EVENT_NAMES[Event::FlowHit as usize], "flow_hit");
        assert_eq!(
            EVENT_NAMES[Event::FlowEvictedIdle as usize],
            "flow_evicted_idle"
        );
        assert_eq!(EVENT_NAMES[Event::AskFallback as usize], "ask_fallback");
    }
}
