//! The trees find what a look at every server finds.

use super::super::tournament::{ByLoad, Order};
use super::*;
use proptest::prelude::*;

fn begin(loads: &mut Loads, servers: usize) {
    let snapshot = Snapshot {
        services: vec![None],
        servers: vec![None; servers],
        ..Snapshot::default()
    };
    loads.begin(&Arc::new(snapshot));
}

/// Seat servers, in `steps` steps at most.
fn seat(loads: &mut Loads, weights: &[u64], active: &[u64], mut steps: usize) -> bool {
    let servers: Vec<u32> = (0..weights.len() as u32).collect();
    let row = |server: u32| Row {
        server,
        weight: weights[server as usize],
        active: active[server as usize],
        round: 0,
        is_passed_over: false,
    };
    loads.seat(&servers, 1, row, &mut steps)
}

/// Rule 8.19, selectors, by looking at every server: position of the best one that is not passed over.
fn reference(rows: &[Row]) -> Option<u32> {
    let total: u64 = rows.iter().map(|row| row.active).sum();
    let left = || rows.iter().filter(|row| !row.is_passed_over);
    let idle = left().filter(|row| row.active == 0 && total < rows.len() as u64);
    let by_round = idle.min_by_key(|row| row.round);
    let by_load = left().reduce(|best, row| {
        if ByLoad::precedes(row, best) {
            row
        } else {
            best
        }
    });
    by_round.or(by_load).map(|row| row.server)
}

proptest! {
    /// Rule 8.19, selectors: whatever happens in whatever order, the root of the trees is what a look at every server
    /// finds.
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
                2 => loads.take_round(server as u32),
                3 => {
                    loads.pass_over(server as u32);
                    prop_assert_eq!(loads.best(0), reference(&loads.contest(0).unwrap().rows));
                    loads.restore(0);
                }
                4 => begin(&mut loads, active.len()),
                _ if loads.next.is_none() => begin(&mut loads, active.len()),
                _ => {
                    if seat(&mut loads, &weights[1], &active, number as usize * 5) {
                        let rounds: Vec<_> = (0..active.len()).map(|id| loads.now.round(id as u32)).collect();
                        loads.switch();
                        let now = (0..active.len()).map(|id| loads.now.round(id as u32));
                        prop_assert_eq!(rounds, now.collect::<Vec<_>>());
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
    loads.take_round(3);
    loads.pass_over(3);
    loads.restore(3);
    assert_eq!(loads.best(3), None);
}
