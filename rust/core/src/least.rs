//! The servers of the selector `least`, in order of load (rule 8, *Selectors*): kept up to date as flows come and go, so that a placement and a change
//! each cost the logarithm of their number.
//!
//! Two tournament trees over the servers of a plan: one by load, one by turn. A leaf is a server, an inner node the better one of its two children, so
//! the root is the best of all, and a change plays only the matches on the way from its leaf to the root.
//!
//! The trees of another snapshot are made beside those in use, some steps at a time, and are kept up to date with them until they take their place: a plan of
//! 10 000 servers is as many rows and twice as many matches, for which no packet is to wait.

use std::marker::PhantomData;
use std::sync::Arc;

use crate::forwarding::{ForwardingState, PlanServers};
use crate::snapshot::{Plan, Selector, Snapshot};

/// What a server of weight 1 moves back in the order of turns when it is chosen; one of weight w moves `TURN / w`.
pub const TURN: u128 = 1 << 40;
/// The leaf of no server.
const NONE: u32 = u32::MAX;
/// Rows and matches of one call of [`Loads::prepare`]: some 10 us.
const STEPS: usize = 1024;

/// A server of the plan.
#[derive(Clone, Copy, Debug)]
struct Row {
    server: u32,
    weight: u64,
    active: u64,
    turn: u128,
    /// It was looked at in this placement and does not take the flow.
    is_passed_over: bool,
}

/// An order of servers. A type, not a function: a publication plays all matches anew, and they are short.
trait Order {
    /// Whether one server comes before another.
    fn precedes(one: &Row, other: &Row) -> bool;
}

/// (active + 1) / weight, compared without dividing; equal ones take turns.
#[derive(Clone, Copy, Debug)]
struct ByLoad;

impl Order for ByLoad {
    #[inline(always)]
    fn precedes(one: &Row, other: &Row) -> bool {
        if one.is_passed_over != other.is_passed_over {
            return other.is_passed_over;
        }
        // Both fit: a table has fewer than 2^32 flows, a weight 32 bits.
        let ours = (one.active + 1) * other.weight;
        let theirs = (other.active + 1) * one.weight;
        ours < theirs || ours == theirs && one.turn < other.turn
    }
}

/// Those without a flow first, in order of their turn.
#[derive(Clone, Copy, Debug)]
struct ByTurn;

impl Order for ByTurn {
    #[inline(always)]
    fn precedes(one: &Row, other: &Row) -> bool {
        let key = |row: &Row| u8::from(row.is_passed_over) << 1 | u8::from(row.active > 0);
        let (ours, theirs) = (key(one), key(other));
        ours < theirs || ours == theirs && one.turn < other.turn
    }
}

/// `nodes[1]` is the root, the children of node i are 2i and 2i + 1, the leaves are the second half.
#[derive(Clone, Debug)]
struct Tournament<O> {
    nodes: Vec<u32>,
    /// The inner nodes from here on were played: 1 when all were, and `usize::MAX` before there are leaves.
    played_from: usize,
    order: PhantomData<O>,
}

impl<O: Order> Tournament<O> {
    const fn new() -> Self {
        Self {
            nodes: Vec::new(),
            played_from: usize::MAX,
            order: PhantomData,
        }
    }

    /// Forget all. The memory stays: fresh pages would cost packets more time than the matches.
    fn clear(&mut self) {
        self.nodes.clear();
        self.played_from = usize::MAX;
    }

    /// Go on until all matches were played, or no steps are left.
    fn play(&mut self, rows: &[Row], steps: &mut usize) {
        if self.played_from == usize::MAX && *steps > 0 {
            self.lay_out(rows.len());
            *steps = 0;
        }
        while self.played_from > 1 && *steps > 0 {
            self.played_from -= 1;
            self.nodes[self.played_from] = self.better(rows, self.played_from);
            *steps -= 1;
        }
    }

    fn lay_out(&mut self, rows: usize) {
        let leaves = rows.next_power_of_two();
        self.nodes.resize(leaves, NONE);
        self.nodes.extend(0..rows as u32);
        self.nodes.resize(2 * leaves, NONE);
        self.played_from = leaves;
    }

    /// The better of a node's children; the left one of equals: it comes first in the plan.
    #[inline]
    fn better(&self, rows: &[Row], node: usize) -> u32 {
        let (left, right) = (self.nodes[2 * node], self.nodes[2 * node + 1]);
        if right != NONE && O::precedes(&rows[right as usize], &rows[left as usize]) {
            right
        } else {
            left
        }
    }

