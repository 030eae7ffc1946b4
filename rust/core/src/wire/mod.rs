//! Packet formats: what the bytes of each header mean.
//!
//! Two levels, the same in every file. Here: a *view* over exactly the bytes of one fixed header, with a getter per field and, over mutable
//! bytes, a setter. One level up, [`crate::parse`] walks a frame from view to view and keeps what later stages need.
//!
//! A view is a reference to an array, made from a slice with `first_chunk`. That is the only length check: once it has given an array, no getter and no
//! setter can panic, whatever the bytes are. What a field *claims* (a length, an offset) is not checked here; `parse` does that before anyone
//! follows it.
//!
//! Numbers are host order outside this module. Addresses are `u128`, IPv4 as `::ffff:a.b.c.d`, so that one path serves both families.

use std::borrow::{Borrow, BorrowMut};
use std::net::IpAddr;

pub mod arp;
pub mod checksum;
pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod tcp;
pub mod udp;

/// IP protocol numbers (IANA).
pub mod protocol {
    /// Internet control messages for IPv4.
    pub const ICMP: u8 = 1;
    /// RFC 9293.
    pub const TCP: u8 = 6;
    /// RFC 768.
    pub const UDP: u8 = 17;
    /// Internet control messages for IPv6.
    pub const ICMPV6: u8 = 58;
}

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

/// Whether the number lies in `::ffff:0:0/96`. IPv6 packets from or to that prefix are martians, so inside the balancer it means IPv4.
#[inline(always)]
#[must_use]
pub const fn is_v4(number: u128) -> bool {
    // By halves, as it is kept in registers.
    (number >> 64) as u64 == 0 && (number as u64) >> 32 == (MAPPED >> 32) as u64
}

fn get16<const N: usize>(bytes: &impl Borrow<[u8; N]>, at: usize) -> u16 {
    let bytes = bytes.borrow();
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn get32<const N: usize>(bytes: &impl Borrow<[u8; N]>, at: usize) -> u32 {
    let bytes = bytes.borrow();
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn set16<const N: usize>(bytes: &mut impl BorrowMut<[u8; N]>, at: usize, value: u16) {
    bytes.borrow_mut()[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn set32<const N: usize>(bytes: &mut impl BorrowMut<[u8; N]>, at: usize, value: u32) {
    bytes.borrow_mut()[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// A view type over `N` bytes, with its constructors. Getters and setters follow in each file.
macro_rules! view {
    ($(#[$doc:meta])* $name:ident, $len:expr) => {
        /// Bytes of the fixed header.
        pub const LEN: usize = $len;

        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name<B>(B);

        impl<'a> $name<&'a [u8; LEN]> {
            /// View the start of `bytes`; `None` when they are fewer than `LEN`.
            #[inline]
            #[must_use]
            pub fn new(bytes: &'a [u8]) -> Option<Self> {
                bytes.first_chunk().map(Self)
            }
        }

        impl<'a> $name<&'a mut [u8; LEN]> {
            /// View the start of `bytes` for writing; `None` when they are fewer than `LEN`.
            #[inline]
            #[must_use]
            pub fn new_mut(bytes: &'a mut [u8]) -> Option<Self> {
                bytes.first_chunk_mut().map(Self)
            }
        }
    };
}

/// Getters and setters of 16-bit fields.
macro_rules! fields16 {
    ($view:ident: $($(#[$doc:meta])* $get:ident $set:ident @ $at:literal;)+) => {
        impl<B: std::borrow::Borrow<[u8; LEN]>> $view<B> {
            $($(#[$doc])* #[inline] #[must_use] pub fn $get(&self) -> u16 { super::get16::<LEN>(&self.0, $at) })+
        }
        impl<B: std::borrow::BorrowMut<[u8; LEN]>> $view<B> {
            $($(#[$doc])* #[inline] pub fn $set(&mut self, value: u16) { super::set16::<LEN>(&mut self.0, $at, value); })+
        }
    };
}

use {fields16, view};

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
