//! A table that another process left in a file: what of it can be trusted goes into a table of ours.
//!
//! Nothing is believed that was not checked. The header must be ours in every size, and an entry whole, no older than
//! now, one whose keys the index knows by their hashes, and one of a server that its three ids agree on. So neither a
//! damaged key nor a damaged id gives a flow to another server. Index, lists and chain of free entries are made anew.
//! The file stays as it is: a process that is killed meanwhile leaves it to the next.

use std::fs::File;

use super::Table;
use super::arena::{Line, TableError};
use super::bucket::Bucket;
use super::entry::{Entry, FlowCold, FlowRare, RELINK_NS};
use super::flow::Flow;
use super::header::{HEADER_LINES, MAGIC, Sizes, TableHeader};
use super::kept::{Kept, Row, Translation};
use super::layouts::entry_reader;
use super::source::Source;
use crate::base::{IngressNeighbour, InterfaceId, Nanos};
use crate::flow::side::TcpSide;
use crate::flow::state::FlowState;

/// Entries that are read at once, of all three parts: whole lines of each. And buckets of the index.
const PART: u32 = 1 << 10;
/// So many entries ahead, what one needs of the table is fetched into the cache.
const AHEAD: usize = 8;

/// A table that was left, as its header describes it.
struct Image<'a> {
    source: Source<'a>,
    sizes: Sizes,
    hash_key: [u64; 2],
    touched: u32,
    /// Makes an entry of today of one of its version.
    entry: fn(Line) -> Entry,
}

