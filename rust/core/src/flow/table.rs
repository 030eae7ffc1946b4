//! The flow table: a fixed number of entries, found by either direction's key, expired and evicted through a list per state.
//!
//! One [`Area`] holds everything: a header, an index of buckets, then 64 bytes per flow that every packet of it needs ([`Entry`]), then 32 that TCP and lists
//! need ([`Annex`]), then 8 that hardly any packet needs ([`Cold`]). Three slots of the index per flow for its two keys keep it at most two thirds full, so a
//! flow costs 64 + 32 + 8 + 24 = 128 bytes, all included.
//! The area has no pointer in it: entries name each other by number. A lookup touches two cache lines: a bucket and an entry are one each.
//!
//! Index: a bucket is 8 slots, a slot holds (hash, entry + 1), a key's home bucket is `hash * buckets >> 32`. What finds its home full goes to the next bucket
//! with room; so all buckets between an entry's home and its place are full, and a search ends at the first bucket with room. Removal fetches back what may
//! stand nearer to its home instead of leaving tombstones, so lookups never slow down with age. Lists: an entry moves to its list's tail at most once per
//! second; so a list is ordered by `linked`, and roughly by `last_seen`, at the cost of almost no writes per packet.

use std::ops::Range;

use super::area::{Area, Line};
use super::state::{FlowState, Phase};
use super::tcp::Side as TcpSide;
use super::{Key, Side};
use crate::base::{Direction, LastHop, is_between};
use crate::datapath::DataPathError;
use crate::sys::lanes::{LANES, equal_lanes};
use crate::sys::prefetch::prefetch;

/// Most flows a table can be made for: slot numbers must fit 32 bits.
pub const MOST_FLOWS: u64 = 1 << 28;
/// An entry moves within its list at most this often.
const RELINK_NS: u64 = 1_000_000_000;

/// Cache lines of its memory that are asked about at once: 32 MiB, at a byte per page.
const MEMORY_PART: usize = 1 << 19;

const MAGIC: u64 = u64::from_be_bytes(*b"flowlb\0t");
const VERSION: u32 = 4;
const NONE: u32 = u32::MAX;

/// One flow: who, where, and when. 64 bytes, plain data: one cache line.
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
    /// How long before that it was linked, nanoseconds: below `RELINK_NS`, else it would have been linked again.
    lag: u32,
    /// IP bytes per direction: the low halves.
    bytes: [u32; 2],
    /// What is measured of it: the low two bits a phase, the rest a stamp.
    measured: u32,
    /// Where the last forward packet came from: the bits of a [`LastHop`].
    last_hop: u64,
}

/// Beside the entry: its place in its list, and what is known of both sides' TCP. 32 bytes, plain data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Annex {
    previous: u32,
    following: u32,
    sides: [TcpSide; 2],
}

/// What hardly any packet needs. 8 bytes, plain data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Cold {
    /// The sequence number after the client's last SYN, or after the server's that has answered it.
    syn: u32,
    /// IP bytes per direction: the high parts. 2^48 bytes are counted.
    bytes: [u16; 2],
}

/// Annexes are kept in pairs.
type Annexes = [Annex; 2];
/// And the cold parts in eights.
type Colds = [Cold; 8];

const _: () = assert!(size_of::<Entry>() == size_of::<Line>());
const _: () = assert!(size_of::<Annexes>() == size_of::<Line>());
const _: () = assert!(size_of::<Colds>() == size_of::<Line>());

/// Slots per bucket.
const SLOTS: usize = LANES;

/// A cache line of the index. The hashes are side by side, so that a handful of vector instructions compares them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Bucket {
    hashes: [u32; SLOTS],
    /// Entry numbers + 1; 0: an empty slot, whose hash means nothing.
    numbers: [u32; SLOTS],
}

const _: () = assert!(size_of::<Bucket>() == size_of::<Line>());

impl Bucket {
    /// A bit per slot that holds this hash, or did so before it became empty. All are compared, without a branch: which slot it is cannot be foretold.
    #[inline(always)]
    fn slots_with(&self, hash: u32) -> u32 {
        equal_lanes(&self.hashes, hash)
    }

    /// The entry number in a slot; `None` when it is empty.
    #[inline]
    fn number(&self, slot: usize) -> Option<u32> {
        self.numbers.get(slot)?.checked_sub(1)
    }

    #[inline]
    fn has_room(&self) -> bool {
        self.numbers.contains(&0)
    }

