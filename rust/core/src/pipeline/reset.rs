//! Resetting the flows of a server: rule 15, resetting flows. No packet asks for it: the control side does, when a
//! server is down or is cut off.

use super::evict::{forget, is_expired};
use super::walk::Walk;
use crate::base::SeqNumber;
use crate::base::{Direction, Event, Ip, Offload, Output};
use crate::flow::state::FlowState;
use crate::flow::table::Flow;
use crate::next_hop::Hop;
use crate::reply::reset_packet;
use crate::wire::ethernet::{self, ethertype};
use crate::wire::tcp::flag;

/// An address and a port.
type Socket = (Ip, u16);

impl Walk<'_> {
    /// Remove a flow if it lives and is one of this server, None: of any, and append the resets for its ends. Says
    /// whether it did.
    pub(crate) fn reset_flow(&mut self, server: Option<u32>, number: u32) -> bool {
        let entry = self.state.table.entry(number);
        let is_one = server.is_none_or(|id| id == entry.server())
            && self.forwarding.server(entry.server()).is_some();
        if !is_one || is_expired(self.forwarding, entry, self.now) {
            return false;
        }
        let is_silent = entry.state().is_udp() || entry.state() == FlowState::Closing;
        if !is_silent && !entry.is_tagged() {
            self.reset_ends(number);
        }
        forget(self.state, number, Some(Event::FlowReset));
        true
    }

    /// Append the resets of one flow: to its client, then to its server.
    fn reset_ends(&mut self, number: u32) {
        let entry = self.state.table.entry(number).load();
        let flow = self.state.table.flow(number);
        let (to_client, to_server) = (
            Numbers::of(&flow, Direction::Reply),
            Numbers::of(&flow, Direction::Forward),
        );
        let forwarding = self.forwarding;
        let (Some(service), Some(facts)) = (
            forwarding.service(entry.service),
            forwarding.server(entry.server),
        ) else {
            return;
        };
        let Some(Some(real)) = forwarding.snapshot.servers.get(entry.server as usize) else {
            return;
        };
        let client = (entry.client(), entry.client_port);
        let vip = (Ip::from(service.address), service.port);
        if let Some(hop) = self.reply_next_hop(client.0, Some(entry.ingress())) {
            let numbers = to_client.sequences(Some(SeqNumber::ZERO));
            self.reset(&hop, vip, client, numbers, to_client.acknowledgement);
        }
        if let Some(hop) = facts.hop {
            let numbers = to_server.sequences(None);
            let real = (facts.address, real.port);
            self.reset(&hop, client, real, numbers, to_server.acknowledgement);
        }
    }

    /// Append a reset for each sequence number; none to a hop that is not resolved.
    fn reset(
        &mut self,
        hop: &Hop,
        from: Socket,
        to: Socket,
        numbers: [Option<SeqNumber>; 2],
        acknowledgement: Option<SeqNumber>,
    ) {
        let (Some(mac), Some(port)) = (hop.mac, self.forwarding.interface(hop.interface)) else {
            return;
        };
        let kind = if from.0.is_v4() {
            ethertype::IPV4
        } else {
            ethertype::IPV6
        };
        let acknowledged = acknowledgement.map_or((flag::RST, SeqNumber::ZERO), |number| {
            (flag::RST | flag::ACK, number)
        });
        for sequence in numbers.into_iter().flatten() {
            let mut frame = ethernet::header(mac.into(), port.mac, kind).to_vec();
            frame.extend_from_slice(&reset_packet(from, to, sequence, acknowledged));
            self.extra.push(Output {
                interface: hop.interface,
                frame,
                offload: Offload::default(),
            });
        }
    }
}

/// What a reset in one direction has to say.
struct Numbers {
    /// What its side sends next, as far as is known.
    snd_nxt: Option<SeqNumber>,
    /// What the other side has acknowledged.
    acknowledged: Option<SeqNumber>,
    /// What it acknowledges itself.
    acknowledgement: Option<SeqNumber>,
}

impl Numbers {
    fn of(flow: &Flow, direction: Direction) -> Self {
        let other = direction.other();
        Self {
            snd_nxt: flow.latest_snd_nxt(direction),
            acknowledged: flow.rcv_nxt(other),
            acknowledgement: flow.latest_snd_nxt(other).or(flow.rcv_nxt(direction)),
        }
    }

    /// The sequence numbers that the receiving end may expect. `unknown`: when there is none.
    fn sequences(&self, unknown: Option<SeqNumber>) -> [Option<SeqNumber>; 2] {
        let second = self
            .acknowledged
            .filter(|&number| Some(number) != self.snd_nxt);
        if self.snd_nxt.is_none() && second.is_none() {
            return [unknown, None];
        }
        [self.snd_nxt, second]
    }
}
