//! Our interfaces, those of a snapshot, as packets ask about them. What few packets ask, they ask the snapshot.

use std::net::IpAddr;

use crate::base::{Ip, Mac};
use crate::snapshot;

/// An interface of ours.
#[derive(Clone, Debug)]
pub struct LocalInterface {
    /// Its link-layer address.
    pub mac: Mac,
    /// Bytes of IP packet.
    pub mtu: u32,
    first_v4: Option<Ip>,
    first_v6: Option<Ip>,
    broadcasts: Vec<Ip>,
}

impl LocalInterface {
    /// Compile.
    #[must_use]
    pub fn of(interface: &snapshot::Interface) -> Self {
        let first = |v4: bool| {
            let of_family = |(address, _): &&(IpAddr, u8)| address.is_ipv4() == v4;
            let found = interface.addresses.iter().find(of_family);
            found.map(|(address, _)| Ip::from(*address))
        };
        let broadcasts = interface.addresses.iter();
        Self {
            mac: interface.mac,
            mtu: interface.mtu,
            first_v4: first(true),
            first_v6: first(false),
            broadcasts: broadcasts
                .filter_map(|&(address, len)| directed_broadcast(address, len))
                .collect(),
        }
    }

    /// Its first address of a family.
    #[must_use]
    pub fn first_address(&self, v4: bool) -> Option<Ip> {
        if v4 { self.first_v4 } else { self.first_v6 }
    }

    /// Whether an address is the directed broadcast of one of its prefixes.
    #[must_use]
    pub fn has_broadcast(&self, address: Ip) -> bool {
        self.broadcasts.contains(&address)
    }
}

/// The directed broadcast of a prefix; `None` where there is none.
#[must_use]
pub fn directed_broadcast(address: IpAddr, prefix_len: u8) -> Option<Ip> {
    let IpAddr::V4(v4) = address else { return None };
    let host_bits = u32::MAX.checked_shr(u32::from(prefix_len)).unwrap_or(0);
    (prefix_len <= 30).then(|| Ip::from_v4(v4.to_bits() | host_bits))
}
