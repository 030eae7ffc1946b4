//! Fragments (rule 6, behaviour 19): which pieces of a datagram were seen, what was decided for its first one, and which wait for that. And cutting (rule
//! 12.2): a packet that is too long for its way, made into fragments (RFC 791 3.2).
//!
//! Nothing is reassembled: each fragment leaves by itself, translated like the first. Everything is bounded: entries, pieces, held bytes, time; and no source
//! address has more than an eighth of entries or bytes, so a flood from one address costs only that address. Nothing here scans all entries.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::Direction;
use crate::flow::key::Key;
use crate::packet::Meta;
use crate::wire::{checksum, ipv4};

/// Datagrams whose fragments may pass or wait.
const MOST_DATAGRAMS: usize = 1024;
/// Refused datagrams that are remembered, beside those.
const MOST_REFUSED: usize = 1024;
/// Fragments of one datagram: 65 535 bytes over an MTU of 296.
const MOST_PIECES: usize = 256;
/// Bytes of all held frames.
const MOST_HELD_BYTES: usize = 4 << 20;
/// One source address has at most this part of entries and of bytes.
const SHARES: usize = 8;
const LIFETIME_NS: u64 = 30_000_000_000;

/// What makes fragments belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DatagramKey {
    /// Source address.
    pub source: u128,
    /// Destination address.
    pub destination: u128,
    /// Identification.
    pub identification: u32,
    /// L4 protocol.
    pub protocol: u8,
}

/// What was decided for the first fragment, and holds for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Route it on unchanged.
    Transit,
    /// Translate it as its flow.
    Translate {
        /// Which way the flow goes.
        direction: Direction,
        /// Service id.
        service: u32,
        /// Server id.
        server: u32,
        /// Finds the flow's last hop.
        reply_key: Key,
    },
}

/// What is known about a datagram's fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The first fragment has not come: others wait for it.
    Unknown,
    /// It was forwarded.
    Decided(Action),
    /// It was not, or the fragments overlap.
    Refused,
}

/// A fragment that waits for the first.
pub struct Held {
    /// The frame as it came.
    pub frame: Vec<u8>,
    /// What was parsed from it.
    pub meta: Meta,
}

/// The bytes of a datagram that a fragment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Offset of its first byte.
    pub start: u32,
    /// Offset behind its last byte.
    pub end: u32,
    /// No fragment follows (MF is 0).
    pub last: bool,
}

/// Why a piece cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// It is there already: same offset, length and MF.
    Duplicate,
    /// With a known piece, or with the known end.
    Overlap,
    /// There are 256.
    TooMany,
}

/// Which pieces of a datagram were seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pieces {
    /// Disjoint, sorted.
    known: Vec<(u32, u32)>,
    /// Their sum.
    bytes: u32,
    end: Option<u32>,
}

impl Pieces {
    /// Whether a piece may be added.
    ///
    /// # Errors
    /// `Duplicate`, `Overlap`, `TooMany`.
    pub fn check(&self, piece: Piece) -> Result<(), Misfit> {
        let Piece { start, end, last } = piece;
        let at = self.known.partition_point(|&(from, _)| from < start);
        let same = self.known.get(at) == Some(&(start, end));
        if same && last == (self.end == Some(end)) {
            return Err(Misfit::Duplicate);
        }
        let before = at.checked_sub(1).and_then(|at| self.known.get(at));
        let overlaps = before.is_some_and(|&(_, to)| start < to)
            || self.known.get(at).is_some_and(|&(from, _)| from < end);
        let beyond_end = self
            .end
            .is_some_and(|known| end > known || (last && end != known));
        let data_beyond = last && self.known.last().is_some_and(|&(_, to)| to > end);
        if overlaps || beyond_end || data_beyond {
            return Err(Misfit::Overlap);
        }
        if self.known.len() >= MOST_PIECES {
            return Err(Misfit::TooMany);
        }
        Ok(())
    }