    fn set(&mut self, slot: usize, hash: u32, number: u32) {
        self.hashes[slot] = hash;
        self.numbers[slot] = number + 1;
    }

    fn clear(&mut self, slot: usize) {
        self.hashes[slot] = 0;
        self.numbers[slot] = 0;
    }
}

/// What `Entry::marks` holds: FIN seen, SND.NXT known, RCV.NXT known; each for both directions. And whether the first frame had a VLAN tag.
mod mark {
    pub const FIN: u8 = 0x01;
    pub const SND_NXT: u8 = 0x04;
    pub const RCV_NXT: u8 = 0x10;
    pub const TAGGED: u8 = 0x40;
    pub const BOTH_FINS: u8 = FIN | FIN << 1;
}

impl Entry {
    /// A new flow, linked nowhere yet, that no packet has been counted on.
    #[must_use]
    pub fn new(
        client: u128,
        client_port: u16,
        ids: (u32, u32, u32),
        state: FlowState,
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
            last_hop: LastHop::NONE.bits(),
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
    pub fn state(&self) -> FlowState {
        FlowState::from_byte(self.state)
    }

    /// Set where the flow stands, without moving it between lists: [`Table::touch`] does that.
    #[inline]
    pub fn set_state(&mut self, state: FlowState) {
        self.state = state as u8;
    }

    /// Note where a forward packet came from.
    #[inline(always)]
    pub fn set_last_hop(&mut self, last_hop: LastHop) {
        self.last_hop = last_hop.bits();
    }

    /// Where the last forward packet came from.
    #[inline(always)]
    #[must_use]
    pub fn last_hop(&self) -> LastHop {
        LastHop::from_bits(self.last_hop)
    }

    /// How long ago it was put at its list's tail.
    #[inline(always)]
    fn lag_at(&self, now: u64) -> u64 {
        // No clock comes near the end of 64 bits.
        now.wrapping_add(u64::from(self.lag))
            .saturating_sub(self.last_seen)
    }

    /// Whether both sides have said that they are done, in sequence.
    #[must_use]
    pub fn has_both_fins(&self) -> bool {
        self.marks & mark::BOTH_FINS == mark::BOTH_FINS
    }

    /// Note that its first frame had a VLAN tag.
    pub fn mark_tagged(&mut self) {
        self.marks |= mark::TAGGED;
    }

    /// Whether its first frame had a VLAN tag.
    #[must_use]
    pub fn is_tagged(&self) -> bool {
        self.marks & mark::TAGGED != 0
    }

    /// Count IP bytes: the low half of their number. `true`: it went over, [`Table::carry_bytes`] is to be told.
    #[inline(always)]
    #[must_use]
    pub fn count_bytes(&mut self, direction: Direction, len: u32) -> bool {
        let low = &mut self.bytes[direction as usize];
        let (sum, carry) = low.overflowing_add(len);
        *low = sum;
        carry
    }

    /// Refresh it, if a packet at `now` after which it has `state` leaves it in its place. `false`: nothing was done, that is [`Table::touch`]'s work.
    #[inline(always)]
    #[must_use]
    pub fn refresh(&mut self, state: FlowState, now: u64) -> bool {
        let lag = self.lag_at(now);
        let stays = self.state == state as u8 && lag < RELINK_NS;
        if stays {
            self.last_seen = now;
            self.lag = lag as u32;
        }
        stays
    }

    /// Whether it counts for its server.
    #[inline]
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.state().is_active()
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

    #[inline(always)]
    fn matches(&self, key: &Key) -> bool {
        let (ours, id) = match key.side {
            Side::Service(id) => (self.service, id),
            Side::Endpoint(id) => (self.endpoint, id),
        };
        ours == id && self.client_port == key.client_port && self.client() == key.client
    }
}

/// One flow for the TCP state machine: all its parts.
pub struct Flow<'a> {
    entry: &'a mut Entry,
    annex: &'a mut Annex,
    cold: &'a mut Cold,
}

impl<'a> Flow<'a> {
    /// Put the parts of one flow together.
    pub fn new(entry: &'a mut Entry, annex: &'a mut Annex, cold: &'a mut Cold) -> Self {
        Self { entry, annex, cold }
    }

    /// Where the flow stands.
    #[inline]
    #[must_use]
    pub fn state(&self) -> FlowState {
        self.entry.state()
    }

