//! The data path of flowlb: what becomes of a packet, without Python, without root, without a clock of its own.
//!
//! # The life of a packet
//!
//! A frame enters at [`datapath::DataPath::process`]. `pipeline` takes it from stage to stage, and each stage
//! either finds something to continue with or ends the walk with the packet's [`base::Verdict`]:
//!
//! 1. [`wire`] says what the bytes of each header mean; [`parse`] reads them layer by layer, and refuses what is
//!    malformed; [`packet`] keeps what was found.
//! 2. The addresses are judged, and the destination compared with what the [`snapshot`] offers: [`forwarding`]
//!    is the snapshot, compiled for such questions.
//! 3. [`fragment`] keeps the pieces of a datagram together.
//! 4. [`flow`] finds the packet's flow and moves its state on.
//! 5. On a miss, [`plan`] picks a server that takes the flow: the only place where a policy meets a packet.
//!    [`least`] keeps servers in order of load, [`asking`] holds the packets for which a user's policy is asked,
//!    [`direct`] remembers who speaks to a server past the services.
//! 6. [`next_hop`] says where a packet goes next; [`rewrite`] changes addresses, ports, TTL and checksums in place.
//! 7. Where the walk ends without that, [`reply`] makes the answer, and [`limit`] says how often.
//!
//! [`io`] brings frames from packet sockets and takes them away, in batches. [`counters`] notes every step. The
//! rules themselves are in `docs/rules.md`; the numbers in comments are its section numbers.
//!
//! # Layers
//!
//! From bottom to top, in the order of the modules below: each uses those before it, none uses one behind it, and
//! no two files use each other. The compiled forwarding state holds each server's next hop and translation, so
//! `next_hop` and `rewrite` are below it, and what places flows (`least`, `plan`) asks it and is above. Unsafe code
//! is in [`sys`] and [`io`] only.
//!
//! # Invariants
//!
//! No stage reads a clock, a socket, a file or the environment: time and seeds are arguments. No bytes in a frame
//! can make a stage panic. A hit allocates nothing.

#![deny(unsafe_code)]

pub mod base;
pub mod sys;

pub mod wire;

pub mod parse;

pub mod packet;
pub mod snapshot;

pub mod flow;

pub mod asking;
pub mod direct;
pub mod fragment;
pub mod limit;
pub mod next_hop;
pub mod reply;
pub mod rewrite;

pub mod forwarding;

pub mod least;

pub mod counters;

pub mod plan;

pub(crate) mod pipeline;

pub mod datapath;

pub mod io;
