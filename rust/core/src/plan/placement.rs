//! The hash that places a flow without any state.

use crate::base::Ip;
use crate::flow::hash;
use crate::forwarding::ForwardingState;
use crate::snapshot::{Plan, Selector};

/// The server of the slot that a hash selector gives a flow, whatever conflict it has there; `None` where the
/// service does not have it.
#[must_use]
pub fn hashed(
    forwarding: &ForwardingState,
    service: u32,
    client: (Ip, u16),
    plan: &Plan,
) -> Option<u32> {
    let hash = placement_hash(forwarding, service, client, plan.selector)?;
    let slot = hash.checked_rem(plan.slots.len() as u64)?;
    let server = plan.slots[slot as usize];
    forwarding.candidate(service, server).map(|_| server)
}

/// The hash that a hash selector places by.
pub(super) fn placement_hash(
    forwarding: &ForwardingState,
    service: u32,
    client: (Ip, u16),
    selector: Selector,
) -> Option<u64> {
    let seed = forwarding.snapshot.seed;
    let address = client.0.to_be_bytes();
    if selector == Selector::HashSource {
        return Some(hash::source_hash(seed, &address));
    }
    let facts = forwarding.service(service)?;
    let vip = Ip::from(facts.address).to_be_bytes();
    Some(hash::flow_hash(
        seed,
        &address,
        &vip,
        client.1,
        facts.port,
        facts.protocol as u8,
    ))
}
