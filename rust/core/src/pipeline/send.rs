//! The way out: TTL, next hop, MTU, the answers when one of them fails, and the rewrite itself: rules 11 and 12.
//!
//! Translation changes no length, so the way out is tested first and the packet rewritten last: what an ICMP error quotes is still the packet that came.

use super::icmp::rewrite_error;
use super::{Departure, Stage, Walk};
use crate::base::{Direction, LastHop, Offload, Output, Reason, Verdict, gso};
use crate::next_hop::{Hop, Room};
use crate::packet::{Meta, Packet};
use crate::parse::{Ip, Transport};
use crate::rewrite::{End, L4Checksum, Translation, rewrite_ip, rewrite_transport};
use crate::wire::icmp::{self, Kind, message};
use crate::wire::tcp::{self, flag};
use crate::wire::{checksum, ethernet, ipv4, protocol, udp};
use crate::world::ServerFacts;
use crate::{fragment, limit, reply};

/// How a packet fits its way.
#[derive(Clone, Copy)]
enum Fit {
    /// In one frame; a GSO frame with so many bytes of data per segment.
    Whole(u16),
    /// In fragments of at most that many bytes.
    Cut(usize),
}

impl Walk<'_> {
    /// Rule 11.1.
    #[inline(always)]
    pub(super) fn check_ttl(&mut self, packet: &Packet) -> Stage<()> {
        if packet.meta.ip.ttl > 1 {
            return Ok(());
        }
        let kind = if packet.meta.ip.v4 {
            message::TIME_EXCEEDED_V4
        } else {
            message::TIME_EXCEEDED_V6
        };
        Err(self.complain(packet, Reason::TtlExceeded, kind, 0))
    }

    /// Send a packet of no flow on.
    pub(super) fn send_transit(&mut self, packet: &mut Packet) -> Stage<Departure> {
        let hop = self
            .world
            .route(packet.meta.ip.destination)
            .ok_or(Reason::NoRoute)?;
        let fit = self.fit(packet, &hop)?;
        let v4 = packet.meta.ip.v4;
        rewrite_ip(packet.ip_bytes_mut(), v4, None);
        self.transmit(packet, &hop, fit)
    }

    /// Send a packet of a flow to its other end: rule 11.2. `last_hop`: where the client's packets came from, if that is known.
    #[inline(always)]
    pub(super) fn send_translated(
        &mut self,
        packet: &mut Packet,
        direction: Direction,
        facts: &ServerFacts,
        last_hop: Option<LastHop>,
    ) -> Stage<Departure> {
        if direction == Direction::Forward {
            return match &facts.hop {
                Some(hop) if hop.mac.is_some() => self.send_by(packet, hop, &facts.forward),
                Some(hop) => self.send_unresolved(packet, hop, &facts.forward),
                None => Err(self.no_route(packet)),
            };
        }
        match self.hop_back(packet.meta.ip.destination, last_hop) {
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
        let hop = self.way_back(packet.meta.ip.destination, None)?;
        self.send_by(packet, &hop, translation)
    }

    /// A client's packet whose server's neighbour is not known waits for it, if it may; its sender is told when that is in vain: rule 11.3 and 11.4.
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
            (Err(Verdict::Hold(Reason::Neighbour)), notice) => {
                self.state.waiting.set_notice(hop, notice);
                result
            }
            (Err(Verdict::Drop(reason @ Reason::NeighbourUnresolved)), Some(notice)) => {
                if !self.take_token(limit::Kind::Unreachable) {
                    return Err(Reason::RateLimited.into());
                }
                self.extra.push(notice);
                Err(Verdict::Reply(reason))
            }
            _ => result,
        }
    }

    /// There is no route to a client's server: rule 11.4.
    #[cold]
    fn no_route(&mut self, packet: &Packet) -> Verdict {
        let kind = if packet.meta.ip.v4 {
            message::HOST_UNREACHABLE_V4
        } else {
            message::NO_ROUTE_V6
        };
        let vip = packet.meta.ip.destination;
        self.error_from(packet, vip, Reason::NoRoute, kind, 0)
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
    pub(super) fn way_back(&self, client: u128, last_hop: Option<LastHop>) -> Stage<Hop> {
        let hop = self.hop_back(client, last_hop);
        Ok(hop
            .or_else(|| self.world.route(client))
            .ok_or(Reason::NoRoute)?)
    }

    /// To the client as its packets came.
    #[inline(always)]
    fn hop_back(&self, client: u128, last_hop: Option<LastHop>) -> Option<Hop> {
        let last_hop = last_hop?;
        let port = self.world.port(last_hop.interface())?;
        Some(Hop {
            interface: last_hop.interface(),
            address: client,
            mac: Some(last_hop.mac()),
            from: port.mac.into(),
            mtu: port.mtu,
        })
    }

    /// Send an ICMP error about a flow to the end that caused it.
    #[inline(never)]
    pub(super) fn send_error(
        &mut self,
        packet: &mut Packet,
        quoted: &Ip,
        direction: Direction,
        server: u32,
        last_hop: Option<LastHop>,
    ) -> Stage<Departure> {
        let world = self.world;
        let facts = world.server(server).ok_or(Reason::NoServer)?;
        let (hop, translation) = if direction == Direction::Forward {
            (facts.hop.ok_or(Reason::NoRoute)?, &facts.forward)
        } else {
            let client = packet.meta.ip.destination;
            (self.way_back(client, last_hop)?, &facts.reply)
        };
        let fit = self.fit(packet, &hop)?;
        let source = packet.meta.ip.source;
        let outer = if direction == Direction::Forward || facts.address == source {
            *translation
        } else {
            // A router behind us made it: nothing of our inside is told (RFC 5508 REQ-5c).
            Translation::new(End::Source, (source, 0), (translation.address, 0))
        };
        rewrite_error(packet, quoted, translation, &outer);
        self.transmit(packet, &hop, fit)
    }

    /// Rule 12.1 and 12.2: may it leave there, and in one piece?
    #[inline(always)]
    fn fit(&mut self, packet: &Packet, hop: &Hop) -> Stage<Fit> {
        if packet.is_tagged() && hop.interface != packet.meta.interface {
            return Err(Reason::Vlan.into());
        }
        let offload = &packet.meta.offload;
        if offload.gso().is_none() && packet.meta.ip.total_len() <= hop.mtu as usize {
            return Ok(Fit::Whole(offload.gso_size));
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
            return Ok(Fit::Whole(gso_size));
        }
        if !ip.v4 || dont_fragment(packet) || offload.gso() == Some(gso::UDP_L4) {
            return Err(self.too_big(packet, hop.mtu));
        }
        if offload.gso().is_some() {
            let room = mtu
                .checked_sub(header_len)
                .filter(|&room| room > 0)
                .ok_or(Reason::TooBig)?;
            return Ok(Fit::Whole(room as u16));
        }
        if mtu < ipv4_header_len(packet) + 8 {
            return Err(Reason::TooBig.into());
        }
        Ok(Fit::Cut(mtu))
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
            return Err(self.wait(packet, hop, fit, departure));
        }
        if let Fit::Cut(mtu) = fit {
            self.extra.extend(pieces(packet, interface, mtu));
        }
        Ok(departure)
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

    #[cold]
    fn too_big(&mut self, packet: &Packet, mtu: u32) -> Verdict {
        if packet.meta.ip.v4 {
            let rest = mtu & 0xffff;
            return self.complain(
                packet,
                Reason::TooBig,
                message::FRAGMENTATION_NEEDED_V4,
                rest,
            );
        }
        self.complain(packet, Reason::TooBig, message::PACKET_TOO_BIG_V6, mtu)
    }

    /// Answer with an ICMP error from our own address; where none may be sent the packet is dropped for the same reason.
    #[cold]
    fn complain(&mut self, packet: &Packet, reason: Reason, kind: (u8, u8), rest: u32) -> Verdict {
        let Ip {
            v4, destination, ..
        } = packet.meta.ip;
        let vip = self.world.role(v4, destination).vip.then_some(destination);
        match self.world.own_address(packet.meta.interface, v4).or(vip) {
            Some(own) => self.error_from(packet, own, reason, kind, rest),
            None => reason.into(),
        }
    }

    /// Answer with an ICMP error from `own`, if one may be sent.
    fn error_from(
        &mut self,
        packet: &Packet,
        own: u128,
        reason: Reason,
        kind: (u8, u8),
        rest: u32,
    ) -> Verdict {
        let bucket = match reason {
            Reason::TtlExceeded => limit::Kind::TimeExceeded,
            Reason::TooBig => limit::Kind::TooBig,
            _ => limit::Kind::Unreachable,
        };
        if !self.may_answer(packet) {
            return reason.into();
        }
        if !self.take_token(bucket) {
            return Reason::RateLimited.into();
        }
        let answer = self.icmp_error(packet, own, kind, rest);
        self.extra.extend(answer);
        Verdict::Reply(reason)
    }

    /// An ICMP error from `own` about a packet; `None` where none may be sent. Takes no token.
    fn icmp_error(&self, packet: &Packet, own: u128, kind: (u8, u8), rest: u32) -> Option<Output> {
        let Meta {
            interface,
            link,
            ip,
            ..
        } = *packet.meta;
        let port = self
            .world
            .port(interface)
            .filter(|_| self.may_answer(packet))?;
        let frame = reply::icmp_error(
            packet.frame,
            link,
            port.mac,
            (own, ip.source),
            (kind, rest),
            packet.ip_bytes(),
        );
        Some(Output {
            interface,
            frame,
            offload: Offload::default(),
        })
    }

    /// Whether a packet may be answered by an error at all (RFC 1812 4.3.2.7, RFC 4443 2.4 e).
    fn may_answer(&self, packet: &Packet) -> bool {
        let Meta {
            interface,
            ip,
            to_group,
            ..
        } = *packet.meta;
        let is_known = self.world.port(interface).is_some();
        is_known && !to_group && !ip.is_later_fragment() && !is_icmp_error(packet)
    }

    /// No server: a reset, or port unreachable, from the VIP.
    pub(super) fn refuse(&mut self, packet: &Packet, transport: &Transport) -> Verdict {
        if transport.segment.is_some() {
            return self.answer_reset(packet, transport, Reason::NoServer, limit::Kind::Reset);
        }
        let kind = if packet.meta.ip.v4 {
            message::PORT_UNREACHABLE_V4
        } else {
            message::PORT_UNREACHABLE_V6
        };
        let vip = packet.meta.ip.destination;
        self.error_from(packet, vip, Reason::NoServer, kind, 0)
    }

    /// A client's new flow could not be placed, for the reason of `verdict`: a reset if `on_no_server` says so, else ICMP "administratively prohibited", from
    /// the VIP (rule 8, *Refused*). Any other verdict stays.
    #[cold]
    pub(super) fn refuse_newcomer(
        &mut self,
        packet: &Packet,
        transport: &Transport,
        service: u32,
        verdict: Verdict,
    ) -> Verdict {
        let Verdict::Drop(reason @ (Reason::Hairpin | Reason::FlowConflict | Reason::TableFull)) =
            verdict
        else {
            return verdict;
        };
        let service = self.world.service(service);
        let resets = service.is_some_and(|service| service.reset_without_server);
        if resets && transport.segment.is_some() {
            return self.answer_reset(packet, transport, reason, limit::Kind::Reset);
        }
        let kind = if packet.meta.ip.v4 {
            message::PROHIBITED_V4
        } else {
            message::PROHIBITED_V6
        };
        let vip = packet.meta.ip.destination;
        self.error_from(packet, vip, reason, kind, 0)
    }

    /// Answer a TCP segment with a reset that its sender believes (RFC 9293 3.10.7.1), from the address it was for; drop for the same reason what is no TCP
    /// or a reset itself. `kind`: whose token it takes.
    pub(super) fn answer_reset(
        &mut self,
        packet: &Packet,
        transport: &Transport,
        reason: Reason,
        kind: limit::Kind,
    ) -> Verdict {
        let Meta {
            interface,
            link,
            ip,
            ..
        } = *packet.meta;
        let segment = transport.segment.filter(|one| !one.has(flag::RST));
        let Some((segment, port)) = segment.zip(self.world.port(interface)) else {
            return reason.into();
        };
        if !self.take_token(kind) {
            return Reason::RateLimited.into();
        }
        let from = (ip.destination, transport.destination_port);
        let to = (ip.source, transport.source_port);
        let frame = reply::reset(packet.frame, link, port.mac, from, to, &segment);
        self.answer(interface, frame);
        Verdict::Reply(reason)
    }

    /// One packet of our own, if the rate of its kind allows it.
    pub(super) fn take_token(&mut self, kind: limit::Kind) -> bool {
        self.state
            .limiter
            .take(kind, self.world.snapshot.icmp_rate, self.now)
    }
}

