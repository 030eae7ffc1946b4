//! Flows: who talks to which server, and how far they have come.
//!
//! [`Key`] names one direction of a flow, [`hash`] mixes it, [`table`] finds its [`table::Entry`], [`tcp`] moves the entry from state to state, [`ends`] keeps how flows ended. No clock is
//! read here: the time is an argument. Which server a new flow gets is decided in [`crate::plan`].

pub mod area;
pub mod ends;
pub mod hash;
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
    /// The words that are hashed.
    #[inline]
    #[must_use]
    pub const fn words(&self) -> [u64; 3] {
        let (kind, id) = match self.side {
            Side::Service(id) => (0, id),
            Side::Endpoint(id) => (1, id),
        };
        let rest = self.client_port as u64 | kind << 16 | (id as u64) << 32;
        [(self.client >> 64) as u64, self.client as u64, rest]
    }
}
