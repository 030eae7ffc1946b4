//! Is the frame for us, and what does it carry: rules 3 and 4.

use super::{Stage, Walk};
use crate::datapath::{Offload, Output};
use crate::parse::{self, Ip, Link};
use crate::reply;
use crate::snapshot::Mac;
use crate::verdict::{Reason, Verdict};
use crate::wire::ethernet::{self, ethertype};
use crate::wire::{arp, icmp, map_v4, protocol};

/// A frame that is for us.
pub(super) struct Arrival {
    pub link: Link,
    pub source: Mac,
    pub to_group: bool,
}

impl Walk<'_> {
    /// Rule 3, up to the `EtherType`.
    #[inline]
    pub(super) fn accept_frame(&self, frame: &[u8], interface: u32) -> Stage<Arrival> {
        let port = self.world.port(interface).ok_or(Reason::NotForUs)?;
        let header = ethernet::Frame::new(frame).ok_or(Reason::FrameTruncated)?;
        let (source, destination) = (header.source(), header.destination());
        if source == port.mac {
            return Err(Reason::OwnFrame.into());
        }
        if ethernet::is_group(source) {
            return Err(Reason::BadSourceMac.into());
        }
        let to_group = ethernet::is_group(destination);
        if destination != port.mac && !to_group {
            return Err(Reason::NotForUs.into());
        }
        Ok(Arrival {
            link: parse::link(frame, |_| ())?,
            source,
            to_group,
        })
    }

    /// Rule 3.5: ARP is looked at, anything else is the host's affair.
    pub(super) fn not_ip(&mut self, frame: &[u8], interface: u32, link: Link) -> Verdict {
        if link.ethertype != ethertype::ARP {
            return Verdict::Pass;
        }
        let request = frame
            .get(link.l3..)
            .and_then(arp::Arp::new)
            .filter(arp::Arp::is_ethernet_ipv4);
        let Some(request) = request else {
            return Reason::BadArp.into();
        };
        let mac = self.announcing_mac(interface, true, map_v4(request.target()));
        let Some(mac) = mac.filter(|_| request.operation() == arp::operation::REQUEST) else {
            return Verdict::Pass;
        };
        self.answer(interface, reply::arp_reply(frame, link, mac, &request));
        Verdict::Reply(Reason::Arp)
    }

    /// Rule 5.1: answer a neighbour solicitation for a VIP we announce; let everything else pass on.
    #[inline]
    pub(super) fn neighbour_solicitation(
        &mut self,
        frame: &[u8],
        interface: u32,
        link: Link,
        ip: &Ip,
    ) -> Stage<()> {
        if ip.v4 || ip.protocol != protocol::ICMPV6 || ip.ttl != 255 {
            return Ok(());
        }
        let message = frame.get(ip.l4..ip.end).unwrap_or_default();
        let Some(target) = icmp::solicitation_target(message) else {
            return Ok(());
        };
        let Some(mac) = self.announcing_mac(interface, false, target) else {
            return Ok(());
        };
        if icmp::message_checksum(ip.source, ip.destination, message) != 0 {
            return Ok(());
        }
        self.answer(
            interface,
            reply::neighbour_advertisement(frame, link, mac, ip.source, target),
        );
        Err(Verdict::Reply(Reason::Nd))
    }

    /// Our MAC, when that interface answers for that VIP.
    fn announcing_mac(&self, interface: u32, v4: bool, target: u128) -> Option<Mac> {
        let port = self.world.port(interface).filter(|port| port.announce)?;
        self.world.role(v4, target).vip.then_some(port.mac)
    }

    /// Send a frame of our own.
    pub(super) fn answer(&mut self, interface: u32, frame: Vec<u8>) {
        self.extra.push(Output {
            interface,
            frame,
            offload: Offload::default(),
        });
    }
}
