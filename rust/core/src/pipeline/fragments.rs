//! Pieces of a datagram: the first decides, the others follow or wait: rule 6, fragments.

use std::ops::ControlFlow::{Break, Continue};

use super::addresses::AddressPair;
use super::expire::count_drops;
use super::read;
use super::walk::{Departure, DropErrors, OrDrop, Stage, Walk};
use crate::base::{Output, Reason, Verdict};
use crate::forwarding::ForwardingState;
use crate::fragment::{Action, DatagramKey, Fate, Held, Misfit, Piece};
use crate::packet::{Meta, Packet};
use crate::parse::{self, Fragment, IpHeader};
use crate::wire::{icmp, protocol};

/// Most bytes of an IP datagram.
const MOST_BYTES: usize = 65535;

impl Walk<'_> {
    /// Rule 6.1, offload, to rule 6.8, pieces and overlaps, then by what is decided.
    #[inline(never)]
    pub(super) fn fragment(&mut self, packet: &mut Packet) -> Stage<Departure> {
        let Meta { ip, offload, .. } = *packet.meta;
        let Some(fragment) = ip.fragment else {
            return self.first_fragment_read(packet);
        };
        if offload.is_partial() || offload.gso().is_some() {
            return Break(Reason::BadOffload.into());
        }
        let to_vip = self.forwarding.role(ip.v4, ip.destination).vip;
        if !to_vip && self.forwarding.role(ip.v4, ip.source).server.is_none() {
            return self.transit(packet);
        }
        if fragment.protocol == icmp::protocol_of(ip.v4) {
            return Break(Reason::IcmpFragment.into());
        }
        if !matches!(fragment.protocol, protocol::TCP | protocol::UDP) {
            return if to_vip {
                Break(Reason::L4Protocol.into())
            } else {
                self.transit(packet)
            };
        }
        let piece = checked_piece(&ip, fragment)?;
        parse::tiny_fragment(packet.frame, &ip).drop_errors()?;
        let key = DatagramKey {
            source: ip.source,
            destination: ip.destination,
            identification: fragment.identification,
            protocol: fragment.protocol,
        };
        let late = self.state.fragments.expire_one(&key, self.now);
        count_drops(self.state, Reason::FragmentTimeout, late);
        let result = self.fragment_of(packet, &key, piece);
        self.state.fragments.close_if_complete(&key);
        result
    }

    /// Rule 6.6, datagram entries, to rule 6.11, held fragments.
    fn fragment_of(
        &mut self,
        packet: &mut Packet,
        key: &DatagramKey,
        piece: Piece,
    ) -> Stage<Departure> {
        let fate = self.check_piece(key, piece)?;
        match fate {
            _ if piece.start == 0 => self.first_fragment(packet, key, piece),
            Fate::Decided(action) => {
                self.state.fragments.add(key, piece);
                self.attributed_fragment(packet, &action)
            }
            _ => Break(self.hold(packet, key, piece)),
        }
    }

    /// Rule 6.6, datagram entries, to rule 6.8, pieces and overlaps: what is decided for a datagram, if one more piece
    /// of it may come.
    fn check_piece(&mut self, key: &DatagramKey, piece: Piece) -> Stage<Fate> {
        let Some(entry) = self.state.fragments.get(key) else {
            return Continue(Fate::Unknown);
        };
        let (fate, checked) = (entry.fate, entry.pieces.check(piece));
        if fate == Fate::Refused {
            return Break(Reason::FragmentRefused.into());
        }
        if is_orphaned(self.forwarding, fate) {
            self.refuse_held(key, Reason::FragmentRefused);
            return Break(Reason::FragmentRefused.into());
        }
        match checked {
            Ok(()) => Continue(fate),
            Err(Misfit::Duplicate) => Break(Reason::FragmentDuplicate.into()),
            Err(Misfit::TooMany) => Break(Reason::FragmentLimit.into()),
            Err(Misfit::Overlap) => {
                self.refuse_held(key, Reason::FragmentOverlap);
                Break(Reason::FragmentOverlap.into())
            }
        }
    }

    /// Rule 6.11, held fragments: let a later fragment wait for the first.
    fn hold(&mut self, packet: &Packet, key: &DatagramKey, piece: Piece) -> Verdict {
        let fragments = &mut self.state.fragments;
        let (fits, mut evicted) = fragments.make_room(key, packet.frame.len());
        if fits {
            let held = Held {
                frame: packet.frame.to_vec(),
                meta: *packet.meta,
            };
            evicted += fragments.hold(key, piece, held, self.now);
        }
        count_drops(self.state, Reason::FragmentEvicted, evicted);
        if fits {
            Verdict::Hold(Reason::Fragment)
        } else {
            Reason::FragmentLimit.into()
        }
    }

    /// Rule 6.9, first fragments: what becomes of the first becomes of all.
    fn first_fragment(
        &mut self,
        packet: &mut Packet,
        key: &DatagramKey,
        piece: Piece,
    ) -> Stage<Departure> {
        let result = self.first_fragment_read(packet);
        if !matches!(
            result,
            Continue(_) | Break(Verdict::Hold(Reason::Neighbour))
        ) {
            self.refuse_held(key, Reason::FragmentRefused);
            return result;
        }
        let action = self.decided_action();
        let fragments = &mut self.state.fragments;
        let (waited, evicted) = fragments.decide(key, piece, action, self.now);
        count_drops(self.state, Reason::FragmentEvicted, evicted);
        for mut held in waited {
            self.release(&mut held, &action);
        }
        result
    }

    /// The first fragment has the L4 header: from there on it is like a whole packet.
    fn first_fragment_read(&mut self, packet: &mut Packet) -> Stage<Departure> {
        let mut meta = *packet.meta;
        let pair = AddressPair::of(self.forwarding, &meta.ip);
        read::l4(self.forwarding, packet.frame, &mut meta, pair)?;
        read::hash(&self.state.table, &mut meta);
        self.dispatch(&mut Packet {
            frame: packet.frame,
            meta: &meta,
        })
    }

    fn decided_action(&self) -> Action {
        let found = self.matched;
        match (
            found.direction,
            found.service,
            found.server,
            found.reply_key,
        ) {
            (Some(direction), Some(service), Some(server), Some(reply_key)) => Action::Translate {
                direction,
                service,
                server,
                reply_key,
            },
            _ => Action::Transit,
        }
    }

    /// A fragment that came after the first: its outcome tells the action.
    fn attributed_fragment(&mut self, packet: &mut Packet, action: &Action) -> Stage<Departure> {
        if let Action::Translate {
            direction,
            service,
            server,
            ..
        } = *action
        {
            self.matched.direction = Some(direction);
            self.matched.service = Some(service);
            self.matched.server = Some(server);
        }
        self.later_fragment(packet, action)
    }

    /// A held fragment goes on its way, with a final verdict of its own.
    fn release(&mut self, held: &mut Held, action: &Action) {
        let mut packet = Packet {
            frame: &mut held.frame,
            meta: &held.meta,
        };
        let verdict = match self.later_fragment(&mut packet, action) {
            Continue(departure) => {
                if let Some(sent) = departure.sent(&held.meta) {
                    let frame = held.frame[..sent.len].to_vec();
                    self.extra.push(Output {
                        interface: sent.interface,
                        frame,
                        offload: sent.offload,
                    });
                }
                Verdict::Forward
            }
            Break(verdict) => verdict,
        };
        self.state.counters.verdict(verdict);
    }

    /// Rule 6.10, later fragments: the action of the first, without ports.
    fn later_fragment(&mut self, packet: &mut Packet, action: &Action) -> Stage<Departure> {
        self.check_ttl(packet)?;
        let Action::Translate {
            direction,
            service,
            server,
            reply_key,
        } = *action
        else {
            return self.send_transit(packet);
        };
        let len = packet.meta.ip.total_len();
        self.state.counters.service_packet(service, direction, len);
        self.state.counters.server_packet(server, direction, len);
        let flow = self.peek(&reply_key);
        let ingress = flow.map(|number| self.state.table.entry(number).ingress());
        let facts = self.forwarding.server(server).or_drop(Reason::NoServer)?;
        self.send_translated(packet, direction, facts, ingress)
    }

    fn refuse_held(&mut self, key: &DatagramKey, reason: Reason) {
        let held = self.state.fragments.refuse(key, self.now);
        count_drops(self.state, reason, held);
    }
}

/// Rule 6.4, fragment length: the bytes of the datagram that the fragment holds.
fn checked_piece(ip: &IpHeader, fragment: Fragment) -> Stage<Piece> {
    let len = ip.end - ip.l4;
    let end = fragment.offset as usize + len;
    if end > MOST_BYTES || len == 0 || (fragment.more && len % 8 != 0) {
        return Break(Reason::FragmentLength.into());
    }
    Continue(Piece {
        start: fragment.offset,
        end: end as u32,
        last: !fragment.more,
    })
}

/// Whether what the first fragment was translated for has left the snapshot.
fn is_orphaned(forwarding: &ForwardingState, fate: Fate) -> bool {
    let Fate::Decided(Action::Translate {
        service, server, ..
    }) = fate
    else {
        return false;
    };
    forwarding.service(service).is_none() || forwarding.server(server).is_none()
}
