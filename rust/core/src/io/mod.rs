//! Packets in and out: sockets that Python opened, used here by descriptor, and the loop that moves frames between
//! them and the data path.
//!
//! First and last step of the packet walk. Frames come in batches (`batch`) from memory shared with the kernel
//! (`ring`), each with what its sender left to the network card ([`vnet_hdr`]), are processed in place and leave in
//! batches (`outbox`); one thread does it all ([`worker`]). `unsafe` is needed for the ring and for sockets that hand
//! frames to drivers (`af_xdp`); system calls are in [`sys`](crate::sys). Left out: opening and tuning sockets
//! (Python), and a ring for sending (frames that a receiver has not read yet would be overwritten).

mod af_xdp;
mod backlog;
mod batch;
mod busy_poll;
mod counters;
mod interface;
mod outbox;
mod packet_loop;
pub mod pauses;
mod queue;
mod ring;
pub mod vnet_hdr;
mod worker;

pub use busy_poll::Poll;
pub use counters::{IoCounters, IoReport, LoopReport};
pub use interface::Interface;
pub use packet_loop::LoopOptions;
pub use queue::LoopError;
pub use worker::Worker;
