//! Pieces of a datagram: the first decides, the others follow or wait: rule 6.

use super::expire::count_drops;
use super::ip::Ends;
use super::{Departure, Stage, Walk, read};
use crate::datapath::Output;
use crate::fragment::{Action, DatagramKey, Fate, Held, Misfit};
use crate::packet::{Meta, Packet};
use crate::parse::{self, Fragment, Ip};
use crate::verdict::{Reason, Verdict};
use crate::wire::{icmp, protocol};
use crate::world::World;

/// Most bytes of an IP datagram.
const MOST_BYTES: usize = 65535;

impl Walk<'_> {
    /// Rule 6, from 1 to 8, then by what is decided.
    #[inline(never)]
    pub(super) fn fragment(&mut self, packet: &mut Packet) -> Stage<Departure> {
        let Meta { ip, offload, .. } = *packet.meta;
        let Some(fragment) = ip.fragment else {
            return self.first_fragment_read(packet);
        };
        if offload.is_partial() || offload.gso().is_some() {
            return Err(Reason::BadOffload.into());
        }
        let to_vip = self.world.role(ip.v4, ip.destination).vip;
        if !to_vip && self.world.role(ip.v4, ip.source).server.is_none() {
            return self.transit(packet);
        }
        if fragment.protocol == icmp::protocol_of(ip.v4) {
            return Err(Reason::IcmpFragment.into());
        }
        if !matches!(fragment.protocol, protocol::TCP | protocol::UDP) {
            return if to_vip {
                Err(Reason::L4Protocol.into())
            } else {
                self.transit(packet)
            };
        }
        let range = checked_range(&ip, fragment)?;
        parse::tiny_fragment(packet.frame, &ip)?;
        let key = DatagramKey {
            source: ip.source,
            destination: ip.destination,
            identification: fragment.identification,
            protocol: fragment.protocol,
        };
        let result = self.fragment_of(packet, &key, fragment, range);
        self.state.fragments.close_if_complete(&key);
        result
    }

    /// Rule 6.6 to 6.11.
    fn fragment_of(
        &mut self,
        packet: &mut Packet,
        key: &DatagramKey,
        fragment: Fragment,
        (start, end): (u32, u32),
    ) -> Stage<Departure> {
        let entry = self
            .state
            .fragments
            .open(*key, self.now)
            .ok_or(Reason::FragmentLimit)?;
        let (fate, ranges) = (entry.fate, entry.ranges.with(start, end, !fragment.more));
        if fate == Fate::Refused || is_orphaned(self.world, fate) {
            return Err(Reason::FragmentRefused.into());
        }
        let ranges = match ranges {
            Ok(ranges) => ranges,
            Err(Misfit::TooMany) => return Err(Reason::FragmentLimit.into()),
            Err(Misfit::Overlap) => {
                self.refuse_held(key, Reason::FragmentOverlap);
                return Err(Reason::FragmentOverlap.into());
            }
        };
        let waits = fragment.offset != 0 && fate == Fate::Unknown;
        if waits && !self.state.fragments.has_room(packet.frame.len()) {
            return Err(Reason::FragmentLimit.into());
        }
        if let Some(entry) = self.state.fragments.get_mut(key) {
            entry.ranges = ranges;
        }
        match fate {
            _ if fragment.offset == 0 => self.first_fragment(packet, key),
            Fate::Decided(action) => self.attributed_fragment(packet, &action),
            _ => {
                let held = Held {
                    frame: packet.frame.to_vec(),
                    meta: *packet.meta,
                };
                self.state.fragments.hold(key, held);
                Err(Verdict::Hold(Reason::Fragment))
            }
        }
    }

    /// Rule 6.9: what becomes of the first becomes of all.
    fn first_fragment(&mut self, packet: &mut Packet, key: &DatagramKey) -> Stage<Departure> {
        let result = self.first_fragment_read(packet);
        if !matches!(result, Ok(_) | Err(Verdict::Hold(Reason::Neighbour))) {
            self.refuse_held(key, Reason::FragmentRefused);
            return result;
        }
        let action = self.decided_action();
        for mut held in self.state.fragments.decide(key, Fate::Decided(action)) {
            self.release(&mut held, &action);
        }
        result
    }

    /// The first fragment has the L4 header: from there on it is like a whole packet.
    fn first_fragment_read(&mut self, packet: &mut Packet) -> Stage<Departure> {
        let mut meta = *packet.meta;
        let ends = Ends::of(self.world, &meta.ip);
        read::l4(self.world, packet.frame, &mut meta, ends)?;
        read::hash(&self.state.table, &mut meta);
        self.hand_on(&mut Packet {
            frame: packet.frame,
            meta: &meta,
        })
    }

    fn decided_action(&self) -> Action {
        let found = self.found;
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
            self.found.direction = Some(direction);
            self.found.service = Some(service);
            self.found.server = Some(server);
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
            Ok(departure) => {
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
            Err(verdict) => verdict,
        };
        self.state.counters.verdict(verdict);
    }

    /// Rule 6.10: the action of the first, without ports.
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
        let last_hop = flow.map(|number| self.state.table.entry(number).last_hop());
        let facts = self.world.server(server).ok_or(Reason::NoServer)?;
        self.send_translated(packet, direction, facts, last_hop)
    }

    fn refuse_held(&mut self, key: &DatagramKey, reason: Reason) {
        let held = self.state.fragments.decide(key, Fate::Refused);
        count_drops(self.state, reason, held.len());
    }
}

/// Rule 6.4: the bytes of the datagram that the fragment holds.
fn checked_range(ip: &Ip, fragment: Fragment) -> Stage<(u32, u32)> {
    let len = ip.end - ip.l4;
    let end = fragment.offset as usize + len;
    if end > MOST_BYTES || len == 0 || (fragment.more && len % 8 != 0) {
        return Err(Reason::FragmentLength.into());
    }
    Ok((fragment.offset, end as u32))
}

/// Whether what the first fragment was translated for has left the snapshot.
fn is_orphaned(world: &World, fate: Fate) -> bool {
    let Fate::Decided(Action::Translate {
        service, server, ..
    }) = fate
    else {
        return false;
    };
    world.service(service).is_none() || world.server(server).is_none()
}
