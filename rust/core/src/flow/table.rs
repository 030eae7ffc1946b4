//! The flow table: a fixed number of entries, found by either direction's key, expired and evicted through four lists.
//!
//! One [`Area`] holds everything: a header, an index of 8-byte slots, then 96-byte entries. Three slots per flow for its two keys keep the index at
//! most two thirds full, so a flow costs 96 + 24 = 120 bytes, all included. The area has no pointer in it: entries name each other by number.
//!
//! Index: linear probing, a slot holds (hash, entry + 1), its home is `hash * slots >> 32`. Removal shifts later slots back instead of leaving tombstones,
//! so lookups never slow down with age. Lists: an entry moves to its list's tail at most once per second; so a list is ordered by `linked`, and roughly by
//! `last_seen`, at the cost of almost no writes per packet.

use super::area::Area;
use super::hash::siphash13_words;
use super::tcp::{Class, Seen, State};
use super::{Key, Side};
use crate::datapath::DataPathError;
use crate::snapshot::Mac;
use crate::verdict::Direction;

/// Most flows a table can be made for: slot numbers must fit 32 bits.
pub const MOST_FLOWS: u64 = 1 << 28;
/// An interface number that means "no last hop known".
pub const NO_INTERFACE: u16 = u16::MAX;
/// An entry moves within its list at most this often.
const RELINK_NS: u64 = 1_000_000_000;

const MAGIC: u64 = u64::from_be_bytes(*b"flowlb\0t");
const VERSION: u32 = 1;
const NONE: u32 = u32::MAX;

/// One flow. 96 bytes, plain data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Entry {
    client: [u64; 2],
    /// The client's port.
    pub client_port: u16,
    state: u8,
    marks: u8,
    /// Service id.
    pub service: u32,
    /// Server id.
    pub server: u32,
    /// Endpoint id of the server: kept here so that a key can be rebuilt after the server has left the snapshot.
    pub endpoint: u32,
    /// Time of the last packet, nanoseconds.
    pub last_seen: u64,
    linked: u64,
    previous: u32,
    following: u32,
    next: [u32; 2],
    ack: [u32; 2],
    /// Source MAC of the last forward packet.
    pub last_hop: Mac,
    /// Interface it came in by, or `NO_INTERFACE`.
    pub last_interface: u16,
    /// IP bytes from client to server.
    pub bytes_forward: u64,
    /// IP bytes from server to client.
    pub bytes_reply: u64,
}

const ENTRY_WORDS: usize = size_of::<Entry>() / 8;
const _: () = assert!(size_of::<Entry>() == 96, "an entry is 96 bytes");

/// What `Entry::marks` holds: FIN seen, next known, ack known; each for both directions.
mod mark {
    pub const FIN: u8 = 0x01;
    pub const NEXT: u8 = 0x04;
    pub const ACK: u8 = 0x10;
    pub const BOTH_FINS: u8 = FIN | FIN << 1;
}

impl Entry {
    /// A new flow, linked nowhere yet, that no packet has been counted on.
    #[must_use]
    pub fn new(
        client: u128,
        client_port: u16,
        ids: (u32, u32, u32),
        state: State,
        now: u64,
    ) -> Self {
        let (service, server, endpoint) = ids;
        Self {
            client: [(client >> 64) as u64, client as u64],
            client_port,
            state: state as u8,
            service,
            server,
            endpoint,
            last_seen: now,
            linked: now,
            previous: NONE,
            following: NONE,
            last_interface: NO_INTERFACE,
            ..Self::default()
        }
    }

    /// The client's address.
    #[inline]
    #[must_use]
    pub fn client(&self) -> u128 {
        u128::from(self.client[0]) << 64 | u128::from(self.client[1])
    }

    /// Where the flow stands.
    #[inline]
    #[must_use]
    pub fn state(&self) -> State {
        State::from_byte(self.state)
    }

    /// Set where the flow stands, without moving it between lists: [`Table::touch`] does that.
    #[inline]
    pub fn set_state(&mut self, state: State) {
        self.state = state as u8;
    }

