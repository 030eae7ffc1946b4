//! The words that every layer speaks: identities, addresses, times, numbers, frames, verdicts. Depends on nothing
//! else here.

pub(crate) mod carried;
mod event;
mod fixed_map;
mod frame;
mod ingress;
mod interface;
mod ip;
mod mac;
mod nanos;
mod offload;
mod random;
mod seq;
mod verdict;

pub(crate) use carried::carried;
pub use event::{EVENT_NAMES, Event};
pub use fixed_map::{FixedMap, FoldHasher};
pub use frame::{Frame, Outcome, Output, Sent};
pub use ingress::IngressNeighbour;
pub use interface::InterfaceId;
pub use ip::Ip;
pub use mac::{Mac, MacNumber};
pub use nanos::Nanos;
pub use offload::{Offload, gso};
pub use random::SplitMix64;
pub use seq::SeqNumber;
pub use verdict::{Direction, Reason, Verdict};
