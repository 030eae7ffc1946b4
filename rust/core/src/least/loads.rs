//! The servers of all plans with `least`, as snapshots come and flows come and go.

use std::sync::Arc;

use super::contest::{Contest, Contests};
use super::tournament::Row;
use crate::forwarding::{ForwardingState, PlanServers};
use crate::snapshot::{Plan, Selector, Snapshot};

/// What a server of weight 1 moves back in the order of rounds when it is chosen; one of weight w moves `ROUND / w`.
pub const ROUND: u128 = 1 << 40;
/// Rows and matches of one call of [`Loads::prepare`]: some 10 us.
const STEPS: usize = 1024;

/// The servers of a snapshot that is to come.
#[derive(Clone)]
struct Preparation {
    snapshot: Arc<Snapshot>,
    contests: Contests,
    /// The service whose servers are not all seated, or not all of whose matches were played.
    service: u32,
}

/// The loads of all servers that a plan with `least` places on.
#[derive(Clone, Default)]
pub struct Loads {
    now: Contests,
    next: Option<Preparation>,
    /// Those before the last snapshot, for their memory.
    spare: Contests,
    /// The round that was taken last, by service id.
    clocks: Vec<u128>,
    /// By server id, of those that have no seat just now.
    rounds: Vec<u128>,
}

impl Loads {
    /// Prepare to follow a snapshot: some steps per call, so that no packet waits for long. Says whether all is
    /// ready. `first`: where the order of rounds starts, in servers; `active`: by server id.
    pub fn prepare(
        &mut self,
        forwarding: &ForwardingState,
        first: u64,
        active: impl Fn(u32) -> u64,
    ) -> bool {
        let begun = self.next.as_ref();
        if !begun.is_some_and(|next| Arc::ptr_eq(&next.snapshot, &forwarding.snapshot)) {
            self.begin(&forwarding.snapshot);
        }
        let services = forwarding.snapshot.services.len() as u32;
        let mut steps = STEPS;
        while let Some(id) = self.service_to_seat().filter(|&id| id < services) {
            let plan = forwarding.service(id).map(|service| &service.plan);
            let named = plan.and_then(|plan| least_of(plan, forwarding.plan_servers(id)?));
            let servers = named.map_or(&[][..], |named| &named.servers);
            let row = |server| Row {
                server,
                weight: forwarding.server(server).map_or(1, |facts| facts.weight),
                active: active(server),
                round: 0,
                is_passed_over: false,
            };
            if !self.seat(servers, first, row, &mut steps) {
                return false;
            }
        }
        true
    }

    /// Follow a snapshot, after what is left to prepare for it. Rounds stay with their servers.
    pub fn follow(
        &mut self,
        forwarding: &ForwardingState,
        first: u64,
        active: impl Fn(u32) -> u64,
    ) {
        while !self.prepare(forwarding, first, &active) {}
        self.switch();
    }

    /// The server that is to get the next flow of a service, of those not passed over.
    #[must_use]
    pub fn best(&self, service: u32) -> Option<u32> {
        self.contest(service)?.best().map(|row| row.server)
    }

    /// Leave a server out until [`Self::restore`], which comes before anything else is prepared.
    pub fn pass_over(&mut self, server: u32) {
        if let Some((contest, position)) = self.now.seat_of(server) {
            contest.change(position, |row| row.is_passed_over = true);
            contest.passed_over.push(position);
        }
    }

    /// End a placement: nothing is passed over any more.
    pub fn restore(&mut self, service: u32) {
        let contest = self.now.of.get_mut(service as usize);
        if let Some(contest) = contest.and_then(Option::as_mut) {
            while let Some(position) = contest.passed_over.pop() {
                contest.change(position, |row| row.is_passed_over = false);
            }
        }
    }

    /// Note that a server was chosen: its next round comes after those of the others, the sooner the more weight it
    /// has.
    pub fn take_round(&mut self, server: u32) {
        let Some((service, position)) = self.now.seats.get(server as usize).copied().flatten()
        else {
            return;
        };
        let Some(contest) = self.contest(service) else {
            return;
        };
        let row = &contest.rows[position as usize];
        let clock = row.round.max(self.clocks[service as usize]);
        let round = clock + ROUND / u128::from(row.weight);
        self.clocks[service as usize] = clock;
        self.set(server, |row| row.round = round);
    }

    /// The round of a server; 0: it has had none.
    #[must_use]
    pub fn round(&self, server: u32) -> u128 {
        let kept = self.rounds.get(server as usize).copied();
        self.now.round(server).or(kept).unwrap_or_default()
    }

