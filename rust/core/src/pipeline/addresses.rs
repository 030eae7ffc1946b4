//! May a packet with these addresses be routed at all: rule 5.2, multicast and broadcast, to rule 5.7, spoofed
//! servers (RFC 1812 5.3.7).

use std::ops::ControlFlow::{Break, Continue};

use super::walk::Stage;
use crate::base::{Ip, Reason, Verdict};
use crate::forwarding::{ForwardingState, LocalAddress, Role};
use crate::packet::Meta;
use crate::parse::IpHeader;

/// What is known of a packet's addresses.
#[derive(Clone, Copy)]
pub(super) struct AddressPair<'a> {
    pub source: Option<&'a LocalAddress>,
    pub destination: Option<&'a LocalAddress>,
}

impl<'a> AddressPair<'a> {
    /// Look both up.
    #[inline(always)]
    pub(super) fn of(forwarding: &'a ForwardingState, ip: &IpHeader) -> Self {
        Self {
            source: forwarding.local_address(ip.v4, ip.source),
            destination: forwarding.local_address(ip.v4, ip.destination),
        }
    }

    /// Whether the packet is for a VIP.
    #[inline(always)]
    pub(super) fn to_vip(self) -> bool {
        self.destination.is_some_and(|place| place.role.vip)
    }
}

/// Refuse what may not be routed. Nearly every packet has nothing about it that any of the rules could mean: they
/// are gone through for the others only.
#[inline(always)]
pub(super) fn check_addresses(
    forwarding: &ForwardingState,
    meta: &Meta,
    pair: AddressPair,
) -> Stage<()> {
    let IpHeader {
        v4,
        source,
        destination,
        ..
    } = meta.ip;
    let is_plain = v4
        && !meta.to_group
        && IS_UNICAST[usize::from(first_byte(source))]
        && IS_UNICAST[usize::from(first_byte(destination))];
    let may_pass = pair
        .source
        .is_none_or(|place| place.may_send(meta.interface))
        && pair.destination.is_none_or(LocalAddress::may_receive);
    if is_plain && may_pass {
        return Continue(());
    }
    check_one_by_one(forwarding, meta, pair)
}

/// The order is that of the rule: what is the host's affair passes before anything is dropped.
#[cold]
#[inline(never)]
fn check_one_by_one(forwarding: &ForwardingState, meta: &Meta, pair: AddressPair) -> Stage<()> {
    let interface = meta.interface;
    let IpHeader {
        v4,
        source,
        destination,
        ..
    } = meta.ip;
    let role = |place: Option<&LocalAddress>| place.map_or_else(Role::default, |place| place.role);
    let source_role = role(pair.source);
    let destination_role = role(pair.destination);
    let directed = destination_role.broadcast && forwarding.is_broadcast_of(interface, destination);
    if directed || is_for_host(v4, destination) {
        return Break(Verdict::Pass);
    }
    if meta.to_group {
        return Break(Reason::L2Broadcast.into());
    }
    if is_martian_source(v4, source) || source_role.vip || source_role.own || source_role.broadcast
    {
        return Break(Reason::MartianSource.into());
    }
    if is_martian_destination(v4, destination) {
        return Break(Reason::MartianDestination.into());
    }
    if destination_role.own && !destination_role.vip {
        return Break(Verdict::Pass);
    }
    let home = pair.source.and_then(|place| place.home);
    if home.is_some_and(|home| home != interface) {
        return Break(Reason::SpoofedServer.into());
    }
    Continue(())
}

/// By the first byte of an IPv4 address: whether it is neither a martian, nor the host's affair.
const IS_UNICAST: [bool; 256] = {
    let mut unicast = [false; 256];
    let mut byte = 0;
    while byte < unicast.len() {
        unicast[byte] = matches!(byte, 1..=126 | 128..=223);
        byte += 1;
    }
    unicast
};

/// The first byte of an IPv4 address.
const fn first_byte(address: Ip) -> u8 {
    (address.v4_bits() >> 24) as u8
}

const fn is_link_local(address: Ip) -> bool {
    address.bits() >> 118 == 0xfe80 >> 6
}

const fn is_multicast(address: Ip) -> bool {
    address.bits() >> 120 == 0xff
}

/// Multicast, limited broadcast, link-local: never routed.
const fn is_for_host(v4: bool, destination: Ip) -> bool {
    if v4 {
        matches!(first_byte(destination), 224..=239) || destination.v4_bits() == u32::MAX
    } else {
        is_multicast(destination) || is_link_local(destination)
    }
}

const fn is_martian_source(v4: bool, source: Ip) -> bool {
    if v4 {
        matches!(first_byte(source), 0 | 127 | 224..=255)
    } else {
        source.bits() <= 1 || is_multicast(source) || source.is_v4() || is_link_local(source)
    }
}

const fn is_martian_destination(v4: bool, destination: Ip) -> bool {
    if v4 {
        matches!(first_byte(destination), 0 | 127 | 240..=255)
    } else {
        destination.bits() <= 1 || destination.is_v4()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{InterfaceId, Ip};
    use std::net::IpAddr;

    /// No rule is passed over: what is let through at once, the rules in their order let through too, whatever the
    /// addresses are to us.
    #[test]
    fn check_addresses_at_once_equals_one_by_one() {
        let first_bytes = 0..=255u32;
        let own = |first: u32| first << 24 | 0x0012_0101;
        let forwarding = crate::forwarding::tests::state_with_roles();
        let configured =
            crate::forwarding::tests::ADDRESSES.map(|address| (true, Ip::from_v4(address)));
        let others = first_bytes.map(|first| (true, Ip::from_v4(own(first))));
        let v6 = [
            0u128,
            1,
            2,
            0xfe80 << 112,
            0xff02 << 112,
            Ip::from_v4(own(20)).bits(),
        ]
        .map(|bits| (false, Ip::from_bits(bits)));
        let all: Vec<_> = configured.into_iter().chain(others).chain(v6).collect();
        let mut meta = Meta::EMPTY;
        for &(v4, source) in &all {
            for &(_, destination) in all.iter().filter(|&&(family, _)| family == v4) {
                for (interface, to_group) in [(0, false), (1, false), (0, true)] {
                    (meta.ip.v4, meta.ip.source, meta.ip.destination) = (v4, source, destination);
                    (meta.interface, meta.to_group) = (InterfaceId::new(interface), to_group);
                    let pair = AddressPair::of(&forwarding, &meta.ip);
                    assert_eq!(
                        check_addresses(&forwarding, &meta, pair),
                        check_one_by_one(&forwarding, &meta, pair)
                    );
                }
            }
        }
    }

    /// Rule 5.4, martian sources: each prefix, and an address beside it.
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
            let (v4, number) = (address.is_ipv4(), Ip::from(address));
            let found = (
                is_for_host(v4, number),
                is_martian_source(v4, number),
                is_martian_destination(v4, number),
            );
            assert_eq!(found, (host, source, destination), "{text}");
        }
    }
}
