//! What a packet's flow is looked up by.

use super::hash::siphash13_words;
use crate::base::Ip;

/// What a packet of a flow is looked up by. The same client may talk to one server through two services, so the two
/// directions have keys of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The client's address.
    pub client: Ip,
    /// The client's port.
    pub client_port: u16,
    /// What the client's side of the flow meets.
    pub side: KeySide,
}

/// The other half of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeySide {
    /// Forward packets: the service they are for.
    Service(u32),
    /// Reply packets: the endpoint (server address, port, protocol) they come from.
    Endpoint(u32),
}

impl Key {
    /// The flow table's hash of it: of the client's address, in as many bytes as its family needs, the id, the
    /// port, and a byte that says which id it is. So an IPv4 key fits two words, and costs two rounds less than
    /// three words and a length would.
    #[inline(always)]
    #[must_use]
    pub fn hash(&self, hash_key: [u64; 2]) -> u64 {
        let (kind, id) = match self.side {
            KeySide::Service(id) => (0, u64::from(id)),
            KeySide::Endpoint(id) => (1, u64::from(id)),
        };
        let rest = u64::from(self.client_port) | kind << 16;
        let [high, low] = self.client.halves();
        if self.client.is_v4() {
            siphash13_words(hash_key, [low & 0xffff_ffff | id << 32, rest | 11 << 56])
        } else {
            siphash13_words(hash_key, [high, low, id | rest << 32 | 23 << 56])
        }
    }
}
