//! Packets in and out: sockets that Python opened, used here by descriptor, and the loop that moves frames between
//! them and the data path.
//!
//! First and last step of the packet walk. Frames come in batches ([`packet_socket`]) from memory shared with the
//! kernel (`ring`), each with what its sender left to the network card ([`header`]), are processed in place and
//! leave in batches; one thread does it all ([`worker`]). The only place with `unsafe`: the system calls in `sys`,
//! the ring, the flow table's memory in [`memory`], [`prefetch`](fn@prefetch::prefetch) and [`lanes`]. Left out:
//! opening and tuning sockets (Python), a ring for sending (frames that a receiver has not read yet would be
//! overwritten), fan-out to several threads.

mod backlog;
mod batch;
mod busy_poll;
mod counters;
mod direct;
pub mod header;
mod interface;
mod outbox;
mod packet_loop;
pub mod pauses;
mod queue;
mod ring;
mod worker;

pub use busy_poll::Poll;
pub use counters::{IoCounters, IoReport, LoopReport};
pub use interface::Interface;
pub use packet_loop::LoopOptions;
pub use queue::LoopError;
pub use worker::Worker;
