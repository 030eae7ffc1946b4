//! What a packet's flow is looked up by.

use crate::base::Direction;
use crate::flow::key::{Key, KeySide};
use crate::forwarding::ForwardingState;
use crate::packet::{Meta, Target};

/// What a packet's flow is looked up by; `None` for a target that has none.
#[inline(always)]
pub(super) fn flow_key(meta: &Meta) -> Option<Key> {
    let Meta { ip, transport, .. } = meta;
    match meta.target {
        Target::Service(id) => Some(Key {
            client: ip.source,
            client_port: transport.source_port,
            side: KeySide::Service(id),
        }),
        Target::Endpoint(id) => Some(Key {
            client: ip.destination,
            client_port: transport.destination_port,
            side: KeySide::Endpoint(id),
        }),
        Target::Icmp { .. } | Target::Transit => None,
    }
}

/// What finds the flow of a packet that has not been rewritten yet from the server's side.
pub(super) fn reply_key(meta: &Meta, direction: Direction, endpoint: u32) -> Key {
    let Meta { ip, transport, .. } = meta;
    let (client, client_port) = match direction {
        Direction::Forward => (ip.source, transport.source_port),
        Direction::Reply => (ip.destination, transport.destination_port),
    };
    Key {
        client,
        client_port,
        side: KeySide::Endpoint(endpoint),
    }
}

/// Whether a server's packets of this key may be of a flow that a hash would place. What a client has sent straight
/// to the server counts for less then.
pub(super) fn is_guarded(forwarding: &ForwardingState, key: &Key) -> bool {
    matches!(key.side, KeySide::Endpoint(endpoint) if !forwarding.hash_services(endpoint).is_empty())
}
