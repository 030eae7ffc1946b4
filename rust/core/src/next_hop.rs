//! Where a packet goes next (rule 11): routes by longest prefix, neighbours, and the packets that wait for one.
//!
//! Both tables mirror the kernel's and are published as a whole. Asking the kernel to resolve a neighbour is the control side's work: it takes the hops to
//! resolve from [`Waiting`].

use std::collections::VecDeque;

use crate::datapath::Output;
use crate::snapshot::{Mac, NextHops, Route};
use crate::wire::ethernet::MacNumber;
use crate::wire::{address_number, is_v4};
use crate::world::{FixedMap, Port};

/// One step on a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Interface id.
    pub interface: u32,
    /// The gateway, or the destination itself.
    pub address: u128,
    /// Its link-layer address, when known.
    pub mac: Option<MacNumber>,
    /// The link-layer address of our interface.
    pub from: MacNumber,
    /// Bytes of IP packet.
    pub mtu: u32,
}

/// Routes of one prefix length.
struct Prefixes {
    mask: u128,
    routes: FixedMap<u128, Way>,
}

/// What a route says.
#[derive(Clone, Copy)]
struct Way {
    interface: u32,
    gateway: Option<u128>,
    from: MacNumber,
    mtu: u32,
}

/// Routes and neighbours, compiled.
#[derive(Default)]
pub struct Routing {
    /// Longest prefixes first; IPv4, IPv6.
    v4: Vec<Prefixes>,
    v6: Vec<Prefixes>,
    neighbours: FixedMap<(u32, u128), Mac>,
}

impl Routing {
    /// Compile. Routes through interfaces that do not exist are left out.
    #[must_use]
    pub fn new(next_hops: &NextHops, ports: &[Port]) -> Self {
        let neighbours = next_hops.neighbours.iter();
        Self {
            v4: prefixes(
                next_hops
                    .routes
                    .iter()
                    .filter(|route| route.prefix.is_ipv4()),
                ports,
            ),
            v6: prefixes(
                next_hops
                    .routes
                    .iter()
                    .filter(|route| route.prefix.is_ipv6()),
                ports,
            ),
            neighbours: neighbours
                .map(|hop| ((hop.interface, address_number(hop.address)), hop.mac))
                .collect(),
        }
    }

    /// The way to an address by the most specific route.
    #[must_use]
    pub fn to(&self, address: u128) -> Option<Hop> {
        let family = if is_v4(address) { &self.v4 } else { &self.v6 };
        let mut found = family
            .iter()
            .filter_map(|prefixes| prefixes.routes.get(&(address & prefixes.mask)));
        let &Way {
            interface,
            gateway,
            from,
            mtu,
        } = found.next()?;
        let address = gateway.unwrap_or(address);
        Some(Hop {
            interface,
            address,
            mac: self.neighbour(interface, address).map(MacNumber::from),
            from,
            mtu,
        })
    }

    /// The way to a server: a MAC from the config replaces the neighbour, and needs no route.
    #[must_use]
    pub fn to_server(&self, address: u128, mac: Option<Mac>, ports: &[Port]) -> Option<Hop> {
        let route = self.to(address);
        let Some(mac) = mac else { return route };
        let first = || {
            ports.first().map(|port| Hop {
                interface: 0,
                address,
                mac: None,
                from: port.mac.into(),
                mtu: port.mtu,
            })
        };
        route.or_else(first).map(|hop| Hop {
            mac: Some(mac.into()),
            ..hop
        })
    }

    /// The link-layer address of a neighbour.
    #[must_use]
    pub fn neighbour(&self, interface: u32, address: u128) -> Option<Mac> {
        self.neighbours.get(&(interface, address)).copied()
    }
}