    /// Whether it counts for its server.
    #[inline]
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.state() != State::Closing
    }

    /// Sequence numbers seen in a direction.
    #[inline]
    #[must_use]
    pub fn seen(&self, direction: Direction) -> Seen {
        let at = direction as usize;
        Seen {
            next: (self.marks & mark::NEXT << at != 0).then_some(self.next[at]),
            ack: (self.marks & mark::ACK << at != 0).then_some(self.ack[at]),
        }
    }

    /// Store sequence numbers seen in a direction. What is known stays known.
    #[inline]
    pub fn set_seen(&mut self, direction: Direction, seen: Seen) {
        let at = direction as usize;
        if let Some(next) = seen.next {
            self.next[at] = next;
            self.marks |= mark::NEXT << at;
        }
        if let Some(ack) = seen.ack {
            self.ack[at] = ack;
            self.marks |= mark::ACK << at;
        }
    }

    /// Note a FIN in a direction. Returns whether both directions have one now.
    pub fn mark_fin(&mut self, direction: Direction) -> bool {
        self.marks |= mark::FIN << direction as u8;
        self.marks & mark::BOTH_FINS == mark::BOTH_FINS
    }

    /// The key of forward packets.
    #[must_use]
    pub fn forward_key(&self) -> Key {
        Key {
            client: self.client(),
            client_port: self.client_port,
            side: Side::Service(self.service),
        }
    }

    /// The key of reply packets.
    #[must_use]
    pub fn reply_key(&self) -> Key {
        Key {
            client: self.client(),
            client_port: self.client_port,
            side: Side::Endpoint(self.endpoint),
        }
    }

    #[inline]
    fn matches(&self, key: &Key) -> bool {
        let id_fits = match key.side {
            Side::Service(id) => self.service == id,
            Side::Endpoint(id) => self.endpoint == id,
        };
        id_fits && self.client_port == key.client_port && self.client() == key.client
    }
}

/// The start of the area: what a reader needs to know to make sense of the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Header {
    magic: u64,
    version: u32,
    bytes: u32,
    slot_bytes: u32,
    entry_bytes: u32,
    slots: u64,
    capacity: u64,
    hash_key: [u64; 2],
    /// Generation of the snapshot the ids belong to.
    generation: u64,
    /// Entries in use.
    live: u64,
    /// Entries ever used: those beyond are untouched zeros.
    touched: u32,
    /// First of the removed entries, chained by `following`.
    free: u32,
    heads: [u32; 4],
    tails: [u32; 4],
}

const HEADER_WORDS: usize = size_of::<Header>() / 8;

/// The table. See the module's description.
pub struct Table {
    area: Area,
    /// Copies of constants in the header, at hand.
    slots: u32,
    capacity: u32,
    hash_key: [u64; 2],
    /// A time before which no head can have expired: lets most packets skip the look at the heads.
    due: u64,
}

impl Table {
    /// Make an empty table.
    ///
    /// # Errors
    /// `Capacity` unless it is in 1..=2^28, `Memory`.
    pub fn new(capacity: u64, hash_key: [u8; 16]) -> Result<Self, DataPathError> {
        let flows = u32::try_from(capacity)
            .ok()
            .filter(|&flows| flows >= 1 && capacity <= MOST_FLOWS);
        let flows = flows.ok_or(DataPathError::Capacity(capacity))?;
        let slots = flows * 3;
        let area = Area::new(HEADER_WORDS + slots as usize + flows as usize * ENTRY_WORDS)?;
        let key = u128::from_le_bytes(hash_key);
        let hash_key = [key as u64, (key >> 64) as u64];
        let mut table = Self {
            area,
            slots,
            capacity: flows,
            hash_key,
            due: 0,
        };
        *table.header_mut() = Header {
            magic: MAGIC,
            version: VERSION,
            bytes: size_of::<Header>() as u32,
            slot_bytes: 8,
            entry_bytes: size_of::<Entry>() as u32,
            slots: u64::from(slots),
            capacity,
            hash_key,
            generation: 0,
            live: 0,
            touched: 0,
            free: NONE,
            heads: [NONE; 4],
            tails: [NONE; 4],
        };
        Ok(table)
    }

