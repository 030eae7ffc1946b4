//! The stages in order: `rx -> parse -> classify -> flow lookup -> (miss: plan -> server) -> rewrite -> next hop -> tx`.
//!
//! [`Walk::run`] and [`Walk::deliver`] read as the list of early exits that they are; each stage is a file of this folder. A stage gives a way to go on, or
//! the packet's verdict as an error: there is no third outcome. `docs/datapath.md` numbers the rules.

mod expire;
mod flows;
mod fragments;
mod icmp;
mod ip;
mod link;
mod send;

pub(crate) use expire::{expire, release};
pub(crate) use flows::is_expired;

use crate::datapath::{Offload, Outcome, Output, Sent, State};
use crate::flow::Key;
use crate::packet::{Meta, Packet, gso};
use crate::parse::{self, Ip, Transport};
use crate::verdict::{Direction, Reason, Verdict};
use crate::wire::{icmp as wire_icmp, protocol, tcp, udp};
use crate::world::World;

/// What a stage gives: something to go on with, or the packet's verdict.
pub(crate) type Stage<T> = Result<T, Verdict>;

/// What a forwarded packet leaves behind: itself, rewritten in place; or nothing, when it left in pieces.
pub(crate) type Departure = Option<Sent>;

impl From<Reason> for Verdict {
    /// A reason by itself is that of a drop.
    fn from(reason: Reason) -> Self {
        Verdict::Drop(reason)
    }
}

/// The flow a packet was matched to, as far as it is known: the outcome tells it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Found {
    pub direction: Option<Direction>,
    pub service: Option<u32>,
    pub server: Option<u32>,
    /// Finds the flow again, for later fragments.
    pub reply_key: Option<Key>,
}

/// One packet's walk: what it may read, what it may change, where frames of our own go, and the time.
pub(crate) struct Walk<'a> {
    pub world: &'a World,
    pub state: &'a mut State,
    pub extra: &'a mut Vec<Output>,
    pub now: u64,
    pub found: Found,
}

/// Process one frame: rule 1.
pub(crate) fn process(
    walk: &mut Walk,
    frame: &mut [u8],
    interface: u32,
    offload: Offload,
) -> Outcome {
    walk.state.counters.received(frame.len());
    expire(walk.world, walk.state, walk.now);
    let already_there = walk.extra.len();
    let (verdict, sent) = match walk.run(frame, interface, offload) {
        Ok(departure) => (Verdict::Forward, departure),
        Err(verdict) => (verdict, None),
    };
    walk.state.counters.verdict(verdict);
    for bytes in sent.iter().map(|sent| sent.len).chain(
        walk.extra[already_there..]
            .iter()
            .map(|out| out.frame.len()),
    ) {
        walk.state.counters.sent(bytes);
    }
    let Found {
        direction,
        service,
        server,
        ..
    } = walk.found;
    Outcome {
        verdict,
        direction,
        service,
        server,
        sent,
    }
}

impl Walk<'_> {
    /// From the wire to the L4 header: rules 3 to 6.
    fn run(&mut self, frame: &mut [u8], interface: u32, offload: Offload) -> Stage<Departure> {
        let arrival = self.accept_frame(frame, interface)?;
        let Some(mut ip) = parse::ip(frame, arrival.link)? else {
            return Err(self.not_ip(frame, interface, arrival.link));
        };
        self.neighbour_solicitation(frame, interface, arrival.link, &ip)?;
        self.check_addresses(interface, &ip, arrival.to_group)?;
        parse::inner_headers(frame, &mut ip)?;
        let meta = Meta {
            interface,
            offload: offload.onward(),
            last_hop: arrival.source,
            to_group: arrival.to_group,
            link: arrival.link,
            ip,
            payload: ip.l4,
        };
        let mut packet = Packet { frame, meta };
        if ip.fragment.is_some() {
            self.fragment(&mut packet)
        } else {
            self.deliver(&mut packet)
        }
    }

    /// From the L4 header on, for whole packets and first fragments: rules 7 to 12.
    fn deliver(&mut self, packet: &mut Packet) -> Stage<Departure> {
        let Meta { ip, offload, .. } = packet.meta;
        let transport = parse::transport(packet.frame, &ip, offload.is_partial())?;
        let is_icmp = ip.protocol == wire_icmp::protocol_of(ip.v4);
        if is_icmp && packet.l4_bytes().len() < wire_icmp::LEN {
            return Err(Reason::L4Truncated.into());
        }
        check_offload(packet, transport.as_ref())?;
        let to_vip = self.world.role(ip.v4, ip.destination).vip;
        if let Some(transport) = transport {
            packet.meta.payload = transport.payload;
            return self.deliver_transport(packet, &transport, to_vip);
        }
        if is_icmp {
            return self.icmp(packet, to_vip);
        }
        if to_vip {
            Err(Reason::L4Protocol.into())
        } else {
            self.transit(packet)
        }
    }

    /// TCP and UDP, by destination, then by source: rule 7, A, B and D.
    fn deliver_transport(
        &mut self,
        packet: &mut Packet,
        transport: &Transport,
        to_vip: bool,
    ) -> Stage<Departure> {
        let Ip {
            v4,
            source,
            destination,
            protocol,
            ..
        } = packet.meta.ip;
        if to_vip {
            let listener =
                self.world
                    .listener(v4, destination, transport.destination_port, protocol);
            let service = listener.service.ok_or(Reason::NoService)?;
            return self.forward(packet, transport, service);
        }
        match self
            .world
            .listener(v4, source, transport.source_port, protocol)
            .endpoint
        {
            Some(endpoint) => self.reply(packet, transport, endpoint),
            None => self.transit(packet),
        }
    }

    /// Packets of no service: rule 9.
    fn transit(&mut self, packet: &mut Packet) -> Stage<Departure> {
        if !self.world.snapshot.forward_transit {
            return Err(Reason::Transit.into());
        }
        self.check_ttl(packet)?;
        self.send_transit(packet)
    }
}

/// Whether the work left to the network card is what such a packet can have: rule 7.
fn check_offload(packet: &Packet, transport: Option<&Transport>) -> Stage<()> {
    let Meta { ip, offload, .. } = packet.meta;
    if !offload.is_partial() && offload.gso().is_none() {
        return Ok(());
    }
    if transport.is_none() {
        return Err(Reason::BadOffload.into());
    }
    let checksum_at = if ip.protocol == protocol::TCP {
        tcp::CHECKSUM_AT
    } else {
        udp::CHECKSUM_AT
    };
    let places = (
        usize::from(offload.csum_start),
        usize::from(offload.csum_offset),
    );
    if offload.is_partial() && places != (ip.l4, checksum_at) {
        return Err(Reason::BadOffload.into());
    }
    let fits = match offload.gso() {
        None => true,
        Some(gso::TCP_V4) => ip.v4 && ip.protocol == protocol::TCP,
        Some(gso::TCP_V6) => !ip.v4 && ip.protocol == protocol::TCP,
        Some(gso::UDP_L4) => ip.protocol == protocol::UDP,
        Some(_) => false,
    };
    if fits && (offload.gso().is_none() || offload.gso_size > 0) {
        Ok(())
    } else {
        Err(Reason::BadOffload.into())
    }
}
