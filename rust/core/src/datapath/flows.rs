//! The flow table for people, a page at a time: what `lb flows` shows; and flows of a server or of all, to be reset.
//!
//! Packets do not wait for it: the table is looked at in slices of a fixed number of places, with packets in
//! between. Gathering, sorting and choosing a page is left to the thread that asked. A flow stays in its place as
//! long as it lives, so one that is there all the while is found exactly once; those that come or go meanwhile may
//! be found or not.

use std::net::IpAddr;

use super::engine::DataPath;
use crate::base::{Direction, Ip, Nanos, Output};
use crate::flow::key::{Key, KeySide};
use crate::flow::state::FlowState;
use crate::flow::table::Table;
use crate::forwarding::ForwardingState;
use crate::pipeline::is_living;
use crate::pipeline::state::PathState;
use crate::pipeline::walk::Walk;

/// Places of the table that one slice looks at: 128 KiB, read in order.
const PLACES: u32 = 2048;
/// Rows that one slice makes: each is read at random.
const ROWS: usize = 128;
/// Flows that one slice resets. Each is removed, and up to four frames are made and sent for it: sending takes most
/// of the time.
const RESETS: usize = 8;

/// Which flows to list: those of a client, of some servers, in a state; `None`: any. Of these, `limit` from
/// `offset` on.
#[derive(Clone, Debug)]
pub struct FlowQuery {
    /// The client's address, 16 bytes (IPv4-mapped).
    pub client: Option<Ip>,
    /// Server ids.
    pub servers: Option<Vec<u32>>,
    /// Where they stand.
    pub state: Option<FlowState>,
    /// Flows left out at the beginning.
    pub offset: usize,
    /// Flows listed at most.
    pub limit: usize,
}

impl FlowQuery {
    /// All flows there are.
    #[must_use]
    pub const fn all() -> Self {
        Self {
            client: None,
            servers: None,
            state: None,
            offset: 0,
            limit: usize::MAX,
        }
    }
}

/// A flow that was found, in the order of lists: by client, client port, service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Listed {
    client: Ip,
    client_port: u16,
    service: u32,
    /// Of its entry.
    number: u32,
}

impl Listed {
    fn key(&self) -> Key {
        Key {
            client: self.client,
            client_port: self.client_port,
            side: KeySide::Service(self.service),
        }
    }
}

/// A search under way.
pub struct FlowSearch {
    query: FlowQuery,
    /// A mark per server id.
    marks: Option<Vec<bool>>,
    now: Nanos,
    place: u32,
    total: usize,
    found: Vec<Listed>,
}

impl FlowSearch {
    /// Begin one, as of an instant.
    #[must_use]
    pub fn new(query: FlowQuery, now: Nanos) -> Self {
        let mut search = Self {
            marks: query.servers.as_ref().map(|ids| marked(ids)),
            query,
            now,
            place: 0,
            total: 0,
            found: Vec::new(),
        };
        search.settle();
        search
    }

    /// Look at the next slice of the table. Says whether it was the last one.
    pub(super) fn look(&mut self, forwarding: &ForwardingState, table: &Table) -> bool {
        let places = self.place..self.place.saturating_add(PLACES);
        self.place = places.end;
        let (numbers, end) = table.numbers_in(places);
        for number in numbers {
            if self.fits(forwarding, table, number) {
                let entry = table.entry(number);
                self.total += 1;
                self.found.push(Listed {
                    client: entry.client(),
                    client_port: entry.client_port(),
                    service: entry.service(),
                    number,
                });
            }
        }
        self.place >= end
    }

    fn fits(&self, forwarding: &ForwardingState, table: &Table, number: u32) -> bool {
        let (entry, query) = (table.entry(number), &self.query);
        let is_marked = |marks: &Vec<bool>| marks.get(entry.server() as usize) == Some(&true);
        query.client.is_none_or(|client| entry.client() == client)
            && query.state.is_none_or(|state| entry.state() == state)
            && self.marks.as_ref().is_none_or(is_marked)
            && is_living(forwarding, entry, self.now)
    }

    /// Between two slices, where no packet waits: forget what is beyond the page, and have memory for the next slice.
    pub fn settle(&mut self) {
        let wanted = self.wanted();
        if self.found.len() > wanted.saturating_mul(2) {
            self.found.select_nth_unstable(wanted);
            self.found.truncate(wanted);
        }
        self.found.reserve(PLACES as usize);
    }

    /// Flows up to the end of the page.
    fn wanted(&self) -> usize {
        self.query.offset.saturating_add(self.query.limit)
    }

    /// The page, once the last slice was looked at, and how many flows fit the query.
    #[must_use]
    pub fn page(mut self) -> (usize, FlowPage) {
        self.found.sort_unstable();
        let until = self.wanted().min(self.found.len());
        let listed = self.found[self.query.offset.min(until)..until].to_vec();
        let page = FlowPage {
            rows: Vec::with_capacity(listed.len()),
            listed,
            next: 0,
            now: self.now,
        };
        (self.total, page)
    }
}

/// A page of flows, whose rows are read bit by bit.
pub struct FlowPage {
    listed: Vec<Listed>,
    next: usize,
    now: Nanos,
    rows: Vec<FlowInfo>,
}