fn prefixes<'a>(routes: impl Iterator<Item = &'a Route>, ports: &[Port]) -> Vec<Prefixes> {
    let mut lengths: Vec<(u32, Prefixes)> = Vec::new();
    for route in routes {
        let Some(port) = ports.get(route.interface as usize) else {
            continue;
        };
        let bits = u32::from(route.prefix_len) + if route.prefix.is_ipv4() { 96 } else { 0 };
        let at = lengths
            .iter()
            .position(|&(len, _)| len == bits)
            .unwrap_or_else(|| {
                let mask = u128::MAX
                    .checked_shl(128u32.saturating_sub(bits))
                    .unwrap_or(0);
                lengths.push((
                    bits,
                    Prefixes {
                        mask,
                        routes: FixedMap::default(),
                    },
                ));
                lengths.len() - 1
            });
        let mtu = route.mtu.map_or(port.mtu, |mtu| mtu.min(port.mtu));
        let prefixes = &mut lengths[at].1;
        let prefix = address_number(route.prefix) & prefixes.mask;
        prefixes.routes.entry(prefix).or_insert(Way {
            interface: route.interface,
            gateway: route.gateway.map(address_number),
            from: port.mac.into(),
            mtu,
        });
    }
    lengths.sort_by_key(|&(bits, _)| std::cmp::Reverse(bits));
    lengths.into_iter().map(|(_, prefixes)| prefixes).collect()
}

/// Packets that may wait for one neighbour.
const MOST_PER_HOP: usize = 3;
/// Neighbours that may be waited for.
const MOST_HOPS: usize = 256;
/// How long a packet waits.
const PATIENCE_NS: u64 = 3_000_000_000;

/// A neighbour that is not known yet, and what waits for it.
struct Unresolved {
    interface: u32,
    address: u128,
    created: u64,
    reported: bool,
    /// The frames of each packet: more than one when it was cut.
    packets: Vec<Vec<Output>>,
}

/// All waiting packets, oldest hop first. There are few hops, so they are searched in order.
#[derive(Default)]
pub struct Waiting(VecDeque<Unresolved>);

impl Waiting {
    /// Let the frames of one packet wait; they are dropped when this returns `false`.
    pub fn hold(&mut self, hop: &Hop, frames: Vec<Output>, now: u64) -> bool {
        let same = |entry: &&mut Unresolved| {
            (entry.interface, entry.address) == (hop.interface, hop.address)
        };
        if let Some(entry) = self.0.iter_mut().find(same) {
            let fits = entry.packets.len() < MOST_PER_HOP;
            if fits {
                entry.packets.push(frames);
            }
            return fits;
        }
        if self.0.len() >= MOST_HOPS {
            return false;
        }
        let Hop {
            interface, address, ..
        } = *hop;
        self.0.push_back(Unresolved {
            interface,
            address,
            created: now,
            reported: false,
            packets: vec![frames],
        });
        true
    }

    /// Give up the oldest hop if its time is over: how many packets waited for it.
    pub fn expire(&mut self, now: u64) -> Option<usize> {
        let oldest = self.0.front()?;
        if now.saturating_sub(oldest.created) < PATIENCE_NS {
            return None;
        }
        self.0.pop_front().map(|hop| hop.packets.len())
    }

    /// Take out the packets whose neighbour `resolve` knows, in order, with its address.
    pub fn release(
        &mut self,
        resolve: impl Fn(u32, u128) -> Option<Mac>,
    ) -> Vec<(Mac, Vec<Output>)> {
        let mut released = Vec::new();
        self.0.retain_mut(|hop| {
            let Some(mac) = resolve(hop.interface, hop.address) else {
                return true;
            };
            released.extend(hop.packets.drain(..).map(|frames| (mac, frames)));
            false
        });
        released
    }

    /// The hops to resolve that were not returned before.
    pub fn take_unreported(&mut self) -> Vec<(u32, u128)> {
        let fresh = |hop: &mut Unresolved| {
            let reported = std::mem::replace(&mut hop.reported, true);
            (!reported).then_some((hop.interface, hop.address))
        };
        self.0.iter_mut().filter_map(fresh).collect()
    }

    /// Whether `take_unreported` would return any.
    #[must_use]
    pub fn has_unreported(&self) -> bool {
        self.0.back().is_some_and(|hop| !hop.reported)
    }

    /// Packets waiting now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(|hop| hop.packets.len()).sum()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Interface, NextHops, Snapshot, Timeouts};
    use crate::world::World;
    use std::net::IpAddr;

    fn ip(text: &str) -> u128 {
        address_number(text.parse::<IpAddr>().unwrap())
    }

