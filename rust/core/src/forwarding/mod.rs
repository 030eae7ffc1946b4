//! The snapshot as the pipeline reads it: names gone, every question a packet asks answered by one look into a map
//! or an array.
//!
//! Rebuilt as a whole when a snapshot or next hops are published; no packet changes it. What packets change is
//! [`crate::pipeline`]'s state.

mod addresses;
mod gather;
mod plan_servers;
mod server;

use std::sync::Arc;

use crate::base::{FixedMap, InterfaceId, Ip, Mac};
use crate::flow::state::FlowState;
use crate::next_hop::{Hop, LocalInterface, Routing};
use crate::snapshot::{NextHops, Selector, Service, Snapshot, Timeouts};

pub use addresses::{LocalAddress, LocalAddresses, Role, SocketRole, socket};
pub use plan_servers::{Candidates, PlanServers};
pub use server::ServerFacts;

use gather::Addresses;

/// Everything the pipeline reads.
pub struct ForwardingState {
    /// As it was published: plans, timeouts, and names for those who ask. Shared, so that a forwarding can be
    /// compiled of it again elsewhere.
    pub snapshot: Arc<Snapshot>,
    /// Of the settings, at hand.
    pub any_replies: bool,
    interfaces: Vec<LocalInterface>,
    addresses: LocalAddresses,
    servers: Vec<Option<ServerFacts>>,
    hash_services: FixedMap<u32, Vec<u32>>,
    /// By endpoint: the servers that it is, one per service that has it.
    endpoint_servers: FixedMap<u32, Vec<u32>>,
    /// By service id.
    plan_servers: Vec<PlanServers>,
    /// By state.
    timeouts_ns: [u64; FlowState::ALL.len()],
    next_hops: Arc<NextHops>,
    routing: Routing,
}

impl ForwardingState {
    /// Compile.
    #[must_use]
    pub fn new(snapshot: impl Into<Arc<Snapshot>>, next_hops: impl Into<Arc<NextHops>>) -> Self {
        let snapshot = snapshot.into();
        let servers = snapshot.servers.iter();
        let servers: Vec<_> = servers
            .map(|server| ServerFacts::of(&snapshot, server.as_ref()?))
            .collect();
        let mut forwarding = Self {
            any_replies: snapshot.settings.any_replies,
            interfaces: snapshot.interfaces.iter().map(LocalInterface::of).collect(),
            addresses: Addresses::compile(&snapshot, &servers),
            servers,
            hash_services: FixedMap::default(),
            endpoint_servers: FixedMap::default(),
            plan_servers: Vec::new(),
            timeouts_ns: timeouts_ns_by_state(&snapshot.timeouts),
            next_hops: Arc::default(),
            routing: Routing::default(),
            snapshot,
        };
        forwarding.add_hash_services();
        forwarding.add_endpoint_servers();
        forwarding.add_plan_servers();
        forwarding.set_next_hops(next_hops.into());
        forwarding
    }

    /// Compile other routes and neighbours.
    pub fn set_next_hops(&mut self, next_hops: Arc<NextHops>) {
        self.routing = Routing::new(&next_hops, &self.interfaces);
        self.next_hops = next_hops;
        for (server, facts) in self.snapshot.servers.iter().zip(&mut self.servers) {
            if let Some((server, facts)) = server.as_ref().zip(facts.as_mut()) {
                facts.hop = self
                    .routing
                    .to_server(facts.address, server.mac, &self.interfaces);
            }
        }
        let servers = &self.servers;
        let facts = |id: u32| servers.get(id as usize)?.as_ref();
        self.addresses
            .set_homes(|server| facts(server)?.hop.map(|hop| hop.interface));
    }

    /// The routes and neighbours as they were published.
    #[must_use]
    pub fn next_hops(&self) -> &Arc<NextHops> {
        &self.next_hops
    }

    /// What is known of an address of that family, if anything is.
    #[inline(always)]
    #[must_use]
    pub fn local_address(&self, v4: bool, address: Ip) -> Option<&LocalAddress> {
        self.addresses.at(v4, address)
    }

    /// What an address of that family is to us.
    #[must_use]
    pub fn role(&self, v4: bool, address: Ip) -> Role {
        self.local_address(v4, address)
            .map_or_else(Role::default, |place| place.role)
    }

