//! Addresses as numbers, so that one path serves both families.

use std::net::IpAddr;

const MAPPED: u128 = 0xffff_0000_0000;

/// An IP address as the number used everywhere inside: IPv4 as `::ffff:a.b.c.d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Ip(u128);

impl Ip {
    /// `::`.
    pub const UNSPECIFIED: Self = Self(0);

    /// From a number in which IPv4 is mapped already.
    #[inline(always)]
    #[must_use]
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// As a number; IPv4 in `::ffff:0:0/96`.
    #[inline(always)]
    #[must_use]
    pub const fn bits(self) -> u128 {
        self.0
    }

    /// From 16 bytes in network order, IPv4 mapped.
    #[inline(always)]
    #[must_use]
    pub const fn from_be_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// As 16 bytes in network order, IPv4 mapped.
    #[inline(always)]
    #[must_use]
    pub const fn to_be_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The upper and the lower half of its bits, as they are kept in registers.
    #[inline(always)]
    #[must_use]
    pub const fn halves(self) -> [u64; 2] {
        [(self.0 >> 64) as u64, self.0 as u64]
    }

    /// What [`Self::halves`] gave.
    #[inline(always)]
    #[must_use]
    pub const fn from_halves([high, low]: [u64; 2]) -> Self {
        Self((high as u128) << 64 | low as u128)
    }

    /// Its prefix under a mask.
    #[inline(always)]
    #[must_use]
    pub const fn masked(self, mask: u128) -> Self {
        Self(self.0 & mask)
    }

    /// From the 32 bits of an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn from_v4(bits: u32) -> Self {
        Self(MAPPED | bits as u128)
    }

    /// The 32 bits of an IPv4 address; the lowest of an IPv6 address.
    #[inline(always)]
    #[must_use]
    pub const fn v4_bits(self) -> u32 {
        self.0 as u32
    }

    /// Whether it lies in `::ffff:0:0/96`. IPv6 packets from or to that prefix are martians, so inside the balancer it
    /// means IPv4.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(self) -> bool {
        let [high, low] = self.halves();
        high == 0 && low >> 32 == (MAPPED >> 32) as u64
    }
}

impl From<IpAddr> for Ip {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::from_v4(v4.to_bits()),
            IpAddr::V6(v6) => Self(v6.to_bits()),
        }
    }
}

impl From<Ip> for IpAddr {
    fn from(ip: Ip) -> Self {
        if ip.is_v4() {
            IpAddr::V4(ip.v4_bits().into())
        } else {
            IpAddr::V6(ip.0.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ip_of_both_families_restores_address() {
        for text in ["198.18.1.100", "0.0.0.0", "2001:db8::1", "::"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Ip::from(address)), address);
        }
    }
}
