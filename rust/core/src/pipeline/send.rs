//! Sending: TTL, next hop, MTU, the answers when one of them fails, and the rewrite itself: rule 11, next hop, and
//! rule 12, sending.
//!
//! Translation changes no length, so the next hop is tested first and the packet rewritten last: what an ICMP error
//! quotes is still the packet that came.

use crate::base::Ip;
use std::ops::ControlFlow::{Break, Continue};

use super::walk::{Departure, OrDrop, Stage, Walk};
use crate::base::{
    Direction, IngressNeighbour, InterfaceId, Offload, Output, Reason, Verdict, gso,
};
use crate::forwarding::ServerFacts;
use crate::next_hop::{Hop, Room};
use crate::packet::{Meta, Packet};
use crate::parse::IpHeader;
use crate::rewrite::rewrite_icmp_error;
use crate::rewrite::{AddressField, L4Checksum, Translation, rewrite_ip, rewrite_transport};
use crate::wire::icmp::message;
use crate::wire::tcp::{self};
use crate::wire::{checksum, ethernet, ipv4, protocol, udp};
use crate::{fragment, limit};

/// How a packet fits its way.
#[derive(Clone, Copy)]
enum Fit {
    /// In one frame; the bytes of data per segment of a GSO frame.
    Whole(u16),
    /// In fragments of at most that many bytes.
    Cut(usize),
}

