//! What lives across packets beside flows, from one process to the next: counters, measurements, and whose round it is.
//! By name, because the next process may be of another version.

use std::collections::BTreeMap;

use super::engine::DataPath;
use crate::base::SplitMix64;
use crate::counters::Traffic;

/// Numbers by name, without those that are 0.
pub type Numbers = BTreeMap<String, u128>;

/// All that goes on in the next process beside flows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Counters of all packets, and where the random draws are.
    pub totals: Numbers,
    /// Per service, by id: counters and rounds.
    pub services: Vec<Numbers>,
    /// Per server, by id: counters, measurements and rounds.
    pub servers: Vec<Numbers>,
}

const RANDOM: &str = "random";
const ROTATION: &str = "rotation";
const CLOCK: &str = "clock";
const ROUND: &str = "round";

impl DataPath {
    /// What the next process goes on from.
    #[must_use]
    pub fn carried(&self) -> Carried {
        let (snapshot, state) = (&self.forwarding.snapshot, &self.state);
        let random = (RANDOM.to_owned(), state.random.state().into());
        let services = 0..snapshot.services.len() as u32;
        let servers = 0..snapshot.servers.len() as u32;
        Carried {
            totals: state.counters.carried().chain([random]).collect(),
            services: services.map(|id| self.carried_of_service(id)).collect(),
            servers: servers.map(|id| self.carried_of_server(id)).collect(),
        }
    }

    fn carried_of_service(&self, id: u32) -> Numbers {
        let counters = &self.state.counters;
        let rotation = self.state.rotation.get(id as usize).copied();
        let rounds = [
            (ROTATION, rotation.unwrap_or_default().into()),
            (CLOCK, counters.loads.clock(id)),
        ];
        let traffic = counters.service(id as usize).into_iter();
        named(traffic.flat_map(Traffic::carried).chain(rounds))
    }

    fn carried_of_server(&self, id: u32) -> Numbers {
        let counters = &self.state.counters;
        let of_server = counters.server(id as usize).into_iter();
        let known =
            of_server.flat_map(|(traffic, measures)| traffic.carried().chain(measures.carried()));
        named(known.chain([(ROUND, counters.loads.round(id))]))
    }

    /// Go on from what another process carried, once its flows are here. `service`, `server`: what an id of theirs is
    /// now, None when that is nothing.
    pub fn carry(
        &mut self,
        carried: &Carried,
        service: impl Fn(u32) -> Option<u32>,
        server: impl Fn(u32) -> Option<u32>,
    ) {
        for (name, number) in &carried.totals {
            if name == RANDOM {
                self.state.random = SplitMix64::new(*number as u64);
                continue;
            }
            self.state.counters.carry(name, *number);
        }
        for (id, numbers) in (0..).zip(&carried.services) {
            if let Some(id) = service(id) {
                for (name, number) in numbers {
                    self.carry_of_service(id, name, *number);
                }
            }
        }
        for (id, numbers) in (0..).zip(&carried.servers) {
            if let Some(id) = server(id) {
                for (name, number) in numbers {
                    self.carry_of_server(id, name, *number);
                }
            }
        }
    }

    fn carry_of_service(&mut self, id: u32, name: &str, number: u128) {
        let (counters, rotation) = (&mut self.state.counters, &mut self.state.rotation);
        match name {
            ROTATION => {
                if let Some(place) = rotation.get_mut(id as usize) {
                    *place = number as u64;
                }
            }
            CLOCK => counters.loads.carry_clock(id, number),
            _ => {
                if let Some(traffic) = counters.service_mut(id) {
                    traffic.carry(name, number);
                }
            }
        }
    }

    fn carry_of_server(&mut self, id: u32, name: &str, number: u128) {
        let counters = &mut self.state.counters;
        if name == ROUND {
            counters.loads.carry_round(id, number);
        } else if let Some((traffic, measures)) = counters.server_mut(id) {
            traffic.carry(name, number);
            measures.carry(name, number);
        }
    }
}

fn named(numbers: impl Iterator<Item = (&'static str, u128)>) -> Numbers {
    numbers
        .filter(|&(_, number)| number > 0)
        .map(|(name, number)| (name.to_owned(), number))
        .collect()
}