    /// Note the generation of the snapshot that ids belong to from now on, and that timeouts may have changed.
    pub fn set_generation(&mut self, generation: u64) {
        self.header_mut().generation = generation;
        self.due = 0;
    }

    /// Entries in use.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.header().live
    }

    /// Whether no entry is in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the next insertion needs a removal first.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len() >= u64::from(self.capacity)
    }

    /// Find the entry of a key.
    #[inline]
    #[must_use]
    pub fn find(&self, key: &Key) -> Option<u32> {
        let hash = self.hash(key);
        let mut slot = self.home(hash);
        loop {
            let (slot_hash, entry) = self.slot(slot);
            let entry = entry?;
            if slot_hash == hash && self.entry(entry).matches(key) {
                return Some(entry);
            }
            slot = self.after(slot);
        }
    }

    /// One entry, by the number `find` gave.
    ///
    /// # Panics
    /// On a number that no call of this table gave.
    #[inline]
    #[must_use]
    pub fn entry(&self, number: u32) -> &Entry {
        let at = self.entry_at(number);
        bytemuck::cast_ref::<[u64; ENTRY_WORDS], _>(
            self.area.words()[at..]
                .first_chunk()
                .expect("numbers are below capacity"),
        )
    }

    /// One entry, for writing. Its keys must not change.
    ///
    /// # Panics
    /// On a number that no call of this table gave.
    #[inline]
    pub fn entry_mut(&mut self, number: u32) -> &mut Entry {
        let at = self.entry_at(number);
        let words = self.area.words_mut()[at..]
            .first_chunk_mut()
            .expect("numbers are below capacity");
        bytemuck::cast_mut::<[u64; ENTRY_WORDS], _>(words)
    }

    /// Store a flow at the tail of its list. The table must not be full, and neither of its keys in it.
    pub fn insert(&mut self, entry: Entry, timeout: u64) -> u32 {
        let number = self.take_free();
        *self.entry_mut(number) = entry;
        self.insert_slot(self.hash(&entry.forward_key()), number);
        self.insert_slot(self.hash(&entry.reply_key()), number);
        self.link(number, entry.state().class());
        self.header_mut().live += 1;
        self.due = self.due.min(entry.last_seen.saturating_add(timeout));
        number
    }

    /// Remove an entry, and return what it was.
    pub fn remove(&mut self, number: u32) -> Entry {
        let entry = *self.entry(number);
        self.remove_slot(self.hash(&entry.forward_key()), number);
        self.remove_slot(self.hash(&entry.reply_key()), number);
        self.unlink(number, entry.state().class());
        *self.entry_mut(number) = Entry {
            following: self.header().free,
            ..Entry::default()
        };
        let header = self.header_mut();
        header.free = number;
        header.live -= 1;
        entry
    }

    /// Refresh an entry that has `state` from now on, and move it in or between lists as its class and age ask for.
    #[inline]
    pub fn touch(&mut self, number: u32, state: State, now: u64, timeout: u64) {
        let entry = self.entry_mut(number);
        let from = entry.state().class();
        entry.set_state(state);
        entry.last_seen = now;
        let moved = from != state.class();
        if !moved && now - entry.linked.min(now) < RELINK_NS {
            return;
        }
        entry.linked = now;
        self.unlink(number, from);
        self.link(number, state.class());
        self.due = self.due.min(now.saturating_add(timeout));
    }

    /// The oldest entry of a class.
    #[must_use]
    pub fn head(&self, class: Class) -> Option<u32> {
        present(self.header().heads[class as usize])
    }

    /// Whether an entry may have expired by `now`. `false` is certain.
    #[inline]
    #[must_use]
    pub fn may_have_expired(&self, now: u64) -> bool {
        now >= self.due
    }

    /// Note that no entry at the head of a list expires before `due`.
    pub fn set_due(&mut self, due: u64) {
        self.due = due;
    }

    /// All entries, in no useful order.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        Class::ALL.into_iter().flat_map(move |class| {
            std::iter::successors(self.head(class), |&number| {
                present(self.entry(number).following)
            })
            .map(|number| self.entry(number))
        })
    }

    #[inline]
    fn hash(&self, key: &Key) -> u32 {
        siphash13_words(self.hash_key, key.words()) as u32
    }

    #[inline]
    fn home(&self, hash: u32) -> u32 {
        ((u64::from(hash) * u64::from(self.slots)) >> 32) as u32
    }

    #[inline]
    fn after(&self, slot: u32) -> u32 {
        if slot + 1 == self.slots { 0 } else { slot + 1 }
    }

    /// The hash and entry number of a slot; `None` when it is empty.
    #[inline]
    fn slot(&self, slot: u32) -> (u32, Option<u32>) {
        let word = self.area.words()[HEADER_WORDS + slot as usize];
        (word as u32, ((word >> 32) as u32).checked_sub(1))
    }

    fn set_slot(&mut self, slot: u32, hash: u32, number: u32) {
        let word = u64::from(hash) | (u64::from(number) + 1) << 32;
        self.area.words_mut()[HEADER_WORDS + slot as usize] = word;
    }

    fn insert_slot(&mut self, hash: u32, number: u32) {
        let mut slot = self.home(hash);
        while self.slot(slot).1.is_some() {
            slot = self.after(slot);
        }
        self.set_slot(slot, hash, number);
    }

    /// Empty the slot of (hash, number), then shift back every later slot of the run that may stand nearer to its home.
    fn remove_slot(&mut self, hash: u32, number: u32) {
        let mut hole = self.home(hash);
        while self.slot(hole) != (hash, Some(number)) {
            hole = self.after(hole);
        }
        let mut slot = self.after(hole);
        while let (slot_hash, Some(moved)) = self.slot(slot) {
            let home = self.home(slot_hash);
            // Cyclic distances: the slot may move into the hole unless its home lies after the hole.
            if self.distance(home, slot) >= self.distance(hole, slot) {
                self.set_slot(hole, slot_hash, moved);
                hole = slot;
            }
            slot = self.after(slot);
        }
        self.area.words_mut()[HEADER_WORDS + hole as usize] = 0;
    }

    fn distance(&self, from: u32, to: u32) -> u32 {
        if to >= from {
            to - from
        } else {
            to + (self.slots - from)
        }
    }

    fn take_free(&mut self) -> u32 {
        let header = *self.header();
        if let Some(number) = present(header.free) {
            self.header_mut().free = self.entry(number).following;
            return number;
        }
        self.header_mut().touched += 1;
        header.touched
    }

    fn link(&mut self, number: u32, class: Class) {
        let tail = self.header().tails[class as usize];
        let entry = self.entry_mut(number);
        entry.previous = tail;
        entry.following = NONE;
        match present(tail) {
            Some(tail) => self.entry_mut(tail).following = number,
            None => self.header_mut().heads[class as usize] = number,
        }
        self.header_mut().tails[class as usize] = number;
    }

    fn unlink(&mut self, number: u32, class: Class) {
        let Entry {
            previous,
            following,
            ..
        } = *self.entry(number);
        if let Some(previous) = present(previous) {
            self.entry_mut(previous).following = following;
        } else {
            self.header_mut().heads[class as usize] = following;
            // The new head may be due earlier than the old one: `linked` orders the list, `last_seen` decides.
            self.due = 0;
        }
        match present(following) {
            Some(following) => self.entry_mut(following).previous = previous,
            None => self.header_mut().tails[class as usize] = previous,
        }
    }

    #[inline]
    fn entry_at(&self, number: u32) -> usize {
        HEADER_WORDS + self.slots as usize + number as usize * ENTRY_WORDS
    }

    #[inline]
    fn header(&self) -> &Header {
        bytemuck::cast_ref::<[u64; HEADER_WORDS], _>(
            self.area
                .words()
                .first_chunk()
                .expect("the area starts with a header"),
        )
    }

    #[inline]
    fn header_mut(&mut self) -> &mut Header {
        let words = self
            .area
            .words_mut()
            .first_chunk_mut()
            .expect("the area starts with a header");
        bytemuck::cast_mut::<[u64; HEADER_WORDS], _>(words)
    }
}

