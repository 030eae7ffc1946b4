//! Packets in and out: sockets that Python opened, used here by descriptor, and the loop that moves frames between them and the data path.
//!
//! First and last step of the packet walk. Frames come in batches ([`packet_socket`]), each with what its sender left to the network card
//! ([`header`]), are processed in place and leave in batches; one thread does it all ([`worker`]). The only place with `unsafe`: the system calls in
//! `sys`, the flow table's memory in [`memory`], [`prefetch`](fn@prefetch::prefetch) and [`lanes`]. Left out: opening and tuning sockets (Python), rings and fan-out (a batch of system calls moves more than a core can rewrite).

pub mod flood;
pub mod generator;
pub mod header;
pub mod lanes;
pub mod memory;
pub mod packet_socket;
pub mod prefetch;
mod sys;
pub mod worker;

pub use packet_socket::{IoCounters, IoReport};
pub use sys::{require_open, require_socket};
pub use worker::{LoopError, Worker};
