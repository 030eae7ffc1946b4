//! Placing a new flow: a selector picks a server from the plan's slots (rule 8, *Selectors*). One that cannot take it is passed over.
//!
//! Random numbers come from a generator whose state is an argument, so that a replay places as the live run did.

use std::sync::Arc;

use crate::asking::{Asking, Step};
use crate::base::{Event, FixedMap, Reason, number_address};
use crate::counters::Counters;
use crate::flow::hash;
use crate::snapshot::{Answer, Names, Plan, Protocol, Question, Selector, Snapshot};
use crate::world::World;

/// `SplitMix64` (Steele, Lea, Flood 2014).
#[derive(Clone, Copy, Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// Start at a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = self.0;
        let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

/// Slots looked at in order before the plan's servers are gone through one by one, and servers that one placement tries: both bound what a packet can cost.
const MOST_SLOTS: usize = 1024;
const MOST_TRIED: usize = 1024;

/// The servers that a plan names, each once, in the order of their first slots; those that are in the snapshot.
#[derive(Clone, Debug, Default)]
pub struct PlanServers {
    /// Server ids.
    pub servers: Vec<u32>,
    /// The fall-back plan's.
    pub fallback: Option<Box<PlanServers>>,
    /// Whom a user's policy is asked about, if it is.
    candidates: Option<Candidates>,
}

/// The servers that a user's policy is asked about.
#[derive(Clone, Debug)]
struct Candidates {
    names: Names,
    /// Servers by name; the first of a name.
    servers: FixedMap<Arc<str>, u32>,
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
    /// Work out. `is_known` says whether a server of the snapshot can be used.
    #[must_use]
    pub fn of(plan: &Plan, snapshot: &Snapshot, is_known: &dyn Fn(u32) -> bool) -> Self {
        let mut seen = vec![false; snapshot.servers.len()];
        let mut is_new = |&server: &u32| {
            let seen = seen.get_mut(server as usize);
            is_known(server) && seen.is_some_and(|seen| !std::mem::replace(seen, true))
        };
        let servers = plan.slots.iter().copied().filter(&mut is_new).collect();
        let fallback = plan.fallback.as_ref();
        Self {
            servers,
            fallback: fallback.map(|plan| Box::new(Self::of(plan, snapshot, is_known))),
            candidates: (plan.selector == Selector::Ask).then(|| Candidates::of(plan, snapshot)),
        }
    }
}

/// Whether a server takes a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Nothing is in the way.
    Free,
    /// A flow that is over is in the way: this entry is to be removed.
    Dead(u32),
    /// Not this one.
    Refused(Reason),
}

/// What a placement came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// No server is available.
    NoServer,
    /// This one. `dead`: the entry that is to be removed before.
    Server {
        /// Its id.
        server: u32,
        /// An entry's number.
        dead: Option<u32>,
    },
    /// None takes the flow: the first one that was tried, and why it does not.
    Refused(u32, Reason),
}

/// The servers that one placement has tried in vain. Kept from one to the next for its memory alone.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    /// By server id: the round in which it was tried last.
    rounds: Vec<u32>,
    round: u32,
    count: usize,
    first: Option<(u32, Reason)>,
    dead: Option<u32>,
}

impl Tried {
    fn begin(&mut self) {
        self.round = self.round.wrapping_add(1);
        if self.round == 0 {
            self.rounds.fill(0);
            self.round = 1;
        }
        (self.count, self.first, self.dead) = (0, None, None);
    }

    fn has(&self, server: u32) -> bool {
        self.count > 0 && self.rounds.get(server as usize) == Some(&self.round)
    }

    #[cold]
    fn add(&mut self, server: u32, reason: Reason) {
        let at = server as usize;
        self.rounds.resize(self.rounds.len().max(at + 1), 0);
        self.rounds[at] = self.round;
        self.count += 1;
        self.first.get_or_insert((server, reason));
    }
}

/// What a selector may look at and move on.
pub struct Chooser<'a> {
    /// Services and servers.
    pub world: &'a World,
    /// Active flows, and the event of an ask that failed.
    pub counters: &'a mut Counters,
    /// Random draws.
    pub random: &'a mut SplitMix64,
    /// The service's own `counter`.
    pub rotation: &'a mut u64,
    /// What waits for an answer: see [`Asking::waits`].
    pub asking: &'a mut Asking,
    /// Room to note what was tried.
    pub tried: &'a mut Tried,
    /// Whether a server takes this flow.
    pub fit: &'a dyn Fn(u32) -> Fit,
    /// The service to place for.
    pub service: u32,
    /// The client's (address, port).
    pub client: (u128, u16),
}

