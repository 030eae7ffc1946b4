//! The stages in order:
//! `rx -> parse -> classify -> flow lookup -> (miss: plan -> server) -> rewrite -> next hop -> tx`.
//!
//! A walk has two halves. [`read`] goes from the wire to the packet's target: it looks at the frame and the
//! forwarding and changes nothing, so a whole batch can be read before the first of its packets is acted upon.
//! [`Walk::run`] then acts. Each stage is a file of this folder; it gives what comes next, or the packet's verdict
//! as an error: there is no third outcome. `docs/rules.md` numbers the rules.

mod addresses;
mod answer;
mod direct;
mod elsewhere;
mod ethernet;
mod evict;
mod expire;
mod fragments;
mod hit;
mod icmp;
mod keys;
mod lookup;
pub(crate) mod read;
mod reset;
mod schedule;
mod send;
pub(crate) mod state;
pub(crate) mod walk;

pub(crate) use evict::is_living;
pub(crate) use expire::{PER_FRAME, PER_TICK, expire, release};

use std::ops::ControlFlow::{Break, Continue};

use crate::base::{Outcome, Reason, Verdict};
use crate::packet::{Meta, Packet, Target};
use crate::snapshot::Transit;

use read::Content;
use walk::{Departure, Stage, Walk};

/// Process one frame: rule 1, inputs and outcome. `read` is what [`read::frame`] gave for it, with `meta`.
#[inline(always)]
pub(crate) fn process(
    walk: &mut Walk,
    frame: &mut [u8],
    meta: &Meta,
    read: Stage<Content>,
) -> Outcome {
    walk.state.counters.received(frame.len());
    expire(walk.forwarding, walk.state, walk.now, PER_FRAME);
    act(walk, frame, meta, read)
}

/// Process a frame that waited, once it may go on: it was counted when it came in.
#[inline(never)]
pub(crate) fn resume(
    walk: &mut Walk,
    frame: &mut [u8],
    meta: &Meta,
    read: Stage<Content>,
) -> Outcome {
    act(walk, frame, meta, read)
}

#[inline(always)]
fn act(walk: &mut Walk, frame: &mut [u8], meta: &Meta, read: Stage<Content>) -> Outcome {
    let already_there = walk.extra.len();
    let (verdict, sent) = match walk.run(frame, meta, read) {
        Continue(departure) => (Verdict::Forward, departure.sent(meta)),
        Break(verdict) => (verdict, None),
    };
    walk.state.counters.verdict(verdict);
    if let Some(sent) = &sent {
        walk.state.counters.sent(sent.len);
    }
    for output in &walk.extra[already_there..] {
        walk.state.counters.sent(output.frame.len());
    }
    Outcome {
        verdict,
        direction: walk.matched.direction,
        service: walk.matched.service,
        server: walk.matched.server,
        sent,
    }
}

impl Walk<'_> {
    /// What was read, acted upon. Packets of flows first, by comparisons that are foretold right: a jump through a
    /// table is not.
    #[inline(always)]
    fn run(&mut self, frame: &mut [u8], meta: &Meta, read: Stage<Content>) -> Stage<Departure> {
        if let Continue(Content::Packet) = read {
            return self.dispatch(&mut Packet { frame, meta });
        }
        self.run_other(frame, meta, read?)
    }

    #[inline(never)]
    fn run_other(&mut self, frame: &mut [u8], meta: &Meta, content: Content) -> Stage<Departure> {
        match content {
            Content::Packet | Content::Fragment => self.fragment(&mut Packet { frame, meta }),
            Content::NotIp => Break(self.not_ip(frame, meta)),
            Content::Solicitation => Break(self.neighbour_advertisement(frame, meta)),
        }
    }

    /// Whole packets and first fragments, once they were read to their L4 header: rule 7, L4 headers, to rule 12,
    /// sending.
    #[inline(always)]
    fn dispatch(&mut self, packet: &mut Packet) -> Stage<Departure> {
        if let Target::Service(service) = packet.meta.target {
            return self.client_packet(packet, service);
        }
        if let Target::Endpoint(endpoint) = packet.meta.target {
            return self.server_packet(packet, endpoint);
        }
        self.dispatch_other(packet)
    }

    /// What is of no flow. A function of its own: with a third branch beside those of flows the compiler makes a
    /// jump table of them.
    #[inline(never)]
    fn dispatch_other(&mut self, packet: &mut Packet) -> Stage<Departure> {
        match packet.meta.target {
            Target::Icmp { to_vip } => self.icmp(packet, to_vip),
            _ => self.transit(packet),
        }
    }

    /// Packets of no service: rule 9, transit.
    #[inline(never)]
    fn transit(&mut self, packet: &mut Packet) -> Stage<Departure> {
        if self.forwarding.snapshot.settings.transit == Transit::Drop {
            return Break(Reason::Transit.into());
        }
        self.check_ttl(packet)?;
        self.note_direct(packet)?;
        self.send_transit(packet)
    }
}