    /// Add a piece that was checked.
    fn add(&mut self, piece: Piece) {
        let Piece { start, end, last } = piece;
        let at = self.known.partition_point(|&(from, _)| from < start);
        self.known.insert(at, (start, end));
        self.bytes += end - start;
        if last {
            self.end = Some(end);
        }
    }

    /// Whether every byte was seen.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.end == Some(self.bytes)
    }
}

/// One datagram in pieces.
pub struct Datagram {
    created: u64,
    sequence: u64,
    /// Pieces seen.
    pub pieces: Pieces,
    /// What is decided.
    pub fate: Fate,
    held: Vec<Held>,
    /// Of the frames held.
    held_bytes: usize,
}

/// Datagrams in order of their creation, of all and of each source.
#[derive(Default)]
struct Order {
    by_age: BTreeMap<u64, DatagramKey>,
    by_source: BTreeSet<(u128, u64)>,
}

impl Order {
    fn insert(&mut self, sequence: u64, key: &DatagramKey) {
        self.by_age.insert(sequence, *key);
        self.by_source.insert((key.source, sequence));
    }

    fn remove(&mut self, sequence: u64, key: &DatagramKey) {
        self.by_age.remove(&sequence);
        self.by_source.remove(&(key.source, sequence));
    }

    fn oldest(&self) -> Option<DatagramKey> {
        self.by_age.first_key_value().map(|(_, &key)| key)
    }

    fn oldest_of(&self, source: u128) -> Option<DatagramKey> {
        let mut of_source = self.by_source.range((source, 0)..=(source, u64::MAX));
        let &(_, sequence) = of_source.next()?;
        self.by_age.get(&sequence).copied()
    }
}

/// What one source address has.
#[derive(Clone, Copy, Default)]
struct Share {
    datagrams: usize,
    held_bytes: usize,
}

/// All datagrams in pieces.
#[derive(Default)]
pub struct Fragments {
    datagrams: BTreeMap<DatagramKey, Datagram>,
    /// Those that are not refused.
    alive: Order,
    /// Those whose first fragment has not come. Each holds a fragment.
    waiting: Order,
    shares: BTreeMap<u128, Share>,
    /// Those that are refused, in order: they hold nothing, and take no room of others.
    refused: BTreeMap<u64, DatagramKey>,
    sequence: u64,
    held_bytes: usize,
    /// Fragments that were given up, whose memory is to be freed: many may be given up at once, and each takes its time.
    given_up: Vec<Vec<Held>>,
}

impl Fragments {
    /// What is known of a datagram.
    #[must_use]
    pub fn get(&self, key: &DatagramKey) -> Option<&Datagram> {
        self.datagrams.get(key)
    }

    /// Add a checked piece of a datagram whose fate is decided.
    pub fn add(&mut self, key: &DatagramKey, piece: Piece) {
        if let Some(datagram) = self.datagrams.get_mut(key) {
            datagram.pieces.add(piece);
        }
    }

    /// Make room for a frame of a datagram: waiting datagrams of its source, or of all, go, the oldest first. Says whether there is room, and how many held
    /// fragments that gave up.
    pub fn make_room(&mut self, key: &DatagramKey, bytes: usize) -> (bool, usize) {
        let mut given_up = 0;
        loop {
            let share = self.shares.get(&key.source).copied().unwrap_or_default();
            let victim = if share.held_bytes + bytes > MOST_HELD_BYTES / SHARES {
                self.waiting.oldest_of(key.source)
            } else if self.held_bytes + bytes > MOST_HELD_BYTES {
                self.waiting.oldest()
            } else {
                return (true, given_up);
            };
            // What would go is the datagram itself: nothing is gained.
            let Some(victim) = victim.filter(|victim| victim != key) else {
                return (false, given_up);
            };
            given_up += self.remove(&victim);
        }
    }

