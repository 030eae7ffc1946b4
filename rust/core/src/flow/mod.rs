//! Flows: who talks to which server, and how far they have come.
//!
//! [`Key`] names one direction of a flow, [`hash`] mixes it, [`table`] finds its [`table::Entry`], [`tcp`] moves the entry from state to state, [`ends`] keeps how flows ended. No clock is
//! read here: the time is an argument. Which server a new flow gets is decided in [`crate::plan`].

use crate::base::is_v4;
use hash::siphash13_words;

pub mod area;
pub mod ends;
pub mod hash;
pub mod measure;
pub mod state;
pub mod table;
pub mod tcp;

/// What a packet of a flow is looked up by. The same client may talk to one server through two services, so the two directions have keys of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The client's address.
    pub client: u128,
    /// The client's port.
    pub client_port: u16,
    /// What the client's side of the flow meets.
    pub side: Side,
}

/// The other half of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// Forward packets: the service they are for.
    Service(u32),
    /// Reply packets: the endpoint (server address, port, protocol) they come from.
    Endpoint(u32),
}

impl Key {
    /// The flow table's hash of it: of the client's address, in as many bytes as its family needs, the id, the port, and a byte that says which id it is. So an
    /// IPv4 key fits two words, and costs two rounds less than three words and a length would.
    #[inline(always)]
    #[must_use]
    pub fn hash(&self, hash_key: [u64; 2]) -> u64 {
        let (kind, id) = match self.side {
            Side::Service(id) => (0, u64::from(id)),
            Side::Endpoint(id) => (1, u64::from(id)),
        };
        let rest = u64::from(self.client_port) | kind << 16;
        let (high, low) = ((self.client >> 64) as u64, self.client as u64);
        if is_v4(self.client) {
            siphash13_words(hash_key, [low & 0xffff_ffff | id << 32, rest | 11 << 56])
        } else {
            siphash13_words(hash_key, [high, low, id | rest << 32 | 23 << 56])
        }
    }
}
