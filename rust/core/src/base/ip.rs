//! Addresses as numbers, so that one path serves both families.

use std::net::IpAddr;

const MAPPED: u128 = 0xffff_0000_0000;

/// Turn an address into the number used everywhere inside: IPv4 as `::ffff:a.b.c.d`.
#[must_use]
pub fn address_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => map_v4(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The inverse of [`address_number`].
#[must_use]
pub fn number_address(number: u128) -> IpAddr {
    if is_v4(number) {
        IpAddr::V4((number as u32).into())
    } else {
        IpAddr::V6(number.into())
    }
}

/// An IPv4 address as a number in `::ffff:0:0/96`.
#[must_use]
pub const fn map_v4(bits: u32) -> u128 {
    MAPPED | bits as u128
}

/// Whether the number lies in `::ffff:0:0/96`. IPv6 packets from or to that prefix are martians, so inside the
/// balancer it means IPv4.
#[inline(always)]
#[must_use]
pub const fn is_v4(number: u128) -> bool {
    // By halves, as it is kept in registers.
    (number >> 64) as u64 == 0 && (number as u64) >> 32 == (MAPPED >> 32) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_number_both_families_restores_address() {
        for text in ["198.18.1.100", "0.0.0.0", "2001:db8::1", "::"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(number_address(address_number(address)), address);
        }
    }
}
