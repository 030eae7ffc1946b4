//! Connections straight to a server, past the services: what is remembered of them, so that their answers pass
//! (rule 9.1, direct connections).

use std::ops::ControlFlow::Continue;

use super::evict::{forget, is_over};
use super::keys::flow_key;
use super::walk::{OrDrop, Stage, Walk};
use crate::base::{Event, Reason};
use crate::flow::key::{Key, KeySide};
use crate::packet::{Meta, Packet};
use crate::parse::{self, Transport};
use crate::pipeline::keys::is_guarded;
use crate::wire::protocol;

impl Walk<'_> {
    /// Remember a transit packet to a server's endpoint; refuse one that the server could not tell from a flow of
    /// ours.
    pub(super) fn note_direct(&mut self, packet: &Packet) -> Stage<()> {
        let Some((key, transport)) = self.direct_key(packet) else {
            return Continue(());
        };
        if let Some(number) = self.state.table.find(&key) {
            // Any other segment may be forged: a flow that is over would lose its last segments.
            let opens = transport.segment.is_none_or(|segment| segment.is_opening());
            let closing = is_over(self.forwarding, self.state.table.entry(number));
            let dead = self.death(number);
            let event = dead.or_else(|| (closing && opens).then_some(Event::FlowReused));
            forget(
                self.state,
                number,
                Some(event.or_drop(Reason::FlowConflict)?),
            );
        }
        // Its answers may come to another balancer, which takes them for those of a service.
        if self.forwarding.any_replies {
            return Continue(());
        }
        let timeouts = &self.forwarding.snapshot.timeouts;
        let segment = transport.segment.as_ref();
        let guarded = is_guarded(self.forwarding, &key);
        let direct = &mut self.state.direct;
        if direct.ask(&key, segment, guarded, timeouts, self.now) {
            self.state.counters.event(Event::DirectEvicted);
        }
        Continue(())
    }

    /// Whether a server's packet of no flow answers a client that spoke to it directly.
    pub(super) fn answers_directly(&mut self, meta: &Meta) -> bool {
        let Some(key) = flow_key(meta) else {
            return false;
        };
        let timeouts = &self.forwarding.snapshot.timeouts;
        let segment = meta.transport.segment.as_ref();
        let guarded = is_guarded(self.forwarding, &key);
        let direct = &mut self.state.direct;
        direct.answer(&key, segment, guarded, timeouts, self.now)
    }

    /// What the answers to a transit packet will be found by: TCP or UDP to a server's endpoint, whole or a first
    /// fragment.
    fn direct_key(&self, packet: &Packet) -> Option<(Key, Transport)> {
        let ip = &packet.meta.ip;
        let place = self.forwarding.local_address(ip.v4, ip.destination);
        place?.role.server?;
        if !matches!(ip.protocol, protocol::TCP | protocol::UDP) {
            return None;
        }
        let mut transport = Transport::EMPTY;
        let partial = packet.meta.offload.is_partial();
        let is_read = parse::transport(packet.frame, ip, partial, &mut transport);
        let listener = self
            .forwarding
            .socket_role(place, transport.destination_port, ip.protocol);
        let key = Key {
            client: ip.source,
            client_port: transport.source_port,
            side: KeySide::Endpoint(listener.endpoint?),
        };
        (is_read == Ok(true)).then_some((key, transport))
    }
}
