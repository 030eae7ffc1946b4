//! What a packet of a flow needs to know about its server.

use crate::base::Ip;
use crate::next_hop::Hop;
use crate::rewrite::{AddressField, Translation};
use crate::snapshot::{Server, Snapshot};

/// What a packet of a flow needs to know about its server.
#[derive(Clone, Debug)]
pub struct ServerFacts {
    /// Its real address.
    pub address: Ip,
    /// Id of its service.
    pub service: u32,
    /// Id of (address, port, protocol).
    pub endpoint: u32,
    /// Weight in comparisons, at least 1.
    pub weight: u64,
    /// Its UDP flows are placed anew with their next packet from the client.
    pub moves_udp: bool,
    /// VIP to server.
    pub forward: Translation,
    /// Server to VIP.
    pub reply: Translation,
    /// The way there; `None` when there is no route.
    pub hop: Option<Hop>,
}

impl ServerFacts {
    /// `None` for a server without its service, or of another family than its VIP: neither can be translated to.
    /// Compile.
    #[must_use]
    pub fn of(snapshot: &Snapshot, server: &Server) -> Option<Self> {
        let service = snapshot.services.get(server.service as usize)?.as_ref()?;
        if service.address.is_ipv4() != server.address.is_ipv4() {
            return None;
        }
        let vip = (Ip::from(service.address), service.port);
        let real = (Ip::from(server.address), server.port);
        Some(Self {
            address: real.0,
            service: server.service,
            endpoint: server.endpoint,
            weight: u64::from(server.weight).max(1),
            moves_udp: server.moves_udp,
            forward: Translation::new(AddressField::Destination, vip, real),
            reply: Translation::new(AddressField::Source, real, vip),
            hop: None,
        })
    }
}
