//! Routes by longest prefix, and neighbours: the mirror of the kernel's tables, published as a whole.

use super::local_interface::LocalInterface;
use crate::base::{FixedMap, InterfaceId, Ip, Mac, MacNumber};
use crate::snapshot::{NextHops, Route};

/// One step on a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Interface id.
    pub interface: InterfaceId,
    /// The gateway, or the destination itself.
    pub address: Ip,
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
    routes: FixedMap<Ip, Way>,
}

/// What a route says.
#[derive(Clone, Copy)]
struct Way {
    interface: InterfaceId,
    gateway: Option<Ip>,
    from: MacNumber,
    mtu: u32,
}

/// Routes and neighbours, compiled.
#[derive(Default)]
pub struct Routing {
    /// Longest prefixes first; IPv4, IPv6.
    v4: Vec<Prefixes>,
    v6: Vec<Prefixes>,
    neighbours: FixedMap<(InterfaceId, Ip), Mac>,
}

impl Routing {
    /// Compile. Routes through interfaces that do not exist are left out.
    #[must_use]
    pub fn new(next_hops: &NextHops, interfaces: &[LocalInterface]) -> Self {
        let neighbours = next_hops.neighbours.iter();
        Self {
            v4: prefixes(
                next_hops
                    .routes
                    .iter()
                    .filter(|route| route.prefix.is_ipv4()),
                interfaces,
            ),
            v6: prefixes(
                next_hops
                    .routes
                    .iter()
                    .filter(|route| route.prefix.is_ipv6()),
                interfaces,
            ),
            neighbours: neighbours
                .map(|hop| ((hop.interface, Ip::from(hop.address)), hop.mac))
                .collect(),
        }
    }

    /// The way to an address by the most specific route.
    #[must_use]
    pub fn to(&self, address: Ip) -> Option<Hop> {
        let family = if address.is_v4() { &self.v4 } else { &self.v6 };
        let mut found = family
            .iter()
            .filter_map(|prefixes| prefixes.routes.get(&address.masked(prefixes.mask)));
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
    pub fn to_server(
        &self,
        address: Ip,
        mac: Option<Mac>,
        interfaces: &[LocalInterface],
    ) -> Option<Hop> {
        let route = self.to(address);
        let Some(mac) = mac else { return route };
        let first = || {
            interfaces.first().map(|interface| Hop {
                interface: InterfaceId::new(0),
                address,
                mac: None,
                from: interface.mac.into(),
                mtu: interface.mtu,
            })
        };
        route.or_else(first).map(|hop| Hop {
            mac: Some(mac.into()),
            ..hop
        })
    }

    /// The link-layer address of a neighbour.
    #[must_use]
    pub fn neighbour(&self, interface: InterfaceId, address: Ip) -> Option<Mac> {
        self.neighbours.get(&(interface, address)).copied()
    }
}

fn prefixes<'a>(
    routes: impl Iterator<Item = &'a Route>,
    interfaces: &[LocalInterface],
) -> Vec<Prefixes> {
    let mut lengths: Vec<(u32, Prefixes)> = Vec::new();
    for route in routes {
        let Some(interface) = interfaces.get(route.interface.index()) else {
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
        let mtu = route
            .mtu
            .map_or(interface.mtu, |mtu| mtu.min(interface.mtu));
        let prefixes = &mut lengths[at].1;
        let prefix = Ip::from(route.prefix).masked(prefixes.mask);
        prefixes.routes.entry(prefix).or_insert(Way {
            interface: route.interface,
            gateway: route.gateway.map(Ip::from),
            from: interface.mac.into(),
            mtu,
        });
    }
    lengths.sort_by_key(|&(bits, _)| std::cmp::Reverse(bits));
    lengths.into_iter().map(|(_, prefixes)| prefixes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot;
    use std::net::IpAddr;

    fn ip(text: &str) -> Ip {
        Ip::from(text.parse::<IpAddr>().unwrap())
    }

    const OURS: Mac = [2; 6];

    /// (prefix, its length, interface, gateway, MTU)
    type RouteRow = (&'static str, u8, u32, Option<&'static str>, Option<u32>);

    fn routing(routes: &[RouteRow]) -> Routing {
        let interface = snapshot::Interface {
            name: "eth".into(),
            mac: OURS,
            mtu: 1500,
            addresses: vec![],
            announce: false,
        };
        let route = |&(prefix, prefix_len, interface, gateway, mtu): &RouteRow| Route {
            prefix: prefix.parse().unwrap(),
            prefix_len,
            interface: InterfaceId::new(interface),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            mtu,
        };
        let next_hops = NextHops {
            routes: routes.iter().map(route).collect(),
            neighbours: vec![],
        };
        let interface = LocalInterface::of(&interface);
        Routing::new(&next_hops, &[interface.clone(), interface])
    }

    /// Rule 11, next hop: longest prefix wins, equal ones in order; families never mix.
    #[test]
    fn route_table() {
        let routing = routing(&[
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
                interface: InterfaceId::new(interface),
                address: ip(hop),
                mac: None,
                from: OURS.into(),
                mtu,
            });
            assert_eq!(routing.to(ip(address)), expected, "{address}");
        }
    }
}
