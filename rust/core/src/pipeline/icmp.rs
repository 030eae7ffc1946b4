//! Control messages: pings to a VIP, and errors about our flows, translated with the packet they quote (rule 10, ICMP
//! about flows, RFC 5508, RFC 7915 for what IPv6 needs).

use crate::base::Ip;
use std::ops::ControlFlow::{Break, Continue};

use super::elsewhere::{KnownFlow, key_of};
use super::keys::is_guarded;
use super::walk::{Departure, DropErrors, OrDrop, Stage, Walk};
use crate::base::{Direction, Reason, Verdict};
use crate::flow::key::KeySide;
use crate::packet::{Meta, Packet};
use crate::parse::InnerPacket;
use crate::parse::IpHeader;
use crate::parse::inner_destination;
use crate::parse::inner_packet;
use crate::wire::icmp::{self, Kind};
use crate::{limit, reply};

impl Walk<'_> {
    /// Rule 10, ICMP about flows. `packet` is whole: fragments never come here.
    #[inline(never)]
    pub(super) fn icmp(&mut self, packet: &mut Packet, to_vip: bool) -> Stage<Departure> {
        let IpHeader {
            v4, destination, ..
        } = packet.meta.ip;
        let header = icmp::Header::new(packet.l4_bytes()).or_drop(Reason::L4Truncated)?;
        let kind = icmp::kind(v4, header.message_type());
        if to_vip {
            check_checksum(packet)?;
            return match kind {
                Kind::EchoRequest => Break(self.echo(packet)),
                Kind::Redirect => Break(Reason::IcmpRedirect.into()),
                Kind::Other => Break(Reason::IcmpType.into()),
                Kind::Error => self.error_to_vip(packet),
            };
        }
        match kind {
            Kind::EchoRequest if self.forwarding.role(v4, destination).server.is_some() => {
                Break(Reason::ServerEcho.into())
            }
            Kind::EchoRequest | Kind::Other => self.transit(packet),
            Kind::Redirect => Break(Reason::IcmpRedirect.into()),
            Kind::Error => self.error_past_us(packet),
        }
    }

    fn echo(&mut self, packet: &Packet) -> Verdict {
        if !self.forwarding.snapshot.settings.answer_echo {
            return Reason::VipEcho.into();
        }
        let Meta {
            interface, l2, ip, ..
        } = *packet.meta;
        let Some(port) = self.forwarding.interface(interface) else {
            return Reason::VipEcho.into();
        };
        if !self.take_token(limit::AnswerKind::Echo) {
            return Reason::RateLimited.into();
        }
        let ends = (ip.destination, ip.source);
        let frame = reply::echo_reply(packet.frame, l2, port.mac, ends, packet.l4_bytes());
        self.answer(interface, frame);
        Verdict::Reply(Reason::Echo)
    }

    /// An error about a packet that a server sent through us: it quotes the VIP as its source.
    fn error_to_vip(&mut self, packet: &mut Packet) -> Stage<Departure> {
        let inner = inner_packet(packet.meta.ip.v4, packet.l4_bytes()).drop_errors()?;
        let IpHeader {
            v4,
            source,
            destination,
            protocol,
            ..
        } = inner.ip;
        if source != packet.meta.ip.destination {
            return Break(Reason::IcmpInner.into());
        }
        let vip = self.forwarding.local_address(v4, source);
        let service = self
            .forwarding
            .socket_role(vip, inner.source_port, protocol)
            .service;
        let service = service.or_drop(Reason::IcmpNoFlow)?;
        let client = (destination, inner.destination_port);
        let flow = self
            .stored_flow(client, KeySide::Service(service))
            .or_else(|| self.hashed_flow_to_vip(client, service))
            .or_drop(Reason::IcmpNoFlow)?;
        self.translate_error(packet, &inner, &flow, Direction::Forward)
    }

    /// An error that is not for a VIP: about a packet we sent to a server, or of no concern to us.
    fn error_past_us(&mut self, packet: &mut Packet) -> Stage<Departure> {
        let inner = match inner_packet(packet.meta.ip.v4, packet.l4_bytes()) {
            Ok(inner) => inner,
            Err(reason) if self.quotes_server(packet) => return Break(reason.into()),
            Err(_) => return self.transit(packet),
        };
        let Some(endpoint) = self.inner_endpoint(&inner) else {
            return self.transit(packet);
        };
        check_checksum(packet)?;
        let client = (inner.ip.source, inner.source_port);
        if packet.meta.ip.destination != client.0 {
            return Break(Reason::IcmpInner.into());
        }
        if self.is_direct(client, endpoint) {
            return self.transit(packet);
        }
        let flow = self
            .stored_flow(client, KeySide::Endpoint(endpoint))
            .or_else(|| self.flow_of_endpoint(client, endpoint))
            .or_drop(Reason::IcmpNoFlow)?;
        self.translate_error(packet, &inner, &flow, Direction::Reply)
    }

    /// Whether an error quotes a packet to a server, of which nothing else can be read.
    fn quotes_server(&self, packet: &Packet) -> bool {
        let v4 = packet.meta.ip.v4;
        let about = inner_destination(v4, packet.l4_bytes());
        about.is_some_and(|address| self.forwarding.role(v4, address).server.is_some())
    }

    /// The endpoint that the packet in an error was sent to.
    fn inner_endpoint(&self, inner: &InnerPacket) -> Option<u32> {
        let IpHeader {
            v4,
            destination,
            protocol,
            ..
        } = inner.ip;
        let server = self.forwarding.local_address(v4, destination);
        self.forwarding
            .socket_role(server, inner.destination_port, protocol)
            .endpoint
    }

    /// Whether the client speaks with the endpoint directly, past us.
    fn is_direct(&self, client: (Ip, u16), endpoint: u32) -> bool {
        let key = key_of(client, KeySide::Endpoint(endpoint));
        let timeouts = &self.forwarding.snapshot.timeouts;
        let guarded = is_guarded(self.forwarding, &key);
        let direct = &self.state.direct;
        direct.knows(&key, guarded, timeouts, self.now)
    }

    /// Rule 10.5, flow of an error, and rule 10.6, rewriting an error, from the flow on.
    fn translate_error(
        &mut self,
        packet: &mut Packet,
        inner: &InnerPacket,
        flow: &KnownFlow,
        direction: Direction,
    ) -> Stage<Departure> {
        let KnownFlow {
            service,
            server,
            ingress,
        } = *flow;
        self.matched.direction = Some(direction);
        self.matched.service = Some(service);
        self.matched.server = Some(server);
        self.check_ttl(packet)?;
        self.state
            .counters
            .server_packet(server, direction, packet.meta.ip.total_len());
        self.forward_icmp_error(packet, &inner.ip, direction, server, ingress)
    }
}

fn check_checksum(packet: &Packet) -> Stage<()> {
    let IpHeader {
        source,
        destination,
        ..
    } = packet.meta.ip;
    let right = icmp::message_checksum(source, destination, packet.l4_bytes()) == 0;
    if right {
        Continue(())
    } else {
        Break(Reason::IcmpChecksum.into())
    }
}
