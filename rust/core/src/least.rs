//! The servers of the selector `least`, in order of load (rule 8, *Selectors*): kept up to date as flows come and go, so that a placement and a change
//! each cost the logarithm of their number.
//!
//! Two tournament trees over the servers of a plan: one by load, one by turn. A leaf is a server, an inner node the better one of its two children, so
//! the root is the best of all, and a change plays only the matches on the way from its leaf to the root.

use std::marker::PhantomData;

use crate::plan::PlanServers;
use crate::snapshot::{Plan, Selector};
use crate::world::World;

/// What a server of weight 1 moves back in the order of turns when it is chosen; one of weight w moves `TURN / w`.
pub const TURN: u128 = 1 << 40;
/// The leaf of no server.
const NONE: u32 = u32::MAX;

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
    order: PhantomData<O>,
}

impl<O: Order> Tournament<O> {
    const fn new() -> Self {
        Self {
            nodes: Vec::new(),
            order: PhantomData,
        }
    }

    /// Play all matches anew. The memory stays: fresh pages would cost packets more time than the matches.
    fn fill(&mut self, rows: &[Row]) {
        let leaves = rows.len().next_power_of_two();
        self.nodes.clear();
        self.nodes.resize(leaves, NONE);
        self.nodes.extend(0..rows.len() as u32);
        self.nodes.resize(2 * leaves, NONE);
        for node in (1..leaves).rev() {
            self.nodes[node] = self.better(rows, node);
        }
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

    /// Play anew what the server at a position takes part in.
    fn update(&mut self, rows: &[Row], position: u32) {
        let leaf = self.nodes.len() / 2 + position as usize;
        let mut node = leaf / 2;
        while node >= 1 {
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

    fn fill(&mut self, rows: impl Iterator<Item = Row>) {
        self.rows.clear();
        self.rows.extend(rows);
        self.active = self.rows.iter().map(|row| row.active).sum();
        self.by_load.fill(&self.rows);
        self.by_turn.fill(&self.rows);
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
        change(&mut self.rows[position as usize]);
        self.by_load.update(&self.rows, position);
        self.by_turn.update(&self.rows, position);
    }
}

/// The loads of all servers that a plan with `least` places on.
#[derive(Clone, Debug, Default)]
pub struct Loads {
    /// By service id.
    contests: Vec<Option<Contest>>,
    /// The turn that was taken last, by service id.
    clocks: Vec<u128>,
    /// By server id: service and position there.
    seats: Vec<Option<(u32, u32)>>,
    /// By server id, of those that have no seat just now.
    turns: Vec<u128>,
}

impl Loads {
    /// Follow a snapshot. Turns stay with their servers. `first`: where the order starts, in servers; `active`: by server id.
    pub fn follow(&mut self, world: &World, first: u64, active: impl Fn(u32) -> u64) {
        self.keep_turns();
        let snapshot = &world.snapshot;
        let services = snapshot.services.len().max(self.clocks.len());
        self.clocks.resize(services, 0);
        self.turns
            .resize(snapshot.servers.len().max(self.turns.len()), 0);
        let mut before = std::mem::take(&mut self.contests);
        before.resize(services, None);
        self.contests.resize(services, None);
        self.seats.fill(None);
        self.seats.resize(self.turns.len(), None);
        for id in 0..snapshot.services.len() as u32 {
            let plan = world.service(id).map(|service| &service.plan);
            if let Some(named) = plan.and_then(|plan| least_of(plan, world.plan_servers(id)?)) {
                let contest = before[id as usize].take().unwrap_or_else(Contest::new);
                self.seat(world, id, named, first, &active, contest);
            }
        }
    }

    /// The server that is to get the next flow of a service, of those not passed over.
    #[must_use]
    pub fn best(&self, service: u32) -> Option<u32> {
        self.contest(service)?.best().map(|row| row.server)
    }

    /// Leave a server out until [`Self::restore`].
    pub fn pass_over(&mut self, server: u32) {
        if let Some((contest, position)) = self.seat_of(server) {
            contest.change(position, |row| row.is_passed_over = true);
            contest.passed_over.push(position);
        }
    }

    /// End a placement: nothing is passed over any more.
    pub fn restore(&mut self, service: u32) {
        let contest = self.contests.get_mut(service as usize);
        if let Some(contest) = contest.and_then(Option::as_mut) {
            while let Some(position) = contest.passed_over.pop() {
                contest.change(position, |row| row.is_passed_over = false);
            }
        }
    }

    /// Note that a server was chosen: its next turn comes after those of the others, the sooner the more weight it has.
    pub fn take_turn(&mut self, server: u32) {
        let Some((service, _)) = self.seats.get(server as usize).copied().flatten() else {
            return;
        };
        let mut clock = self.clocks[service as usize];
        if let Some((contest, position)) = self.seat_of(server) {
            contest.change(position, |row| {
                clock = row.turn.max(clock);
                row.turn = clock + TURN / u128::from(row.weight);
            });
        }
        self.clocks[service as usize] = clock;
    }

    /// Begin anew with the turn of a server that no plan has.
    pub fn forget_turn(&mut self, server: u32) {
        if let Some(turn) = self.turns.get_mut(server as usize) {
            *turn = 0;
        }
    }

    /// Begin anew with the order of turns of a service that no snapshot has.
    pub fn forget_clock(&mut self, service: u32) {
        if let Some(clock) = self.clocks.get_mut(service as usize) {
            *clock = 0;
        }
    }

    /// Note how many active flows a server has now.
    pub fn change(&mut self, server: u32, active: u64) {
        if let Some((contest, position)) = self.seat_of(server) {
            let before = contest.rows[position as usize].active;
            contest.active = contest.active + active - before;
            contest.change(position, |row| row.active = active);
        }
    }

    fn contest(&self, service: u32) -> Option<&Contest> {
        self.contests.get(service as usize)?.as_ref()
    }

    fn seat_of(&mut self, server: u32) -> Option<(&mut Contest, u32)> {
        let (service, position) = self.seats.get(server as usize).copied().flatten()?;
        let contest = self.contests.get_mut(service as usize)?.as_mut()?;
        Some((contest, position))
    }

    fn keep_turns(&mut self) {
        for row in self.contests.iter().flatten().flat_map(|each| &each.rows) {
            self.turns[row.server as usize] = row.turn;
        }
    }

    fn seat(
        &mut self,
        world: &World,
        service: u32,
        named: &PlanServers,
        first: u64,
        active: impl Fn(u32) -> u64,
        mut contest: Contest,
    ) {
        let servers = &named.servers;
        if servers.is_empty() {
            return;
        }
        let (before, from) = servers.split_at((first % servers.len() as u64) as usize);
        let (seats, turns) = (&mut self.seats, &self.turns);
        let order = from.iter().chain(before).zip(0..);
        contest.fill(order.map(|(&server, position)| {
            seats[server as usize] = Some((service, position));
            Row {
                server,
                weight: world.server(server).map_or(1, |facts| facts.weight),
                active: active(server),
                turn: turns[server as usize],
                is_passed_over: false,
            }
        }));
        self.contests[service as usize] = Some(contest);
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

    fn loads(weights: &[u64]) -> Loads {
        let rows: Vec<Row> = weights
            .iter()
            .zip(0..)
            .map(|(&weight, server)| Row {
                server,
                weight,
                active: 0,
                turn: 0,
                is_passed_over: false,
            })
            .collect();
        let mut contest = Contest::new();
        contest.fill(rows.iter().copied());
        Loads {
            seats: (0..rows.len() as u32).map(|at| Some((0, at))).collect(),
            turns: vec![0; rows.len()],
            clocks: vec![0],
            contests: vec![Some(contest)],
        }
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
            weights in proptest::collection::vec(1u64..5, 1..40),
            changes in proptest::collection::vec((0u8..5, any::<prop::sample::Index>(), 0u64..4), 1..200),
        ) {
            let mut loads = loads(&weights);
            for (kind, which, active) in changes {
                let server = which.index(weights.len()) as u32;
                match kind {
                    0 | 1 => loads.change(server, active),
                    2 => loads.take_turn(server),
                    3 => loads.pass_over(server),
                    _ => loads.restore(0),
                }
                let contest = loads.contest(0).unwrap();
                prop_assert_eq!(loads.best(0), reference(&contest.rows));
                prop_assert_eq!(contest.active, contest.rows.iter().map(|row| row.active).sum::<u64>());
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
