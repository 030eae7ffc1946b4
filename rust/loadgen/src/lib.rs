//! Packet generators for measurements: no part of the load balancer, which does not know them.
//!
//! [`generator`] sends through a packet socket, at a pace or as fast as one thread can; [`flood`] has the kernel
//! make the packets, and so has [`scatter`], from random sources and at a pace.

#![forbid(unsafe_code)]

pub mod flood;
pub mod generator;
mod program;
pub mod scatter;
