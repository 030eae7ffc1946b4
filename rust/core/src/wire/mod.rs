//! Packet formats: what the bytes of each header mean.
//!
//! Two levels, the same in every file. Here: a *view* over exactly the bytes of one fixed header, with a getter per
//! field and, over mutable bytes, a setter. One level up, [`crate::parse`] walks a frame from view to view and
//! keeps what later stages need.
//!
//! A view is a reference to an array, made from a slice with `first_chunk`. That is the only length check: once it
//! has given an array, no getter and no setter can panic, whatever the bytes are. What a field *claims* (a length,
//! an offset) is not checked here; `parse` does that before it is used.
//!
//! Numbers are host order outside this module. Addresses are [`crate::base::Ip`], IPv4 as `::ffff:a.b.c.d`, so that
//! one path serves both families.

use std::borrow::{Borrow, BorrowMut};

pub mod arp;
pub mod checksum;
pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod ipv6;
pub mod segment;
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
            $(
                $(#[$doc])*
                #[inline]
                pub fn $set(&mut self, value: u16) { super::set16::<LEN>(&mut self.0, $at, value); }
            )+
        }
    };
}

use {fields16, view};
