//! The configured addresses, while they are gathered from a snapshot.

use super::addresses::{LocalAddresses, Role, SocketRole, socket};
use super::server::ServerFacts;
use crate::base::{FixedMap, Ip};
use crate::next_hop::directed_broadcast;
use crate::snapshot::Snapshot;

/// The configured addresses, while they are gathered.
#[derive(Default)]
pub(super) struct Addresses {
    roles: FixedMap<Ip, Role>,
    listeners: FixedMap<(Ip, u32), SocketRole>,
}

impl Addresses {
    /// Gather all, and compile.
    pub fn compile(snapshot: &Snapshot, servers: &[Option<ServerFacts>]) -> LocalAddresses {
        let mut addresses = Self::default();
        addresses.add_interfaces(snapshot);
        addresses.add_services(snapshot);
        addresses.add_servers(snapshot, servers);
        LocalAddresses::new(addresses.roles, addresses.listeners)
    }

    fn add_interfaces(&mut self, snapshot: &Snapshot) {
        for (address, prefix_len) in snapshot
            .interfaces
            .iter()
            .flat_map(|interface| &interface.addresses)
        {
            self.roles.entry(Ip::from(*address)).or_default().own = true;
            if let Some(broadcast) = directed_broadcast(*address, *prefix_len) {
                self.roles.entry(broadcast).or_default().broadcast = true;
            }
        }
    }

    fn add_services(&mut self, snapshot: &Snapshot) {
        for (id, service) in snapshot.services.iter().enumerate() {
            let Some(service) = service else { continue };
            let vip = Ip::from(service.address);
            self.roles.entry(vip).or_default().vip = true;
            let listener = self
                .listeners
                .entry((vip, socket(service.port, service.protocol as u8)))
                .or_default();
            listener.service.get_or_insert(id as u32);
        }
    }

    fn add_servers(&mut self, snapshot: &Snapshot, facts: &[Option<ServerFacts>]) {
        for (id, (facts, server)) in facts.iter().zip(&snapshot.servers).enumerate() {
            let Some((facts, server)) = facts.as_ref().zip(server.as_ref()) else {
                continue;
            };
            let Some(Some(service)) = snapshot.services.get(facts.service as usize) else {
                continue;
            };
            let role = self.roles.entry(facts.address).or_default();
            role.server.get_or_insert(id as u32);
            let key = (facts.address, socket(server.port, service.protocol as u8));
            self.listeners.entry(key).or_default().endpoint = Some(facts.endpoint);
        }
    }
}
