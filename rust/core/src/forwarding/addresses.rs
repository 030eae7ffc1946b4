//! What each configured address is to us, in one look: its role, and who listens there.
//!
//! Every packet asks this about both of its addresses, and most addresses that packets bring are in no
//! configuration: those cost one load from the index, which is kept nearly empty for that. The index is not keyed:
//! what is in it comes from the configuration, so no client can make its chains longer.

use crate::base::{FixedMap, InterfaceId, Ip};

/// What an address is to us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// A service listens on it.
    pub vip: bool,
    /// One of our interfaces has it.
    pub own: bool,
    /// It is the directed broadcast of a prefix of one of our interfaces.
    pub broadcast: bool,
    /// The server with this address, the one with the lowest id.
    pub server: Option<u32>,
}

/// Who listens on an (address, port, protocol).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketRole {
    /// The service whose VIP and port it is.
    pub service: Option<u32>,
    /// The endpoint, when it is a server's.
    pub endpoint: Option<u32>,
}

/// Slots of the index per address, at least.
const SPARSENESS: usize = 8;
const FEWEST_SLOTS: usize = 1024;

/// A configured address.
#[derive(Clone, Debug)]
pub struct LocalAddress {
    address: Ip,
    /// The next local with the same slot, counted from 1; 0: none.
    next: u32,
    /// What it is to us.
    pub role: Role,
    /// Packets may come from there, as far as its role goes; may be routed there.
    sends: bool,
    receives: bool,
    /// The interface that packets from there must come in by; `None`: any.
    pub home: Option<InterfaceId>,
    /// One of its sockets, mostly the only one, at hand.
    first: (u32, SocketRole),
    has_more: bool,
}

impl LocalAddress {
    /// Whether a packet may come from there, by that interface.
    #[inline(always)]
    #[must_use]
    pub fn may_send(&self, interface: InterfaceId) -> bool {
        self.sends && self.home.is_none_or(|home| home == interface)
    }

    /// Whether a packet for there may be routed.
    #[inline(always)]
    #[must_use]
    pub fn may_receive(&self) -> bool {
        self.receives
    }
}

/// All configured addresses.
#[derive(Default)]
pub struct LocalAddresses {
    /// The local that a hash stands for, counted from 1; 0: none. A power of two of them.
    index: Vec<u32>,
    /// What this shift leaves of a hash's 64 bits is its slot.
    shift: u32,
    known: Vec<LocalAddress>,
    sockets: FixedMap<(Ip, u32), SocketRole>,
}

impl LocalAddresses {
    /// Compile.
    #[must_use]
    pub fn new(roles: FixedMap<Ip, Role>, sockets: FixedMap<(Ip, u32), SocketRole>) -> Self {
        let slots = (roles.len() * SPARSENESS)
            .max(FEWEST_SLOTS)
            .next_power_of_two();
        let mut addresses = Self {
            index: vec![0; slots],
            shift: u64::BITS - slots.trailing_zeros(),
            known: Vec::with_capacity(roles.len()),
            sockets: FixedMap::default(),
        };
        for (address, role) in roles {
            addresses.add(address, role);
        }
        for (&(address, socket), &role) in &sockets {
            addresses.add_socket(address, socket, role);
        }
        addresses.sockets = sockets;
        addresses
    }

    /// Note where packets of servers come in: `home` says it of a server.
    pub fn set_homes(&mut self, home: impl Fn(u32) -> Option<InterfaceId>) {
        for local in &mut self.known {
            local.home = local.role.server.and_then(&home);
        }
    }

    /// What an address of that family is to us; all of IPv4's are mapped. An IPv6 address that looks like a mapped
    /// IPv4 one is nothing to us.
    #[inline(always)]
    #[must_use]
    pub fn at(&self, v4: bool, address: Ip) -> Option<&LocalAddress> {
        if v4 {
            self.find(address)
        } else {
            self.at_v6(address)
        }
    }

    #[inline(never)]
    fn at_v6(&self, address: Ip) -> Option<&LocalAddress> {
        if address.is_v4() {
            return None;
        }
        self.find(address)
    }