impl FlowPage {
    /// Read some of its rows, of flows that are there still. Says whether these were the last ones.
    pub(super) fn read(&mut self, forwarding: &ForwardingState, table: &Table) -> bool {
        let end = (self.next + ROWS).min(self.listed.len());
        for listed in &self.listed[self.next..end] {
            let (number, now) = (listed.number, self.now);
            if table.holds(number, &listed.key()) && is_living(forwarding, table.entry(number), now)
            {
                self.rows.push(flow_info(table, number, now));
            }
        }
        self.next = end;
        end == self.listed.len()
    }

    /// The rows that were read.
    #[must_use]
    pub fn into_rows(self) -> Vec<FlowInfo> {
        self.rows
    }
}

/// The flows that are being reset, those of a server or of all (rule 15, resetting flows).
pub struct FlowReset {
    server: Option<u32>,
    page: FlowPage,
    removed: usize,
}

impl FlowReset {
    /// What finds the flows of a server, None: of all. Its page goes to [`Self::new`].
    #[must_use]
    pub fn search(server: Option<u32>, limit: usize, now: Nanos) -> FlowSearch {
        let query = FlowQuery {
            servers: server.map(|id| vec![id]),
            limit,
            ..FlowQuery::all()
        };
        FlowSearch::new(query, now)
    }

    /// Reset the flows of a page, those of this server; None: of any.
    #[must_use]
    pub fn new(server: Option<u32>, page: FlowPage) -> Self {
        Self {
            server,
            page,
            removed: 0,
        }
    }

    /// Reset some more of the flows, those that are there still; both ends of each learn at the next tick. Says
    /// whether these were the last ones.
    pub(super) fn reset(
        &mut self,
        forwarding: &ForwardingState,
        state: &mut PathState,
        extra: &mut Vec<Output>,
    ) -> bool {
        let FlowPage {
            listed, next, now, ..
        } = &mut self.page;
        let end = (*next + RESETS).min(listed.len());
        for listed in &listed[*next..end] {
            if state.table.holds(listed.number, &listed.key()) {
                let mut walk = Walk::new(forwarding, state, extra, *now);
                self.removed += usize::from(walk.reset_flow(self.server, listed.number));
            }
        }
        *next = end;
        end == listed.len()
    }

    /// How many were removed.
    #[must_use]
    pub fn removed(&self) -> usize {
        self.removed
    }
}

impl DataPath {
    /// The unexpired entries, sorted by (client, client port, service), addresses compared as 16 bytes (IPv4-mapped).
    #[must_use]
    pub fn flows(&self, now: Nanos) -> Vec<FlowInfo> {
        self.find_flows(&FlowQuery::all(), now).1
    }

    /// Look at the next slice of the flow table for a search. Says whether it was the last one.
    pub fn look(&self, search: &mut FlowSearch) -> bool {
        search.look(&self.forwarding, &self.state.table)
    }

    /// Read some rows of a page, of flows that are there still. Says whether these were the last ones.
    pub fn read_rows(&self, page: &mut FlowPage) -> bool {
        page.read(&self.forwarding, &self.state.table)
    }

    /// How many unexpired entries fit a query, and its page of them, sorted by (client, client port, service),
    /// addresses compared as 16 bytes. All at once: where packets wait, go through [`Self::look`] and
    /// [`Self::read_rows`] in slices.
    #[must_use]
    pub fn find_flows(&self, query: &FlowQuery, now: Nanos) -> (usize, Vec<FlowInfo>) {
        let mut search = FlowSearch::new(query.clone(), now);
        while !self.look(&mut search) {
            search.settle();
        }
        let (total, mut page) = search.page();
        while !self.read_rows(&mut page) {}
        (total, page.into_rows())
    }

    /// Reset some more of the flows, those that are there still; both ends of each learn at the next tick. Says
    /// whether these were the last ones.
    pub fn reset_some(&mut self, reset: &mut FlowReset) -> bool {
        let Self {
            forwarding,
            state,
            pending,
            ..
        } = self;
        reset.reset(forwarding, state, pending)
    }

    /// Remove live flows of a server, None: of all, `limit` at most; both ends of each learn at the next tick (rule 15,
    /// resetting flows). Returns how many. All at once: where packets wait, go through [`Self::reset_some`] in slices.
    pub fn reset_flows(
        &mut self,
        server: impl Into<Option<u32>>,
        limit: usize,
        now: Nanos,
    ) -> usize {
        let server = server.into();
        let mut search = FlowReset::search(server, limit, now);
        while !self.look(&mut search) {
            search.settle();
        }
        let mut reset = FlowReset::new(server, search.page().1);
        while !self.reset_some(&mut reset) {}
        reset.removed()
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

/// One entry of the flow table, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of python/lb/backends/base.py Flow")]
pub struct FlowInfo {
    pub client: IpAddr,
    pub client_port: u16,
    pub service: u32,
    pub server: u32,
    pub state: &'static str,
    pub idle_ns: u64,
    pub bytes_forward: u64,
    pub bytes_reply: u64,
}

pub(super) fn flow_info(table: &Table, number: u32, now: Nanos) -> FlowInfo {
    let entry = table.entry(number);
    FlowInfo {
        client: IpAddr::from(entry.client()),
        client_port: entry.client_port(),
        service: entry.service(),
        server: entry.server(),
        state: entry.state().name(),
        idle_ns: now.since(entry.last_seen()),
        bytes_forward: table.bytes(number, Direction::Forward),
        bytes_reply: table.bytes(number, Direction::Reply),
    }
}
