//! May a packet with these addresses be routed at all: rule 5.2 to 5.7 (RFC 1812 5.3.7, behaviour 16 and 18).

use super::Stage;
use crate::packet::Meta;
use crate::parse::Ip;
use crate::verdict::{Reason, Verdict};
use crate::wire::is_v4;
use crate::world::World;

/// The order is that of the rule: what is the host's affair passes before anything is dropped. Returns whether the destination is a VIP.
#[inline(always)]
pub(super) fn check_addresses(world: &World, meta: &Meta) -> Stage<bool> {
    let interface = meta.interface;
    let Ip {
        v4,
        source,
        destination,
        ..
    } = meta.ip;
    let source_role = world.role(v4, source);
    let destination_role = world.role(v4, destination);
    let directed = destination_role.broadcast && world.is_broadcast_of(interface, destination);
    if directed || is_for_host(v4, destination) {
        return Err(Verdict::Pass);
    }
    if meta.to_group {
        return Err(Reason::L2Broadcast.into());
    }
    if is_martian_source(v4, source) || source_role.vip || source_role.own || source_role.broadcast
    {
        return Err(Reason::MartianSource.into());
    }
    if is_martian_destination(v4, destination) {
        return Err(Reason::MartianDestination.into());
    }
    if destination_role.own && !destination_role.vip {
        return Err(Verdict::Pass);
    }
    let server_hop = source_role
        .server
        .and_then(|server| world.server_hop(server));
    if server_hop.is_some_and(|hop| hop.interface != interface) {
        return Err(Reason::SpoofedServer.into());
    }
    Ok(destination_role.vip)
}

/// The first byte of an IPv4 address.
const fn first_byte(address: u128) -> u8 {
    (address >> 24) as u8
}

const fn is_link_local(address: u128) -> bool {
    address >> 118 == 0xfe80 >> 6
}

const fn is_multicast(address: u128) -> bool {
    address >> 120 == 0xff
}

/// Multicast, limited broadcast, link-local: never routed.
const fn is_for_host(v4: bool, destination: u128) -> bool {
    if v4 {
        matches!(first_byte(destination), 224..=239) || destination as u32 == u32::MAX
    } else {
        is_multicast(destination) || is_link_local(destination)
    }
}

const fn is_martian_source(v4: bool, source: u128) -> bool {
    if v4 {
        matches!(first_byte(source), 0 | 127 | 224..=255)
    } else {
        source <= 1 || is_multicast(source) || is_v4(source) || is_link_local(source)
    }
}

const fn is_martian_destination(v4: bool, destination: u128) -> bool {
    if v4 {
        matches!(first_byte(destination), 0 | 127 | 240..=255)
    } else {
        destination <= 1 || is_v4(destination)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::address_number;
    use std::net::IpAddr;

    /// behaviour 16: each prefix, and an address beside it.
    #[test]
    fn martians_table() {
        let cases = [
            ("0.1.2.3", false, true, true),
            ("1.0.0.0", false, false, false),
            ("126.255.255.255", false, false, false),
            ("127.0.0.1", false, true, true),
            ("223.255.255.255", false, false, false),
            ("224.0.0.1", true, true, false),
            ("239.255.255.255", true, true, false),
            ("240.0.0.0", false, true, true),
            ("255.255.255.255", true, true, true),
            ("::", false, true, true),
            ("::1", false, true, true),
            ("::2", false, false, false),
            ("ff02::1", true, true, false),
            ("::ffff:1.2.3.4", false, true, true),
            ("fe80::1", true, true, false),
            ("febf::1", true, true, false),
            ("fec0::1", false, false, false),
        ];
        for (text, host, source, destination) in cases {
            let address: IpAddr = text.parse().unwrap();
            let (v4, number) = (address.is_ipv4(), address_number(address));
            let found = (
                is_for_host(v4, number),
                is_martian_source(v4, number),
                is_martian_destination(v4, number),
            );
            assert_eq!(found, (host, source, destination), "{text}");
        }
    }
}
