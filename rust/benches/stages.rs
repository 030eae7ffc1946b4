//! Every stage of the packet's walk by itself, then the whole of it: `cargo bench -p flowlb-benches`, one core.
//!
//! The names are those of the Python benches, so that the difference between the two is the cost of the border.
//! Packets of the whole pipeline are made between the timed pieces, a batch at a time, as a socket would leave
//! them: in the cache.
#![allow(
    missing_docs,
    reason = "criterion's macro makes a public function without any"
)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flowlb_core::base::{Frame, Ip, Nanos, Offload, SplitMix64, Verdict};
use flowlb_core::counters::Counters;
use flowlb_core::flow::hash::{flow_hash, siphash13_words};
use flowlb_core::flow::state::FlowState;
use flowlb_core::flow::table::{Entry, Table};
use flowlb_core::forwarding::ForwardingState;
use flowlb_core::parse::parse;
use flowlb_core::plan::{Eligibility, Picker, Tried};
use flowlb_core::snapshot::{Protocol, Selector};
use flowlb_core::wire::checksum;

mod scene;
use scene::{ACK, FRAME_LEN, HASH_KEY, Scene};

/// Frames made and then processed without a pause: as many as a worker takes from a socket.
const BATCH: usize = 32;
/// Flows of the whole pipeline, and of lookups.
const FLOWS: [(&str, u32); 4] = [
    ("1k", 1_000),
    ("100k", 100_000),
    ("1M", 1_000_000),
    ("10M", 10_000_000),
];

fn stateless(criterion: &mut Criterion) {
    let udp = scene::request(1, Protocol::Udp, 0);
    criterion.bench_function("parse/udp-60", |b| b.iter(|| parse(black_box(&udp))));
    for len in [60, 1500] {
        let bytes = vec![0xa5; len];
        criterion.bench_function(&format!("checksum/{len}"), |b| {
            b.iter(|| checksum::checksum(black_box(&bytes)));
        });
    }
    criterion.bench_function("checksum-update", |b| {
        b.iter(|| checksum::update(black_box(0xdd2f), black_box(0x5555), black_box(0x3285)));
    });
    criterion.bench_function("flow-hash/table", |b| {
        b.iter(|| siphash13_words(black_box([1, 2]), black_box([3, 4])));
    });
    let (client, vip) = ([1; 16], [2; 16]);
    criterion.bench_function("flow-hash/placement", |b| {
        b.iter(|| flow_hash(1, black_box(&client), black_box(&vip), 3, 4, 17));
    });
}

/// A flow as it is stored when its first datagram comes.
fn entry(flow: u32) -> Entry {
    let (address, port) = scene::client(flow);
    Entry::new(
        Ip::from_v4(address.to_bits()),
        port,
        (0, 0, 0),
        FlowState::Udp,
        Nanos::ZERO,
    )
}

fn table(capacity: u32) -> Table {
    Table::new(u64::from(capacity), HASH_KEY).expect("the table finds room")
}

fn filled(flows: u32) -> Table {
    let mut table = table(flows);
    for flow in 0..flows {
        table.insert(entry(flow), 1);
    }
    table
}

/// Into an empty table, until it is full: the first touch of its memory is part of the cost.
fn flow_insert(criterion: &mut Criterion) {
    const CAPACITY: u64 = 1_000_000;
    let fill = |mut left: u64| {
        let mut elapsed = Duration::ZERO;
        while left > 0 {
            let mut table = table(CAPACITY as u32);
            let count = left.min(CAPACITY);
            let start = Instant::now();
            for flow in 0..count as u32 {
                table.insert(entry(flow), 1);
            }
            elapsed += start.elapsed();
            left -= count;
        }
        elapsed
    };
    criterion.bench_function("flow-insert/1M", |b| b.iter_custom(fill));
}

/// Random flows, one after the other.
fn flow_hit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("flow-hit");
    for (name, flows) in FLOWS {
        // Made by a bench that is not filtered out.
        let mut made = None;
        let mut random = SplitMix64::new(1);
        let mut key = || entry((random.draw() % u64::from(flows)) as u32).forward_key();
        let mut find = |rounds| {
            let table = made.get_or_insert_with(|| filled(flows));
            timed(rounds, || {
                let keys: [_; BATCH] = std::array::from_fn(|_| key());
                let start = Instant::now();
                for key in &keys {
                    assert!(table.find(black_box(key)).is_some());
                }
                start.elapsed()
            })
        };
        group.bench_function(name, |b| b.iter_custom(&mut find));
    }
    group.finish();
}

/// Add up the times of as many batches as `rounds` fill.
fn timed(rounds: u64, mut batch: impl FnMut() -> Duration) -> Duration {
    let batches = rounds.div_ceil(BATCH as u64);
    let elapsed: Duration = (0..batches).map(|_| batch()).sum();
    let nanoseconds = elapsed.as_nanos() * u128::from(rounds) / u128::from(batches * BATCH as u64);
    Duration::from_nanos(nanoseconds as u64)
}