impl Walk<'_> {
    /// Rule 11.1, TTL.
    #[inline(always)]
    pub(super) fn check_ttl(&mut self, packet: &Packet) -> Stage<()> {
        if packet.meta.ip.ttl > 1 {
            return Continue(());
        }
        let kind = if packet.meta.ip.v4 {
            message::TIME_EXCEEDED_V4
        } else {
            message::TIME_EXCEEDED_V6
        };
        Break(self.send_icmp_error(packet, Reason::TtlExceeded, kind, 0))
    }

    /// Send a packet of no flow on.
    pub(super) fn send_transit(&mut self, packet: &mut Packet) -> Stage<Departure> {
        let hop = self
            .forwarding
            .route(packet.meta.ip.destination)
            .or_drop(Reason::NoRoute)?;
        let fit = self.fit(packet, &hop)?;
        let v4 = packet.meta.ip.v4;
        rewrite_ip(packet.ip_bytes_mut(), v4, None);
        self.transmit(packet, &hop, fit)
    }

    /// Send a packet of a flow to its other end: rule 11.2, choosing the hop. `ingress`: where the client's packets
    /// came from, if that is known.
    #[inline(always)]
    pub(super) fn send_translated(
        &mut self,
        packet: &mut Packet,
        direction: Direction,
        facts: &ServerFacts,
        ingress: Option<IngressNeighbour>,
    ) -> Stage<Departure> {
        if direction == Direction::Forward {
            return match &facts.hop {
                Some(hop) if hop.mac.is_some() => self.send_by(packet, hop, &facts.forward),
                Some(hop) => self.send_unresolved(packet, hop, &facts.forward),
                None => Break(self.no_route(packet)),
            };
        }
        match self.ingress_hop(packet.meta.ip.destination, ingress) {
            Some(hop) => self.send_by(packet, &hop, &facts.reply),
            None => self.send_back_by_route(packet, &facts.reply),
        }
    }

    /// A server's packet to a client of which no packet has come, or by an interface that is gone.
    #[cold]
    #[inline(never)]
    fn send_back_by_route(
        &mut self,
        packet: &mut Packet,
        translation: &Translation,
    ) -> Stage<Departure> {
        let hop = self
            .reply_next_hop(packet.meta.ip.destination, None)
            .or_drop(Reason::NoRoute)?;
        self.send_by(packet, &hop, translation)
    }

    /// A client's packet whose server's neighbour is not known waits for it, if it may; its sender is told when
    /// that is in vain: rule 11.3, unresolved neighbours, and rule 11.4, unreachable servers.
    #[cold]
    #[inline(never)]
    fn send_unresolved(
        &mut self,
        packet: &mut Packet,
        hop: &Hop,
        translation: &Translation,
    ) -> Stage<Departure> {
        let room = self.state.waiting.room(hop);
        let kind = if packet.meta.ip.v4 {
            message::HOST_UNREACHABLE_V4
        } else {
            message::ADDRESS_UNREACHABLE_V6
        };
        // Made now, since it quotes the packet as it came, and sending rewrites that.
        let vip = packet.meta.ip.destination;
        let notice = (room != Room::Full).then(|| self.icmp_error(packet, vip, kind, 0));
        let result = self.send_by(packet, hop, translation);
        match (result, notice.flatten()) {
            (Break(Verdict::Hold(Reason::Neighbour)), notice) => {
                self.state.waiting.set_notice(hop, notice);
                result
            }
            (Break(Verdict::Drop(reason @ Reason::NeighbourUnresolved)), Some(notice)) => {
                if !self.take_token(limit::AnswerKind::Unreachable) {
                    return Break(Reason::RateLimited.into());
                }
                self.extra.push(notice);
                Break(Verdict::Reply(reason))
            }
            _ => result,
        }
    }

    /// Rewrite a packet and send it by its hop.
    #[inline(always)]
    fn send_by(
        &mut self,
        packet: &mut Packet,
        hop: &Hop,
        translation: &Translation,
    ) -> Stage<Departure> {
        let fit = self.fit(packet, hop)?;
        let ip = &packet.meta.ip;
        // Both headers were read, so they are there: where the packet ends is of no interest here.
        if let Some(header) = packet.frame.get_mut(ip.l3..) {
            rewrite_ip(header, ip.v4, Some(translation));
        }
        if !ip.is_later_fragment() {
            let checksum = if packet.meta.offload.is_partial() {
                L4Checksum::Partial
            } else {
                L4Checksum::Whole
            };
            if let Some(header) = packet.frame.get_mut(ip.l4..) {
                rewrite_transport(header, ip.protocol, checksum, translation);
            }
        }
        self.transmit(packet, hop, fit)
    }

    /// To the client as its packets came, else by route.
    pub(super) fn reply_next_hop(
        &self,
        client: Ip,
        ingress: Option<IngressNeighbour>,
    ) -> Option<Hop> {
        let hop = self.ingress_hop(client, ingress);
        hop.or_else(|| self.forwarding.route(client))
    }

    /// To the client as its packets came.
    #[inline(always)]
    fn ingress_hop(&self, client: Ip, ingress: Option<IngressNeighbour>) -> Option<Hop> {
        // Where any balancer translates any reply, all go by route: what a client has sent to us tells little.
        let ingress = ingress.filter(|_| !self.forwarding.any_replies)?;
        let port = self.forwarding.interface(ingress.interface())?;
        Some(Hop {
            interface: ingress.interface(),
            address: client,
            mac: Some(ingress.mac()),
            from: port.mac.into(),
            mtu: port.mtu,
        })
    }

    /// Send an ICMP error about a flow to the end that caused it.
    #[inline(never)]
    pub(super) fn forward_icmp_error(
        &mut self,
        packet: &mut Packet,
        inner: &IpHeader,
        direction: Direction,
        server: u32,
        ingress: Option<IngressNeighbour>,
    ) -> Stage<Departure> {
        let forwarding = self.forwarding;
        let facts = forwarding.server(server).or_drop(Reason::NoServer)?;
        let (hop, translation) = if direction == Direction::Forward {
            (facts.hop.or_drop(Reason::NoRoute)?, &facts.forward)
        } else {
            let client = packet.meta.ip.destination;
            (
                self.reply_next_hop(client, ingress)
                    .or_drop(Reason::NoRoute)?,
                &facts.reply,
            )
        };
        let fit = self.fit(packet, &hop)?;
        let source = packet.meta.ip.source;
        let outer = if direction == Direction::Forward || facts.address == source {
            *translation
        } else {
            // A router behind us made it: nothing of our inside is told (RFC 5508 REQ-5c).
            Translation::new(AddressField::Source, (source, 0), (translation.address, 0))
        };
        rewrite_icmp_error(packet, inner, translation, &outer);
        self.transmit(packet, &hop, fit)
    }

    /// Rule 12.1, tagged frames, and rule 12.2, frames over the MTU: may it leave there, and in one piece?
    #[inline(always)]
    fn fit(&mut self, packet: &Packet, hop: &Hop) -> Stage<Fit> {
        if packet.is_tagged() && hop.interface != packet.meta.interface {
            return Break(Reason::Vlan.into());
        }
        let offload = &packet.meta.offload;
        if offload.gso().is_none() && packet.meta.ip.total_len() <= hop.mtu as usize {
            return Continue(Fit::Whole(offload.gso_size));
        }
        self.fit_large(packet, hop)
    }

    /// The same for what is to be cut, by us or by the network card.
    fn fit_large(&mut self, packet: &Packet, hop: &Hop) -> Stage<Fit> {
        let Meta {
            ip,
            offload,
            payload,
            ..
        } = packet.meta;
        let gso_size = offload.gso_size;
        let mtu = hop.mtu as usize;
        let header_len = payload - ip.l3;
        let len = match offload.gso() {
            Some(_) => header_len + usize::from(gso_size),
            None => ip.total_len(),
        };
        if len <= mtu {
            return Continue(Fit::Whole(gso_size));
        }
        if !ip.v4 || dont_fragment(packet) || offload.gso() == Some(gso::UDP_L4) {
            return Break(self.too_big(packet, hop.mtu));
        }
        if offload.gso().is_some() {
            let room = mtu
                .checked_sub(header_len)
                .filter(|&room| room > 0)
                .or_drop(Reason::TooBig)?;
            return Continue(Fit::Whole(room as u16));
        }
        if mtu < ipv4_header_len(packet) + 8 {
            return Break(Reason::TooBig.into());
        }
        Continue(Fit::Cut(mtu))
    }

    /// Hand the rewritten packet to its hop, or let it wait for the hop's address.
    #[inline(always)]
    fn transmit(&mut self, packet: &mut Packet, hop: &Hop, fit: Fit) -> Stage<Departure> {
        if let Some(mut header) = ethernet::Frame::new_mut(packet.frame) {
            header.set_numbers(hop.mac.unwrap_or_default(), hop.from);
        }
        let interface = hop.interface;
        let departure = match fit {
            Fit::Whole(gso_size) => Departure::Whole {
                interface,
                gso_size,
            },
            Fit::Cut(_) => Departure::Pieces,
        };
        if hop.mac.is_none() {
            return Break(self.wait(packet, hop, fit, departure));
        }
        if let Fit::Cut(mtu) = fit {
            self.extra.extend(pieces(packet, interface, mtu));
        }
        Continue(departure)
    }

    /// The hop's address is not known: the packet waits for it.
    #[cold]
    fn wait(&mut self, packet: &mut Packet, hop: &Hop, fit: Fit, departure: Departure) -> Verdict {
        let frames = match (fit, departure.sent(packet.meta)) {
            (Fit::Cut(mtu), _) => pieces(packet, hop.interface, mtu),
            (_, sent) => sent
                .into_iter()
                .map(|sent| Output {
                    interface: sent.interface,
                    frame: packet.frame[..sent.len].to_vec(),
                    offload: sent.offload,
                })
                .collect(),
        };
        if self.state.waiting.hold(hop, frames, self.now) {
            Verdict::Hold(Reason::Neighbour)
        } else {
            Reason::NeighbourUnresolved.into()
        }
    }
}