    /// What is known of the side that sends in a direction.
    #[inline(always)]
    #[must_use]
    pub fn side(&self, direction: Direction) -> &TcpSide {
        &self.annex.sides[direction as usize]
    }

    /// The same, for writing. Which numbers are known is not changed by it.
    #[inline(always)]
    pub fn side_mut(&mut self, direction: Direction) -> &mut TcpSide {
        &mut self.annex.sides[direction as usize]
    }

    /// The side that sends in a direction, and the other, for writing.
    #[inline(always)]
    pub fn sides(&mut self, direction: Direction) -> (&mut TcpSide, &mut TcpSide) {
        let [forward, reply] = &mut self.annex.sides;
        match direction {
            Direction::Forward => (forward, reply),
            Direction::Reply => (reply, forward),
        }
    }

    /// Whether it is known what a side sends next.
    #[inline(always)]
    #[must_use]
    pub fn knows_snd_nxt(&self, direction: Direction) -> bool {
        self.entry.marks & mark::SND_NXT << direction as u8 != 0
    }

    /// Whether a side has acknowledged something.
    #[inline(always)]
    #[must_use]
    pub fn knows_rcv_nxt(&self, direction: Direction) -> bool {
        self.entry.marks & mark::RCV_NXT << direction as u8 != 0
    }

    /// What a side sends next, if that is known.
    #[inline]
    #[must_use]
    pub fn snd_nxt(&self, direction: Direction) -> Option<u32> {
        self.knows_snd_nxt(direction)
            .then_some(self.side(direction).snd_nxt)
    }

    /// What a side sends next by the last that was heard of it, for what is believed of nobody: a client in `SynSent` may have begun another attempt.
    #[must_use]
    pub fn latest_snd_nxt(&self, direction: Direction) -> Option<u32> {
        let retries = direction == Direction::Forward
            && self.state() == FlowState::SynSent
            && self.side(direction).has_syn_again();
        if retries {
            return Some(self.side(Direction::Reply).rcv_nxt);
        }
        self.snd_nxt(direction)
    }

    /// What a side has acknowledged, if that is known.
    #[inline]
    #[must_use]
    pub fn rcv_nxt(&self, direction: Direction) -> Option<u32> {
        self.knows_rcv_nxt(direction)
            .then_some(self.side(direction).rcv_nxt)
    }

    /// The number that the receiver of a direction waits for: what it has acknowledged, or what follows a SYN that it is sure to acknowledge.
    #[inline]
    #[must_use]
    pub fn expected_of(&self, direction: Direction) -> Option<u32> {
        let receiver = direction.other();
        let opening = self.state() == FlowState::SynReceived && receiver == Direction::Forward;
        (opening || self.knows_rcv_nxt(receiver)).then_some(self.side(receiver).rcv_nxt)
    }

    /// The end of what a side has sent without a gap, where that is no guess: nobody has vouched for a pickup's numbers, and what is ahead may be forged.
    #[must_use]
    pub fn sent_for_sure(&self, direction: Direction) -> Option<u32> {
        let sure = self.entry.is_active() && !self.has_gap(direction);
        self.snd_nxt(direction).filter(|_| sure)
    }

    /// Whether a FIN or data is noted ahead of what a side has sent without a gap.
    #[must_use]
    pub fn has_gap(&self, direction: Direction) -> bool {
        let side = self.side(direction);
        // Before both SYNs were seen nothing was.
        self.state() != FlowState::SynSent && (side.has_fin_ahead() || side.has_data_ahead())
    }

    /// The end of what a side is known to have sent without a gap.
    #[must_use]
    pub fn seen(&self, direction: Direction) -> Option<u32> {
        if self.has_gap(direction) {
            self.expected_of(direction)
        } else {
            self.snd_nxt(direction)
        }
    }

    /// Note what a side sends next.
    #[inline]
    pub fn set_snd_nxt(&mut self, direction: Direction, number: u32) {
        self.side_mut(direction).snd_nxt = number;
        self.entry.marks |= mark::SND_NXT << direction as u8;
    }

    /// Note what a side has acknowledged.
    #[inline]
    pub fn set_rcv_nxt(&mut self, direction: Direction, number: u32) {
        self.side_mut(direction).rcv_nxt = number;
        self.entry.marks |= mark::RCV_NXT << direction as u8;
    }

    /// Note what a side is going to acknowledge: it has not yet.
    pub fn expect_rcv_nxt(&mut self, direction: Direction, number: u32) {
        self.side_mut(direction).rcv_nxt = number;
        self.entry.marks &= !(mark::RCV_NXT << direction as u8);
    }