    /// Hold a fragment, whose piece was checked and for which there is room, until its first one comes. Says how many others that gave up.
    pub fn hold(&mut self, key: &DatagramKey, piece: Piece, held: Held, now: u64) -> usize {
        let given_up = self.open(key, Fate::Unknown, now);
        let bytes = held.frame.len();
        if let Some(datagram) = self.datagrams.get_mut(key) {
            datagram.pieces.add(piece);
            datagram.held.push(held);
            datagram.held_bytes += bytes;
            self.held_bytes += bytes;
            self.shares.entry(key.source).or_default().held_bytes += bytes;
        }
        given_up
    }

    /// Decide a datagram's fate by its first fragment, whose piece was checked. Gives the fragments that waited for it, and how many of others were given up.
    pub fn decide(
        &mut self,
        key: &DatagramKey,
        piece: Piece,
        action: Action,
        now: u64,
    ) -> (Vec<Held>, usize) {
        let given_up = self.open(key, Fate::Decided(action), now);
        let held = self.take_held(key);
        if let Some(datagram) = self.datagrams.get_mut(key) {
            datagram.fate = Fate::Decided(action);
            datagram.pieces.add(piece);
        }
        (held, given_up)
    }

    /// Let nothing more of a datagram pass, one that is not refused yet. Says how many fragments were held for it.
    pub fn refuse(&mut self, key: &DatagramKey, now: u64) -> usize {
        let given_up = self.remove(key);
        if self.refused.len() >= MOST_REFUSED {
            if let Some((_, oldest)) = self.refused.pop_first() {
                self.datagrams.remove(&oldest);
            }
        }
        self.sequence += 1;
        self.refused.insert(self.sequence, *key);
        self.insert(key, Fate::Refused, now);
        given_up
    }

    /// Forget a datagram that was forwarded and is complete.
    pub fn close_if_complete(&mut self, key: &DatagramKey) {
        let is_done =
            |entry: &Datagram| matches!(entry.fate, Fate::Decided(_)) && entry.pieces.is_complete();
        if self.datagrams.get(key).is_some_and(is_done) {
            self.remove(key);
        }
    }

    /// Forget the oldest datagram if its time is over, of those that are refused only when no other's is: how many fragments were held for it.
    pub fn expire(&mut self, now: u64) -> Option<usize> {
        let key = self.oldest_over(now)?;
        Some(self.forget(&key))
    }

    /// Forget a datagram if its time is over: how many fragments were held for it.
    pub fn expire_one(&mut self, key: &DatagramKey, now: u64) -> usize {
        if self.is_over(key, now) {
            self.forget(key)
        } else {
            0
        }
    }

    /// Whether there is a datagram whose time is over, or memory to free.
    #[must_use]
    pub fn is_behind(&self, now: u64) -> bool {
        self.has_given_up() || self.oldest_over(now).is_some()
    }

    fn oldest_over(&self, now: u64) -> Option<DatagramKey> {
        let refused = self.refused.first_key_value().map(|(_, &key)| key);
        let oldest = [self.alive.oldest(), refused].into_iter().flatten();
        oldest.into_iter().find(|key| self.is_over(key, now))
    }

    fn is_over(&self, key: &DatagramKey, now: u64) -> bool {
        let datagram = self.datagrams.get(key);
        datagram.is_some_and(|datagram| now.saturating_sub(datagram.created) >= LIFETIME_NS)
    }

    /// Forget a datagram that is known: how many fragments were held for it.
    fn forget(&mut self, key: &DatagramKey) -> usize {
        let refused = self
            .datagrams
            .get(key)
            .filter(|one| one.fate == Fate::Refused);
        let Some(sequence) = refused.map(|datagram| datagram.sequence) else {
            return self.remove(key);
        };
        self.refused.remove(&sequence);
        self.datagrams.remove(key);
        0
    }

