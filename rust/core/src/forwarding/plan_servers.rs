//! The servers that a plan names, worked out when it is published.

use std::sync::Arc;

use crate::base::FixedMap;
use crate::snapshot::{Names, Plan, Selector, Snapshot};

/// The servers that a plan names, each once, in the order of their first slots; those that its service has.
#[derive(Clone, Debug, Default)]
pub struct PlanServers {
    /// Server ids.
    pub servers: Vec<u32>,
    /// The fall-back plan's.
    pub fallback: Option<Box<PlanServers>>,
    /// Whom a user's policy is asked about, if it is.
    pub candidates: Option<Candidates>,
}

/// The servers that a user's policy is asked about.
#[derive(Clone, Debug)]
pub struct Candidates {
    /// One per slot.
    pub names: Names,
    /// Servers by name; the first of a name.
    pub servers: FixedMap<Arc<str>, u32>,
}

impl Candidates {
    fn of(plan: &Plan, snapshot: &Snapshot) -> Self {
        let name = |&id: &u32| {
            let server = snapshot.servers.get(id as usize).and_then(Option::as_ref);
            server.map_or("", |server| server.name.as_str()).into()
        };
        let names: Names = plan.slots.iter().map(name).collect();
        let mut servers = FixedMap::default();
        for (name, &server) in names.iter().zip(&plan.slots) {
            if !name.is_empty() {
                servers.entry(Arc::clone(name)).or_insert(server);
            }
        }
        Self { names, servers }
    }
}

impl PlanServers {
    /// Work out. `is_candidate` says whether the plan's service has a server.
    #[must_use]
    pub fn of(plan: &Plan, snapshot: &Snapshot, is_candidate: &dyn Fn(u32) -> bool) -> Self {
        let mut seen = vec![false; snapshot.servers.len()];
        let mut is_new = |&server: &u32| {
            let seen = seen.get_mut(server as usize);
            is_candidate(server) && seen.is_some_and(|seen| !std::mem::replace(seen, true))
        };
        let servers = plan.slots.iter().copied().filter(&mut is_new).collect();
        let fallback = plan.fallback.as_ref();
        Self {
            servers,
            fallback: fallback.map(|plan| Box::new(Self::of(plan, snapshot, is_candidate))),
            candidates: (plan.selector == Selector::Ask).then(|| Candidates::of(plan, snapshot)),
        }
    }
}
