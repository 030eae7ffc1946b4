//! Packets that wait for a neighbour's link-layer address, and the neighbours that are to be asked for. Asking the
//! kernel is the control side's work.

use std::collections::VecDeque;

use super::routing::Hop;
use crate::base::{InterfaceId, Ip, Mac, Nanos, Output};

/// Packets that may wait for one neighbour.
const MOST_PER_HOP: usize = 3;
/// Neighbours that may be waited for, those that failed included.
const MOST_HOPS: usize = 256;
/// How long a packet waits. A neighbour that has not answered by then has failed, and counts as failed for as long
/// again.
const WAIT_NS: u64 = 3_000_000_000;

/// A packet that waits for a neighbour.
#[derive(Debug)]
pub struct Waited {
    /// Its frames: more than one when it was cut.
    pub frames: Vec<Output>,
    /// What its sender is told if the neighbour does not answer; `None`: nothing.
    pub notice: Option<Output>,
}

/// How far the resolution of a neighbour has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resolution {
    /// Packets wait for the answer.
    Asked,
    /// There was none, and nothing waits.
    Failed,
    /// It is asked for once more.
    AskedAgain,
}

/// A neighbour that is not known yet, and what waits for it.
struct Unresolved {
    interface: InterfaceId,
    address: Ip,
    /// When its resolution began.
    since: Nanos,
    resolution: Resolution,
    packets: Vec<Waited>,
}

/// What becomes of one more packet to a neighbour that is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// It can wait.
    Waits,
    /// Too many wait already.
    Full,
    /// The neighbour did not answer in time.
    Failed,
}

/// All waiting packets, the hop whose resolution is oldest first. There are few hops, so they are searched in order.
#[derive(Default)]
pub struct Waiting {
    hops: VecDeque<Unresolved>,
    /// Hops that are to be asked for.
    unreported: Vec<(InterfaceId, Ip)>,
}

impl Waiting {
    /// What becomes of a packet to this hop.
    #[must_use]
    pub fn room(&self, hop: &Hop) -> Room {
        match self.hops.iter().find(|entry| entry.is(hop)) {
            Some(entry) if entry.resolution != Resolution::Asked => Room::Failed,
            Some(entry) if entry.packets.len() >= MOST_PER_HOP => Room::Full,
            None if self.hops.len() >= MOST_HOPS && self.oldest_failed().is_none() => Room::Full,
            _ => Room::Waits,
        }
    }

    /// Let the frames of one packet wait; they are dropped when this returns `false`.
    pub fn hold(&mut self, hop: &Hop, frames: Vec<Output>, now: Nanos) -> bool {
        let room = self.room(hop);
        let entry = self.hops.iter_mut().find(|entry| entry.is(hop));
        let name = (hop.interface, hop.address);
        let packet = Waited {
            frames,
            notice: None,
        };
        match (room, entry) {
            (Room::Waits, Some(entry)) => entry.packets.push(packet),
            (Room::Waits, None) => {
                if self.hops.len() >= MOST_HOPS {
                    self.oldest_failed().map(|at| self.remove(at));
                }
                self.unreported.push(name);
                self.hops.push_back(Unresolved {
                    interface: hop.interface,
                    address: hop.address,
                    since: now,
                    resolution: Resolution::Asked,
                    packets: vec![packet],
                });
            }
            (Room::Failed, Some(entry)) if entry.resolution == Resolution::Failed => {
                entry.resolution = Resolution::AskedAgain;
                self.unreported.push(name);
            }
            _ => {}
        }
        room == Room::Waits
    }

    /// Say what the sender of the last packet that waits for this hop is told if the neighbour does not answer.
    pub fn set_notice(&mut self, hop: &Hop, notice: Option<Output>) {
        let entry = self.hops.iter_mut().find(|entry| entry.is(hop));
        if let Some(packet) = entry.and_then(|entry| entry.packets.last_mut()) {
            packet.notice = notice;
        }
    }

    /// Give up the oldest hop if its time is over: the packets that waited for it. One that failed is forgotten.
    pub fn expire(&mut self, now: Nanos) -> Option<Vec<Waited>> {
        let oldest = self.hops.front()?;
        if now.since(oldest.since) < WAIT_NS {
            return None;
        }
        let was_asked = oldest.resolution == Resolution::Asked;
        let mut hop = self.remove(0)?;
        let packets = std::mem::take(&mut hop.packets);
        if was_asked {
            (hop.resolution, hop.since) = (Resolution::Failed, now);
            self.hops.push_back(hop);
        }
        Some(packets)
    }

    /// Take out the packets whose neighbour `resolve` knows, in order, with its address.
    pub fn release(
        &mut self,
        resolve: impl Fn(InterfaceId, Ip) -> Option<Mac>,
    ) -> Vec<(Mac, Vec<Output>)> {
        let mut released = Vec::new();
        let Self { hops, unreported } = self;
        hops.retain_mut(|hop| {
            let Some(mac) = resolve(hop.interface, hop.address) else {
                return true;
            };
            let packets = hop.packets.drain(..);
            released.extend(packets.map(|packet| (mac, packet.frames)));
            unreported.retain(|&name| name != (hop.interface, hop.address));
            false
        });
        released
    }

    /// Hops to resolve that were not returned before, as (interface, address).
    pub fn take_unreported(&mut self) -> Vec<(InterfaceId, Ip)> {
        std::mem::take(&mut self.unreported)
    }