    /// Play anew what the server at a position takes part in, of the matches that were played.
    fn update(&mut self, rows: &[Row], position: u32) {
        let leaf = self.nodes.len() / 2 + position as usize;
        let mut node = leaf / 2;
        while node >= self.played_from {
            let better = self.better(rows, node);
            if better == self.nodes[node] && better != position {
                // It loses here as before: nothing above has it.
                return;
            }
            self.nodes[node] = better;
            node /= 2;
        }
    }

    fn best<'a>(&self, rows: &'a [Row]) -> Option<&'a Row> {
        rows.get(self.nodes[1] as usize)
    }
}

/// The servers of one service.
#[derive(Clone, Debug)]
struct Contest {
    rows: Vec<Row>,
    by_load: Tournament<ByLoad>,
    by_turn: Tournament<ByTurn>,
    active: u64,
    passed_over: Vec<u32>,
}

impl Contest {
    fn new() -> Self {
        Self {
            rows: Vec::new(),
            by_load: Tournament::new(),
            by_turn: Tournament::new(),
            active: 0,
            passed_over: Vec::new(),
        }
    }

    fn clear(&mut self) {
        self.rows.clear();
        self.by_load.clear();
        self.by_turn.clear();
        self.active = 0;
        self.passed_over.clear();
    }

    fn push(&mut self, row: Row) {
        self.active += row.active;
        self.rows.push(row);
    }

    /// Play the matches, once all rows are there. Says whether all were played.
    fn play(&mut self, steps: &mut usize) -> bool {
        self.by_load.play(&self.rows, steps);
        self.by_turn.play(&self.rows, steps);
        self.by_load.played_from.max(self.by_turn.played_from) == 1
    }

    fn best(&self) -> Option<&Row> {
        if self.active < self.rows.len() as u64 {
            let next = self.by_turn.best(&self.rows);
            if let Some(row) = next.filter(|row| row.active == 0 && !row.is_passed_over) {
                return Some(row);
            }
        }
        self.by_load
            .best(&self.rows)
            .filter(|row| !row.is_passed_over)
    }

    fn change(&mut self, position: u32, change: impl FnOnce(&mut Row)) {
        let row = &mut self.rows[position as usize];
        let before = row.active;
        change(row);
        self.active = self.active + row.active - before;
        self.by_load.update(&self.rows, position);
        self.by_turn.update(&self.rows, position);
    }
}

/// The servers of all plans with `least`.
#[derive(Clone, Debug, Default)]
struct Contests {
    /// By service id.
    of: Vec<Option<Contest>>,
    /// By server id: service and position there.
    seats: Vec<Option<(u32, u32)>>,
}

impl Contests {
    /// Empty, with room for so many ids.
    fn make_room(&mut self, services: usize, servers: usize) {
        self.of.resize(services, None);
        self.seats.fill(None);
        self.seats.resize(servers, None);
    }

    fn seat_of(&mut self, server: u32) -> Option<(&mut Contest, u32)> {
        let (service, position) = self.seats.get(server as usize).copied().flatten()?;
        let contest = self.of.get_mut(service as usize)?.as_mut()?;
        Some((contest, position))
    }

    fn change(&mut self, server: u32, change: impl FnOnce(&mut Row)) {
        if let Some((contest, position)) = self.seat_of(server) {
            contest.change(position, change);
        }
    }

    fn turn(&mut self, server: u32) -> Option<u128> {
        let (contest, position) = self.seat_of(server)?;
        Some(contest.rows[position as usize].turn)
    }
}

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
    /// The turn that was taken last, by service id.
    clocks: Vec<u128>,
    /// By server id, of those that have no seat just now.
    turns: Vec<u128>,
}