fn selectors(criterion: &mut Criterion) {
    let selectors = [
        ("counter", Selector::Counter),
        ("random", Selector::Random),
        ("hash-source", Selector::HashSource),
        ("hash-flow", Selector::HashFlow),
        ("least", Selector::Least),
        ("two-choices", Selector::TwoChoices),
    ];
    for (name, selector) in selectors {
        let mut group = criterion.benchmark_group(format!("selector/{name}"));
        for servers in [3, 100, 10_000] {
            let forwarding = ForwardingState::new(
                scene::snapshot(selector, servers, Protocol::Udp),
                scene::next_hops(servers),
            );
            let mut counters = Counters::default();
            counters.grow(1, servers as usize);
            counters.follow(&forwarding, 0);
            let (mut random, mut rotation) = (SplitMix64::new(1), 0);
            let mut tried = Tried::default();
            let named = forwarding.plan_servers(0).expect("the one service");
            let plan = &forwarding.service(0).expect("the one service").plan;
            group.bench_function(servers.to_string(), |b| {
                b.iter(|| {
                    let client = (Ip::from_v4(scene::VIP.to_bits()), black_box(1));
                    let (counters, random, rotation) = (&mut counters, &mut random, &mut rotation);
                    let service = 0;
                    Picker {
                        asking: &mut flowlb_core::asking::Asking::default(),
                        forwarding: &forwarding,
                        counters,
                        random,
                        rotation,
                        tried: &mut tried,
                        eligibility: &|_| Eligibility::Free,
                        service,
                        client,
                    }
                    .select(plan, named)
                });
            });
        }
        group.finish();
    }
}

/// What a plan with `least` takes on the packet thread when it is published, in parts: its servers in order again.
fn least_order(criterion: &mut Criterion) {
    for servers in [100, 10_000] {
        let forwarding = ForwardingState::new(
            scene::snapshot(Selector::Least, servers, Protocol::Udp),
            scene::next_hops(servers),
        );
        let mut counters = Counters::default();
        counters.grow(1, servers as usize);
        criterion.bench_function(&format!("least-order/{servers}"), |b| {
            b.iter(|| counters.follow(black_box(&forwarding), 0));
        });
    }
}

/// The whole walk of a packet of a known flow, the flows in random order, one packet each microsecond.
fn pipeline(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pipeline");
    group.throughput(Throughput::Elements(1));
    for (protocol, prefix) in [(Protocol::Udp, ""), (Protocol::Tcp, "tcp-")] {
        for (name, flows) in FLOWS {
            // Made by the first bench that is not filtered out.
            let mut made = None;
            let ways = [
                ("forward", 0, scene::request as Make),
                ("reply", 1, scene::response),
            ];
            for (way, interface, make) in ways {
                let mut one_by_one = |rounds| {
                    let scene = made.get_or_insert_with(|| Scene::full(flows, protocol));
                    timed(rounds, || {
                        one_by_one(scene, interface, |flow| make(flow, protocol, ACK))
                    })
                };
                group.bench_function(BenchmarkId::new(format!("{prefix}{way}"), name), |b| {
                    b.iter_custom(&mut one_by_one);
                });
                let mut in_batches = |rounds| {
                    let scene = made.get_or_insert_with(|| Scene::full(flows, protocol));
                    timed(rounds, || {
                        in_a_batch(scene, interface, |flow| make(flow, protocol, ACK))
                    })
                };
                let id = BenchmarkId::new(format!("{prefix}batch-{way}"), name);
                group.bench_function(id, |b| b.iter_custom(&mut in_batches));
            }
        }
    }
    group.finish();
}

/// How a packet of a flow is made: [`scene::request`] and [`scene::response`].
type Make = fn(u32, Protocol, u8) -> [u8; FRAME_LEN];

/// Time frames of random flows, each by itself.
fn one_by_one(
    scene: &mut Scene,
    interface: u32,
    make: impl Fn(u32) -> [u8; FRAME_LEN],
) -> Duration {
    let mut frames: [_; BATCH] = std::array::from_fn(|_| make(scene.draw()));
    let start = Instant::now();
    for frame in &mut frames {
        let outcome = scene.process(frame, interface);
        assert!(outcome.verdict == Verdict::Forward);
    }
    start.elapsed()
}

/// Time frames of random flows, all at once.
fn in_a_batch(
    scene: &mut Scene,
    interface: u32,
    make: impl Fn(u32) -> [u8; FRAME_LEN],
) -> Duration {
    let mut frames: [_; BATCH] = std::array::from_fn(|_| make(scene.draw()));
    let mut batch = frames.each_mut().map(|frame| Frame {
        bytes: &mut frame[..],
        offload: Offload::default(),
    });
    let start = Instant::now();
    let forwarded = scene.process_batch(&mut batch, interface);
    let elapsed = start.elapsed();
    assert_eq!(forwarded, BATCH);
    elapsed
}

/// The whole walk of the first packet of a flow: placed, stored, sent.
fn new_flow(criterion: &mut Criterion) {
    const CAPACITY: u32 = 1_000_000;
    let mut group = criterion.benchmark_group("pipeline");
    group.throughput(Throughput::Elements(1));
    let mut scene = Scene::empty(CAPACITY, Protocol::Udp);
    let mut used = 0;
    let mut fresh = |rounds| {
        timed(rounds, || {
            if used + BATCH as u32 > CAPACITY {
                scene = Scene::empty(CAPACITY, Protocol::Udp);
                used = 0;
            }
            let mut frames: [_; BATCH] =
                std::array::from_fn(|at| scene::request(used + at as u32, Protocol::Udp, 0));
            used += BATCH as u32;
            let start = Instant::now();
            for frame in &mut frames {
                let outcome = scene.process(frame, 0);
                assert!(outcome.verdict == Verdict::Forward);
            }
            start.elapsed()
        })
    };
    group.bench_function("new-flow/1M", |b| b.iter_custom(&mut fresh));
    group.finish();
}

criterion_group! {
    name = stages;
    config = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2));
    targets = stateless, flow_insert, flow_hit, selectors, least_order, pipeline, new_flow
}
criterion_main!(stages);