fn present(number: u32) -> Option<u32> {
    (number != NONE).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn flow(client: u16) -> Entry {
        Entry::new(u128::from(client), client, (7, 3, 9), State::SynSent, 0)
    }

    fn table(capacity: u64) -> Table {
        Table::new(capacity, [7; 16]).unwrap()
    }

    #[test]
    fn new_capacity_out_of_range_is_refused() {
        for capacity in [0, MOST_FLOWS + 1, u64::MAX] {
            assert!(
                matches!(Table::new(capacity, [0; 16]), Err(DataPathError::Capacity(c)) if c == capacity)
            );
        }
    }

    /// behaviour 7: the size is a promise, 120 bytes per flow and a header.
    #[test]
    fn new_area_is_120_bytes_per_flow() {
        assert_eq!(
            table(1000).area.words().len() * 8,
            1000 * 120 + size_of::<Header>()
        );
    }

    #[test]
    fn find_after_insert_by_both_keys() {
        let mut table = table(4);
        let number = table.insert(flow(5), 30);
        let entry = *table.entry(number);
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
        table.touch(first, State::SynSent, RELINK_NS - 1, 30);
        assert_eq!(table.head(Class::HalfOpen), Some(first));
        table.touch(first, State::SynSent, RELINK_NS, 30);
        assert_eq!(table.head(Class::HalfOpen), Some(second));
    }

    #[test]
    fn touch_new_class_moves_between_lists() {
        let mut table = table(4);
        let number = table.insert(flow(1), 30);
        table.touch(number, State::Established, 1, 30);
        assert_eq!(
            (table.head(Class::HalfOpen), table.head(Class::Established)),
            (None, Some(number))
        );
    }

    #[test]
    fn due_is_never_after_a_head_expires() {
        let mut table = table(4);
        table.set_due(u64::MAX);
        let [first, second] = [1, 2].map(|client| table.insert(flow(client), 30));
        assert!(table.may_have_expired(30) && !table.may_have_expired(29));
        table.set_due(u64::MAX);
        table.remove(first);
        assert!(
            table.may_have_expired(0),
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
            1 => (client, 0u8..5).prop_map(|(client, state)| Step::Touch(client, state)),
        ]
    }

    proptest! {
        /// Backward shift, free list and lists against a `HashMap`. A small table is almost always nearly full, so runs are long and wrap around.
        #[test]
        fn table_any_steps_equals_map(steps in proptest::collection::vec(step(), 1..300), key: [u8; 16]) {
            let mut table = Table::new(16, key).unwrap();
            let mut model: HashMap<u16, (u32, State)> = HashMap::new();
            for (now, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Insert(client) if !model.contains_key(&client) && !table.is_full() => {
                        let number = table.insert(flow(client), 30);
                        model.insert(client, (number, State::SynSent));
                    }
                    Step::Remove(client) => {
                        if let Some((number, _)) = model.remove(&client) {
                            prop_assert_eq!(table.remove(number).client_port, client);
                        }
                    }
                    Step::Touch(client, state) => {
                        if let Some((number, kept)) = model.get_mut(&client) {
                            *kept = State::from_byte(state);
                            table.touch(*number, *kept, now as u64 * RELINK_NS / 2, 30);
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
                let mut listed: Vec<_> = table.iter().map(|entry| (entry.client_port, entry.state())).collect();
                let mut expected: Vec<_> = model.iter().map(|(&client, &(_, state))| (client, state)).collect();
                listed.sort_by_key(|&(client, _)| client);
                expected.sort_by_key(|&(client, _)| client);
                prop_assert_eq!(listed, expected);
            }
        }
    }
}