    /// Whether no datagram is known, and nothing is left to free.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        // Asked before every frame: without a jump between the two.
        self.datagrams.is_empty() & self.given_up.is_empty()
    }

    /// Whether memory of fragments that were given up is left to free.
    #[inline]
    fn has_given_up(&self) -> bool {
        !self.given_up.is_empty()
    }

    /// Free the memory of some fragments that were given up.
    pub fn free(&mut self, most: usize) {
        let mut left = most;
        while let Some(last) = self.given_up.last_mut() {
            let kept = last.len().saturating_sub(left);
            left -= last.len() - kept;
            last.truncate(kept);
            if kept > 0 {
                return;
            }
            self.given_up.pop();
        }
    }

    /// Fragments held now.
    #[must_use]
    pub fn held(&self) -> usize {
        self.datagrams
            .values()
            .map(|datagram| datagram.held.len())
            .sum()
    }

    /// Make the entry of a datagram that has none. Where there is no room its source's oldest goes, or the oldest of all: how many fragments that gave up.
    fn open(&mut self, key: &DatagramKey, fate: Fate, now: u64) -> usize {
        if self.datagrams.contains_key(key) {
            return 0;
        }
        let share = self.shares.get(&key.source).copied().unwrap_or_default();
        let victim = if share.datagrams >= MOST_DATAGRAMS / SHARES {
            self.alive.oldest_of(key.source)
        } else if self.alive.by_age.len() >= MOST_DATAGRAMS {
            self.alive.oldest()
        } else {
            None
        };
        let given_up = victim.map_or(0, |victim| self.remove(&victim));
        self.sequence += 1;
        self.alive.insert(self.sequence, key);
        if fate == Fate::Unknown {
            self.waiting.insert(self.sequence, key);
        }
        self.shares.entry(key.source).or_default().datagrams += 1;
        self.insert(key, fate, now);
        given_up
    }

    fn insert(&mut self, key: &DatagramKey, fate: Fate, now: u64) {
        let datagram = Datagram {
            created: now,
            sequence: self.sequence,
            pieces: Pieces::default(),
            fate,
            held: Vec::new(),
            held_bytes: 0,
        };
        self.datagrams.insert(*key, datagram);
    }

    /// Take out the held fragments of a datagram: it does not wait any more.
    fn take_held(&mut self, key: &DatagramKey) -> Vec<Held> {
        let Some(datagram) = self.datagrams.get_mut(key) else {
            return Vec::new();
        };
        let bytes = std::mem::take(&mut datagram.held_bytes);
        let held = std::mem::take(&mut datagram.held);
        self.waiting.remove(datagram.sequence, key);
        self.held_bytes -= bytes;
        if let Some(share) = self.shares.get_mut(&key.source) {
            share.held_bytes -= bytes;
        }
        held
    }

    /// Forget a datagram that is not refused: how many fragments were held for it.
    fn remove(&mut self, key: &DatagramKey) -> usize {
        let held = self.take_held(key);
        let Some(datagram) = self.datagrams.remove(key) else {
            return 0;
        };
        self.alive.remove(datagram.sequence, key);
        if let Some(share) = self.shares.get_mut(&key.source) {
            share.datagrams -= 1;
            if share.datagrams == 0 {
                self.shares.remove(&key.source);
            }
        }
        let count = held.len();
        if count > 0 {
            self.given_up.push(held);
        }
        count
    }
}

/// Cut an IPv4 packet into fragments of at most `mtu` bytes. It must be longer than that, without DF, and `mtu` leave room for its header and 8 bytes.
#[must_use]
pub fn cut(packet: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    let Some(header) = ipv4::Header::new(packet) else {
        return Vec::new();
    };
    let header_len = header.header_len();
    let flags_offset = header.flags_offset();
    let (Some(first_header), Some(mut data)) = (packet.get(..header_len), packet.get(header_len..))
    else {
        return Vec::new();
    };
    let mut later_header = packet[..ipv4::LEN].to_vec();
    later_header.extend(ipv4::copied_options(&packet[ipv4::LEN..header_len]));
    let mut pieces = Vec::new();
    let mut offset = flags_offset & ipv4::OFFSET_MASK;
    while !data.is_empty() {
        let header = if pieces.is_empty() {
            first_header
        } else {
            &later_header
        };
        let room = mtu.saturating_sub(header.len());
        let len = if data.len() <= room {
            data.len()
        } else {
            (room & !7).max(8)
        };
        let (piece, rest) = data.split_at(len.min(data.len()));
        let more = if rest.is_empty() {
            flags_offset & ipv4::MORE_FRAGMENTS
        } else {
            ipv4::MORE_FRAGMENTS
        };
        let word = flags_offset & ipv4::RESERVED | more | offset & ipv4::OFFSET_MASK;
        pieces.push(fragment(header, piece, word));
        offset = offset.wrapping_add((len / 8) as u16);
        data = rest;
    }
    pieces
}

