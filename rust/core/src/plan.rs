//! Placing a new flow: a selector picks a server from the plan's slots (rule 8, *Selectors*).
//!
//! Random numbers come from a generator whose state is an argument, so that a replay places as the live run did.

use crate::asking::{Asking, Step};
use crate::counters::{Counters, Event};
use crate::flow::hash;
use crate::snapshot::{Answer, Plan, Question, Selector};
use crate::wire::number_address;
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
    /// The service to place for.
    pub service: u32,
    /// The client's (address, port).
    pub client: (u128, u16),
}

impl Chooser<'_> {
    /// Pick a server that is in the snapshot. `None`: there is none, or the packet has to wait for an answer ([`Asking::take_wait`]).
    pub fn select(&mut self, plan: &Plan) -> Option<u32> {
        let server = self.pick(plan)?;
        self.world.server(server).map(|_| server)
    }

    fn pick(&mut self, plan: &Plan) -> Option<u32> {
        let slots = &plan.slots;
        let count = slots.len() as u64;
        if count == 0 {
            return None;
        }
        let at = |number: u64| (number % count) as usize;
        match plan.selector {
            Selector::Counter => {
                let slot = at(*self.rotation);
                *self.rotation = self.rotation.wrapping_add(1);
                Some(slots[slot])
            }
            Selector::Random => Some(slots[at(self.random.draw())]),
            Selector::HashSource | Selector::HashFlow => {
                let hash = placement_hash(self.world, self.service, self.client, plan.selector)?;
                Some(slots[at(hash)])
            }
            Selector::Least => self.least(slots),
            Selector::TwoChoices => {
                let first = at(self.random.draw());
                // Another slot, where there is one.
                let step = self.random.draw() % (count - 1).max(1) + 1;
                let second = at(first as u64 + step);
                let better = self.cost(plan, second) < self.cost(plan, first);
                Some(slots[if better { second } else { first }])
            }
            Selector::Ask => self.ask(plan),
        }
    }

    /// The smallest active / weight, compared without dividing; the first of equals.
    fn least(&self, slots: &[u32]) -> Option<u32> {
        let load = |&server: &u32| {
            let weight = self.world.server(server).map_or(1, |facts| facts.weight);
            (
                server,
                u128::from(self.counters.active(server)),
                u128::from(weight),
            )
        };
        let loads = slots.iter().map(load);
        let best = loads.reduce(|best, new| {
            if new.1 * best.2 < best.1 * new.2 {
                new
            } else {
                best
            }
        });
        best.map(|(server, ..)| server)
    }

    fn cost(&self, plan: &Plan, slot: usize) -> u128 {
        let score = plan.scores.get(slot).copied().unwrap_or(1);
        (u128::from(self.counters.active(plan.slots[slot])) + 1) * u128::from(score)
    }

    fn ask(&mut self, plan: &Plan) -> Option<u32> {
        let answer = self.answer(plan);
        if self.asking.waits() {
            return None;
        }
        if answer.is_none() {
            self.counters.event(Event::AskFallback);
            return plan
                .fallback
                .as_ref()
                .and_then(|fallback| self.pick(fallback));
        }
        answer
    }

    fn answer(&mut self, plan: &Plan) -> Option<u32> {
        let world = self.world;
        let ask = world.snapshot.ask.as_ref()?;
        let service = world.service(self.service)?;
        let server = |&id: &u32| {
            world
                .snapshot
                .servers
                .get(id as usize)
                .and_then(Option::as_ref)
        };
        let names: Vec<&str> = plan
            .slots
            .iter()
            .map(|id| server(id).map_or("", |server| server.name.as_str()))
            .collect();
        let flow = (self.service, self.client.0, self.client.1);
        let answer = match self.asking.step(flow, plan.deadline_ns) {
            Step::Wait => return None,
            Step::Answered(answer) => answer?,
            Step::Ask(ticket) => match ask(&Question {
                service: &service.name,
                client: number_address(self.client.0),
                client_port: self.client.1,
                candidates: &names,
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
        let slot = names
            .iter()
            .position(|&name| !name.is_empty() && name == answer)?;
        Some(plan.slots[slot])
    }
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
    let vip = crate::wire::address_number(facts.address).to_be_bytes();
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
    use crate::snapshot::{NextHops, Protocol, Server, Service, Snapshot};
    use std::sync::Arc;

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
            }
        }

        fn select(&mut self, plan: &Plan, client_port: u16) -> Option<u32> {
            let Self {
                world,
                counters,
                random,
                rotation,
                asking,
            } = self;
            Chooser {
                world,
                counters,
                random,
                rotation,
                asking,
                service: 0,
                client: (crate::wire::map_v4(9), client_port),
            }
            .select(plan)
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

    /// active / weight: weight 0 counts as 1, the first of equals wins.
    #[test]
    fn select_least_compares_by_weight() {
        let mut bench = Bench::new(snapshot());
        assert_eq!(bench.select(&plan(Selector::Least, &[1, 2, 3]), 1), Some(1));
        bench.load([1, 1, 1, 2]);
        assert_eq!(
            bench.select(&plan(Selector::Least, &[0, 1, 2, 3]), 1),
            Some(2)
        );
        bench.load([0, 0, 1, 0]);
        assert_eq!(
            bench.select(&plan(Selector::Least, &[0, 1, 2, 3]), 1),
            Some(3)
        );
    }

    #[test]
    fn select_two_choices_takes_second_only_when_cheaper() {
        let mut plan = plan(Selector::TwoChoices, &[0, 1, 2, 3]);
        plan.scores = vec![1, 5, 1, 1];
        let mut bench = Bench::new(snapshot());
        bench.load([3, 0, 0, 0]);
        let mut same = SplitMix64::new(1);
        for _ in 0..50 {
            let i = same.draw() % 4;
            let j = (i + 1 + same.draw() % 3) % 4;
            let cost = [4, 5, 1, 1];
            let expected = if cost[j as usize] < cost[i as usize] {
                j
            } else {
                i
            };
            assert_eq!(bench.select(&plan, 1), Some(expected as u32));
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
                assert_eq!(question.candidates, ["server1", "server2"]);
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
}
