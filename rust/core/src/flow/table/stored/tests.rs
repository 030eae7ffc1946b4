//! What rows of another process become, and what they must not.

use super::*;
use crate::base::SeqNumber;
use crate::flow::state::FlowState;
use crate::flow::table::image::tests::{KEY, NOW, entry, interface, translate};
use crate::flow::table::kept::Kept;
use crate::flow::table::rows::ROW_BYTES;
use proptest::prelude::*;

const FLOWS: u32 = 40;
/// The clock of another boot.
const LATER: Nanos = Nanos::new(1_000_000_000_000);

/// Rows of a table with flows of all kinds: every third is established, with numbers, every third UDP, the rest are
/// being opened.
fn stored() -> Vec<u8> {
    let mut table = Table::new(64, KEY).unwrap();
    for n in 0..FLOWS {
        let number = table.insert(entry(n), 30);
        let mut flow = table.flow(number);
        if flow.state() == FlowState::Established {
            for direction in [
                crate::base::Direction::Forward,
                crate::base::Direction::Reply,
            ] {
                flow.set_snd_nxt(direction, SeqNumber::new(n + 1000));
                flow.set_rcv_nxt(direction, SeqNumber::new(n + 2000));
                flow.change_side(direction, |side| side.hear(100));
            }
        }
    }
    let mut rows = Vec::new();
    assert_eq!(table.copy_rows(0..64, NOW, &mut rows), FLOWS);
    rows
}

fn read(table: &mut Table, bytes: &[u8], now: Nanos) -> Kept {
    let mut rows = Rows::parse(bytes, now).unwrap();
    while !table.keep_rows(&mut rows, 7, &translate, &interface, now, |_, _, _| {}) {}
    rows.kept()
}

fn is_stored(n: u32) -> bool {
    !is_opening(entry(n).state())
}

#[test]
fn flows_are_as_old_by_another_clock_as_they_were() {
    let bytes = stored();
    let count = (0..FLOWS).filter(|&n| is_stored(n)).count();
    assert_eq!(bytes.len(), count * ROW_BYTES);
    let mut table = Table::new(100, KEY).unwrap();
    let kept = read(&mut table, &bytes, LATER);
    assert_eq!((kept.flows, kept.dropped), (count as u64, 0));
    let (mut last, mut at) = (Nanos::ZERO, table.head(FlowState::Udp));
    while let Some(number) = at {
        let found = table.entry(number).load();
        let was = entry(u32::from(found.client_port) - 1);
        assert_eq!(found.server, was.server + 60);
        assert_eq!(LATER.since(found.last_seen), NOW.since(was.last_seen));
        assert!(last <= found.last_seen, "the list is in order of last use");
        (last, at) = (
            found.last_seen,
            crate::flow::table::present(table.cold(number).following.get()),
        );
    }
    assert_ne!(last, Nanos::ZERO);
}

#[test]
fn a_machine_that_is_up_for_less_than_a_flow_was_idle_keeps_it() {
    let mut table = Table::new(100, KEY).unwrap();
    let kept = read(&mut table, &stored(), Nanos::new(5));
    assert_ne!(kept.flows, 0);
    for number in table.numbers().collect::<Vec<_>>() {
        assert_eq!(table.entry(number).last_seen(), Nanos::new(1));
    }
}

#[test]
fn an_established_flow_keeps_what_was_acknowledged_and_no_other_number() {
    let mut table = Table::new(100, KEY).unwrap();
    read(&mut table, &stored(), LATER);
    let number = table.head(FlowState::Established).unwrap();
    let n = u32::from(table.entry(number).client_port()) - 1;
    let flow = table.flow(number);
    for direction in [
        crate::base::Direction::Forward,
        crate::base::Direction::Reply,
    ] {
        assert_eq!(flow.snd_nxt(direction), None);
        assert_eq!(flow.rcv_nxt(direction), Some(SeqNumber::new(n + 2000)));
        assert_eq!(flow.side(direction).window(), 1 << 30);
    }
}

#[test]
fn what_is_there_already_stays_as_it_is() {
    let bytes = stored();
    let mut table = Table::new(100, KEY).unwrap();
    let first = read(&mut table, &bytes, LATER);
    let number = table.head(FlowState::Udp).unwrap();
    let before = table.entry(number).load();
    let second = read(&mut table, &bytes, LATER.plus(5));
    assert_eq!((second.flows, second.dropped), (0, first.flows));
    assert_eq!(
        (table.len(), table.entry(number).load()),
        (first.flows, before)
    );
}

#[test]
fn flows_beyond_the_capacity_are_dropped_and_counted() {
    let mut table = Table::new(5, KEY).unwrap();
    let kept = read(&mut table, &stored(), LATER);
    assert!(table.is_full());
    assert_eq!(
        (kept.flows + kept.dropped) as usize,
        stored().len() / ROW_BYTES
    );
}

#[test]
fn rows_that_are_cut_short_are_refused() {
    let bytes = stored();
    assert!(Rows::parse(&bytes[..bytes.len() - 1], LATER).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever bytes are damaged: nothing panics, and no client's flow is given to a server it was not with.
    #[test]
    fn damaged_rows_give_no_flow_to_another_server(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)
    ) {
        let mut bytes = stored();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] ^= value;
        }
        let mut table = Table::new(64, KEY).unwrap();
        let kept = read(&mut table, &bytes, LATER);
        prop_assert_eq!(kept.flows, table.len());
        for number in table.numbers().collect::<Vec<_>>() {
            let found = table.entry(number).load();
            let was = (0..FLOWS).map(entry).find(|each| {
                (each.client(), each.client_port) == (found.client(), found.client_port)
            });
            if let Some(was) = was {
                prop_assert_eq!(found.server, was.server + 60);
            }
            table.remove(number);
        }
        prop_assert!(table.is_empty());
    }
}