fn dont_fragment(packet: &Packet) -> bool {
    ipv4::Header::new(packet.ip_bytes())
        .is_some_and(|header| header.flags_offset() & ipv4::DONT_FRAGMENT != 0)
}

fn ipv4_header_len(packet: &Packet) -> usize {
    ipv4::Header::new(packet.ip_bytes()).map_or(ipv4::LEN, |header| header.header_len())
}

/// Whether the packet is an ICMP error or redirect: no error is ever sent about one.
fn is_icmp_error(packet: &Packet) -> bool {
    let Ip { v4, protocol, .. } = packet.meta.ip;
    let message_type = packet
        .l4_bytes()
        .first()
        .filter(|_| protocol == icmp::protocol_of(v4));
    message_type.is_some_and(|&message_type| {
        matches!(icmp::kind(v4, message_type), Kind::Error | Kind::Redirect)
    })
}

/// The frames of a packet that must be cut. A checksum left to the network card is finished first: it covers the whole.
fn pieces(packet: &mut Packet, interface: u32, mtu: usize) -> Vec<Output> {
    if packet.meta.offload.is_partial() {
        finish_checksum(packet);
    }
    let link = &packet.frame[..packet.meta.ip.l3];
    let cut = fragment::cut(packet.ip_bytes(), mtu).into_iter();
    cut.map(|piece| Output {
        interface,
        frame: [link, &piece].concat(),
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
