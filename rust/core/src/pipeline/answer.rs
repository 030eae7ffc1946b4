//! Answers that end a walk: ICMP errors and resets, as far as rates allow them (rule 12, sending).

use super::walk::Walk;
use crate::base::{InterfaceId, Ip, Offload, Output, Reason, Verdict};
use crate::limit;
use crate::packet::{Meta, Packet};
use crate::parse::{IpHeader, Transport};
use crate::reply;
use crate::snapshot::Refusal;
use crate::wire::icmp::{self, Kind, message};
use crate::wire::tcp::flag;

impl Walk<'_> {
    /// There is no route to a client's server: rule 11.4, unreachable servers.
    #[cold]
    pub(super) fn no_route(&mut self, packet: &Packet) -> Verdict {
        let kind = if packet.meta.ip.v4 {
            message::HOST_UNREACHABLE_V4
        } else {
            message::NO_ROUTE_V6
        };
        let vip = packet.meta.ip.destination;
        self.icmp_error_from(packet, vip, Reason::NoRoute, kind, 0)
    }

    #[cold]
    pub(super) fn too_big(&mut self, packet: &Packet, mtu: u32) -> Verdict {
        if packet.meta.ip.v4 {
            let rest = mtu & 0xffff;
            return self.send_icmp_error(
                packet,
                Reason::TooBig,
                message::FRAGMENTATION_NEEDED_V4,
                rest,
            );
        }
        self.send_icmp_error(packet, Reason::TooBig, message::PACKET_TOO_BIG_V6, mtu)
    }

    /// Answer with an ICMP error from our own address; where none may be sent the packet is dropped for the same
    /// reason.
    #[cold]
    pub(super) fn send_icmp_error(
        &mut self,
        packet: &Packet,
        reason: Reason,
        kind: (u8, u8),
        rest: u32,
    ) -> Verdict {
        let IpHeader {
            v4, destination, ..
        } = packet.meta.ip;
        let vip = self
            .forwarding
            .role(v4, destination)
            .vip
            .then_some(destination);
        match self
            .forwarding
            .own_address(packet.meta.interface, v4)
            .or(vip)
        {
            Some(own) => self.icmp_error_from(packet, own, reason, kind, rest),
            None => reason.into(),
        }
    }

    /// Answer with an ICMP error from `own`, if one may be sent.
    pub(super) fn icmp_error_from(
        &mut self,
        packet: &Packet,
        own: Ip,
        reason: Reason,
        kind: (u8, u8),
        rest: u32,
    ) -> Verdict {
        let bucket = match reason {
            Reason::TtlExceeded => limit::AnswerKind::TimeExceeded,
            Reason::TooBig => limit::AnswerKind::TooBig,
            _ => limit::AnswerKind::Unreachable,
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
    pub(super) fn icmp_error(
        &self,
        packet: &Packet,
        own: Ip,
        kind: (u8, u8),
        rest: u32,
    ) -> Option<Output> {
        let Meta {
            interface, l2, ip, ..
        } = *packet.meta;
        let port = self
            .forwarding
            .interface(interface)
            .filter(|_| self.may_answer(packet))?;
        let frame = reply::icmp_error(
            packet.frame,
            l2,
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
        let is_known = self.forwarding.interface(interface).is_some();
        is_known && !to_group && !ip.is_later_fragment() && !is_icmp_error(packet)
    }

    /// No server: a reset, or port unreachable, from the VIP.
    pub(super) fn refuse(&mut self, packet: &Packet, transport: &Transport) -> Verdict {
        if transport.segment.is_some() {
            return self.answer_reset(
                packet,
                transport,
                Reason::NoServer,
                limit::AnswerKind::Reset,
            );
        }
        let kind = if packet.meta.ip.v4 {
            message::PORT_UNREACHABLE_V4
        } else {
            message::PORT_UNREACHABLE_V6
        };
        let vip = packet.meta.ip.destination;
        self.icmp_error_from(packet, vip, Reason::NoServer, kind, 0)
    }

    /// A client's new flow could not be placed, for the reason of `verdict`: a reset if `on_no_server` says so,
    /// else ICMP "administratively prohibited", from the VIP (rule 8.18, refusals). Any other verdict stays.
    #[cold]
    pub(super) fn refuse_new_flow(
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
        let service = self.forwarding.service(service);
        let resets = service.is_some_and(|service| service.on_no_server == Refusal::Reset);
        if resets && transport.segment.is_some() {
            return self.answer_reset(packet, transport, reason, limit::AnswerKind::Reset);
        }
        let kind = if packet.meta.ip.v4 {
            message::PROHIBITED_V4
        } else {
            message::PROHIBITED_V6
        };
        let vip = packet.meta.ip.destination;
        self.icmp_error_from(packet, vip, reason, kind, 0)
    }

    /// Answer a TCP segment with a reset that its sender believes (RFC 9293 3.10.7.1), from the address it was for;
    /// drop for the same reason what is no TCP or a reset itself. `kind`: whose token it takes.
    pub(super) fn answer_reset(
        &mut self,
        packet: &Packet,
        transport: &Transport,
        reason: Reason,
        kind: limit::AnswerKind,
    ) -> Verdict {
        let Meta {
            interface, l2, ip, ..
        } = *packet.meta;
        let segment = transport.segment.filter(|one| !one.has(flag::RST));
        let Some((segment, port)) = segment.zip(self.forwarding.interface(interface)) else {
            return reason.into();
        };
        if !self.take_token(kind) {
            return Reason::RateLimited.into();
        }
        let from = (ip.destination, transport.destination_port);
        let to = (ip.source, transport.source_port);
        let frame = reply::reset(packet.frame, l2, port.mac, from, to, &segment);
        self.answer(interface, frame);
        Verdict::Reply(reason)
    }

    /// One packet of our own, if the rate of its kind allows it.
    pub(super) fn take_token(&mut self, kind: limit::AnswerKind) -> bool {
        self.state
            .limiter
            .take(kind, self.forwarding.snapshot.settings.icmp_rate, self.now)
    }

    /// Send a frame of our own.
    pub(super) fn answer(&mut self, interface: InterfaceId, frame: Vec<u8>) {
        self.extra.push(Output {
            interface,
            frame,
            offload: Offload::default(),
        });
    }
}

/// Whether the packet is an ICMP error or redirect: no error is ever sent about one.
fn is_icmp_error(packet: &Packet) -> bool {
    let IpHeader { v4, protocol, .. } = packet.meta.ip;
    let message_type = packet
        .l4_bytes()
        .first()
        .filter(|_| protocol == icmp::protocol_of(v4));
    message_type.is_some_and(|&message_type| {
        matches!(icmp::kind(v4, message_type), Kind::Error | Kind::Redirect)
    })
}