    /// Go on from a round of the process before, with a server that there is.
    pub fn carry_round(&mut self, server: u32, round: u128) {
        if let Some(kept) = self.rounds.get_mut(server as usize) {
            *kept = round;
        }
        self.set(server, |row| row.round = round);
    }

    /// The round that was taken last of a service; 0: none was.
    #[must_use]
    pub fn clock(&self, service: u32) -> u128 {
        self.clocks
            .get(service as usize)
            .copied()
            .unwrap_or_default()
    }

    /// Go on from the last round of the process before, with a service that there is.
    pub fn carry_clock(&mut self, service: u32, clock: u128) {
        if let Some(kept) = self.clocks.get_mut(service as usize) {
            *kept = clock;
        }
    }

    /// Begin anew with the round of a server that no plan has.
    pub fn forget_round(&mut self, server: u32) {
        self.carry_round(server, 0);
    }

    /// Begin anew with the order of rounds of a service that no snapshot has.
    pub fn forget_clock(&mut self, service: u32) {
        self.carry_clock(service, 0);
    }

    /// Note how many active flows a server has now.
    pub fn change(&mut self, server: u32, active: u64) {
        self.set(server, |row| row.active = active);
    }

    /// Change a server, here and in what is prepared.
    fn set(&mut self, server: u32, change: impl Fn(&mut Row)) {
        self.now.change(server, &change);
        if let Some(next) = &mut self.next {
            next.contests.change(server, change);
        }
    }

    fn contest(&self, service: u32) -> Option<&Contest> {
        self.now.of.get(service as usize)?.as_ref()
    }

    /// Begin to prepare for a snapshot.
    fn begin(&mut self, snapshot: &Arc<Snapshot>) {
        let services = snapshot.services.len().max(self.clocks.len());
        let servers = snapshot.servers.len().max(self.rounds.len());
        self.clocks.resize(services, 0);
        self.rounds.resize(servers, 0);
        let unused = self.next.take().map(|next| next.contests);
        let mut contests = unused.unwrap_or_else(|| std::mem::take(&mut self.spare));
        contests.make_room(services, servers);
        contests.of.iter_mut().flatten().for_each(Contest::clear);
        self.next = Some(Preparation {
            snapshot: Arc::clone(snapshot),
            contests,
            service: 0,
        });
    }

    fn service_to_seat(&self) -> Option<u32> {
        self.next.as_ref().map(|next| next.service)
    }

    /// Go on with the service whose round it is in what is prepared: seat its servers in order, from `first` on,
    /// then play the matches. Says whether that is done; `steps` are left then.
    fn seat(
        &mut self,
        servers: &[u32],
        first: u64,
        row: impl Fn(u32) -> Row,
        steps: &mut usize,
    ) -> bool {
        let Some(next) = &mut self.next else {
            return true;
        };
        let (service, Contests { of, seats }) = (next.service, &mut next.contests);
        let place = &mut of[service as usize];
        if servers.is_empty() {
            *place = None;
            *steps = steps.saturating_sub(1);
            next.service += 1;
            return *steps > 0;
        }
        let contest = place.get_or_insert_with(Contest::new);
        contest.rows.reserve(servers.len() - contest.rows.len());
        let start = (first % servers.len() as u64) as usize;
        while contest.rows.len() < servers.len() && *steps > 0 {
            let position = contest.rows.len();
            let server = servers[(start + position) % servers.len()];
            let kept = self.rounds.get(server as usize).copied();
            let round = self.now.round(server).or(kept).unwrap_or_default();
            seats[server as usize] = Some((service, position as u32));
            contest.push(Row {
                round,
                ..row(server)
            });
            *steps -= 1;
        }
        if contest.rows.len() < servers.len() || !contest.play(steps) {
            return false;
        }
        next.service += 1;
        true
    }

    /// Let what was prepared take the place of what was.
    fn switch(&mut self) {
        let Some(next) = self.next.take() else {
            return;
        };
        for row in self.now.of.iter().flatten().flat_map(|each| &each.rows) {
            self.rounds[row.server as usize] = row.round;
        }
        self.spare = std::mem::replace(&mut self.now, next.contests);
    }
}

/// The servers of the plan that places by `least`: the plan itself, or the fall-back of one that asks.
fn least_of<'a>(plan: &Plan, named: &'a PlanServers) -> Option<&'a PlanServers> {
    match plan.selector {
        Selector::Least => Some(named),
        Selector::Ask => least_of(plan.fallback.as_ref()?, named.fallback.as_ref()?),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