    /// Nothing is known of either side any more, and neither has sent a FIN.
    pub fn forget_sides(&mut self) {
        self.annex.sides = Default::default();
        self.entry.marks &= mark::TAGGED;
    }

    /// Note the first SYN of a client, at which its flow begins.
    pub fn begin(&mut self, segment: &crate::wire::segment::Segment) {
        let number = segment.sequence.wrapping_add(1);
        self.set_syn(number);
        self.set_snd_nxt(Direction::Forward, segment.end);
        self.expect_rcv_nxt(Direction::Forward, number);
        self.side_mut(Direction::Forward).offer(segment);
    }

    /// The sequence number after the client's last SYN, or after the server's that has answered it while another counts.
    #[inline]
    #[must_use]
    pub fn syn(&self) -> u32 {
        self.cold.syn
    }

    /// Note a SYN of the client, or the server's that answers it.
    #[inline]
    pub fn set_syn(&mut self, number: u32) {
        self.cold.syn = number;
    }

    /// The sequence number after the client's first SYN, or after the one that the server has acknowledged alone, while the client has answered nothing.
    #[must_use]
    pub fn first_syn(&self) -> Option<u32> {
        let kept = self.state() == FlowState::SynSent && !self.knows_rcv_nxt(Direction::Forward);
        kept.then_some(self.side(Direction::Forward).rcv_nxt)
    }

    /// Whether a number acknowledges the SYN of a handshake that is under way: the client's first, its last, or data sent with it (RFC 7413).
    #[must_use]
    pub fn answers_syn(&self, number: u32) -> bool {
        match self.state() {
            FlowState::SynSent => self.answers_first_syn(number) || self.answers_syn_again(number),
            FlowState::SynReceived => self.rcv_nxt(Direction::Reply) == Some(number),
            _ => false,
        }
    }

    /// Whether a number acknowledges the SYN of a client in `SynSent` that is its own for sure.
    #[must_use]
    pub(super) fn answers_first_syn(&self, number: u32) -> bool {
        let first = self.first_syn().unwrap_or(self.syn());
        is_between(number, first, self.side(Direction::Forward).snd_nxt)
    }

    /// Whether a number acknowledges another SYN than the one that counts, or in `SynSent` than the first: it may be anybody's.
    #[must_use]
    pub(super) fn answers_syn_again(&self, number: u32) -> bool {
        let end = match self.state() {
            FlowState::SynSent => self.side(Direction::Reply).rcv_nxt,
            _ => self.syn(),
        };
        let [client, server] = &self.annex.sides;
        let open = client.has_syn_again() && !server.has_syn_again();
        open && is_between(number, self.syn(), end)
    }

    /// Time of the last packet that refreshed it, nanoseconds.
    #[inline]
    #[must_use]
    pub fn last_seen(&self) -> u64 {
        self.entry.last_seen
    }

    /// Bytes that the server has sent and the client has not acknowledged, as far as is known.
    #[inline(always)]
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        const KNOWN: u8 = mark::SND_NXT << Direction::Reply as u8 | mark::RCV_NXT;
        let [client, server] = &self.annex.sides;
        let left = server.snd_nxt.wrapping_sub(client.rcv_nxt);
        if self.entry.marks & KNOWN == KNOWN && left < 1 << 31 {
            left
        } else {
            0
        }
    }

    /// [`Self::in_flight`] of an established flow with no FIN ahead: both numbers are known, and in order.
    #[inline(always)]
    #[must_use]
    pub fn in_flight_plain(&self) -> u32 {
        let [client, server] = &self.annex.sides;
        let left = server.snd_nxt.wrapping_sub(client.rcv_nxt);
        debug_assert_eq!(left, self.in_flight());
        left
    }

    /// What it waits for.
    #[inline(always)]
    #[must_use]
    pub fn phase(&self) -> Phase {
        Phase::from_bits(self.entry.measured)
    }

    /// Since when.
    #[inline]
    #[must_use]
    pub fn stamp(&self) -> u32 {
        self.entry.measured >> 2
    }

    /// Set both. `stamp`: 30 bits.
    #[inline(always)]
    pub fn set_phase(&mut self, phase: Phase, stamp: u32) {
        self.entry.measured = stamp << 2 | phase as u32;
    }

    /// Note that a side is done.
    pub fn mark_fin(&mut self, direction: Direction) {
        self.entry.marks |= mark::FIN << direction as u8;
    }

    /// Whether a side is done.
    #[must_use]
    pub fn has_fin(&self, direction: Direction) -> bool {
        self.entry.marks & mark::FIN << direction as u8 != 0
    }

    /// Whether both sides are done.
    #[must_use]
    pub fn has_both_fins(&self) -> bool {
        self.entry.has_both_fins()
    }
}