    const OURS: Mac = [2; 6];

    /// (prefix, its length, interface, gateway, MTU)
    type RouteRow = (&'static str, u8, u32, Option<&'static str>, Option<u32>);

    fn world(routes: &[RouteRow]) -> World {
        let interface = Interface {
            name: "eth".into(),
            mac: OURS,
            mtu: 1500,
            addresses: vec![],
            announce: false,
        };
        let route = |&(prefix, prefix_len, interface, gateway, mtu): &RouteRow| Route {
            prefix: prefix.parse().unwrap(),
            prefix_len,
            interface,
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            mtu,
        };
        let snapshot = Snapshot {
            interfaces: vec![interface.clone(), interface],
            timeouts: Timeouts {
                half_open_ns: 1,
                established_ns: 1,
                closing_ns: 1,
                udp_ns: 1,
                idle_floor_ns: 1,
            },
            ..crate::datapath::empty_snapshot()
        };
        World::new(
            snapshot,
            NextHops {
                routes: routes.iter().map(route).collect(),
                neighbours: vec![],
            },
        )
    }

    /// behaviour 28: longest prefix wins, equal ones in order; families never mix.
    #[test]
    fn route_table() {
        let world = world(&[
            ("0.0.0.0", 0, 0, Some("192.0.2.254"), None),
            ("192.0.2.0", 24, 1, None, Some(9000)),
            ("192.0.2.0", 24, 0, None, None),
            ("192.0.2.7", 32, 0, None, Some(1280)),
            ("10.0.0.0", 8, 9, None, None),
            ("2001:db8::", 32, 1, None, None),
        ]);
        let cases = [
            ("192.0.2.7", Some((0, "192.0.2.7", 1280))),
            ("192.0.2.8", Some((1, "192.0.2.8", 1500))),
            ("10.1.1.1", Some((0, "192.0.2.254", 1500))),
            ("2001:db8::5", Some((1, "2001:db8::5", 1500))),
            ("2001:db9::5", None),
        ];
        for (address, expected) in cases {
            let expected = expected.map(|(interface, hop, mtu)| Hop {
                interface,
                address: ip(hop),
                mac: None,
                from: OURS.into(),
                mtu,
            });
            assert_eq!(world.route(ip(address)), expected, "{address}");
        }
    }

    fn frame(mark: u8) -> Vec<Output> {
        vec![Output {
            interface: 0,
            frame: vec![mark; 14],
            offload: crate::datapath::Offload::default(),
        }]
    }

    /// behaviour 28: three packets wait, the fourth does not; they leave in order.
    #[test]
    fn waiting_three_per_hop_leave_in_order() {
        let mut waiting = Waiting::default();
        let hop = Hop {
            interface: 0,
            address: 5,
            mac: None,
            from: OURS.into(),
            mtu: 1500,
        };
        let held: Vec<bool> = (0..4)
            .map(|mark| waiting.hold(&hop, frame(mark), 0))
            .collect();
        assert_eq!(held, [true, true, true, false]);
        assert_eq!(
            (waiting.take_unreported(), waiting.take_unreported()),
            (vec![(0, 5)], vec![])
        );
        assert!(waiting.release(|_, _| None).is_empty());
        let marks: Vec<u8> = waiting
            .release(|_, _| Some([9; 6]))
            .iter()
            .map(|(_, frames)| frames[0].frame[0])
            .collect();
        assert_eq!((marks, waiting.is_empty()), (vec![0, 1, 2], true));
    }

    #[test]
    fn waiting_hop_limit_and_timeout() {
        let mut waiting = Waiting::default();
        for address in 0..300 {
            let hop = Hop {
                interface: 0,
                address,
                mac: None,
                from: OURS.into(),
                mtu: 1500,
            };
            assert_eq!(
                waiting.hold(&hop, frame(0), u64::try_from(address).unwrap()),
                address < 256
            );
        }
        assert_eq!(waiting.expire(PATIENCE_NS - 1), None);
        assert_eq!(
            (waiting.expire(PATIENCE_NS), waiting.expire(PATIENCE_NS)),
            (Some(1), None)
        );
    }
}