impl Table {
    /// Take over the entries that another process left. To be called before packets come.
    ///
    /// `translate` says what a server id of theirs stands for, None when it is nothing today; `interface` does so for
    /// interfaces. `note` is told of each flow that is kept, with the ids of its service and server.
    ///
    /// # Errors
    /// `Image` when it is no table, or one of another layout: nothing was taken over then. `Read`: some of it may have
    /// been, and this table is of no use.
    pub fn keep_from(
        &mut self,
        file: &File,
        translate: impl Fn(u32) -> Option<Translation>,
        interface: impl Fn(InterfaceId) -> Option<InterfaceId>,
        now: Nanos,
        mut note: impl FnMut(u32, u32, &Flow<'_>),
    ) -> Result<Kept, TableError> {
        let image = Image::of(file)?;
        let key_sums = image.key_sums()?;
        let (mut kept, mut order) = (Kept::default(), Vec::new());
        let mut from = 0;
        for key_sums in key_sums.chunks(PART as usize) {
            let mut rows = Vec::with_capacity(key_sums.len());
            for (mut left, key_sum) in image.read(from, key_sums.len())?.zip(key_sums) {
                // A removed entry has port 0, which no flow has.
                if left.entry.client_port == 0 {
                    continue;
                }
                let is_ours = image.key_sum(&left.entry) == *key_sum;
                if is_ours && is_known(&mut left, now, &translate, &interface) {
                    rows.push(left);
                } else {
                    kept.dropped += 1;
                }
            }
            self.place_all(&rows, |left, placed| match placed {
                Some((number, flow)) => {
                    kept.flows += 1;
                    order.push((left.entry.linked_at(), number));
                    note(left.entry.service, left.entry.server, &flow);
                }
                None => kept.dropped += 1,
            });
            from += PART;
        }
        order.sort_unstable();
        for (at, &(_, number)) in order.iter().enumerate() {
            if let Some(&(_, number)) = order.get(at + AHEAD) {
                self.prefetch_linked(number);
            }
            self.link(number, self.entry(number).state());
        }
        self.due = Nanos::ZERO;
        Ok(kept)
    }

    /// Store entries that can be trusted, in no list yet; tell of each where it is, None where there is no room for it.
    fn place_all(&mut self, rows: &[Row], mut note: impl FnMut(&Row, Option<(u32, Flow<'_>)>)) {
        for (at, row) in rows.iter().enumerate() {
            if let Some(ahead) = rows.get(at + AHEAD) {
                for key in [ahead.entry.forward_key(), ahead.entry.reply_key()] {
                    self.prefetch_bucket(self.hash(&key));
                }
            }
            let placed = self.has_room_for(&row.entry).then(|| self.place(row));
            note(row, placed.map(|number| (number, self.flow(number))));
        }
    }

    /// Store an entry of another process if it can be trusted, in no list yet.
    pub(super) fn take_over(
        &mut self,
        left: &mut Row,
        now: Nanos,
        translate: &impl Fn(u32) -> Option<Translation>,
        interface: &impl Fn(InterfaceId) -> Option<InterfaceId>,
    ) -> Option<u32> {
        let is_ours = is_known(left, now, translate, interface);
        (is_ours && self.has_room_for(&left.entry)).then(|| self.place(left))
    }

    /// Whether it is not full, and neither of an entry's keys is there already.
    fn has_room_for(&self, entry: &Entry) -> bool {
        let keys = [entry.forward_key(), entry.reply_key()];
        !self.is_full() && keys.iter().all(|key| self.find(key).is_none())
    }
}

impl Row {
    /// Give an entry today's ids. `false`: they do not agree, or mean nothing any more.
    fn translate(
        &mut self,
        translate: &impl Fn(u32) -> Option<Translation>,
        interface: &impl Fn(InterfaceId) -> Option<InterfaceId>,
    ) -> bool {
        let entry = &mut self.entry;
        let Some(known) = translate(entry.server) else {
            return false;
        };
        let agrees = (entry.service, entry.endpoint) == known.then;
        if !agrees || entry.state().is_udp() != known.is_udp {
            return false;
        }
        (entry.service, entry.server, entry.endpoint) = known.today;
        let ingress = entry.ingress();
        entry.set_ingress(match interface(ingress.interface()) {
            Some(id) => IngressNeighbour::on(id).with_mac(ingress.mac()),
            None => IngressNeighbour::NONE,
        });
        true
    }
}

/// Whether an entry can be trusted; it has today's ids then.
fn is_known(
    left: &mut Row,
    now: Nanos,
    translate: &impl Fn(u32) -> Option<Translation>,
    interface: &impl Fn(InterfaceId) -> Option<InterfaceId>,
) -> bool {
    let is_known = is_whole(left, now) && left.translate(translate, interface);
    left.entry.settle();
    is_known
}

fn is_whole(left: &Row, now: Nanos) -> bool {
    let entry = &left.entry;
    usize::from(entry.state) < FlowState::ALL.len()
        && entry.client != [0; 2]
        && entry.last_seen != Nanos::ZERO
        && entry.last_seen <= now
        && u64::from(entry.lag) <= RELINK_NS
        && left.cold.sides.iter().all(TcpSide::is_possible)
}

impl<'a> Image<'a> {
    fn of(file: &'a File) -> Result<Self, TableError> {
        let mut lines: [Line; HEADER_LINES] = bytemuck::Zeroable::zeroed();
        let source = Source::of(file)?;
        let len = source.len()?;
        if len < size_of_val(&lines) as u64 {
            return Err(TableError::Image("it is shorter than a header"));
        }
        source.read_exact_at(bytemuck::cast_slice_mut(&mut lines), 0)?;
        let header: TableHeader = bytemuck::cast(lines);
        if header.magic != MAGIC {
            return Err(TableError::Image("it is no flow table"));
        }
        let Some(entry) = entry_reader(header.version) else {
            return Err(TableError::Image("its layout is that of another version"));
        };
        let sizes = Sizes::of(header.capacity)
            .map_err(|_| TableError::Image("its capacity is none that a table has"))?;
        let ours = TableHeader::new(&sizes, header.hash_key);
        if header.sizes() != ours.sizes() || len != (sizes.lines * size_of::<Line>()) as u64 {
            return Err(TableError::Image("its sizes do not fit its capacity"));
        }
        if u64::from(header.touched) > header.capacity {
            return Err(TableError::Image("it has more entries than room"));
        }
        Ok(Self {
            source,
            sizes,
            hash_key: header.hash_key,
            touched: header.touched,
            entry,
        })
    }

    /// What the index says of each entry: the sum of the hashes that name it.
    fn key_sums(&self) -> Result<Vec<u32>, TableError> {
        let mut sums = vec![0u32; self.touched as usize];
        let mut from = 0;
        while from < self.sizes.buckets {
            let count = PART.min(self.sizes.buckets - from) as usize;
            let buckets: Vec<Bucket> = read_at(&self.source, HEADER_LINES, from, count)?;
            for (hash, number) in buckets.iter().flat_map(Bucket::in_use) {
                if let Some(sum) = sums.get_mut(number as usize) {
                    *sum = sum.wrapping_add(hash);
                }
            }
            from += PART;
        }
        Ok(sums)
    }

    /// The same, of what an entry says itself.
    fn key_sum(&self, entry: &Entry) -> u32 {
        let [forward, reply] =
            [entry.forward_key(), entry.reply_key()].map(|key| key.hash(self.hash_key) as u32);
        forward.wrapping_add(reply)
    }

    /// Read entries and their other parts.
    fn read(
        &self,
        from: u32,
        count: usize,
    ) -> Result<impl Iterator<Item = Row> + use<>, TableError> {
        let sizes = &self.sizes;
        let entries: Vec<Line> = read_at(&self.source, sizes.entries_at, from, count)?;
        let colds: Vec<FlowCold> = read_at(&self.source, sizes.cold_from, from, count)?;
        let rares: Vec<FlowRare> = read_at(&self.source, sizes.rare_from, from, count)?;
        let parts = entries.into_iter().map(self.entry).zip(colds).zip(rares);
        Ok(parts.map(|((entry, cold), rare)| Row {
            entry,
            cold: FlowCold {
                previous: 0,
                following: 0,
                ..cold
            },
            rare,
        }))
    }
}

/// Read a part of what begins at a line, `from` counted in things of its kind, a number of whole lines.
fn read_at<T: bytemuck::Pod>(
    source: &Source<'_>,
    line: usize,
    from: u32,
    count: usize,
) -> Result<Vec<T>, TableError> {
    let mut things = vec![T::zeroed(); count];
    let line = line + from as usize * size_of::<T>() / size_of::<Line>();
    source.read_exact_at(bytemuck::cast_slice_mut(&mut things), line)?;
    Ok(things)
}

#[cfg(test)]
pub(super) mod tests;
