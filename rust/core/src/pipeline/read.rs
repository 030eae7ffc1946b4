//! From the wire to the packet's target: rule 3, Ethernet and VLAN, to rule 5, IP headers, and rule 7, L4 headers.
//! Looks at the frame and the forwarding; changes nothing, answers nothing.

use std::ops::ControlFlow::{Break, Continue};

use super::addresses::{AddressPair, check_addresses};
use super::ethernet::{accept_frame, is_solicitation};
use super::keys::flow_key;
use super::walk::{DropErrors, OrDrop, Stage};
use crate::base::{Offload, Reason, gso};
use crate::flow::table::Table;
use crate::forwarding::ForwardingState;
use crate::packet::{Meta, Target};
use crate::parse;
use crate::wire::{icmp, protocol, tcp, udp};

pub(crate) use super::ethernet::Ingress;

/// What a frame holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content {
    /// A whole packet.
    Packet,
    /// A piece of one. Read to its IP header: its L4 header, if it has one, is read when its datagram is known.
    Fragment,
    /// A neighbour solicitation for a VIP that we answer for.
    Solicitation,
    /// Something else than IP.
    NotIp,
}

/// Read a frame into `meta`. Nothing else is written: what is left there from an earlier frame means nothing.
#[inline(always)]
pub(crate) fn frame(
    forwarding: &ForwardingState,
    ingress: &Ingress,
    frame: &[u8],
    offload: Offload,
    meta: &mut Meta,
) -> Stage<Content> {
    meta.interface = ingress.interface;
    meta.offload = offload.onward();
    accept_frame(ingress, frame, meta)?;
    let is_plain = parse::plain_ipv4(frame, &mut meta.l2, &mut meta.ip);
    if !is_plain {
        if let Some(content) = in_layers(forwarding, frame, meta)? {
            return Continue(content);
        }
    }
    let pair = AddressPair::of(forwarding, &meta.ip);
    check_addresses(forwarding, meta, pair)?;
    if !is_plain {
        parse::inner_headers(frame, &mut meta.ip).drop_errors()?;
        meta.payload = meta.ip.l4;
        if meta.ip.fragment.is_some() {
            return Continue(Content::Fragment);
        }
    }
    l4(forwarding, frame, meta, pair)?;
    Continue(Content::Packet)
}

/// What has tags, options or another header than IPv4's: layer by layer. `None`: IP, to be read on.
#[inline(never)]
fn in_layers(
    forwarding: &ForwardingState,
    frame: &[u8],
    meta: &mut Meta,
) -> Stage<Option<Content>> {
    meta.l2 = parse::l2(frame, |_| ()).drop_errors()?;
    if !parse::ip(frame, meta.l2, &mut meta.ip).drop_errors()? {
        return Continue(Some(Content::NotIp));
    }
    let asks = is_solicitation(forwarding, frame, meta);
    Continue(asks.then_some(Content::Solicitation))
}

/// Read the L4 header of a whole packet or a first fragment, and see whose it is: rule 7, L4 headers.
#[inline(always)]
pub(super) fn l4(
    forwarding: &ForwardingState,
    frame: &[u8],
    meta: &mut Meta,
    pair: AddressPair,
) -> Stage<()> {
    let partial = meta.offload.is_partial();
    if !parse::transport(frame, &meta.ip, partial, &mut meta.transport).drop_errors()? {
        return without_ports(meta, pair.to_vip());
    }
    check_offload(meta, true)?;
    meta.payload = meta.transport.payload;
    set_target(forwarding, meta, pair)
}

/// The target of what is neither TCP nor UDP: rule 7.A, to a VIP; rule 7.C, ICMP of no VIP; rule 7.D, everything else.
#[cold]
fn without_ports(meta: &mut Meta, to_vip: bool) -> Stage<()> {
    meta.payload = meta.ip.l4;
    let is_icmp = meta.ip.protocol == icmp::protocol_of(meta.ip.v4);
    if is_icmp && meta.ip.end.saturating_sub(meta.ip.l4) < icmp::LEN {
        return Break(Reason::L4Truncated.into());
    }
    check_offload(meta, false)?;
    meta.target = match (is_icmp, to_vip) {
        (true, _) => Target::Icmp { to_vip },
        (false, true) => return Break(Reason::L4Protocol.into()),
        (false, false) => Target::Transit,
    };
    Continue(())
}

/// Hash the key of the packet's flow, if it can have one: the only time that this is done for the packet. Returns
/// whether it can.
#[inline(always)]
pub(crate) fn hash(table: &Table, meta: &mut Meta) -> bool {
    let Some(key) = flow_key(meta) else {
        return false;
    };
    meta.hash = table.hash(&key);
    true
}

/// TCP and UDP, by destination, then by source: rule 7.A, to a VIP; rule 7.B, from a server; rule 7.D, everything
/// else.
#[inline(always)]
fn set_target(forwarding: &ForwardingState, meta: &mut Meta, pair: AddressPair) -> Stage<()> {
    let (protocol, transport) = (meta.ip.protocol, &meta.transport);
    if pair.to_vip() {
        let listener =
            forwarding.socket_role(pair.destination, transport.destination_port, protocol);
        let service = listener.service.or_drop(Reason::NoService)?;
        meta.target = Target::Service(service);
        return Continue(());
    }
    let listener = forwarding.socket_role(pair.source, transport.source_port, protocol);
    meta.target = match listener.endpoint {
        Some(endpoint) => Target::Endpoint(endpoint),
        None => Target::Transit,
    };
    Continue(())
}

/// Whether the work left to the network card is what such a packet can have: rule 7, L4 headers.
#[inline(always)]
fn check_offload(meta: &Meta, has_transport: bool) -> Stage<()> {
    if !meta.offload.is_partial() && meta.offload.gso().is_none() {
        return Continue(());
    }
    check_work_left(meta, has_transport)
}

fn check_work_left(meta: &Meta, has_transport: bool) -> Stage<()> {
    let Meta { ip, offload, .. } = meta;
    if !has_transport {
        return Break(Reason::BadOffload.into());
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
        return Break(Reason::BadOffload.into());
    }
    let fits = match offload.gso() {
        None => true,
        Some(gso::TCP_V4) => ip.v4 && ip.protocol == protocol::TCP,
        Some(gso::TCP_V6) => !ip.v4 && ip.protocol == protocol::TCP,
        Some(gso::UDP_L4) => ip.protocol == protocol::UDP,
        Some(_) => false,
    };
    if fits && (offload.gso().is_none() || offload.gso_size > 0) {
        Continue(())
    } else {
        Break(Reason::BadOffload.into())
    }
}