/// The start of the area: what a reader needs to know to make sense of the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Header {
    magic: u64,
    version: u32,
    bytes: u32,
    bucket_bytes: u32,
    entry_bytes: u32,
    annex_bytes: u32,
    cold_bytes: u32,
    buckets: u64,
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
    /// First and last of each state's list.
    heads: [u32; LISTS],
    tails: [u32; LISTS],
    spare: [u64; 5],
}

/// Room for a list per state.
const LISTS: usize = 8;
const _: () = assert!(FlowState::ALL.len() <= LISTS);
const _: () = assert!(size_of::<Header>() % size_of::<Line>() == 0);

/// Where the index starts.
const HEADER_LINES: usize = size_of::<Header>().div_ceil(size_of::<Line>());

/// The table. See the module's description.
pub struct Table {
    area: Area,
    /// Copies of constants in the header, at hand.
    buckets: u32,
    capacity: u32,
    /// Where entries, annexes and cold parts start, in lines.
    entries_at: usize,
    annexes_at: usize,
    colds_at: usize,
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
        let buckets = (flows * 3).div_ceil(SLOTS as u32);
        let entries_at = HEADER_LINES + buckets as usize;
        let annexes_at = entries_at + flows as usize;
        let colds_at = annexes_at + (flows as usize).div_ceil(2);
        let area = Area::new(colds_at + (flows as usize).div_ceil(8))?;
        let key = u128::from_le_bytes(hash_key);
        let hash_key = [key as u64, (key >> 64) as u64];
        let mut table = Self {
            area,
            buckets,
            capacity: flows,
            entries_at,
            annexes_at,
            colds_at,
            hash_key,
            due: 0,
        };
        *table.header_mut() = Header {
            magic: MAGIC,
            version: VERSION,
            bytes: (HEADER_LINES * size_of::<Line>()) as u32,
            bucket_bytes: size_of::<Bucket>() as u32,
            entry_bytes: size_of::<Entry>() as u32,
            annex_bytes: size_of::<Annex>() as u32,
            cold_bytes: size_of::<Cold>() as u32,
            buckets: u64::from(buckets),
            capacity,
            hash_key,
            generation: 0,
            live: 0,
            touched: 0,
            free: NONE,
            heads: [NONE; LISTS],
            tails: [NONE; LISTS],
            spare: [0; 5],
        };
        Ok(table)
    }

    /// Have all of its memory now: before packets flow, not while they do.
    ///
    /// # Errors
    /// `Memory`.
    pub fn populate(&mut self) -> Result<(), DataPathError> {
        self.area.populate()
    }

    /// Bytes of it that are promised, everything included, and of these resident by now: of the lines from `from` on that one call can ask about, and where the
    /// next call has to begin.
    #[must_use]
    pub fn memory_part(&self, from: usize) -> ((u64, u64), Option<usize>) {
        let until = (from + MEMORY_PART).min(self.area.lines().len());
        let promised = ((until - from) * size_of::<Line>()) as u64;
        let next = (until < self.area.lines().len()).then_some(until);
        ((promised, self.area.resident_bytes(from..until)), next)
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

    /// Entries it has room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity as usize
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

    /// The hash of a key: what [`Self::find_hashed`] asks for, so that a packet's key is hashed once.
    #[inline]
    #[must_use]
    pub fn hash(&self, key: &Key) -> u32 {
        key.hash(self.hash_key) as u32
    }

    /// Find the entry of a key.
    #[must_use]
    pub fn find(&self, key: &Key) -> Option<u32> {
        self.find_hashed(key, self.hash(key))
    }

    /// Find the entry of a key whose hash is known.
    #[inline(always)]
    #[must_use]
    pub fn find_hashed(&self, key: &Key, hash: u32) -> Option<u32> {
        let mut at = self.home(hash);
        loop {
            let bucket = self.bucket(at);
            let mut candidates = bucket.slots_with(hash);
            while candidates != 0 {
                let number = bucket.number(candidates.trailing_zeros() as usize);
                if let Some(number) = number.filter(|&number| self.entry(number).matches(key)) {
                    return Some(number);
                }
                candidates &= candidates - 1;
            }
            if bucket.has_room() {
                return None;
            }
            at = self.after(at);
        }
    }

    /// Whether an entry has this key. No entry that was removed has one: its port is 0.
    #[inline]
    #[must_use]
    pub fn holds(&self, number: u32, key: &Key) -> bool {
        self.entry(number).matches(key)
    }

    /// Fetch what a lookup of a hash reads first. Of use when other work is done in between.
    #[inline]
    pub fn prefetch_bucket(&self, hash: u32) {
        prefetch(self.bucket(self.home(hash)));
    }

    /// Fetch what a lookup of a hash reads next, once its bucket is there: the entry that probably is the one.
    #[inline]
    #[must_use]
    pub fn prefetch_entry(&self, hash: u32) -> Option<u32> {
        let bucket = self.bucket(self.home(hash));
        let slot = bucket.slots_with(hash).trailing_zeros();
        let number = bucket.number(slot as usize)?;
        prefetch(self.entry(number));
        Some(number)
    }

    /// Fetch the annex of an entry that is there, if a packet at `now` will need it: every packet of TCP does, and every one that moves its entry.
    #[inline]
    #[must_use]
    pub fn prefetch_annex(&self, number: u32, now: u64) -> bool {
        let entry = self.entry(number);
        let moves = entry.lag_at(now) >= RELINK_NS;
        if moves || !entry.state().is_udp() {
            prefetch(self.annex(number));
        }
        moves
    }

    /// Fetch what moving an entry to its list's tail writes, once its annex is there.
    #[inline]
    pub fn prefetch_neighbours(&self, number: u32) {
        let annex = self.annex(number);
        for neighbour in [annex.previous, annex.following] {
            if let Some(neighbour) = present(neighbour) {
                prefetch(self.annex(neighbour));
            }
        }
    }

    /// One entry, by the number `find` gave.
    ///
    /// # Panics
    /// On a number that no call of this table gave.
    #[inline]
    #[must_use]
    pub fn entry(&self, number: u32) -> &Entry {
        bytemuck::cast_ref(&self.area.lines()[self.entry_at(number)])
    }

    /// One entry, for writing. Its keys must not change.
    ///
    /// # Panics
    /// On a number that no call of this table gave.
    #[inline]
    pub fn entry_mut(&mut self, number: u32) -> &mut Entry {
        let at = self.entry_at(number);
        bytemuck::cast_mut(&mut self.area.lines_mut()[at])
    }

    /// All parts of a flow, for the TCP state machine.
    ///
    /// # Panics
    /// On a number that no call of this table gave.
    #[inline]
    pub fn flow_mut(&mut self, number: u32) -> Flow<'_> {
        let (entry_at, (pair, half)) = (self.entry_at(number), self.annex_at(number));
        let (cold_at, eighth) = self.cold_at(number);
        let (entries, rest) = self.area.lines_mut().split_at_mut(self.annexes_at);
        let (annexes, colds) = rest.split_at_mut(self.colds_at - self.annexes_at);
        let annexes: &mut Annexes = bytemuck::cast_mut(&mut annexes[pair - self.annexes_at]);
        let colds: &mut Colds = bytemuck::cast_mut(&mut colds[cold_at - self.colds_at]);
        Flow {
            entry: bytemuck::cast_mut(&mut entries[entry_at]),
            annex: &mut annexes[half],
            cold: &mut colds[eighth],
        }
    }

    /// Note that [`Entry::count_bytes`] went over: once per 4 GiB.
    #[cold]
    pub fn carry_bytes(&mut self, number: u32, direction: Direction) {
        let high = &mut self.cold_mut(number).bytes[direction as usize];
        *high = high.wrapping_add(1);
    }

    /// IP bytes of a flow so far, mod 2^48.
    #[must_use]
    pub fn bytes(&self, number: u32, direction: Direction) -> u64 {
        let at = direction as usize;
        u64::from(self.cold(number).bytes[at]) << 32 | u64::from(self.entry(number).bytes[at])
    }

    /// Store a flow at the tail of its list. The table must not be full, and neither of its keys in it.
    pub fn insert(&mut self, entry: Entry, timeout: u64) -> u32 {
        let number = self.take_free();
        *self.entry_mut(number) = entry;
        *self.annex_mut(number) = Annex::default();
        *self.cold_mut(number) = Cold::default();
        self.insert_slot(self.hash(&entry.forward_key()), number);
        self.insert_slot(self.hash(&entry.reply_key()), number);
        self.link(number, entry.state());
        self.header_mut().live += 1;
        self.due = self.due.min(entry.last_seen.saturating_add(timeout));
        number
    }

    /// Remove an entry, and return what it was.
    pub fn remove(&mut self, number: u32) -> Entry {
        let entry = *self.entry(number);
        self.remove_slot(self.hash(&entry.forward_key()), number);
        self.remove_slot(self.hash(&entry.reply_key()), number);
        self.unlink(number, entry.state());
        *self.entry_mut(number) = Entry::default();
        *self.annex_mut(number) = Annex {
            following: self.header().free,
            ..Annex::default()
        };
        let header = self.header_mut();
        header.free = number;
        header.live -= 1;
        entry
    }

    /// Refresh an entry that has `state` from now on, and move it in or between lists as its state and age ask for. [`Entry::refresh`] does it for most.
    #[inline(never)]
    pub fn touch(&mut self, number: u32, state: FlowState, now: u64, timeout: u64) {
        let entry = self.entry_mut(number);
        let from = entry.state();
        let lag = entry.lag_at(now);
        entry.set_state(state);
        entry.last_seen = now;
        if from == state && lag < RELINK_NS {
            entry.lag = lag as u32;
            return;
        }
        entry.lag = 0;
        self.unlink(number, from);
        self.link(number, state);
        self.due = self.due.min(now.saturating_add(timeout));
    }

    /// The oldest entry of a state.
    #[must_use]
    pub fn head(&self, state: FlowState) -> Option<u32> {
        present(self.header().heads[state as usize])
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

    /// The numbers of the entries in some places, in their order; and the place after the last one of the table.
    pub fn numbers_in(&self, places: Range<u32>) -> (impl Iterator<Item = u32>, u32) {
        let end = self.header().touched;
        // A removed entry has port 0, which no flow has.
        let numbers = (places.start..places.end.min(end))
            .filter(|&number| self.entry(number).client_port != 0);
        (numbers, end)
    }

    /// The numbers of all entries, in no useful order.
    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        FlowState::ALL.into_iter().flat_map(move |state| {
            std::iter::successors(self.head(state), |&number| {
                present(self.annex(number).following)
            })
        })
    }

    #[inline]
    fn home(&self, hash: u32) -> u32 {
        ((u64::from(hash) * u64::from(self.buckets)) >> 32) as u32
    }

    #[inline]
    fn after(&self, bucket: u32) -> u32 {
        if bucket + 1 == self.buckets {
            0
        } else {
            bucket + 1
        }
    }

    #[inline]
    fn bucket(&self, at: u32) -> &Bucket {
        bytemuck::cast_ref(&self.area.lines()[HEADER_LINES + at as usize])
    }

    fn bucket_mut(&mut self, at: u32) -> &mut Bucket {
        bytemuck::cast_mut(&mut self.area.lines_mut()[HEADER_LINES + at as usize])
    }

    fn insert_slot(&mut self, hash: u32, number: u32) {
        let mut at = self.home(hash);
        loop {
            let bucket = self.bucket_mut(at);
            if let Some(slot) = bucket.numbers.iter().position(|&number| number == 0) {
                return bucket.set(slot, hash, number);
            }
            at = self.after(at);
        }
    }

    /// Empty the slot of (hash, number). If that makes room in a full bucket, fetch back what had to go further for want of it; and so on.
    fn remove_slot(&mut self, hash: u32, number: u32) {
        let mut hole = self.home(hash);
        let mut slot = loop {
            match self.slot_of(hole, hash, number) {
                Some(slot) => break slot,
                None => hole = self.after(hole),
            }
        };
        let mut was_full = !self.bucket(hole).has_room();
        self.bucket_mut(hole).clear(slot);
        let mut at = hole;
        while was_full {
            at = self.after(at);
            was_full = !self.bucket(at).has_room();
            if let Some((moved, hash, number)) = self.displaced(at, hole) {
                self.bucket_mut(at).clear(moved);
                self.bucket_mut(hole).set(slot, hash, number);
                (hole, slot) = (at, moved);
            }
        }
    }

    /// The slot of bucket `at` that holds (hash, number): both, for the two keys of one entry may share a bucket.
    fn slot_of(&self, at: u32, hash: u32, number: u32) -> Option<usize> {
        let bucket = self.bucket(at);
        (0..SLOTS).find(|&slot| bucket.hashes[slot] == hash && bucket.number(slot) == Some(number))
    }

    /// A slot of bucket `at`, with its hash and entry number, that may stand in bucket `hole` before it: its home lies not after `hole`, in cyclic distance.
    fn displaced(&self, at: u32, hole: u32) -> Option<(usize, u32, u32)> {
        let (bucket, back) = (self.bucket(at), self.distance(hole, at));
        (0..SLOTS).find_map(|slot| {
            let (hash, number) = (bucket.hashes[slot], bucket.number(slot)?);
            (self.distance(self.home(hash), at) >= back).then_some((slot, hash, number))
        })
    }

    fn distance(&self, from: u32, to: u32) -> u32 {
        if to >= from {
            to - from
        } else {
            to + (self.buckets - from)
        }
    }

    fn take_free(&mut self) -> u32 {
        let (free, touched) = (self.header().free, self.header().touched);
        if let Some(number) = present(free) {
            self.header_mut().free = self.annex(number).following;
            return number;
        }
        self.header_mut().touched += 1;
        touched
    }

    fn link(&mut self, number: u32, state: FlowState) {
        let tail = self.header().tails[state as usize];
        let annex = self.annex_mut(number);
        annex.previous = tail;
        annex.following = NONE;
        match present(tail) {
            Some(tail) => self.annex_mut(tail).following = number,
            None => self.header_mut().heads[state as usize] = number,
        }
        self.header_mut().tails[state as usize] = number;
    }

    fn unlink(&mut self, number: u32, state: FlowState) {
        let Annex {
            previous,
            following,
            ..
        } = *self.annex(number);
        if let Some(previous) = present(previous) {
            self.annex_mut(previous).following = following;
        } else {
            self.header_mut().heads[state as usize] = following;
            // The new head may be due earlier than the old one: `linked` orders the list, `last_seen` decides.
            self.due = 0;
        }
        match present(following) {
            Some(following) => self.annex_mut(following).previous = previous,
            None => self.header_mut().tails[state as usize] = previous,
        }
    }

    #[inline(always)]
    fn entry_at(&self, number: u32) -> usize {
        self.entries_at + number as usize
    }

    /// The line of an annex, and its place there.
    #[inline(always)]
    fn annex_at(&self, number: u32) -> (usize, usize) {
        (self.annexes_at + number as usize / 2, number as usize % 2)
    }

    /// The line of a cold part, and its place there.
    #[inline(always)]
    fn cold_at(&self, number: u32) -> (usize, usize) {
        (self.colds_at + number as usize / 8, number as usize % 8)
    }

    fn cold(&self, number: u32) -> &Cold {
        let (line, place) = self.cold_at(number);
        let colds: &Colds = bytemuck::cast_ref(&self.area.lines()[line]);
        &colds[place]
    }

    fn cold_mut(&mut self, number: u32) -> &mut Cold {
        let (line, place) = self.cold_at(number);
        let colds: &mut Colds = bytemuck::cast_mut(&mut self.area.lines_mut()[line]);
        &mut colds[place]
    }

    #[inline]
    fn annex(&self, number: u32) -> &Annex {
        let (pair, half) = self.annex_at(number);
        let annexes: &Annexes = bytemuck::cast_ref(&self.area.lines()[pair]);
        &annexes[half]
    }

    #[inline]
    fn annex_mut(&mut self, number: u32) -> &mut Annex {
        let (pair, half) = self.annex_at(number);
        let annexes: &mut Annexes = bytemuck::cast_mut(&mut self.area.lines_mut()[pair]);
        &mut annexes[half]
    }

    #[inline]
    fn header(&self) -> &Header {
        let lines: &[Line; HEADER_LINES] = self
            .area
            .lines()
            .first_chunk()
            .expect("the area starts with a header");
        bytemuck::cast_ref(lines)
    }

    #[inline]
    fn header_mut(&mut self) -> &mut Header {
        let lines: &mut [Line; HEADER_LINES] = self
            .area
            .lines_mut()
            .first_chunk_mut()
            .expect("the area starts with a header");
        bytemuck::cast_mut(lines)
    }
}

fn present(number: u32) -> Option<u32> {
    (number != NONE).then_some(number)
}

#[cfg(test)]
mod tests;