    /// Who listens on a port of a place.
    #[inline(always)]
    #[must_use]
    pub fn socket_role(
        &self,
        address: Option<&LocalAddress>,
        port: u16,
        protocol: u8,
    ) -> SocketRole {
        address.map_or_else(SocketRole::default, |address| {
            self.addresses.socket_role(address, socket(port, protocol))
        })
    }

    /// An interface; `None` when there is no such id.
    #[inline(always)]
    #[must_use]
    pub fn interface(&self, id: InterfaceId) -> Option<&LocalInterface> {
        self.interfaces.get(id.index())
    }

    /// A service that is in the snapshot.
    #[inline(always)]
    #[must_use]
    pub fn service(&self, id: u32) -> Option<&Service> {
        self.snapshot.services.get(id as usize)?.as_ref()
    }

    /// A server that is in the snapshot, and its service too.
    #[inline(always)]
    #[must_use]
    pub fn server(&self, id: u32) -> Option<&ServerFacts> {
        self.servers.get(id as usize)?.as_ref()
    }

    /// A server that a service's plan may place flows on: one of its own.
    #[inline]
    #[must_use]
    pub fn candidate(&self, service: u32, server: u32) -> Option<&ServerFacts> {
        self.server(server).filter(|facts| facts.service == service)
    }

    /// The servers that a service's plan names.
    #[inline]
    #[must_use]
    pub fn plan_servers(&self, service: u32) -> Option<&PlanServers> {
        self.plan_servers.get(service as usize)
    }

    /// Services, in order of id, that have a server with this endpoint and a plan that places by a hash.
    #[must_use]
    pub fn hash_services(&self, endpoint: u32) -> &[u32] {
        self.hash_services.get(&endpoint).map_or(&[], Vec::as_slice)
    }

    /// The servers that an endpoint is: one per service that has it.
    #[must_use]
    pub fn endpoint_servers(&self, endpoint: u32) -> &[u32] {
        self.endpoint_servers
            .get(&endpoint)
            .map_or(&[], Vec::as_slice)
    }

    /// The idle timeout of a state, nanoseconds.
    #[inline(always)]
    #[must_use]
    pub fn timeout_ns(&self, state: FlowState) -> u64 {
        self.timeouts_ns[state as usize]
    }

    /// The way to an address.
    #[must_use]
    pub fn route(&self, address: Ip) -> Option<Hop> {
        self.routing.to(address)
    }

    /// The link-layer address of a neighbour.
    #[must_use]
    pub fn neighbour(&self, interface: InterfaceId, address: Ip) -> Option<Mac> {
        self.routing.neighbour(interface, address)
    }

    /// Whether the address is the directed broadcast of a prefix of that interface.
    #[must_use]
    pub fn is_broadcast_of(&self, interface: InterfaceId, address: Ip) -> bool {
        self.interface(interface)
            .is_some_and(|interface| interface.has_broadcast(address))
    }

    /// The address we speak from: the interface's first of that family, else the first of any interface.
    #[must_use]
    pub fn own_address(&self, interface: InterfaceId, v4: bool) -> Option<Ip> {
        let first = |interface: &LocalInterface| interface.first_address(v4);
        self.interface(interface)
            .and_then(first)
            .or_else(|| self.interfaces.iter().find_map(first))
    }

    fn add_plan_servers(&mut self) {
        let snapshot = &self.snapshot;
        let servers = |(id, service): (usize, &Option<Service>)| {
            let is_candidate = |server| self.candidate(id as u32, server).is_some();
            let plan = service.as_ref().map(|service| &service.plan);
            plan.map_or_else(PlanServers::default, |plan| {
                PlanServers::of(plan, snapshot, &is_candidate)
            })
        };
        let services = self.snapshot.services.iter().enumerate();
        self.plan_servers = services.map(servers).collect();
    }

    fn add_endpoint_servers(&mut self) {
        for (id, facts) in self.servers.iter().enumerate() {
            if let Some(facts) = facts {
                let servers = self.endpoint_servers.entry(facts.endpoint);
                servers.or_default().push(id as u32);
            }
        }
    }

    fn add_hash_services(&mut self) {
        for facts in self.servers.iter().flatten() {
            let service = self.snapshot.services.get(facts.service as usize);
            if let Some(Some(service)) = service {
                if is_hash(service.plan.selector) {
                    self.hash_services
                        .entry(facts.endpoint)
                        .or_default()
                        .push(facts.service);
                }
            }
        }
        for services in self.hash_services.values_mut() {
            services.sort_unstable();
            services.dedup();
        }
    }
}