    #[inline(always)]
    fn find(&self, address: Ip) -> Option<&LocalAddress> {
        let mut number = *self.index.get(self.slot(address))?;
        loop {
            // 0, "none", wraps around to a local that there is not.
            let local = self.known.get(number.wrapping_sub(1) as usize)?;
            if local.address == address {
                return Some(local);
            }
            number = local.next;
        }
    }

    /// Who listens on a socket of a local: see [`socket`].
    #[inline(always)]
    #[must_use]
    pub fn socket_role(&self, local: &LocalAddress, socket: u32) -> SocketRole {
        if local.first.0 == socket {
            return local.first.1;
        }
        if !local.has_more {
            return SocketRole::default();
        }
        let key = (local.address, socket);
        self.sockets.get(&key).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn slot(&self, address: Ip) -> usize {
        // One multiplication, of which the upper bits depend on all lower ones: enough for what the configuration
        // names.
        let [high, low] = address.halves();
        let folded = high ^ low;
        (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize
    }

    fn add(&mut self, address: Ip, role: Role) {
        let slot = self.slot(address);
        self.known.push(LocalAddress {
            address,
            next: self.index[slot],
            role,
            sends: !(role.vip || role.own || role.broadcast),
            receives: !role.broadcast && (role.vip || !role.own),
            home: None,
            first: (NO_SOCKET, SocketRole::default()),
            has_more: false,
        });
        self.index[slot] = self.known.len() as u32;
    }

    fn add_socket(&mut self, address: Ip, socket: u32, role: SocketRole) {
        let slot = self.slot(address);
        let mut number = self.index[slot];
        while let Some(local) = self.known.get_mut(number.wrapping_sub(1) as usize) {
            if local.address == address {
                if local.first.0 == NO_SOCKET {
                    local.first = (socket, role);
                } else {
                    local.has_more = true;
                }
                return;
            }
            number = local.next;
        }
    }
}

/// No port and protocol: the top byte of a socket's number is 0.
const NO_SOCKET: u32 = u32::MAX;

/// A port and a protocol in one number.
#[inline(always)]
#[must_use]
pub fn socket(port: u16, protocol: u8) -> u32 {
    u32::from(port) << 8 | u32::from(protocol)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Ip;
    use proptest::prelude::*;

    proptest! {
        /// Few enough slots that addresses share them: what is found is what a map finds.
        #[test]
        fn places_any_configuration_equals_maps(
            addresses in proptest::collection::hash_set(0u32..4000, 0..2000),
            listening in proptest::collection::vec((any::<prop::sample::Index>(), 0u16..5), 0..100),
            asked in proptest::collection::vec((0u32..4000, 0u16..5), 100),
        ) {
            let role = |address: u32| Role { vip: true, server: Some(address), ..Role::default() };
            let roles: FixedMap<Ip, Role> =
                addresses.iter().map(|&address| (Ip::from_v4(address), role(address))).collect();
            let mut sockets = FixedMap::<(Ip, u32), SocketRole>::default();
            for (id, (index, port)) in listening.iter().enumerate().filter(|_| !addresses.is_empty()) {
                let address = *addresses.iter().nth(index.index(addresses.len())).unwrap();
                sockets.entry((Ip::from_v4(address), socket(*port, 6))).or_default().service = Some(id as u32);
            }
            let addresses = LocalAddresses::new(roles.clone(), sockets.clone());
            for (address, port) in asked {
                let address = Ip::from_v4(address);
                let found = addresses.at(true, address);
                prop_assert_eq!(found.map(|local| local.role), roles.get(&address).copied());
                let role = found.map(|local| addresses.socket_role(local, socket(port, 6)));
                let expected = sockets.get(&(address, socket(port, 6))).copied();
                prop_assert_eq!(role.unwrap_or_default(), expected.unwrap_or_default());
                prop_assert!(addresses.at(false, address).is_none());
            }
        }
    }

    #[test]
    fn places_none_configured_finds_nothing() {
        let addresses = LocalAddresses::new(FixedMap::default(), FixedMap::default());
        assert!(addresses.at(true, Ip::from_v4(1)).is_none());
        assert!(addresses.at(false, Ip::from_bits(1)).is_none());
    }
}
