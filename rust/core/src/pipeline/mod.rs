//! The stages in order: `rx -> parse -> classify -> flow lookup -> (miss: plan -> server) -> rewrite -> next hop -> tx`.
//!
//! A walk has two halves. [`read`] goes from the wire to the packet's target: it looks at the frame and the world and changes nothing, so a whole batch can
//! be read before the first of its packets is acted upon. [`Walk::run`] then acts. Each stage is a file of this folder; it gives a way to go on, or the
//! packet's verdict as an error: there is no third outcome. `docs/datapath.md` numbers the rules.

mod direct;
mod expire;
mod flows;
mod fragments;
mod icmp;
mod ip;
mod link;
pub(crate) mod read;
mod reset;
mod send;

pub(crate) use expire::{PER_FRAME, PER_TICK, expire, release};
pub(crate) use flows::is_expired;

use crate::base::{Direction, Offload, Output, Reason, Sent, Verdict};
use crate::datapath::{Outcome, State};
use crate::flow::Key;
use crate::packet::{Meta, Packet, Target};
use crate::world::World;
use read::Content;

/// What a stage gives: something to go on with, or the packet's verdict.
pub(crate) type Stage<T> = Result<T, Verdict>;

/// How a forwarded packet leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Departure {
    /// As it is, rewritten in place.
    Whole {
        /// Interface id.
        interface: u32,
        /// Bytes of data per segment, for a GSO frame.
        gso_size: u16,
    },
    /// In frames of its own.
    Pieces,
}

impl Departure {
    fn sent(self, meta: &Meta) -> Option<Sent> {
        let Departure::Whole {
            interface,
            gso_size,
        } = self
        else {
            return None;
        };
        let offload = Offload {
            gso_size,
            ..meta.offload
        };
        Some(Sent {
            interface,
            len: meta.ip.end,
            offload,
        })
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

/// Process one frame: rule 1. `read` is what [`read::frame`] gave for it, with `meta`.
#[inline(always)]
pub(crate) fn process(
    walk: &mut Walk,
    frame: &mut [u8],
    meta: &Meta,
    read: Stage<Content>,
) -> Outcome {
    walk.state.counters.received(frame.len());
    expire(walk.world, walk.state, walk.now, PER_FRAME);
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
        Ok(departure) => (Verdict::Forward, departure.sent(meta)),
        Err(verdict) => (verdict, None),
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
        direction: walk.found.direction,
        service: walk.found.service,
        server: walk.found.server,
        sent,
    }
}

impl Walk<'_> {
    /// What was read, acted upon. Packets of flows first, by comparisons that are foretold right: a jump through a table is not.
    #[inline(always)]
    fn run(&mut self, frame: &mut [u8], meta: &Meta, read: Stage<Content>) -> Stage<Departure> {
        if let Ok(Content::Packet) = read {
            return self.hand_on(&mut Packet { frame, meta });
        }
        self.run_other(frame, meta, read?)
    }

    #[inline(never)]
    fn run_other(&mut self, frame: &mut [u8], meta: &Meta, content: Content) -> Stage<Departure> {
        match content {
            Content::Packet | Content::Fragment => self.fragment(&mut Packet { frame, meta }),
            Content::NotIp => Err(self.not_ip(frame, meta)),
            Content::Solicitation => Err(self.neighbour_advertisement(frame, meta)),
        }
    }

    /// Whole packets and first fragments, once they were read to their L4 header: rules 7 to 12.
    #[inline(always)]
    fn hand_on(&mut self, packet: &mut Packet) -> Stage<Departure> {
        if let Target::Service(service) = packet.meta.target {
            return self.forward(packet, service);
        }
        if let Target::Endpoint(endpoint) = packet.meta.target {
            return self.reply(packet, endpoint);
        }
        self.hand_on_other(packet)
    }

    /// What is of no flow. A function of its own: with a third branch beside those of flows the compiler makes a jump table of them.
    #[inline(never)]
    fn hand_on_other(&mut self, packet: &mut Packet) -> Stage<Departure> {
        match packet.meta.target {
            Target::Icmp { to_vip } => self.icmp(packet, to_vip),
            _ => self.transit(packet),
        }
    }

    /// Packets of no service: rule 9.
    #[inline(never)]
    fn transit(&mut self, packet: &mut Packet) -> Stage<Departure> {
        if !self.world.snapshot.forward_transit {
            return Err(Reason::Transit.into());
        }
        self.check_ttl(packet)?;
        self.note_direct(packet)?;
        self.send_transit(packet)
    }
}
