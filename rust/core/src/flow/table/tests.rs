//! What the flow table must hold to, against a plain map and by hand.

use super::entry::RELINK_NS;
use super::header::HEADER_LINES;
use super::*;
use crate::base::Ip;
use crate::flow::state::FlowState;
use proptest::prelude::*;
use std::collections::HashMap;

fn flow(client: u16) -> Entry {
    Entry::new(
        Ip::from_bits(client.into()),
        client,
        (7, 3, 9),
        FlowState::SynSent,
        Nanos::ZERO,
    )
}

fn table(capacity: u64) -> Table {
    Table::new(capacity, [7; 16]).unwrap()
}

#[test]
fn new_capacity_out_of_range_is_refused() {
    for capacity in [0, MOST_FLOWS + 1, u64::MAX] {
        assert!(
            matches!(Table::new(capacity, [0; 16]), Err(TableError::Capacity(c)) if c == capacity)
        );
    }
}

/// Rule 8.17, full table: the size is a promise, 128 bytes per flow and a header.
#[test]
fn new_area_is_128_bytes_per_flow() {
    assert_eq!(
        size_of_val(table(1000).arena.lines()),
        1000 * 128 + HEADER_LINES * size_of::<Line>()
    );
}

#[test]
fn find_after_insert_by_both_keys() {
    let mut table = table(4);
    let number = table.insert(flow(5), 30);
    let entry = table.entry(number).load();
    assert_eq!(table.find(&entry.forward_key()), Some(number));
    assert_eq!(table.find(&entry.reply_key()), Some(number));
    table.remove(number);
    assert_eq!(
        (
            table.find(&entry.forward_key()),
            table.find(&entry.reply_key())
        ),
        (None, None)
    );
    assert!(table.is_empty());
}

#[test]
fn touch_within_a_second_keeps_place_and_later_moves_to_tail() {
    let mut table = table(4);
    let [first, second] = [1, 2].map(|client| table.insert(flow(client), 30));
    table.touch(first, FlowState::SynSent, Nanos::new(RELINK_NS - 1), 30);
    assert_eq!(table.head(FlowState::SynSent), Some(first));
    table.touch(first, FlowState::SynSent, Nanos::new(RELINK_NS), 30);
    assert_eq!(table.head(FlowState::SynSent), Some(second));
}

#[test]
fn touch_new_state_moves_between_lists() {
    let mut table = table(4);
    let number = table.insert(flow(1), 30);
    table.touch(number, FlowState::Established, Nanos::new(1), 30);
    assert_eq!(
        (
            table.head(FlowState::SynSent),
            table.head(FlowState::Established)
        ),
        (None, Some(number))
    );
}

#[test]
fn due_is_never_after_a_head_expires() {
    let mut table = table(4);
    table.set_due(Nanos::NEVER);
    let [first, second] = [1, 2].map(|client| table.insert(flow(client), 30));
    assert!(table.may_have_expired(Nanos::new(30)) && !table.may_have_expired(Nanos::new(29)));
    table.set_due(Nanos::NEVER);
    table.remove(first);
    assert!(
        table.may_have_expired(Nanos::ZERO),
        "the new head {second} was not looked at yet"
    );
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u16),
    Remove(u16),
    Touch(u16, u8),
}

fn step() -> impl Strategy<Value = Step> {
    let client = 0u16..40;
    prop_oneof![
        3 => client.clone().prop_map(Step::Insert),
        2 => client.clone().prop_map(Step::Remove),
        1 => (client, 0u8..7).prop_map(|(client, state)| Step::Touch(client, state)),
    ]
}

proptest! {
    /// Backward shift, free list and lists against a `HashMap`. A small table is almost always nearly full, so runs
    /// are long and wrap around.
    #[test]
    fn table_any_steps_equals_map(steps in proptest::collection::vec(step(), 1..300), key: [u8; 16]) {
        let mut table = Table::new(16, key).unwrap();
        let mut model: HashMap<u16, (u32, FlowState)> = HashMap::new();
        for (now, step) in steps.into_iter().enumerate() {
            match step {
                Step::Insert(client) if !model.contains_key(&client) && !table.is_full() => {
                    let number = table.insert(flow(client), 30);
                    model.insert(client, (number, FlowState::SynSent));
                }
                Step::Remove(client) => {
                    if let Some((number, _)) = model.remove(&client) {
                        prop_assert_eq!(table.remove(number).client_port, client);
                    }
                }
                Step::Touch(client, state) => {
                    if let Some((number, kept)) = model.get_mut(&client) {
                        *kept = FlowState::from_byte(state);
                        table.touch(*number, *kept, Nanos::new(now as u64 * RELINK_NS / 2), 30);
                    }
                }
                Step::Insert(_) => {}
            }
            prop_assert_eq!(table.len(), model.len() as u64);
            for client in 0..40 {
                let expected = model.get(&client).map(|&(number, _)| number);
                prop_assert_eq!(table.find(&flow(client).forward_key()), expected);
                prop_assert_eq!(table.find(&flow(client).reply_key()), expected);
            }
            let entries = table.numbers().map(|number| table.entry(number));
            let mut listed: Vec<_> = entries.map(|entry| (entry.client_port(), entry.state())).collect();
            let mut expected: Vec<_> = model.iter().map(|(&client, &(_, state))| (client, state)).collect();
            listed.sort_by_key(|&(client, _)| client);
            expected.sort_by_key(|&(client, _)| client);
            prop_assert_eq!(listed, expected);
        }
    }
}
