//! What the control side publishes: a snapshot, routes and neighbours; and the ids that it gives up.

use std::sync::Arc;

use super::engine::DataPath;
use crate::counters::grow_part;
use crate::forwarding::ForwardingState;
use crate::pipeline::state::PathState;
use crate::snapshot::{NextHops, Snapshot, Transit};

impl DataPath {
    /// Swap to a new snapshot. Flows stay. Where packets must not wait meanwhile, do the parts apart:
    /// [`Self::sources`], [`ForwardingState::new`], [`Self::make_room`], [`Self::prepare`], [`Self::swap`].
    pub fn publish(&mut self, snapshot: impl Into<Arc<Snapshot>>) {
        let forwarding = ForwardingState::new(snapshot, Arc::clone(self.forwarding.next_hops()));
        let (services, servers) = (
            forwarding.snapshot.services.len(),
            forwarding.snapshot.servers.len(),
        );
        while !self.make_room(services, servers) {}
        drop(self.swap(Box::new(forwarding)));
    }

    /// What the forwarding of packets was compiled of.
    #[must_use]
    pub fn sources(&self) -> (Arc<Snapshot>, Arc<NextHops>) {
        let next_hops = Arc::clone(self.forwarding.next_hops());
        (Arc::clone(&self.forwarding.snapshot), next_hops)
    }

    /// Make room for what is kept per service and server, some of it per call. Says whether there is room for all
    /// of a snapshot with these numbers of ids: it can be swapped to then.
    #[must_use]
    pub fn make_room(&mut self, services: usize, servers: usize) -> bool {
        let has_rotation = grow_part(&mut self.state.rotation, services, self.first_round);
        self.state.counters.grow_part(services, servers) && has_rotation
    }

    /// Prepare to swap to a forwarding, for which room was made, some of it per call. Says whether all is ready.
    #[must_use]
    pub fn prepare(&mut self, forwarding: &ForwardingState) -> bool {
        Arc::ptr_eq(&forwarding.snapshot, &self.forwarding.snapshot)
            || self.state.counters.prepare(forwarding, self.first_round)
    }

    /// Swap to another forwarding, after what is left to prepare for it. Returns the one before it: to be dropped
    /// where no packet waits.
    #[must_use]
    pub fn swap(&mut self, forwarding: Box<ForwardingState>) -> Box<ForwardingState> {
        let PathState {
            table,
            counters,
            direct,
            ..
        } = &mut *self.state;
        table.set_generation(forwarding.snapshot.generation);
        // Other next hops alone change nothing about who is placed where.
        if !Arc::ptr_eq(&forwarding.snapshot, &self.forwarding.snapshot) {
            let settings = &forwarding.snapshot.settings;
            direct.prepare(settings.transit == Transit::Forward && !settings.any_replies);
            counters.follow(&forwarding, self.first_round);
        }
        std::mem::replace(&mut self.forwarding, forwarding)
    }

    /// Swap routes and neighbours. Waiting packets leave at the next `tick`. It compiles anew: see [`Self::publish`].
    pub fn set_next_hops(&mut self, next_hops: NextHops) {
        self.forwarding.set_next_hops(Arc::new(next_hops));
    }

    /// Begin anew with the servers of these ids that the snapshot does not have and no entry refers to: their
    /// counters and measurements are 0 (rule 13, counters). Returns those.
    pub fn retire_servers(&mut self, servers: &[u32]) -> Vec<u32> {
        let Self {
            forwarding, state, ..
        } = self;
        let is_gone = |&&server: &&u32| forwarding.server(server).is_none();
        let gone = servers.iter().filter(is_gone).copied();
        gone.filter(|&server| state.counters.retire_server(server))
            .collect()
    }

    /// The same for services: their counters and rounds begin anew (rule 13, counters).
    pub fn retire_services(&mut self, services: &[u32]) -> Vec<u32> {
        let Self {
            forwarding, state, ..
        } = self;
        let is_gone = |&&service: &&u32| forwarding.service(service).is_none();
        let gone = services.iter().filter(is_gone).copied();
        let retired: Vec<_> = gone
            .filter(|&service| state.counters.retire_service(service))
            .collect();
        for &service in &retired {
            if let Some(round) = state.rotation.get_mut(service as usize) {
                *round = self.first_round;
            }
        }
        retired
    }

    /// The published snapshot, for names.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.forwarding.snapshot
    }
}