fn dont_fragment(packet: &Packet) -> bool {
    ipv4::Header::new(packet.ip_bytes())
        .is_some_and(|header| header.flags_offset() & ipv4::DONT_FRAGMENT != 0)
}

fn ipv4_header_len(packet: &Packet) -> usize {
    ipv4::Header::new(packet.ip_bytes()).map_or(ipv4::LEN, |header| header.header_len())
}

/// The frames of a packet that must be cut. A checksum left to the network card is finished first: it covers the
/// whole.
fn pieces(packet: &mut Packet, interface: InterfaceId, mtu: usize) -> Vec<Output> {
    if packet.meta.offload.is_partial() {
        finish_checksum(packet);
    }
    let l2 = &packet.frame[..packet.meta.ip.l3];
    let cut = fragment::cut(packet.ip_bytes(), mtu).into_iter();
    cut.map(|piece| Output {
        interface,
        frame: [l2, &piece].concat(),
        offload: Offload::default(),
    })
    .collect()
}

fn finish_checksum(packet: &mut Packet) {
    let is_udp = packet.meta.ip.protocol == protocol::UDP;
    let at = if is_udp {
        udp::CHECKSUM_AT
    } else {
        tcp::CHECKSUM_AT
    };
    let bytes = packet.l4_bytes_mut();
    // The field holds the pseudo-header sum, so the sum over all bytes is the whole sum.
    let sum = checksum::checksum(bytes);
    let sum = if is_udp && sum == 0 { 0xffff } else { sum };
    if let Some(field) = bytes.get_mut(at..at + 2) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
}
