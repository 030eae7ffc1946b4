//! The snapshot as the pipeline reads it: names gone, every question a packet asks answered by one look into a map or an array.
//!
//! Rebuilt as a whole when a snapshot or next hops are published; no packet changes it. What packets change is in [`crate::datapath`]'s state.

use crate::base::FixedMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::base::{Mac, address_number};
use crate::flow::state::FlowState;
use crate::next_hop::{Hop, Routing};
use crate::places::{Place, Places, socket};
use crate::plan::PlanServers;
use crate::rewrite::{End, Translation};
use crate::snapshot::{Interface, NextHops, Selector, Server, Service, Snapshot};

/// What an address is to us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// A service listens on it.
    pub vip: bool,
    /// One of our interfaces has it.
    pub own: bool,
    /// It is the directed broadcast of a prefix of one of our interfaces.
    pub broadcast: bool,
    /// The server with this address, the one with the lowest id.
    pub server: Option<u32>,
}

/// Who listens on an (address, port, protocol).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listener {
    /// The service whose VIP and port it is.
    pub service: Option<u32>,
    /// The endpoint, when it is a server's.
    pub endpoint: Option<u32>,
}

/// An interface of ours.
#[derive(Clone, Debug)]
pub struct Port {
    /// Its link-layer address.
    pub mac: Mac,
    /// Bytes of IP packet.
    pub mtu: u32,
    /// Answers for the VIPs.
    pub announce: bool,
    first_v4: Option<u128>,
    first_v6: Option<u128>,
    broadcasts: Vec<u128>,
}

/// What a packet of a flow needs to know about its server.
#[derive(Clone, Debug)]
pub struct ServerFacts {
    /// Its real address.
    pub address: u128,
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

/// Everything the pipeline reads.
pub struct World {
    /// As it was published: plans, timeouts, and names for those who ask. Shared, so that a world can be compiled of it again elsewhere.
    pub snapshot: Arc<Snapshot>,
    ports: Vec<Port>,
    places: Places,
    servers: Vec<Option<ServerFacts>>,
    hash_services: FixedMap<u32, Vec<u32>>,
    /// By service id.
    plan_servers: Vec<PlanServers>,
    /// By state.
    timeouts: [u64; FlowState::ALL.len()],
    next_hops: Arc<NextHops>,
    routing: Routing,
}

impl World {
    /// Compile.
    #[must_use]
    pub fn new(snapshot: impl Into<Arc<Snapshot>>, next_hops: impl Into<Arc<NextHops>>) -> Self {
        let snapshot = snapshot.into();
        let timeouts = snapshot.timeouts;
        let mut world = Self {
            ports: snapshot.interfaces.iter().map(port).collect(),
            places: Places::default(),
            servers: snapshot
                .servers
                .iter()
                .map(|server| server_facts(&snapshot, server.as_ref()?))
                .collect(),
            hash_services: FixedMap::default(),
            plan_servers: Vec::new(),
            timeouts: FlowState::ALL.map(|state| match state {
                FlowState::SynSent | FlowState::SynReceived | FlowState::Pickup => {
                    timeouts.half_open_ns
                }
                FlowState::Established => timeouts.established_ns,
                FlowState::Closing => timeouts.closing_ns,
                FlowState::Udp | FlowState::UdpUnreplied => timeouts.udp_ns,
            }),
            next_hops: Arc::default(),
            routing: Routing::default(),
            snapshot,
        };
        let mut addresses = Addresses::default();
        addresses.add_interfaces(&world.snapshot);
        addresses.add_services(&world.snapshot);
        addresses.add_servers(&world);
        world.places = Places::new(addresses.roles, addresses.listeners);
        world.add_hash_services();
        world.add_plan_servers();
        world.set_next_hops(next_hops.into());
        world
    }