impl Chooser<'_> {
    /// Pick a server that is in the snapshot and takes the flow; or the packet has to wait for an answer ([`Asking::take_wait`]). `named`: the plan's.
    pub fn select(&mut self, plan: &Plan, named: &PlanServers) -> Choice {
        self.tried.begin();
        if let Some(server) = self.pick(plan, named) {
            let dead = self.tried.dead;
            return Choice::Server { server, dead };
        }
        match self.tried.first {
            Some((server, reason)) => Choice::Refused(server, reason),
            None => Choice::NoServer,
        }
    }

    fn pick(&mut self, plan: &Plan, named: &PlanServers) -> Option<u32> {
        let slots = &plan.slots;
        let count = slots.len() as u64;
        if count == 0 {
            return None;
        }
        let at = |number: u64| (number % count) as usize;
        match plan.selector {
            Selector::Counter => {
                let slot = at(*self.rotation);
                let (server, passed) = self.starting_at(plan, named, slot);
                *self.rotation = self.rotation.wrapping_add(passed + 1);
                server
            }
            Selector::Random => {
                let slot = at(self.random.draw());
                self.starting_at(plan, named, slot).0
            }
            Selector::HashSource | Selector::HashFlow => {
                let hash = placement_hash(self.world, self.service, self.client, plan.selector)?;
                self.starting_at(plan, named, at(hash)).0
            }
            Selector::Least => self.least(),
            Selector::TwoChoices => {
                let first = at(self.random.draw());
                // Another slot, where there is one.
                let step = self.random.draw() % (count - 1).max(1) + 1;
                let second = at(first as u64 + step);
                let better = if self.is_cheaper(plan, second, first) {
                    second
                } else {
                    first
                };
                self.starting_at(plan, named, better).0
            }
            Selector::Ask => self.ask(plan, named),
        }
    }

    /// Whether a server takes the flow. It is noted if it is in the snapshot and does not.
    #[inline]
    fn takes(&mut self, server: u32) -> bool {
        if self.tried.has(server) || self.world.server(server).is_none() {
            return false;
        }
        match (self.fit)(server) {
            Fit::Free => true,
            Fit::Dead(number) => {
                self.tried.dead = Some(number);
                true
            }
            Fit::Refused(reason) => {
                self.tried.add(server, reason);
                false
            }
        }
    }

    /// The first server that takes the flow, from a slot on, and how many slots were passed over before its own.
    #[inline]
    fn starting_at(&mut self, plan: &Plan, named: &PlanServers, slot: usize) -> (Option<u32>, u64) {
        let server = plan.slots[slot];
        let untried = self.untried(named);
        if self.takes(server) {
            return (Some(server), 0);
        }
        self.pass_over(plan, named, slot, untried)
    }

    /// The slots after that one in order, going round; beyond `MOST_SLOTS`, the plan's servers in the order of their first slots.
    #[cold]
    fn pass_over(
        &mut self,
        plan: &Plan,
        named: &PlanServers,
        slot: usize,
        untried: usize,
    ) -> (Option<u32>, u64) {
        let most = MOST_TRIED.min(untried);
        let (before, from) = plan.slots.split_at(slot);
        let following = from.iter().chain(before).take(MOST_SLOTS).enumerate();
        let slots = following
            .skip(1)
            .map(|(passed, server)| (passed as u64, server));
        for (passed, &server) in slots.chain(named.servers.iter().map(|server| (0, server))) {
            if self.tried.count >= most {
                break;
            }
            if self.takes(server) {
                return (Some(server), passed);
            }
        }
        (None, 0)
    }

    /// How many servers have been tried once all of the plan's have.
    fn untried(&self, named: &PlanServers) -> usize {
        if self.tried.count == 0 {
            return named.servers.len();
        }
        let untried = named
            .servers
            .iter()
            .filter(|&&server| !self.tried.has(server));
        self.tried.count + untried.count()
    }

    fn least(&mut self) -> Option<u32> {
        let mut chosen = None;
        while self.tried.count < MOST_TRIED {
            let Some(server) = self.counters.loads.best(self.service) else {
                break;
            };
            if self.takes(server) {
                chosen = Some(server);
                break;
            }
            self.counters.loads.pass_over(server);
        }
        self.counters.loads.restore(self.service);
        if let Some(server) = chosen {
            self.counters.loads.take_turn(server);
        }
        chosen
    }

    /// Whether one more flow costs less on a slot than on one that was drawn before it. Of two servers that seem idle none does where flows may never count,
    /// over UDP: as they are drawn they have them by weight.
    fn is_cheaper(&self, plan: &Plan, slot: usize, first: usize) -> bool {
        let active = |slot: usize| self.counters.active(plan.slots[slot]);
        let score = |slot: usize| plan.scores.get(slot).copied().unwrap_or(1);
        let cost = |slot: usize| (u128::from(active(slot)) + 1) * u128::from(score(slot));
        let is_idle = active(slot) + active(first) == 0;
        let service = self.world.service(self.service);
        let is_udp = service.is_some_and(|service| service.protocol == Protocol::Udp);
        !(is_idle && is_udp) && cost(slot) < cost(first)
    }

    /// The server that is answered, else what the fall-back plan picks; where those do not take the flow, the slots in order.
    fn ask(&mut self, plan: &Plan, named: &PlanServers) -> Option<u32> {
        match self.answer(plan, named) {
            Some(server) if self.takes(server) => return Some(server),
            Some(_) => {}
            None if self.asking.waits() => return None,
            None => self.counters.event(Event::AskFallback),
        }
        let fallback = plan.fallback.as_ref().zip(named.fallback.as_ref());
        if let Some(server) = fallback.and_then(|(plan, named)| self.pick(plan, named)) {
            return Some(server);
        }
        if self.tried.count == 0 {
            return None;
        }
        self.starting_at(plan, named, 0).0
    }

    fn answer(&mut self, plan: &Plan, named: &PlanServers) -> Option<u32> {
        let world = self.world;
        let ask = world.snapshot.ask.as_ref()?;
        let service = world.service(self.service)?;
        let candidates = named.candidates.as_ref()?;
        let flow = (self.service, self.client.0, self.client.1);
        let answer = match self.asking.step(flow, plan.deadline_ns) {
            Step::Wait => return None,
            Step::Answered(answer) => answer?,
            Step::Ask(ticket) => match ask(&Question {
                service: &service.name,
                client: number_address(self.client.0),
                client_port: self.client.1,
                candidates: &candidates.names,
                deadline_ns: plan.deadline_ns,
                ticket,
            }) {
                Answer::Given(answer) => answer?,
                Answer::Later => {
                    self.asking
                        .wait_for(ticket.unwrap_or(0), flow, plan.deadline_ns);
                    return None;
                }
            },
        };
        candidates.servers.get(answer.as_str()).copied()
    }
}