/// The idle timeout of each state, nanoseconds.
fn timeouts_ns_by_state(timeouts: &Timeouts) -> [u64; FlowState::ALL.len()] {
    FlowState::ALL.map(|state| match state {
        FlowState::SynSent | FlowState::SynReceived | FlowState::Pickup => timeouts.half_open_ns,
        FlowState::Established | FlowState::OneWay => timeouts.established_ns,
        FlowState::Closing => timeouts.closing_ns,
        FlowState::Udp | FlowState::UdpUnreplied => timeouts.udp_ns,
    })
}

/// Whether flows can be placed by the packet alone, without state.
#[must_use]
pub const fn is_hash(selector: Selector) -> bool {
    matches!(selector, Selector::HashSource | Selector::HashFlow)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::base::{InterfaceId, Ip};
    use crate::snapshot::{Interface, Server};
    use crate::snapshot::{Neighbour, Plan, Protocol, Refusal, Route};
    use std::net::IpAddr;

    const OURS: u32 = 0xc612_0101;
    const BROADCAST: u32 = 0xc612_01ff;
    const VIP: u32 = 0xc612_0164;
    const SERVER: u32 = 0xc612_011f;
    /// Each is something else to us, the last one nothing.
    pub(crate) const ADDRESSES: [u32; 6] = [OURS, BROADCAST, VIP, SERVER, OWN_VIP, 0xc612_0115];
    const OWN_VIP: u32 = 0x0a00_0001;

    /// Two interfaces; the server is behind the second. The first one's own address is also a VIP of a second
    /// service.
    pub(crate) fn state_with_roles() -> ForwardingState {
        let address = |bits| IpAddr::from(Ip::from_v4(bits));
        let interface = |addresses| Interface {
            name: "eth".into(),
            mac: [2; 6],
            mtu: 1500,
            addresses,
            announce: false,
        };
        let service = |vip| {
            Some(Service {
                name: "dns".into(),
                address: address(vip),
                port: 53,
                protocol: Protocol::Udp,
                plan: Plan {
                    selector: Selector::Counter,
                    slots: vec![0],
                    scores: Vec::new(),
                    fallback: None,
                    deadline_ns: 0,
                },
                on_no_server: Refusal::Drop,
                on_no_flow: Refusal::Drop,
                new_flow_limit: None,
            })
        };
        let server = Server {
            name: "server1".into(),
            service: 0,
            endpoint: 0,
            address: address(SERVER),
            port: 53,
            weight: 1,
            mac: None,
            moves_udp: false,
        };
        let snapshot = Snapshot {
            interfaces: vec![
                interface(vec![(address(OURS), 24), (address(OWN_VIP), 24)]),
                interface(Vec::new()),
            ],
            services: vec![service(VIP), service(OWN_VIP)],
            servers: vec![Some(server)],
            ..Snapshot::default()
        };
        let route = Route {
            prefix: address(SERVER),
            prefix_len: 32,
            interface: InterfaceId::new(1),
            gateway: None,
            mtu: None,
        };
        let neighbour = Neighbour {
            interface: InterfaceId::new(1),
            address: address(SERVER),
            mac: [4; 6],
        };
        ForwardingState::new(
            snapshot,
            NextHops {
                routes: vec![route],
                neighbours: vec![neighbour],
            },
        )
    }

    #[test]
    fn place_each_role_is_told_apart() {
        let forwarding = state_with_roles();
        let role = |address| forwarding.role(true, Ip::from_v4(address));
        let nothing = Role::default();
        assert_eq!(
            ADDRESSES.map(role),
            [
                Role {
                    own: true,
                    ..nothing
                },
                Role {
                    broadcast: true,
                    ..nothing
                },
                Role {
                    vip: true,
                    ..nothing
                },
                Role {
                    server: Some(0),
                    ..nothing
                },
                Role {
                    own: true,
                    vip: true,
                    ..nothing
                },
                nothing,
            ]
        );
        assert_eq!(
            forwarding
                .local_address(true, Ip::from_v4(SERVER))
                .unwrap()
                .home,
            Some(InterfaceId::new(1))
        );
        let listener = |address, port| {
            forwarding.socket_role(
                forwarding.local_address(true, Ip::from_v4(address)),
                port,
                17,
            )
        };
        assert_eq!(listener(VIP, 53).service, Some(0));
        assert_eq!(listener(SERVER, 53).endpoint, Some(0));
        assert_eq!(listener(VIP, 54), SocketRole::default());
    }
}
