//! What each selector picks.

use super::*;
use crate::base::Reason;
use crate::snapshot::{NextHops, Refusal, Server, Service, Snapshot};
use std::sync::{Arc, Mutex};

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
        on_no_server: Refusal::Reset,
        on_no_flow: Refusal::Drop,
        new_flow_limit: None,
    };
    Snapshot {
        seed: 5,
        services: vec![Some(service)],
        servers: (0..4).map(|id| Some(server(id))).collect(),
        ..Snapshot::default()
    }
}

struct Bench {
    forwarding: ForwardingState,
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
            forwarding: ForwardingState::new(snapshot, NextHops::default()),
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
        let mut snapshot = (*self.forwarding.snapshot).clone();
        snapshot.services[0].as_mut().unwrap().plan = plan.clone();
        self.forwarding = ForwardingState::new(snapshot, NextHops::default());
        self.counters.follow(&self.forwarding, 0);
    }

    fn choose(&mut self, plan: &Plan, client_port: u16) -> Choice {
        self.publish(plan);
        self.place(plan, client_port)
    }

    /// Use the plan that was published.
    fn place(&mut self, plan: &Plan, client_port: u16) -> Choice {
        let refused = &self.refused;
        let eligibility = |server: u32| {
            if refused.contains(&server) {
                return Eligibility::Refused(Reason::FlowConflict);
            }
            Eligibility::Free
        };
        let named = self.forwarding.plan_servers(0).unwrap();
        Picker {
            forwarding: &self.forwarding,
            counters: &mut self.counters,
            random: &mut self.random,
            rotation: &mut self.rotation,
            asking: &mut self.asking,
            tried: &mut self.tried,
            eligibility: &eligibility,
            service: 0,
            client: (Ip::from_v4(9), client_port),
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

/// Rule 8.19, selectors: (active + 1) / weight; weight 0 counts as 1.
#[test]
fn select_least_compares_by_weight() {
    let mut bench = Bench::new(snapshot());
    let all = plan(Selector::Least, &[0, 1, 2, 3]);
    bench.load([1, 1, 1, 2]);
    assert_eq!(bench.select(&all, 1), Some(2), "2/1, 2/1, 2/2, 3/3");
    bench.load([0, 0, 1, 0]);
    assert_eq!(bench.select(&all, 1), Some(3), "2/1, 2/1, 3/2, 3/3");
}

/// Rule 8.19, selectors: on an idle service equal servers take turns, and others by weight.
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
        "a server that is new gets its rounds, and no more"
    );
}

/// Rule 8.16, placement: the next candidate, selector by selector.
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

/// Rule 8.16, placement: only when none is left, with what was in the first one's way.
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
                .report(&bench.forwarding.snapshot)
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
/// Rule 22.1, bounded pauses: a question costs the same however many candidates there are: they are made once, by
/// their names.
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
