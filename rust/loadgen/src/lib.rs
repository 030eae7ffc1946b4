//! Packet generators for measurements: no part of the load balancer, which does not know them.
//!
//! [`generator`] sends through a packet socket, at a pace or as fast as one thread can; [`flood`] has the kernel
//! make the packets.

#![forbid(unsafe_code)]

pub mod flood;
pub mod generator;
