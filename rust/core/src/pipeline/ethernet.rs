//! Is the frame for us, and what does it carry: rule 3, Ethernet and VLAN, and rule 4, ARP and neighbour discovery.

use std::ops::ControlFlow::{Break, Continue};

use super::walk::{OrDrop, Stage, Walk};
use crate::base::{IngressNeighbour, InterfaceId, Ip, Mac, MacNumber, Reason, Verdict};
use crate::forwarding::ForwardingState;
use crate::packet::Meta;
use crate::reply;
use crate::wire::ethernet::{self, ethertype};
use crate::wire::{arp, icmp, protocol};

/// Where frames come in: what is asked about every frame of a batch, looked up once.
#[derive(Clone, Copy)]
pub(crate) struct Ingress {
    /// Id of the interface.
    pub interface: InterfaceId,
    /// Its MAC; `None` when there is no such interface.
    mac: Option<MacNumber>,
    /// What its packets' ingress neighbours have in common.
    neighbour: IngressNeighbour,
}

impl Ingress {
    /// Look the interface up.
    pub(crate) fn new(forwarding: &ForwardingState, interface: InterfaceId) -> Self {
        let mac = forwarding.interface(interface).map(|port| port.mac.into());
        let neighbour = IngressNeighbour::on(interface);
        Self {
            interface,
            mac,
            neighbour,
        }
    }
}

/// Rule 3.1, frame length, to rule 3.4, VLAN tags.
#[inline(always)]
pub(super) fn accept_frame(ingress: &Ingress, frame: &[u8], meta: &mut Meta) -> Stage<()> {
    let ours = ingress.mac.or_drop(Reason::NotForUs)?;
    let header = ethernet::Frame::new(frame).or_drop(Reason::FrameTruncated)?;
    let (source, destination) = (header.source_number(), header.destination_number());
    if source == ours {
        return Break(Reason::OwnFrame.into());
    }
    if source.is_group() {
        return Break(Reason::BadSourceMac.into());
    }
    meta.to_group = destination.is_group();
    if destination != ours && !meta.to_group {
        return Break(Reason::NotForUs.into());
    }
    meta.ingress = ingress.neighbour.with_mac(source);
    Continue(())
}

/// Rule 5.1, neighbour solicitation: whether this is a neighbour solicitation for a VIP that we answer for.
#[inline(always)]
pub(super) fn is_solicitation(forwarding: &ForwardingState, frame: &[u8], meta: &Meta) -> bool {
    let ip = &meta.ip;
    let may_be = !ip.v4 && ip.protocol == protocol::ICMPV6 && ip.ttl == 255;
    may_be && solicitation(forwarding, frame, meta).is_some()
}

/// The MAC to tell and the VIP it is told for.
#[cold]
fn solicitation(forwarding: &ForwardingState, frame: &[u8], meta: &Meta) -> Option<(Mac, Ip)> {
    let ip = &meta.ip;
    let message = frame.get(ip.l4..ip.end).unwrap_or_default();
    let target = icmp::solicitation_target(message)?;
    let mac = announcing_mac(forwarding, meta.interface, false, target)?;
    let is_right = icmp::message_checksum(ip.source, ip.destination, message) == 0;
    is_right.then_some((mac, target))
}

/// Our MAC, when that interface answers for that VIP.
fn announcing_mac(
    forwarding: &ForwardingState,
    interface: InterfaceId,
    v4: bool,
    target: Ip,
) -> Option<Mac> {
    let interface = forwarding.snapshot.interfaces.get(interface.index())?;
    let answers = interface.announce && forwarding.role(v4, target).vip;
    answers.then_some(interface.mac)
}

impl Walk<'_> {
    /// Rule 3.5, payload protocol: ARP is looked at, anything else is the host's affair.
    pub(super) fn not_ip(&mut self, frame: &[u8], meta: &Meta) -> Verdict {
        let (interface, l2) = (meta.interface, meta.l2);
        if l2.ethertype != ethertype::ARP {
            return Verdict::Pass;
        }
        let request = frame
            .get(l2.l3..)
            .and_then(arp::Arp::new)
            .filter(arp::Arp::is_ethernet_ipv4);
        let Some(request) = request else {
            return Reason::BadArp.into();
        };
        let mac = announcing_mac(
            self.forwarding,
            interface,
            true,
            Ip::from_v4(request.target()),
        );
        let Some(mac) = mac.filter(|_| request.operation() == arp::operation::REQUEST) else {
            return Verdict::Pass;
        };
        self.answer(interface, reply::arp_reply(frame, l2, mac, &request));
        Verdict::Reply(Reason::Arp)
    }

    /// Rule 4, ARP and neighbour discovery: answer what [`is_solicitation`] saw.
    pub(super) fn neighbour_advertisement(&mut self, frame: &[u8], meta: &Meta) -> Verdict {
        if let Some((mac, target)) = solicitation(self.forwarding, frame, meta) {
            let frame = reply::neighbour_advertisement(frame, meta.l2, mac, meta.ip.source, target);
            self.answer(meta.interface, frame);
        }
        Verdict::Reply(Reason::Nd)
    }
}