/// The server of the slot that a hash selector gives a flow, whatever is in the way there; `None` where the snapshot does not have it.
#[must_use]
pub fn hashed(world: &World, service: u32, client: (u128, u16), plan: &Plan) -> Option<u32> {
    let hash = placement_hash(world, service, client, plan.selector)?;
    let slot = hash.checked_rem(plan.slots.len() as u64)?;
    let server = plan.slots[slot as usize];
    world.server(server).map(|_| server)
}

/// The hash that a hash selector places by.
fn placement_hash(
    world: &World,
    service: u32,
    client: (u128, u16),
    selector: Selector,
) -> Option<u64> {
    let seed = world.snapshot.seed;
    let address = client.0.to_be_bytes();
    if selector == Selector::HashSource {
        return Some(hash::source_hash(seed, &address));
    }
    let facts = world.service(service)?;
    let vip = crate::base::address_number(facts.address).to_be_bytes();
    Some(hash::flow_hash(
        seed,
        &address,
        &vip,
        client.1,
        facts.port,
        facts.protocol as u8,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::empty_snapshot;
    use crate::snapshot::{NextHops, Server, Service};
    use std::sync::Mutex;

    fn plan(selector: Selector, slots: &[u32]) -> Plan {
        Plan {
            selector,
            slots: slots.to_vec(),
            scores: vec![],
            fallback: None,
            deadline_ns: 1,
        }
    }

    fn snapshot() -> Snapshot {
        let server = |id: u32| Server {
            name: format!("server{id}"),
            service: 0,
            endpoint: id,
            address: format!("10.0.0.{}", id + 1).parse().unwrap(),
            port: 80,
            weight: id,
            mac: None,
            moves_udp: false,
        };
        let service = Service {
            name: "web".into(),
            address: "192.0.2.1".parse().unwrap(),
            port: 80,
            protocol: Protocol::Tcp,
            plan: plan(Selector::Counter, &[]),
            reset_without_server: true,
            reset_without_flow: false,
        };
        Snapshot {
            seed: 5,
            services: vec![Some(service)],
            servers: (0..4).map(|id| Some(server(id))).collect(),
            ..empty_snapshot()
        }
    }

    struct Bench {
        world: World,
        counters: Counters,
        random: SplitMix64,
        rotation: u64,
        asking: Asking,
        tried: Tried,
        refused: Vec<u32>,
    }

    impl Bench {
        fn new(snapshot: Snapshot) -> Self {
            let mut counters = Counters::default();
            counters.grow(1, 4);
            Self {
                world: World::new(snapshot, NextHops::default()),
                counters,
                random: SplitMix64::new(1),
                rotation: 0,
                asking: Asking::default(),
                tried: Tried::default(),
                refused: Vec::new(),
            }
        }

        /// Use another plan, as a publication does.
        fn publish(&mut self, plan: &Plan) {
            let mut snapshot = (*self.world.snapshot).clone();
            snapshot.services[0].as_mut().unwrap().plan = plan.clone();
            self.world = World::new(snapshot, NextHops::default());
            self.counters.follow(&self.world, 0);
        }

        fn choose(&mut self, plan: &Plan, client_port: u16) -> Choice {
            self.publish(plan);
            self.place(plan, client_port)
        }

        /// Use the plan that was published.
        fn place(&mut self, plan: &Plan, client_port: u16) -> Choice {
            let refused = &self.refused;
            let fit = |server: u32| {
                if refused.contains(&server) {
                    return Fit::Refused(Reason::FlowConflict);
                }
                Fit::Free
            };
            let named = self.world.plan_servers(0).unwrap();
            Chooser {
                world: &self.world,
                counters: &mut self.counters,
                random: &mut self.random,
                rotation: &mut self.rotation,
                asking: &mut self.asking,
                tried: &mut self.tried,
                fit: &fit,
                service: 0,
                client: (crate::base::map_v4(9), client_port),
            }
            .select(plan, named)
        }

        fn select(&mut self, plan: &Plan, client_port: u16) -> Option<u32> {
            match self.choose(plan, client_port) {
                Choice::Server { server, .. } => Some(server),
                Choice::NoServer | Choice::Refused(..) => None,
            }
        }

        fn load(&mut self, flows: [u64; 4]) {
            for (server, &count) in flows.iter().enumerate() {
                (0..count).for_each(|_| self.counters.flow_active(server as u32));
            }
        }
    }

    /// The first outputs for seed 1234567, from the generator's publication.
    #[test]
    fn draw_reference_vector() {
        let mut random = SplitMix64::new(1_234_567);
        let drawn = [random.draw(), random.draw(), random.draw()];
        assert_eq!(
            drawn,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn select_no_slots_or_removed_server_gives_none() {
        let mut bench = Bench::new(snapshot());
        for selector in [
            Selector::Counter,
            Selector::Random,
            Selector::HashFlow,
            Selector::Least,
            Selector::TwoChoices,
            Selector::Ask,
        ] {
            assert_eq!(bench.select(&plan(selector, &[]), 1), None);
        }
        assert_eq!(bench.select(&plan(Selector::Counter, &[9]), 1), None);
    }

    #[test]
    fn select_counter_goes_round() {
        let mut bench = Bench::new(snapshot());
        let picked: Vec<_> = (0..5)
            .filter_map(|_| bench.select(&plan(Selector::Counter, &[2, 0, 2]), 1))
            .collect();
        assert_eq!(picked, [2, 0, 2, 2, 0]);
    }

    #[test]
    fn select_random_follows_the_draws() {
        let mut bench = Bench::new(snapshot());
        let mut same = SplitMix64::new(1);
        for _ in 0..20 {
            let expected = [3, 1, 2][(same.draw() % 3) as usize];
            assert_eq!(
                bench.select(&plan(Selector::Random, &[3, 1, 2]), 1),
                Some(expected)
            );
        }
    }

    #[test]
    fn select_hash_depends_on_what_its_name_says() {
        let mut bench = Bench::new(snapshot());
        let mut picked = |selector| {
            let picked: std::collections::BTreeSet<_> = (1..100)
                .map(|port| bench.select(&plan(selector, &[0, 1, 2, 3]), port))
                .collect();
            picked.len()
        };
        assert_eq!(
            (picked(Selector::HashSource), picked(Selector::HashFlow)),
            (1, 4)
        );
    }

    /// behaviour 38: (active + 1) / weight; weight 0 counts as 1.
    #[test]
    fn select_least_compares_by_weight() {
        let mut bench = Bench::new(snapshot());
        let all = plan(Selector::Least, &[0, 1, 2, 3]);
        bench.load([1, 1, 1, 2]);
        assert_eq!(bench.select(&all, 1), Some(2), "2/1, 2/1, 2/2, 3/3");
        bench.load([0, 0, 1, 0]);
        assert_eq!(bench.select(&all, 1), Some(3), "2/1, 2/1, 3/2, 3/3");
    }

    /// behaviour 38: on an idle service equal servers take turns, and others by weight.
    #[test]
    fn select_least_idle_takes_turns_by_weight() {
        let mut bench = Bench::new(snapshot());
        let mut picked = [0; 4];
        for _ in 0..60 {
            let server = bench.select(&plan(Selector::Least, &[1, 2, 3]), 1).unwrap();
            picked[server as usize] += 1;
        }
        assert_eq!(picked, [0, 10, 20, 30]);
        for _ in 0..20 {
            let server = bench.select(&plan(Selector::Least, &[0, 1]), 1).unwrap();
            picked[server as usize] += 1;
        }
        assert_eq!(
            picked[0], 10,
            "a server that is new takes its turns, and no more"
        );
    }

    /// behaviour 37: the next candidate, selector by selector.
    #[test]
    fn select_refused_server_is_passed_over() {
        let mut bench = Bench::new(snapshot());
        bench.refused = vec![2];
        let slots = [2, 2, 0, 2, 1];
        for selector in [
            Selector::Random,
            Selector::HashSource,
            Selector::HashFlow,
            Selector::TwoChoices,
        ] {
            for port in 1..40 {
                let before = bench.random;
                bench.refused.clear();
                let first = bench.select(&plan(selector, &slots), port).unwrap();
                bench.refused.push(2);
                bench.random = before;
                let then = bench.select(&plan(selector, &slots), port).unwrap();
                assert!(then != 2 && (first == 2 || first == then));
            }
        }
        assert_eq!(
            bench.select(&plan(Selector::HashSource, &[2, 0, 2, 2]), 1),
            Some(0)
        );
        let picked: Vec<_> = (0..3)
            .map(|_| bench.select(&plan(Selector::Counter, &slots), 1))
            .collect();
        assert_eq!(picked, [Some(0), Some(1), Some(0)]);
        assert_eq!(bench.rotation, 8, "past the slots that were taken");
        bench.load([0, 5, 0, 0]);
        let least = plan(Selector::Least, &[1, 2]);
        assert_eq!(bench.select(&least, 1), Some(1));
        bench.refused.clear();
        assert_eq!(
            bench.select(&least, 1),
            Some(2),
            "nothing stays passed over"
        );
    }

    /// behaviour 37: only when none is left, with what was in the first one's way.
    #[test]
    fn select_all_refused_names_the_first() {
        let mut bench = Bench::new(snapshot());
        bench.refused = vec![0, 1, 2, 3];
        let refused = |server| Choice::Refused(server, Reason::FlowConflict);
        let mut asking = plan(Selector::Ask, &[1, 2]);
        asking.fallback = Some(Box::new(plan(Selector::Counter, &[3])));
        let cases = [
            (plan(Selector::Counter, &[2, 0, 2]), 2),
            (plan(Selector::Least, &[3, 1]), 3),
            (asking.clone(), 3),
        ];
        for (plan, first) in cases {
            assert_eq!(bench.choose(&plan, 1), refused(first));
        }
        bench.refused = vec![1, 3];
        assert_eq!(
            bench.select(&asking, 1),
            Some(2),
            "the slots after the fall-back"
        );
    }

    /// One heavy server fills the slots: the search for another ends, and finds it.
    #[test]
    fn select_rare_server_is_found_behind_many_slots() {
        let mut bench = Bench::new(snapshot());
        bench.refused = vec![0];
        let mut slots = vec![0; 60_000];
        slots[40_000] = 3;
        assert_eq!(
            bench.select(&plan(Selector::HashSource, &slots), 1),
            Some(3)
        );
        bench.refused.push(3);
        let choice = bench.choose(&plan(Selector::HashSource, &slots), 1);
        assert_eq!(choice, Choice::Refused(0, Reason::FlowConflict));
    }

    #[test]
    fn select_two_choices_takes_second_only_when_cheaper_and_over_udp_not_both_idle() {
        let mut plan = plan(Selector::TwoChoices, &[0, 1, 2, 3]);
        plan.scores = vec![1, 5, 1, 1];
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let mut snapshot = snapshot();
            snapshot.services[0].as_mut().unwrap().protocol = protocol;
            let mut bench = Bench::new(snapshot);
            bench.load([3, 0, 0, 0]);
            let mut same = SplitMix64::new(1);
            for _ in 0..50 {
                let i = same.draw() % 4;
                let j = (i + 1 + same.draw() % 3) % 4;
                let cost = [4, 5, 1, 1];
                let compared = protocol == Protocol::Tcp || i == 0 || j == 0;
                let expected = if compared && cost[j as usize] < cost[i as usize] {
                    j
                } else {
                    i
                };
                assert_eq!(bench.select(&plan, 1), Some(expected as u32));
            }
        }
    }

    #[test]
    fn select_ask_uses_answer_or_falls_back() {
        let ask_for = |answer: Option<&'static str>| {
            let function = move |question: &Question<'_>| {
                let client = question.client.to_string();
                assert_eq!(
                    (question.service, client.as_str(), question.client_port),
                    ("web", "0.0.0.9", 7)
                );
                assert_eq!(
                    question.candidates[..],
                    ["server1".into(), "server2".into()]
                );
                assert_eq!(question.deadline_ns, 1);
                Answer::Given(answer.map(str::to_owned))
            };
            let mut bench = Bench::new(Snapshot {
                ask: Some(Arc::new(function)),
                ..snapshot()
            });
            let mut asking = plan(Selector::Ask, &[1, 2]);
            asking.fallback = Some(Box::new(plan(Selector::Counter, &[3])));
            let picked = bench.select(&asking, 7);
            (
                picked,
                bench
                    .counters
                    .report(&bench.world)
                    .events
                    .iter()
                    .find(|(name, _)| *name == "ask_fallback")
                    .unwrap()
                    .1,
            )
        };
        assert_eq!(ask_for(Some("server2")), (Some(2), 0));
        assert_eq!(ask_for(Some("server3")), (Some(3), 1));
        assert_eq!(ask_for(None), (Some(3), 1));
    }
    /// behaviour 39: a question costs the same however many candidates there are: they are made once, by their names.
    #[test]
    fn select_ask_shares_candidates() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        let function = move |question: &Question<'_>| {
            seen.lock().unwrap().push(Arc::clone(question.candidates));
            Answer::Given(Some("server1".to_owned()))
        };
        let mut bench = Bench::new(Snapshot {
            ask: Some(Arc::new(function)),
            ..snapshot()
        });
        // Of two slots of one name the first counts; what is not in the snapshot has none.
        let asking = plan(Selector::Ask, &[9, 2, 1, 1]);
        bench.publish(&asking);
        for port in [7, 8] {
            let placed = bench.place(&asking, port);
            assert_eq!(
                placed,
                Choice::Server {
                    server: 1,
                    dead: None
                }
            );
        }
        let asked = asked.lock().unwrap();
        assert_eq!(
            asked[0][..],
            ["", "server2", "server1", "server1"].map(Into::into)
        );
        assert!(Arc::ptr_eq(&asked[0], &asked[1]));
    }
}