fn fragment(header: &[u8], data: &[u8], flags_offset: u16) -> Vec<u8> {
    let mut packet = [header, data].concat();
    let total_len = packet.len() as u16;
    packet[0] = 0x40 | (header.len() / 4) as u8;
    if let Some(mut view) = ipv4::Header::new_mut(&mut packet) {
        view.set_total_len(total_len);
        view.set_flags_offset(flags_offset);
        view.set_checksum(0);
    }
    let sum = checksum::checksum(&packet[..header.len()]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::map_v4;
    use proptest::prelude::*;

    /// (start, end, last)
    type Row = (u32, u32, bool);

    fn piece((start, end, last): Row) -> Piece {
        Piece { start, end, last }
    }

    fn pieces(all: &[Row]) -> Result<Pieces, Misfit> {
        let mut pieces = Pieces::default();
        for &one in all {
            pieces.check(piece(one))?;
            pieces.add(piece(one));
        }
        Ok(pieces)
    }

    /// behaviour 19: overlapping fragments, data beyond the end, and two ends are refused; an exact copy is told apart.
    #[test]
    fn pieces_table() {
        let complete = |all: &[Row]| pieces(all).map(|pieces| pieces.is_complete());
        let cases: &[(&[Row], Result<bool, Misfit>)] = &[
            (&[(0, 8, false), (8, 20, true)], Ok(true)),
            (&[(16, 20, true), (0, 8, false), (8, 16, false)], Ok(true)),
            (&[(0, 8, false), (16, 20, true)], Ok(false)),
            (&[(0, 8, false)], Ok(false)),
            (&[(0, 8, false), (0, 8, false)], Err(Misfit::Duplicate)),
            (&[(8, 16, true), (8, 16, true)], Err(Misfit::Duplicate)),
            (
                &[
                    (0, 8, false),
                    (8, 16, false),
                    (16, 20, true),
                    (8, 16, false),
                ],
                Err(Misfit::Duplicate),
            ),
            (&[(8, 16, false), (8, 16, true)], Err(Misfit::Overlap)),
            (&[(8, 16, true), (8, 16, false)], Err(Misfit::Overlap)),
            (
                &[(0, 8, false), (8, 16, false), (0, 16, false)],
                Err(Misfit::Overlap),
            ),
            (&[(0, 16, false), (0, 8, false)], Err(Misfit::Overlap)),
            (&[(0, 24, false), (16, 32, false)], Err(Misfit::Overlap)),
            (&[(8, 16, false), (0, 24, false)], Err(Misfit::Overlap)),
            (&[(8, 20, true), (24, 32, false)], Err(Misfit::Overlap)),
            (&[(8, 20, true), (20, 24, true)], Err(Misfit::Overlap)),
            (&[(24, 32, false), (8, 20, true)], Err(Misfit::Overlap)),
        ];
        for (all, expected) in cases {
            assert_eq!(complete(all), *expected, "{all:?}");
        }
    }

    #[test]
    fn pieces_more_than_256_are_too_many() {
        let all: Vec<_> = (0..256).map(|n| (n * 8, n * 8 + 8, false)).collect();
        let full = pieces(&all).unwrap();
        assert_eq!(full.check(piece((4096, 4104, false))), Err(Misfit::TooMany));
        assert_eq!(full.check(piece((8, 16, false))), Err(Misfit::Duplicate));
        assert_eq!(full.check(piece((8, 24, false))), Err(Misfit::Overlap));
    }

    const ACTION: Action = Action::Transit;
    const FIRST: Piece = Piece {
        start: 0,
        end: 8,
        last: false,
    };

    fn key(source: u128, identification: u32) -> DatagramKey {
        DatagramKey {
            source,
            destination: 1,
            identification,
            protocol: 17,
        }
    }

    /// Hold a fragment with so many bytes of frame as its datagram's next piece: whether it was held, and how many others were given up.
    fn hold(fragments: &mut Fragments, key: &DatagramKey, bytes: usize, now: u64) -> (bool, usize) {
        let seen = fragments
            .get(key)
            .map_or(0, |entry| entry.pieces.known.len()) as u32;
        let (fits, given_up) = fragments.make_room(key, bytes);
        if !fits {
            return (false, given_up);
        }
        let held = Held {
            frame: vec![0; bytes],
            meta: Meta::EMPTY,
        };
        let next = piece((seen * 8 + 8, seen * 8 + 16, false));
        (true, given_up + fragments.hold(key, next, held, now))
    }

    /// behaviour 19: refused datagrams take no room: neither that of datagrams that pass nor that of those that wait.
    #[test]
    fn refuse_any_number_leaves_room() {
        let mut fragments = Fragments::default();
        for number in 0..MOST_DATAGRAMS as u32 {
            let source = u128::from(number % 64);
            assert_eq!(
                hold(&mut fragments, &key(source, number), 100, 0),
                (true, 0)
            );
        }
        for number in 0..5000 {
            assert_eq!(fragments.refuse(&key(7, 10_000 + number), 0), 0);
        }
        assert_eq!(fragments.held(), MOST_DATAGRAMS);
        assert_eq!(fragments.refused.len(), MOST_REFUSED);
        let is_refused = |number: u32| {
            let entry = fragments.get(&key(7, 10_000 + number));
            entry.map(|entry| entry.fate) == Some(Fate::Refused)
        };
        assert!(is_refused(4999) && !is_refused(0));
    }

    /// behaviour 39: what expires together leaves the tables at once, and its memory in parts.
    #[test]
    fn free_given_up_fragments_in_parts() {
        let mut fragments = Fragments::default();
        for number in 0..20 {
            hold(&mut fragments, &key(7, number % 4), 100, 0);
        }
        let expired: usize = std::iter::from_fn(|| fragments.expire(LIFETIME_NS)).sum();
        assert_eq!((expired, fragments.held()), (20, 0));
        let left =
            |fragments: &Fragments| -> usize { fragments.given_up.iter().map(Vec::len).sum() };
        for expected in [13, 6, 0] {
            assert!(fragments.has_given_up() && !fragments.is_empty());
            fragments.free(7);
            assert_eq!(expected, left(&fragments));
        }
        assert!(fragments.is_empty());
    }

    /// behaviour 19: when full the oldest goes; a source with an eighth loses its own oldest.
    #[test]
    fn hold_full_oldest_goes() {
        let mut fragments = Fragments::default();
        for number in 0..MOST_DATAGRAMS as u32 {
            hold(&mut fragments, &key(u128::from(number % 8), number), 100, 0);
        }
        assert_eq!(hold(&mut fragments, &key(3, 9000), 100, 0), (true, 1));
        assert!(fragments.get(&key(0, 0)).is_some() && fragments.get(&key(3, 3)).is_none());
        assert_eq!(hold(&mut fragments, &key(99, 9001), 100, 0), (true, 1));
        assert!(fragments.get(&key(0, 0)).is_none());
    }

    /// behaviour 19: of one datagram alone an eighth of the bytes is held, and no more.
    #[test]
    fn hold_own_share_full_drops_the_fragment() {
        let mut fragments = Fragments::default();
        let most = MOST_HELD_BYTES / SHARES / 60_000;
        for _ in 0..most {
            assert_eq!(hold(&mut fragments, &key(1, 1), 60_000, 0), (true, 0));
        }
        assert_eq!(hold(&mut fragments, &key(1, 1), 60_000, 0), (false, 0));
        assert_eq!(hold(&mut fragments, &key(1, 2), 60_000, 0), (true, most));
        assert!(fragments.get(&key(1, 1)).is_none());
    }

    /// What is counted beside the datagrams is what they have.
    fn check_accounts(fragments: &Fragments) -> Result<(), TestCaseError> {
        let mut shares: BTreeMap<u128, (usize, usize)> = BTreeMap::new();
        let (mut alive, mut waiting) = (Vec::new(), Vec::new());
        for (key, datagram) in &fragments.datagrams {
            prop_assert_eq!(datagram.fate == Fate::Unknown, !datagram.held.is_empty());
            if datagram.fate == Fate::Refused {
                continue;
            }
            let share = shares.entry(key.source).or_default();
            *share = (share.0 + 1, share.1 + datagram.held_bytes);
            alive.push((datagram.sequence, *key));
            if datagram.fate == Fate::Unknown {
                waiting.push((datagram.sequence, *key));
            }
        }
        for (order, mut expected) in [(&fragments.alive, alive), (&fragments.waiting, waiting)] {
            expected.sort_unstable();
            prop_assert_eq!(
                order.by_age.clone().into_iter().collect::<Vec<_>>(),
                expected.clone()
            );
            let by_source: BTreeSet<_> =
                expected.iter().map(|(at, key)| (key.source, *at)).collect();
            prop_assert_eq!(&order.by_source, &by_source);
        }
        let refused = fragments
            .datagrams
            .values()
            .filter(|one| one.fate == Fate::Refused)
            .count();
        prop_assert_eq!(refused, fragments.refused.len());
        prop_assert!(refused <= MOST_REFUSED && fragments.alive.by_age.len() <= MOST_DATAGRAMS);
        prop_assert_eq!(
            fragments.held_bytes,
            shares.values().map(|share| share.1).sum::<usize>()
        );
        prop_assert!(fragments.held_bytes <= MOST_HELD_BYTES);
        for (source, share) in shares {
            let counted = fragments.shares.get(&source).copied().unwrap_or_default();
            prop_assert_eq!((counted.datagrams, counted.held_bytes), share);
            prop_assert!(share.0 <= MOST_DATAGRAMS / SHARES && share.1 <= MOST_HELD_BYTES / SHARES);
        }
        Ok(())
    }

    /// Small enough to meet the limit of entries, or large enough to meet that of bytes.
    fn arrival_bytes() -> impl Strategy<Value = usize> {
        prop_oneof![8 => 1usize..100, 1 => 1usize..60_000]
    }

    proptest! {
            #![proptest_config(ProptestConfig::with_cases(16))]

            /// behaviour 19: whatever comes in whatever order, bounds hold, also those of each source, and every held fragment is accounted for once.
            #[test]
            fn fragments_any_arrivals_stay_within_bounds(
    arrivals in proptest::collection::vec((0u8..20, 0u128..12, 0u32..3000, arrival_bytes(), 0u64..30), 1500..2500),
            ) {
                let mut fragments = Fragments::default();
                let (mut now, mut entered, mut left) = (0, 0, 0);
                for (at, (what, source, identification, bytes, pause)) in arrivals.into_iter().enumerate() {
                    now += pause * 1_000_000;
                    while let Some(given_up) = fragments.expire(now) {
                        left += given_up;
                    }
                    let key = key(source, identification);
                    let fate = fragments.get(&key).map_or(Fate::Unknown, |entry| entry.fate);
                    match what {
                        _ if fate == Fate::Refused => {}
                        0 => left += fragments.refuse(&key, now),
                        1 | 2 if fate == Fate::Unknown => {
                            let (held, given_up) = fragments.decide(&key, FIRST, ACTION, now);
                            left += held.len() + given_up;
                        }
                        _ if fate == Fate::Unknown => {
                            let (held, given_up) = hold(&mut fragments, &key, bytes, now);
                            entered += usize::from(held);
                            left += given_up;
                        }
                        _ => {}
                    }
                    if at % 50 == 0 {
                        check_accounts(&fragments)?;
                    }
                    prop_assert_eq!(entered, left + fragments.held());
                }
                check_accounts(&fragments)?;
                while let Some(given_up) = fragments.expire(now + LIFETIME_NS) {
                    left += given_up;
                }
                fragments.free(usize::MAX);
                prop_assert!(fragments.is_empty() && fragments.shares.is_empty());
                prop_assert_eq!(entered, left);
            }

            /// behaviour 19: while one source floods, datagrams of others wait for their first fragment and get it.
            #[test]
            fn fragments_flood_of_one_source_leaves_others(flood in proptest::collection::vec((0u8..3, any::<u32>(), 1usize..60_000), 1500..3000)) {
                let mut fragments = Fragments::default();
                for source in 0..7 {
                    hold(&mut fragments, &key(source, 1), 1400, 0);
                }
                for (what, identification, bytes) in flood {
                    let key = key(100, identification);
                    if fragments.get(&key).is_some() {
                        continue;
                    }
                    match what {
                        0 => drop(fragments.refuse(&key, 0)),
                        1 => drop(fragments.decide(&key, FIRST, ACTION, 0)),
                        _ => drop(hold(&mut fragments, &key, bytes, 0)),
                    }
                }
                for source in 0..7 {
                    prop_assert_eq!(fragments.decide(&key(source, 1), FIRST, ACTION, 0).0.len(), 1);
                }
            }
        }

    fn packet(options: &[u8], flags_offset: u16, data: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 20];
        ipv4::Header::new_mut(&mut packet)
            .unwrap()
            .set_own(0, 0, 17, map_v4(1), map_v4(2));
        packet.extend(options);
        fragment(&packet, data, flags_offset)
    }

    /// behaviour 21: the copied option travels with every fragment, the other with the first only.
    #[test]
    fn cut_with_options_repeats_copied_only() {
        let options = [7, 3, 4, 0x94, 4, 0, 0, 0];
        let pieces = cut(&packet(&options, 0, &[5; 60]), 52);
        let lens: Vec<_> = pieces.iter().map(|piece| (piece[0], piece.len())).collect();
        assert_eq!(lens, [(0x47, 52), (0x46, 48), (0x46, 36)]);
        assert_eq!(pieces[1][20..24], [0x94, 4, 0, 0]);
    }

    proptest! {
        /// Put together again, the pieces are the packet; each fits, has a right checksum, and all but the last have data in units of 8.
        #[test]
        fn cut_any_packet_joins_back(data in proptest::collection::vec(any::<u8>(), 100..400), mtu in 28usize..110, more: bool, offset in 0u16..100) {
            let flags_offset = offset | if more { ipv4::MORE_FRAGMENTS } else { 0 };
            let pieces = cut(&packet(&[], flags_offset, &data), mtu);
            let mut at = usize::from(offset) * 8;
            let mut joined = Vec::new();
            for (number, piece) in pieces.iter().enumerate() {
                let header = ipv4::Header::new(piece).unwrap();
                let last = number + 1 == pieces.len();
                prop_assert!(piece.len() <= mtu && (last || (piece.len() - 20) % 8 == 0));
                prop_assert_eq!(checksum::sum(&piece[..20]), 0xffff);
                prop_assert_eq!(usize::from(header.flags_offset() & ipv4::OFFSET_MASK) * 8, at);
                prop_assert_eq!(header.flags_offset() & ipv4::MORE_FRAGMENTS != 0, more || !last);
                joined.extend_from_slice(&piece[20..]);
                at += piece.len() - 20;
            }
            prop_assert_eq!(joined, data);
        }
    }
}