impl Loads {
    /// Prepare to follow a snapshot: some steps per call, so that no packet waits for long. Says whether all is ready. `first`: where the order of turns
    /// starts, in servers; `active`: by server id.
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
                turn: 0,
                is_passed_over: false,
            };
            if !self.seat(servers, first, row, &mut steps) {
                return false;
            }
        }
        true
    }

    /// Follow a snapshot, after what is left to prepare for it. Turns stay with their servers.
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

    /// Note that a server was chosen: its next turn comes after those of the others, the sooner the more weight it has.
    pub fn take_turn(&mut self, server: u32) {
        let Some((service, position)) = self.now.seats.get(server as usize).copied().flatten()
        else {
            return;
        };
        let Some(contest) = self.contest(service) else {
            return;
        };
        let row = &contest.rows[position as usize];
        let clock = row.turn.max(self.clocks[service as usize]);
        let turn = clock + TURN / u128::from(row.weight);
        self.clocks[service as usize] = clock;
        self.set(server, |row| row.turn = turn);
    }

    /// Begin anew with the turn of a server that no plan has.
    pub fn forget_turn(&mut self, server: u32) {
        if let Some(turn) = self.turns.get_mut(server as usize) {
            *turn = 0;
        }
        self.set(server, |row| row.turn = 0);
    }

    /// Begin anew with the order of turns of a service that no snapshot has.
    pub fn forget_clock(&mut self, service: u32) {
        if let Some(clock) = self.clocks.get_mut(service as usize) {
            *clock = 0;
        }
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
        let servers = snapshot.servers.len().max(self.turns.len());
        self.clocks.resize(services, 0);
        self.turns.resize(servers, 0);
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

    /// Go on with the service whose turn it is in what is prepared: seat its servers in order, from `first` on, then play the matches. Says whether that is
    /// done; `steps` are left then.
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
            let kept = self.turns.get(server as usize).copied();
            let turn = self.now.turn(server).or(kept).unwrap_or_default();
            seats[server as usize] = Some((service, position as u32));
            contest.push(Row {
                turn,
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
            self.turns[row.server as usize] = row.turn;
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn begin(loads: &mut Loads, servers: usize) {
        let snapshot = Snapshot {
            services: vec![None],
            servers: vec![None; servers],
            ..Snapshot::empty()
        };
        loads.begin(&Arc::new(snapshot));
    }

    /// Seat servers, so many steps of it.
    fn seat(loads: &mut Loads, weights: &[u64], active: &[u64], mut steps: usize) -> bool {
        let servers: Vec<u32> = (0..weights.len() as u32).collect();
        let row = |server: u32| Row {
            server,
            weight: weights[server as usize],
            active: active[server as usize],
            turn: 0,
            is_passed_over: false,
        };
        loads.seat(&servers, 1, row, &mut steps)
    }

    /// Rule 8 by looking at every server: position of the best one that is not passed over.
    fn reference(rows: &[Row]) -> Option<u32> {
        let total: u64 = rows.iter().map(|row| row.active).sum();
        let left = || rows.iter().filter(|row| !row.is_passed_over);
        let idle = left().filter(|row| row.active == 0 && total < rows.len() as u64);
        let by_turn = idle.min_by_key(|row| row.turn);
        let by_load = left().reduce(|best, row| {
            if ByLoad::precedes(row, best) {
                row
            } else {
                best
            }
        });
        by_turn.or(by_load).map(|row| row.server)
    }

    proptest! {
        /// behaviour 38: whatever happens in whatever order, the root of the trees is what a look at every server finds.
        #[test]
        fn best_any_changes_equals_a_look_at_all(
            (weights, others) in (1usize..40).prop_flat_map(|count| {
                let weights = || proptest::collection::vec(1u64..5, count);
                (weights(), weights())
            }),
            changes in proptest::collection::vec((0u8..8, any::<prop::sample::Index>(), 0u64..4), 1..300),
        ) {
            let mut loads = Loads::default();
            let mut active = vec![0; weights.len()];
            begin(&mut loads, weights.len());
            while !seat(&mut loads, &weights, &active, 1000) {}
            loads.switch();
            let mut weights = [weights, others];
            for (kind, which, number) in changes {
                let server = which.index(active.len());
                match kind {
                    0 | 1 => {
                        active[server] = number;
                        loads.change(server as u32, number);
                    }
                    2 => loads.take_turn(server as u32),
                    3 => {
                        loads.pass_over(server as u32);
                        prop_assert_eq!(loads.best(0), reference(&loads.contest(0).unwrap().rows));
                        loads.restore(0);
                    }
                    4 => begin(&mut loads, active.len()),
                    _ if loads.next.is_none() => begin(&mut loads, active.len()),
                    _ => {
                        if seat(&mut loads, &weights[1], &active, number as usize * 5) {
                            let turns: Vec<_> = (0..active.len()).map(|id| loads.now.turn(id as u32)).collect();
                            loads.switch();
                            prop_assert_eq!(turns, (0..active.len()).map(|id| loads.now.turn(id as u32)).collect::<Vec<_>>());
                            weights.swap(0, 1);
                        }
                    }
                }
                let contest = loads.contest(0).unwrap();
                prop_assert_eq!(loads.best(0), reference(&contest.rows));
                prop_assert_eq!(contest.active, active.iter().sum::<u64>());
                prop_assert!(contest.rows.iter().all(|row| row.weight == weights[0][row.server as usize]));
            }
        }
    }

    #[test]
    fn best_of_an_unknown_service_is_none() {
        let mut loads = Loads::default();
        loads.change(3, 1);
        loads.take_turn(3);
        loads.pass_over(3);
        loads.restore(3);
        assert_eq!(loads.best(3), None);
    }
}