    /// Whether `take_unreported` would return any.
    #[must_use]
    pub fn has_unreported(&self) -> bool {
        !self.unreported.is_empty()
    }

    /// Packets waiting now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.hops.iter().map(|hop| hop.packets.len()).sum()
    }

    /// Whether none waits, and no neighbour has failed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hops.is_empty()
    }

    fn oldest_failed(&self) -> Option<usize> {
        self.hops
            .iter()
            .position(|hop| hop.resolution != Resolution::Asked)
    }

    fn remove(&mut self, at: usize) -> Option<Unresolved> {
        let hop = self.hops.remove(at)?;
        let name = (hop.interface, hop.address);
        self.unreported.retain(|&unreported| unreported != name);
        Some(hop)
    }
}

impl Unresolved {
    fn is(&self, hop: &Hop) -> bool {
        (self.interface, self.address) == (hop.interface, hop.address)
    }
}
#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Mac, Offload};

    const OURS: Mac = [2; 6];

    fn frame(mark: u8) -> Vec<Output> {
        vec![Output {
            interface: InterfaceId::new(0),
            frame: vec![mark; 14],
            offload: Offload::default(),
        }]
    }

    /// Rule 11, next hop: three packets wait, the fourth does not; they leave in order.
    #[test]
    fn waiting_three_per_hop_leave_in_order() {
        let mut waiting = Waiting::default();
        let hop = Hop {
            interface: InterfaceId::new(0),
            address: Ip::from_bits(5),
            mac: None,
            from: OURS.into(),
            mtu: 1500,
        };
        let held: Vec<bool> = (0..4)
            .map(|mark| waiting.hold(&hop, frame(mark), Nanos::ZERO))
            .collect();
        assert_eq!(held, [true, true, true, false]);
        assert_eq!(
            (waiting.take_unreported(), waiting.take_unreported()),
            (vec![(InterfaceId::new(0), Ip::from_bits(5))], vec![])
        );
        assert!(waiting.release(|_, _| None).is_empty());
        let marks: Vec<u8> = waiting
            .release(|_, _| Some([9; 6]))
            .iter()
            .map(|(_, frames)| frames[0].frame[0])
            .collect();
        assert_eq!((marks, waiting.is_empty()), (vec![0, 1, 2], true));
    }

    /// Rule 11.4, unreachable servers: a neighbour that did not answer is not waited for, but asked for once more, for
    /// as long again.
    #[test]
    fn waiting_failed_neighbour_is_asked_once_more() {
        let mut waiting = Waiting::default();
        let hop = Hop {
            interface: InterfaceId::new(0),
            address: Ip::from_bits(5),
            mac: None,
            from: OURS.into(),
            mtu: 1500,
        };
        assert!(waiting.hold(&hop, frame(1), Nanos::ZERO));
        let packets = waiting
            .expire(Nanos::new(WAIT_NS))
            .expect("its time is over");
        assert_eq!((packets.len(), waiting.len()), (1, 0));
        assert_eq!(waiting.room(&hop), Room::Failed);
        assert!(!waiting.has_unreported(), "nothing waits for it");
        assert!(
            !waiting.hold(&hop, frame(2), Nanos::new(WAIT_NS))
                && !waiting.hold(&hop, frame(3), Nanos::new(WAIT_NS))
        );
        assert_eq!(
            waiting.take_unreported(),
            [(InterfaceId::new(0), Ip::from_bits(5))]
        );
        assert!(!waiting.hold(&hop, frame(4), Nanos::new(WAIT_NS)) && !waiting.has_unreported());
        assert!(waiting.expire(Nanos::new(2 * WAIT_NS - 1)).is_none());
        assert!(
            waiting
                .expire(Nanos::new(2 * WAIT_NS))
                .is_some_and(|packets| packets.is_empty())
        );
        assert!(waiting.is_empty() && waiting.hold(&hop, frame(5), Nanos::new(2 * WAIT_NS)));
    }

    #[test]
    fn waiting_hop_limit_and_timeout() {
        let mut waiting = Waiting::default();
        for address in 0..300 {
            let hop = Hop {
                interface: InterfaceId::new(0),
                address: Ip::from_bits(address),
                mac: None,
                from: OURS.into(),
                mtu: 1500,
            };
            assert_eq!(
                waiting.hold(&hop, frame(0), Nanos::new(u64::try_from(address).unwrap())),
                address < 256
            );
        }
        assert!(waiting.expire(Nanos::new(WAIT_NS - 1)).is_none());
        assert_eq!(
            waiting
                .expire(Nanos::new(WAIT_NS))
                .map(|packets| packets.len()),
            Some(1)
        );
        assert!(waiting.expire(Nanos::new(WAIT_NS)).is_none());
        // A failed one gives its place to another.
        let hop = Hop {
            interface: InterfaceId::new(1),
            address: Ip::from_bits(0),
            mac: None,
            from: OURS.into(),
            mtu: 1500,
        };
        assert!(
            waiting.hold(&hop, frame(0), Nanos::new(WAIT_NS)) && waiting.hops.len() == MOST_HOPS
        );
        assert!(!waiting.hold(
            &Hop {
                interface: InterfaceId::new(2),
                ..hop
            },
            frame(0),
            Nanos::new(WAIT_NS)
        ));
    }
}
