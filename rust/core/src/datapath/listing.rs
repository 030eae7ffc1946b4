//! The flow table for people, a page at a time: what `lb flows` shows.
//!
//! One walk over memory, and only the page is sorted: the packets wait for as long as this takes.

use super::{DataPath, FlowInfo, flow_info};
use crate::flow::tcp::State;

/// Which flows to list: those of a client, of some servers, in a state; `None`: any. Of these, `limit` from `offset` on.
#[derive(Clone, Debug)]
pub struct FlowQuery {
    /// The client's address, 16 bytes (IPv4-mapped).
    pub client: Option<u128>,
    /// Server ids.
    pub servers: Option<Vec<u32>>,
    /// Where they stand.
    pub state: Option<State>,
    /// Flows left out at the beginning.
    pub offset: usize,
    /// Flows listed at most.
    pub limit: usize,
}

impl DataPath {
    /// How many unexpired entries fit a query, and its page of them, sorted by (client, client port, service), addresses compared as 16 bytes.
    #[must_use]
    pub fn find_flows(&self, query: &FlowQuery, now_ns: u64) -> (usize, Vec<FlowInfo>) {
        let table = &self.state.table;
        let servers = query.servers.as_ref().map(|ids| marked(ids));
        let fits = |&number: &u32| {
            let entry = table.entry(number);
            query.client.is_none_or(|client| entry.client() == client)
                && query.state.is_none_or(|state| entry.state() == state)
                && servers.as_ref().is_none_or(|marks| {
                    marks
                        .get(entry.server as usize)
                        .is_some_and(|&marked| marked)
                })
                && self.is_living(number, now_ns)
        };
        let key = |&number: &u32| {
            let entry = table.entry(number);
            (entry.client(), entry.client_port, entry.service)
        };
        let mut numbers: Vec<u32> = table.numbers_in_place().filter(fits).collect();
        let total = numbers.len();
        let first = query.offset.min(total);
        let end = first.saturating_add(query.limit).min(total);
        if end < total {
            numbers.select_nth_unstable_by_key(end, key);
            numbers.truncate(end);
        }
        if first > 0 && first < end {
            numbers.select_nth_unstable_by_key(first, key);
        }
        let page = &mut numbers[first..];
        page.sort_unstable_by_key(key);
        let rows = page
            .iter()
            .map(|&number| flow_info(table, number, now_ns))
            .collect();
        (total, rows)
    }
}

/// A mark per id.
fn marked(ids: &[u32]) -> Vec<bool> {
    let most = ids.iter().max().map_or(0, |&id| id as usize + 1);
    let mut marks = vec![false; most];
    for &id in ids {
        marks[id as usize] = true;
    }
    marks
}