    /// Compile other routes and neighbours.
    pub fn set_next_hops(&mut self, next_hops: Arc<NextHops>) {
        self.routing = Routing::new(&next_hops, &self.ports);
        self.next_hops = next_hops;
        for (server, facts) in self.snapshot.servers.iter().zip(&mut self.servers) {
            if let Some((server, facts)) = server.as_ref().zip(facts.as_mut()) {
                facts.hop = self
                    .routing
                    .to_server(facts.address, server.mac, &self.ports);
            }
        }
        let servers = &self.servers;
        let facts = |id: u32| servers.get(id as usize)?.as_ref();
        self.places
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
    pub fn place(&self, v4: bool, address: u128) -> Option<&Place> {
        self.places.at(v4, address)
    }

    /// What an address of that family is to us.
    #[must_use]
    pub fn role(&self, v4: bool, address: u128) -> Role {
        self.place(v4, address)
            .map_or_else(Role::default, |place| place.role)
    }

    /// Who listens on a port of a place.
    #[inline(always)]
    #[must_use]
    pub fn listener(&self, place: Option<&Place>, port: u16, protocol: u8) -> Listener {
        place.map_or_else(Listener::default, |place| {
            self.places.listener(place, socket(port, protocol))
        })
    }

    /// An interface; `None` when there is no such id.
    #[inline(always)]
    #[must_use]
    pub fn port(&self, interface: u32) -> Option<&Port> {
        self.ports.get(interface as usize)
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

    /// The idle timeout of a state, nanoseconds.
    #[inline(always)]
    #[must_use]
    pub fn timeout(&self, state: FlowState) -> u64 {
        self.timeouts[state as usize]
    }

    /// The way to an address.
    #[must_use]
    pub fn route(&self, address: u128) -> Option<Hop> {
        self.routing.to(address)
    }

    /// The link-layer address of a neighbour.
    #[must_use]
    pub fn neighbour(&self, interface: u32, address: u128) -> Option<Mac> {
        self.routing.neighbour(interface, address)
    }

    /// Whether the address is the directed broadcast of a prefix of that interface.
    #[must_use]
    pub fn is_broadcast_of(&self, interface: u32, address: u128) -> bool {
        self.port(interface)
            .is_some_and(|port| port.broadcasts.contains(&address))
    }

    /// The address we speak from: the interface's first of that family, else the first of any interface.
    #[must_use]
    pub fn own_address(&self, interface: u32, v4: bool) -> Option<u128> {
        let first = |port: &Port| if v4 { port.first_v4 } else { port.first_v6 };
        self.port(interface)
            .and_then(first)
            .or_else(|| self.ports.iter().find_map(first))
    }

    fn add_plan_servers(&mut self) {
        let snapshot = &self.snapshot;
        let is_known = |id: u32| self.server(id).is_some();
        let servers = |service: &Option<Service>| {
            let plan = service.as_ref().map(|service| &service.plan);
            plan.map_or_else(PlanServers::default, |plan| {
                PlanServers::of(plan, snapshot, &is_known)
            })
        };
        self.plan_servers = self.snapshot.services.iter().map(servers).collect();
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

/// The configured addresses, while they are gathered.
#[derive(Default)]
struct Addresses {
    roles: FixedMap<u128, Role>,
    listeners: FixedMap<(u128, u32), Listener>,
}

impl Addresses {
    fn add_interfaces(&mut self, snapshot: &Snapshot) {
        for (address, prefix_len) in snapshot
            .interfaces
            .iter()
            .flat_map(|interface| &interface.addresses)
        {
            self.roles.entry(address_number(*address)).or_default().own = true;
            if let Some(broadcast) = directed_broadcast(*address, *prefix_len) {
                self.roles.entry(broadcast).or_default().broadcast = true;
            }
        }
    }

    fn add_services(&mut self, snapshot: &Snapshot) {
        for (id, service) in snapshot.services.iter().enumerate() {
            let Some(service) = service else { continue };
            let vip = address_number(service.address);
            self.roles.entry(vip).or_default().vip = true;
            let listener = self
                .listeners
                .entry((vip, socket(service.port, service.protocol as u8)))
                .or_default();
            listener.service.get_or_insert(id as u32);
        }
    }

    fn add_servers(&mut self, world: &World) {
        for (id, facts) in world.servers.iter().enumerate() {
            let Some((facts, server)) = facts.as_ref().zip(world.snapshot.servers[id].as_ref())
            else {
                continue;
            };
            let Some(service) = world.service(facts.service) else {
                continue;
            };
            self.roles
                .entry(facts.address)
                .or_default()
                .server
                .get_or_insert(id as u32);
            let key = (facts.address, socket(server.port, service.protocol as u8));
            self.listeners.entry(key).or_default().endpoint = Some(facts.endpoint);
        }
    }
}

/// Whether flows can be placed by the packet alone, without state.
#[must_use]
pub const fn is_hash(selector: Selector) -> bool {
    matches!(selector, Selector::HashSource | Selector::HashFlow)
}

fn port(interface: &Interface) -> Port {
    let first = |v4: bool| {
        let of_family = |(address, _): &&(IpAddr, u8)| address.is_ipv4() == v4;
        interface
            .addresses
            .iter()
            .find(of_family)
            .map(|(address, _)| address_number(*address))
    };
    Port {
        mac: interface.mac,
        mtu: interface.mtu,
        announce: interface.announce,
        first_v4: first(true),
        first_v6: first(false),
        broadcasts: interface
            .addresses
            .iter()
            .filter_map(|&(address, len)| directed_broadcast(address, len))
            .collect(),
    }
}

fn directed_broadcast(address: IpAddr, prefix_len: u8) -> Option<u128> {
    let IpAddr::V4(v4) = address else { return None };
    let host_bits = u32::MAX.checked_shr(u32::from(prefix_len)).unwrap_or(0);
    (prefix_len <= 30).then(|| crate::base::map_v4(v4.to_bits() | host_bits))
}

/// `None` for a server without its service, or of another family than its VIP: neither can be translated to.
fn server_facts(snapshot: &Snapshot, server: &Server) -> Option<ServerFacts> {
    let service = snapshot.services.get(server.service as usize)?.as_ref()?;
    if service.address.is_ipv4() != server.address.is_ipv4() {
        return None;
    }
    let vip = (address_number(service.address), service.port);
    let real = (address_number(server.address), server.port);
    Some(ServerFacts {
        address: real.0,
        service: server.service,
        endpoint: server.endpoint,
        weight: u64::from(server.weight).max(1),
        moves_udp: server.moves_udp,
        forward: Translation::new(End::Destination, vip, real),
        reply: Translation::new(End::Source, real, vip),
        hop: None,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::base::{map_v4, number_address};
    use crate::snapshot::{Neighbour, Plan, Protocol, Route};

    const OURS: u32 = 0xc612_0101;
    const BROADCAST: u32 = 0xc612_01ff;
    const VIP: u32 = 0xc612_0164;
    const SERVER: u32 = 0xc612_011f;
    /// Each is something else to us, the last one nothing.
    pub(crate) const ADDRESSES: [u32; 6] = [OURS, BROADCAST, VIP, SERVER, OWN_VIP, 0xc612_0115];
    const OWN_VIP: u32 = 0x0a00_0001;

    /// Two interfaces; the server is behind the second. The first one's own address is also a VIP of a second service.
    pub(crate) fn world_of_roles() -> World {
        let address = |bits| number_address(map_v4(bits));
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
                reset_without_server: false,
                reset_without_flow: false,
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
            ..crate::datapath::empty_snapshot()
        };
        let route = Route {
            prefix: address(SERVER),
            prefix_len: 32,
            interface: 1,
            gateway: None,
            mtu: None,
        };
        let neighbour = Neighbour {
            interface: 1,
            address: address(SERVER),
            mac: [4; 6],
        };
        World::new(
            snapshot,
            NextHops {
                routes: vec![route],
                neighbours: vec![neighbour],
            },
        )
    }

    #[test]
    fn place_each_role_is_told_apart() {
        let world = world_of_roles();
        let role = |address| world.role(true, map_v4(address));
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
        assert_eq!(world.place(true, map_v4(SERVER)).unwrap().home, Some(1));
        let listener = |address, port| world.listener(world.place(true, map_v4(address)), port, 17);
        assert_eq!(listener(VIP, 53).service, Some(0));
        assert_eq!(listener(SERVER, 53).endpoint, Some(0));
        assert_eq!(listener(VIP, 54), Listener::default());
    }
}
